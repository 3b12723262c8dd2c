"""What the networks of a comparison read of an image, and the features of a frozen backbone for each of these views."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.optim.swa_utils import update_bn
from torch.utils.data import Dataset
from tqdm import tqdm

from srnn_zoo._errors import WeightsUnavailableError
from srnn_zoo.inference.prepare import for_inference
from srnn_zoo.models.sizes import pool
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.training.features import Features
from srnn_zoo.training.loader import Batch, eval_loader
from srnn_zoo.transforms.presets import image_transform
from srnn_zoo.weights.files import digest

EXPONENTS = (2.0, 3.0, 4.0)
"""Of the generalised means that are tried beside the mean, whose exponent is 1."""

_NORM_BATCHES = 32  # from which statistics of batch norm are taken
_BATCH_SIZE = 32


class View(NamedTuple):
    """What one network reads of an image.

    Attributes:
        size: height and width of the level, in pixels.
        zoom: the middle of the image is shown so many times as large; 1 is the whole image.
        exponent: of the generalised mean that pools the last map (GeM; Radenović et al., 2018), 1 for the mean.
        own_norm: whether batch norm has statistics of the training images at this size, as in FixRes.
        flipped: whether the image is mirrored.
    """

    size: int
    zoom: float = 1.0
    exponent: float = 1.0
    own_norm: bool = False
    flipped: bool = False

    def __str__(self) -> str:
        return f"{self.size} zoom {self.zoom:g}" if self.zoom > 1 else str(self.size)

    @property
    def file(self) -> str:
        """The name of the file of its features, without split."""
        words = [f"{self.size}", f"zoom{self.zoom:g}", f"gem{self.exponent:g}"]
        return "-".join(words + ["norm"] * self.own_norm + ["flipped"] * self.flipped)


class FrozenViews:
    """C(x) of every image in every view, computed once and kept in a folder.

    Args:
        create: makes the model of a pyramid of views, with a frozen backbone.
        splits: the images of `train`, `val` and `test`; each has an attribute `transform`, which is set.
        folder: for the files of features.
        smallest: a size in pixels that the backbone reads, on which it is tried out.
        versions: for each split what changes with its images.
        workers: processes that read images.
        progress: whether to show progress bars.
    """

    def __init__(
        self,
        create: Callable[[Sequence[View]], SRNN],
        splits: dict[str, Dataset[Any]],
        folder: Path,
        smallest: int,
        versions: Mapping[str, str] | None = None,
        workers: int = 0,
        progress: bool = True,
    ) -> None:
        self._create, self._splits, self._folder = create, splits, folder
        self._smallest, self._workers, self._progress = smallest, workers, progress
        self._versions = versions or {}
        self._last: tuple[View, SRNN] | None = None
        self._of_one = functools.lru_cache(maxsize=4)(self._read_or_extract)  # of two views, what fits and what chooses
        self._gmacs: dict[View, float] = {}
        self.skipped: dict[str, tuple[str, ...]] = {}

    def gmacs(self, view: View) -> float:
        """What the backbone costs on this view of one image, in billions of multiply-accumulates."""
        same = View(view.size)
        if same not in self._gmacs:
            self._gmacs[same] = self._create([same]).level_gmacs((view.size, view.size))
        return self._gmacs[same]

    def features(self, views: Sequence[View], split: str) -> Features:
        """The features of a split, one level a view."""
        parts = [self._of_one(view, split) for view in views]
        sizes = tuple((view.size, view.size) for view in views)
        return dataclasses.replace(parts[0], levels=torch.cat([part.levels for part in parts]), sizes=sizes)

    def version(self, *splits: str) -> str:
        """What changes with the backbone's weights and with the images of these splits."""
        found = hashlib.sha256(self._backbone.encode())
        for split in splits:
            found.update(self._versions.get(split, "").encode())
        return found.hexdigest()[:12]

    @functools.cached_property
    def _backbone(self) -> str:
        state = {key: value.cpu() for key, value in self._example.backbone.state_dict().items()}
        return digest(state) + repr(image_transform(self._example))

    @functools.cached_property
    def has_batch_norm(self) -> bool:
        """Whether the backbone has statistics that depend on the size of images."""
        return any(isinstance(module, _BatchNorm) for module in self._example.backbone.modules())

    @functools.cached_property
    def has_pooled_maps(self) -> bool:
        """Whether C(x) is made of the mean of a map alone, in whose place a generalised mean can stand."""
        model = self._example
        if model.reads.tile is not None:
            return False
        generator = torch.Generator().manual_seed(0)
        images = model.as_input(torch.rand(1, model.in_chans, *model.img_size, generator=generator))
        with torch.no_grad():
            means = _generalised_means(model.backbone, images, [1.0])
            return means is not None and torch.allclose(means[0], pool(model.backbone(images)), atol=1e-4)

    @functools.cached_property
    def _example(self) -> SRNN:
        return self._create([View(self._smallest)]).eval()

    def _read_or_extract(self, view: View, split: str) -> Features:
        path = self._file(view, split)
        try:
            return self._remember(split, Features.load(path))
        except (FileNotFoundError, WeightsUnavailableError):
            pass
        together = [view]
        if not (view.own_norm or view.flipped) and view.zoom == 1 and self.has_pooled_maps:
            together = [view._replace(exponent=exponent) for exponent in (1.0, *EXPONENTS)]
        for each, features in zip(together, self._extract(together, split), strict=True):
            features.save(self._file(each, split))
        return self._remember(split, Features.load(path))

    def _file(self, view: View, split: str) -> Path:
        version = self.version("train", split) if view.own_norm else self.version(split)
        return self._folder / f"{view.file}-{split}-{version}.safetensors"

    def _remember(self, split: str, features: Features) -> Features:
        self.skipped[split] = features.skipped
        return features

    @torch.no_grad()
    def _extract(self, views: Sequence[View], split: str) -> list[Features]:
        """The features of views that differ in their exponents alone, from one pass over a split."""
        view = views[0]
        model = self._reader(view._replace(exponent=1.0, flipped=False))
        found: list[list[Tensor]] = [[] for _ in views]
        targets: list[Tensor] = []
        skipped: list[str] = []
        for batch in self._batches(model, split, f"features {view} of {split}"):
            skipped += batch.skipped
            if batch.images is None:
                continue
            images = batch.images.flip(3) if view.flipped else batch.images
            [level] = model.levels(model.as_input(images))
            exponents = [each.exponent for each in views]
            if exponents == [1.0]:
                read: Sequence[Tensor] = [model.level_features(level)]
            else:
                read = _generalised_means(model.backbone, level, exponents) or []
            for kept, features in zip(found, read, strict=True):
                kept.append(features.float().cpu())
            targets.append(torch.as_tensor(batch.targets))
        if not targets:
            raise ValueError(f"no image of the {split} split can be read: {skipped[0]}")
        size = ((view.size, view.size),)
        return [Features(torch.cat(kept)[None], torch.cat(targets), size, tuple(skipped)) for kept in found]

    def _reader(self, view: View) -> SRNN:
        """The model that reads a view, made ready; the last one is kept, as it reads several splits."""
        if self._last is None or self._last[0] != view:
            model = self._create([view]).eval()
            self._last = view, for_inference(self._with_own_norm(model, view) if view.own_norm else model)
        return self._last[1]

    def _with_own_norm(self, model: SRNN, view: View) -> SRNN:
        """A copy whose batch norm has statistics of the training images at the view's size."""
        model = copy.deepcopy(model)
        batches = itertools.islice(self._batches(model, "train", f"batch norm at {view}", norm=True), _NORM_BATCHES)
        images = [model.as_input(batch.images) for batch in batches if batch.images is not None]
        whole = [batch for batch in images if len(batch) >= _BATCH_SIZE // 2] or images[:1]  # each counts alike
        update_bn(whole, model.backbone)  # pyright: ignore[reportArgumentType]
        return model.eval()

    def _batches(self, model: SRNN, split: str, title: str, norm: bool = False) -> Iterator[Batch]:
        images: Any = self._splits[split]
        images.transform = image_transform(model)
        if norm:  # a part of the split, from all of it
            images = torch.utils.data.Subset(
                images, torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
            )
        loader = eval_loader(images, _BATCH_SIZE, 0, 1, 0, self._workers, False)
        total = min(len(loader), _NORM_BATCHES) if norm else len(loader)
        return iter(
            tqdm(loader, desc=title, total=total, unit="batch", leave=False, disable=not self._progress or None)
        )


def _generalised_means(backbone: Any, level: Tensor, exponents: Sequence[float]) -> list[Tensor] | None:
    """C(x) `(B, D)` with these means of the last map, x -> mean(x^p)^(1/p); None where the backbone has no map.

    The backbone's head reads each mean as a map of one position.
    """
    maps = backbone.forward_features(level)
    if not isinstance(maps, Tensor) or maps.dim() != 4:
        return None
    where = (1, 2) if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else (2, 3)
    means = [
        maps.mean(where, keepdim=True)
        if exponent == 1
        else maps.clamp(min=1e-6).pow(exponent).mean(where, keepdim=True).pow(1 / exponent)
        for exponent in exponents
    ]
    return [pool(backbone.forward_head(mean, pre_logits=True)) for mean in means]
