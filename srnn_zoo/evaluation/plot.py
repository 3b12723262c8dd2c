"""Pictures: the levels a model read with its answers from level to level, and accuracy against cost."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from srnn_zoo._errors import missing_extra
from srnn_zoo.inference.curve import Point
from srnn_zoo.inference.predict import Answer, Prediction

__all__ = ["check_plot_file", "plot_pareto", "plot_predictions"]

_INK, _QUIET, _ACCENT, _BAR = "#1f2430", "#8a8f99", "#2a6fb0", "#b9c3d0"
_MAX_BARS = 8  # more classes than that would overlap
_MARKERS: dict[str, dict[str, Any]] = {
    "level": {"marker": "o", "s": 34, "color": _ACCENT, "zorder": 4},
    "single scale": {"marker": "s", "s": 62, "facecolor": "white", "edgecolor": _INK, "linewidth": 1.2, "zorder": 3},
    "ensemble": {"marker": "^", "s": 70, "facecolor": "white", "edgecolor": _QUIET, "linewidth": 1.2, "zorder": 3},
}


def plot_predictions(predictions: Sequence[Prediction], file: str | os.PathLike[str]) -> None:
    """Draw one row a picture: its levels side by side at their relative sizes, and under each up to 8 classes.

    The class that leads after the last level is drawn in colour at every level, so that its rise can be followed.
    Levels that were not read, as the picture had stopped, are pale.

    Args:
        predictions: from `srnn_zoo.inference.predict`.
        file: where to write, in any format matplotlib knows by its suffix.

    Raises:
        ImportError, ValueError: see `check_plot_file`; also for no predictions.
    """
    if not predictions:
        raise ValueError("no predictions to draw")
    check_plot_file(file)
    from matplotlib.figure import Figure

    columns = max(len(p.answers) + len(_unread(p)) for p in predictions)
    figure = Figure(figsize=(3.3 * columns, 5.2 * len(predictions)), layout="constrained", facecolor="white")
    rows: Any = figure.subfigures(len(predictions), 1, squeeze=False)
    for row, prediction in zip(rows[:, 0], predictions, strict=True):
        name = os.fsencode(Path(prediction.path).name).decode(errors="replace")  # it may hold bytes that are no text
        title = _short(name, 26 * columns)
        row.suptitle(title, color=_INK, fontsize=12, fontweight="bold", x=0.02, ha="left", parse_math=False)
        axes = row.subplots(2, columns, squeeze=False, height_ratios=(3, 2))
        for column, answer in enumerate(prediction.answers):
            level = next(x for x in prediction.levels if tuple(x.shape[-2:]) == answer.size)
            _draw_level(axes[0, column], level, _largest(prediction))
            _draw_bars(axes[1, column], answer, prediction.answers[-1].top[0][0])
        for column, level in enumerate(_unread(prediction), start=len(prediction.answers)):
            _draw_level(axes[0, column], level, _largest(prediction), read=False)
        for unused in axes[:, len(prediction.answers) :].flat:
            unused.axis("off")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a file name in a script the font lacks
        figure.savefig(os.fspath(file), dpi=120)


def plot_pareto(points: Sequence[Point], file: str | os.PathLike[str], title: str = "") -> None:
    """Draw accuracy against mean cost: the curve of early exit, and levels, single scales and ensembles beside it.

    Every point has its name next to it; points that lie on each other share a label.

    Args:
        points: from `srnn_zoo.pareto`.
        file: where to write, in any format matplotlib knows by its suffix.
        title: above the axes.

    Raises:
        ImportError, ValueError: see `check_plot_file`; also for no points.
    """
    if not points:
        raise ValueError("no points to draw")
    check_plot_file(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 5.0), layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axis: Any = figure.add_subplot()
    curve = [point for point in points if point.kind == "curve"]
    axis.plot([p.gmacs for p in curve], [p.accuracy for p in curve], color=_ACCENT, linewidth=2, solid_capstyle="round")
    for kind, style in _MARKERS.items():
        own = [point for point in points if point.kind == kind]
        axis.scatter([p.gmacs for p in own], [p.accuracy for p in own], **style)
    _style_axis(axis, points, title)
    figure.draw_without_rendering()  # from here on places in pixels are those of the drawing
    figure.set_layout_engine("none")
    _draw_labels(axis, canvas.get_renderer(), points)
    figure.savefig(os.fspath(file), dpi=150)


def check_plot_file(file: str | os.PathLike[str]) -> None:
    """Find out before the work whether a plot can be written.

    Raises:
        ImportError: without matplotlib, with the `pip install` line.
        ValueError: for a suffix that matplotlib cannot write, a folder that does not exist, or no permission.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise missing_extra("matplotlib", "plot", "drawing") from None
    path = Path(file)
    formats = FigureCanvasAgg.filetypes.keys() - {"pgf"}  # that one needs LaTeX
    if path.suffix.lstrip(".").lower() not in formats:
        raise ValueError(f"cannot write {path.name!r}: give it one of the suffixes {', '.join(sorted(formats))}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"no folder {path.parent} to write to")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ValueError(f"no permission to write {path}")


def _unread(prediction: Prediction) -> Sequence[Tensor]:
    """The levels after the one at which a picture stopped."""
    return () if prediction.exit is None else prediction.levels[prediction.exit + 1 :]


def _largest(prediction: Prediction) -> tuple[int, int]:
    height, width = prediction.levels[-1].shape[-2:]
    return height, width


def _draw_level(axis: Any, level: Tensor, largest: tuple[int, int], read: bool = True) -> None:
    """A level drawn in a frame of the largest one's size, so that their sizes compare at a glance."""
    height, width = level.shape[-2:]
    alpha, colour, note = (1.0, _INK, "") if read else (0.2, _QUIET, ", not read")
    axis.imshow(level.permute(1, 2, 0).expand(-1, -1, 3).numpy(), extent=(0, width, 0, height), alpha=alpha)
    axis.set(xlim=(0, largest[1]), ylim=(0, 1.07 * largest[0]), aspect="equal", anchor="SW")
    axis.text(0, height + 0.01 * largest[0], f"{height} × {width}{note}", color=colour, fontsize=10, va="bottom")
    axis.axis("off")


def _draw_bars(axis: Any, answer: Answer, leader: str) -> None:
    top = answer.top[:_MAX_BARS]
    names = [_short(name.split(",")[0]) for name, _ in top]
    values = [100 * probability for _, probability in top]
    positions = range(len(values), 0, -1)
    colours = [_ACCENT if name == leader else _BAR for name, _ in top]
    axis.barh(positions, values, height=0.36, color=colours)
    for position, name, value in zip(positions, names, values, strict=True):
        axis.text(0, position + 0.28, name, color=_INK, fontsize=8, va="bottom", parse_math=False)
        axis.text(value + 1.5, position, f"{value:.1f} %", color=_QUIET, fontsize=8, va="center")
    axis.set(xlim=(0, 115), ylim=(0.5, len(values) + 0.95))
    axis.axis("off")


def _short(name: str, length: int = 30) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _style_axis(axis: Any, points: Sequence[Point], title: str) -> None:
    accuracies = [point.accuracy for point in points]
    low, high = min(accuracies), max(accuracies)
    margin = 0.16 * max(high - low, 1.0)
    axis.set(xlim=(0, 1.16 * max(point.gmacs for point in points)), ylim=(low - margin, high + margin))
    axis.set_xlabel("mean cost of a picture in GMACs", color=_INK)
    axis.set_ylabel("top-1 accuracy in %", color=_INK)
    axis.set_title(title, color=_INK, fontsize=12, fontweight="bold", loc="left", parse_math=False)
    axis.grid(color="#e6e8ec", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=_QUIET, labelcolor=_INK, length=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(_BAR)


def _draw_labels(axis: Any, renderer: Any, points: Sequence[Point]) -> None:
    """Write the names beside the points, where they cover neither a point nor the curve nor each other."""
    from matplotlib.transforms import Bbox

    def pixels(point: Point) -> tuple[float, float]:
        x, y = axis.transData.transform((point.gmacs, point.accuracy))
        return float(x), float(y)

    curve = [point for point in points if point.kind == "curve"]
    marks = [point for point in points if point.kind != "curve"]
    unit = axis.figure.dpi / 72  # pixels of a typographic point
    taken = [Bbox.from_bounds(x - 5 * unit, y - 5 * unit, 10 * unit, 10 * unit) for x, y in map(pixels, marks)]
    for (x, y), (next_x, next_y) in itertools.pairwise(map(pixels, curve)):
        steps = int(max(abs(next_x - x), abs(next_y - y)) // (4 * unit)) + 1
        places = [(x + (next_x - x) * i / steps, y + (next_y - y) * i / steps) for i in range(steps)]
        taken += [Bbox.from_bounds(px - 2 * unit, py - 2 * unit, 4 * unit, 4 * unit) for px, py in places]
    labels = [(group[0], "\n".join(map(_label, group)), _INK) for group in _coinciding(marks, pixels, 6 * unit)]
    if curve:
        note = ",\nthresholds chosen on the same pictures" if curve[0].optimistic else ""
        labels.append((curve[len(curve) // 2], f"early exit, {curve[0].name}{note}", _ACCENT))
    for point, words, colour in labels:
        style = {"color": colour, "fontsize": 9, "linespacing": 1.3, "ha": "left", "va": "bottom", "parse_math": False}
        probe = axis.text(0, 0, words, **style)
        width, height = probe.get_window_extent(renderer).size
        probe.remove()
        x, y = pixels(point)
        spots = [Bbox.from_bounds(*corner, width, height) for corner in _corners(x, y, width, height, unit)]
        box = min(spots, key=lambda spot: _hidden(spot.padded(2 * unit), taken, axis.bbox))
        taken.append(box)
        far = max(box.x0 - x, x - box.x1, box.y0 - y, y - box.y1) > 12 * unit
        line = {"arrowstyle": "-", "color": _BAR, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 5} if far else None
        offset = ((box.x0 - x) / unit, (box.y0 - y) / unit)
        style["multialignment"] = "right" if box.x1 < x else "left"
        axis.annotate(
            words, (point.gmacs, point.accuracy), offset, textcoords="offset points", arrowprops=line, **style
        )


def _label(point: Point) -> str:
    return point.name.replace(" x ", " × ")


def _coinciding(
    points: Sequence[Point], pixels: Callable[[Point], tuple[float, float]], distance: float
) -> list[list[Point]]:
    """Points in groups that lie on each other."""
    groups: list[list[Point]] = []
    for point in points:
        for group in groups:
            if math.dist(pixels(point), pixels(group[0])) < distance:
                group.append(point)
                break
        else:
            groups.append([point])
    return groups


def _corners(x: float, y: float, width: float, height: float, unit: float) -> Iterator[tuple[float, float]]:
    """Lower left corners of a text around a place, the nearest first."""
    for away in (8 * unit, 18 * unit, 32 * unit, 50 * unit, 72 * unit):
        right, left, above, below = x + away, x - away - width, y + away, y - away - height
        middle_x, middle_y = x - width / 2, y - height / 2
        yield from ((right, middle_y), (left, middle_y), (middle_x, above), (middle_x, below))
        yield from itertools.product((x + away / 2, x - away / 2 - width), (y + away / 2, y - away / 2 - height))
        yield from itertools.product((right, left), (above, below))


def _hidden(box: Any, taken: Sequence[Any], axes: Any) -> float:
    """How much of a text would cover something, or lie outside the axes; in square pixels."""
    covered = sum(
        max(min(box.x1, other.x1) - max(box.x0, other.x0), 0) * max(min(box.y1, other.y1) - max(box.y0, other.y0), 0)
        for other in taken
    )
    inside = max(min(box.x1, axes.x1) - max(box.x0, axes.x0), 0) * max(min(box.y1, axes.y1) - max(box.y0, axes.y0), 0)
    return covered + 10 * (box.width * box.height - inside)
