"""The three splits that a comparison needs: images to fit to, images that choose, and images that measure."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Subset

from srnn_zoo.datasets.readers import named_prefix
from srnn_zoo.datasets.splits import open_data, open_split

StrPath = str | os.PathLike[str]

_FEW = 100  # test images; with fewer, an interval may be wider than ±10 points


class ComparedImages(NamedTuple):
    """The images of a comparison.

    Attributes:
        name: of the data set.
        classes: names of the training split's classes.
        splits: `train`, `val` and `test`.
        halved: whether the last two are halves of one split.
    """

    name: str
    classes: list[str]
    splits: dict[str, Any]
    halved: bool

    def versions(self) -> dict[str, str]:
        """For each split what changes with its files, so that nothing that is kept can be of others."""
        return {name: _version(split) for name, split in self.splits.items()}

    def caption(self, how: str, measured: int) -> str:
        """What a reader of the table alone must know; `measured` images of the test split could be read."""
        train, val = len(self.splits["train"]), len(self.splits["val"])
        halves = ", halves of one split" if self.halved else ""
        few = " They are few: intervals are wide." if measured < _FEW else ""
        unseen = len(self.classes) - len({target for _, target in _samples(self.splits["test"])})
        missing = (
            f" The test split lacks {unseen} of {len(self.classes)} classes." if 0 < unseen < len(self.classes) else ""
        )
        return (
            f"{self.name}: fitted to {train} images; rates, zooms, exponents and thresholds chosen on {val}, measured "
            f"on {measured}{halves}.{few}{missing} {how} GMACs: of the backbone, mean of a measured image. The last "
            "column: how many points of top-1 accuracy the best SRNN (by the images that choose) within that cost is "
            "better, with a paired t-test over the images."
        )


def open_images(
    data: StrPath, test: StrPath | None, data_dir: StrPath | None, val_fraction: float | None = None
) -> ComparedImages:
    """The three splits; where there is no test split, the validation split is halved."""
    opened = open_data(data, data_dir=data_dir, val_fraction=val_fraction)
    splits: dict[str, Any] = {"train": opened.train, "val": opened.val}
    prefix = named_prefix(data)
    if test is not None or (Path(data) / "test").is_dir() or (prefix and prefix != "torch/"):  # has two splits
        where, split = (data, "test") if test is None else (test, "")
        try:
            splits["test"] = open_split(where, split, opened.train.classes, data_dir=data_dir)
        except ValueError:
            if not prefix or test is not None:  # else the data set has no such split
                raise
        else:
            return ComparedImages(opened.name, opened.train.classes, splits, False)
    order = list(range(len(opened.val)))
    if samples := _samples(opened.val):
        order.sort(key=lambda index: samples[index][1])  # class by class
    splits |= {"val": Half(opened.val, order[0::2]), "test": Half(opened.val, order[1::2])}
    return ComparedImages(opened.name, opened.train.classes, splits, True)


class Half(Subset[Any]):
    """Some images of a split, with its transform."""

    dataset: Any

    @property
    def transform(self) -> Any:
        """Of the split."""
        return self.dataset.transform

    @transform.setter
    def transform(self, value: Any) -> None:
        self.dataset.transform = value


def _samples(split: Any) -> list[tuple[Path, int]]:
    """The files of a split and their classes; none where they are not files of their own."""
    if isinstance(split, Half):
        samples = _samples(split.dataset)
        return [samples[index] for index in split.indices] if samples else []
    return split.samples or []


def _version(split: Any) -> str:
    found = hashlib.sha256(str(len(split)).encode())
    for path, target in _samples(split):
        status = path.stat() if path.is_file() else None
        size, time = (status.st_size, status.st_mtime_ns) if status else (0, 0)
        line = f"{path.resolve()} {size} {time} {target}\n"
        found.update(line.encode(errors="surrogateescape"))
    return found.hexdigest()
