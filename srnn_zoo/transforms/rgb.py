"""Any PIL image to an upright one in RGB, by the same rules wherever images come in."""

from __future__ import annotations

import math

from PIL import ExifTags, Image, ImageOps

_KINDS = {"1": "black and white", "L": "greyscale", "CMYK": "CMYK", "YCbCr": "YCbCr", "LAB": "Lab", "HSV": "HSV"}
_KINDS |= {"I": "32-bit greyscale", "F": "floating-point greyscale"}
_KINDS |= dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), "16-bit greyscale")


class NotFiniteError(ValueError):
    """A floating-point image with values that are not finite."""


class ChannelsError(TypeError):
    """An image for a model that reads other channels than images have."""


def sideways(image: Image.Image) -> bool:
    """Whether an image is upright, as EXIF says, only after a quarter turn."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)


def upright_rgb(image: Image.Image, copy: bool = True) -> tuple[Image.Image, tuple[str, ...]]:
    """The image upright, as EXIF says, in mode RGB, and a note where that changed more than the encoding.

    Greyscale, palette, CMYK, 16-bit, 32-bit and floating-point images are converted; transparent ones are shown on
    white. Deep images are scaled to 8 bits: from 0 to the smallest of their usual ranges that holds their values
    (1 for floating point, 255, 65,535), else to their own greatest value; negative values lower the 0. Without `copy`
    an image that is upright and RGB already may be returned as it is, not yet decoded.

    Raises:
        NotFiniteError: for a floating-point image with values that are not finite.
    """
    source = image.format
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode == "RGB":
        return image.copy() if copy and image.format is not None else image, ()  # a file may be closed
    if mode == "F" or mode.startswith("I"):
        sixteen_bits = mode.startswith("I;16") or source == "PNG"  # older Pillow reads 16-bit PNG files as "I"
        grey = _to_8_bits(image, (65535.0,) if sixteen_bits else (1.0, 255.0, 65535.0)[mode == "I" :])
        return grey.convert("RGB"), (f"{_KINDS.get(mode, mode)}, scaled to 8 bits",)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() == (255, 255):
            return rgba.convert("RGB"), ()
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB"), ("transparent, shown on white",)
    kind = _KINDS.get(mode)
    return image.convert("RGB"), (f"{kind}, converted to RGB",) if kind else ()


def _to_8_bits(image: Image.Image, ranges: tuple[float, ...]) -> Image.Image:
    import numpy as np

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise NotFiniteError("has values that are not finite")
    bottom, top = min(low, 0.0), next((top for top in ranges if max(high, -low) <= top), high)
    scale = 255.0 / (top - bottom)
    return image.convert("F").point(lambda value: value * scale + (0.0 - bottom) * scale).convert("L")
