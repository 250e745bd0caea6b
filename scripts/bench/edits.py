"""Measures how long edits take: `python scripts/bench/edits.py --features 576`."""

from __future__ import annotations

import argparse
import resource
import time

import torch

from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.statistics_ir3de import DomainStatistics


def contribution(features: int, tokens: int, seed: int) -> DomainStatistics:
    """Statistics of made-up unit rows that stand for so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(2 * features, features, generator=generator, dtype=torch.float64)
    X = torch.cat([X / X.norm(dim=1, keepdim=True), torch.ones(len(X), 1, dtype=torch.float64)], dim=1)
    A = X.T @ X * (tokens / len(X))
    A[-1, -1] = tokens
    return DomainStatistics.from_grams({"tokens": A, "prompts": A}, "measured")


def main() -> None:
    """Prints the seconds that adding and removing an expert take, by the number of tokens behind the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=576)
    parser.add_argument("--experts", type=int, default=10)
    parser.add_argument("--tokens", type=int, nargs="+", default=[10_000, 10_000_000])
    args = parser.parse_args()
    for tokens in args.tokens:
        domains = {f"d{i}": contribution(args.features, tokens, i) for i in range(args.experts)}
        config = IR3DEConfig(
            vocab_size=256,
            hidden_size=args.features,
            experts=[{"name": name} for name in domains],
            feature_map="unit",
            fingerprint="measured",
        )
        model = IR3DEModel(config)
        model.fit(domains)
        new = contribution(args.features, 10_000, 99)
        seconds = []
        for edit in (lambda: model.add_expert("new", statistics=new), lambda: model.remove_expert("new")):  # noqa: B023
            start = time.perf_counter()
            edit()
            seconds.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{args.features} features, {args.experts} experts, {tokens:,} tokens each: added in {seconds[0]:.2f} s,"
            f" removed in {seconds[1]:.2f} s; peak {peak:.1f} GiB; {torch.get_num_threads()} threads",
            flush=True,
        )


if __name__ == "__main__":
    main()
