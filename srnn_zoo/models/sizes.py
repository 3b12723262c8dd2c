"""Which sizes of levels a backbone reads, and how one that reads a single size reads the others: in tiles."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from srnn_zoo.transforms.resizing import resize


class Reads(NamedTuple):
    """How a backbone reads levels of any size.

    Attributes:
        multiple: the sizes of levels are rounded to it, in pixels.
        tile: the only size `(H, W)` that the backbone reads, if there is but one: see `read`.
    """

    multiple: int = 1
    tile: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.tile is not None:
            return f"tiles of {self.tile[0]} x {self.tile[1]}"
        return f"multiples of {self.multiple}" if self.multiple > 1 else "any size"


# by timm's module and architecture, the first that fits; others read any size (benchmarks/backbones.py tries every one)
_RULES: dict[str, int | Literal["stride", "native", "tiles"]] = {
    **dict.fromkeys(  # position embeddings, biases, token mixers or windows of one grid
        "beit/* byobnet/*bot* byobnet/lambda_resnet26rpt* cait/* coat/* convit/* efficientformer/* "
        "efficientformer_v2/* gcvit/* hiera/* levit/* maxxvit/*coat* mlp_mixer/* mvitv2/* nest/* pit/* tnt/* "
        "visformer/* vision_transformer_relpos/* volo/*".split(),
        "tiles",
    ),
    **dict.fromkeys("byobnet/*halo* byobnet/bat_* maxxvit/*".split(), "native"),  # windows that fill their own size
    **dict.fromkeys(("swin_transformer/*", "swin_transformer_v2/*", "tresnet/*"), 4),
    "gemma4_vit/*_enc": 48,
    "qwen3_vit/*_enc": 32,
    "qwen3_vit/*_merge": 32,
    **dict.fromkeys(
        "byobnet/*_clip* byobnet/lambda_resnet26t byobnet/resnet50_mlp csatv2/* deepseek_vit/* deit/* dla/* eva/* "
        "gemma4_vit/* hieradet_sam2/* hrnet/* naflexvit/* qwen3_vit/* resnet/*aa* vision_transformer/* "
        "vision_transformer_sam/*".split(),
        "stride",
    ),
}


def family(backbone: nn.Module) -> str:
    """The timm module that defines a backbone, such as `"resnet"`."""
    return type(backbone).__module__.rpartition(".")[2]


def native_size(backbone: nn.Module) -> tuple[int, int]:
    """The image size `(H, W)` a backbone was made for."""
    traits = getattr(backbone, "_traits", {})
    size = traits.get("img_size") or cast("dict[str, Any]", backbone.pretrained_cfg)["input_size"][-2:]
    return int(size[0]), int(size[1])


def reads(backbone: nn.Module) -> Reads:
    """How a backbone reads levels: one of timm's by its architecture; others know it (`wrap`)."""
    if isinstance(known := getattr(backbone, "reads", None), Reads):
        return known
    name = f"{family(backbone)}/{cast('dict[str, Any]', backbone.pretrained_cfg)['architecture']}"
    rule = next((rule for pattern, rule in _RULES.items() if fnmatchcase(name, pattern)), 1)
    if isinstance(rule, int):
        return Reads(rule)
    if rule == "tiles":
        return Reads(tile=native_size(backbone))
    if rule == "native":
        return Reads(max(native_size(backbone)))
    return Reads(min(int(cast("list[dict[str, Any]]", backbone.feature_info)[-1]["reduction"]), 32))


def read(backbone: nn.Module, images: Tensor, tile: tuple[int, int] | None = None) -> Tensor:
    """C(x): pooled features `(B, D)` of images `(B, C, H, W)`.

    A backbone that reads one size reads larger images in tiles of it, which cover the image evenly and overlap where
    they must, and the features are the mean over the tiles; smaller images are enlarged first. Source: Shi et al.,
    "When Do We Not Need Larger Vision Models?", 2024, section 3.1.

    Args:
        backbone: any module that gives features `(B, D)`, tokens `(B, L, D)` or maps `(B, D, H, W)`.
        images: of any size, or of one that the backbone reads where there is no `tile`.
        tile: the one size `(H, W)` that it reads.
    """
    if tile is None or images.shape[-2:] == tile:
        return pool(backbone(images))
    height, width = (int(length) for length in images.shape[-2:])  # how many tiles is part of a graph
    if height < tile[0] or width < tile[1]:
        factor = max(tile[0] / height, tile[1] / width)
        height, width = max(tile[0], round(height * factor)), max(tile[1], round(width * factor))
        images = resize(images, [height, width])
    tiles = [
        images[..., top : top + tile[0], left : left + tile[1]]
        for top in _offsets(height, tile[0])
        for left in _offsets(width, tile[1])
    ]
    features = pool(backbone(torch.cat(tiles)))
    return features.unflatten(0, (len(tiles), images.shape[0])).mean(dim=0)  # a graph would make len() a constant


def pool(features: Tensor) -> Tensor:
    """Features `(B, D)`: the mean of tokens `(B, L, D)` or of a map `(B, D, H, W)`, or as they are."""
    return features if features.dim() == 2 else features.mean(dim=1 if features.dim() == 3 else (2, 3))


torch.fx.wrap("pool")  # what it does depends on the tensor, which a symbolic trace does not have


def _offsets(length: int, tile: int) -> list[int]:
    """Where the fewest tiles begin that cover a length, evenly spaced."""
    count = -(-length // tile)
    return [index * (length - tile) // max(1, count - 1) for index in range(count)]
