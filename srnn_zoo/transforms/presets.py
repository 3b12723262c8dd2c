"""Transforms: the train and eval presets that belong to a model, and the normalisation of its levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from .levels import pair
from .packed import LazyLevels
from .reading import AsPIL, ImageAsRead, PartAsRead, TensorAsRead, as_tensor, has_part
from .resizing import ANTIALIASED
from .scale_pyramid import ScalePyramid, VariablePyramid

if TYPE_CHECKING:
    from torchvision.transforms import Compose

_ALSO_OF_TENSORS = {"CenterCrop", "RandomHorizontalFlip", "RandomVerticalFlip"}  # uint8 as well, to the same values


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
        tensor = as_tensor(level)
        white = 1.0 if tensor.is_floating_point() else float(torch.iinfo(tensor.dtype).max)
        mean, std = (
            tensor.new_tensor([white * value for value in values], dtype=torch.float32).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        floats = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        return floats.sub_(mean).div_(std).as_subclass(Tensor)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mean={self.mean}, std={self.std})"


def create_transform(
    model: Any,
    *,
    train: bool = False,
    sizes: Sequence[int | tuple[int, int]] | VariablePyramid | None = None,
    exact: bool = False,
    **augmentation: Any,
) -> Compose:
    """The preprocessing that belongs to a model: a PIL image or tensor to a list of normalised levels, smallest first.

    Images are turned upright, as EXIF says, and converted to the model's channels by the rules of `upright_rgb`.
    Cropping, interpolation and normalisation follow the model's `pretrained_cfg`, as timm resolves it. There is one
    crop, at the largest level; all levels are resized from it, and levels with a zoom cut out of it. Where the views of
    a model follow from what it reads (`views="attention"`), the crop is one tensor `(C, H, W)` and no list, as for
    `image_transform`: the model makes the levels.

    A PIL image becomes one uint8 tensor, which is resized several times as fast and rounded in other places; and a JPEG
    file that is not decoded yet, as `PIL.Image.open` gives it, is decoded at 1/2, 1/4 or 1/8 where twice the pixels
    that are needed are left on each side (docs/pyramids.md has the differences, docs/speed.md what it saves).

    Args:
        model: an SRNN, whose `level_sizes()`, `interpolation` and `pretrained_cfg` are used.
        train: random resized crop, horizontal flip and colour jitter instead of resize and centre crop.
        sizes: sizes of the levels, smallest first, instead of the model's own; or `ScalePyramid.variable(…)`, which
            takes the place of every crop (in training there is the flip and colour jitter).
        exact: decode JPEG files in full and resize PIL images with Pillow: every grey level is then as Pillow, timm and
            an exported model's `run.py` have it.
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
    options = {"train": train, "exact": exact, **augmentation}
    if isinstance(sizes, VariablePyramid):
        if model.zooms is not None:
            raise ValueError("a pyramid of variable height shows whole images, and this model's levels have zooms")
        return _transform_of(model, sizes, None, **options)
    given: Sequence[int | tuple[int, int]] = sizes or model.level_sizes()
    if model.views == "center":
        return _transform_of(model, given, model.zooms, **options)
    return _whole_image(model, ScalePyramid(given, zooms=model.zooms).image_size, **options)


def image_transform(
    model: Any,
    *,
    train: bool = False,
    size: tuple[int, int] | None = None,
    exact: bool = False,
    **augmentation: Any,
) -> Compose:
    """As `create_transform`, but of one tensor, from which the model builds the levels on its device.

    It is the largest level; where levels have zooms, what they are parts of.

    Args:
        model: the model whose images these are.
        train: whether to augment.
        size: `(H, W)` of the tensor, instead of the model's own.
        exact: as for `create_transform`.
        **augmentation: as for `create_transform`.
    """
    return _whole_image(model, size or model.whole_size(), train=train, exact=exact, **augmentation)


def _whole_image(model: Any, size: tuple[int, int], **options: Any) -> Compose:
    from torchvision.transforms import Compose

    return Compose([*_transform_of(model, [size], None, **options).transforms, itemgetter(0)])


