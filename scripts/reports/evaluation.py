"""What `ir3de evaluate` writes: tables in Markdown, JSON, figures, and the model-index of a router's card."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ir3de.card_ir3de import CARD_NAME, STATE_KEY, markdown_table
from ir3de.scripts.reports.drawing import draw
from ir3de.scripts.reports.rows import AVERAGE

RESULTS = "results.json"


def write_report(results: dict[str, Any], folder: Path) -> str:
    """Writes `results.json`, `results.md` and, where matplotlib is installed, the figures.

    Args:
        results (`dict`): of a run; NaN becomes null in JSON.
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


def rows_table(results: dict[str, Any]) -> str:
    """A row a way to choose the expert."""
    domains, scored = list(results["routing"]["domains"]), _scored(results)
    lines = []
    for row in results["rows"]:
        if row.get("error"):
            lines.append([row["row"], *["–"] * (len(domains) + 2) * scored, "–", "–", f"failed: {row['error']}"])
            continue
        by_domain = [_percent(row["domains"][name]["normalised"]) for name in domains] if scored else []
        mean = [_percent(row["normalised"], 2), _range(row["interval"])] if scored else []
        accuracy = "–" if row["row"] == AVERAGE else _percent(100 * row["accuracy"])  # it is no expert of any domain
        seconds = "" if row.get("seconds") is None else _percent(row["seconds"], 0)
        lines.append([row["row"], *mean, *by_domain, accuracy, seconds, row.get("choice", "")])
    head = ["expert chosen by", *(["normalised", "95 % interval", *domains] if scored else [])]
    return markdown_table([*head, "routing accuracy", "seconds", "fitted with"], lines)


def perplexity_table(results: dict[str, Any]) -> str:
    """A row a way to choose the expert, a column a domain."""
    domains = list(results["routing"]["domains"])
    rows = [row for row in results["rows"] if not row.get("error")]
    return markdown_table(
        ["expert chosen by", *domains],
        [[row["row"], *(_percent(row["domains"][name]["perplexity"], 2) for name in domains)] for row in rows],
    )


def confusion_table(results: dict[str, Any]) -> str:
    """A row a domain, a column an expert, in numbers of prompts."""
    confusion = results["routing"]["confusion"]
    rows = [[name, *(str(number) for number in routes.values())] for name, routes in confusion.items()]
    return markdown_table(["domain", *results["settings"]["experts"]], rows)


def over_k_table(results: dict[str, Any]) -> str:
    """A column a k, and a column another variant."""
    over_k = results["over_k"]
    return markdown_table(list(over_k), [[_percent(100 * value) for value in over_k.values()]])


def write_card(folder: Path, results: dict[str, Any], state: str) -> None:
    """Writes the router's own row into its model card as a model-index; other results and all text stay.

    Args:
        folder (`Path`): of the router.
        results (`dict`): of a run.
        state (`str`): of the router, see [`card_ir3de.state`]; once edits lead to another, the card drops the results.
    """
    path, settings = folder / CARD_NAME, results["settings"]
    card = ModelCard.load(path, ignore_metadata_errors=True)
    dataset = {
        "task_type": "text-generation",
        "dataset_name": ", ".join(Path(data).name.split(".")[0] for data in settings["data"]),
        "dataset_type": ", ".join(settings["data"]),
        "dataset_args": {STATE_KEY: state, **({"where": settings["where"]} if settings["where"] else {})},
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


def _about(results: dict[str, Any]) -> str:
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


def _scored(results: dict[str, Any]) -> bool:
    return "max_tokens" in results["settings"]


def _percent(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _range(bounds: Iterable[float]) -> str:
    low, high = bounds
    return "–" if math.isnan(low) else f"{low:.2f} to {high:.2f}"


def _finite(value: Any) -> Any:
    """The same without NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
