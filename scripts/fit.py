"""`ir3de fit`: labelled text and the embeddings of any causal LM in, a router out."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm.auto import tqdm

from ir3de.configuration_ir3de import VARIANTS, IR3DEConfig, check_expert_name
from ir3de.modeling_ir3de import IR3DEModel, feature_space
from ir3de.scripts.choose import NUM_VOTES, RELATIVE_LAMBDAS, Candidate, choose, describe
from ir3de.scripts.data import Row, add_data_arguments, read_rows
from ir3de.scripts.sources import load_source
from ir3de.statistics_ir3de import DomainStatistics, count_tokens, gram_from_counts
from ir3de.token_router_ir3de import mean_diagonal

BATCH = 1024  # rows that are tokenized at a time
HELD_OUT_EVERY = 5
HELD_OUT_MOST = 1000  # prompts a domain, so that memory does not grow with the corpus


@dataclass
class Corpus:
    """
    What is kept of labelled text.

    Args:
        counts (`dict[str, torch.Tensor]` of shape `(V,)`): of each domain's tokens, without the held-out prompts.
        held_out (`dict[str, list[list[int]]]`): token ids of each domain's held-out prompts.
        skipped (`int`): rows without a single token.
    """

    counts: dict[str, torch.Tensor] = field(default_factory=dict)
    held_out: dict[str, list[list[int]]] = field(default_factory=lambda: defaultdict(list))
    skipped: int = 0


def collect(rows: Iterable[Row], tokenizer: Any, vocab_size: int, max_length: int) -> Corpus:
    """Tokenizes rows in a stream and counts; every fifth row of a domain is held out, up to a fixed number.

    Raises:
        ValueError: there are fewer than two domains, or a domain has a single row.
    """
    corpus, seen = Corpus(), defaultdict[str, int](int)
    progress = tqdm(desc="Reading", unit=" rows", disable=None)
    for batch in _batches(rows):
        texts = [row.text for row in batch]
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        fitted = defaultdict[str, list[list[int]]](list)
        for row, ids in zip(batch, encoded["input_ids"], strict=True):
            if not ids:
                corpus.skipped += 1
                continue
            seen[row.domain] += 1
            held = corpus.held_out[row.domain]
            hold = seen[row.domain] % HELD_OUT_EVERY == 2 and len(held) < HELD_OUT_MOST
            (held if hold else fitted[row.domain]).append(ids[:max_length])
        for domain, prompts in fitted.items():
            counts = count_tokens(prompts, vocab_size)
            corpus.counts[domain] = corpus.counts[domain] + counts if domain in corpus.counts else counts
        progress.update(len(batch))
    progress.close()
    if len(seen) < 2:
        raise ValueError(f"A router chooses between at least two domains; the data have {sorted(seen) or 'no rows'}.")
    for domain, number in seen.items():
        check_expert_name(domain)
        if number < 2:
            raise ValueError(f"Domain {domain!r} has a single row: at least two are needed, one of them held out.")
    return corpus


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch


def domain_statistics(
    corpus: Corpus, embeddings: torch.Tensor, name: str, everything: bool
) -> dict[str, DomainStatistics]:
    """The statistics of each domain in the feature space `name`, with or without its held-out prompts."""
    statistics = {}
    for domain in tqdm(sorted(corpus.held_out), desc="Summing", unit=" domains", disable=None, leave=False):
        counts = corpus.counts.get(domain, torch.zeros(len(embeddings), dtype=torch.int64))
        if everything:
            counts = counts + count_tokens(corpus.held_out[domain], len(embeddings))
        statistics[domain] = DomainStatistics.from_gram(gram_from_counts(counts, embeddings), name)
    return statistics


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ir3de fit`."""
    add_data_arguments(parser)
    parser.add_argument("--embeddings", required=True, metavar="SOURCE", help="Hub id or folder of any causal LM")
    parser.add_argument("--revision", help="revision of SOURCE")
    parser.add_argument("--gguf-file", help="name of the GGUF file, where the weights of SOURCE are GGUF")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the router")
    parser.add_argument("--experts", metavar="YAML", help="list of expert specs; by default each domain routes only")
    parser.add_argument("--variant", choices=("auto", *VARIANTS), default="auto", help="default: on held-out prompts")
    parser.add_argument("--num-votes", type=int, help="k of top-k; default: chosen on held-out prompts")
    parser.add_argument("--regularization", type=float, help="lambda; default: chosen on held-out prompts")
    parser.add_argument("--no-balance", action="store_true", help="sum domains as they are: larger ones weigh more")
    parser.add_argument("--no-bias", action="store_true", help="no column of ones")
    parser.add_argument("--normalize-columns", action="store_true", help="divide the columns of W by their norms")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a prompt that count (default: 1024)")


