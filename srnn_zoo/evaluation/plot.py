"""Plots: an image's levels with the answers after each, accuracy against cost, and learning curves."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from srnn_zoo._errors import missing_extra
from srnn_zoo.inference.curve import Point
from srnn_zoo.inference.predict import Answer, Prediction
from srnn_zoo.training.run_folder import (
    COLOURS,
    COLUMNS,
    INK,
    PALE,
    QUIET,
    draw_curves,
    draw_legend,
    style_axes,
    text_of,
)

from .table import check_can_write

StrPath = str | os.PathLike[str]

_TITLE: dict[str, Any] = {"color": INK, "fontsize": 12, "fontweight": "bold", "parse_math": False}
_MAX_BARS = 8  # more classes would overlap
_MARKERS: dict[str, dict[str, Any]] = {  # the open ones are larger, as a level may lie on them
    "level": {"marker": "o", "markersize": 6, "zorder": 4},
    "single scale": {"marker": "s", "markersize": 9, "markeredgewidth": 1.6},
    "ensemble": {"marker": "^", "markersize": 12, "markeredgewidth": 1.6},
    "model": {"marker": "D", "markersize": 8, "markeredgewidth": 1.6},
}

_LINES: list[dict[str, Any]] = [
    {"color": INK, "linewidth": 2},
    {"color": COLOURS[1], "linewidth": 1.4, "linestyle": (0, (5, 2))},
    {"color": COLOURS[2], "linewidth": 1.4, "linestyle": (0, (1, 1.5))},
]


def plot_predictions(predictions: Sequence[Prediction], file: StrPath) -> None:
    """Draw one row an image: its levels side by side at their relative sizes, and under each up to 8 classes.

    The class that leads after the last level has the same colour at every level, so that its rise can be followed.
    Levels that were not read because the image had stopped are pale. Frames on the first level show where levels with a
    zoom look; and where the predictions have maps, warm colours show what speaks for the answer of a level.

    Args:
        predictions: from `srnn_zoo.inference.predict`.
        file: where to write, in any format that matplotlib knows by its suffix.

    Raises:
        ImportError, ValueError: see `check_plot_file`; also for no predictions.
    """
    if not predictions:
        raise ValueError("no predictions to draw")
    columns = max(len(prediction.levels) - prediction.first_answer for prediction in predictions)
    figure = new_figure(file, 3.3 * columns, 5.2 * len(predictions))
    rows = figure.subfigures(len(predictions), 1, squeeze=False)
    for row, prediction in zip(rows[:, 0], predictions, strict=True):
        row.suptitle(_short(Path(prediction.path).name, 26 * columns), x=0.02, ha="left", **_TITLE)
        axes = row.subplots(2, columns, squeeze=False, height_ratios=(3, 2))
        first = prediction.first_answer
        levels, names = prediction.levels[first:], prediction.level_names[first:]
        largest = [max(level.shape[axis] for level in levels) for axis in (-2, -1)]
        for column, (level, name) in enumerate(zip(levels, names, strict=True)):
            _draw_level(axes[0, column], level, largest, name, column < len(prediction.answers))
        for column, heat in enumerate(prediction.maps):
            _draw_map(axes[0, column], heat, levels[column].shape[-2:])
        _draw_views(axes[0, 0], prediction.views[first:], levels[0].shape[-2:])
        for column, answer in enumerate(prediction.answers):
            _draw_bars(axes[1, column], answer, prediction.answers[-1].top[0][0])
        for axis in axes.flat:
            axis.axis("off")
    save_figure(figure, file)


def plot_pareto(points: Sequence[Point], file: StrPath, title: str = "") -> None:
    """Draw accuracy against mean cost: curves of early exit and of cascades, and all other ways as points beside them.

    The legend has every point with its name: its shape says what it is, its colour which one.

    Args:
        points: from `srnn_zoo.pareto`, with or without those of `srnn_zoo.rivals`.
        file: where to write, in any format that matplotlib knows by its suffix.
        title: above the axes.

    Raises:
        ImportError, ValueError: see `check_plot_file`; also for no points.
    """
    if not points:
        raise ValueError("no points to draw")
    figure = new_figure(file, 9.6, 5.0)
    axis = figure.add_subplot()
    style_axes(axis, "mean cost of an image in GMACs", "top-1 accuracy in %")
    axis.set_title(title, loc="left", **_TITLE)
    drawn: list[Any] = []
    names: list[str] = []
    for (name, kind), look in zip(_curves(points), itertools.cycle(_LINES), strict=False):
        curve = [point for point in points if (point.name, point.kind) == (name, kind)]
        drawn += axis.plot([p.gmacs for p in curve], [p.accuracy for p in curve], marker=".", **look)
        title = f"early exit, {name}" if kind == "curve" else name
        names.append(title + ",\nthresholds chosen on the same images" * curve[0].optimistic)
    for kind, style in _MARKERS.items():
        own = [point for point in points if point.kind == kind]
        looks = itertools.cycle(itertools.product(("full" if kind == "level" else "none", "bottom", "left"), COLOURS))
        for point, (fill, colour) in zip(own, looks, strict=False):
            look = {"linestyle": "none", "fillstyle": fill, "color": colour, **style}
            drawn += axis.plot(point.gmacs, point.accuracy, **look)
            names.append(point.name)
    axis.set_xlim(left=0)
    draw_legend(figure, drawn, names, loc="outside right upper")
    save_figure(figure, file, dpi=150)


def _curves(points: Sequence[Point]) -> list[tuple[str, str]]:
    """Name and kind of each curve, that of early exit first."""
    found = dict.fromkeys((p.name, p.kind) for p in points if p.kind in ("curve", "cascade"))
    return sorted(found, key=lambda each: each[1] != "curve")


@dataclass(frozen=True)
class Curve:
    """Top-1 validation error of a training run: its name, its epochs as logged, and for each the error in per cent."""

    name: str
    epochs: tuple[int, ...]
    errors: tuple[float, ...]


def read_curve(run: StrPath, name: str | None = None) -> Curve:
    """Read the log of a training run, `RUN/log.csv`.

    It needs the columns `epoch, lr, train_loss, val_loss, val_top1, val_top5, seconds`, where `val_top1` is an accuracy
    in per cent. Other columns are ignored.

    Args:
        run: the folder.
        name: of the curve, by default the folder's.

    Raises:
        FileNotFoundError: if there is no such folder, or it has no log.
        ValueError: for a log without epochs, with missing columns, cut short or damaged, with the number of the line.
    """
    folder, path = Path(run), Path(run, "log.csv")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {os.fspath(run)!r}; give the folder of a training run")
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no training run: it has no {path.name}")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = list(csv.reader(file, strict=True)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if missing := [column for column in COLUMNS if column not in header]:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; a log has {','.join(COLUMNS)}")
    epochs: list[int] = []
    errors: list[float] = []
    for number, line in enumerate(lines, 2):
        where = f"{path}, line {number}"
        if len(line) != len(header):
            raise ValueError(f"{where}: {len(line)} values for {len(header)} columns; was the file cut short?")
        values = dict(zip(header, line, strict=True))
        epoch, top1 = _number(int, values["epoch"]), _number(float, values["val_top1"])
        if epoch is None:
            raise ValueError(f"{where}: an epoch is a whole number; got {values['epoch']!r}")
        if epochs and epoch <= epochs[-1]:
            raise ValueError(f"{where}: epochs must rise; epoch {epoch} comes after {epochs[-1]}")
        if top1 is None or not 0 <= top1 <= 100:
            raise ValueError(f"{where}: val_top1 must be an accuracy in per cent, 0 to 100; got {values['val_top1']!r}")
        epochs.append(epoch)
        errors.append(100 - top1)
    if not epochs:
        raise ValueError(f"{path} has no epoch yet")
    return Curve(name or folder.resolve().name, tuple(epochs), tuple(errors))


def plot_curves(curves: Sequence[Curve], file: StrPath, *, lines: Mapping[str, float] | None = None) -> None:
    """Draw error against epoch, as Figure 3 of the paper.

    Args:
        curves: from `read_curve`; one or more.
        file: where to write, in any format that matplotlib knows by its suffix.
        lines: horizontal lines, errors in per cent by their names, such as `{"logit ensemble": 28.26}`.

    Raises:
        ImportError, ValueError: see `check_plot_file`; also for no curves, and lines outside 0 to 100.
    """
    if not curves:
        raise ValueError("no curves to draw")
    for name, error in (lines or {}).items():
        if not 0 <= error <= 100:
            raise ValueError(f"line {name!r} must be an error in per cent, 0 to 100; got {error}")
    figure = new_figure(file, 7.2, 4.4)
    named = [(curve.name, curve.epochs, curve.errors) for curve in curves]
    draw_curves(figure.add_subplot(), "top-1 validation error (%)", named, lines)
    save_figure(figure, file)


def check_plot_file(file: StrPath) -> None:
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
    check_can_write(path)


def new_figure(file: StrPath, width: float, height: float) -> Any:
    """An empty figure, so many inches large, for a file that can be written."""
    check_plot_file(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    return FigureCanvasAgg(Figure(figsize=(width, height), layout="constrained", facecolor="white")).figure


def save_figure(figure: Any, file: StrPath, dpi: int = 120) -> None:
    """Write a figure that `new_figure` made."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a name in a script that the font lacks
        figure.savefig(os.fspath(file), dpi=dpi)


