"""What is minimised: how a recipe reads the levels of a batch, its loss, and how it mixes images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from timm.data import Mixup
from torch import Tensor, nn

from .losses import AnytimeLoss, EveryExit, random_heights
from .recipe import Recipe

if TYPE_CHECKING:
    from srnn_zoo.models.srnn import SRNN

__all__ = ["TrainingForward", "create_loss", "create_mixup"]


class TrainingForward(nn.Module):
    """The model as training calls it: the largest level in, logits `(B, K)` of the last level, or `(L, B, K)` of all.

    Args:
        model: the SRNN.
        recipe: whose `loss` and `random_heights` decide.
    """

    def __init__(self, model: SRNN, recipe: Recipe) -> None:
        super().__init__()
        self.random_heights = recipe.random_heights
        self.levels = model.levels
        self.read: nn.Module = model
        if recipe.loss == "anytime":
            self.read = EveryExit(model)
        elif model.exits == "separate" and not recipe.random_heights:
            raise ValueError('exits="separate" needs loss="anytime" or random_heights: else only the last is trained')

    def forward(self, images: Tensor) -> Tensor:
        levels = self.levels(images)
        if self.random_heights:
            return self.read(random_heights(levels))
        return self.read(levels)


def create_loss(recipe: Recipe) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy of the last level, as in the paper, or of every level."""
    mixes = recipe.mixup > 0 or recipe.cutmix > 0
    loss = nn.CrossEntropyLoss(label_smoothing=0.0 if mixes else recipe.label_smoothing)  # mixed targets are smooth
    if recipe.loss == "last":
        return loss
    weights = recipe.anytime_weights or None
    return AnytimeLoss(weights, distillation=recipe.distillation, temperature=recipe.temperature, loss=loss)


def create_mixup(recipe: Recipe, num_classes: int, batch_size: int) -> Mixup | None:
    """timm's mixup and cutmix, or None where the recipe has neither.

    Raises:
        ValueError: for batches of an odd number of images, which cannot be mixed in pairs.
    """
    if recipe.mixup == 0 and recipe.cutmix == 0:
        return None
    if batch_size % 2:
        raise ValueError(f"mixup and cutmix mix pairs of images; a process reads {batch_size} at a time")
    return Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes)
