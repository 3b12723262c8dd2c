"""Images to answer, without their classes: files, folders, tars, lists of them and data sets, as one list."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from srnn_zoo.transforms.reading import Read

from .images import ImageError, OpenedImage, Skipped, find_images, open_or_skip
from .readers import LabelledFiles, LabelledImages, LabelledShards, open_labelled, reads_file, reads_name
from .shards import ShardImage, find_in_tar


class Item:
    """An image that is not in a file of its own, or the reason why it cannot be read; it has a name."""

    name: str

    def read(self, read: Read) -> OpenedImage | Skipped:
        """Read it; `read` says what is made of it, as for `open_image`."""
        raise NotImplementedError


class TarItem(Item):
    """An image in a tar; its name there stands behind the path of the tar."""

    __slots__ = ("image", "name")

    def __init__(self, image: ShardImage, name: str = "") -> None:
        self.image, self.name = image, name or image.name

    def read(self, read: Read) -> OpenedImage | Skipped:
        try:
            return open_or_skip(self.image.open(), self.name, read)
        except OSError as error:  # of the tar itself
            return Skipped(self.name, f"{self.name}: {error.strerror or error}")


class BytesItem(Item):
    """An image file that something else has read, as bytes, with the path or address that it came from."""

    __slots__ = ("content", "name")

    def __init__(self, name: str, content: bytes) -> None:
        self.name, self.content = name, content

    def read(self, read: Read) -> OpenedImage | Skipped:
        if not self.content:
            return Skipped(self.name, f"{self.name}: an empty file")
        return open_or_skip(io.BytesIO(self.content), self.name, read)


class RowItem(Item):
    """An image of a data set, which is called by its number there."""

    __slots__ = ("images", "index")

    def __init__(self, images: LabelledImages, index: int) -> None:
        self.images, self.index = images, index

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Such as `hfds/food101[7]`."""
        return f"{self.images.source}[{self.index}]"

    def read(self, read: Read) -> OpenedImage | Skipped:
        _, image, _ = self.images.read(self.index, read)
        return Skipped(self.name, image.reason) if isinstance(image, Skipped) else OpenedImage(image, ())


class UnreadItem(Item):
    """What stands in the list for images that nobody can read, such as those of a damaged tar."""

    __slots__ = ("name", "reason")

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason

    def read(self, read: Read) -> Skipped:
        return Skipped(self.name, self.reason)


class Source(NamedTuple):
    """Which split of the data sets is read, and where their files are."""

    split: str | None = None
    data_dir: str | os.PathLike[str] | None = None


def find_inputs(given: Iterable[str], source: Source | None = None) -> list[str | Item]:
    """The images of all that is given, in order: paths, and an `Item` for an image without a file of its own.

    Args:
        given: image files, folders (`find_images`), `.tar` files with images at any depth, such as WebDataset's shards,
            and what else `open_labelled` reads, such as `"hfds/food101"`.
        source: for the data sets among them.

    A tar that cannot be read, or not to its end, gives an item that says so; the others are read.

    Raises:
        ImageError: for a folder or a tar without images.
        ValueError: for a stream, whose images have no numbers, a split or data_dir without a data set, and as
            `open_labelled` says.
    """
    source = source or Source()
    found: list[str | Item] = []
    has_data_set = False
    for one in given:
        if reads_name(one) or reads_file(one):
            has_data_set = True
            found += _data_set(one, source)
        elif one.lower().endswith(".tar") and os.path.isfile(one):  # noqa: PTH113 -- Path.is_file may raise
            found += _tar(one)
        else:
            found += map(str, find_images([one]))
    if not has_data_set and source != Source():
        raise ValueError("a split or data_dir goes with a data set such as hfds/food101; none is given")
    return found


def name_of(item: str | Item) -> str:
    """What an image of `find_inputs` is called."""
    return item if isinstance(item, str) else item.name


def read_list(file: BinaryIO) -> list[str]:
    """The paths in a list: one a line, or with a zero byte after each, as `find -print0` writes them.

    Raises:
        ValueError: for an empty list.
    """
    text = file.read()
    paths = text.split(b"\0") if b"\0" in text else (line.rstrip(b"\r") for line in text.split(b"\n"))
    found = [os.fsdecode(path) for path in paths if path]
    if not found:
        raise ValueError("the list on standard input is empty")
    return found


def _tar(file: str) -> list[Item]:
    path = str(Path(file))
    images, damage = find_in_tar(path)
    if not images and not damage:
        raise ImageError(f"{path}: no images in this tar")
    found: list[Item] = [TarItem(image, f"{path}/{image.name}") for image in images]
    return found + ([UnreadItem(path, damage)] if damage else [])


def _data_set(name: str, source: Source) -> list[str | Item]:
    images = open_labelled(name, split=source.split, data_dir=source.data_dir if reads_name(name) else None)
    if not isinstance(images, LabelledImages):
        raise ValueError(
            f"{name} is a stream, whose images cannot be counted or shared out: give hfds/… or the shards as .tar files"
        )
    if isinstance(images, LabelledFiles):
        return [str(path) for path, _ in images.dataset]
    if isinstance(images, LabelledShards):
        shards: list[Any] = images.dataset
        return [TarItem(image) for image in shards]
    return [RowItem(images, index) for index in range(len(images))]
