"""What `ir3de benchmark` writes for people: tables in Markdown, and plots."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Cell = Callable[[dict[str, Any]], str]


def write_report(results: dict[str, Any], folder: Path) -> str:
    """Writes `results.md` and the plots.

    Args:
        results (`dict`): of a run; see `results.json`.
        folder (`Path`): that exists.

    Returns:
        `str`: the table of accuracies, and where the rest is.
    """
    plots = draw("plots", results, folder)
    accuracy = accuracy_table(results)
    sections = [
        ("Macro accuracy (%), by split", accuracy),
        ("Expected calibration error (%), 15 bins", split_table(results, "calibration_error")),
        ("Out-of-scope AUROC (%), by largest probability", split_table(results, "out_of_scope_auroc")),
        ("Cost", cost_table(results)),
        ("Few training prompts: macro accuracy (%), mean ± standard deviation over samples", few_shot_table(results)),
        *((f"{name}: accuracy (%) by source", table) for name, table in source_tables(results)),
        ("Chosen on held-out prompts", choice_table(results)),
    ]
    text = "\n\n".join(["# Routers side by side", _about(results), *(f"![]({path})" for path in plots)])
    text += "".join(f"\n\n## {title}\n\n{table}" for title, table in sections if table)
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    return f"{accuracy}\n\nTables, plots and figures are in {folder}."


def columns(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Data set, split and heading of each split that was measured."""
    return [
        (data["name"], split, data["name"] + split.removeprefix("test").replace("_", " "))
        for data in results["data"]
        for split in data["splits"]
    ]


def figure(results: dict[str, Any], router: str, data: str, split: str, key: str) -> float | None:
    """A figure of a router on a split; None where there is none."""
    for run in results["runs"]:
        if (run["router"], run["data"]) == (router, data) and split in run["splits"]:
            return run["splits"][split].get(key)
    return None


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; empty without rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]) if lines else ""


def accuracy_table(results: dict[str, Any]) -> str:
    """A row a router, a column a split; standard errors come from the number of test prompts."""
    splits = columns(results)
    rows = []
    for router in results["settings"]["routers"]:
        values = [figure(results, router, data, split, "macro_accuracy") for data, split, _ in splits]
        errors = [figure(results, router, data, split, "standard_error") for data, split, _ in splits]
        known = [value for value in values if value is not None]
        cells = [
            "" if value is None or error is None else f"{100 * value:.1f} ± {100 * error:.1f}"
            for value, error in zip(values, errors, strict=True)
        ]
        rows.append([router, *cells, f"{100 * mean(known):.1f}" if known else ""])
    return markdown(["router", *(heading for *_, heading in splits), "mean"], rows)


def split_table(results: dict[str, Any], key: str) -> str:
    """A row a router, a column a split that has the figure, in percent."""
    routers = results["settings"]["routers"]
    splits = [
        (data, split, heading)
        for data, split, heading in columns(results)
        if any(figure(results, router, data, split, key) is not None for router in routers)
    ]
    rows = [[router, *(_percent(figure(results, router, d, s, key)) for d, s, _ in splits)] for router in routers]
    return markdown(["router", *(heading for *_, heading in splits)], rows if splits else [])


def cost_table(results: dict[str, Any]) -> str:
    """What routing costs: times tokenizing alone, tokenizing included, and microseconds."""
    rows = []
    for run in results["runs"]:
        ways = [
            f"{1e6 * way['routing']:,.0f} µs ({way['routing'] / way['tokenizing']:.2f} ×)"
            for way in (run["latency"]["single"], run["latency"]["batch"])
        ]
        rows.append([run["data"], run["router"], *ways, f"{run['fit_seconds']:.1f} s", f"{run['bytes'] / 1e6:.1f} MB"])
    head = ["data", "router", "one prompt (× tokenizing)", "a prompt of a batch (× tokenizing)", "fit", "memory"]
    return markdown(head, rows)


def few_shot_table(results: dict[str, Any]) -> str:
    """A row a router, a column a number of training prompts a domain and a split."""
    runs = results["few_shot"]
    heads = [(n, *column) for column in columns(results) for n in sorted({run["shots"] for run in runs})]
    heads = [h for h in heads if any(run["data"] == h[1] for run in runs)]
    rows = []
    for router in results["settings"]["routers"]:
        cells = []
        for n, data, split, _ in heads:
            key = (router, data, n)
            values = [
                100 * run["macro_accuracy"][split] for run in runs if (run["router"], run["data"], run["shots"]) == key
            ]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.1f}{spread}" if values else "")
        rows.append([router, *cells])
    return markdown(["router", *(f"{heading}, {n}" for n, *_, heading in heads)], rows if runs else [])


def source_tables(results: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """For each split a row a domain and source, a column a router."""
    for data, split, heading in columns(results):
        runs = [run for run in results["runs"] if run["data"] == data and split in run["splits"]]
        rows = []
        for source, of_first in (runs[0]["splits"][split]["sources"] if runs else {}).items():
            values = (run["splits"][split]["sources"][source]["accuracy"] for run in runs)
            rows.append([source, str(of_first["prompts"]), *(f"{100 * value:.1f}" for value in values)])
        yield heading, markdown(["domain/source", "prompts", *(run["router"] for run in runs)], rows)


def choice_table(results: dict[str, Any]) -> str:
    """The hyper-parameters of each router."""
    return markdown(["data", "router", "choice"], [[r["data"], r["router"], r["choice"]] for r in results["runs"]])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _about(results: dict[str, Any]) -> str:
    settings = results["settings"]
    few = f" Every router was given at most {settings['max_train']} a domain." if settings["max_train"] else ""
    lines = [
        f"Embeddings of our routers: {settings['embeddings']}. Sentence encoder: {settings['encoder']}, at most"
        f" {settings['max_train_per_domain'] or 'all'} training prompts a domain.{few}"
        f" {settings['threads']} CPU threads, {settings['machine']}."
        f" {', '.join(' '.join(pair) for pair in settings['packages'].items())}.",
        "",
        "Hyper-parameters and calibration come from a held-out part of the training prompts. ± is a standard error."
        " Where vectors came from a cache, the fit time includes an estimate of computing them.",
        "",
    ]
    for data in results["data"]:
        for split, part in data["splits"].items():
            left = "".join(f"; {n} rows of {domain} left out" for domain, n in part["left_out"].items())
            outside = f", {part['outside']:,} out of scope" if part["outside"] else ""
            lines.append(
                f"- {data['name']}, {split}: {data['domains']} domains, {data['train']:,} training prompts,"
                f" {part['prompts']:,} test prompts{outside}{left}"
            )
    return "\n".join(lines)


def draw(module: str, results: dict[str, Any], folder: Path) -> list[str]:
    """Draws the plots of a module of `scripts` where matplotlib is installed, and returns their file names."""
    try:
        plots = importlib.import_module(f"ir3de.scripts.reports.{module}")
    except ImportError:
        print("No plots: they need matplotlib, `pip install ir3de[benchmark]`.", file=sys.stderr)
        return []
    return plots.plot(results, folder)  # type: ignore[no-any-return]