def _draw_level(axis: Any, level: Tensor, largest: Sequence[int], name: str, read: bool) -> None:
    """A level in a frame of the largest one's size, so that sizes compare at a glance."""
    height, width = level.shape[-2:]
    alpha, colour, note = (1.0, INK, "") if read else (0.2, QUIET, ", not read")
    axis.imshow(level.permute(1, 2, 0).expand(-1, -1, 3).numpy(), extent=(0, width, 0, height), alpha=alpha)
    axis.set(xlim=(0, largest[1]), ylim=(0, 1.07 * largest[0]), aspect="equal", anchor="SW")
    axis.text(
        0, height + 0.01 * largest[0], f"{name.replace(' x ', ' × ')}{note}", color=colour, fontsize=10, va="bottom"
    )


def _draw_map(axis: Any, heat: Tensor, size: Sequence[int]) -> None:
    """What speaks for the answer, over the level: the more, the warmer and the less transparent."""
    share = heat.clamp(min=0) / heat.amax().clamp(min=1e-12)
    options: dict[str, Any] = {"cmap": "autumn_r", "interpolation": "bilinear", "vmin": 0, "vmax": 1}
    axis.imshow(share.numpy(), extent=(0, size[1], 0, size[0]), alpha=0.6 * share.numpy(), **options)


