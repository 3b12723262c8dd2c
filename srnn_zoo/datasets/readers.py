"""Pictures with their classes: a folder of class folders, a tar, or a data set that timm knows by name."""

from __future__ import annotations

import importlib.util
import operator
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from srnn_zoo._errors import unknown_name

from .folder import class_indices, pictures_by_class
from .images import ImageError, open_image
from .shards import ShardPicture, index_shards, shard_files

if TYPE_CHECKING:
    from srnn_zoo.models.srnn import SRNN

__all__ = [
    "Labelled",
    "LabelledDataset",
    "LabelledFiles",
    "LabelledShards",
    "LabelledStream",
    "is_timm_name",
    "label_names",
    "open_labelled",
    "target_indices",
]

StrPath: TypeAlias = str | os.PathLike[str]

_SPLITS = ("train", "val", "validation", "test")
_PACKAGES = {"hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets"}  # what timm reads names with
_PACKAGES |= {"wds": "webdataset", "torch": "torchvision"}
_NAMES = ", ".join(f"{prefix}/…" for prefix in _PACKAGES)


class Labelled(NamedTuple):
    """One picture of a data set.

    Attributes:
        name: its path, or what the data set calls it.
        image: the picture, or why it cannot be read.
        target: index of its class in the data set's own order.
    """

    name: str
    image: Image.Image | ImageError
    target: int


class LabelledDataset(Dataset[Labelled]):
    """Pictures that can be read in any order: those of an open data set of timm's or torchvision's.

    Args:
        dataset: gives pictures and the indices of their classes.
        source: what the data set is called.
        classes: names of the classes in the order of the targets; None where the data set has numbers alone.
        fixed_order: whether that order belongs to the data set, rather than following from the folders that are there.
    """

    def __init__(self, dataset: Any, source: str, classes: Sequence[str] | None, *, fixed_order: bool = False) -> None:
        self.dataset = dataset
        self.source = source
        self.classes = classes
        self.fixed_order = fixed_order

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Labelled:
        name = f"{self.source}[{index}]"
        reader = getattr(self.dataset, "reader", None)
        if reader is None:
            return _in_memory(name, *self.dataset[index][:2])
        file, target, *_ = reader[index]  # timm's data set puts the next picture in the place of a broken one
        with file:
            return _from_file(reader.filename(index) or name, target, file)


class LabelledFiles(LabelledDataset):
    """Picture files with the indices of their classes."""

    def __getitem__(self, index: int) -> Labelled:
        return _from_file(*self.dataset[index])


class LabelledShards(LabelledDataset):
    """Pictures in WebDataset's shards, which may be read in any order (`ShardPicture`)."""

    def __getitem__(self, index: int) -> Labelled:
        picture: ShardPicture = self.dataset[index]
        return _from_file(picture.name, picture.target, picture.open())


class LabelledStream(IterableDataset[Labelled]):
    """Pictures that come one after the other; arguments as for `LabelledDataset`."""

    fixed_order = True

    def __init__(self, dataset: Iterable[tuple[Any, Any]], source: str, classes: Sequence[str] | None) -> None:
        self.dataset = dataset
        self.source = source
        self.classes = classes

    def __iter__(self) -> Iterator[Labelled]:
        for index, (image, target) in enumerate(self.dataset):
            yield _in_memory(f"{self.source}[{index}]", image, target)


def open_labelled(
    data: StrPath | Dataset[Any], *, split: str | None = None, data_dir: StrPath | None = None
) -> LabelledDataset | LabelledStream:
    """The pictures of a data set with their classes; they are read later, one by one.

    Args:
        data: a folder whose subfolders are classes, holding pictures at any depth (torchvision's `ImageFolder`); a
            `.tar` of one; a name for `timm.data.create_dataset`, such as `"hfds/food101"`; or a data set of timm's or
            torchvision's, made without a transform.
        split: a subfolder of the folder, or a split of timm's data set (there by default `"validation"`).
        data_dir: timm's `root` of a named data set.

    Raises:
        ValueError: for a folder without class folders, or without pictures, and a split it lacks, with the closest.
        FileNotFoundError: if there is neither such a folder nor such a name.
        ImportError: for a data set whose package is not installed.
    """
    if not isinstance(data, str | os.PathLike):
        if split is not None or data_dir is not None:
            raise ValueError("a split or data_dir goes with a name or folder; this data set is open already")
        return _of_dataset(data, type(data).__name__)
    name = os.fspath(data)
    if is_timm_name(name):
        return _open_named(name, split, data_dir)
    if data_dir is not None:
        raise ValueError(f"data_dir goes with timm's names ({_NAMES}); {name!r} is none")
    if Path(name).is_file() and Path(name).suffix == ".tar":
        if split is not None:
            raise ValueError(f"{name} is one split already; got split {split!r}")
        return _of_dataset(_create(name, "", root=name), Path(name).name)
    if not Path(name).is_dir():
        raise FileNotFoundError(
            f"no folder {name!r}; give a folder of class folders, a .tar of one, or a name of timm's ({_NAMES})"
        )
    return _of_folder(Path(name), split)


def is_timm_name(source: StrPath) -> bool:
    """Whether this names a data set of timm's, such as `"hfds/food101"`, rather than a file or folder."""
    prefix, slash, _ = os.fspath(source).partition("/")
    return bool(slash) and prefix.lower() in _PACKAGES and not Path(source).exists()


