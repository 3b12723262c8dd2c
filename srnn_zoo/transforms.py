"""Transforms: an image to its levels, and the train and eval presets that belong to a model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor

from .packing import LazyLevels
from .pyramid import Interpolation, check_interpolation, pair, resize

if TYPE_CHECKING:
    from torchvision.transforms import Compose

    from .model import SRNN

__all__ = ["NormalizeLevels", "ScalePyramid", "VariablePyramid", "create_transform", "levels_transform"]

ImageT = TypeVar("ImageT", Image.Image, Tensor)


class ScalePyramid:
    """The levels of one image, smallest first, each resized from the image and never from another level.

    Takes a PIL image or a tensor `(…, C, H, W)`, uint8 or float, and returns a list of the same kind.

    Args:
        sizes: for every level its short side in pixels, or `(height, width)`; they must grow.
        interpolation: `"bicubic"` or `"bilinear"`, antialiased, or `"gaussian"` (`srnn_zoo.pyramid.resize`).

    Raises:
        ValueError: for sizes that do not grow, are not positive, or are none, and an unknown interpolation.

    The three kinds of image agree but for rounding, uint8 tensors within 2 grey levels of Pillow; and float tensors
    keep bicubic's overshoot, which the others clamp at black and white (docs/pyramids.md has the figures).

    Examples:
        >>> ScalePyramid(sizes=(224, 448))
        ScalePyramid(sizes=(224, 448), interpolation='bicubic')
        >>> [level.shape[1:] for level in ScalePyramid((32, 64))(torch.rand(3, 64, 96))]
        [torch.Size([32, 48]), torch.Size([64, 96])]
    """

    def __init__(
        self, sizes: Sequence[int | Sequence[int]] = (224, 448), interpolation: Interpolation = "bicubic"
    ) -> None:
        if not isinstance(sizes, Iterable):
            raise ValueError(f"sizes must be a sequence such as (224, 448); got {sizes!r}")
        pairs = [pair(size) for size in sizes]
        self.sizes = tuple(p if isinstance(size, Sequence) else p[0] for size, p in zip(sizes, pairs, strict=True))
        self.interpolation = check_interpolation(interpolation)
        if not pairs:
            raise ValueError("sizes must name at least one level, such as (224, 448); got none")
        if any(a[0] > b[0] or a[1] > b[1] or a == b for a, b in itertools.pairwise(pairs)):
            raise ValueError(f"sizes must grow, smallest first; got {self.sizes}")

    @staticmethod
    def variable(
        base_size: int = 224, factor: float = 2.0, max_height: int | None = 4, **options: Any
    ) -> VariablePyramid:
        """A transform whose number of levels follows from an image's own size; arguments as for `VariablePyramid`."""
        return VariablePyramid(base_size, factor, max_height, **options)

    def __call__(self, image: ImageT) -> Sequence[ImageT]:
        return [self._level(image, size) for size in self.sizes]

    def _level(self, image: ImageT, size: int | tuple[int, int]) -> ImageT:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        target = _target_size(*_image_size(image), size)
        if self.interpolation != "gaussian":
            mode = InterpolationMode(self.interpolation)
            return cast(ImageT, F.resize(cast(Any, image), list(target), interpolation=mode, antialias=True))
        if isinstance(image, Tensor):
            return cast(ImageT, _gaussian_level(image, target))
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"a Gaussian pyramid needs an L or RGB image; got mode {image.mode}: convert it first")
        return cast(ImageT, F.to_pil_image(_gaussian_level(F.pil_to_tensor(image), target), mode=image.mode))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(sizes={self.sizes}, interpolation={self.interpolation!r})"


