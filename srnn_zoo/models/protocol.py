"""The part of timm's model protocol that the backbone answers: checkpointing, parameter groups, pruning."""

from __future__ import annotations

from typing import Any, cast

from timm.layers import use_reentrant_ckpt

from .backbone import prefix_group_matcher


class TimmProtocol:
    """What timm's optimisers and scripts call, besides forward."""

    backbone: Any
    fc: Any
    norm: str
    pretrained_cfg: dict[str, Any]

    def get_classifier(self) -> Any:
        """F, the classifier (of the last level, where every level has its own)."""
        return self.fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in the backbone. Non-reentrant only, as the levels share the backbone.

        With a batch norm for each level, or a wrapped network that has no checkpoints, every level is one checkpoint;
        otherwise every block of the backbone is.
        """
        if enable and use_reentrant_ckpt():
            raise ValueError("an SRNN needs non-reentrant checkpointing: unset TIMM_REENTRANT_CKPT")
        if self.norm == "per_level" or not hasattr(self.backbone, "set_grad_checkpointing"):
            self.checkpoints_levels = enable
        else:
            self.backbone.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from stem to head, for layer-wise learning rates: the backbone's.

        The cell and the classifiers match none of them, which timm takes for the last group.
        """
        return prefix_group_matcher(self.backbone.group_matcher(coarse=coarse))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: the backbone's."""
        return {f"backbone.{name}" for name in getattr(self.backbone, "no_weight_decay", set)()}

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the backbone's layers after the last of `indices`, as timm's method of the same name.

        What is left gives `forward_intermediates(…, intermediates_only=True)`, and no classification any more.
        """
        backbone = self._backbone_with("prune_intermediate_layers")
        if prune_head:
            cast(Any, self).reset_classifier(0, "")
        return backbone.prune_intermediate_layers(indices, prune_norm=prune_norm, prune_head=prune_head)

    def _backbone_with(self, method: str) -> Any:
        """The backbone, or an error where it lacks an optional part of timm's protocol."""
        if not hasattr(self.backbone, method):
            raise RuntimeError(f"backbone {self.pretrained_cfg['architecture']!r} has no {method} in timm")
        return self.backbone
