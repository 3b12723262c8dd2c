"""Where a run is, what it has reached, and what it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .recipe import Recipe

if TYPE_CHECKING:
    from srnn_zoo.models.srnn import SRNN

__all__ = ["FitResult", "Progress", "check_same_run", "describe_run", "merit"]


@dataclass
class FitResult:
    """What came of a training.

    Attributes:
        history: for every epoch the columns of log.csv: losses, accuracies in per cent, the learning rate, seconds.
        best: the row of the best epoch, by validation accuracy and then by loss.
        skipped: one sentence for every image that could not be read.
        output: the run's folder.
    """

    history: list[dict[str, float]]
    best: dict[str, float]
    skipped: list[str]
    output: Path | None = None


@dataclass
class Progress:
    """Where a run is, what it has reached, and what it is."""

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


def merit(row: dict[str, float]) -> tuple[float, float]:
    """What the best epoch has most of: validation accuracy, and at the same accuracy the lower loss."""
    return row["val_top1"], -row["val_loss"]


def describe_run(model: SRNN, recipe: Recipe, train: Any) -> dict[str, Any]:
    """What must be the same when a run is resumed."""
    return {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in vars(recipe).items()},
        "model": model.pretrained_cfg["architecture"],
        "variant": model.variant,
        "activation": model.cell.activation,
        "exits": model.exits,
        "norm": model.norm,
        "level sizes": [list(size) for size in model.level_sizes()],
        "classes": list(getattr(train, "classes", [])) or model.num_classes,
        "training images": len(train),
    }


def check_same_run(new: dict[str, Any], old: dict[str, Any], folder: Path) -> None:
    """Raise the error that lists how a run to be resumed differs from the one in the folder."""
    names = [name for name in {**old, **new} if new.get(name) != old.get(name)]
    different = [
        "other classes" if name == "classes" else f"{name} {new.get(name)}, was {old.get(name)}" for name in names
    ]
    if different:
        raise ValueError(
            f"{folder} cannot be resumed with another recipe, model or data: {'; '.join(different)}; "
            f"its own recipe is {folder / 'recipe.toml'}"
        )
