"""Plots of `ir3de benchmark`: accuracy by split, accuracy against latency, reliability."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from ir3de.scripts.reports.comparison import Results
from ir3de.scripts.reports.drawing import save_plot
from ir3de.scripts.reports.report import columns, figures_of

Colour = tuple[float, float, float, float]


def plot(results: Results, folder: Path) -> list[str]:
    """Draws all plots as PNG, and returns their file names."""
    drawings = {"accuracy.png": _accuracy, "latency.png": _latency, "reliability.png": _reliability}
    for name, draw in drawings.items():
        save_plot(draw(results), folder / name, dpi=150)
    return list(drawings)


def _color(results: Results, router: str) -> Colour:
    """Ours in shades of blue, the others in colours of their own."""
    ours = [name for name in results["settings"]["routers"] if name.startswith("ir3de")]
    if router in ours:
        return colormaps["Blues"](1 - 0.6 * ours.index(router) / max(1, len(ours)))
    others = [name for name in results["settings"]["routers"] if name not in ours]
    return colormaps["Set2"](others.index(router) % 8)


def _accuracy(results: Results) -> Figure:
    """A group of bars a split, a bar a router, with standard errors; from the worst of the trained routers up."""
    splits = columns(results)
    routers = [name for name in results["settings"]["routers"] if name != "random"] or ["random"]
    canvas = Figure(layout="constrained", figsize=(max(6, 1.6 * len(splits)), 4))
    axes = canvas.subplots()
    width, low = 0.85 / len(routers), 1.0
    for i, router in enumerate(routers):
        measured = [figures_of(results, router, column) for column in splits]  # NaN where it was not, and no bar
        values = np.array([figures["macro_accuracy"] if figures else np.nan for figures in measured])
        errors = np.array([figures["standard_error"] if figures else np.nan for figures in measured])
        low = min(low, np.nanmin(values))
        places = np.arange(len(splits)) + i * width
        axes.bar(
            places, 100 * values, width, yerr=100 * errors, label=router, color=_color(results, router), ecolor="0.4"
        )
    axes.set_xticks(np.arange(len(splits)) + 0.425 - width / 2, [column.heading for column in splits], rotation=20)
    axes.set_ylim(max(0, 100 * low - 5), 100)
    axes.set_ylabel("macro accuracy (%)")
    axes.legend(fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(1, 1))
    return canvas


def _latency(results: Results) -> Figure:
    """Mean accuracy over all splits against the cost of a prompt in a batch, geometric mean over the data sets."""
    canvas = Figure(layout="constrained", figsize=(6.5, 4))
    axes = canvas.subplots()
    runs = results["runs"]
    for router in results["settings"]["routers"]:
        own = [run for run in runs if run["router"] == router]
        if not own or router == "random":
            continue
        accuracy = mean(part["macro_accuracy"] for run in own for part in run["splits"].values())
        cost = float(np.exp(np.mean([np.log(run["latency"]["batch"]["routing"]) for run in own])))
        axes.scatter(1e6 * cost, 100 * accuracy, color=_color(results, router), edgecolor="0.3", label=router)
    tokenizing = float(np.exp(np.mean([np.log(run["latency"]["batch"]["tokenizing"]) for run in runs])))
    axes.axvline(1e6 * tokenizing, color="0.6", linestyle="--", label="tokenizer(texts) alone")
    axes.set_xscale("log")
    axes.set_xlabel("µs a prompt, in a batch, tokenizing included")
    axes.set_ylabel("mean macro accuracy (%)")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return canvas


def _reliability(results: Results) -> Figure:
    """Accuracy against confidence, a panel a split."""
    splits = columns(results)
    canvas = Figure(layout="constrained", figsize=(3 * min(4, len(splits)), 3 * -(-len(splits) // 4)))
    panels = list(
        canvas.subplots(-(-len(splits) // 4), min(4, len(splits)), squeeze=False, sharex=True, sharey=True).flat
    )
    for axes, column in zip(panels, splits, strict=False):
        axes.plot([0, 1], [0, 1], color="0.7", linestyle="--")
        for router in results["settings"]["routers"]:
            figures = figures_of(results, router, column)
            if figures and router != "random":
                bins = [b for b in figures["reliability"] if b["prompts"] >= 0.02]
                x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
                axes.plot(x, y, marker=".", color=_color(results, router), label=router)
        axes.set_title(column.heading, fontsize=9)
    for axes in panels[len(splits) :]:
        axes.set_visible(False)
    canvas.supxlabel("confidence")
    canvas.supylabel("accuracy")
    canvas.legend(*canvas.axes[0].get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    return canvas
