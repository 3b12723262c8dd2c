"""Training data: labelled pictures from folders or timm's dataset readers, with the training split's classes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import Dataset

from srnn_zoo.folder import class_folders
from srnn_zoo.images import ImageError, find_images, open_image
from srnn_zoo.transforms import create_transform

if TYPE_CHECKING:
    from torchvision.transforms import Compose

    from srnn_zoo.model import SRNN

__all__ = ["Photographs", "TimmPhotographs", "TrainingData", "image_transform", "open_data", "open_split"]

_logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]
Transform = Callable[[Any], Any]

TIMM_READERS = ("hfds", "hfids", "tfds", "wds")
_STREAMS = ("hfids", "tfds", "wds")  # without an order that a seed decides
_VAL_FOLDERS = ("val", "validation", "valid")


class Photographs(Dataset[tuple[Any, int]]):
    """Picture files and their classes; an item is the transformed picture and the index of its class.

    Args:
        samples: paths with the indices of their classes.
        classes: names of the classes.
        transform: of a PIL image in mode RGB; None for the image itself.
        name: of the data set.

    Raises:
        ImageError: from an item, if its file is not a usable picture.
    """

    def __init__(
        self,
        samples: Sequence[tuple[Path, int]],
        classes: Sequence[str],
        transform: Transform | None = None,
        name: str = "",
    ) -> None:
        self.samples = list(samples)
        self.classes = list(classes)
        self.transform = transform
        self.name = name

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, target = self.samples[index]
        image = open_image(path).image
        return (image if self.transform is None else self.transform(image)), target

    def targets(self) -> list[int]:
        """The class of every picture."""
        return [target for _, target in self.samples]


class TimmPhotographs(Dataset[tuple[Any, int]]):
    """The pictures of a timm dataset with the class indices of the training split.

    Args:
        dataset: from `timm.data.create_dataset`, of random access.
        classes: names of the training split's classes; by default the dataset's own.
        transform: as for `Photographs`.
        name: of the data set.

    Raises:
        ValueError: if the dataset does not name its classes, or has one that is not among `classes`.
    """

    def __init__(
        self, dataset: Any, classes: Sequence[str] | None = None, transform: Transform | None = None, name: str = ""
    ) -> None:
        own = _class_names(dataset)
        if own is None:
            raise ValueError(f"{name or 'this dataset'} does not name its classes; they must travel with the model")
        self.classes = own if classes is None else list(classes)
        if unseen := [label for label in own if label not in self.classes]:
            raise ValueError(_unseen(name, unseen, self.classes))
        self._dataset = dataset
        self._index = [self.classes.index(label) for label in own]
        self.transform = transform
        self.name = name

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        reader = self._dataset.reader  # and not its items, which would be other pictures where a file is damaged
        file, target = reader[index]
        with file:
            image = open_image(file, name=f"{self.name} {reader.filename(index)}").image
        return (image if self.transform is None else self.transform(image)), self._index[int(target)]


class TrainingData(NamedTuple):
    """The two splits that training needs; the names of the classes are `train.classes`."""

    train: Photographs | TimmPhotographs
    val: Photographs | TimmPhotographs
    name: str


def open_data(data: StrPath, *, val: StrPath | None = None, train_split: str = "", val_split: str = "") -> TrainingData:
    """The training and the validation split of a data set; classes come from the training split.

    Args:
        data: a folder with `train/<class>/*` and `val/<class>/*`, a folder or tar file of one split, or a name of
            timm's such as `"hfds/food101"`.
        val: where the validation split is, if elsewhere.
        train_split: name of the training split; by default `train`, or the folder itself where it has none.
        val_split: name of the validation split; by default `val` or `validation`, whichever there is.

    Raises:
        FileNotFoundError: if there is no such folder or split.
        ValueError: for a folder without classes or pictures, one class only, and a class of the validation split that
            training never sees.
        ImportError: if a reader's package is not installed.
    """
    train = open_split(data, train_split or _found(data, ("train",), "train"))
    if len(train.classes) < 2:
        raise ValueError(f"{os.fspath(data)} has one class only, {train.classes[0]!r}; training needs two at least")
    where = data if val is None else val
    if val is None and not (val_split or _is_timm_name(data) or _found(data, _VAL_FOLDERS)):
        raise FileNotFoundError(
            f"{os.fspath(data)} has no validation split, no folder {' or '.join(_VAL_FOLDERS[:2])}: "
            "move part of the training pictures there, or give the folder it is in"
        )
    validation = open_split(where, val_split or _found(where, _VAL_FOLDERS, "validation"), train.classes)
    name = os.fspath(data) if _is_timm_name(data) else Path(data).resolve().name.removesuffix(".tar")
    if isinstance(validation, Photographs):
        seen = len(set(validation.targets()))
        if seen < len(train.classes):
            _logger.info("the validation split has pictures of %d of the %d classes", seen, len(train.classes))
    return TrainingData(train, validation, name)


def open_split(source: StrPath, split: str = "", classes: Sequence[str] | None = None) -> Photographs | TimmPhotographs:
    """One split of a data set.

    Args:
        source: a folder of splits or of classes, a tar file, or a name of timm's.
        split: its name; empty for a folder that is the split itself.
        classes: names of the training split's classes; by default this is the training split.

    Raises:
        FileNotFoundError, ValueError, ImportError: as `open_data`.
    """
    path = Path(source)
    if _is_timm_name(source):
        return _open_timm(os.fspath(source), split, classes)
    if path.suffix == ".tar" and path.is_file():
        return _open_timm("", split, classes, root=path)
    if not path.is_dir():
        what = "is a file, not a folder of pictures" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}")
    if not (path / split).is_dir():
        raise FileNotFoundError(f"{path} has no folder {split!r}")
    return _open_folder(path / split, classes)


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


def _open_folder(folder: Path, classes: Sequence[str] | None) -> Photographs:
    folders = class_folders(folder)
    names = [p.name for p in folders] if classes is None else list(classes)
    samples: list[tuple[Path, int]] = []
    unseen: list[str] = []
    for class_folder in folders:
        try:
            pictures = find_images([class_folder])
        except ImageError:
            if classes is None:
                raise ValueError(f"{class_folder} has no pictures: add some, or remove the folder") from None
            continue
        if class_folder.name not in names:
            unseen.append(class_folder.name)
            continue
        samples += [(picture, names.index(class_folder.name)) for picture in pictures]
    if unseen:
        raise ValueError(_unseen(os.fspath(folder), unseen, names))
    if not samples:
        raise ValueError(f"{folder} has no pictures in its folders")
    return Photographs(samples, names, name=os.fspath(folder))


def _open_timm(name: str, split: str, classes: Sequence[str] | None, root: Path | None = None) -> TimmPhotographs:
    from timm.data import create_dataset

    where = name or os.fspath(root or "")
    if name.partition("/")[0].lower() in _STREAMS:
        raise ValueError(
            f"{where} is a stream, which has no order to go on from after an interruption; "
            "give hfds/… or a folder, or train with timm's train.py (docs/integrations.md)"
        )
    try:
        dataset = create_dataset(name, root=root and os.fspath(root), split=split or "train", search_split=False)
    except ImportError as error:
        raise ImportError(f"{where} needs the package {error.name}: pip install {error.name}") from error
    except (AssertionError, RuntimeError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"cannot open {where}, split {split!r}: {' '.join(str(error).split())}") from error
    return TimmPhotographs(dataset, classes, name=where)


def _class_names(dataset: Any) -> list[str] | None:
    for attribute in ("class_to_idx", "class_name_to_idx"):
        if mapping := getattr(dataset.reader, attribute, None):
            return sorted(mapping, key=mapping.__getitem__)
    return None


def _is_timm_name(source: StrPath) -> bool:
    prefix, slash, _ = os.fspath(source).partition("/")
    return bool(slash) and prefix.lower() in TIMM_READERS and not Path(source).exists()


def _found(source: StrPath, folders: Sequence[str], of_timm: str = "") -> str:
    """The first of these folders that a source has, or the name of a split of timm's; empty for neither."""
    if _is_timm_name(source):
        return of_timm
    return next((name for name in folders if (Path(source) / name).is_dir()), "")


def _unseen(source: str, unseen: Sequence[str], classes: Sequence[str]) -> str:
    listed = ", ".join(map(repr, unseen[:5])) + (", …" if len(unseen) > 5 else "")
    return f"{source} has classes that are not among the {len(classes)} of the training split: {listed}"
