"""Accuracy over epsilon of the private mode: `python scripts/bench/private.py --data ... --output docs`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ir3de.batch_ir3de import batches
from ir3de.card_ir3de import markdown_table
from ir3de.configuration_ir3de import IR3DEConfig
from ir3de.modeling_ir3de import IR3DEModel
from ir3de.route_selector_ir3de import select
from ir3de.scripts.data.rows import RowSource, add_data_arguments, by_domain, read_rows
from ir3de.scripts.data.sources import load_quickstart_source, load_source
from ir3de.scripts.fitting.private import SHARE, PrivateCollector, release
from ir3de.scripts.metrics.measures import mean_recall
from ir3de.statistics_ir3de import DomainStatistics, StatisticsCollector, gram_from_counts

DELTA = 1e-6
PLAIN, BOUNDED = "plain", "bounded"  # no private mode; its bounds without its noise
MAPS: dict[str, dict[str, Any]] = {
    "unit": {"feature_map": "unit"},
    "rff 64": {"feature_map": "rff", "num_features": 64},
}
LAMBDAS = (1e-3, 1e-1)  # times the mean diagonal of A


def main() -> int:
    """Measures, and writes a plot and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_data_arguments(parser)
    parser.add_argument("--test-where", action="append", required=True, metavar="KEY=VALUE", help="rows to test on")
    parser.add_argument("--embeddings", help="Hub id or folder of a causal LM; default: SmolLM2-135M-Instruct")
    parser.add_argument("--gguf-file", help="name of the GGUF file, where its weights are GGUF")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.3, 1.0, 3.0, 10.0, 100.0, 1000.0])
    parser.add_argument("--seeds", type=int, default=3, help="draws of the noise (default: 3)")
    parser.add_argument("--name", default="privacy", help="of the plot and the figures (default: privacy)")
    parser.add_argument("--output", default=".", metavar="DIR", help="folder for both")
    args = parser.parse_args()
    if args.embeddings is None:
        tokenizer, E = load_quickstart_source()
    else:
        tokenizer, E = load_source(args.embeddings, gguf_file=args.gguf_file)
    source = RowSource.of(**vars(args))
    train = by_domain(read_rows(source))
    test = by_domain(read_rows(replace(source, where=tuple(args.test_where))))
    results: dict[str, Any] = {"prompts": {}, "accuracy": {}}
    for title, features in MAPS.items():
        bench = Bench(features, tokenizer, E, train, test)
        results["prompts"] = {name: len(lengths) for name, (_, lengths) in bench.train.items()}
        for epsilon in (PLAIN, BOUNDED, *args.epsilons):
            draws = [bench.accuracies(epsilon) for _ in range(args.seeds if isinstance(epsilon, float) else 1)]
            for relative in LAMBDAS:
                values = [draw[relative] for draw in draws]
                curve = results["accuracy"].setdefault(f"{title}, lambda {relative:g}", {})
                curve[str(epsilon)] = [mean(values), stdev(values) if len(values) > 1 else 0.0]
                print(f"{title}, lambda {relative:g}, epsilon {epsilon}: {100 * mean(values):.1f} %", flush=True)
    folder = Path(args.output)
    (folder / f"{args.name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot(results, folder / f"{args.name}.png")
    print(table(results))
    return 0


class Bench:
    """
    Prompts to collect and to test on, in one feature space.

    Args:
        features (`Mapping[str, Any]`): fields of the config.
        tokenizer (`PreTrainedTokenizerBase`): that belongs to the embeddings.
        E (`torch.Tensor` of shape `(V, h)`): token embeddings.
        train (`Mapping[str, list[str]]`): texts to collect, by domain.
        test (`Mapping[str, list[str]]`): texts to measure on, of the same domains.
    """

    def __init__(
        self,
        features: Mapping[str, Any],
        tokenizer: Any,
        E: torch.Tensor,
        train: Mapping[str, list[str]],
        test: Mapping[str, list[str]],
    ) -> None:
        names = sorted(train)
        self.config = IR3DEConfig(experts=[{"name": n} for n in names], variant="prompt", token_noise=0.3, **features)
        self.config.vocab_size, self.config.hidden_size = E.shape
        self.router = IR3DEModel(self.config)
        self.router.embed_tokens.weight.data, self.router.tokenizer = E, tokenizer
        self.phi, self.config.fingerprint = self.config.features.table(E), "benchmark"
        self.train = {name: self.router.tokenize(train[name]) for name in names}
        self.test = {name: self.router.tokenize(test[name]) for name in names}
        self.plain, self.bounded = {}, {}
        for name, prompts in self.train.items():
            plain, bounded = StatisticsCollector(self.phi, "benchmark"), PrivateCollector(self.phi, "benchmark")
            plain.add(prompts)
            bounded.add(prompts)
            self.plain[name] = plain.statistics
            tokens = gram_from_counts(bounded.counts, self.phi) / SHARE
            self.bounded[name] = {"tokens": tokens, "prompts": bounded.prompts}

    def accuracies(self, epsilon: float | str) -> dict[float, float]:
        """Macro accuracy by lambda on the test prompts, of routers whose domains were collected with this epsilon."""
        statistics = {name: self._statistics(name, epsilon) for name in self.train}
        scale = sum(float(s.diagonal("prompts")[:-1].mean()) / s.rows("prompts") for s in statistics.values())
        found = {}
        for relative in LAMBDAS:
            self.router.config.prompt_regularization = relative * scale
            self.router.fit(statistics)
            found[relative] = self._measure()
        return found

    def _measure(self) -> float:
        """Macro accuracy on the test prompts of the router as it is fitted."""
        table, recalls = self.router.token_table(), {}
        for index, (name, prompts) in enumerate(self.test.items()):
            logits = torch.cat([select(table, part, "prompt", 1) for part in batches(prompts)])
            recalls[name] = float((logits.argmax(dim=1) == index).double().mean())
        return mean_recall(recalls)

    def _statistics(self, name: str, epsilon: float | str) -> DomainStatistics:
        if epsilon == PLAIN:
            return self.plain[name]
        if epsilon == BOUNDED:
            return DomainStatistics.from_grams(self.bounded[name], "benchmark")
        tokens, prompts = self.bounded[name]["tokens"], self.bounded[name]["prompts"]
        return release(tokens, prompts, "benchmark", float(epsilon), DELTA)


def table(results: Mapping[str, Any]) -> str:
    """Macro accuracy in percent as Markdown: a row an epsilon, a column a curve; with its standard deviation."""
    curves = results["accuracy"]
    rows = []
    for epsilon in next(iter(curves.values())):
        row = [epsilon]
        for curve in curves.values():
            accuracy, deviation = curve[epsilon]
            spread = f" ± {100 * deviation:.1f}" if deviation else ""
            row.append(f"{100 * accuracy:.1f}{spread}")
        rows.append(row)
    return markdown_table(["epsilon", *curves], rows, numbers=len(curves))


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Draws accuracy over epsilon, with lines at what plain statistics and at what guessing gives."""
    canvas = Figure(layout="constrained", figsize=(6.5, 4))
    axes = canvas.subplots()
    for title, curve in results["accuracy"].items():
        points = [(float(e), 100 * m, 100 * s) for e, (m, s) in curve.items() if e not in (PLAIN, BOUNDED)]
        x, y, error = zip(*points, strict=True)
        axes.errorbar(x, y, yerr=error, marker=".", capsize=2, label=title)
    best = 100 * max(curve[PLAIN][0] for curve in results["accuracy"].values())
    axes.axhline(best, color="0.4", linestyle="--", label="plain statistics")
    axes.axhline(100 / len(results["prompts"]), color="0.4", linestyle=":", label="guessing")
    axes.set(xscale="log", xlabel="epsilon, at delta 1e-6", ylabel="macro accuracy (%)", ylim=(0, 100))
    axes.legend(fontsize=8)
    FigureCanvasAgg(canvas)
    canvas.savefig(path, dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    sys.exit(main())
