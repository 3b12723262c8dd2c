"""Training data: two splits of labelled pictures, both with the training split's classes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import Dataset

from srnn_zoo.datasets.folder import class_folders
from srnn_zoo.datasets.images import ImageError
from srnn_zoo.datasets.readers import LabelledDataset, LabelledFiles, LabelledShards, is_timm_name, open_labelled
from srnn_zoo.transforms.presets import create_transform

if TYPE_CHECKING:
    from torchvision.transforms import Compose

    from srnn_zoo.models.srnn import SRNN

__all__ = ["Photographs", "TrainingData", "image_transform", "open_data", "open_split"]

_logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]
Transform = Callable[[Any], Any]

_STREAMS = ("hfids/", "tfds/")
_VAL_FOLDERS = ("val", "validation", "valid")


class Photographs(Dataset[tuple[Any, int]]):
    """Labelled pictures for training: an item is the transformed picture and the index of its class.

    Args:
        pictures: from `srnn_zoo.datasets.readers.open_labelled`, of random access.
        classes: names of the training split's classes; by default the pictures' own.
        transform: of a PIL image in mode RGB; None for the image itself.

    Raises:
        ValueError: if the pictures do not name their classes, or have one that is not among `classes`.
        ImageError: from an item, if it is not a usable picture.
    """

    def __init__(
        self, pictures: LabelledDataset, classes: Sequence[str] | None = None, transform: Transform | None = None
    ) -> None:
        self.pictures, self.name, self.transform = pictures, pictures.source, transform
        if pictures.classes is None:
            raise ValueError(f"{self.name} does not name its classes; they must travel with the model")
        self.classes = list(pictures.classes if classes is None else classes)
        if unseen := [label for label in pictures.classes if label not in self.classes]:
            listed = ", ".join(map(repr, unseen[:5])) + (", …" if len(unseen) > 5 else "")
            raise ValueError(
                f"{self.name} has classes that are not among the {len(self.classes)} of the training split: {listed}"
            )
        self._index = [self.classes.index(label) for label in pictures.classes]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        _, image, target = self.pictures[index]
        if isinstance(image, ImageError):
            raise image
        return (image if self.transform is None else self.transform(image)), self._index[target]

    @property
    def samples(self) -> list[tuple[Path, int]] | None:
        """The files and their classes, or None where the pictures are not files of their own."""
        if not isinstance(self.pictures, LabelledFiles):
            return None
        return [(Path(path), self._index[target]) for path, target in self.pictures.dataset]


class TrainingData(NamedTuple):
    """The two splits that training needs; the names of the classes are `train.classes`."""

    train: Photographs
    val: Photographs
    name: str


def open_data(
    data: StrPath,
    *,
    val: StrPath | None = None,
    train_split: str = "",
    val_split: str = "",
    data_dir: StrPath | None = None,
) -> TrainingData:
    """The training and the validation split of a data set; classes come from the training split.

    Args:
        data: a folder with `train/<class>/*` and `val/<class>/*`, a folder or tar file of one split, or a name of
            timm's such as `"hfds/food101"`.
        val: where the validation split is, if elsewhere.
        train_split: name of the training split; by default `train`, or the folder itself where it has none.
        val_split: name of the validation split; by default `val` or `validation`, whichever there is.
        data_dir: timm's `root` of a named data set.

    Raises:
        FileNotFoundError: if there is no such folder, or no validation split.
        ValueError: for a folder without classes or pictures, a split it lacks, one class only, a class of the
            validation split that training never sees, and a data set without random access.
        ImportError: if a reader's package is not installed.
    """
    train = open_split(data, train_split or _found(data, ("train",), "train"), data_dir=data_dir)
    if len(train.classes) < 2:
        raise ValueError(f"{os.fspath(data)} has one class only, {train.classes[0]!r}; training needs two at least")
    where = data if val is None else val
    val_split = val_split or _found(where, _VAL_FOLDERS, "validation")
    if val is None and not val_split:
        raise FileNotFoundError(
            f"{os.fspath(data)} has no validation split, no folder {' or '.join(_VAL_FOLDERS[:2])}: "
            "move part of the training pictures there, or give the folder it is in"
        )
    validation = open_split(where, val_split, train.classes, data_dir=data_dir)
    name = os.fspath(data) if is_timm_name(data) else Path(data).resolve().name.removesuffix(".tar")
    if (samples := validation.samples) is not None:
        seen = len({target for _, target in samples})
        if seen < len(train.classes):
            _logger.info("the validation split has pictures of %d of the %d classes", seen, len(train.classes))
    return TrainingData(train, validation, name)


def open_split(
    source: StrPath, split: str = "", classes: Sequence[str] | None = None, *, data_dir: StrPath | None = None
) -> Photographs:
    """One split of a data set.

    Args:
        source: a folder of splits or of classes, a tar file, or a name of timm's.
        split: its name; empty for a folder that is the split itself.
        classes: names of the training split's classes; by default this is the training split.
        data_dir: timm's `root` of a named data set.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `open_data`.
    """
    is_stream = is_timm_name(source) and os.fspath(source).lower().startswith(_STREAMS)
    pictures = None if is_stream else open_labelled(source, split=split or None, data_dir=data_dir)
    if not isinstance(pictures, LabelledDataset):
        raise ValueError(
            f"{os.fspath(source)} is a stream, which has no order to go on from after an interruption; give hfds/…, "
            "wds/… with its shards on disk, or a folder; or train with timm's train.py (docs/integrations.md)"
        )
    if isinstance(pictures, LabelledShards) and pictures.classes is None:  # which have numbers alone
        count = 1 + max((picture.target for picture in pictures.dataset), default=-1)
        pictures.classes = [str(number) for number in range(count)]
    if classes is None and Path(source).is_dir():
        _check_every_class_has_pictures(Path(source) / split, pictures)
    return Photographs(pictures, classes)


def image_transform(model: SRNN, *, train: bool = False, **augmentation: Any) -> Compose:
    """As `srnn_zoo.create_transform`, but of the largest level alone, one tensor; the model builds the rest on device.

    Args:
        model: the model whose images these are.
        train: whether to augment.
        **augmentation: as for `create_transform`.
    """
    from torchvision.transforms import Compose

    levels: Any = create_transform(model, train=train, sizes=[model.level_sizes()[-1]], **augmentation)
    return Compose([levels, itemgetter(0)])


def _check_every_class_has_pictures(folder: Path, pictures: LabelledDataset) -> None:
    """Refuse a class that training would never see a picture of."""
    for class_folder in class_folders(folder):
        if class_folder.name not in (pictures.classes or ()):
            raise ValueError(f"{class_folder} has no pictures: add some, or remove the folder")


def _found(source: StrPath, folders: Sequence[str], of_timm: str) -> str:
    """The first of these folders that a source has, or the name of a split of timm's; empty for neither."""
    if is_timm_name(source):
        return of_timm
    return next((name for name in folders if (Path(source) / name).is_dir()), "")
