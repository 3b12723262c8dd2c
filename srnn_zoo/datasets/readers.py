"""The one reader of labelled images: a folder of class folders, a tar, a named data set, or one that is open."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import operator
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from srnn_zoo._errors import unknown_name
from srnn_zoo.transforms.reading import Read
from srnn_zoo.transforms.rgb import upright_rgb

from .classes import class_indices
from .holdout import Holdout
from .images import ImageError, Skipped, find_images, open_or_skip
from .shards import index_shards, shard_files

StrPath: TypeAlias = str | os.PathLike[str]

_SPLITS = ("train", "val", "validation", "test")
_PACKAGES = {"hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets"}  # what timm reads names with
_PACKAGES |= {"wds": "webdataset", "torch": "torchvision"}


class Labelled(NamedTuple):
    """One image of a data set, or why it cannot be read; its name, and the data set's own index of its class.

    The image is what was asked for: by default a PIL image, in RGB where this package has read it from a file.
    """

    name: str
    image: Any
    target: int


class LabelledImages(Dataset[Labelled]):
    """Images that can be read in any order.

    Args:
        dataset: an open data set of timm's or torchvision's, or any sequence of `(image, class index)`; an image is a
            PIL image, a path or an open file.
        source: what the data set is called.
        classes: names of the classes in the order of the targets; None where the data set has numbers alone.
        fixed_order: whether that order belongs to the data set, rather than following from the folders that are there.
    """

    def __init__(self, dataset: Any, source: str, classes: Sequence[str] | None, *, fixed_order: bool = False) -> None:
        self.dataset, self.source, self.classes, self.fixed_order = dataset, source, classes, fixed_order

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Labelled:
        return self.read(index)

    def read(self, index: int, read: Read | None = None) -> Labelled:
        """An image; `read` says what is made of it, as for `open_image`."""
        name = f"{self.source}[{index}]"
        reader = getattr(self.dataset, "reader", None)
        if reader is None:
            return _labelled(name, *self.dataset[index][:2], read=read)
        file, target, *_ = reader[index]  # timm's data set itself puts the next image in the place of a broken one
        with file:
            return _labelled(reader.filename(index) or name, file, target, read)


class LabelledFiles(LabelledImages):
    """Images in files of their own; `dataset` has their paths with the indices of their classes.

    Attributes:
        holdout: how the folder that they are part of was split; None where it was not.
    """

    holdout: Holdout | None = None

    def read(self, index: int, read: Read | None = None) -> Labelled:
        path, target = self.dataset[index]
        return _labelled(os.fspath(path), path, target, read)


class LabelledShards(LabelledImages):
    """Images in WebDataset's shards; `dataset` has them as `ShardImage`."""

    def read(self, index: int, read: Read | None = None) -> Labelled:
        image = self.dataset[index]
        return _labelled(image.name, image.open(), image.target, read)


class LabelledStream(IterableDataset[Labelled]):
    """Images that come one after the other; arguments as for `LabelledImages`."""

    fixed_order = True

    def __init__(self, dataset: Iterable[tuple[Any, Any]], source: str, classes: Sequence[str] | None) -> None:
        self.dataset, self.source, self.classes = dataset, source, classes

    def __iter__(self) -> Iterator[Labelled]:
        return self.read()

    def read(self, read: Read | None = None) -> Iterator[Labelled]:
        """The images in order; `read` says what is made of each, as for `open_image`."""
        return (_labelled(f"{self.source}[{index}]", *item[:2], read=read) for index, item in enumerate(self.dataset))


Images: TypeAlias = LabelledImages | LabelledStream
Reader: TypeAlias = Callable[[str, str | None, str | None], Images]
_READERS: dict[str, Reader] = {}


def register_reader(*kinds: str) -> Callable[[Reader], Reader]:
    """Register a function that opens a kind of data set; the later of two for the same kind holds.

    Args:
        kinds: what it opens: names with a prefix (`"csv/"`), files with a suffix (`".zip"`), or folders (`"/"`).

    Examples:
        >>> @register_reader("csv/")  # opens "csv/flowers", with split and data_dir as the user gave them, or None
        ... def read_csv(name: str, split: str | None, data_dir: str | None) -> LabelledImages:
        ...     files = [("flowers/1.jpg", 0), ("flowers/2.jpg", 1)]
        ...     return LabelledFiles(files, name, classes=["rose", "tulip"])
    """

    def register(reader: Reader) -> Reader:
        _READERS.update(dict.fromkeys(kinds, reader))
        return reader

    return register


