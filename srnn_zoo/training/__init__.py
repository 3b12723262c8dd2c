"""Training: recipes, data, losses, and the engine behind `srnn-zoo train`."""

from __future__ import annotations

from .data import Photographs, TrainingData, image_transform, open_data, open_split
from .fit import FitResult, fit
from .losses import AnytimeLoss, EveryExit, random_heights
from .recipe import PRESETS, Recipe, recipe
from .state import Interrupted

__all__ = [
    "PRESETS",
    "AnytimeLoss",
    "EveryExit",
    "FitResult",
    "Interrupted",
    "Photographs",
    "Recipe",
    "TrainingData",
    "fit",
    "image_transform",
    "open_data",
    "open_split",
    "random_heights",
    "recipe",
]
