"""Activation maps: which places of a level speak for an answer, through the cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srnn_zoo.models.places import values
from srnn_zoo.models.reading import NoMapError
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.transforms.packed import PackedPyramid


@torch.no_grad()
def activation_maps(
    model: SRNN, images: Tensor | Sequence[Tensor], classes: Tensor | Sequence[Tensor] | None = None
) -> list[Tensor]:
    """How much each place of every level speaks for an answer, after the level is read.

    The map of level s is C(x_s) at each position, times the gradient of the answer's logit F(h_s) with respect to
    C(x_s). So it shows what the level adds to the answer through the cell, while `SRNN.activation_map` shows what the
    base CNN sees in the level alone. Where cell and head are linear, the mean of the map is exactly what the level adds
    to the logit; elsewhere it is that to first order. Source: Selvaraju et al., "Grad-CAM", 2017; for a linear head it
    is the class activation map of Zhou et al., 2016.

    Args:
        model: in eval mode.
        images: as for the model, all of one height, on its device: the largest level `(B, C, H, W)`, or the levels.
        classes: the answers that the maps are of, `(B,)` for all levels or one such tensor a level; by default the best
            class after each level.

    Returns:
        for every level, smallest first, a map `(B, h_s, w_s)` in float32; positive where a place speaks for the answer.
        A cell that answers after the last level only (`concat`) gives the maps of that answer.

    Raises:
        ValueError: where the backbone has no map of a level, the model has no classifier, or is in training mode.
        TypeError: for images of mixed heights.

    Examples:
        >>> small, large = activation_maps(model, images)
        >>> why_not = activation_maps(model, images, classes=targets)
    """
    if model.num_classes == 0:
        raise ValueError("the model has no classifier (num_classes=0), and so no activation maps")
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    levels = model.lazy_levels(model.as_input(images))
    if isinstance(levels, PackedPyramid):
        raise TypeError("maps are of images of one size: give the images of a packed pyramid one by one (unpack)")
    read, places = list[Tensor](), list[Tensor]()
    for level in range(levels.height):
        read.append(model.read_level(levels, level))
        if model.cell.reads == "maps":
            count = read[-1].shape[-2] * read[-1].shape[-1]
            places.append(values(read[-1]) * count)
        else:
            [(_, seen)] = levels.groups(level)
            model.check_has_map(seen)
            places.append(model.position_features(seen, level)[1])
    maps = list[Tensor]()
    for place, gradient in zip(places, _gradients(model, read, classes), strict=True):
        wide = values(gradient) if model.cell.reads == "maps" else gradient[:, :, None, None]
        maps.append((place.float() * wide.float()).sum(dim=1))
    return maps


def _gradients(
    model: SRNN, features: Sequence[Tensor], classes: Tensor | Sequence[Tensor] | None
) -> tuple[Tensor, ...]:
    """Of the answer's logit after each level, with respect to what the cell read of that level."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [level.clone().detach().requires_grad_() for level in features]
        answers = list(model.exit_logits(leaves))
        answers = answers if model.cell.anytime else answers * len(leaves)
        chosen = [classes] * len(leaves) if isinstance(classes, Tensor) else classes
        chosen = chosen or [logits.argmax(dim=1) for logits in answers]
        logits = [
            answer.gather(1, best.to(answer.device).long()[:, None]).sum()
            for answer, best in zip(answers, chosen, strict=True)
        ]
        if not all(logit.requires_grad for logit in logits):
            raise NoMapError("the cell of this model has no gradients, so that it gives no maps")
        return tuple(
            torch.autograd.grad(logit, leaf, retain_graph=True)[0] for logit, leaf in zip(logits, leaves, strict=True)
        )