@dataclass
class VariablePyramid(ScalePyramid):
    """As many levels of one image as its own size gives: level s has the short side `base_size * factor ** s`.

    The height is the number of levels whose short side is no longer than the image's own, so that nothing is upsampled,
    but at most `max_height`. All levels show the same centre crop of the image at its own resolution: a square, or with
    `keep_aspect` the longest crop whose long side is a multiple of `multiple` at the first level, so that images of
    similar shape have levels of one shape. Other arguments of images and results are as for `ScalePyramid`.

    Args:
        base_size: short side of the first level in pixels.
        factor: from one level to the next.
        max_height: the greatest height; None for no limit.
        min_height: the least height. It is 1 unless a model asks for more (`concat` for as many as it was made with).
        small: what happens to an image too small for `min_height` levels: `"refuse"`, or `"upsample"` to just these.
        keep_aspect: rectangular levels instead of squares.
        multiple: what the long side of a rectangular first level is rounded down to.
        interpolation: as for `ScalePyramid`.
        levels_in_sequence: return `LazyLevels`, which are built one after the other when a model comes to them.

    Raises:
        ValueError: for arguments that make no pyramid; and from a call, for an image that is refused.

    Examples:
        >>> transform = ScalePyramid.variable(base_size=32, max_height=3)
        >>> [[level.shape[-1] for level in transform(torch.rand(3, side, 2 * side))] for side in (32, 70, 500)]
        [[32], [32, 64], [32, 64, 128]]
        >>> transform.level_sizes(70, 200)
        [(32, 32), (64, 64)]
    """

    base_size: int = 224
    factor: float = 2.0
    max_height: int | None = 4
    _: KW_ONLY
    min_height: int = 1
    small: Literal["refuse", "upsample"] = "refuse"
    keep_aspect: bool = False
    multiple: int = 32
    interpolation: Interpolation = "bicubic"
    levels_in_sequence: bool = False

    def __post_init__(self) -> None:
        for name in ("base_size", "max_height", "min_height", "multiple"):
            value = getattr(self, name)
            if (not isinstance(value, int) or value < 1) and (name != "max_height" or value is not None):
                raise ValueError(f"{name} must be a whole number of 1 or more; got {value!r}")
        if self.max_height is not None and self.max_height < self.min_height:
            raise ValueError(f"max_height must be at least min_height, {self.min_height}; got {self.max_height}")
        if not 1 < self.factor < math.inf or round(self.base_size * self.factor) <= self.base_size:
            raise ValueError(f"factor must make a level larger than one of {self.base_size}; got {self.factor}")
        if self.small not in ("refuse", "upsample"):
            raise ValueError(f'small must be "refuse" or "upsample"; got {self.small!r}')
        check_interpolation(self.interpolation)

    def __call__(self, image: ImageT) -> Sequence[ImageT]:
        sizes = self.level_sizes(*_image_size(image))
        levels = LazyLevels(image, sizes, self._cropped_level)
        return levels if self.levels_in_sequence else list(levels)

    def level_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """`(H_s, W_s)` of the levels of an image of that size in pixels; `HeightBatchSampler` groups images by them.

        Raises:
            ValueError: if the image is too small and `small` is `"refuse"`.
        """
        if min(height, width) < 1:
            raise ValueError(f"an image has at least one pixel; got {height} x {width}")
        sides = self._short_sides(min(height, width))
        if sides[-1] > min(height, width) and self.small == "refuse":
            raise ValueError(
                f"an image of {height} x {width} is too small for levels of {' and '.join(map(str, sides))} pixels: "
                'leave it out, choose a smaller base_size, or pass small="upsample"'
            )
        first = self.base_size
        if self.keep_aspect:
            exact = first * max(height, width) // min(height, width)
            first = max(first, exact // self.multiple * self.multiple)
        sizes = [(side, side * first // self.base_size) for side in sides]
        return sizes if height <= width else [(long, short) for short, long in sizes]

    def _short_sides(self, native: int) -> list[int]:
        """Short sides of the levels of an image with that short side: those that fit, and `min_height` at least."""
        sides: list[int] = []
        while self.max_height is None or len(sides) < self.max_height:
            side = round(self.base_size * self.factor ** len(sides))
            if side > native and len(sides) >= self.min_height:
                break
            sides.append(side)
        return sides

    def _cropped_level(self, image: ImageT, size: tuple[int, int]) -> ImageT:
        """A level of the largest centre crop that has its aspect ratio."""
        from torchvision.transforms.v2 import functional as F

        height, width = _image_size(image)
        crop = min(height, width * size[0] // size[1]), min(width, height * size[1] // size[0])
        cropped = F.center_crop(cast(Any, image), [max(1, length) for length in crop])
        return self._level(cast(ImageT, cropped), size)


class NormalizeLevels:
    """Levels of uint8 or float [0, 1] images to normalised float tensors `(C, H_s, W_s)`.

    Args:
        mean: one value a channel, for images in [0, 1].
        std: one value a channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(mean)
        self.std = tuple(std)

    def __call__(self, levels: Sequence[Image.Image | Tensor]) -> Sequence[Tensor]:
        if isinstance(levels, LazyLevels):
            return levels.map(self._normalize)
        return [self._normalize(level) for level in levels]

    def _normalize(self, level: Image.Image | Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional as F

        tensor = F.to_image(level) if isinstance(level, Image.Image) else level
        floats = F.to_dtype(tensor, torch.float32, scale=True)
        return F.normalize(floats, list(self.mean), list(self.std)).as_subclass(Tensor)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mean={self.mean}, std={self.std})"


class ConvertMode:
    """PIL images to the mode a model reads, `"RGB"` or `"L"`; tensors pass."""

    def __init__(self, in_chans: int) -> None:
        self.mode = {1: "L", 3: "RGB"}.get(in_chans)

    def __call__(self, image: Any) -> Any:
        if not isinstance(image, Image.Image) or image.mode == self.mode:
            return image
        if self.mode is None:
            raise TypeError("a PIL image has 1 or 3 channels; give a model of other channels a tensor (C, H, W)")
        return image.convert(self.mode)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.mode!r})"


def create_transform(
    model: SRNN,
    *,
    train: bool = False,
    sizes: Sequence[int | tuple[int, int]] | VariablePyramid | None = None,
    **augmentation: Any,
) -> Compose:
    """The preprocessing that belongs to a model: a PIL image or tensor to a list of normalised levels, smallest first.

    Cropping, interpolation and normalisation follow the model's `pretrained_cfg`, as timm resolves it. There is one
    crop, at the largest level; all levels are resized from it.

    Args:
        model: whose `level_sizes()`, `interpolation` and `pretrained_cfg` are used.
        train: random resized crop, horizontal flip and colour jitter instead of resize and centre crop.
        sizes: sizes of the levels, smallest first, instead of the model's own; or `ScalePyramid.variable(…)`, which
            takes the place of every crop (in training there is the flip and colour jitter).
        **augmentation: for `timm.data.create_transform`, such as `color_jitter=0.2` or `auto_augment="rand-m9"`;
            `interpolation`, `mean` and `std` take the place of the model's own.

    Raises:
        ValueError: for sizes that do not grow, and for random erasing, which timm does after normalisation.

    Examples:
        >>> dataset = torchvision.datasets.ImageFolder(root, create_transform(model, train=True))
        >>> levels, targets = next(iter(DataLoader(dataset, batch_size=32)))
        >>> logits = model(levels)
    """
    from timm.data import resolve_model_data_config

    config = {**resolve_model_data_config(model), "input_size": (model.in_chans, *model.img_size)}
    augmentation.setdefault("interpolation", model.interpolation)
    return levels_transform(config, sizes or model.level_sizes(), train=train, **augmentation)


def levels_transform(
    config: Mapping[str, Any],
    sizes: Sequence[int | Sequence[int]] | VariablePyramid,
    *,
    train: bool = False,
    **augmentation: Any,
) -> Compose:
    """`create_transform` from a config with timm's keys (`input_size`, `mean`, `std`, `crop_pct`, …), without a model.

    Args:
        config: of which the channels, cropping, interpolation and statistics are used; what is missing is as timm's
            configs have it by default (ImageNet's statistics, bicubic, a centre crop of 0.875).
        sizes: sizes of the levels, smallest first, or `ScalePyramid.variable(…)`.
        train: as for `create_transform`.
        **augmentation: as for `create_transform`.
    """
    from timm.data import create_transform as create_timm_transform
    from timm.models import PretrainedCfg
    from torchvision.transforms import Compose

    if any(name.startswith("re_") and value for name, value in augmentation.items()):
        raise ValueError("random erasing is not part of the levels' transform; erase in the training loop")
    config = {**PretrainedCfg().to_dict(), **config, **augmentation}
    in_chans = config["input_size"][0]
    interpolation = config["interpolation"]
    variable = isinstance(sizes, VariablePyramid)
    pyramid = sizes if variable else ScalePyramid(sizes, interpolation=cast(Interpolation, interpolation))
    largest = pair(pyramid.base_size if isinstance(pyramid, VariablePyramid) else pyramid.sizes[-1])
    options = {
        **augmentation,
        "interpolation": "bicubic" if interpolation == "gaussian" else interpolation,
        **{key: config[key] for key in ("crop_pct", "crop_mode", "mean")},
    }
    crop = create_timm_transform(
        (in_chans, *largest),
        is_training=train,
        normalize=False,
        use_prefetcher=False,
        separate=variable and train,
        **options,
    )
    if variable:  # its levels are cropped from the image at its own resolution
        crop = Compose([*crop[0].transforms[1:], *crop[1].transforms] if isinstance(crop, tuple) else [])
    normalize = NormalizeLevels(*(_per_channel(config[key], in_chans) for key in ("mean", "std")))
    return Compose([ConvertMode(in_chans), crop, pyramid, normalize])


def _image_size(image: Any) -> tuple[int, int]:
    """`(H, W)` of a PIL image or tensor."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    if not isinstance(image, Tensor):
        raise TypeError(f"ScalePyramid reads a PIL image or a tensor; got {type(image).__name__}")
    return image.shape[-2], image.shape[-1]


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Statistics for the channels at hand: their mean for each where the model reads other channels than RGB."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _target_size(height: int, width: int, size: int | tuple[int, int]) -> tuple[int, int]:
    """A short side or `(height, width)` as `(height, width)`; the aspect ratio is kept as torchvision keeps it."""
    if not isinstance(size, int):
        return size
    if height <= width:
        return size, max(1, int(size * width / height))
    return max(1, int(size * height / width)), size


def _gaussian_level(image: Tensor, target: tuple[int, int]) -> Tensor:
    """A level of a Gaussian pyramid, in the image's own dtype."""
    images = image.reshape(-1, *image.shape[-3:])
    level = resize(images if image.is_floating_point() else images.float(), list(target), "gaussian")
    if not image.is_floating_point():
        level = level.round().clamp(0, 255).to(image.dtype)
    return level.reshape(*image.shape[:-2], *target)
