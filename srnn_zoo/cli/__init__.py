"""The command `srnn-zoo`: one file a command."""

from . import budget, evaluate, export, models, predict, train  # importing a command registers it
from .app import main

__all__ = ["budget", "evaluate", "export", "main", "models", "predict", "train"]
