"""What is minimised: a loss of the last level or of all, the model as it reads a batch for it, and mixed images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F

from srnn_zoo.models.recurrence import check_answers
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.transforms.packed import PackedPyramid
from srnn_zoo.transforms.pyramid import Pyramid

from .recipe import Recipe
from .tasks import Loss, TrainingTask


class EveryExit(nn.Module):
    """A model that answers after every level in one forward, `(L, B, num_classes)`, smallest level first.

    Distributed training sees only the forward of the module it wraps: wrap this one, and save the model inside it.

    Args:
        model: with a classifier. With a cell that answers once (`concat`) there is that answer alone, `(1, B, K)`.

    Raises:
        ValueError: for a model without a classifier.

    Examples:
        >>> loss = AnytimeLoss()(EveryExit(model)(images), targets)
    """

    def __init__(self, model: SRNN) -> None:
        super().__init__()
        check_answers(model)
        self.model = model

    def forward(self, x: Any) -> Tensor:
        """Logits `(L, B, num_classes)`; an image whose levels have ended keeps its last answer."""
        if not self.model.cell.anytime:
            return self.model(x)[None]
        return torch.stack([step.logits for step in self.model.steps(x)])


class AnytimeLoss(nn.Module):
    """A loss at every level: `Σ_s w_s ℓ_s`, with `ℓ_s = (1 - d) ℓ(F(h_s), y) + d T² KL(p_n || p_s)` for s < n.

    The last level is compared with the targets only; p_s are probabilities at temperature T, and the last level gets
    no gradient from the distillation (Hinton et al., 2015). In a batch of mixed heights an image whose levels have
    ended keeps its last answer, so that every image has the same weight.

    Args:
        weights: one for every level, smallest first, not negative; only their ratios matter. A pyramid with fewer
            levels uses the first weights. By default all are equal.
        distillation: d in [0, 1].
        temperature: T, positive.
        loss: ℓ, of logits `(B, K)` and targets; by default cross-entropy. Targets are whatever it takes: classes
            `(B,)`, or probabilities `(B, K)` as mixup makes them.

    Raises:
        ValueError: for arguments out of their range; from a call, for more levels than weights, and for logits of only
            one level.

    Examples:
        >>> loss = AnytimeLoss(weights=(0.3, 1.0), distillation=0.5)
        >>> loss(torch.zeros(2, 4, 10), torch.zeros(4, dtype=torch.long))
        tensor(2.0369)
    """

    def __init__(
        self,
        weights: Sequence[float] | None = None,
        distillation: float = 0.0,
        temperature: float = 1.0,
        loss: Loss | None = None,
    ) -> None:
        super().__init__()
        self.weights = None if weights is None else tuple(map(float, weights))
        if self.weights is not None and not (
            all(w >= 0 for w in self.weights) and 0 < sum(self.weights) < float("inf")
        ):
            raise ValueError(f"weights must be 0 or more, one for every level, and not all 0; got {weights!r}")
        if not 0 <= distillation <= 1:
            raise ValueError(f"distillation must be between 0 and 1; got {distillation}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive; got {temperature}")
        self.distillation = float(distillation)
        self.temperature = float(temperature)
        self.loss = F.cross_entropy if loss is None else loss

    def forward(self, logits: Tensor | Sequence[Tensor], targets: Tensor) -> Tensor:
        """The loss of logits `(L, B, K)`, smallest level first, and their targets."""
        if logits[0].ndim != 2:
            shape = (len(logits), *logits[0].shape)
            raise ValueError(f"logits must be (L, B, K), those after every level (EveryExit); got {shape}")
        weights = self._weights_of(len(logits))
        *earlier, last = logits
        total = weights[-1] * self.loss(last, targets)
        for weight, answer in zip(weights, earlier, strict=False):
            if weight == 0:
                continue
            own = self.loss(answer, targets) if self.distillation < 1 else 0.0
            taught = self._divergence(answer, last) if self.distillation > 0 else 0.0
            total = total + weight * ((1 - self.distillation) * own + self.distillation * taught)
        return total

    def _weights_of(self, levels: int) -> list[float]:
        weights = self.weights or (1.0,) * levels
        if levels > len(weights):
            raise ValueError(f"{levels} levels need as many weights; got {len(weights)}")
        total = sum(weights[:levels])
        if total == 0:
            raise ValueError(f"the weights of the first {levels} of {len(weights)} levels are all 0")
        return [weight / total for weight in weights[:levels]]

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """T² KL(teacher || student): its gradients do not shrink with T."""
        t = self.temperature
        log_p, log_q = F.log_softmax(teacher.detach() / t, dim=1), F.log_softmax(student / t, dim=1)
        return t * t * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    def extra_repr(self) -> str:
        return f"weights={self.weights}, distillation={self.distillation}, temperature={self.temperature}"


def random_heights(
    pyramid: Sequence[Tensor] | PackedPyramid, min_height: int = 1, generator: torch.Generator | None = None
) -> Pyramid | PackedPyramid:
    """Cut every image of a batch at a height drawn evenly from `min_height` to its own.

    A model that is trained like this meets every height, so that the plain loss trains its early answers too.

    Args:
        pyramid: levels `(B, C, H_s, W_s)`, smallest first, or a batch of mixed heights.
        min_height: 1 or more; images with fewer levels keep theirs.
        generator: of the draw, on the CPU.

    Raises:
        ValueError: if `min_height` is less than 1.
    """
    if min_height < 1:
        raise ValueError(f"min_height must be 1 or more; got {min_height}")
    whole = pyramid if isinstance(pyramid, Pyramid | PackedPyramid) else Pyramid(pyramid)
    images = whole.unpack() if isinstance(whole, PackedPyramid) else list(zip(*whole, strict=True))
    cut: list[Sequence[Tensor]] = []
    for levels in images:
        least = min(min_height, len(levels))
        cut.append(levels[: int(torch.randint(least, len(levels) + 1, (), generator=generator))])
    return Pyramid.pack(cut, whole.zooms and whole.zooms[: max(map(len, cut))])


class TrainingForward(nn.Module):
    """The model as training calls it: the largest level in, logits `(B, K)` of the last level, or `(L, B, K)` of all.

    It refuses a model without a classifier, or with classifiers that the recipe's loss would not train.
    """

    def __init__(self, model: SRNN, recipe: Recipe) -> None:
        super().__init__()
        self.random_heights = recipe.random_heights
        self.levels, self.zooms = model.levels, model.zooms
        if model.num_classes == 0:
            raise ValueError("the model has no classifier (num_classes=0): create it with as many classes as the data")
        if recipe.loss == "last" and model.exits == "separate" and not recipe.random_heights:
            raise ValueError('exits="separate" needs loss="anytime" or random_heights: else only the last is trained')
        self.read: nn.Module = EveryExit(model) if recipe.loss == "anytime" else model

    def forward(self, images: Tensor) -> Tensor:
        if not self.random_heights:
            return self.read(images)
        return self.read(random_heights(Pyramid(self.levels(images), self.zooms)))


def create_loss(recipe: Recipe, task: TrainingTask, own: Loss | None = None) -> Loss:
    """The task's loss, or the user's own, of the last level, as in the paper, or of every level."""
    loss = task.loss(recipe) if own is None else _checked(own)
    if recipe.loss == "last":
        return loss
    weights = recipe.anytime_weights or None
    return AnytimeLoss(weights, distillation=recipe.distillation, temperature=recipe.temperature, loss=loss)


def _checked(own: Loss) -> Loss:
    """The user's loss, which must give what can be minimised."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        value = own(logits, targets)
        if not isinstance(value, Tensor) or value.dim() != 0 or not value.requires_grad:
            kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) and value.dim() else f"{value!r}"
            raise ValueError(
                f"the loss must be one number that follows from the logits, a mean over images; got {kind}"
            )
        return value

    return loss


def create_mixup(recipe: Recipe, num_classes: int, batch_size: int) -> Mixup | None:
    """timm's mixup and cutmix, or None where the recipe has neither."""
    if recipe.mixup == 0 and recipe.cutmix == 0:
        return None
    if batch_size % 2:
        raise ValueError(f"mixup and cutmix mix pairs of images; a process reads {batch_size} at a time")
    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes)
