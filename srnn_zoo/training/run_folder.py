"""The folder of a run: its recipe, log, curves, skipped images, and the best and the last model."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srnn_zoo._errors import missing_extra

from .recipe import Recipe

if TYPE_CHECKING:
    from srnn_zoo.models.srnn import SRNN

__all__ = ["COLUMNS", "RunFolder"]

COLUMNS = ("epoch", "lr", "train_loss", "val_loss", "val_top1", "val_top5", "seconds")

Row = Mapping[str, float]


class RunFolder:
    """What a run leaves behind.

    Args:
        path: the folder.
        tensorboard: whether to write TensorBoard's files as well.

    Raises:
        ImportError: if TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path, tensorboard: bool = False) -> None:
        self.path = path
        self.state = path / "state"
        if tensorboard and find_spec("tensorboard") is None:
            raise missing_extra("tensorboard", "train", "the TensorBoard log")
        self._tensorboard = tensorboard

    def start(self, recipe: Recipe) -> None:
        """Make the folder.

        Raises:
            FileExistsError: if it holds another run.
        """
        if any((self.path / name).exists() for name in ("recipe.toml", "state", "log.csv")):
            raise FileExistsError(f"{self.path} holds another run: resume it, or choose another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        recipe.to_toml(self.path / "recipe.toml")

    def write_log(self, history: Sequence[Row]) -> None:
        """log.csv, TensorBoard's events of the last epoch, and curves.png where matplotlib is installed."""
        beside = self.path / ".log.csv"
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows([_short(row[name]) for name in COLUMNS] for row in history)
        beside.replace(self.path / "log.csv")
        if self._tensorboard and history:
            _write_events(self.path / "tensorboard", history[-1])
        if find_spec("matplotlib") is not None and history:
            _draw_curves(history, self.path / "curves.png")

    def write_skipped(self, skipped: Sequence[str]) -> None:
        """skipped.txt: one line for every image that could not be read."""
        if skipped:
            (self.path / "skipped.txt").write_text("".join(f"{line}\n" for line in skipped), encoding="utf-8")

    def save_model(self, model: SRNN, which: str, recipe: Recipe, dataset: str, row: Row) -> None:
        """Save a model with its metrics and recipe as `best` or `last`."""
        metrics = {f"{dataset} (val)": {"top1": row["val_top1"], "top5": row["val_top5"]}}
        model.save_pretrained(
            self.path / which,
            dataset=dataset,
            metrics=metrics,
            recipe={**dataclasses.asdict(recipe), "epoch": row["epoch"]},
        )


def _short(value: float) -> float | str:
    return f"{value:.8g}" if isinstance(value, float) else value


def _write_events(folder: Path, row: Row) -> None:
    from torch.utils.tensorboard import SummaryWriter

    epoch = int(row["epoch"])
    with SummaryWriter(os.fspath(folder), purge_step=epoch) as writer:  # of an epoch that was interrupted
        for name in COLUMNS[1:]:
            writer.add_scalar(name.replace("_", "/", 1), row[name], epoch)


def _draw_curves(history: Sequence[Row], file: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    both: Any = figure.subplots(1, 2)
    loss, top = both
    epochs = [row["epoch"] for row in history]
    panels = [(loss, "train_loss", "training"), (loss, "val_loss", "validation")]
    panels += [(top, "val_top1", "top-1"), (top, "val_top5", "top-5")]
    for axes, name, label in panels:
        axes.plot(epochs, [row[name] for row in history], label=label, marker="." if len(epochs) < 30 else "")
    for axes, title in ((loss, "loss"), (top, "validation accuracy in %")):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(os.fspath(file), dpi=110)
