"""From images to the features of their levels: what an SRNN reads, and how its backbone reads it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NoReturn, TypeAlias, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from srnn_zoo.transforms.levels import Levels, build_level, build_levels, level_sizes
from srnn_zoo.transforms.packed import PackedPyramid, in_order
from srnn_zoo.transforms.pyramid import Pyramid, check_levels
from srnn_zoo.transforms.resizing import is_captured
from srnn_zoo.transforms.views import WHOLE, Ratio

from .cost import backbone_gmacs
from .norms import select_level
from .places import placed, same_size
from .sizes import Reads, family, native_size, pool, read
from .views import Glance, View, centers, position_features

Images: TypeAlias = Tensor | Sequence[Tensor] | PackedPyramid
"""The largest level `(B, C, H, W)`, the levels, smallest first, or images of mixed heights."""

InputT = TypeVar("InputT", bound=Images)
ResultT = TypeVar("ResultT")


class NoMapError(ValueError):
    """There is no map of a level, only its features."""


class LevelReader:
    """The levels of an input, and C(x_s) of each."""

    backbone: Any
    cell: Any
    variant: str
    in_chans: int
    interpolation: str
    norm: str
    reads: Reads
    checkpoints_levels: bool
    pretrained_cfg: dict[str, Any]
    zooms: tuple[float, ...] | None
    _ratios: list[Ratio]
    _shown: list[Ratio] | None
    _view: View | None

    def levels(self, x: Images) -> list[Tensor]:
        """The levels of an input, smallest first: built from one tensor, or checked where they are given."""
        if not is_captured(x):  # a check would become a condition of the graph
            self._check(x)
        if isinstance(x, Sequence):
            return list(x)
        if self._view is not None:
            return [level for level, *_ in self._look(cast(Tensor, x))]
        return build_levels(cast(Tensor, x), self._ratios, self.interpolation, self.reads.multiple, self._shown)

    def pyramid_features(self, x: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """What the cell reads of every level of an input, smallest first: as `level_features`."""
        if self._view is None or isinstance(x, Sequence):
            return [self.level_features(level, index) for index, level in enumerate(self.levels(x))]
        if not is_captured(x):
            self._check(x)
        read = enumerate(self._look(cast(Tensor, x)))
        return [self.level_features(level, s, at) if found is None else found for s, (level, at, found) in read]

    def _look(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """The levels of images, each where the one before says; and their features, where the next level needs them."""
        center: Tensor | None = None
        shown = cast("list[Ratio]", self._shown)
        for index, (ratio, share) in enumerate(zip(self._ratios, shown, strict=True)):
            level = build_level(images, ratio, self.interpolation, self.reads.multiple, share, center)
            features, around, center = None, center, None
            if index + 1 < len(shown) and shown[index + 1] != WHOLE:
                features, center = self._features_and_view(level, index, around)
            yield level, around, features

    def _features_and_view(self, level: Tensor, index: int, center: Tensor | None) -> tuple[Tensor, Tensor]:
        """`level_features` of a level, and around which points `(b, 2)` of the image the next level looks."""
        features, positions = self.position_features(level, index)
        shown, view = cast("list[Ratio]", self._shown), cast(View, self._view)
        before, share = (shown[at][0] / shown[at][1] for at in (index, index + 1))
        with torch.no_grad():
            classifier = cast(Any, self).classifier(index)
            glance = Glance(index + 1, share, level, features.detach(), positions.detach(), classifier, center, before)
            following = centers(view, glance, shown[index + 1])
        return self._as_read(features, positions, index, center), following

    def lazy_levels(self, x: Images | Levels) -> Levels | PackedPyramid:
        """The levels of an input, each built when `read_level` reads it."""
        if isinstance(x, PackedPyramid | Levels):
            return x
        self._check(x)
        if isinstance(x, Sequence):
            return Levels(x)
        return Levels([x], self.level_sizes((x.shape[-2], x.shape[-1])), self.interpolation, self._shown)

    def as_input(self, x: InputT) -> InputT:
        """Images, levels or a pyramid on the model's device and in its floating-point dtype."""
        like = next(self.backbone.parameters())
        if isinstance(x, Tensor | Pyramid | PackedPyramid):
            return cast(InputT, x.to(like.device, like.dtype))
        return cast(InputT, [level.to(like.device, like.dtype) for level in cast("Sequence[Tensor]", x)])

    def _check(self, x: Any) -> None:
        """Raise the error that says why this model cannot read an input."""
        if isinstance(x, Sequence):
            check_levels(x, grow=self.zooms is None)
            self.check_images(x[0])
        elif isinstance(x, Tensor):
            self.check_images(x)
            self.level_sizes((x.shape[-2], x.shape[-1]))
        else:
            raise TypeError(
                f"an SRNN reads a tensor, a list of levels or a Pyramid; got {type(x).__name__} "
                "(srnn_zoo.create_transform(model) makes levels of an image)"
            )

    def check_images(self, x: Tensor) -> None:
        """Raise the error that says why this model cannot read images."""
        if x.dim() != 4:
            raise ValueError(f"images must be (B, C, H, W); got shape {tuple(x.shape)}")
        if x.shape[1] != self.in_chans:
            raise ValueError(f"this model reads {self.in_chans} channels; got {x.shape[1]}, shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"images must be float and normalised (srnn_zoo.create_transform); got {x.dtype}")

    def level_features(self, level: Tensor, index: int | None = None, center: Tensor | None = None) -> Tensor:
        """C(x_s): the pooled features `(B, D)` of one level `(B, C, H, W)`; for a cell that reads maps, a map of them.

        That is C(x_s) at each position, shifted where the head does not take the mean alone, so that C(x_s) is the
        mean; and where in the image they lie (`models.places`).

        Args:
            level: its images.
            index: of the level, 0 for the smallest, by default the last; for `norm="per_level"`, and for its zoom.
            center: around which points of the image `(B, 2)` the level lies, for maps; by default the middle.

        Raises:
            ValueError: for a cell that reads maps, where the backbone has no map of the level.
        """
        if self.cell.reads == "maps":
            return self._as_read(*self.position_features(level, index), index, center)
        return self._call(self._backbone_features, level, index)

    def _as_read(self, features: Tensor, positions: Tensor, index: int | None, center: Tensor | None) -> Tensor:
        """What the cell reads of a level, from C(x_s) and the same at each position."""
        if self.cell.reads != "maps":
            return features
        shift = features - positions.mean(dim=(2, 3))
        shown = self._shown or [WHOLE]
        share = shown[-1 if index is None else min(index, len(shown) - 1)]
        return placed(positions + shift[:, :, None, None], share, center)

    def position_features(self, level: Tensor, index: int | None = None) -> tuple[Tensor, Tensor]:
        """C(x_s) of a level, `(B, D)`, and the same at each position of its map, `(B, D, h, w)`.

        The backbone's head reads each position as if it were an image's only one. Where the head takes the mean alone,
        C(x_s) is the mean over the positions.

        Args:
            level: its images, `(B, C, H, W)`.
            index: as for `level_features`.

        Raises:
            ValueError: where the backbone has no map of the level.
        """
        self.check_has_map(level)
        return self._call(self._backbone_features_and_positions, level, index)

    def _call(self, function: Callable[[Tensor, int | None], ResultT], level: Tensor, index: int | None) -> ResultT:
        """What a function that calls the backbone gives; its errors are explained."""
        try:
            if self.checkpoints_levels and torch.is_grad_enabled():
                return cast(ResultT, checkpoint(function, level, index, use_reentrant=False))
            return function(level, index)
        except (torch.OutOfMemoryError, NoMapError):
            raise
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            self.explain(error, (level.shape[-2], level.shape[-1]), level.dtype)

    def explain(self, error: Exception, size: tuple[int, int], dtype: torch.dtype | None = None) -> NoReturn:
        """Raise what a backbone says of a level of another size or dtype than its own as an error that names both."""
        own = next(self.backbone.parameters()).dtype
        if dtype not in (None, own) and not torch.is_autocast_enabled(next(self.backbone.parameters()).device.type):
            raise TypeError(
                f"the model is {_name(own)} and its images are {_name(dtype)}: model.as_input(images) converts them"
            ) from error
        native = native_size(self.backbone)
        if size == native:
            raise error
        net = getattr(self.backbone, "net", None)  # that was wrapped
        name = type(net).__name__ if net else f"{self.pretrained_cfg['architecture']!r} ({family(self.backbone)})"
        raise ValueError(
            f"backbone {name} cannot read a level of "
            f"{size[0]} x {size[1]}; it was made for {native[0]} x {native[1]}. It says: {error}"
        ) from error

    def check_has_map(self, level: Tensor) -> None:
        """Raise an error where the backbone reads a level in tiles, and so has no map of the whole."""
        height, width = level.shape[-2:]
        if (tile := self.reads.tile) not in (None, (height, width)):
            architecture = self.pretrained_cfg["architecture"]
            raise NoMapError(
                f"{architecture} reads a level of {height} x {width} in tiles of {tile[0]} x {tile[1]}, "
                "and has no map of it"
            )

    def _backbone_features(self, level: Tensor, index: int | None) -> Tensor:
        if self.norm == "per_level":
            select_level(self.backbone, index)
        return read(self.backbone, level, self.reads.tile)

    def _backbone_features_and_positions(self, level: Tensor, index: int | None) -> tuple[Tensor, Tensor]:
        if self.norm == "per_level":
            select_level(self.backbone, index)
        found = self.backbone.forward_features(level)
        positions = position_features(self.backbone, found, level)
        if positions is None:
            reason = f"variant {self.variant!r} reads maps, and " if self.cell.reads == "maps" else ""
            architecture = self.pretrained_cfg["architecture"]
            raise NoMapError(f"{reason}{architecture} gives no map of a level, only its features")
        return pool(self.backbone.forward_head(found, pre_logits=True)), positions

    def read_level(
        self, levels: Levels | PackedPyramid, level: int, wanted: Container[int] | None = None, index: int | None = None
    ) -> Tensor:
        """What the cell reads of a level of a batch: as `level_features`, maps of several sizes padded to one.

        Args:
            levels: the batch, from `lazy_levels`.
            level: which of its levels.
            wanted: rows of the images asked for (packed places in a batch of mixed heights), by default all.
            index: as for `level_features`, by default `level`.
        """
        parts, order = list[Tensor](), list[int]()
        for rows, images in levels.groups(level, wanted):
            self.check_images(images)
            at = level if index is None else index
            if self._view is None or isinstance(levels, PackedPyramid):
                parts.append(self.level_features(images, at))
            elif not levels.follows(level):
                parts.append(self.level_features(images, at, levels.center(level, rows)))
            else:
                features, center = self._features_and_view(images, at, levels.center(level, rows))
                levels.look(level + 1, rows, center)
                parts.append(features)
            order += rows
            del images  # or it would live while the next is built
        return in_order(same_size(parts) if self.cell.reads == "maps" else parts, order)

    def level_gmacs(self, size: tuple[int, int]) -> float:
        """GMACs of the backbone on one level `(H, W)` of one image: billions of multiply-accumulates."""
        try:
            return backbone_gmacs(self.backbone, size, self.in_chans, self.reads.tile)
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            self.explain(error, size)

    def level_sizes(self, img_size: tuple[int, int] | None = None) -> list[tuple[int, int]]:
        """`(H_s, W_s)` of the levels built from an image of that size, by default `img_size`.

        Raises:
            ValueError: if the image is too small for these levels.
        """
        height, width = img_size or self.img_size
        return level_sizes(height, width, self._ratios, self.reads.multiple, self._shown)

    def whole_size(self, img_size: tuple[int, int] | None = None) -> tuple[int, int]:
        """`(H, W)` of the tensor that the levels of an image of that size are built from, by default of `img_size`.

        That is the largest level; where levels have zooms, what they are parts of.
        """
        return self.level_sizes(img_size)[-1] if self.zooms is None else img_size or self.img_size

    @property
    def img_size(self) -> tuple[int, int]:
        """`(H, W)` of the image that this model is for: of the largest level; with zooms, of what it is a part of."""
        height, width = self.pretrained_cfg["input_size"][-2:]
        return height, width


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
