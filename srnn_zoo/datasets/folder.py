"""A folder of pictures for a model: ImageFolder's layout, the model's own class indices, unreadable files reported."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from srnn_zoo._errors import unknown_name
from srnn_zoo.inference.predict import Skipped, class_names
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.transforms.presets import create_transform

from .images import ImageError, find_images, open_image

__all__ = ["FolderLoader", "ModelFolder", "class_folders", "class_indices", "pictures_by_class"]


class ModelFolder(Dataset[Any]):
    """The pictures `root/CLASS/**/*` with the class indices of a model, which never follow from the folders found.

    Args:
        root: the folder of the class folders; a class may be missing.
        model: whose names the folders have (`class_indices`).
        sizes: sizes of the levels, smallest first, instead of the model's own.
        transform: of an RGB image, instead of the model's own (`create_transform`).

    Attributes:
        samples: for every picture its path and class index, sorted by the names of folder and file.

    Raises:
        ValueError: if there is no such folder, it has no class folders or no pictures, or one of them is no class of
            the model, with the closest names.

    Examples:
        >>> batches = ModelFolder("flowers/val", model).loader(batch_size=32)
        >>> for levels, targets in batches:  # levels (B, C, H_s, W_s), targets (B,)
        ...     right += (model(levels).argmax(dim=1) == targets).sum()
        >>> batches.skipped  # what could not be read, once it is through
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        model: SRNN,
        *,
        sizes: Sequence[int] | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.root = Path(root)
        self.transform = create_transform(model, sizes=sizes) if transform is None else transform
        self.samples: list[tuple[Path, int]] = []
        indices = class_indices(model)
        folders = class_folders(self.root)
        unknown = [folder.name for folder in folders if folder.name not in indices]
        if unknown:
            others = f" ({len(unknown)} of {len(folders)} folders in {self.root} are no class of the model)"
            raise ValueError(unknown_name("class", unknown[0], indices) + others)
        for name, paths in pictures_by_class(self.root):
            self.samples += [(path, indices[name]) for path in paths]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int] | Skipped:
        """The levels of a picture and its class, or why it cannot be read."""
        path, target = self.samples[index]
        try:
            return self.transform(open_image(path).image), target
        except ImageError as error:
            return Skipped(str(path), str(error))

    def loader(self, batch_size: int = 32, workers: int = 0) -> FolderLoader:
        """Batches of what can be read, in the order of `samples`; arguments as for `FolderLoader`."""
        return FolderLoader(self, batch_size, workers)


class FolderLoader:
    """Batches `(levels, targets)` of a `ModelFolder`, without the pictures that cannot be read.

    Args:
        folder: that is read.
        batch_size: pictures in a batch; fewer where some cannot be read.
        workers: processes that read pictures; 0 for this one.

    Attributes:
        folder: that is read.
        skipped: what could not be read in the last pass.
    """

    def __init__(self, folder: ModelFolder, batch_size: int = 32, workers: int = 0) -> None:
        self.folder = folder
        self.skipped: list[Skipped] = []
        self._batches = DataLoader(folder, batch_size, num_workers=workers, collate_fn=_collate)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        self.skipped.clear()
        for images, targets, skipped in self._batches:
            self.skipped += skipped
            if len(targets):
                yield images, targets


def class_indices(model: SRNN) -> dict[str, int]:
    """The index of every name that a folder of a class may have.

    A class goes by its name in `label_names` and by its description there (`class_names`); in a model of ImageNet's
    classes by its WordNet id as well. A description that several classes share stands for none.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    lists = [class_names(model)]
    labels = model.pretrained_cfg.get("label_names")
    if labels and len(labels) == model.num_classes:
        lists.insert(0, list(labels))
    elif subset := infer_imagenet_subset(model):
        lists.insert(0, ImageNetInfo(subset).label_names())
    indices: dict[str, int] = {}
    for names in lists:
        count = Counter(names)
        for index, name in enumerate(names):
            if count[name] == 1:
                indices.setdefault(name, index)
    return indices


def pictures_by_class(root: Path) -> list[tuple[str, list[Path]]]:
    """The pictures `root/CLASS/**/*` by the names of their classes, sorted; classes without pictures are left out.

    Raises:
        ValueError: if there is no such folder, or it has no class folders or no pictures.
    """
    folders = class_folders(root)
    found: list[tuple[str, list[Path]]] = []
    for folder in folders:
        with contextlib.suppress(ImageError):  # no picture in it
            found.append((folder.name, find_images([folder])))
    if not found:
        raise ValueError(f"{root}: no pictures in its {len(folders)} class folders")
    return found


def class_folders(root: Path) -> list[Path]:
    """The folders of the classes, sorted by name; hidden ones are passed over.

    Raises:
        ValueError: if there is no such folder, or none in it.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ValueError(f"{root}: no class folders; expected {root / 'CLASS' / 'picture.jpg'}")
    return folders


def _collate(batch: list[tuple[Any, int] | Skipped]) -> tuple[Any, Tensor, list[Skipped]]:
    skipped = [item for item in batch if isinstance(item, Skipped)]
    read = [item for item in batch if not isinstance(item, Skipped)]
    if not read:
        return [], torch.empty(0, dtype=torch.long), skipped
    images, targets = default_collate(read)
    return images, targets, skipped
