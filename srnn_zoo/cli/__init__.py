"""The command `srnn-zoo`: one file a command."""

from __future__ import annotations

from . import budget, curves, evaluate, models, predict, train  # importing a command registers it
from .app import app, main

__all__ = ["app", "budget", "curves", "evaluate", "main", "models", "predict", "train"]
