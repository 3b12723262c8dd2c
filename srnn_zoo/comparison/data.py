"""The three splits that a comparison needs: images to fit to, images that choose, and images that measure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Subset

from srnn_zoo.datasets.readers import named_prefix
from srnn_zoo.datasets.splits import open_data, open_split

StrPath = str | os.PathLike[str]


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

    def describe(self) -> dict[str, Any]:
        """What another run of the same comparison must find again."""
        return {"data": self.name, "classes": self.classes, "images": [len(split) for split in self.splits.values()]}

    def caption(self, how: str) -> str:
        """What a reader of the table alone must know."""
        train, val, test = map(len, self.splits.values())
        halves = ", halves of one split" if self.halved else ""
        return (
            f"{self.name}: fitted to {train} images; rates, zooms, exponents and thresholds chosen on {val}, measured "
            f"on {test}{halves}. {how} GMACs: of the backbone, mean of an image. The last column: how many points of "
            "top-1 accuracy the SRNN of that cost is better, with a paired t-test over the images."
        )


def open_images(data: StrPath, test: StrPath | None, data_dir: StrPath | None) -> ComparedImages:
    """The three splits; where there is no test split, the validation split is halved."""
    opened = open_data(data, data_dir=data_dir)
    splits: dict[str, Any] = {"train": opened.train, "val": opened.val}
    is_named = bool(named_prefix(data))
    if test is not None or is_named or (Path(data) / "test").is_dir():
        where, split = (data, "test") if test is None else (test, "")
        splits["test"] = open_split(where, split, opened.train.classes, data_dir=data_dir)
        return ComparedImages(opened.name, opened.train.classes, splits, False)
    order = list(range(len(opened.val)))
    if samples := opened.val.samples:
        order.sort(key=lambda index: samples[index][1])  # by class
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
