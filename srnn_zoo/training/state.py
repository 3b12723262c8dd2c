"""What a run is asked to do, the signals that stop it, and the state from which it goes on after any interruption."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError

from srnn_zoo.datasets.holdout import SPLIT_FILE, Holdout
from srnn_zoo.datasets.images import ImageError
from srnn_zoo.weights.card import renew_card
from srnn_zoo.weights.files import file_sha256
from srnn_zoo.weights.saved import RECIPE_FILE

from .recipe import Recipe
from .run_folder import FitResult, RunFolder
from .tasks import Loss, TrainingTask

if TYPE_CHECKING:
    from accelerate import Accelerator

    from srnn_zoo.models.srnn import SRNN

Row = Mapping[str, float]

_logger = logging.getLogger(__name__)

_PROGRESS = "progress.json"
_COMPLETE = "complete.json"  # written last: the checksum of every other file
_UNFINISHED = ".writing"


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """What `fit` is asked to do, whose docstring explains the fields, and the accelerator that does it."""

    model: SRNN
    train: Any
    val: Any
    recipe: Recipe
    task: TrainingTask
    loss: Loss | None
    accelerator: Accelerator
    folder: RunFolder | None
    fatal: bool
    workers: int | None
    dataset: str
    state_seconds: float
    bars: bool

    @property
    def memory_format(self) -> torch.memory_format:
        """The recipe's, where it can be trusted."""
        # on a CPU, bf16 convolutions in channels-last give nan now and then (torch 2.14, without any of this package)
        unsafe = self.recipe.precision == "bf16" and self.accelerator.device.type == "cpu"
        return torch.channels_last if self.recipe.channels_last and not unsafe else torch.contiguous_format

    @property
    def holdout(self) -> Holdout | None:
        """How both splits were made of one folder; None where they were not."""
        found = getattr(self.train, "holdout", None)
        return found if found == getattr(self.val, "holdout", None) else None

    def prepare_model(self) -> None:
        """To the device, in the memory format; what belongs to the weights before the training is forgotten."""
        for name in ("exit", "temperatures", "task"):
            self.model.metadata.pop(name, None)
        if self.task.name != "classification":
            self.model.metadata["task"] = self.task.name
        self.model.zero_shot = False
        if (classes := getattr(self.train, "classes", None)) is not None:
            self.model.pretrained_cfg["label_names"] = tuple(classes)
        self.model.to(self.accelerator.device).to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]

    def target(self, value: Any) -> Any:
        """What a data set gives as a target, as the loss takes it."""
        return self.task.target(value, self.model.num_classes)

    @staticmethod
    def set_temperatures(model: SRNN, temperatures: list[float]) -> None:
        """Store them with a model, where the task has any."""
        if temperatures:
            model.metadata["temperatures"] = temperatures

    def describe(self) -> dict[str, Any]:
        """What must be the same when a run is resumed."""
        model = self.model
        return {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in vars(self.recipe).items()},
            "model": model.pretrained_cfg["architecture"],
            "variant": model.variant,
            "activation": model.cell.activation,
            "exits": model.exits,
            "task": self.task.name,
            "norm": model.norm,
            "level sizes": [list(size) for size in model.level_sizes()],
            **({} if model.zooms is None else {"zooms": list(model.zooms), "views": str(model.views)}),
            "classes": list(getattr(self.train, "classes", [])) or model.num_classes,
            "training images": len(self.train),
            **({} if self.holdout is None else {"val_fraction": self.holdout.val_fraction}),
            **({} if self.loss is None else {"loss function": _name_of(self.loss)}),
        }

    def check_same(self, old: dict[str, Any], folder: Path) -> None:
        """Raise the error that lists how this run differs from the one in the folder, which it is to resume.

        More epochs are no difference: the run goes on with them.
        """
        if self.holdout is not None and (file := folder / SPLIT_FILE).is_file():
            Holdout.load(file).check_same(self.holdout, file)
        new = self.describe()
        if new["epochs"] > old["epochs"]:
            old = {**old, "epochs": new["epochs"]}
        different = [
            "other classes" if name == "classes" else f"{name} {new.get(name)}, was {old.get(name)}"
            for name in {**old, **new}
            if new.get(name) != old.get(name)
        ]
        if different:
            raise ValueError(
                f"{folder} cannot be resumed with another recipe, model or data: {'; '.join(different)}; "
                f"its own recipe is {folder / RECIPE_FILE}"
            )

    def skip(self, reasons: Iterable[str], skipped: list[str]) -> None:
        """Add the images that cannot be read to those that were skipped, or raise where one ends the run."""
        for reason in reasons:
            if self.fatal:
                raise ImageError(reason)
            if reason not in skipped:
                skipped.append(reason)
                _logger.warning("skipped %s", reason)

    def report(self, row: Row) -> None:
        """Log an epoch."""
        _logger.info(
            "epoch %d/%d  lr %.2g  loss %.3f  val loss %.3f  %s  %.0f s",
            *(row["epoch"], self.recipe.epochs, row["lr"], row["train_loss"], row["val_loss"]),
            *(self.task.say(row), row["seconds"]),
        )

    def save(self, model: SRNN, history: Sequence[Row], skipped: Sequence[str], *, best: bool) -> None:
        """Save a model as `last`, and as `best` where it is; write the log, and skipped.txt, a line for each image."""
        if self.folder is None:
            return
        row = history[-1]
        metrics = {name.removeprefix("val_"): row[name] for name in self.task.metrics}
        for which in ("best", "last") if best else ("last",):
            model.save_pretrained(
                self.folder.path / which,
                dataset=self.dataset,
                metrics={f"{self.dataset} (val)": metrics},
                recipe={**dataclasses.asdict(self.recipe), "epoch": row["epoch"]},
            )
        self.folder.write_log(history, self.task)
        if skipped:
            lines = "".join(f"{line}\n" for line in skipped)
            # a name may hold bytes that are no text; they stay what they are
            (self.folder.path / "skipped.txt").write_text(lines, encoding="utf-8", errors="surrogateescape")

    def close(self) -> None:
        """The last curves; the saved models have them too, and their cards show them."""
        if self.folder is None:
            return
        self.folder.close()
        try:
            for folder in self.folder.models_with_curves():
                renew_card(self.model, folder)
        except OSError as error:  # what ended the run is not to be hidden
            _logger.warning("cannot show the curves on the models' cards: %s", error)

    def result(self, history: list[dict[str, float]], skipped: list[str], val_images: int) -> FitResult:
        """What `fit` returns."""
        folder = None if self.folder is None else self.folder.path
        return FitResult(history, max(history, key=self.task.merit), skipped, folder, val_images)


