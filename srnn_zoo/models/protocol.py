"""The part of timm's model protocol that an SRNN answers for its backbone: checkpointing, groups, maps, sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from timm.layers import use_reentrant_ckpt
from torch import nn

from srnn_zoo.transforms.packed import PackedPyramid
from srnn_zoo.transforms.pyramid import build_levels, pair

from .backbone import prefix_group_matcher
from .norms import select_level

if TYPE_CHECKING:
    from .srnn import SRNN

__all__ = ["TimmProtocol"]


class TimmProtocol:
    """What timm's optimisers, scripts and `features_only` ask of an SRNN, beside its forward."""

    backbone: nn.Module
    fc: nn.Module

    def get_classifier(self) -> nn.Module:
        """F, the classifier (of the last level, where every level has its own)."""
        return self.fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in the backbone. Non-reentrant only, as the levels share the backbone.

        With a batch norm for each level, a level is one checkpoint; else the backbone's own blocks are.
        """
        if enable and use_reentrant_ckpt():
            raise ValueError("an SRNN needs non-reentrant checkpointing: unset TIMM_REENTRANT_CKPT")
        model = cast("SRNN", self)
        if model.norm == "per_level":
            model.checkpoints_levels = enable
        else:
            cast(Any, self.backbone).set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from stem to head, for layer-wise learning rates: the backbone's.

        The cell and the classifiers match none of them, which timm takes for the last group.
        """
        return prefix_group_matcher(cast(Any, self.backbone).group_matcher(coarse=coarse))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: the backbone's."""
        names = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in names()}

    @property
    def set_input_size(self) -> Any:
        """timm's `set_input_size(img_size)`, for the largest level; only where the backbone has it."""
        inner = cast(Any, self.backbone).set_input_size
        model = cast("SRNN", self)

        def set_input_size(img_size: int | tuple[int, int], **kwargs: Any) -> None:
            size = pair(img_size)
            smallest = model.level_sizes(size)[0]
            inner(img_size=smallest, **kwargs)
            model._stored_args = {**model._stored_args, "backbone_img_size": smallest}
            model.pretrained_cfg["input_size"] = (model.pretrained_cfg["input_size"][0], *size)

        return set_input_size

    def forward_intermediates(
        self,
        x: Any,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Spatial maps of the largest level, as timm's method of the same name; arguments as there.

        Returns:
            The maps with `intermediates_only` (no other level is read then), else `(forward_features(x), maps)`.
        """
        model = cast("SRNN", self)
        backbone = self._backbone_with("forward_intermediates")
        if isinstance(x, PackedPyramid):
            raise TypeError("maps are of images of one size: give the images of a packed pyramid one by one (unpack)")
        options = {"indices": indices, "norm": norm, "output_fmt": output_fmt}
        if intermediates_only:
            whole = [(1, 1)]
            largest = x[-1] if isinstance(x, Sequence) else build_levels(x, whole, multiple=model.size_multiple)[0]
            select_level(backbone, len(x) - 1 if isinstance(x, Sequence) else None)
            return backbone.forward_intermediates(largest, stop_early=stop_early, intermediates_only=True, **options)
        *smaller, largest = model.levels(x)
        features = [model.level_features(level, index) for index, level in enumerate(smaller)]
        select_level(backbone, len(smaller))
        final, intermediates = backbone.forward_intermediates(largest, **options)
        features.append(backbone.forward_head(final, pre_logits=True))
        return model.fuse(features), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the backbone's layers after the last of `indices`, as timm's method of the same name.

        What is left gives `forward_intermediates(…, intermediates_only=True)`, and no classification any more.
        """
        backbone = self._backbone_with("prune_intermediate_layers")
        if prune_head:
            cast("SRNN", self).reset_classifier(0, "")
        return backbone.prune_intermediate_layers(indices, prune_norm=prune_norm, prune_head=prune_head)

    def _backbone_with(self, method: str) -> Any:
        """The backbone, or an error where it lacks an optional part of timm's protocol."""
        if not hasattr(self.backbone, method):
            architecture = cast("SRNN", self).pretrained_cfg["architecture"]
            raise RuntimeError(f"backbone {architecture!r} has no {method} in timm")
        return self.backbone
