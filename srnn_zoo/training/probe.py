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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from srnn_zoo._errors import WeightsUnavailableError
from srnn_zoo.datasets.splits import ImageSplit
from srnn_zoo.transforms.presets import image_transform
from srnn_zoo.weights.files import digest
from srnn_zoo.weights.saved import RECIPE_FILE

from .features import Features, check_reads_features, evaluate_features, extract_features, fit_features
from .loader import eval_loader, num_workers, seed_everything
from .losses import TrainingForward
from .recipe import PRESETS, Recipe
from .run_folder import FitResult
from .state import Interrupted, Run, StopSignals

if TYPE_CHECKING:
    from srnn_zoo.models.srnn import SRNN

_logger = logging.getLogger(__name__)

_HONOURED = frozenset(
    "optimizer lr lr_cell lr_classifier momentum nesterov weight_decay decay_1d recurrence identity_decay schedule "
    "decay_epochs decay_rate min_lr warmup_epochs warmup_lr epochs batch_size grad_accum_steps seed label_smoothing "
    "channels_last loss anytime_weights distillation temperature patience".split()
)
_IMAGES_AT_A_TIME = 32  # that the backbone reads; the features do not depend on it


def probe(run: Run, resume: bool) -> FitResult:
    """Extract features, fit and validate, and leave behind what every run does; the splits give evaluation images."""
    started = time.monotonic()
    if (processes := run.accelerator.num_processes) > 1:
        raise ValueError(f"a probe runs in one process; got {processes}: start it without launcher")
    _check(run.model, run.recipe)
    _begin(run, resume)
    model, recipe = run.model, run.recipe
    run.prepare_model()
    backbone = digest({key: value.cpu() for key, value in model.backbone.state_dict().items()})
    skipped: list[str] = []
    if model.views != "center":
        _fit_first_level(run)
        backbone += digest({key: value.cpu() for key, value in model.state_dict().items() if key[:8] != "backbone"})
    train = _features(run, "training", run.train, backbone, skipped)
    val = _features(run, "validation", run.val, backbone, skipped)
    seed_everything(recipe.seed)  # of the dropout

    def measured() -> dict[str, Any]:
        return run.task.measure(run.task.evidence(evaluate_features(model, val)[-1], val.targets))

    fitted = fit_features(model, train, recipe, run.bars, run.loss, lambda: run.task.merit(measured()))
    answers = evaluate_features(model, val)
    row = {
        "epoch": fitted.epoch,
        "lr": fitted.lr,
        "train_loss": fitted.loss,
        **run.task.measure(run.task.evidence(answers[-1], val.targets)),
    }
    run.set_temperatures(model, run.task.temperatures(answers, val.targets))
    row["seconds"] = time.monotonic() - started
    if not math.isfinite(row["val_loss"]):
        raise FloatingPointError(f"the validation loss is {row['val_loss']}: choose a lower lr")
    model.eval()
    run.report(row)
    run.save(model, [row], skipped, best=True)
    return run.result([row], skipped, len(val.targets))


def _check(model: SRNN, recipe: Recipe) -> None:
    """Refuse settings that a probe cannot honour, and a model that cannot be trained so."""
    check_reads_features(model)
    usual = vars(PRESETS["probe"])
    settings = {name: value for name, value in vars(recipe).items() if value != usual[name]}
    if others := [f"{name}={value}" for name, value in settings.items() if name not in _HONOURED]:
        raise ValueError(
            f"a probe (freeze_backbone) cannot honour {', '.join(others)}: "
            "leave that as in the recipe probe, or choose finetune"
        )
    if recipe.loss == "last" and model.exits == "separate":
        raise ValueError('exits="separate" needs loss="anytime": else only the last is trained')
    TrainingForward(model, recipe)  # refuses a model without a classifier
    if recipe.anytime_weights and len(recipe.anytime_weights) < len(model.scales):
        raise ValueError(f"{len(model.scales)} levels need as many weights; got {len(recipe.anytime_weights)}")


