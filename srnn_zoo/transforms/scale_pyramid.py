"""An image to its levels: of given sizes, or as many as its own size gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeVar, cast

from PIL import Image
from torch import Tensor

from .levels import pair
from .packed import LazyLevels
from .resizing import ANTIALIASED, Interpolation, check_interpolation, resize
from .views import WHOLE, Ratio, check_zooms, cut, shares, view_size

ImageT = TypeVar("ImageT", Image.Image, Tensor)


class ScalePyramid:
    """The levels of one image, smallest first, each resized from the image and never from another level.

    Takes a PIL image or a tensor `(…, C, H, W)`, uint8 or float, and returns a list of the same kind.

    Args:
        sizes: for every level its short side in pixels, or `(height, width)`; they must grow.
        interpolation: `"bicubic"` or `"bilinear"`, antialiased, or `"gaussian"` (`transforms.resizing.INTERPOLATIONS`).
        zooms: one for each level, 1 or more: it shows `1 / zoom` of the image's height and width, in the middle. With
            zooms the sizes need not grow. By default every level shows the whole image.

    Raises:
        ValueError: for sizes that do not grow, are not positive, or are none, an unknown interpolation, and zooms that
            are less than 1 or not as many as sizes.

    The three kinds of image differ by rounding only, uint8 tensors by at most 2 grey levels from Pillow; and float
    tensors keep bicubic's overshoot, which the others clamp at black and white (docs/pyramids.md has the figures).

    Examples:
        >>> ScalePyramid(sizes=(224, 448))
        ScalePyramid(sizes=(224, 448), interpolation='bicubic')
        >>> [level.shape[1:] for level in ScalePyramid((32, 64))(torch.rand(3, 64, 96))]
        [torch.Size([32, 48]), torch.Size([64, 96])]
        >>> [level.shape[1:] for level in ScalePyramid((32, 32), zooms=(1.0, 1.6))(torch.rand(3, 64, 96))]
        [torch.Size([32, 48]), torch.Size([32, 48])]
    """

    zooms: tuple[float, ...] | None = None

    def __init__(
        self,
        sizes: Sequence[int | Sequence[int]] = (224, 448),
        interpolation: Interpolation = "bicubic",
        zooms: Sequence[float] | None = None,
    ) -> None:
        if not isinstance(sizes, Iterable):
            raise ValueError(f"sizes must be a sequence such as (224, 448); got {sizes!r}")
        pairs = [pair(size) for size in sizes]
        self.sizes = tuple(p if isinstance(size, Sequence) else p[0] for size, p in zip(sizes, pairs, strict=True))
        self.interpolation = check_interpolation(interpolation)
        if not pairs:
            raise ValueError("sizes must name at least one level, such as (224, 448); got none")
        self.zooms = None if zooms is None else check_zooms(zooms, len(pairs))
        if zooms is None and any(a[0] > b[0] or a[1] > b[1] or a == b for a, b in itertools.pairwise(pairs)):
            raise ValueError(f"sizes must grow, smallest first; got {self.sizes}")

    @staticmethod
    def variable(
        base_size: int = 224, factor: float = 2.0, max_height: int | None = 4, **options: Any
    ) -> VariablePyramid:
        """A transform whose number of levels follows from an image's own size; arguments as for `VariablePyramid`."""
        return VariablePyramid(base_size, factor, max_height, **options)

    def __call__(self, image: ImageT) -> Sequence[ImageT]:
        shown = shares(self.zooms) or [WHOLE] * len(self.sizes)
        return [self._level(_cut(image, share), size) for size, share in zip(self.sizes, shown, strict=True)]

    @property
    def image_size(self) -> tuple[int, int]:
        """`(H, W)` of the largest level; with zooms of an image, of which the finest level is a part as it is."""
        pairs, zooms = map(pair, self.sizes), self.zooms or (1.0,) * len(self.sizes)
        sizes = [(height * zoom, width * zoom) for (height, width), zoom in zip(pairs, zooms, strict=True)]
        return round(max(height for height, _ in sizes)), round(max(width for _, width in sizes))

    def _level(self, image: ImageT, size: int | tuple[int, int]) -> ImageT:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        target = target_size(*_image_size(image), size)
        if self.interpolation in ANTIALIASED:
            mode = InterpolationMode(self.interpolation)
            return cast(ImageT, F.resize(cast(Any, image), list(target), interpolation=mode, antialias=True))
        if isinstance(image, Tensor):
            return cast(ImageT, _resize(image, target, self.interpolation))
        if image.mode not in ("L", "RGB"):
            raise ValueError(
                f"interpolation {self.interpolation!r} needs an L or RGB image; got mode {image.mode}: convert it first"
            )
        level = _resize(F.pil_to_tensor(image), target, self.interpolation)
        return cast(ImageT, F.to_pil_image(level, mode=image.mode))

    def __repr__(self) -> str:
        zooms = "" if self.zooms is None else f", zooms={self.zooms}"
        return f"{type(self).__name__}(sizes={self.sizes}, interpolation={self.interpolation!r}{zooms})"


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
        sides: list[int] = []  # those that fit, and `min_height` at least
        while len(sides) != self.max_height:
            side = round(self.base_size * self.factor ** len(sides))
            if side > min(height, width) and len(sides) >= self.min_height:
                break
            sides.append(side)
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

    def _cropped_level(self, image: ImageT, size: tuple[int, int]) -> ImageT:
        """A level of the largest centre crop that has its aspect ratio."""
        from torchvision.transforms.v2 import functional as F

        height, width = _image_size(image)
        crop = min(height, width * size[0] // size[1]), min(width, height * size[1] // size[0])
        cropped = F.center_crop(cast(Any, image), [max(1, length) for length in crop])
        return self._level(cast(ImageT, cropped), size)


def _cut(image: ImageT, share: Ratio) -> ImageT:
    """What a level shows of an image: whole pixels in its middle."""
    if isinstance(image, Tensor):
        return cut(image, share)
    height, width = view_size(*_image_size(image), share)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image if share == WHOLE else image.crop((left, top, left + width, top + height))


def _image_size(image: Any) -> tuple[int, int]:
    """`(H, W)` of a PIL image or tensor."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    if not isinstance(image, Tensor):
        raise TypeError(f"ScalePyramid reads a PIL image or a tensor; got {type(image).__name__}")
    return image.shape[-2], image.shape[-1]


def target_size(height: int, width: int, size: int | tuple[int, int]) -> tuple[int, int]:
    """A short side or `(height, width)` as `(height, width)`; the aspect ratio is kept as torchvision keeps it."""
    if not isinstance(size, int):
        return size
    long = max(1, int(size * max(height, width) / min(height, width)))
    return (size, long) if height <= width else (long, size)


def _resize(image: Tensor, target: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """A level of an image `(…, C, H, W)`, in its own dtype."""
    images = image.reshape(-1, *image.shape[-3:])
    if image.is_floating_point():
        level = resize(images, list(target), interpolation)
    else:
        level = resize(images.float(), list(target), interpolation).round().clamp(0, 255).to(image.dtype)
    return level.reshape(*image.shape[:-2], *target)
