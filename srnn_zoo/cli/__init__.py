"""The command `srnn-zoo`: one file a command."""

from . import budget, compare, evaluate, export, models, predict, train, web_app  # importing a command registers it
from .app import main

__all__ = ["budget", "compare", "evaluate", "export", "main", "models", "predict", "train", "web_app"]
