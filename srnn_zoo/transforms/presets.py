"""Transforms: the train and eval presets that belong to a model, and the normalisation of its levels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from .packed import LazyLevels
from .pyramid import pair
from .resizing import ANTIALIASED
from .rgb import upright_rgb
from .scale_pyramid import ScalePyramid, VariablePyramid

if TYPE_CHECKING:
    from torchvision.transforms import Compose


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
        return levels.map(self._normalize) if isinstance(levels, LazyLevels) else [*map(self._normalize, levels)]

    def _normalize(self, level: Image.Image | Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional as F

        tensor = F.to_image(level) if isinstance(level, Image.Image) else level
        floats = F.to_dtype(tensor, torch.float32, scale=True)
        return F.normalize(floats, list(self.mean), list(self.std)).as_subclass(Tensor)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mean={self.mean}, std={self.std})"


class ImageAsRead:
    """What a user gives as an image, as a model reads it: PIL images upright and in its mode, tensors checked.

    Args:
        in_chans: channels of the model: PIL images become RGB for 3, greyscale for 1.

    Raises:
        TypeError: for what is no image, and for a PIL image where the model reads neither 1 nor 3 channels.
        ValueError: for a tensor that is neither uint8 nor float from 0 to 1.
    """

    def __init__(self, in_chans: int) -> None:
        self.in_chans = in_chans
        self.mode = {1: "L", 3: "RGB"}.get(in_chans)

    def __call__(self, image: Any) -> Any:
        if isinstance(image, Tensor):
            return _checked(image)
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"a transform takes a PIL image or a tensor (C, H, W); got {type(image).__name__}"
                + (": open it with PIL.Image.open" if isinstance(image, str | os.PathLike) else "")
            )
        if self.mode is None:
            raise TypeError(
                f"the model reads {self.in_chans} channels, and image files have 1 or 3: give a tensor "
                f"({self.in_chans}, H, W)"
            )
        rgb, _ = upright_rgb(image)
        return rgb if self.mode == "RGB" else rgb.convert(self.mode)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.mode!r})"


def _checked(image: Tensor) -> Tensor:
    """The tensor itself, if its values say how bright they are; resizing may have overshot a little."""
    if image.dtype == torch.uint8 or image.numel() == 0:
        return image
    low, high = (value.item() for value in image.aminmax())
    if not image.is_floating_point() or not (low >= -0.5 and high <= 1.5):
        raise ValueError(
            "an image tensor is uint8, from 0 to 255, or float, from 0 to 1; "
            f"got {str(image.dtype).removeprefix('torch.')} from {low:g} to {high:g}"
        )
    return image


def create_transform(
    model: Any,
    *,
    train: bool = False,
    sizes: Sequence[int | tuple[int, int]] | VariablePyramid | None = None,
    **augmentation: Any,
) -> Compose:
    """The preprocessing that belongs to a model: a PIL image or tensor to a list of normalised levels, smallest first.

    Images are turned upright, as EXIF says, and converted to the model's channels by the rules of `upright_rgb`.
    Cropping, interpolation and normalisation follow the model's `pretrained_cfg`, as timm resolves it. There is one
    crop, at the largest level; all levels are resized from it.

    Args:
        model: an SRNN, whose `level_sizes()`, `interpolation` and `pretrained_cfg` are used.
        train: random resized crop, horizontal flip and colour jitter instead of resize and centre crop.
        sizes: sizes of the levels, smallest first, instead of the model's own; or `ScalePyramid.variable(…)`, which
            takes the place of every crop (in training there is the flip and colour jitter).
        **augmentation: for `timm.data.create_transform`, such as `color_jitter=0.2` or `auto_augment="rand-m9"`;
            `interpolation`, `mean` and `std` take the place of the model's own.

    Raises:
        ValueError: for sizes that do not grow, and for random erasing, which timm does after normalisation; and from a
            call, for a tensor that is neither uint8 nor float from 0 to 1.
        TypeError: from a call, for what is no image.

    Examples:
        >>> dataset = torchvision.datasets.ImageFolder(root, create_transform(model, train=True))
        >>> levels, targets = next(iter(DataLoader(dataset, batch_size=32)))
        >>> logits = model(levels)
    """
    from timm.data import resolve_model_data_config

    model = getattr(model, "_orig_mod", model)  # of torch.compile, which has no truth value, as timm asks for
    config = {**resolve_model_data_config(model), "input_size": (model.in_chans, *model.img_size)}
    augmentation.setdefault("interpolation", model.interpolation)
    return levels_transform(config, sizes or model.level_sizes(), train=train, **augmentation)


def image_transform(model: Any, *, train: bool = False, **augmentation: Any) -> Compose:
    """As `create_transform`, but of the largest level alone, one tensor; the model builds the rest on its device.

    Args:
        model: the model whose images these are.
        train: whether to augment.
        **augmentation: as for `create_transform`.
    """
    from torchvision.transforms import Compose

    levels: Any = create_transform(model, train=train, sizes=[model.level_sizes()[-1]], **augmentation)
    return Compose([levels, itemgetter(0)])


def levels_transform(
    config: Mapping[str, Any],
    sizes: Sequence[int | Sequence[int]] | VariablePyramid,
    *,
    train: bool = False,
    **augmentation: Any,
) -> Compose:
    """`create_transform` from a config with timm's keys (`input_size`, `mean`, `std`, `crop_pct`, …), without a model.

    Args:
        config: its channels, cropping, interpolation and statistics are used; what is missing is as timm's
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
    pyramid = sizes if variable else ScalePyramid(sizes, interpolation=interpolation)
    largest = pair(pyramid.base_size if isinstance(pyramid, VariablePyramid) else pyramid.sizes[-1])
    options = {
        **augmentation,
        "interpolation": crop_interpolation(interpolation),
        **{key: config[key] for key in ("crop_pct", "crop_mode", "mean")},
    }
    crop = create_timm_transform(
        (in_chans, *largest), is_training=train, normalize=False, separate=variable and train, **options
    )
    if variable:  # its levels are cropped from the image at its own resolution
        crop = Compose([*crop[0].transforms[1:], *crop[1].transforms] if isinstance(crop, tuple) else [])
    normalize = NormalizeLevels(*(_per_channel(config[key], in_chans) for key in ("mean", "std")))
    return Compose([ImageAsRead(in_chans), crop, pyramid, normalize])


def crop_interpolation(interpolation: str) -> str:
    """How the largest level is cut from an image: as the levels are made, where Pillow knows that."""
    return interpolation if interpolation in ANTIALIASED else "bicubic"


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Statistics for the channels at hand: their mean for each where the model reads other channels than RGB."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
