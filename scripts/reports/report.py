"""What `ir3de benchmark` writes for people: tables in Markdown, and plots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from ir3de.card_ir3de import markdown_table
from ir3de.scripts.reports.comparison import Results, SplitFigures
from ir3de.scripts.reports.drawing import draw


def write_report(results: Results, folder: Path) -> str:
    """Writes `results.md` and the plots.

    Args:
        results ([`Results`]): of a run.
        folder (`Path`): that exists.

    Returns:
        `str`: the table of accuracies, and where the rest is.
    """
    plots = draw("plots", results, folder)
    accuracy = accuracy_table(results)
    sections = [
        ("Macro accuracy (%), by split", accuracy),
        ("Expected calibration error (%), 15 bins", split_table(results, lambda split: split["calibration_error"])),
        (
            "Out-of-scope AUROC (%), by familiarity, or where a router does not tell it by largest probability",
            split_table(results, lambda split: split.get("out_of_scope_auroc")),
        ),
        ("Cost", cost_table(results)),
        ("Few training prompts: macro accuracy (%), mean ± standard deviation over samples", few_shot_table(results)),
        *((f"{name}: accuracy (%) by source", table) for name, table in source_tables(results)),
        ("Chosen on held-out prompts", choice_table(results)),
    ]
    text = "\n\n".join(["# Routers side by side", _about(results), *(f"![]({path})" for path in plots)])
    text += "".join(f"\n\n## {title}\n\n{table}" for title, table in sections if table)
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    return f"{accuracy}\n\nTables, plots and figures are in {folder}."


class Column(NamedTuple):
    """
    A split that was measured, as a column of a table.

    Args:
        data (`str`): name of the data set.
        split (`str`): name of the split.
        heading (`str`): for people.
    """

    data: str
    split: str
    heading: str


def columns(results: Results) -> list[Column]:
    """The splits that were measured."""
    return [
        Column(data["name"], split, data["name"] + split.removeprefix("test").replace("_", " "))
        for data in results["data"]
        for split in data["splits"]
    ]


def figures_of(results: Results, router: str, column: Column) -> SplitFigures | None:
    """The figures of a router on a split; None where it was not measured there."""
    for run in results["runs"]:
        if run["router"] == router and run["data"] == column.data:
            return run["splits"].get(column.split)
    return None


def accuracy_table(results: Results) -> str:
    """A row a router, a column a split; standard errors come from the number of test prompts."""
    splits = columns(results)
    rows = []
    for router in results["settings"]["routers"]:
        row, accuracies = [router], []
        for column in splits:
            figures = figures_of(results, router, column)
            if figures is None:
                row.append("")
                continue
            row.append(f"{100 * figures['macro_accuracy']:.1f} ± {100 * figures['standard_error']:.1f}")
            accuracies.append(figures["macro_accuracy"])
        row.append(f"{100 * mean(accuracies):.1f}" if accuracies else "")
        rows.append(row)
    return markdown_table(["router", *(column.heading for column in splits), "mean"], rows)


def split_table(results: Results, read: Callable[[SplitFigures], float | None]) -> str:
    """A row a router, a column a split that has the figure, in percent.

    Args:
        results ([`Results`]): of a run.
        read (`Callable`): takes the figure, 0 to 1, out of those of a split; None where there is none.
    """
    routers = results["settings"]["routers"]
    head, cells = ["router"], []
    for column in columns(results):
        values = []
        for router in routers:
            figures = figures_of(results, router, column)
            values.append(None if figures is None else read(figures))
        if any(value is not None for value in values):
            head.append(column.heading)
            cells.append([_percent(value) for value in values])
    if not cells:
        return ""
    return markdown_table(head, [[router, *row] for router, *row in zip(routers, *cells, strict=True)])


def cost_table(results: Results) -> str:
    """What routing costs: times tokenizing alone, tokenizing included, and microseconds."""
    rows = []
    for run in results["runs"]:
        ways = [
            f"{1e6 * way['routing']:,.0f} µs ({way['routing'] / way['tokenizing']:.2f} ×)"
            for way in (run["latency"]["single"], run["latency"]["batch"])
        ]
        rows.append([run["data"], run["router"], *ways, f"{run['fit_seconds']:.1f} s", f"{run['bytes'] / 1e6:.1f} MB"])
    head = ["data", "router", "one prompt (× tokenizing)", "a prompt of a batch (× tokenizing)", "fit", "memory"]
    return markdown_table(head, rows)


def few_shot_table(results: Results) -> str:
    """A row a router, a column a number of training prompts a domain and a split."""
    runs = results["few_shot"]
    if not runs:
        return ""
    measured = {run["data"] for run in runs}
    shots = sorted({run["shots"] for run in runs})
    heads = [(column, n) for column in columns(results) if column.data in measured for n in shots]
    rows = []
    for router in results["settings"]["routers"]:
        row = [router]
        for column, n in heads:
            of_cell = [run for run in runs if (run["router"], run["data"], run["shots"]) == (router, column.data, n)]
            values = [100 * run["macro_accuracy"][column.split] for run in of_cell]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            row.append(f"{mean(values):.1f}{spread}" if values else "")
        rows.append(row)
    return markdown_table(["router", *(f"{column.heading}, {n}" for column, n in heads)], rows)


def source_tables(results: Results) -> Iterator[tuple[str, str]]:
    """For each split a row a domain and source, a column a router."""
    for data, split, heading in columns(results):
        runs = [run for run in results["runs"] if run["data"] == data and split in run["splits"]]
        if not runs:
            continue
        rows = []
        for source, of_first in runs[0]["splits"][split]["sources"].items():
            accuracies = [run["splits"][split]["sources"][source]["accuracy"] for run in runs]
            rows.append([source, str(of_first["prompts"]), *(_percent(accuracy) for accuracy in accuracies)])
        yield heading, markdown_table(["domain/source", "prompts", *(run["router"] for run in runs)], rows)


def choice_table(results: Results) -> str:
    """The hyper-parameters of each router."""
    rows = [[run["data"], run["router"], run["choice"]] for run in results["runs"]]
    return markdown_table(["data", "router", "choice"], rows)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _about(results: Results) -> str:
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
