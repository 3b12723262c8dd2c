"""Answers level by level: prediction, early exit, and the thresholds for it."""

from . import learned as learned  # registers its rule
