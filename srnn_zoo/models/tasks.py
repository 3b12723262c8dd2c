"""What a model's outputs are: one class of several, several labels at once, or plain numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from srnn_zoo.weights.card import Task


def scores(logits: Tensor, task: Task, temperature: float = 1.0) -> Tensor:
    """What outputs `(B, K)` mean: probabilities that sum to 1, a probability of each label, or the numbers themselves.

    Args:
        logits: `(B, K)`.
        task: of the model (`SRNN.task`).
        temperature: for classes, what the logits are divided by.
    """
    if task == "classification":
        return (logits / temperature).softmax(dim=1)
    return logits.sigmoid() if task == "multi_label" else logits


def check_classifies(model: Any, what: str) -> None:
    """Raise the error that says why a model that does not give one class of several cannot be used so."""
    if model.task != "classification":
        raise ValueError(f"{what} is about one class an image, and this model is for {model.task}")
