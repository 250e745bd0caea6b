"""Figures of `ir3de evaluate`: normalised performance, accuracy over k, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ir3de.card_ir3de import PLOT_NAME, plot_confusion
from ir3de.scripts.reports.drawing import save_plot

DPI = 110
OURS, OTHER, BOUND = "#1f5fa8", "#9aa7b5", "#d9dee4"


def plot(results: Mapping[str, Any], folder: Path) -> list[str]:
    """Draws what there are figures of as PNG, and returns the file names."""
    names = []
    rows = [row for row in results["rows"] if not row.get("error") and np.isfinite(row["normalised"])]
    if rows:
        save_plot(_normalised(rows), folder / "normalised.png", DPI)
        names.append("normalised.png")
    save_plot(_over_k(results["over_k"]), folder / "accuracy-over-k.png", DPI)
    plot_confusion(folder / PLOT_NAME, results["routing"]["confusion"])
    return [*names, "accuracy-over-k.png", PLOT_NAME]


def _color(row: str) -> str:
    if row.startswith(("ir3de", "this router", "with outcomes")):
        return OURS
    return BOUND if row.startswith(("only", "own", "best")) else OTHER


def _normalised(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A bar a row, the best on top, with its interval; from the worst up, since all are far from 0."""
    rows = sorted(rows, key=lambda row: row["normalised"])
    figure = Figure(layout="constrained", figsize=(7, 0.8 + 0.26 * len(rows)))
    axes = figure.subplots()
    values = np.array([row["normalised"] for row in rows])
    low, high = np.array([row["interval"] for row in rows]).T
    spread = np.clip([values - low, high - values], 0, None)
    axes.barh(range(len(rows)), values, xerr=spread, color=[_color(row["row"]) for row in rows], ecolor="0.35")
    for place, row in enumerate(rows):
        axes.text(max(high[place], values[place]) + 0.15, place, f"{row['normalised']:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["row"] for row in rows], fontsize=8)
    axes.set_xlim(np.floor(low.min()) - 1, np.ceil(high.max()) + 1.2)
    axes.axvline(100, color="0.5", linestyle="--", linewidth=1)
    axes.set_xlabel("normalised performance (%), 95 % intervals; the axis does not start at 0")
    return figure


def _over_k(over_k: Mapping[str, float]) -> Figure:
    """Accuracy of top-k against k, the other variants as lines across."""
    figure = Figure(layout="constrained", figsize=(5.5, 3.4))
    axes = figure.subplots()
    votes = {int(k): value for k, value in over_k.items() if k.isdigit()}
    axes.plot(list(votes), [100 * value for value in votes.values()], marker="o", color=OURS, label="top-k")
    styles = {"all": ("0.45", ":"), "avg": ("#c77d2e", "--"), "prompt": ("#2e8b57", "-")}
    for variant, (color, style) in styles.items():
        if variant in over_k:
            axes.axhline(100 * over_k[variant], color=color, linestyle=style, label=variant)
    axes.set_xscale("log")
    axes.set_xticks(list(votes), [str(k) for k in votes])
    axes.minorticks_off()
    axes.set_xlabel("k, the tokens that vote")
    axes.set_ylabel("macro accuracy (%)")
    axes.legend(fontsize=8)
    return figure
