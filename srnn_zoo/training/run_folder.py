"""The folder of a run with its log and curves, how far a run has come, and the look of all plots."""

from __future__ import annotations

import csv
import functools
import itertools
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from srnn_zoo._errors import missing_extra
from srnn_zoo.datasets.holdout import SPLIT_FILE, Holdout
from srnn_zoo.weights.saved import CURVES_FILE, RECIPE_FILE

from .recipe import Recipe
from .tasks import Classification, TrainingTask

COLUMNS = ("epoch", "lr", "train_loss", "val_loss", *Classification.metrics, "seconds")  # where the task is classes

Row = Mapping[str, float]

_logger = logging.getLogger(__name__)

INK, QUIET, PALE = "#1f2430", "#8a8f99", "#b9c3d0"  # of all plots
COLOURS = ("#2a6fb0", "#d9772b", "#3a9467", "#b8405e", "#7a5ea8", "#8c6d3f")
_STYLES = ("-", "--", ":", "-.")  # the second for the second six curves, and so on
_DASHES = ((0, (6, 3)), (0, (2, 2)), (0, (6, 2, 2, 2)))  # of horizontal lines
_SECONDS_BETWEEN_CURVES = 10


@dataclass
class FitResult:
    """The result of a training.

    Attributes:
        history: for every epoch the columns of log.csv: losses, accuracies in per cent (or what else the task has), the
            learning rate, seconds.
        best: the row of the best epoch, by the task's first metric and then by loss.
        skipped: one sentence for every image that could not be read.
        output: the run's folder.
        val_images: how many images the validation split has that can be read.
    """

    history: list[dict[str, float]]
    best: dict[str, float]
    skipped: list[str]
    output: Path | None = None
    val_images: int = 0


