"""Training: losses for models that may stop at any level."""

from __future__ import annotations

from .losses import AnytimeLoss, EveryExit, random_heights

__all__ = ["AnytimeLoss", "EveryExit", "random_heights"]
