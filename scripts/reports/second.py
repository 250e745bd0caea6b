"""What a second opinion is worth, as a table and a plot."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ir3de.card_ir3de import markdown_table
from ir3de.scripts.fitting.second import AtBound
from ir3de.scripts.reports.drawing import draw


def describe(figures: Sequence[AtBound], prompts: int) -> str:
    """The figures as a table in Markdown."""
    rows = [[f"{row.bound:g}", f"{100 * row.share:.1f}", f"{100 * row.accuracy:.2f}"] for row in figures]
    head = ["second_below", "prompts that pay (%)", "macro accuracy (%)"]
    return f"On {prompts:,} prompts:\n\n{markdown_table(head, rows, numbers=3)}"


def describe_offer(without: AtBound, with_it: AtBound, prompts: int, error: float, router: str) -> str:
    """What a second opinion would give a router that has none, and how to get one.

    Args:
        without ([`AtBound`]): figures of the router alone.
        with_it ([`AtBound`]): with the second opinion at the usual bound.
        prompts (`int`): held-out ones that both are of.
        error (`float`): standard error of the accuracy, which a gain must be above to be called one.
        router (`str`): its folder.
    """
    figures = (
        f"on {prompts:,} held-out rows macro accuracy {100 * with_it.accuracy:.1f} % instead of"
        f" {100 * without.accuracy:.1f} %, and the encoder reads {100 * with_it.share:.0f} % of the prompts"
    )
    if with_it.accuracy - without.accuracy <= error:
        return f"A second opinion does not give more for sure: {figures}."
    return f"Try `ir3de second {shlex.quote(router)} --data ...`, or --second here, which does both: {figures}."


def write(report: str, figures: Sequence[AtBound], folder: Path) -> None:
    """Writes the report as `second.md`, and the figures as a plot beside it, where matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "second.md").write_text(f"{report}\n", encoding="utf-8")
    draw("second_plots", {"figures": figures}, folder)
