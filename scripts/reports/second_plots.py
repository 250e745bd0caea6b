"""Plots of what a second opinion is worth: accuracy over the share of prompts that pay for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ir3de.scripts.reports.drawing import save_plot

if TYPE_CHECKING:
    from ir3de.scripts.fitting.second import AtBound


def plot(results: Mapping[str, Sequence[AtBound]], folder: Path) -> list[str]:
    """Draws the results' `figures`, a point a bound, and returns the file's name."""
    canvas = Figure(layout="constrained", figsize=(5, 3.5))
    axes = canvas.subplots()
    x = [100 * row.share for row in results["figures"]]
    y = [100 * row.accuracy for row in results["figures"]]
    axes.plot(x, y, marker=".", color="tab:blue", label="by second_below")
    places: dict[tuple[float, float], list[str]] = {}
    for share, accuracy, row in zip(x, y, results["figures"], strict=True):
        places.setdefault((share, accuracy), []).append(f"{row.bound:g}")
    for place, bounds in places.items():
        axes.annotate(", ".join(bounds), place, xytext=(0, -12), textcoords="offset points", fontsize=8, ha="center")
    axes.margins(0.15)
    axes.legend(fontsize=8, loc="lower right")
    axes.set_xlabel("prompts that the encoder reads (%)")
    axes.set_ylabel("macro accuracy (%)")
    save_plot(canvas, folder / "second.png", dpi=150)
    return ["second.png"]
