"""Plots of a report, where matplotlib is installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir3de.outlook_ir3de import save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(module: str, results: Mapping[str, Any], folder: Path) -> list[str]:
    """Draws the plots of a module beside this one, and returns their file names; none without matplotlib."""
    try:
        plots = importlib.import_module(f"{__package__}.{module}")
    except ImportError:
        print('No plots: they need matplotlib, `pip install "ir3de[benchmark]"`.', file=sys.stderr)
        return []
    names: list[str] = plots.plot(results, folder)
    return names


def save_plot(canvas: Figure, path: Path, dpi: int) -> None:
    """Writes a plot as PNG, without a window or a state that all plots share."""
    save_picture(canvas, path, dpi, bbox_inches="tight")
