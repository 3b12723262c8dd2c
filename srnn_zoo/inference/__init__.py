"""Answers level by level: prediction, early exit, and the thresholds for it."""
