"""Pictures of predictions: the levels a model read, and how its answer changes from level to level."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ._errors import missing_extra
from .predict import Answer, Prediction

__all__ = ["check_plot_file", "plot_predictions"]

_INK, _QUIET, _ACCENT, _BAR = "#1f2430", "#8a8f99", "#2a6fb0", "#b9c3d0"
_MAX_BARS = 8  # more classes than that would overlap


def plot_predictions(predictions: Sequence[Prediction], file: str | os.PathLike[str]) -> None:
    """Draw one row a picture: its levels side by side at their relative sizes, and under each up to 8 classes.

    The class that leads after the last level is drawn in colour at every level, so that its rise can be followed.
    Levels that were not read, as the picture had stopped, are pale.

    Args:
        predictions: from `srnn_zoo.predict`.
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