def named_prefix(data: StrPath) -> str:
    """`"hfds/"` of the name of a data set such as `"hfds/food101"`; empty for a file or folder, and what is no name."""
    prefix, slash, _ = os.fspath(data).lower().partition("/")
    return prefix + slash if prefix and slash and prefix + slash in _READERS and not Path(data).exists() else ""


def reads_name(data: str) -> bool:
    """Whether this is the name of a data set, rather than a path."""
    return bool(named_prefix(data))


def reads_file(data: str) -> bool:
    """Whether a reader opens this file, a tar apart: a run's `split.json`, or of a kind that a user has registered."""
    kind = Path(data).suffix
    return kind != ".tar" and kind in _READERS and os.path.isfile(data)  # noqa: PTH113 -- Path.is_file may raise


def open_labelled(data: StrPath | Dataset[Any], *, split: str | None = None, data_dir: StrPath | None = None) -> Images:
    """The images of a data set with their classes; they are read later, one by one.

    Args:
        data: a folder whose subfolders are classes, holding images at any depth (torchvision's `ImageFolder`); a
            `.tar` of one; a name for `timm.data.create_dataset`, such as `"hfds/food101"`; the `split.json` of a run
            that held images out; what else a registered reader opens; or an open data set of timm's or torchvision's,
            made without a transform, or of Hugging Face's (`datasets.Dataset`), with a column of images and one of
            classes.
        split: a subfolder of the folder; a split of timm's data set (by default `"validation"`); of `split.json`
            `"train"` or `"val"` (the default).
        data_dir: timm's `root` of a named data set.

    Raises:
        ValueError: for a folder without class folders, or without images, and a split it lacks, with the closest.
        FileNotFoundError: if there is neither such a folder nor such a name.
        ImportError: for a data set whose package is not installed.
    """
    if not isinstance(data, str | os.PathLike):
        if split is not None or data_dir is not None:
            raise ValueError("a split or data_dir goes with a name or folder; this data set is open already")
        return _open_dataset(data, type(data).__name__)
    name, prefix, path = os.fspath(data), named_prefix(data), Path(data)
    names = ", ".join(f"{kind}…" for kind in _READERS if kind != "/" and kind.endswith("/"))
    if data_dir is not None and not prefix:
        raise ValueError(f"data_dir goes with the name of a data set ({names}); {name!r} is none")
    kind = prefix or ("/" if path.is_dir() else path.suffix if path.is_file() else "")
    if kind not in _READERS:
        raise FileNotFoundError(
            f"no folder {name!r}; give a folder of class folders, a .tar of one, or the name of a data set ({names})"
        )
    return _READERS[kind](name, split, None if data_dir is None else os.fspath(data_dir))


def target_indices(model: Any, data: Images) -> list[int]:
    """For every class of a data set its index among a model's outputs, by the model's own names of its classes.

    The index is the same only where one of the two has no names, and the order of the classes is the data set's own.

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


def class_folders(root: Path) -> list[Path]:
    """The folders of the classes, sorted by name, without hidden ones; ValueError where there are none."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ValueError(f"{root}: no class folders; expected {root / 'CLASS' / 'image.jpg'}")
    return folders


@register_reader("/")
def _open_folder(name: str, split: str | None, data_dir: str | None) -> LabelledFiles:
    """The images `root/CLASS/**/*`; classes without images are left out."""
    folder = Path(name)
    source = folder.resolve().name
    if split is not None:
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if split not in splits:
            raise ValueError(f"{folder}: {unknown_name('split', split, splits)}")
        folder, source = folder / split, f"{source}/{split}"
    folders = class_folders(folder)
    found: dict[str, list[Path]] = {}
    for class_folder in folders:
        with contextlib.suppress(ImageError):  # no image in it
            found[class_folder.name] = find_images([class_folder])
    if not found:
        raise ValueError(f"{folder}: no images in its {len(folders)} class folders")
    files = [(str(path), target) for target, paths in enumerate(found.values()) for path in paths]
    return LabelledFiles(files, source, list(found))


@register_reader(".tar")
def _open_tar(name: str, split: str | None, data_dir: str | None) -> Images:
    if split is not None:
        raise ValueError(f"{name} is one split already; got split {split!r}")
    return _open_dataset(_create_dataset(name, "", root=name), Path(name).name)


@register_reader(".json")
def _open_holdout(name: str, split: str | None, data_dir: str | None) -> LabelledFiles:
    if split not in (None, "train", "val"):
        raise ValueError(f"{name}: {unknown_name('split', split, ('train', 'val'))}")
    holdout = Holdout.load(name)
    if not Path(holdout.folder).is_dir():
        raise FileNotFoundError(
            f'{name} splits {holdout.folder}, which is not there: if it has moved, write where it is as "folder" there'
        )
    return part_of_folder(holdout, "train" if split == "train" else "val")


