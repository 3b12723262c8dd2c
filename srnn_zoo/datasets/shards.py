"""Tar files with random access: where each image lies in one, and in WebDataset's shards which class it has."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .images import looks_like_an_image

_KINDS = ("jpg", "png", "webp", "jpeg")  # those that timm reads, and the other name of the first


class ShardImage(NamedTuple):
    """An image in a shard: its name there, the tar file, where its bytes begin and how many, and its class, or -1."""

    name: str
    shard: str
    offset: int
    size: int
    target: int

    def open(self) -> io.BytesIO:
        """The image file, in memory."""
        with Path(self.shard).open("rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))


def shard_files(reader: Any) -> list[Path]:
    """The shards of timm's reader of WebDataset; none for another reader, or where they are not all files here."""
    names: Sequence[str] = getattr(getattr(reader, "split_info", None), "filenames", ())
    files = [Path(reader.root, name) for name in names]
    return files if all(file.is_file() for file in files) else []


def find_in_tar(file: str) -> tuple[list[ShardImage], str]:
    """Every image in a tar that is not compressed, without its class; and why there are no more, or an empty text.

    In a tar, an image is a file with the suffix of one that is not hidden.
    """
    found: list[ShardImage] = []
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                path = Path(member.name)
                if member.isfile() and looks_like_an_image(path) and not any(p.startswith(".") for p in path.parts):
                    found.append(ShardImage(member.name, file, member.offset_data, member.size, -1))
            damaged = _goes_on(file, archive.offset)
    except tarfile.TarError:
        damaged = True
    except OSError as error:
        return found, f"{file}: {error.strerror or error}"
    where = f"after {found[-1].name}" if found else "from its first byte on"
    return found, f"{file}: no tar file, or one that is damaged {where} (or compressed)" if damaged else ""


def _goes_on(file: str, offset: int) -> bool:
    """Whether something other than the end of a tar stands at this byte; tarfile takes damage for the end."""
    with Path(file).open("rb") as opened:
        opened.seek(offset)
        return bool(opened.read(tarfile.BLOCKSIZE).strip(b"\0"))


def index_shards(files: Sequence[Path], label: str = "") -> list[ShardImage]:
    """Every image of some tar files in WebDataset's layout: files whose names agree up to the first dot are one sample.

    Args:
        files: the tar files.
        label: the entry of `KEY.json` that is the class, negative for images to leave out; by default `KEY.cls`.

    Raises:
        ValueError: for a file that is no tar file, and a sample without an image or class.
    """
    found: list[ShardImage] = []
    for file in files:
        try:
            with tarfile.open(file) as archive:
                for key, members in _samples(archive):
                    image = next((members[kind] for kind in _KINDS if kind in members), None)
                    if image is None:
                        raise ValueError(f"{file}: {key} has no image ({', '.join(_KINDS)})")
                    target = _target(archive, members, label)
                    if target is None:
                        raise ValueError(f"{file}: {key} has no class ({f'{label} in its .json' if label else '.cls'})")
                    if target >= 0:
                        name = f"{file.name}/{image.name}"
                        found.append(ShardImage(name, str(file), image.offset_data, image.size, target))
        except tarfile.TarError as error:
            raise ValueError(f"{file} is no tar file, or a damaged one: {error}") from error
    return found


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Neighbouring files that share a key, by what follows the first dot of their names."""

    def split(member: tarfile.TarInfo) -> tuple[str, str]:
        folder, _, name = member.name.rpartition("/")
        stem, _, kind = name.partition(".")
        return f"{folder}/{stem}".lstrip("./"), kind.lower()

    for key, members in itertools.groupby((m for m in archive if m.isfile()), key=lambda member: split(member)[0]):
        yield key, {split(member)[1]: member for member in members}


def _target(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], label: str) -> int | None:
    member = members.get("json" if label else "cls")
    file = None if member is None else archive.extractfile(member)
    if file is None:
        return None
    try:
        return int(json.loads(file.read())[label] if label else file.read())
    except (ValueError, KeyError, TypeError):
        return None
