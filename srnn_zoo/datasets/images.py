"""Image files: each becomes one upright RGB image, or one sentence that says why not."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from srnn_zoo.transforms.reading import Read
from srnn_zoo.transforms.rgb import ChannelsError, NotFiniteError, upright_rgb

MIN_SIDE = 8  # pixels; below, there is nothing to recognise
MAX_ASPECT = 50  # long side over short side; above, the crop is a speck and the resize is huge

# documents, films and data whose suffixes Pillow knows, but that it cannot show
_NOT_IMAGES = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF"})
# the package that reads files of a suffix; Pillow may open a raw file, but shows its thumbnail
_PACKAGES = {".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif"}
_PACKAGES |= dict.fromkeys(".3fr .arw .cr2 .cr3 .dng .nef .nrw .orf .pef .raf .rw2 .srw".split(), "rawpy")
_filters_lock = threading.Lock()  # the warning filters belong to the process, and images are read in threads


class ImageError(ValueError):
    """A file that is not a usable image. The message is one sentence that starts with the path."""


class OpenedImage(NamedTuple):
    """An RGB image, upright, or what else was read of a file; and what had to be done to make it one."""

    image: Any
    notes: tuple[str, ...]


class Skipped(NamedTuple):
    """An image that could not be read; the reason is one sentence that starts with its path."""

    path: str
    reason: str


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The files named, and every image below the folders named, sorted within each folder.

    In a folder, an image is a file with the suffix of one, also where another package must be installed to read it.
    Hidden files and folders are left out; linked folders are followed, except to a folder that they are in. A file that
    is named is not checked: `open_image` says what is wrong with it.

    Raises:
        ImageError: for a folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not os.path.isdir(path):  # noqa: PTH112 -- Path.is_dir raises where it may not look
            found.append(path)
            continue
        inside = sorted(file for file in _files(path) if looks_like_an_image(file))
        if not inside:
            raise ImageError(f"{path}: no images in this folder")
        found.extend(inside)
    return found


def open_image(path: str | os.PathLike[str] | BinaryIO, name: str = "", read: Read = upright_rgb) -> OpenedImage:
    """Read an image file as an upright RGB image.

    Args:
        path: the file, or one that is open.
        name: what errors call it; by default its path.
        read: what else to make of it, such as the first step of a transform (`transforms.reading.first_step`), which
            decodes no more of a JPEG file than the levels need. It gets the image before it is decoded.

    Orientation and mode are as `transforms.rgb.upright_rgb` makes them, and of an animation the first frame is read;
    the notes say so.

    Raises:
        ImageError: if the file is missing, not an image, truncated, damaged, absurdly large, thinner than 8 pixels or
            more than 50 times as long as wide, or has values that are not finite.
    """
    name = _name_of(path, name)
    try:
        with _open_file(path, name) as file:
            frames = getattr(file, "n_frames", 1)
            _check_shape(name, *file.size)
            with _no_bomb_warning() if _is_big(file) else contextlib.nullcontext():  # TIFF is checked again here
                image, notes = read(file)
    except (ImageError, ChannelsError):
        raise
    except NotFiniteError as error:
        raise ImageError(f"{name}: {error}") from None
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


def open_or_skip(
    path: str | os.PathLike[str] | BinaryIO, name: str = "", read: Read = upright_rgb
) -> OpenedImage | Skipped:
    """`open_image`, but what it cannot read is returned as `Skipped` with the reason; arguments as there."""
    try:
        return open_image(path, name, read)
    except ImageError as error:
        return Skipped(_name_of(path, name), str(error))


def _name_of(path: str | os.PathLike[str] | BinaryIO, name: str) -> str:
    return name or (os.fspath(path) if isinstance(path, str | os.PathLike) else "an image")


def _files(folder: str | Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files below a folder that are not hidden; `above` are the real paths of the folders that it is in."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files(entry.path, (*above, real))
            elif entry.is_file():
                yield Path(entry.path)


def looks_like_an_image(path: Path) -> bool:
    """Whether a file has the suffix of an image, also where another package must be installed to read it."""
    suffix = path.suffix.lower()
    return suffix in _PACKAGES or Image.registered_extensions().get(suffix, "PDF") not in _NOT_IMAGES


def _open_file(path: str | os.PathLike[str] | BinaryIO, name: str) -> Image.Image:
    """The image of a file, which is read later, by Pillow or the package that knows its kind."""
    suffix = ""
    if isinstance(path, str | os.PathLike):
        path = os.fspath(path)
        suffix = Path(path).suffix.lower() if os.path.isfile(path) else ""  # noqa: PTH113 -- Path.is_file may raise
    if package := _PACKAGES.get(suffix):
        try:
            module = importlib.import_module(package.replace("-", "_"))
        except ImportError:
            kind = "a camera's raw file" if package == "rawpy" else f"a {suffix[1:].upper()} image"
            raise ImageError(f"{name}: {kind} needs the package {package}: pip install {package}") from None
        if package == "rawpy":
            with module.imread(path) as raw:
                return Image.fromarray(raw.postprocess())
        getattr(module, "register_heif_opener", lambda: None)()
    with _no_bomb_warning():
        return Image.open(path)


@contextlib.contextmanager
def _no_bomb_warning() -> Iterator[None]:
    """Pillow warns at half the size that it refuses; an image that it does not refuse is read without a warning."""
    with _filters_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _is_big(file: Image.Image) -> bool:
    return Image.MAX_IMAGE_PIXELS is not None and file.width * file.height > Image.MAX_IMAGE_PIXELS


def _check_shape(name: str, width: int, height: int) -> None:
    short, long = sorted((width, height))
    if short < MIN_SIDE:
        raise ImageError(f"{name}: {width} x {height} pixels; an image needs at least {MIN_SIDE} on each side")
    if long > MAX_ASPECT * short:
        raise ImageError(f"{name}: {width} x {height} pixels; one side is over {MAX_ASPECT} times the other")
