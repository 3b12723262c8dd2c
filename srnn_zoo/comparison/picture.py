"""The picture of a comparison: accuracy against cost."""

from __future__ import annotations

import itertools
import os
from typing import Any

from srnn_zoo.evaluation.plot import new_figure, save_figure
from srnn_zoo.training.run_folder import COLOURS, draw_legend, style_axes

from .result import Comparison

_LOOKS: dict[str, dict[str, Any]] = {  # of rivals
    "single scale": {"linestyle": "none", "marker": "s", "markersize": 6},
    "ensemble": {"linestyle": "none", "marker": "^", "markersize": 8, "fillstyle": "none"},
    "cascade": {"linestyle": (0, (5, 2)), "linewidth": 1.2},
    "trained mean": {"linestyle": "none", "marker": "D", "markersize": 7, "fillstyle": "none"},
}


def plot_comparison(comparison: Comparison, file: str | os.PathLike[str]) -> None:
    """Draw accuracy against the mean cost of an image: SRNNs and cascades as curves, other rivals as points.

    Args:
        comparison: from `compare`.
        file: where to write, in any format that matplotlib knows by its suffix.

    Raises:
        ImportError, ValueError: see `srnn_zoo.evaluation.plot.check_plot_file`.
    """
    figure = new_figure(file, 9.6, 5.4)
    axis = figure.add_subplot()
    style_axes(axis, "mean cost of an image in GMACs", "top-1 accuracy in %")
    drawn: list[Any] = []
    names: list[str] = []
    colours = {group: itertools.cycle(COLOURS) for group in ("SRNN", *_LOOKS)}
    for way, points in comparison.curves():
        look = _LOOKS.get(way.group, {"linewidth": 2.4, "zorder": 4})
        costs, accuracies = [point.gmacs for point in points], [point.accuracy for point in points]
        drawn += axis.plot(costs, accuracies, color=next(colours[way.group]), **look)
        names.append(way.name)
    axis.set_xlim(left=0)
    draw_legend(figure, drawn, names, loc="outside right upper")
    save_figure(figure, file)
