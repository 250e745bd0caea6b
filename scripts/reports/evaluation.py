"""What `ir3de evaluate` writes: tables in Markdown, JSON, figures, and the model-index of a router's card."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from huggingface_hub import EvalResult, ModelCard

from ir3de.card_ir3de import CARD_NAME, STATE_KEY, markdown_table
from ir3de.scripts.metrics.accuracy import RoutingFigures
from ir3de.scripts.reports.drawing import draw
from ir3de.scripts.reports.rows import AVERAGE, TableRow

RESULTS = "results.json"


class Settings(TypedDict, total=False):
    """
    What a report says of the run.

    Args:
        router (`str`): Hub id, or of a folder its name.
        variant (`str`): in words, with its feature map and k.
        experts (`list[str]`): of the router.
        data (`list[str]`): that it is evaluated on.
        where (`list[str]`): conditions that the rows meet.
        prompts (`int`, *optional*): that experts read, a domain.
        max_tokens (`int`, *optional*): of a prompt that experts read.
        train (`list[str]`, *optional*): data that other routers are fitted to.
        train_where (`list[str]`, *optional*): conditions that its rows meet.
        train_rows (`int`, *optional*): how many there are.
        seeds (`int`, *optional*): of other routers.
        max_train_per_domain (`int`, *optional*): training prompts that an encoder reads; 0: all.
        modem_tokens (`int`, *optional*): of a prompt that modem reads.
        quick (`bool`): whether the sizes are those of `--quick`.
        threads (`int`): of the CPU.
        device (`str`): of the experts.
        machine (`str`): in words.
        packages (`dict[str, str]`): their versions.
    """

    router: str
    variant: str
    experts: list[str]
    data: list[str]
    where: list[str]
    prompts: int
    max_tokens: int
    train: list[str]
    train_where: list[str]
    train_rows: int
    seeds: int
    max_train_per_domain: int
    modem_tokens: int
    quick: bool
    threads: int
    device: str
    machine: str
    packages: dict[str, str]


class Results(TypedDict):
    """
    What `results.json` holds.

    Args:
        settings ([`Settings`]): of the run.
        notes (`list[str]`): rows that were dropped, and the like.
        routing ([`RoutingFigures`]): of the router.
        failures (`dict[str, str]`): the experts that failed, and with what.
        over_k (`dict[str, float]`): macro accuracy with each k and of the other variants.
        rows (`list[TableRow]`): ways to choose the expert; the last is the router's own.
        seconds (`float`): that the run took.
    """

    settings: Settings
    notes: list[str]
    routing: RoutingFigures
    failures: dict[str, str]
    over_k: dict[str, float]
    rows: list[TableRow]
    seconds: float


def write_report(results: Results, folder: Path) -> str:
    """Writes `results.json`, `results.md` and, where matplotlib is installed, the figures.

    Args:
        results ([`Results`]): of a run; NaN becomes null in JSON.
        folder (`Path`): that exists.

    Returns:
        `str`: the table, and where the rest is.
    """
    text = json.dumps(_finite(results), indent=1, ensure_ascii=False)
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")
    figures = draw("evaluation_plots", results, folder)
    table = rows_table(results)
    sections = [
        ("Normalised performance (%) and routing accuracy (%)" if _scored(results) else "Routing accuracy (%)", table),
        ("Perplexity by routing", perplexity_table(results) if _scored(results) else ""),
        ("Where the router sends the prompts of each domain", confusion_table(results)),
        ("Macro accuracy (%) over k", over_k_table(results)),
    ]
    body = "\n\n".join(f"## {title}\n\n{table}" for title, table in sections if table)
    images = "\n".join(f"![{name.removesuffix('.png').replace('-', ' ')}]({name})" for name in figures)
    parts = [f"# {results['settings']['router']}, evaluated", _about(results), body, images]
    (folder / "results.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return f"{table}\n\nTables, figures and what they are made of are in {folder}."


def rows_table(results: Results) -> str:
    """A row a way to choose the expert."""
    domains, scored = list(results["routing"]["domains"]), _scored(results)
    head = ["expert chosen by"]
    if scored:
        head += ["normalised", "95 % interval", *domains]
    head += ["routing accuracy", "seconds", "fitted with"]
    lines = []
    for row in results["rows"]:
        if row.get("error"):
            lines.append([row["row"], *["–"] * (len(head) - 2), f"failed: {row['error']}"])
            continue
        cells = [row["row"]]
        if scored:
            cells += [_percent(row["normalised"], 2), _range(row["interval"])]
            cells += [_percent(row["domains"][name]["normalised"]) for name in domains]
        # The average is no expert of any domain.
        cells.append("–" if row["row"] == AVERAGE else _percent(100 * row["accuracy"]))
        seconds = row.get("seconds")
        cells.append("" if seconds is None else _percent(seconds, 0))
        lines.append([*cells, row.get("choice", "")])
    return markdown_table(head, lines)


def perplexity_table(results: Results) -> str:
    """A row a way to choose the expert, a column a domain."""
    domains = list(results["routing"]["domains"])
    rows = [row for row in results["rows"] if not row.get("error")]
    return markdown_table(
        ["expert chosen by", *domains],
        [[row["row"], *(_percent(row["domains"][name]["perplexity"], 2) for name in domains)] for row in rows],
    )


def confusion_table(results: Results) -> str:
    """A row a domain, a column an expert, in numbers of prompts."""
    confusion = results["routing"]["confusion"]
    rows = [[name, *(str(number) for number in routes.values())] for name, routes in confusion.items()]
    return markdown_table(["domain", *results["settings"]["experts"]], rows)


def over_k_table(results: Results) -> str:
    """A column a k, and a column another variant."""
    over_k = results["over_k"]
    return markdown_table(list(over_k), [[_percent(100 * value) for value in over_k.values()]])


def write_card(folder: Path, results: Results, state: str) -> None:
    """Writes the router's own row into its model card as a model-index; other results and all text stay.

    Args:
        folder (`Path`): of the router.
        results ([`Results`]): of a run.
        state (`str`): of the router, see [`card_ir3de.state`]; once edits lead to another, the card drops the results.
    """
    path, settings = folder / CARD_NAME, results["settings"]
    card = ModelCard.load(path, ignore_metadata_errors=True)
    measured_on: dict[str, Any] = {STATE_KEY: state}
    if settings["where"]:
        measured_on["where"] = settings["where"]
    dataset: dict[str, Any] = {
        "task_type": "text-generation",
        "dataset_name": ", ".join(Path(data).name.split(".")[0] for data in settings["data"]),
        "dataset_type": ", ".join(settings["data"]),
        "dataset_args": measured_on,
    }
    own = results["rows"][-1]
    values = {
        ("accuracy", "macro routing accuracy (%)"): 100 * own["accuracy"],
        ("normalised-performance", "perplexity of the domains' own experts / by routing (%)"): own["normalised"],
    }
    new = [
        EvalResult(**dataset, metric_type=kind, metric_name=name, metric_value=round(value, 2))
        for (kind, name), value in values.items()
        if math.isfinite(value)
    ]
    replaced = {entry.unique_identifier for entry in new}
    kept = [old for old in card.data.eval_results or [] if old.unique_identifier not in replaced]
    card.data.model_name = card.data.model_name or folder.resolve().name
    card.data.eval_results = [*kept, *new]
    card.save(path)


def _about(results: Results) -> str:
    settings = results["settings"]
    where = f" where {' and '.join(settings['where'])}" if settings["where"] else ""
    lines = [
        f"{results['routing']['prompts']:,} prompts of {', '.join(settings['data'])}{where}. The router's own choice:"
        f" {settings['variant']}. {settings['device']}, {settings['threads']} CPU threads, {settings['machine']};"
        f" {', '.join(f'{name} {number}' for name, number in settings['packages'].items())}."
        f" This run took {results['seconds'] / 60:.1f} minutes, without what was kept of earlier ones."
        f"{' A quick run: few prompts, few training prompts for encoders.' if settings['quick'] else ''}"
    ]
    if _scored(results):
        lines.append(
            f"Experts and routers read the first {settings['max_tokens']} tokens of at most {settings['prompts']}"
            " prompts a domain. Normalised performance is the perplexity of the domain's own expert over the perplexity"
            " by routing, 100 = every prompt read by its domain's expert; the mean of the domains, with a bootstrap"
            " over prompts. Perplexity is exp(nats / predicted tokens), both summed over a domain; padding and the"
            f" first token of a text never count. `random` is exact: every expert as likely. `{AVERAGE}` is one model,"
            " the mean of the experts. `best in hindsight` gives each prompt to the expert of lowest perplexity on it,"
            " which no router can know."
        )
    if "train_rows" in settings:
        lines.append(
            f"The other routers were fitted to {settings['train_rows']:,} training prompts (encoders to at most"
            f" {settings['max_train_per_domain'] or 'all'} a domain); k and all else was chosen on a held-out part of"
            f" these, and is given as `fitted with`. Where a seed matters, routes are the mean of {settings['seeds']}"
            f" seeds; modem has one, and reads the first {settings['modem_tokens']} tokens of a training prompt."
        )
    lines.append(
        "Seconds are of this machine, and of earlier runs where their results were kept: of an expert, to load it and"
        " to read all prompts; of another router, to fit it, with every choice and seed, and to route. The first that"
        " needs the sentence encoder pays for the vectors that all of them share."
    )
    lines += [f"- {note}" for note in results["notes"]]
    lines += [f"- **{name} failed: {error}**" for name, error in results["failures"].items()]
    return "\n\n".join(lines)


def _scored(results: Results) -> bool:
    return "max_tokens" in results["settings"]


def _percent(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _range(bounds: Iterable[float]) -> str:
    low, high = bounds
    return "–" if math.isnan(low) else f"{low:.2f} to {high:.2f}"


def _finite(value: object) -> object:
    """The same without NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
