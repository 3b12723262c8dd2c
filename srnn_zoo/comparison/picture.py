"""The picture of a comparison: accuracy against cost."""

from __future__ import annotations

import itertools
import os
from typing import Any

from srnn_zoo.evaluation.plot import new_figure, save_figure
from srnn_zoo.training.run_folder import COLOURS, INK, draw_legend, style_axes

from .result import Comparison
from .ways import Way

_LOOKS: dict[str, dict[str, Any]] = {  # of rivals that read several levels
    "ensemble": {"linestyle": "none", "marker": "^", "markersize": 8, "fillstyle": "none"},
    "cascade": {"linestyle": (0, (5, 2)), "linewidth": 1.2},
    "trained mean": {"linestyle": (0, (1, 1.5)), "linewidth": 1.6},
}
_OURS = ("solid", "dashdot", (0, (8, 2)))
_SHOWN = 15  # points of accuracy below the best; what is worse is in the table


def plot_comparison(comparison: Comparison, file: str | os.PathLike[str]) -> None:
    """Draw accuracy against the mean cost of an image.

    Colours say which levels are read, lines and points which kind of way reads them; single scales are grey squares
    with their names. Ways that are 15 points or more below the best, or cost more than all of several levels do, are
    left to the table.

    Args:
        comparison: from `compare`.
        file: where to write, in any format that matplotlib knows by its suffix.

    Raises:
        ImportError, ValueError: see `srnn_zoo.evaluation.plot.check_plot_file`.
    """
    from matplotlib.patheffects import withStroke

    figure = new_figure(file, 9.6, 5.4)
    axis = figure.add_subplot()
    style_axes(axis, "mean cost of an image in GMACs", "top-1 accuracy in %")
    curves = list(comparison.curves())
    best = max(point.accuracy for _, points in curves for point in points)
    dearest = max(way.gmacs for way, _ in curves if way.reads)
    colours = dict(zip(dict.fromkeys(way.reads for way, _ in curves if way.reads), itertools.cycle(COLOURS)))
    styles = dict(zip(dict.fromkeys(_kind(way) for way, _ in curves if way.group == "SRNN"), itertools.cycle(_OURS)))
    drawn: dict[str, Any] = {}
    singles: dict[tuple[float, float], list[str]] = {}
    for way, points in curves:
        costs, accuracies = [point.gmacs for point in points], [point.accuracy for point in points]
        if max(accuracies) < best - _SHOWN or way.gmacs > dearest:
            continue
        if not way.reads:
            singles.setdefault((costs[-1], accuracies[-1]), []).append(way.name)
            continue
        look = _LOOKS.get(way.group) or {"linestyle": styles[_kind(way)], "linewidth": 2.4, "zorder": 4}
        [line] = axis.plot(costs, accuracies, color=colours[way.reads], **look)
        drawn.setdefault(_kind(way), line)
    halo = [withStroke(linewidth=3, foreground="white")]  # so that no curve strikes a name through
    for place, names in singles.items():
        axis.plot(*place, "s", color="#777777", markersize=5, zorder=5)
        label = axis.annotate(", ".join(names), place, (6, -3), textcoords="offset points", fontsize=7, color=INK)
        label.set(path_effects=halo, zorder=5)
    for reads, colour in colours.items():
        [drawn[f"reads {reads}"]] = axis.plot([], [], "o", color=colour)
    axis.set_xlim(left=0)
    draw_legend(figure, list(drawn.values()), list(drawn), loc="outside right upper")
    save_figure(figure, file)


def _kind(way: Way) -> str:
    """Its name without its levels; both cascades are drawn alike."""
    return way.group if way.group in _LOOKS else way.name.replace(f" {way.reads}", "")
