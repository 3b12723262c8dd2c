"""Data to train on: two splits of labelled images, both with the classes of the training split."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from srnn_zoo.transforms.reading import first_step

from .holdout import Holdout, hold_out
from .images import ImageError, Skipped
from .readers import (
    LabelledFiles,
    LabelledImages,
    LabelledShards,
    class_folders,
    named_prefix,
    open_labelled,
    part_of_folder,
)

_logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

_STREAMS = ("hfids/", "tfds/")
_VAL_FOLDERS = ("val", "validation", "valid")


class ImageSplit(Dataset[tuple[Any, int]]):
    """Labelled images to train on: an item is the transformed image and the index of its class.

    Args:
        images: from `srnn_zoo.datasets.readers.open_labelled`, with random access.
        classes: names of the training split's classes, which an index stands for; by default the images' own.

    Attributes:
        transform: of a PIL image in mode RGB; None for the image itself.

    Raises:
        ValueError: if the images do not name their classes, or have one that is not among `classes`.
        ImageError: from an item that is not a usable image.
    """

    transform: Callable[[Any], Any] | None = None

    def __init__(self, images: LabelledImages, classes: Sequence[str] | None = None) -> None:
        self.images, self.name = images, images.source
        if images.classes is None:
            raise ValueError(f"{self.name} does not name its classes; they must travel with the model")
        self.classes = list(images.classes if classes is None else classes)
        if unseen := [label for label in images.classes if label not in self.classes]:
            raise ValueError(
                f"{self.name} has classes that are not among the {len(self.classes)} of the training split: "
                f"{_listed(unseen)}"
            )
        self._indices = [self.classes.index(label) for label in images.classes]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        read, then = (None, None) if self.transform is None else first_step(self.transform)
        _, image, target = self.images.read(index, read)
        if isinstance(image, Skipped):
            raise ImageError(image.reason)
        return (image if then is None else then(image)), self._indices[target]

    @property
    def samples(self) -> list[tuple[Path, int]] | None:
        """The files and their classes, or None where the images are not files of their own."""
        if not isinstance(self.images, LabelledFiles):
            return None
        return [(Path(path), self._indices[target]) for path, target in self.images.dataset]

    @property
    def holdout(self) -> Holdout | None:
        """How the folder that this is a part of was split; None where the split is a folder or data set of its own."""
        return getattr(self.images, "holdout", None)


class TrainingData(NamedTuple):
    """The two splits that training needs; the names of the classes are `train.classes`."""

    train: ImageSplit
    val: ImageSplit
    name: str


def open_data(
    data: StrPath,
    *,
    val: StrPath | None = None,
    train_split: str = "",
    val_split: str = "",
    data_dir: StrPath | None = None,
    val_fraction: float | None = None,
    seed: int = 0,
) -> TrainingData:
    """The training and the validation split of a data set; classes come from the training split.

    Args:
        data: a folder with `train/<class>/*` and `val/<class>/*`, a folder or tar file of one split, a name of
            timm's such as `"hfds/food101"`, or the `split.json` of a run that held images out, for the same split.
        val: where the validation split is, if elsewhere.
        train_split: name of the training split; by default `train`, or the folder itself where it has none.
        val_split: name of the validation split; by default `val` or `validation`, whichever there is.
        data_dir: timm's `root` of a named data set.
        val_fraction: for a folder without a validation split: the share of each class's images that is held out for
            it, in (0, 1). A class with two images or more has at least one in either part; a single image trains.
        seed: of the choice of these.

    Raises:
        FileNotFoundError: if there is no such folder, or no validation split.
        ValueError: for a folder without classes or images, a split it lacks, one class only, a class of the validation
            split that training never sees, and a data set without random access.
        ImportError: if a reader's package is not installed.
    """
    train_split = train_split or _found(data, ("train",), "train")
    train = open_split(data, train_split, data_dir=data_dir)
    if len(train.classes) < 2:
        raise ValueError(f"{os.fspath(data)} has one class only, {train.classes[0]!r}; training needs two at least")
    where = data if val is None else val
    val_split = val_split or _found(where, _VAL_FOLDERS, "validation")
    has_val = val is not None or bool(val_split)
    if val_fraction is not None and has_val:
        found = os.fspath(val or val_split)
        raise ValueError(f"{os.fspath(data)} has a validation split, {found}: leave out val_fraction (--val-fraction)")
    name = _name_of(data, train)
    if val_fraction is not None:
        train, validation = _hold_out(train, Path(data, train_split), val_fraction, seed)
    elif has_val:
        validation = open_split(where, val_split, train.classes, data_dir=data_dir)
    else:
        raise FileNotFoundError(
            f"{os.fspath(data)} has no validation split, no folder {' or '.join(_VAL_FOLDERS[:2])}: hold out some of "
            "its images with --val-fraction 0.2 (val_fraction=0.2), or give the folder it is in with --val (val=…)"
        )
    _say_unseen(train.classes, validation)
    return TrainingData(train, validation, name)


def _hold_out(train: ImageSplit, folder: Path, val_fraction: float, seed: int) -> tuple[ImageSplit, ImageSplit]:
    """The images of a folder in two parts."""
    if not folder.is_dir() or train.samples is None:
        raise ValueError(f"{folder} is no folder of images, which alone val_fraction splits: give val or val_split")
    paths = [path.relative_to(folder).as_posix() for path, _ in train.samples]
    holdout = hold_out(folder, paths, val_fraction, seed)
    return ImageSplit(part_of_folder(holdout, "train")), ImageSplit(part_of_folder(holdout, "val"))


def _say_unseen(classes: Sequence[str], validation: ImageSplit) -> None:
    """Name the classes that validation has no image of, where that can be known without reading images."""
    if validation.samples is None:
        return
    seen = {target for _, target in validation.samples}
    if unseen := [name for index, name in enumerate(classes) if index not in seen]:
        text = "the validation split has no image of %d of the %d classes: %s"
        _logger.info(text, len(unseen), len(classes), _listed(unseen))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")


def _name_of(data: StrPath, train: ImageSplit) -> str:
    """What a data set is called: a folder by its own name, whatever path leads to it."""
    if named_prefix(data):
        return os.fspath(data)
    return Path(data if train.holdout is None else train.holdout.folder).resolve().name.removesuffix(".tar")


def open_split(
    source: StrPath, split: str = "", classes: Sequence[str] | None = None, *, data_dir: StrPath | None = None
) -> ImageSplit:
    """One split of a data set, with the classes of the training split; by default it is that split.

    Sources, `data_dir` and errors are as for `open_data`; `split` is empty for a folder that is the split itself.
    """
    is_stream = named_prefix(source) in _STREAMS
    images = None if is_stream else open_labelled(source, split=split or None, data_dir=data_dir)
    if not isinstance(images, LabelledImages):
        raise ValueError(
            f"{os.fspath(source)} is a stream, which has no order to go on from after an interruption; give hfds/…, "
            "wds/… with its shards on disk, or a folder; or train with timm's train.py (docs/integrations.md)"
        )
    if isinstance(images, LabelledShards) and images.classes is None:  # which have numbers alone
        count = 1 + max((image.target for image in images.dataset), default=-1)
        images.classes = [str(number) for number in range(count)]
    if classes is None and Path(source).is_dir():
        for folder in class_folders(Path(source) / split):  # training would never see an image of an empty one
            if folder.name not in (images.classes or ()):
                raise ValueError(f"{folder} has no images: add some, or remove the folder")
    return ImageSplit(images, classes)


def _found(source: StrPath, folders: Sequence[str], of_timm: str) -> str:
    """The first of these folders that a source has, or the name of a split of timm's; empty for neither."""
    if named_prefix(source):
        return of_timm
    if Path(source).suffix == ".json" and Path(source).is_file():  # of a folder that was split
        return folders[0]
    return next((name for name in folders if (Path(source) / name).is_dir()), "")
