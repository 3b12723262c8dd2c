"""Where levels look: in the middle, where the level before found its answer, or where a function of the user's says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from srnn_zoo._errors import unknown_name
from srnn_zoo.transforms.resizing import is_captured
from srnn_zoo.transforms.views import Ratio, check_centers, nearest

from .backbone import in_mode

CENTER = "center"
"""The name of the views that lie in the middle and ask nothing."""


@dataclass(frozen=True, eq=False)
class Glance:
    """What is known when the view of a level is chosen: the level before it, as its backbone has read it.

    Attributes:
        level: index of the level whose view is asked for.
        share: how much of the image's height and width it will show, in (0, 1].
        images: the level before, `(b, C, H, W)`, normalised.
        features: C(x) of it, `(b, D)`.
        positions: C(x) at each position of its map, `(b, D, h, w)`.
        classifier: F of the level before.
        center: around which points `(b, 2)` the level before lies; None for the middle.
        share_before: how much it shows.
    """

    level: int
    share: float
    images: Tensor
    features: Tensor
    positions: Tensor
    classifier: nn.Module
    center: Tensor | None
    share_before: float

    @property
    def logits(self) -> Tensor:
        """F(C(x)): what the level before says by itself, `(b, K)`."""
        if isinstance(self.classifier, nn.Identity):
            raise ValueError("views follow from what the level before says, and the model has no classifier")
        return self.classifier(self.features)

    @property
    def activation_map(self) -> Tensor:
        """How much each position of the level before speaks for its own answer, `(b, h, w)`."""
        return activation_map(self.positions, self.classifier, self.logits.argmax(dim=1))

    def in_image(self, points: Tensor) -> Tensor:
        """Points (y, x) of the level before, `(b, 2)` from 0 to 1, as points of the whole image."""
        around = 0.5 if self.center is None else self.center
        return around + (points - 0.5) * self.share_before


def activation_map(positions: Tensor, classifier: nn.Module, classes: Tensor) -> Tensor:
    """`SRNN.activation_map` from C(x) at each position `(B, D, h, w)`."""
    if isinstance(classifier, nn.Linear):
        return torch.einsum("bdhw,bd->bhw", positions, classifier.weight[classes])
    each = classifier(positions.permute(0, 2, 3, 1).flatten(0, 2)).unflatten(0, (-1, *positions.shape[2:]))
    return each.gather(3, classes[:, None, None, None].expand(*each.shape[:3], 1))[..., 0]


View: TypeAlias = Callable[[Glance], Tensor]
"""Says where a level looks: the centres (y, x) of its views `(b, 2)`, as shares of the image's height and width."""

VIEWS: dict[str, View] = {}


def register_view(name: str) -> Callable[[View], View]:
    """Give a function that chooses views a name, so that a model that uses it can be saved.

    Raises:
        ValueError: for a name that is taken.

    Examples:
        >>> @register_view("upper_half")
        ... def upper_half(glance):
        ...     return glance.features.new_tensor([0.35, 0.5]).expand(len(glance.images), 2)
        >>> model = create_model("srnn_resnet18", zooms=(1.0, 1.6), views="upper_half")
    """

    def register(view: View) -> View:
        if name in list_views():
            raise ValueError(f"there are views named {name!r} already")
        VIEWS[name] = view
        return view

    return register


def list_views() -> list[str]:
    """The names of all views, in the order in which they were registered."""
    return [CENTER, *VIEWS]


@register_view("attention")
@torch.no_grad()
def attention(glance: Glance) -> Tensor:
    """The centre of mass of the class activation map, where it is above its mean; as near as the image allows."""
    found = glance.activation_map
    mass = (found - found.mean(dim=(1, 2), keepdim=True)).clamp(min=0).float()
    total = mass.sum(dim=(1, 2))
    points = []
    for line in (mass.sum(dim=2), mass.sum(dim=1)):
        at = (torch.arange(line.shape[1], device=line.device, dtype=line.dtype) + 0.5) / line.shape[1]
        points.append(torch.where(total > 0, (line * at).sum(dim=1) / total.clamp(min=1e-12), 0.5))
    return glance.in_image(torch.stack(points, dim=1))


def find_view(views: str | View) -> View | None:
    """The function of that name, or itself; None for the middle.

    Raises:
        ValueError: for an unknown name, with the closest ones.
        TypeError: for what is neither a name nor a function.
    """
    if isinstance(views, str):
        if views not in list_views():
            raise ValueError(unknown_name("views", views, list_views(), "or see srnn_zoo.register_view"))
        return VIEWS.get(views)
    if not callable(views):
        raise TypeError(f"views must be a name or a function of a Glance; got {type(views).__name__}")
    return views


def centers(view: View, glance: Glance, share: Ratio) -> Tensor:
    """Where the next level looks, `(b, 2)`, within the image."""
    found = view(glance)
    if view is not attention:
        found = check_centers(found, len(glance.images), share, glance.level)
    return nearest(found.detach(), share)


def position_features(backbone: Any, found: Any, level: Tensor) -> Tensor | None:
    """C(x) at each position of what `forward_features` gave, `(B, D, h, w)`; None where it has no positions.

    The backbone's head reads each position as if it were a map of its own. Where the head takes the mean alone, the
    mean over the positions is C(x).
    """
    if isinstance(found, torch.fx.Proxy):
        raise TypeError("torch.fx cannot trace a model that reads maps: torch.export and torch.jit.trace can")
    if not isinstance(found, Tensor):
        return None
    grid = token_grid(backbone, found, level)
    if grid is not None:
        norm = getattr(backbone, "fc_norm", None)  # of a ViT's mean
        return grid if norm is None else norm(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if found.dim() != 4:
        return None
    channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    points = found if channels_last else found.permute(0, 2, 3, 1)
    size, width = points.shape[1:3], points.shape[3]
    points = points.reshape(-1, 1, 1, width) if channels_last else points.reshape(-1, width, 1, 1)
    # a batch norm of the head must not take positions for images
    with in_mode(backbone, training=False) if backbone.training else nullcontext():
        each = backbone.forward_head(points, pre_logits=True)
    return each.reshape(level.shape[0], *size, each.shape[-1]).permute(0, 3, 1, 2)


def token_grid(backbone: Any, found: Tensor, level: Tensor) -> Tensor | None:
    """Tokens `(B, L, D)` of patches as the map `(B, D, h, w)` that they are of a level; None for what is no such."""
    if found.dim() != 3 or not (info := getattr(backbone, "feature_info", None)):
        return None
    reduction = int(info[-1]["reduction"])
    height, width = level.shape[-2] // reduction, level.shape[-1] // reduction
    patches = found[:, getattr(backbone, "num_prefix_tokens", 0) :]
    if not is_captured(found) and patches.shape[1] != height * width:
        return None
    return patches.transpose(1, 2).unflatten(2, (height, width))
