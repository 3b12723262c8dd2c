"""The state of a run, from which it goes on after any interruption: written beside, checked, and then put in place."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import torch

from srnn_zoo.weights.files import file_sha256

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Interrupted", "StopSignals", "find_state", "read_progress", "write_state"]

_PROGRESS = "progress.json"
_COMPLETE = "complete.json"  # written last: the checksum of every other file
_UNFINISHED = ".writing"


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

    All processes call this. The states before it go once this one is complete.

    Raises:
        OSError: in every process, if it cannot be written; the state before it is still there.
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

    is_main = accelerator.is_main_process
    for work in (begin if is_main else None, lambda: accelerator.save_state(str(beside)), finish if is_main else None):
        if reason := _failure(accelerator, work):
            shutil.rmtree(beside, ignore_errors=True)
            raise OSError(f"cannot write the state of this run to {folder}: {reason}")
    if is_main:
        for old in _numbered(folder):
            if int(old.name) < number:
                shutil.rmtree(old, ignore_errors=True)


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


def _failure(accelerator: Accelerator, work: Callable[[], Any] | None) -> str:
    """Do a part of the work in all processes; why it failed in any of them, empty if in none."""
    from safetensors import SafetensorError

    reason = ""
    try:
        if work is not None:
            work()
    except (OSError, RuntimeError, SafetensorError) as error:  # each writer has its own for a full disk
        reason = " ".join(str(error).split()) or type(error).__name__
    flag = torch.tensor(float(bool(reason)), device=accelerator.device)
    failed = cast(Any, accelerator.reduce(flag, "sum")).item() > 0
    return (reason or "another process failed") if failed else ""
