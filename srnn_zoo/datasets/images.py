"""Image files: each becomes one upright RGB image, or one sentence that says why not."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError

MIN_SIDE = 8  # pixels; below, there is nothing to recognise
MAX_ASPECT = 50  # long side over short side; above, the crop is a speck and the resize is huge

# documents, films and data whose suffixes Pillow knows, but that it cannot show
_NOT_IMAGES = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF"})
_filters_lock = threading.Lock()  # the warning filters belong to the process, and images are read in threads


class ImageError(ValueError):
    """A file that is not a usable image. The message is one sentence that starts with the path."""


class OpenedImage(NamedTuple):
    """An RGB image, upright, and what had to be done to make it one."""

    image: Image.Image
    notes: tuple[str, ...]


class Skipped(NamedTuple):
    """An image that could not be read; the reason is one sentence that starts with its path."""

    path: str
    reason: str


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files named, and every image below the folders named, sorted within each folder.

    In a folder, an image is a file with the suffix of one; hidden files and folders are left out. A file that is named
    is not checked: `open_image` says what is wrong with it.

    Raises:
        ImageError: for a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not os.path.isdir(path):  # noqa: PTH112 -- Path.is_dir raises where it may not look
            found.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if _looks_like_an_image(p, path))
        if not inside:
            raise ImageError(f"{path}: no images in this folder")
        found.extend(inside)
    return found


def open_image(path: str | os.PathLike[str] | BinaryIO, name: str = "") -> OpenedImage:
    """Read an image file as an upright RGB image.

    Args:
        path: the file, or one that is open.
        name: what errors call it; by default its path.

    Orientation follows EXIF. Greyscale, palette, CMYK, 16-bit and floating-point images are converted, transparent
    ones are shown on white, and of an animation the first frame is read; the notes say so.

    Raises:
        ImageError: if the file is missing, not an image, truncated, damaged, absurdly large, thinner than 8 pixels or
            more than 50 times as long as wide, or has values that are not finite.
    """
    name = _name_of(path, name)
    try:
        with _no_bomb_warning():
            file = Image.open(path)
        with file:
            frames = getattr(file, "n_frames", 1)
            _check_shape(name, *file.size)
            _load(file)
            image, notes = _to_rgb(name, ImageOps.exif_transpose(file))
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every kind of error for damaged files
        raise ImageError(f"{name}: {_reason(error, path)}") from None
    return OpenedImage(image, (f"the first of {frames} frames", *notes) if frames > 1 else notes)


def _reason(error: Exception, path: str | os.PathLike[str] | BinaryIO) -> str:
    match error:
        case FileNotFoundError():
            return "no such file"
        case IsADirectoryError():
            return "a folder, not an image"
        case PermissionError():
            return "no permission to read it"
        case Image.DecompressionBombError():
            return f"refused as a decompression bomb ({error})"
        case UnidentifiedImageError():
            empty = isinstance(path, str | os.PathLike) and Path(path).stat().st_size == 0
            return "an empty file" if empty else "not an image that Pillow can read"
        case OSError() if error.strerror:  # the file system's, not a decoder's
            return error.strerror
    return f"truncated or damaged ({' '.join(str(error).split()) or type(error).__name__})"


def open_or_skip(path: str | os.PathLike[str] | BinaryIO, name: str = "") -> OpenedImage | Skipped:
    """`open_image`, but what it cannot read is returned as `Skipped` with the reason; arguments as there."""
    try:
        return open_image(path, name)
    except ImageError as error:
        return Skipped(_name_of(path, name), str(error))


def _name_of(path: str | os.PathLike[str] | BinaryIO, name: str) -> str:
    return name or (os.fspath(path) if isinstance(path, str | os.PathLike) else "an image")


def _looks_like_an_image(path: Path, folder: Path) -> bool:
    kind = Image.registered_extensions().get(path.suffix.lower())
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    is_file = os.path.isfile(path)  # noqa: PTH113 -- Path.is_file raises where it may not look
    return kind is not None and kind not in _NOT_IMAGES and not hidden and is_file


@contextlib.contextmanager
def _no_bomb_warning() -> Iterator[None]:
    """Pillow warns at half the size that it refuses; an image that it does not refuse is read without a warning."""
    with _filters_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _load(file: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    big = limit is not None and file.width * file.height > limit
    with _no_bomb_warning() if big else contextlib.nullcontext():  # TIFF is checked again here
        file.load()


def _check_shape(name: str, width: int, height: int) -> None:
    short, long = sorted((width, height))
    if short < MIN_SIDE:
        raise ImageError(f"{name}: {width} x {height} pixels; an image needs at least {MIN_SIDE} on each side")
    if long > MAX_ASPECT * short:
        raise ImageError(f"{name}: {width} x {height} pixels; one side is over {MAX_ASPECT} times the other")


def _to_rgb(name: str, image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """The image in mode RGB, and a note where that changed more than the encoding."""
    mode = image.mode
    if mode == "RGB":
        return image, ()
    if mode == "F" or mode.startswith("I"):
        return _to_8_bits(name, image).convert("RGB"), (f"{_KINDS.get(mode, mode)}, scaled to 8 bits",)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() == (255, 255):
            return rgba.convert("RGB"), ()
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB"), ("transparent, shown on white",)
    kind = _KINDS.get(mode)
    return image.convert("RGB"), (f"{kind}, converted to RGB",) if kind else ()


_KINDS = {"1": "black and white", "L": "greyscale", "CMYK": "CMYK", "YCbCr": "YCbCr", "LAB": "Lab", "HSV": "HSV"}
_KINDS |= {"I": "32-bit greyscale", "F": "floating-point greyscale"}
_KINDS |= dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), "16-bit greyscale")


def _to_8_bits(name: str, image: Image.Image) -> Image.Image:
    """A 16-bit, integer or float greyscale image as 8 bits: its type's range, or its own where that has none."""
    import numpy as np

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError(f"{name}: has values that are not finite")
    bottom, top = min(low, 0.0), max(high, 1.0 if image.mode == "F" else 65535.0)
    scale = 255.0 / (top - bottom)
    return image.convert("F").point(lambda value: value * scale + (0.0 - bottom) * scale).convert("L")
