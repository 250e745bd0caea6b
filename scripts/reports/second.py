"""What a second opinion is worth, as a table and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ir3de.card_ir3de import markdown_table
from ir3de.scripts.fitting.second import AtBound
from ir3de.scripts.reports.drawing import save_plot


def describe(figures: Sequence[AtBound], prompts: int) -> str:
    """The figures as a table in Markdown."""
    rows = [[f"{row.bound:g}", f"{100 * row.share:.1f}", f"{100 * row.accuracy:.2f}"] for row in figures]
    head = ["second_below", "prompts that pay (%)", "macro accuracy (%)"]
    return f"On {prompts:,} prompts:\n\n{markdown_table(head, rows, numbers=3)}"


def plot(figures: Sequence[AtBound], path: Path) -> None:
    """Draws accuracy over the share of prompts that pay, a point a bound, as PNG."""
    from matplotlib.figure import Figure

    canvas = Figure(layout="constrained", figsize=(5, 3.5))
    axes = canvas.subplots()
    x = [100 * row.share for row in figures]
    y = [100 * row.accuracy for row in figures]
    axes.plot(x, y, marker=".", color="tab:blue", label="by second_below")
    places: dict[tuple[float, float], list[str]] = {}
    for share, accuracy, row in zip(x, y, figures, strict=True):
        places.setdefault((share, accuracy), []).append(f"{row.bound:g}")
    for place, bounds in places.items():
        axes.annotate(", ".join(bounds), place, xytext=(0, -12), textcoords="offset points", fontsize=8, ha="center")
    axes.margins(0.15)
    axes.legend(fontsize=8, loc="lower right")
    axes.set_xlabel("prompts that the encoder reads (%)")
    axes.set_ylabel("macro accuracy (%)")
    save_plot(canvas, path, dpi=150)