def _begin(run: Run, resume: bool) -> None:
    """Make the folder of a new probe, or see that the one to resume is this one."""
    if run.folder is None:
        return
    file = run.folder.state / "probe.json"
    if not resume:
        run.folder.start(run.recipe, run.holdout)
        file.parent.mkdir()
    elif file.is_file():
        run.check_same(json.loads(file.read_text(encoding="utf-8")), run.folder.path)
        run.recipe.to_toml(run.folder.path / RECIPE_FILE)  # which may have more epochs
    else:
        raise FileNotFoundError(f"{run.folder.path} holds no probe to resume")
    file.write_text(json.dumps(run.describe()), encoding="utf-8")


def _fit_first_level(run: Run) -> None:
    """Fit the classifiers to the first level, whose answers say where the others look; the cell stays as it starts."""
    model = run.model
    cell = {key: value.clone() for key, value in model.cell.state_dict().items()}
    with StopSignals() as signals:
        batches = _readable(run, "first level's", run.train, [], signals)
        first = extract_features(model, ((_first_level(model, x), y) for x, y in batches), progress=False)
    seed_everything(run.recipe.seed)
    fit_features(model, first, dataclasses.replace(run.recipe, patience=0), run.bars, run.loss)
    model.cell.load_state_dict(cell)


def _first_level(model: SRNN, images: Tensor) -> list[Tensor]:
    ((_, level),) = model.lazy_levels(model.as_input(images)).groups(0)
    return [level]


def _features(run: Run, name: str, split: Any, backbone: str, skipped: list[str]) -> Features:
    """The features of a split, from the cache where they are there and whole."""
    path = _cache_path(run, split, backbone)
    if path is not None and (found := _load(path)) is not None:
        run.skip(found.skipped, skipped)
        return found
    unreadable: list[str] = []
    with StopSignals() as signals:
        found = extract_features(run.model, _readable(run, name, split, unreadable, signals), progress=False)
    skipped += unreadable
    found = dataclasses.replace(found, skipped=tuple(unreadable))
    if path is not None:
        _save(found, path)
    return found


def _readable(
    run: Run, name: str, split: Any, unreadable: list[str], signals: StopSignals
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a split, without the images that cannot be read, until a signal comes."""
    recipe = run.recipe
    at_a_time = max(1, _IMAGES_AT_A_TIME // recipe.grad_accum_steps)
    pin_memory = run.accelerator.device.type == "cuda"
    workers = num_workers(run.workers)
    loader = eval_loader(split, at_a_time, recipe.seed, 1, 0, workers, pin_memory, run.target)
    readable = False
    for batch in tqdm(loader, desc=f"{name} features", unit="batch", leave=False, disable=not run.bars):
        run.skip(batch.skipped, unreadable)
        if signals.received:
            kept = "nothing is saved, as there is no output folder" if run.folder is None else "resume to go on"
            signal_name = signal.Signals(signals.received).name
            message = f"stopped by {signal_name} at the features of the {name} split: {kept}"
            raise Interrupted(signals.received, message)
        if batch.images is not None:
            readable = True
            yield batch.images, batch.targets
    if not readable:
        raise ValueError(f"no image of the {name} split can be read")


def _cache_path(run: Run, split: Any, backbone: str) -> Path | None:
    """Where features are kept that only files determine; None for those of any other data set."""
    model, transform = run.model, repr(image_transform(run.model))
    if run.folder is None or not isinstance(split, ImageSplit) or repr(split.transform) != transform:
        return None
    if (samples := split.samples) is None:
        return None
    sizes = [model.pretrained_cfg["architecture"], model.norm, model.interpolation, model.level_sizes()]
    sizes += [] if model.zooms is None else [model.zooms, model.views]
    found = hashlib.sha256(f"{backbone}\n{sizes}\n{transform}\n".encode())
    real = functools.cache(Path.resolve)  # many images, few folders
    for path, target in samples:
        file = f"{real(path.parent) / path.name}\0{_version(path)}\0{target}\n"
        found.update(file.encode(errors="surrogateescape"))
    return run.folder.path / "features" / f"{found.hexdigest()[:16]}.safetensors"


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