@dataclass
class Progress:
    """How far a run has come, and which run it is: what its state keeps besides the weights."""

    run: dict[str, Any]
    epoch: int = 0  # epochs that are over
    update: int = 0  # updates of this epoch that are over
    lr: float = 0.0  # of the last update
    loss_sum: float = 0.0  # over this process's images of this epoch
    images: int = 0
    seconds: float = 0.0  # of this epoch
    history: list[dict[str, float]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    states: int = 0  # that were written
    temperatures: list[float] = field(default_factory=list)  # of the levels, fitted to the validation split
    val_images: int = 0  # that were read


class RunFolder:
    """The folder of a run. Close it when the run ends."""

    def __init__(self, path: Path, tensorboard: bool = False) -> None:
        self.path = path
        self.state = path / "state"
        if tensorboard and find_spec("tensorboard") is None:
            raise missing_extra("tensorboard", "train", "the TensorBoard log")
        self._tensorboard = tensorboard
        self._writer: Any = None
        self._draw: Callable[[], None] | None = None
        self._drawn = time.monotonic()
        self._epochs = 0  # in the log

    def start(self, recipe: Recipe, holdout: Holdout | None = None) -> None:
        """Make the folder, with the recipe and how one folder was split; unless it holds another run."""
        if any((self.path / name).exists() for name in ("state", "log.csv")):
            remedy = "resume it with --resume (resume=True), or choose another folder"
            raise FileExistsError(f"{self.path} holds another run: {remedy}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot make the folder {self.path}: {error.strerror}") from None
        recipe.to_toml(self.path / RECIPE_FILE)
        if holdout is not None:
            holdout.save(self.path / SPLIT_FILE)

    def write_log(self, history: Sequence[Row], task: TrainingTask) -> None:
        """log.csv, TensorBoard's events of the last epoch, and curves.png where matplotlib is installed.

        The curves take longer than a short epoch, and are drawn every ten seconds and at the end.
        """
        self._epochs = len(history)
        beside = self.path / ".log.csv"
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(history[-1])
            writer.writerows([_short(value) for value in row.values()] for row in history)
        beside.replace(self.path / "log.csv")
        if self._tensorboard:
            self._write_events(history)
        if find_spec("matplotlib") is not None:
            self._draw = functools.partial(_plot_log, list(history), task, self.path / CURVES_FILE)
            if time.monotonic() - self._drawn > _SECONDS_BETWEEN_CURVES:
                self._draw_curves()

    def _draw_curves(self) -> None:
        if self._draw is not None:
            try:
                self._draw()
            except OSError as error:  # the figures are in log.csv, and what ended the run is not to be hidden
                _logger.warning("cannot draw the curves: %s", error)
            self._draw, self._drawn = None, time.monotonic()

    def _write_events(self, history: Sequence[Row]) -> None:
        """One file a run: after an interruption a new one, with the whole history, takes the place of the old one."""
        from torch.utils.tensorboard import SummaryWriter

        rows = history[-1:]
        if self._writer is None:
            for old in (self.path / "tensorboard").glob("events.out.tfevents.*"):
                old.unlink()
            # the purge makes a TensorBoard that is open forget what it read from the old file
            self._writer, rows = SummaryWriter(os.fspath(self.path / "tensorboard"), purge_step=1), history
        for row, name in itertools.product(rows, [*history[-1]][1:]):
            self._writer.add_scalar(name.replace("_", "/", 1), row[name], int(row["epoch"]))
        self._writer.flush()

    def models_with_curves(self) -> list[Path]:
        """The saved models, each with a copy of the curves; none where a curve would be a point."""
        curves = self.path / CURVES_FILE
        if self._epochs < 2 or not curves.is_file():
            return []
        models = [self.path / name for name in ("best", "last")]
        for model in models:
            shutil.copyfile(curves, model / CURVES_FILE)
        return models

    def close(self) -> None:
        """Draw the last curves, and close TensorBoard's file."""
        self._draw_curves()
        if self._writer is not None:
            self._writer.close()


def draw_curves(
    axes: Any,
    ylabel: str,
    curves: Iterable[tuple[str, Sequence[float], Sequence[float]]],
    lines: Mapping[str, float] | None = None,
) -> None:
    """Draw values against the epoch: a panel of curves.png, or the paper's Figure 3.

    Args:
        axes: matplotlib's.
        ylabel: what the values are, with their unit.
        curves: for each its name, epochs and values.
        lines: horizontal lines, values by name.
    """
    from matplotlib.ticker import MaxNLocator

    names: list[str] = []
    drawn: list[Any] = []
    looks = itertools.cycle(itertools.product(_STYLES, COLOURS))
    for (name, epochs, values), (style, colour) in zip(curves, looks, strict=False):
        marker = 4 if len(epochs) <= 20 else 0  # a single point needs one to be seen
        drawn += axes.plot(epochs, values, style, color=colour, linewidth=1.8, marker="o", markersize=marker)
        names.append(name)
    for (name, value), dash in zip((lines or {}).items(), itertools.cycle(_DASHES), strict=False):
        drawn.append(axes.axhline(value, color=QUIET, linewidth=1.4, linestyle=dash))
        names.append(f"{name} ({value:.2f})")
    style_axes(axes, "epoch", ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    draw_legend(axes, drawn, names)


def draw_legend(parent: Any, drawn: Sequence[Any], names: Sequence[str], **options: Any) -> None:
    """A legend of axes or a figure with the names as they are: one may begin with _, or hold a $."""
    legend = parent.legend(drawn, ["-"] * len(drawn), frameon=False, labelcolor=INK, **options)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=text_of(name), parse_math=False)


def text_of(name: str) -> str:
    """A name to draw: the name of a file may hold bytes that are no text."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", name)


def style_axes(axes: Any, xlabel: str, ylabel: str) -> None:
    """Give matplotlib's axes the look of all plots: their labels, a pale grid, and no frame at the top and right."""
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    axes.tick_params(colors=QUIET, labelcolor=INK, length=0)
    axes.grid(color="#e6e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE)


def _short(value: float) -> float | str:
    return f"{value:.8g}" if isinstance(value, float) else value


def _plot_log(history: Sequence[Row], task: TrainingTask, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", facecolor="white")
    panels = {
        "loss": {"train_loss": "training", "val_loss": "validation"},
        task.ylabel: task.metrics,
    }
    epochs = [row["epoch"] for row in history]
    for axes, (ylabel, columns) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        curves = [(label, epochs, [row[column] for row in history]) for column, label in columns.items()]
        draw_curves(axes, ylabel, curves)
    figure.savefig(os.fspath(file), dpi=110)
