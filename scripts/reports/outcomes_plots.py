"""Plots of routers that learn from outcomes: score over cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from ir3de.outlook_ir3de import Point, hull
from ir3de.scripts.reports.drawing import save_plot

OURS = "domains x outcomes"


def plot(results: Mapping[str, Any], folder: Path) -> list[str]:
    """Draws a frontier for each data set with costs, and returns the file names."""
    names = []
    for data in results["data"]:
        if "costs" in data:
            names.append(f"frontier-{data['name']}.png")
            save_plot(_frontier(data), folder / names[-1], dpi=150)
    return names


def _frontier(data: Mapping[str, Any]) -> Figure:
    """The hull of each router, and a point for each single expert."""
    canvas = Figure(layout="constrained", figsize=(6, 4))
    axes = canvas.subplots()
    frontiers = {name: [Point(*point) for point in points] for name, points in data["costs"]["frontiers"].items()}
    single = frontiers.pop("single experts")
    axes.plot(*zip(*single, strict=True), "x", color="0.5", label="single experts")
    for index, (name, points) in enumerate(frontiers.items()):
        color = colormaps["Blues"](0.9) if name == OURS else colormaps["Set2"](index % 8)
        axes.plot(*zip(*hull(points), strict=True), color=color, label=name, linewidth=2 if name == OURS else 1)
    best = max(point.score for points in frontiers.values() for point in points)
    axes.set_xscale("log")
    axes.set_ylim(min(point.score for point in single), best + 0.01)
    axes.set_xlabel("macro mean cost of a prompt")
    axes.set_ylabel("macro mean score")
    axes.set_title(data["name"])
    axes.legend(fontsize=7)
    return canvas