def part_of_folder(holdout: Holdout, part: Literal["train", "val"]) -> LabelledFiles:
    """The training or the validation images of a folder that was split."""
    folder, classes = Path(holdout.folder), holdout.classes
    indices = {name: index for index, name in enumerate(classes)}
    paths = holdout.train if part == "train" else holdout.val
    files = [(str(folder / path), indices[path.partition("/")[0]]) for path in paths]
    images = LabelledFiles(files, f"{folder.name} ({part})", classes)
    images.holdout = holdout
    return images


@register_reader(*(f"{prefix}/" for prefix in _PACKAGES))
def _open_named(name: str, split: str | None, data_dir: str | None) -> Images:
    prefix = name.lower().partition("/")[0]
    package = _PACKAGES[prefix]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{name} needs {package}: pip install {package.replace('_', '-')}")
    if prefix in ("torch", "wds") and data_dir is None:
        raise ValueError(f"{name} needs a data_dir, the folder that its files are in")
    return _open_dataset(_create_dataset(name, name, root=data_dir, split=split or "validation"), name)


def _create_dataset(what: str, name: str, **options: Any) -> Any:
    """timm's data set; `what` is how the user called it."""
    from timm.data import create_dataset

    try:
        return create_dataset(name, **options)
    except (AssertionError, RuntimeError, OSError, ValueError, TypeError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())  # each reader has errors of its own
        raise ValueError(f"timm cannot open {what!r}: {reason}") from error


def _open_rows(dataset: Any, source: str) -> Images:
    """What an open Hugging Face data set holds: of its columns, the first of images and the first of classes."""
    kinds = {type(feature).__name__: name for name, feature in reversed((dataset.features or {}).items())}
    if missing := {"Image", "ClassLabel"} - kinds.keys():
        raise ValueError(f"the data set has no column of type {' or '.join(sorted(missing))}; got {dataset.features}")
    image, label = kinds["Image"], kinds["ClassLabel"]
    files = dataset.cast_column(image, type(dataset.features[image])(decode=False))  # so that this package reads them
    is_stream = isinstance(dataset, IterableDataset)
    rows = _Rows(files, image, label)
    return (LabelledStream if is_stream else LabelledImages)(rows, source, dataset.features[label].names)


class _Rows:
    """A Hugging Face data set's rows as `(file, class index)`; not PyTorch's way to index, which may be a slice."""

    def __init__(self, dataset: Any, image: str, label: str) -> None:
        self.dataset, self.image, self.label = dataset, image, label

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._item(self.dataset[index])

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return map(self._item, self.dataset)

    def _item(self, row: dict[str, Any]) -> tuple[Any, Any]:
        file = row[self.image]
        return file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"]), row[self.label]


def _open_dataset(dataset: Any, source: str) -> Images:
    """What an open data set of timm's, torchvision's or Hugging Face's holds."""
    if hasattr(dataset, "cast_column"):
        return _open_rows(dataset, source)
    if getattr(dataset, "transform", None) is not None:
        raise ValueError("make the data set without a transform: the models' own is used")
    reader = getattr(dataset, "reader", None)
    if reader is None:
        names = getattr(dataset, "wnids", None) or getattr(dataset, "classes", None)  # ImageNet's classes have several
    else:
        indices = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
        names = sorted(indices, key=indices.__getitem__)
        names = names if [indices[name] for name in names] == list(range(len(names))) else None
    classes = [str(name) for name in names] if names else None
    if reader is not None and (files := shard_files(reader)):
        return LabelledShards(index_shards(files, reader.split_info.alt_label), source, classes, fixed_order=True)
    if isinstance(dataset, IterableDataset):
        return LabelledStream(dataset, source, classes)
    if reader is None and hasattr(dataset, "samples"):
        return LabelledFiles(dataset.samples, source, classes)
    return LabelledImages(dataset, source, classes, fixed_order=not hasattr(reader, "samples"))


def _labelled(name: str, image: Any, target: Any, read: Read | None) -> Labelled:
    """What is read of a PIL image, a path or an open file, with its class."""
    try:
        index = operator.index(target)
    except TypeError:
        raise TypeError(f"{name}: the target must be the index of one class; got {target!r}") from None
    if isinstance(image, Image.Image):
        return Labelled(name, image if read is None else read(image)[0], index)
    if not isinstance(image, str | os.PathLike) and not hasattr(image, "read"):
        raise TypeError(f"{name} is a {type(image).__name__}, not an image: make the data set without a transform")
    opened = open_or_skip(image, name, read or upright_rgb)
    return Labelled(name, opened if isinstance(opened, Skipped) else opened.image, index)
