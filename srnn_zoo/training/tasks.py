"""What training does in another way for classes, for several labels at once, and for numbers: all in one place."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srnn_zoo._errors import unknown_name
from srnn_zoo.models.tasks import Task
from srnn_zoo.models.temperatures import fit_temperatures

from .recipe import Recipe

Loss = Callable[[Tensor, Tensor], Tensor]


class TrainingTask:
    """Targets, loss and measures of a task; subclasses say what differs.

    Attributes:
        name: as `SRNN.task` has it.
        metrics: the columns of log.csv with their names in plots. The first decides which epoch is best.
        better: 1 where more of it is better, -1 where less is.
        ylabel: of the plot of the metrics.
        number: how one of them is written.
    """

    name: ClassVar[Task]
    metrics: ClassVar[Mapping[str, str]]
    better: ClassVar[int] = 1
    ylabel: ClassVar[str]
    number: ClassVar[str] = "{:.1f} %"

    def check(self, recipe: Recipe, variant: str) -> None:
        """Raise an error for a recipe or a variant that makes no sense here."""
        names = ("mixup", "cutmix", "distillation")
        if given := [f"{name}={getattr(recipe, name):g}" for name in names if getattr(recipe, name)]:
            raise ValueError(f"{', '.join(given)}: this is for one class an image, and means nothing for {self.name}")
        if variant == "mean_prob":
            raise ValueError(f"variant 'mean_prob' averages probabilities of classes: choose another for {self.name}")

    def loss(self, recipe: Recipe) -> Loss:
        """Of outputs `(B, K)` and targets."""
        raise NotImplementedError

    def target(self, value: Any, num_classes: int) -> Any:
        """What a data set gives as a target, as the loss takes it; a ValueError says what is wrong with it."""
        raise NotImplementedError

    def evidence(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is kept of outputs `(B, K)` and targets to measure them together with others, `(B, …)`."""
        raise NotImplementedError

    def measure(self, evidence: Tensor) -> dict[str, float]:
        """`val_loss` and the metrics from the evidence of all images `(N, …)`."""
        raise NotImplementedError

    def temperatures(self, outputs: Tensor, targets: Tensor) -> list[float]:
        """One for every level of outputs `(L, N, K)`; none where probabilities of classes are not what they mean."""
        return []

    def merit(self, row: Mapping[str, float]) -> tuple[float, float]:
        """The best epoch has the greatest: of the first metric, and where that is the same of the lower loss.

        What is not a number is worse than any.
        """
        first, loss = self.better * row[next(iter(self.metrics))], -row["val_loss"]
        return -math.inf if math.isnan(first) else first, -math.inf if math.isnan(loss) else loss

    def say(self, row: Mapping[str, float]) -> str:
        """The metrics of an epoch in words."""
        return "  ".join(f"{label} {self.number.format(row[name])}" for name, label in self.metrics.items())


class Classification(TrainingTask):
    """One class an image: cross-entropy, and accuracy in per cent."""

    name = "classification"
    metrics: ClassVar = {"val_top1": "top-1", "val_top5": "top-5"}
    ylabel = "validation accuracy (%)"

    def check(self, recipe: Recipe, variant: str) -> None:
        """Every recipe and variant is for classes."""

    def loss(self, recipe: Recipe) -> Loss:
        mixes = recipe.mixup > 0 or recipe.cutmix > 0  # mixed targets are smooth
        return nn.CrossEntropyLoss(label_smoothing=0.0 if mixes else recipe.label_smoothing)

    def target(self, value: Any, num_classes: int) -> int:
        try:
            found = operator.index(value)
        except TypeError:  # of a float, a text, several numbers
            found = -1
        if not 0 <= found < num_classes:
            raise ValueError(
                f"the target must be the index of one of the model's {num_classes} classes, from 0; got {value!r}"
            )
        return found

    def evidence(self, outputs: Tensor, targets: Tensor) -> Tensor:
        right = outputs.topk(min(5, outputs.shape[1]), dim=1).indices == targets[:, None]
        losses = F.cross_entropy(outputs, targets, reduction="none")
        return torch.stack([losses, right[:, 0], right.any(dim=1)], dim=1)

    def measure(self, evidence: Tensor) -> dict[str, float]:
        loss, top1, top5 = evidence.double().mean(dim=0).tolist()
        return {"val_loss": loss, "val_top1": 100 * top1, "val_top5": 100 * top5}

    def temperatures(self, outputs: Tensor, targets: Tensor) -> list[float]:
        return fit_temperatures(outputs, targets)


