"""The recipes that have a name: the paper's, one for few data, and one for a frozen backbone."""

from __future__ import annotations

import dataclasses
from typing import Any

from srnn_zoo._errors import unknown_name

from .recipe import Recipe, known_settings

__all__ = ["PRESETS", "recipe"]

# section 4 of the paper; what it does not say is as in PyTorch's ImageNet example, which it builds on
_PAPER = Recipe(
    optimizer="sgd",
    nesterov=True,
    momentum=0.9,
    lr=0.001,
    schedule="step",
    decay_epochs=30,
    decay_rate=0.1,
    epochs=65,
    weight_decay=1e-4,
    decay_1d=True,
    batch_size=256,
    color_jitter=0.4,
    interpolation="bicubic",
)

_FINETUNE = Recipe(
    optimizer="adamw",
    lr=3e-3,
    lr_backbone=0.3,
    lr_cell=0.1,
    lr_classifier=1.0,
    weight_decay=0.05,
    recurrence=0.25,
    identity_decay=0.05,
    schedule="cosine",
    warmup_epochs=1.0,
    epochs=20,
    batch_size=32,
    clip_grad=1.0,
    label_smoothing=0.1,
    crop_scale=(0.5, 1.0),
    color_jitter=0.0,
    ema_decay=0.995,
)

_PROBE = Recipe(
    optimizer="adamw",
    lr=5e-3,
    lr_cell=0.02,
    weight_decay=0.05,
    recurrence=0.25,
    identity_decay=0.05,
    schedule="cosine",
    epochs=20,
    batch_size=256,
    freeze_backbone=True,
)

PRESETS: dict[str, Recipe] = {"paper": _PAPER, "finetune": _FINETUNE, "probe": _PROBE}


def recipe(name: str, **settings: Any) -> Recipe:
    """A recipe by name: `"paper"` (section 4 of the paper), `"finetune"` (a good start for few data) or `"probe"`.

    Args:
        name: of `PRESETS`.
        **settings: other values of its fields.

    Raises:
        ValueError: for an unknown recipe or field, with the closest names, and for a value outside its range.
        TypeError: for a value of another type.
    """
    if name not in PRESETS:
        raise ValueError(unknown_name("recipe", name, PRESETS))
    return dataclasses.replace(PRESETS[name], **known_settings(settings))
