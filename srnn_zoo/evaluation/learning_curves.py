"""Training curves as in the paper's Figure 3: validation error against epoch, one curve a training run."""

from __future__ import annotations

import csv
import itertools
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .plot import _INK, _QUIET, check_plot_file

__all__ = ["LOG_COLUMNS", "LOG_FILE", "Curve", "plot_curves", "read_curve"]

LOG_FILE = "log.csv"
LOG_COLUMNS = ("epoch", "lr", "train_loss", "val_loss", "val_top1", "val_top5", "seconds")

_COLOURS = ("#2a6fb0", "#d9772b", "#3a9467", "#b8405e", "#7a5ea8", "#8c6d3f")
_STYLES = ("-", "--", ":", "-.")  # of the second six, and so on


@dataclass(frozen=True)
class Curve:
    """Top-1 validation error of a training run.

    Attributes:
        name: of the run.
        epochs: as logged, rising.
        errors: in per cent, one an epoch.
    """

    name: str
    epochs: tuple[int, ...]
    errors: tuple[float, ...]


def read_curve(run: str | os.PathLike[str], name: str | None = None) -> Curve:
    """Read the log of a training run, `RUN/log.csv`.

    Its columns are `epoch, lr, train_loss, val_loss, val_top1, val_top5, seconds`, `val_top1` being an accuracy in per
    cent; others are passed over.

    Args:
        run: the folder.
        name: of the curve, by default the folder's.

    Raises:
        FileNotFoundError: if there is no such folder, or it holds no log.
        ValueError: for a log without epochs, with missing columns, cut short or damaged, with the line's number.
    """
    folder = Path(run)
    path = folder / LOG_FILE
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {os.fspath(run)!r}; give the folder of a training run")
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no training run: it has no {LOG_FILE}")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    header = lines[0] if lines else []
    if missing := [column for column in LOG_COLUMNS if column not in header]:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; a log has {','.join(LOG_COLUMNS)}")
    epochs: list[int] = []
    errors: list[float] = []
    for number, line in enumerate(lines[1:], 2):
        where = f"{path}, line {number}"
        if len(line) != len(header):
            raise ValueError(f"{where}: {len(line)} values for {len(header)} columns; was the file cut short?")
        values = dict(zip(header, line, strict=True))
        epochs.append(_epoch(values["epoch"], epochs, where))
        errors.append(100 - _per_cent(values["val_top1"], where))
    if not epochs:
        raise ValueError(f"{path} has no epoch yet")
    return Curve(name or folder.resolve().name, tuple(epochs), tuple(errors))


def plot_curves(
    curves: Sequence[Curve], file: str | os.PathLike[str], *, lines: Mapping[str, float] | None = None
) -> None:
    """Draw error against epoch, as Figure 3 of the paper.

    Args:
        curves: from `read_curve`; one or more.
        file: where to write, in any format matplotlib knows by its suffix.
        lines: horizontal lines, errors in per cent by their names, such as `{"logit ensemble": 28.26}`.

    Raises:
        ImportError, ValueError: see `check_plot_file`; also for no curves, and lines outside 0 to 100.
    """
    if not curves:
        raise ValueError("no curves to draw")
    for name, error in (lines or {}).items():
        if not 0 <= error <= 100:
            raise ValueError(f"line {name!r} must be an error in per cent, 0 to 100; got {error}")
    check_plot_file(file)
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.4), layout="constrained", facecolor="white")
    axis = figure.add_subplot()
    styles = ((style, colour) for style in itertools.cycle(_STYLES) for colour in _COLOURS)
    drawn = [
        axis.plot(
            curve.epochs, curve.errors, style, color=colour, linewidth=1.8, marker="o", markersize=_marker(curve)
        )[0]
        for curve, (style, colour) in zip(curves, styles, strict=False)
    ]
    dashes = ((0, (6, 3)), (0, (2, 2)), (0, (6, 2, 2, 2)))
    for error, dash in zip((lines or {}).values(), itertools.cycle(dashes), strict=False):
        drawn.append(axis.axhline(error, color=_QUIET, linewidth=1.4, linestyle=dash))
    axis.set_xlabel("epoch", color=_INK)
    axis.set_ylabel("top-1 validation error (%)", color=_INK)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.tick_params(colors=_INK, length=0)
    axis.grid(axis="y", color=_QUIET, alpha=0.25, linewidth=0.8)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(_QUIET)
    legend = axis.legend(drawn, ["-"] * len(drawn), frameon=False, labelcolor=_INK)
    names = [*(curve.name for curve in curves), *(f"{name} ({error:.2f})" for name, error in (lines or {}).items())]
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)  # a name may begin with _, or hold a $
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a name in a script the font lacks
        figure.savefig(os.fspath(file), dpi=120)


def _epoch(text: str, before: Sequence[int], where: str) -> int:
    try:
        epoch = int(text)
    except ValueError:
        raise ValueError(f"{where}: an epoch is a whole number; got {text!r}") from None
    if before and epoch <= before[-1]:
        raise ValueError(f"{where}: epochs must rise; epoch {epoch} comes after {before[-1]}")
    return epoch


def _per_cent(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise ValueError(f"{where}: val_top1 must be an accuracy in per cent, 0 to 100; got {text!r}")
    return value


def _marker(curve: Curve) -> float:
    """Points are shown where there are few; one alone would be nothing without."""
    return 4 if len(curve.epochs) <= 20 else 0