def _transform_of(model: Any, sizes: Any, zooms: Sequence[float] | None, **options: Any) -> Compose:
    from timm.data import resolve_model_data_config

    model = getattr(model, "_orig_mod", model)  # of torch.compile, which has no truth value, as timm asks for
    config = {**resolve_model_data_config(model), "input_size": (model.in_chans, *model.img_size)}
    return levels_transform(config, sizes, zooms, **{"interpolation": model.interpolation, **options})


def levels_transform(
    config: Mapping[str, Any],
    sizes: Sequence[int | Sequence[int]] | VariablePyramid,
    zooms: Sequence[float] | None = None,
    *,
    train: bool = False,
    exact: bool = False,
    **augmentation: Any,
) -> Compose:
    """`create_transform` from a config with timm's keys (`input_size`, `mean`, `std`, `crop_pct`, …), without a model.

    Args:
        config: its channels, cropping, interpolation and statistics are used; what is missing is as timm's
            configs have it by default (ImageNet's statistics, bicubic, a centre crop of 0.875).
        sizes: sizes of the levels, smallest first, or `ScalePyramid.variable(…)`.
        zooms: of the levels, as for `ScalePyramid`.
        train: as for `create_transform`.
        exact: as for `create_transform`.
        **augmentation: as for `create_transform`.
    """
    from timm.models import PretrainedCfg
    from torchvision.transforms import Compose

    if any(name.startswith("re_") and value for name, value in augmentation.items()):
        raise ValueError("random erasing is not part of the levels' transform; erase in the training loop")
    config = {**PretrainedCfg().to_dict(), **config, **augmentation}
    in_chans, interpolation = config["input_size"][0], config["interpolation"]
    pyramid = sizes if isinstance(sizes, VariablePyramid) else ScalePyramid(sizes, interpolation, zooms)
    steps = _timm_steps(config, pyramid, train, augmentation)
    normalize = NormalizeLevels(*(_per_channel(config[key], in_chans) for key in ("mean", "std")))
    steps = [ImageAsRead(in_chans), *steps] if exact else _on_tensors(in_chans, steps)
    return Compose([*steps, pyramid, normalize])


def _timm_steps(
    config: Mapping[str, Any], pyramid: ScalePyramid, train: bool, augmentation: Mapping[str, Any]
) -> list[Any]:
    """timm's transforms of an image to its largest level."""
    from timm.data import create_transform as create_timm_transform

    variable = isinstance(pyramid, VariablePyramid)
    largest = pair(pyramid.base_size) if isinstance(pyramid, VariablePyramid) else pyramid.image_size
    options = {
        **augmentation,
        "interpolation": crop_interpolation(config["interpolation"]),
        **{key: config[key] for key in ("crop_pct", "crop_mode", "mean")},
    }
    separate = variable and train
    timms: Any = create_timm_transform(
        (config["input_size"][0], *largest), is_training=train, normalize=False, separate=separate, **options
    )
    if variable:  # its levels are cropped from the image at its own resolution
        return [*timms[0].transforms[1:], *timms[1].transforms] if separate else []
    return [step for step in timms.transforms if type(step).__name__ != "MaybePILToTensor"]


def _on_tensors(in_chans: int, steps: list[Any]) -> list[Any]:
    """The same on a uint8 tensor, which the first step makes of an image; what only Pillow can do is done by Pillow."""
    from timm.data.transforms import MaybePILToTensor

    crop, rest = (steps[:1], steps[1:]) if steps and has_part(steps[0]) else ([], steps)
    pil = any(type(step).__name__ not in _ALSO_OF_TENSORS for step in rest)
    if crop:
        read = [PartAsRead(in_chans, crop[0]), *([AsPIL()] if pil else [])]
    else:
        read = [ImageAsRead(in_chans) if pil else TensorAsRead(in_chans)]
    return [*read, *rest, *([MaybePILToTensor()] if pil else [])]


def crop_interpolation(interpolation: str) -> str:
    """How the largest level is cut from an image: as the levels are made, where Pillow knows that."""
    return interpolation if interpolation in ANTIALIASED else "bicubic"


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Statistics for the channels at hand: their mean for each where the model reads other channels than RGB."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
