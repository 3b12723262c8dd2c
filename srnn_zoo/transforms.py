"""Transforms: an image to its levels, and the train and eval presets that belong to a model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor

from .pyramid import Interpolation, check_interpolation, pair, resize

if TYPE_CHECKING:
    from torchvision.transforms import Compose

    from .model import SRNN

__all__ = ["NormalizeLevels", "ScalePyramid", "create_transform", "levels_transform"]

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

    def __call__(self, image: ImageT) -> list[ImageT]:
        return [self._level(image, size) for size in self.sizes]

    def _level(self, image: ImageT, size: int | tuple[int, int]) -> ImageT:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        if not isinstance(image, Image.Image | Tensor):
            raise TypeError(f"ScalePyramid reads a PIL image or a tensor; got {type(image).__name__}")
        height, width = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[-2:]
        target = _target_size(height, width, size)
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


class NormalizeLevels:
    """Levels of uint8 or float [0, 1] images to normalised float tensors `(C, H_s, W_s)`.

    Args:
        mean: one value a channel, for images in [0, 1].
        std: one value a channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(mean)
        self.std = tuple(std)

    def __call__(self, levels: Sequence[Image.Image | Tensor]) -> list[Tensor]:
        from torchvision.transforms.v2 import functional as F

        tensors = [F.to_image(level) if isinstance(level, Image.Image) else level for level in levels]
        floats = [F.to_dtype(cast(Tensor, x), torch.float32, scale=True) for x in tensors]
        return [F.normalize(x, list(self.mean), list(self.std)).as_subclass(Tensor) for x in floats]

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
    sizes: Sequence[int | tuple[int, int]] | None = None,
    **augmentation: Any,
) -> Compose:
    """The preprocessing that belongs to a model: a PIL image or tensor to a list of normalised levels, smallest first.

    Cropping, interpolation and normalisation follow the model's `pretrained_cfg`, as timm resolves it. There is one
    crop, at the largest level; all levels are resized from it.

    Args:
        model: whose `level_sizes()`, `interpolation` and `pretrained_cfg` are used.
        train: random resized crop, horizontal flip and colour jitter instead of resize and centre crop.
        sizes: sizes of the levels, smallest first, instead of the model's own.
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
    config: Mapping[str, Any], sizes: Sequence[int | Sequence[int]], *, train: bool = False, **augmentation: Any
) -> Compose:
    """`create_transform` from a config with timm's keys (`input_size`, `mean`, `std`, `crop_pct`, …), without a model.

    Args:
        config: of which the channels, cropping, interpolation and statistics are used; what is missing is as timm's
            configs have it by default (ImageNet's statistics, bicubic, a centre crop of 0.875).
        sizes: sizes of the levels, smallest first.
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
    pyramid = ScalePyramid(sizes, interpolation=cast(Interpolation, interpolation))
    largest = pair(pyramid.sizes[-1])
    options = {
        **augmentation,
        "interpolation": "bicubic" if interpolation == "gaussian" else interpolation,
        **{key: config[key] for key in ("crop_pct", "crop_mode", "mean")},
    }
    crop = create_timm_transform(
        (in_chans, *largest), is_training=train, normalize=False, use_prefetcher=False, **options
    )
    normalize = NormalizeLevels(*(_per_channel(config[key], in_chans) for key in ("mean", "std")))
    return Compose([ConvertMode(in_chans), crop, pyramid, normalize])


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