def _name_of(loss: Loss) -> str:
    """What is known of a function in another process too."""
    return repr(loss) if isinstance(loss, torch.nn.Module) else getattr(loss, "__qualname__", type(loss).__qualname__)


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal; what it needs to go on is saved.

    Attributes:
        signum: the signal, `signal.SIGINT` or `signal.SIGTERM`.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class StopSignals:
    """While this context is open, SIGINT and SIGTERM ask for a stop; the second one stops at once."""

    def __init__(self) -> None:
        self.received = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # no other can have handlers
            self._old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number


def write_state(accelerator: Accelerator, folder: Path, number: int, progress: dict[str, Any]) -> None:
    """Write model, optimiser and whatever else is registered with the accelerator, and `progress`, as state `number`.

    All processes call this. Earlier states go once this one is complete; if it fails in a process, they stay, and an
    OSError is raised in all.
    """
    beside = folder / _UNFINISHED

    def begin() -> None:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)

    def finish() -> None:
        (beside / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        _complete(beside)
        shutil.rmtree(folder / f"{number:08d}", ignore_errors=True)  # a damaged one, which was passed over
        beside.replace(folder / f"{number:08d}")

    main = accelerator.is_main_process
    try:
        for work in (begin if main else None, lambda: accelerator.save_state(str(beside)), finish if main else None):
            do_together(accelerator, work)
    except (OSError, RuntimeError, SafetensorError) as error:  # each writer has its own for a full disk
        shutil.rmtree(beside, ignore_errors=True)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(f"cannot write the state of this run to {folder}: {reason}") from error
    for old in _numbered(folder) if main else ():
        if int(old.name) < number:
            shutil.rmtree(old, ignore_errors=True)


def do_together(accelerator: Accelerator, work: Callable[[], Any] | None) -> None:
    """Do a part of the work in every process, nothing where it is None; if it fails in one, raise in all."""
    reason: Exception | None = None
    try:
        if work is not None:
            work()
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = error
    flag = torch.tensor(float(reason is not None), device=accelerator.device)
    if cast(Any, accelerator.reduce(flag, "sum")).item() > 0:
        raise reason or OSError("another process could not write to the run's folder")


def find_state(folder: Path) -> Path | None:
    """The newest complete state; what was cut short, or is damaged, is passed over."""
    return next((path for path in reversed(_numbered(folder)) if _is_complete(path)), None)


def read_progress(state: Path) -> dict[str, Any]:
    """What was given to `write_state` as progress."""
    return json.loads((state / _PROGRESS).read_text(encoding="utf-8"))


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.is_dir())


def _complete(folder: Path) -> None:
    """Flush every file to the disk and write the checksums; from then on the state counts."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    marker = folder / _COMPLETE
    marker.write_text(json.dumps({path.name: file_sha256(path) for path in files}), encoding="utf-8")
    for path in (*files, marker):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _is_complete(state: Path) -> bool:
    try:
        checksums = json.loads((state / _COMPLETE).read_text(encoding="utf-8"))
        return all(file_sha256(state / name) == checksum for name, checksum in checksums.items())
    except (OSError, ValueError):
        return False
