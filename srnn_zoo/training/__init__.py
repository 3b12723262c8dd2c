"""Training: recipes, data, losses, and the engine behind `srnn-zoo train`."""

from __future__ import annotations

from srnn_zoo.datasets.splits import ImageSplit, TrainingData, open_data, open_split
from srnn_zoo.transforms.presets import image_transform

from .fit import FitResult, fit
from .losses import AnytimeLoss, EveryExit, random_heights
from .recipe import PRESETS, Recipe, recipe
from .state import Interrupted

__all__ = [
    "PRESETS",
    "AnytimeLoss",
    "EveryExit",
    "FitResult",
    "ImageSplit",
    "Interrupted",
    "Recipe",
    "TrainingData",
    "fit",
    "image_transform",
    "open_data",
    "open_split",
    "random_heights",
    "recipe",
]