class MultiLabel(TrainingTask):
    """Any number of labels an image: binary cross-entropy, mean average precision and micro-F1 in per cent."""

    name = "multi_label"
    metrics: ClassVar = {"val_map": "mAP", "val_f1": "F1"}
    ylabel = "validation (%)"

    def loss(self, recipe: Recipe) -> Loss:
        smoothing = recipe.label_smoothing  # 0 and 1 become ε / 2 and 1 - ε / 2

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(outputs, targets * (1 - smoothing) + smoothing / 2)

        return loss

    def target(self, value: Any, num_classes: int) -> Tensor:
        found = _numbers(value, num_classes, "0 or 1, one for each of the model's {} labels")
        if len(outside := found[(found != 0) & (found != 1)]):
            raise ValueError(f"the target must be 0 or 1 for each of {num_classes} labels; got {outside[0]:g}")
        return found

    def evidence(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.cat([outputs, targets], dim=1)

    def measure(self, evidence: Tensor) -> dict[str, float]:
        outputs, targets = evidence.chunk(2, dim=1)
        loss = F.binary_cross_entropy_with_logits(outputs.double(), targets.double()).item()
        precision = mean_average_precision(outputs, targets)
        return {"val_loss": loss, "val_map": 100 * precision, "val_f1": 100 * micro_f1(outputs > 0, targets > 0)}


class Regression(TrainingTask):
    """Numbers: squared error; the mean absolute error and the root of the mean squared one, in the targets' units."""

    name = "regression"
    metrics: ClassVar = {"val_mae": "MAE", "val_rmse": "RMSE"}
    better = -1
    ylabel = "validation error"
    number = "{:.4g}"

    def check(self, recipe: Recipe, variant: str) -> None:
        super().check(recipe, variant)
        if recipe.label_smoothing:
            raise ValueError(f"numbers have no label smoothing: give label_smoothing=0; got {recipe.label_smoothing:g}")

    def loss(self, recipe: Recipe) -> Loss:
        return nn.MSELoss()

    def target(self, value: Any, num_classes: int) -> Tensor:
        found = _numbers(value, num_classes, "numbers, one for each of the model's {} outputs")
        if len(odd := found[~found.isfinite()]):
            raise ValueError(f"the target must be finite numbers; got {odd[0]:g}")
        return found

    def evidence(self, outputs: Tensor, targets: Tensor) -> Tensor:
        errors = outputs - targets
        return torch.stack([errors.abs().mean(dim=1), errors.square().mean(dim=1)], dim=1)

    def measure(self, evidence: Tensor) -> dict[str, float]:
        absolute, squared = evidence.double().mean(dim=0).tolist()
        return {"val_loss": squared, "val_mae": absolute, "val_rmse": math.sqrt(squared)}


TASKS: dict[str, TrainingTask] = {task.name: task for task in (Classification(), MultiLabel(), Regression())}


def training_task(name: str) -> TrainingTask:
    """A task by its name; a ValueError gives the closest names."""
    if name not in TASKS:
        raise ValueError(unknown_name("task", name, TASKS))
    return TASKS[name]


def mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    """The mean over labels of the average precision `Σ (R_n - R_{n-1}) P_n`, in [0, 1]; 0 where no image has a label.

    Images of the same score are one step of the sum, and labels without an image are left out.

    Args:
        scores: `(N, K)`, of which only the order counts.
        targets: `(N, K)` of 0 and 1.
    """
    found = [_average_precision(s, t) for s, t in zip(scores.T, targets.T.double(), strict=True) if t.any()]
    return sum(found) / max(1, len(found))


def _average_precision(scores: Tensor, targets: Tensor) -> float:
    ordered, order = scores.sort(descending=True)
    last_of_its_score = torch.cat([ordered.diff() != 0, ordered.new_ones(1, dtype=torch.bool)]).nonzero()[:, 0]
    right = targets[order].cumsum(0)[last_of_its_score]
    gained = right.diff(prepend=right.new_zeros(1)) / right[-1]
    return (gained * right / (last_of_its_score + 1)).sum().item()


def micro_f1(answers: Tensor, targets: Tensor) -> float:
    """2 TP / (2 TP + FP + FN) over all images and labels, bool `(N, K)`; 0 where there are none."""
    return 2 * (answers & targets).sum().item() / max(1, (answers.sum() + targets.sum()).item())


def _numbers(value: Any, count: int, wanted: str) -> Tensor:
    """A target as float32 `(count,)`, of one output also from a plain number."""
    wanted = f"the target must be {wanted.format(count)}"
    try:
        found = torch.as_tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{wanted}; got {type(value).__name__}") from None
    if found.dim() == 0 and count == 1:
        found = found[None]
    if found.shape != (count,):
        raise ValueError(f"{wanted}; got {f'shape {tuple(found.shape)}' if found.dim() else f'{found:g}'}")
    return found