def _draw_views(axis: Any, views: Sequence[Sequence[float]], size: Sequence[int]) -> None:
    """Where the later levels look, on a first level that shows the whole image."""
    from matplotlib.patches import Rectangle

    if not views or tuple(views[0]) != (0, 0, 1, 1):
        return
    height, width = size
    for top, left, bottom, right in views[1:]:
        corner, extent = (left * width, (1 - bottom) * height), ((right - left) * width, (bottom - top) * height)
        axis.add_patch(Rectangle(corner, *extent, fill=False, edgecolor="white", linewidth=3.5))
        axis.add_patch(Rectangle(corner, *extent, fill=False, edgecolor=COLOURS[0], linewidth=1.8))


def _draw_bars(axis: Any, answer: Answer, leader: str) -> None:
    top = answer.top[:_MAX_BARS]
    for position, (name, probability) in zip(range(len(top), 0, -1), top, strict=True):
        value = 100 * probability
        axis.barh(position, value, height=0.36, color=COLOURS[0] if name == leader else PALE)
        label = _short(name.split(",")[0], 30)
        axis.text(0, position + 0.28, label, color=INK, fontsize=8, va="bottom", parse_math=False)
        axis.text(value + 1.5, position, f"{value:.1f} %", color=QUIET, fontsize=8, va="center")
    axis.set(xlim=(0, 115), ylim=(0.5, len(top) + 0.95))


def _short(name: str, length: int) -> str:
    text = text_of(name)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _number(kind: Callable[[str], Any], text: str) -> Any:
    with contextlib.suppress(ValueError):
        return kind(text)
    return None
