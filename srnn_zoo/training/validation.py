"""Accuracy and loss of a model on a split, every image counted once, however many processes share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from timm.utils import accuracy
from torch.nn import functional as F

from .loader import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator

    from srnn_zoo.models.srnn import SRNN

__all__ = ["validate"]


@torch.no_grad()
def validate(
    model: SRNN, loader: Iterable[Batch], accelerator: Accelerator, on_batch: Callable[[Batch], Any]
) -> dict[str, float]:
    """`val_loss` (cross-entropy of the last level), `val_top1` and `val_top5` in per cent.

    Args:
        model: is put in eval mode.
        loader: of this process's share.
        accelerator: over whose processes the figures are summed.
        on_batch: called with every batch.

    Raises:
        ValueError: if no image could be read.
    """
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)  # loss, right at first, right among five, images
    for batch in loader:
        on_batch(batch)
        if batch.images is None:
            continue
        images, targets = batch.images.to(accelerator.device), batch.targets.to(accelerator.device)
        with accelerator.autocast():
            logits = model(images)
        count = len(targets)
        right = [round(float(percent) * count / 100) for percent in accuracy(logits, targets, topk=(1, 5))]
        loss = F.cross_entropy(logits.float(), targets, reduction="sum").item()
        sums += torch.tensor([loss, *right, count], dtype=torch.float64)
    device_sums = sums.to(accelerator.device, torch.float64 if accelerator.device.type != "mps" else torch.float32)
    loss, top1, top5, count = accelerator.reduce(device_sums, "sum").tolist()  # pyright: ignore
    if count == 0:
        raise ValueError("no image of the validation split can be read")
    return {"val_loss": loss / count, "val_top1": 100 * top1 / count, "val_top5": 100 * top5 / count}
