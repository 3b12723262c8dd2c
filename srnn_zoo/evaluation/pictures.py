"""Pictures of levels: as they were, with warm colours where a map is high, and as text for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from srnn_zoo.transforms.presets import NormalizeLevels, create_transform

WARMTH = 0.55  # how much of a pixel's colour is the map's, where the map is highest


def picture_of(level: Tensor, normalize: NormalizeLevels) -> Image.Image:
    """The RGB image of a normalised level `(C, H, W)`."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (normalize.mean, normalize.std))
    pixels = ((level.float().cpu() * std + mean).clamp(0, 1) * 255).round().byte()
    if pixels.shape[0] not in (1, 3):
        pixels = pixels[:1]
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def normalization(model: Any) -> NormalizeLevels:
    """The step of a model's transform that normalises levels."""
    return next(step for step in create_transform(model).transforms if isinstance(step, NormalizeLevels))


def with_map(image: Image.Image, heat: Tensor) -> Image.Image:
    """An image with warm colours over it: the more a place of the map `(h, w)` speaks for the answer, the redder.

    Colours are relative to the largest value of the map; what is negative has none.
    """
    share = heat.float().clamp(min=0) / heat.max().clamp(min=1e-12)
    grey = Image.fromarray((share.nan_to_num(0) * 255).round().byte().cpu().numpy())
    shares = np.asarray(grey.resize(image.size, Image.Resampling.BICUBIC), dtype=np.float32)[:, :, None] / 255
    warm = np.concatenate([np.ones_like(shares), 1 - shares, np.zeros_like(shares)], axis=2) * 255
    mixed = np.asarray(image.convert("RGB"), dtype=np.float32) * (1 - WARMTH * shares) + warm * WARMTH * shares
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))


def data_uri(image: Image.Image, width: int = 224) -> str:
    """An image, made at most so wide, as the address that a page needs no file for."""
    if image.width > width:
        image = image.resize((width, max(round(image.height * width / image.width), 1)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def levels_read(model: Any, images: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The levels that a model reads of one image, each `(C, H_s, W_s)`."""
    with torch.inference_mode():
        levels = model.lazy_levels(model.as_input(images))
        found = list[Tensor]()
        for level in range(levels.height):
            if levels.follows(level):  # where the next one lies, reading this one says
                model.read_level(levels, level)
            found += [seen[0] for _, seen in levels.groups(level)]
    return found
