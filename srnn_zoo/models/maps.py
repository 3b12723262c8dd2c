"""Maps of levels: what the features of a level are pooled from, and what the layers of the backbone give."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from srnn_zoo.transforms.levels import build_level
from srnn_zoo.transforms.packed import PackedPyramid
from srnn_zoo.transforms.views import WHOLE

from .norms import select_level
from .reading import Images, LevelReader
from .sizes import pool
from .views import activation_map


class LevelMaps(LevelReader):
    """The maps of every level, before pooling, and timm's `forward_intermediates` at any level."""

    def level_maps(self, x: Images) -> list[Tensor]:
        """The map of every level that its features are pooled from, smallest level first: for class activation maps.

        Args:
            x: images of one size, as for the model: a tensor, its levels, or a `Pyramid`.

        Returns:
            `(B, C, h_s, w_s)` of each level; tokens as the map of their patches. Where the backbone's head only takes
            the mean (ResNet, DenseNet, EfficientNet, Swin, …), the mean over the positions is C(x_s), and C is D.
            Other heads normalise the mean (ConvNeXt), widen it (MobileNetV3, VGG), or read a class token (ViT).

        Raises:
            ValueError: where the backbone has no map of a level, or reads it in tiles.
            TypeError: for images of mixed heights.

        Examples:
            >>> maps = model.level_maps(images)
            >>> activation = torch.einsum("bchw,kc->bkhw", maps[-1], model.fc.weight)
        """
        _check_one_size(x)
        return [self._level_map(level, index) for index, level in enumerate(self.levels(x))]

    def activation_map(self, level: Tensor, classes: Tensor, index: int | None = None) -> Tensor:
        """How much each position of a level speaks for a class: a class activation map, `(B, h, w)`.

        Its mean, plus the classifier's bias, is the class's logit F(C(x_s)) where the backbone's head takes the mean of
        its map alone. Source: Zhou et al., "Learning Deep Features for Discriminative Localization", 2016.

        Args:
            level: one level, `(B, C, H, W)`.
            classes: `(B,)`, the indices of the classes.
            index: of the level, 0 for the smallest, by default the last.

        Raises:
            ValueError: where the backbone has no map of the level, or the model no classifier.

        Examples:
            >>> heat = model.activation_map(images, model([images]).argmax(1))
        """
        model = cast(Any, self)
        if model.num_classes == 0:
            raise ValueError("the model has no classifier (num_classes=0), and so no class activation map")
        self.check_has_map(level)
        return activation_map(self.position_features(level, index)[1], model.classifier(index), classes)

    def _level_map(self, level: Tensor, index: int) -> Tensor:
        self.check_has_map(level)
        select_level(self.backbone, index)
        try:
            found = getattr(self.backbone, "forward_features", self.backbone)(level)
            if isinstance(found, Tensor) and found.dim() == 3 and hasattr(self.backbone, "forward_intermediates"):
                found = _map_of_tokens(self.backbone, level)
            elif getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
                found = found.permute(0, 3, 1, 2)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            self.explain(error, (level.shape[-2], level.shape[-1]), level.dtype)
        if isinstance(found, Tensor) and found.dim() == 4:
            return found
        raise ValueError(
            f"{self.pretrained_cfg['architecture']} has no map of a level that its features are pooled from"
        )

    def forward_intermediates(
        self,
        x: Images,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        level: int | None = None,
    ) -> Any:
        """The maps of a level that the backbone's layers give, as timm's method of the same name; arguments as there.

        Args:
            level: which, 0 for the smallest; by default the largest.

        Returns:
            The maps with `intermediates_only` (no other level is read then), else `(forward_features(x), maps)`.

        Raises:
            ValueError: for a level that the images do not have, or that the backbone reads in tiles.
            TypeError: for images of mixed heights.
            RuntimeError: where the backbone has no such method.
        """
        model, backbone = cast(Any, self), cast(Any, self)._backbone_with("forward_intermediates")
        _check_one_size(x)
        options = {"indices": indices, "norm": norm, "output_fmt": output_fmt}
        height = len(x) if isinstance(x, Sequence) else len(self._ratios)
        at = height - 1 if level is None else level
        if not 0 <= at < height:
            raise ValueError(f"level must be 0, the smallest, to {height - 1}; got {level}")
        if intermediates_only:
            if isinstance(x, Sequence) or self._view is not None:
                read = self.levels(x)[at]
            else:
                share = WHOLE if self._shown is None else self._shown[at]
                read = build_level(cast(Tensor, x), self._ratios[at], self.interpolation, self.reads.multiple, share)
            select_level(backbone, at)
            self.check_has_map(read)
            return backbone.forward_intermediates(read, stop_early=stop_early, intermediates_only=True, **options)
        levels = self.levels(x)
        self.check_has_map(levels[at])
        if self.cell.reads == "maps":  # the level is read twice
            final = model.forward_features(x)
            select_level(backbone, at)
            return final, backbone.forward_intermediates(levels[at], intermediates_only=True, **options)
        features = [self.level_features(other, index) for index, other in enumerate(levels) if index != at]
        select_level(backbone, at)
        final, maps = backbone.forward_intermediates(levels[at], **options)
        features.insert(at, pool(backbone.forward_head(final, pre_logits=True)))
        return model.fuse(features), maps


def _map_of_tokens(backbone: Any, images: Tensor) -> Tensor:
    last: Any = partial(backbone.forward_intermediates, images, indices=1, intermediates_only=True)
    try:
        return last(norm=True)[0]
    except AssertionError:  # a backbone without a norm of its tokens
        return last()[0]


def _check_one_size(x: Images) -> None:
    if isinstance(x, PackedPyramid):
        raise TypeError("maps are of images of one size: give the images of a packed pyramid one by one (unpack)")
