"""From an image, perhaps a file that is not decoded yet, to the part of it that a model reads."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import torch
from PIL import Image, JpegImagePlugin
from torch import Tensor

from .rgb import ChannelsError, sideways, upright_rgb
from .scale_pyramid import target_size

Notes: TypeAlias = tuple[str, ...]
Read: TypeAlias = Callable[[Image.Image], tuple[Any, Notes]]
"""What is made of an image, of which only the header was read, and what had to be done to read it."""

KEEP = 2  # times as many pixels on each side as the part is resized to; what has more is decoded smaller
_SCALES = (8, 4, 2)  # by which libjpeg decodes smaller, at a fraction of the cost


def first_step(transform: Any) -> tuple[Read, Callable[[Any], Any]]:
    """How a transform of `create_transform` reads a file that is not decoded yet, and what it does after that.

    Any other transform reads the whole image as RGB.
    """
    from torchvision.transforms import Compose

    first, *rest = getattr(transform, "transforms", None) or [transform]
    return (first.read, Compose(rest)) if isinstance(first, ImageAsRead) else (upright_rgb, transform)


def read_by_each(reads: Sequence[Read]) -> Read:
    """Several readings of one file, each as if it were the only one."""

    def read(image: Image.Image) -> tuple[list[Any], Notes]:
        found = [read(undecoded(image)) for read in reads]
        return [part for part, _ in found], found[0][1]

    return read


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
        return self.read(image)[0]

    def read(self, image: Any) -> tuple[Any, Notes]:
        """The image, and what had to be done to read it."""
        if isinstance(image, Tensor):
            return _checked(image), ()
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"a transform takes a PIL image or a tensor (C, H, W); got {type(image).__name__}"
                + (": open it with PIL.Image.open" if isinstance(image, str | os.PathLike) else "")
            )
        if self.mode is None:
            raise ChannelsError(
                f"the model reads {self.in_chans} channels, and image files have 1 or 3: give a tensor "
                f"({self.in_chans}, H, W)"
            )
        return self._as_read(image)

    def _as_read(self, image: Image.Image, copy: bool = True) -> tuple[Any, Notes]:
        rgb, notes = upright_rgb(image, copy)
        return (rgb if self.mode == "RGB" else rgb.convert(self.mode)), notes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.mode!r})"


class TensorAsRead(ImageAsRead):
    """The same, but of a PIL image a uint8 tensor `(C, H, W)`, which is resized several times as fast."""

    def _as_read(self, image: Image.Image, copy: bool = False) -> tuple[Any, Notes]:
        pil, notes = super()._as_read(image, copy)
        return as_tensor(pil), notes


class PartAsRead(TensorAsRead):
    """The same of one part of the image, in the size of the largest level.

    A JPEG file that is not decoded yet, as `PIL.Image.open` gives it, is decoded at 1/2, 1/4 or 1/8 of its size where
    twice the pixels that the part is resized to are left on each side. The image given is not changed by that.

    Args:
        in_chans: as for `ImageAsRead`.
        crop: timm's or torchvision's transform that crops or resizes: `RandomResizedCropAndInterpolation`, `Resize`,
            `ResizeKeepRatio`. Its random numbers are drawn as it draws them.
    """

    def __init__(self, in_chans: int, crop: Any) -> None:
        super().__init__(in_chans)
        self.crop = crop

    def read(self, image: Any) -> tuple[Any, Notes]:
        """The part as a tensor `(C, H, W)`, or `(…, C, H, W)` of a tensor, and what had to be done to read it."""
        if self.mode is None or not is_undecoded_jpeg(image):
            tensor, notes = super().read(image)
            return part_of(self.crop, *tensor.shape[-2:]).of(tensor), notes
        width, height = image.size[::-1] if sideways(image) else image.size
        part = part_of(self.crop, height, width)
        if (scale := part.scale()) > 1:
            image = decoded_smaller(image, scale)
        tensor, notes = super().read(image)
        return part.scaled(scale).of(tensor), notes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.mode!r}, {self.crop})"


class AsPIL:
    """A uint8 tensor `(1 or 3, H, W)` as a PIL image, for transforms that read these; anything else as it is."""

    def __call__(self, image: Any) -> Any:
        from torchvision.transforms.v2 import functional as F

        is_image = image.dtype == torch.uint8 and image.ndim == 3 and len(image) in (1, 3)
        return F.to_pil_image(image) if is_image else image

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Part(NamedTuple):
    """A box of an image in pixels, and the size that it is resized to."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    interpolation: Any

    def scale(self) -> int:
        """How much smaller the image may be decoded: 1, 2, 4 or 8 times."""
        spare = min(self.height / self.size[0], self.width / self.size[1]) / KEEP
        return next((scale for scale in _SCALES if scale <= spare), 1)

    def scaled(self, scale: int) -> Part:
        """The same part of the image that was decoded so much smaller, to the nearest pixel."""
        top, left = round(self.top / scale), round(self.left / scale)
        bottom, right = round((self.top + self.height) / scale), round((self.left + self.width) / scale)
        return self._replace(top=top, left=left, height=bottom - top, width=right - left)

    def of(self, image: Tensor) -> Tensor:
        """The part of a tensor `(…, C, H, W)`, resized."""
        from torchvision.transforms.v2 import functional as F

        box = image[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return F.resize(box, list(self.size), interpolation=self.interpolation, antialias=True)


def has_part(crop: Any) -> bool:
    """Whether `part_of` knows this transform."""
    return type(crop).__name__ in _BOXES and not getattr(crop, "random_scale_prob", 0)


def part_of(crop: Any, height: int, width: int) -> Part:
    """What a transform of timm's or torchvision's takes of an image of that size; `crop` as for `PartAsRead`."""
    box, size = _BOXES[type(crop).__name__](crop, height, width)
    modes = crop.interpolation  # in training there may be several
    return Part(*box, size=size, interpolation=random.choice(modes) if isinstance(modes, tuple | list) else modes)


def _random_box(crop: Any, height: int, width: int) -> tuple[Any, Any]:
    return crop.get_params(_meta(height, width), crop.scale, crop.ratio), crop.size


def _resized(crop: Any, height: int, width: int) -> tuple[Any, Any]:
    size = crop.size if isinstance(crop.size, int) else tuple(crop.size)
    return (0, 0, height, width), target_size(height, width, size)


def _ratio_kept(crop: Any, height: int, width: int) -> tuple[Any, Any]:
    return (0, 0, height, width), tuple(crop.get_params(_meta(height, width), crop.size, crop.longest))


def _meta(height: int, width: int) -> Tensor:
    return torch.empty(1, height, width, device="meta")


_BOXES: dict[str, Callable[[Any, int, int], tuple[Any, Any]]] = {
    "RandomResizedCropAndInterpolation": _random_box,
    "Resize": _resized,
    "ResizeKeepRatio": _ratio_kept,
}
"""The box `(top, left, height, width)` of an image, and what it is resized to, by the name of the transform."""


def is_undecoded_jpeg(image: Any) -> TypeGuard[JpegImagePlugin.JpegImageFile]:
    """Whether an image is a JPEG file of which only the header was read, at its own size."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or getattr(image.fp, "closed", image.fp is None):
        return False
    return bool(image.tile) and not image.decoderconfig and image.tell() == 0


def decoded_smaller(image: Image.Image, scale: int) -> Image.Image:
    """A JPEG file that is not decoded yet at 1/2, 1/4 or 1/8 of its size, to the nearest pixel."""
    width, height = round(image.width / scale), round(image.height / scale)
    small = undecoded(image)
    small.draft(None, (image.width // scale, image.height // scale))
    # libjpeg rounds up; less than half a pixel would shift what lies opposite, once the image is turned
    return small if small.size == (width, height) else small.crop((0, 0, width, height))


def undecoded(image: Image.Image) -> Image.Image:
    """Another view of a JPEG file that is not decoded yet, so that the image itself stays so; any other as it is."""
    if not is_undecoded_jpeg(image) or image.fp is None:
        return image
    image.fp.seek(0)
    return JpegImagePlugin.JpegImageFile(image.fp)


def as_tensor(image: Image.Image | Tensor) -> Tensor:
    """An L or RGB image as a uint8 tensor `(C, H, W)`, with one copy of its pixels; a tensor as it is."""
    import numpy as np

    if isinstance(image, Tensor):
        return image
    pixels = torch.from_numpy(np.asarray(_Pixels(np.asarray(image))))
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]


class _Pixels:
    """The pixels that numpy got from Pillow: nobody else has them, so they need not be read-only."""

    def __init__(self, pixels: Any) -> None:
        self.pixels = pixels
        interface = pixels.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


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
