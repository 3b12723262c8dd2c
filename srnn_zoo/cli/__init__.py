"""The command `srnn-zoo`: one file a command."""

from . import budget, evaluate, models, predict, train  # importing a command registers it
from .app import main

__all__ = ["budget", "evaluate", "main", "models", "predict", "train"]