def label_names(model: SRNN) -> list[str]:
    """What a folder of each of a model's classes is called (`class_indices`), in their order."""
    names = {index: name for name, index in reversed(class_indices(model).items())}  # the first of several
    return [names.get(index, f"class {index}") for index in range(model.num_classes)]


def target_indices(model: SRNN, data: LabelledDataset | LabelledStream) -> list[int]:
    """For every class of a data set its index among a model's outputs, by the model's own names of its classes.

    Only where one of the two has no names, and the order of the data set's classes is its own, is the index the same.

    Raises:
        ValueError: for a class the model does not know, with its closest names, and a model without names.
    """
    if data.classes is None:
        return list(range(model.num_classes))
    known = class_indices(model)
    unknown = [name for name in data.classes if name not in known]
    if not unknown:
        return [known[name] for name in data.classes]
    has_own_names = bool(model.pretrained_cfg.get("label_names"))
    if data.fixed_order and not has_own_names and len(data.classes) == model.num_classes:
        return list(range(model.num_classes))
    if "class 0" in known and not has_own_names:
        raise ValueError(
            f"the model does not name its {model.num_classes} classes, so {unknown[0]!r} cannot be found among them; "
            "save it with save_pretrained(…, label_names=[…])"
        )
    if not data.fixed_order and len(unknown) == len(data.classes) and any(name in _SPLITS for name in unknown):
        raise ValueError(f"{data.source} holds the splits {', '.join(unknown)}: choose one (--split {unknown[0]})")
    rest = f" ({len(unknown)} of the {len(data.classes)} classes are unknown)" if len(unknown) > 1 else ""
    raise ValueError(f"{data.source}: {unknown_name('class', unknown[0], known)}{rest}")


def _from_file(path: str, target: Any, file: Any = None) -> Labelled:
    try:
        return Labelled(path, open_image(file or path, path).image, _index(path, target))
    except ImageError as error:
        return Labelled(path, error, _index(path, target))


def _in_memory(name: str, image: Any, target: Any) -> Labelled:
    if not isinstance(image, Image.Image):
        raise TypeError(f"{name} is a {type(image).__name__}, not a picture: make the data set without a transform")
    return Labelled(name, image, _index(name, target))


def _index(name: str, target: Any) -> int:
    try:
        return operator.index(target)
    except TypeError:
        raise TypeError(f"{name}: the target must be the index of one class; got {target!r}") from None


def _of_folder(folder: Path, split: str | None) -> LabelledDataset:
    source = folder.resolve().name
    if split is not None:
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if split not in splits:
            raise ValueError(f"{folder}: {unknown_name('split', split, splits)}")
        folder, source = folder / split, f"{source}/{split}"
    found = pictures_by_class(folder)
    classes = [name for name, _ in found]
    files = [(str(path), target) for target, (_, paths) in enumerate(found) for path in paths]
    return LabelledFiles(files, source, classes)


def _of_dataset(dataset: Any, source: str) -> LabelledDataset | LabelledStream:
    """What an open data set of timm's or torchvision's holds."""
    if getattr(dataset, "transform", None) is not None:
        raise ValueError("make the data set without a transform: the models' own is used")
    reader = getattr(dataset, "reader", None)
    classes = _classes_of_reader(reader) if reader is not None else _classes_of_torchvision(dataset)
    if reader is not None and (files := shard_files(reader)):
        label = reader.split_info.alt_label
        return LabelledShards(index_shards(files, label), source, classes, fixed_order=True)
    if isinstance(dataset, IterableDataset):
        return LabelledStream(dataset, source, classes)
    if reader is None and hasattr(dataset, "samples"):
        return LabelledFiles(dataset.samples, source, classes)
    return LabelledDataset(dataset, source, classes, fixed_order=not hasattr(reader, "samples"))


def _classes_of_reader(reader: Any) -> list[str] | None:
    indices = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    names = sorted(indices, key=indices.__getitem__)
    return [str(name) for name in names] if names and [indices[n] for n in names] == list(range(len(names))) else None


def _classes_of_torchvision(dataset: Any) -> list[str] | None:
    names = getattr(dataset, "wnids", None) or getattr(dataset, "classes", None)  # ImageNet's classes have several
    return [str(name) for name in names] if names else None


def _open_named(name: str, split: str | None, data_dir: StrPath | None) -> LabelledDataset | LabelledStream:
    prefix = name.lower().partition("/")[0]
    package = _PACKAGES[prefix]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{name} needs {package}: pip install {package.replace('_', '-')}")
    if prefix in ("torch", "wds") and data_dir is None:
        raise ValueError(f"{name} needs a data_dir, the folder that its files are in")
    root = None if data_dir is None else os.fspath(data_dir)
    return _of_dataset(_create(name, name, root=root, split=split or "validation"), name)


def _create(what: str, name: str, **options: Any) -> Any:
    """timm's data set; `what` is how the user called it."""
    from timm.data import create_dataset

    try:
        return create_dataset(name, **options)
    except (AssertionError, RuntimeError, OSError, ValueError, TypeError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())  # each reader has errors of its own
        raise ValueError(f"timm cannot open {what!r}: {reason}") from error
