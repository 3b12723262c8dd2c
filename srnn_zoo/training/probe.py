"""The recipe `probe`: features of both splits, extracted once and cached, and a cell and classifiers fitted to them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.utils import accuracy
from torch import Tensor
from torch.nn import functional as F

from srnn_zoo._errors import WeightsUnavailableError
from srnn_zoo.datasets.images import ImageError
from srnn_zoo.datasets.splits import ImageSplit
from srnn_zoo.transforms.presets import image_transform
from srnn_zoo.weights.files import digest

from .features import Features, evaluate_features, extract_features, fit_features
from .loader import Batch, eval_loader, num_workers, seed_everything
from .losses import TrainingForward, create_loss
from .optimizer import scale_recurrence
from .recipe import PRESETS, Recipe
from .run_folder import FitResult, RunFolder, check_same_run, describe_run
from .state import Interrupted, StopSignals

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from srnn_zoo.models.srnn import SRNN

__all__ = ["Prober", "check_probe"]

_logger = logging.getLogger(__name__)

_HONOURED = frozenset(
    "lr lr_cell weight_decay recurrence identity_decay epochs batch_size grad_accum_steps seed label_smoothing "
    "channels_last loss anytime_weights distillation temperature".split()
)
_IMAGES_AT_A_TIME = 32  # that the backbone reads; the features do not depend on it


def check_probe(model: SRNN, recipe: Recipe) -> None:
    """Refuse what a probe cannot do.

    Raises:
        ValueError: for settings that it cannot honour, and a loss that is not the model's.
    """
    usual = PRESETS["probe"]
    settings = {name: value for name, value in vars(recipe).items() if value != getattr(usual, name)}
    if others := [f"{name}={value}" for name, value in settings.items() if name not in _HONOURED]:
        raise ValueError(
            f"a probe (freeze_backbone) cannot honour {', '.join(others)}: "
            "leave that as in the recipe probe, or choose finetune"
        )
    if recipe.loss == "last" and model.exits == "separate":
        raise ValueError('exits="separate" needs loss="anytime": else only the last is trained')
    TrainingForward(model, recipe)  # refuses a variant that does not answer after every level
    if recipe.anytime_weights and len(recipe.anytime_weights) < len(model.scales):
        raise ValueError(f"{len(model.scales)} levels need as many weights; got {len(recipe.anytime_weights)}")


class Prober:
    """One probe; `fit` says what its arguments mean. The splits give images with the evaluation transform."""

    def __init__(
        self,
        model: SRNN,
        train: Any,
        val: Any,
        recipe: Recipe,
        accelerator: Accelerator,
        folder: RunFolder | None,
        *,
        fatal: bool,
        workers: int | None,
        dataset: str,
        bars: bool,
    ) -> None:
        if accelerator.num_processes > 1:
            raise ValueError(f"a probe runs in one process; got {accelerator.num_processes}: start it without launcher")
        check_probe(model, recipe)
        self.model, self.train, self.val, self.recipe = model, train, val, recipe
        self.device, self.folder, self.dataset = accelerator.device, folder, dataset
        self.fatal, self.workers, self.bars = fatal, workers, bars
        self.skipped: list[str] = []

    def run(self, resume: bool) -> FitResult:
        """Features, fit, validation, and what the run leaves behind."""
        started = time.monotonic()
        self._begin(resume)
        memory_format = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        self.model.to(self.device).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
        backbone = digest({key: value.cpu() for key, value in self.model.backbone.state_dict().items()})
        train = self._features("training", self.train, backbone)
        val = self._features("validation", self.val, backbone)
        row = {**self._fit(train), **_measure(self.model, val), "seconds": time.monotonic() - started}
        if not math.isfinite(row["val_loss"]):
            raise FloatingPointError(f"the validation loss is {row['val_loss']}: choose a lower lr")
        self.model.eval()
        self._save(row)
        return FitResult([row], row, self.skipped, None if self.folder is None else self.folder.path)

    def _begin(self, resume: bool) -> None:
        """Make the folder of a new probe, or see that the one to resume is this one."""
        if self.folder is None:
            return
        run, file = describe_run(self.model, self.recipe, self.train), self.folder.state / "probe.json"
        if resume:
            if not file.is_file():
                raise FileNotFoundError(f"{self.folder.path} holds no probe to resume")
            check_same_run(run, json.loads(file.read_text(encoding="utf-8")), self.folder.path)
            return
        self.folder.start(self.recipe)
        file.parent.mkdir()
        file.write_text(json.dumps(run), encoding="utf-8")

    def _features(self, name: str, split: Any, backbone: str) -> Features:
        """The features of a split, from the cache where they are there and whole."""
        path = self._cache_path(split, backbone)
        found = None if path is None else _load(path)
        if found is not None:
            for reason in found.skipped:
                self._skip(reason)
            return found
        before = len(self.skipped)
        with StopSignals() as signals:
            batches = _Batches(self._loader(split), name, lambda batch: self._on_batch(batch, name, signals))
            found = extract_features(self.model, batches, self.bars)
        found = dataclasses.replace(found, skipped=tuple(self.skipped[before:]))
        if path is not None:
            _save(found, path)
        return found

    def _cache_path(self, split: Any, backbone: str) -> Path | None:
        """Where features are kept that follow from files alone, and None for others'."""
        transform = repr(image_transform(self.model))
        if self.folder is None or not isinstance(split, ImageSplit) or repr(split.transform) != transform:
            return None
        if (samples := split.samples) is None:
            return None
        model = self.model
        sizes = [model.pretrained_cfg["architecture"], model.norm, model.interpolation, model.level_sizes()]
        found = hashlib.sha256(f"{backbone}\n{sizes}\n{transform}\n".encode())
        real = functools.cache(Path.resolve)  # many pictures, few folders
        for path, target in samples:
            found.update(
                f"{real(path.parent) / path.name}\0{_version(path)}\0{target}\n".encode(errors="surrogateescape")
            )
        return self.folder.path / "features" / f"{found.hexdigest()[:16]}.safetensors"

    def _loader(self, split: Any) -> DataLoader[Any]:
        at_a_time = max(1, _IMAGES_AT_A_TIME // self.recipe.grad_accum_steps)
        workers, pin_memory = num_workers(self.workers), self.device.type == "cuda"
        return eval_loader(split, at_a_time, self.recipe.seed, 1, 0, workers, pin_memory)

    def _on_batch(self, batch: Batch, split: str, signals: StopSignals) -> None:
        for reason in batch.skipped:
            self._skip(reason)
        if number := signals.received:
            kept = "nothing is saved, as there is no output folder" if self.folder is None else "resume to go on"
            name = signal.Signals(number).name
            raise Interrupted(number, f"stopped by {name} at the features of the {split} split: {kept}")

    def _skip(self, reason: str) -> None:
        if self.fatal:
            raise ImageError(reason)
        self.skipped.append(reason)
        _logger.warning("skipped %s", reason)

    def _fit(self, train: Features) -> dict[str, float]:
        recipe, loss = self.recipe, create_loss(self.recipe)

        def of_every_level(answers: Tensor, targets: Tensor) -> Tensor:
            return loss(answers if recipe.loss == "anytime" else answers[-1], targets)

        scale_recurrence(self.model, recipe)
        seed_everything(recipe.seed)  # of the dropout
        last = fit_features(
            self.model,
            train,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            lr=recipe.lr,
            cell_lr=recipe.lr_cell,
            weight_decay=recipe.weight_decay,
            identity_decay=recipe.identity_decay,
            loss=of_every_level,
            seed=recipe.seed,
            progress=self.bars,
        )
        return {"epoch": recipe.epochs, "lr": last.lr, "train_loss": last.loss}

    def _save(self, row: dict[str, float]) -> None:
        message = "validation loss %.4f, top-1 %.2f %%, top-5 %.2f %%"
        _logger.info(message, row["val_loss"], row["val_top1"], row["val_top5"])
        if self.folder is None:
            return
        for which in ("best", "last"):
            self.folder.save_model(self.model, which, self.recipe, self.dataset, row)
        self.folder.write_log([row])
        self.folder.write_skipped(self.skipped)


class _Batches:
    """Images and classes of a loader's batches, after `on_batch` has seen each."""

    def __init__(self, loader: DataLoader[Any], split: str, on_batch: Callable[[Batch], None]) -> None:
        self.loader, self.split, self.on_batch = loader, split, on_batch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        readable = False
        for batch in self.loader:
            self.on_batch(batch)
            if batch.images is not None:
                readable = True
                yield batch.images, batch.targets
        if not readable:
            raise ValueError(f"no image of the {self.split} split can be read")


def _measure(model: SRNN, val: Features) -> dict[str, float]:
    logits = evaluate_features(model, val)[-1]
    count = len(val)  # of which timm gives per cent in single precision
    top1, top5 = (100 * round(float(top) * count / 100) / count for top in accuracy(logits, val.targets, topk=(1, 5)))
    return {"val_loss": F.cross_entropy(logits, val.targets).item(), "val_top1": top1, "val_top5": top5}


def _load(path: Path) -> Features | None:
    try:
        return Features.load(path)
    except FileNotFoundError:
        return None
    except WeightsUnavailableError as error:
        _logger.warning("features are extracted anew: %s", error)
        return None


def _save(features: Features, path: Path) -> None:
    """Keep features for the next time; where that fails, the probe goes on without."""
    try:
        path.parent.mkdir(exist_ok=True)
        features.save(path)
    except OSError as error:
        _logger.warning("features are not kept for the next time: %s", error)


def _version(path: Path) -> str:
    """What changes with a file, empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"
