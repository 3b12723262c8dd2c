"""WebDataset shards with random access: where each picture lies in its tar file, and which class it has."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["ShardPicture", "index_shards", "shard_files"]

_PICTURES = ("jpg", "png", "webp", "jpeg")  # timm's, and the other name of the first


class ShardPicture(NamedTuple):
    """A picture in a shard.

    Attributes:
        name: of the shard and of the picture in it.
        shard: the tar file.
        offset: where the picture begins in it, bytes.
        size: of the picture, bytes.
        target: index of its class.
    """

    name: str
    shard: str
    offset: int
    size: int
    target: int

    def open(self) -> io.BytesIO:
        """The picture's file, in memory."""
        with Path(self.shard).open("rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))


def shard_files(reader: Any) -> list[Path] | None:
    """The shards of timm's reader of WebDataset, or None where it is another, or they are not all files here."""
    info = getattr(reader, "split_info", None)
    names: Sequence[str] = getattr(info, "filenames", ())
    files = [Path(reader.root, name) for name in names] if names else []
    return files if files and all(file.is_file() for file in files) else None


def index_shards(files: Sequence[Path], label: str = "") -> list[ShardPicture]:
    """Every picture of some shards, in their order.

    Args:
        files: tar files in WebDataset's layout: files whose names agree up to the first dot are one sample.
        label: the entry of `KEY.json` that is the class, negative for pictures to leave out; by default `KEY.cls`.

    Raises:
        ValueError: for a file that is no tar file, and a sample without a picture or class.
    """
    found: list[ShardPicture] = []
    for file in files:
        try:
            with tarfile.open(file) as archive:
                for key, members in _samples(archive):
                    picture = next((members[kind] for kind in _PICTURES if kind in members), None)
                    if picture is None:
                        raise ValueError(f"{file}: {key} has no picture ({', '.join(_PICTURES)})")
                    target = _target(archive, members, label)
                    if target is None:
                        raise ValueError(f"{file}: {key} has no class ({f'{label} in its .json' if label else '.cls'})")
                    if target >= 0:
                        name = f"{file.name}/{picture.name}"
                        found.append(ShardPicture(name, str(file), picture.offset_data, picture.size, target))
        except tarfile.TarError as error:
            raise ValueError(f"{file} is no tar file, or a damaged one: {error}") from error
    return found


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Neighbouring files of one key, by what their names end with."""
    key, members = "", {}
    for member in archive:
        if not member.isfile():
            continue
        folder, _, name = member.name.rpartition("/")
        stem, _, kind = name.partition(".")
        if (own := f"{folder}/{stem}".lstrip("./")) != key and members:
            yield key, members
            members = {}
        key = own
        members[kind.lower()] = member
    if members:
        yield key, members


def _target(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], label: str) -> int | None:
    member = members.get("json" if label else "cls")
    file = None if member is None else archive.extractfile(member)
    if file is None:
        return None
    try:
        return int(json.loads(file.read())[label] if label else file.read())
    except (ValueError, KeyError, TypeError):
        return None
