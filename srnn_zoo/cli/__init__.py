"""The command `srnn-zoo`: one file a command."""

from __future__ import annotations

from . import budget, models, predict, train  # importing a command registers it
from .app import app, main

__all__ = ["app", "budget", "main", "models", "predict", "train"]