def run(args: argparse.Namespace) -> int:
    """Fits a router and saves it."""
    config = IR3DEConfig(
        experts=_read_experts(args.experts) if args.experts else [],
        variant="avg" if args.variant == "auto" else args.variant,
        num_votes=10 if args.num_votes is None else args.num_votes,
        regularization=1e-5 if args.regularization is None else args.regularization,
        balance=not args.no_balance,
        bias=not args.no_bias,
        normalize_columns=args.normalize_columns,
        max_length=args.max_length,
        embedding_model=args.embeddings,
        embedding_revision=args.revision,
        embedding_gguf_file=args.gguf_file,
    )
    tokenizer, embeddings = load_source(args.embeddings, args.revision, args.gguf_file)
    corpus = collect(read_rows(args), tokenizer, len(embeddings), config.max_length)
    _match_experts(config, sorted(corpus.held_out))
    name = feature_space(tokenizer, embeddings)
    part = domain_statistics(corpus, embeddings, name, everything=False)
    model = IR3DEModel.from_statistics(config, embeddings, part, tokenizer)
    best = _choose(model, corpus, args)
    model.config.evaluation = _evaluation(best, corpus)
    model.fit(domain_statistics(corpus, embeddings, name, everything=True))
    model.save_pretrained(args.output)
    skipped = f" ({corpus.skipped} rows without a token were left out)" if corpus.skipped else ""
    print(f"Saved a router of {len(corpus.held_out)} experts to {args.output}{skipped}.")
    print(f'Try it: ir3de route {args.output} "a prompt"')
    return 0


def _read_experts(path: str) -> list[dict[str, Any]]:
    experts = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(experts, list):
        raise ValueError(f"{path}: expected a list of experts, each a mapping with a `name`; got {experts!r}.")
    return experts


def _match_experts(config: IR3DEConfig, domains: list[str]) -> None:
    """Sets one expert a domain, or checks that the experts given are the domains of the data."""
    if not config.experts:
        config.set_experts([{"name": domain} for domain in domains])
    elif set(config.expert_names) != set(domains):
        raise ValueError(
            f"The data have the domains {domains} and the experts are {config.expert_names}: each domain needs one"
            " expert of its name. Leave rows out with --where, or mend the list of experts."
        )


def _choose(model: IR3DEModel, corpus: Corpus, args: argparse.Namespace) -> Candidate:
    """Tries on the held-out prompts whatever was not set by hand, and prints the best."""
    scale = mean_diagonal((domain.gram for domain in model.statistics.values()), model.config.balance)
    candidates = choose(
        model,
        corpus.held_out,
        VARIANTS if args.variant == "auto" else [args.variant],
        NUM_VOTES if args.num_votes is None else [args.num_votes],
        [scale * value for value in RELATIVE_LAMBDAS] if args.regularization is None else [args.regularization],
    )
    print(f"On {sum(map(len, corpus.held_out.values())):,} held-out prompts:\n{describe(candidates)}")
    return candidates[0]


def _evaluation(best: Candidate, corpus: Corpus) -> dict[str, Any]:
    """What config and card say of the choice."""
    domains = {
        name: {"recall": recall, "prompts": len(corpus.held_out[name])} for name, recall in sorted(best.recalls.items())
    }
    prompts = sum(domain["prompts"] for domain in domains.values())
    return {"macro_accuracy": best.macro_accuracy, "prompts": prompts, "domains": domains}


def main(arguments: list[str] | None = None) -> int:
    """Runs `ir3de fit`."""
    parser = argparse.ArgumentParser(prog="ir3de fit", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
