"""Loaders whose random numbers all follow from (seed, epoch, image), so that a run can go on where it was cut."""

from __future__ import annotations

import contextlib
import operator
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from srnn_zoo.datasets.images import ImageError

Key = tuple[int, int]  # epoch, index of an image

_MAX_UNREADABLE = 100  # in a row; then it is not a file that is damaged, but the data set


class Batch(NamedTuple):
    """What a loader gives."""

    images: Any  # (B, C, H, W); None where no image of the batch could be read
    targets: Tensor  # (B,), indices of classes; or (B, K), labels or numbers
    skipped: list[str]  # one sentence for every image that could not be read


class DatasetError(TypeError, ValueError):
    """An item that is no image with its target. The message stays one sentence where a worker process hands it over."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rpartition("DatasetError: ")[2])


class TrainBatches(Sampler[list[Key]]):
    """The batches of one process: a shuffled epoch, cut into updates, and these into pieces for processes and steps.

    All processes together see every image once an epoch, except those that would not fill an update of `batch_size`.
    """

    def __init__(
        self, num_images: int, batch_size: int, grad_accum_steps: int, seed: int, num_processes: int, process: int
    ) -> None:
        if batch_size > num_images:
            raise ValueError(
                f"batch_size must be no more than the {num_images} training images; got {batch_size}: "
                f"choose {num_images} or less"
            )
        if batch_size % (num_processes * grad_accum_steps):
            raise ValueError(
                f"batch_size must be a multiple of processes x grad_accum_steps, "
                f"{num_processes} x {grad_accum_steps}; got {batch_size}"
            )
        self.num_images, self.batch_size, self.grad_accum_steps = num_images, batch_size, grad_accum_steps
        self.seed, self.num_processes, self.process = seed, num_processes, process
        self.piece = batch_size // (num_processes * grad_accum_steps)
        self.updates = num_images // batch_size
        self._epoch, self._start = 0, 0

    def go_to(self, epoch: int, update: int) -> None:
        """Begin the next iteration at this update of this epoch."""
        self._epoch, self._start = epoch, update

    def __len__(self) -> int:
        return (self.updates - self._start) * self.grad_accum_steps

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = self._epoch, self._start * self.batch_size
        generator = torch.Generator().manual_seed(_seed_of(self.seed, epoch))
        order = torch.randperm(self.num_images, generator=generator)[first : self.updates * self.batch_size]
        mine = order.view(-1, self.num_processes, self.piece)[:, self.process]
        for indices in mine.tolist():
            yield [(epoch, index) for index in indices]


def train_loader(
    dataset: Dataset[Any],
    batches: TrainBatches,
    workers: int,
    pin_memory: bool,
    target: Callable[[Any], Any] = operator.index,
) -> DataLoader[Any]:
    """The loader of the training split; an image that cannot be read is replaced by the next one that can.

    Both loaders refuse a target that `target` raises an error for, with the image that it belongs to.
    """
    return _loader(_Seeded(dataset, batches.seed, target, replace=True), batches, workers, pin_memory)


def eval_loader(
    dataset: Dataset[Any],
    batch_size: int,
    seed: int,
    num_processes: int,
    process: int,
    workers: int,
    pin_memory: bool,
    target: Callable[[Any], Any] = operator.index,
) -> DataLoader[Any]:
    """The loader of one process's share of a split: all shares together have every image once.

    An image that cannot be read is left out.
    """
    share = range(process, len(dataset), num_processes)  # pyright: ignore[reportArgumentType]
    keys = [(0, index) for index in share]
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    return _loader(_Seeded(dataset, seed, target, replace=False), batches, workers, pin_memory)


def num_workers(workers: int | None, num_processes: int = 1) -> int:
    """Processes that read images for each of these; by default up to four."""
    return max(1, min(4, (os.cpu_count() or 1) // num_processes)) if workers is None else workers


def seed_everything(*numbers: int) -> None:
    """Seed Python's, numpy's and torch's generators with what follows from these numbers."""
    seed = _seed_of(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class _Seeded(Dataset[tuple[Any, Any, list[str]]]):
    """A dataset read by `(epoch, index)`, which determine its random numbers, and which says what it cannot read."""

    def __init__(self, dataset: Any, seed: int, target: Callable[[Any], Any], replace: bool) -> None:
        self.dataset, self.seed, self.target, self.replace = dataset, seed, target, replace

    def __getitem__(self, key: Key) -> tuple[Any, Any, list[str]]:
        epoch, index = key
        skipped: list[str] = []
        with _own_random_numbers(self.seed, epoch, index):
            for offset in range(min(_MAX_UNREADABLE, len(self.dataset)) if self.replace else 1):
                at = (index + offset) % len(self.dataset)
                try:
                    image, target = self.dataset[at]
                except ImageError as error:
                    skipped.append(str(error))
                    continue
                return _checked(image, at), self._checked_target(target, at), skipped
        return None, -1, skipped

    def _checked_target(self, target: Any, index: int) -> Any:
        try:
            return self.target(target)
        except (TypeError, ValueError) as error:
            samples = getattr(self.dataset, "samples", None)
            raise DatasetError(f"{samples[index][0] if samples else f'image {index}'}: {error}") from None


@contextlib.contextmanager
def _own_random_numbers(*numbers: int) -> Iterator[None]:
    """Seed all generators, and give them back as they were."""
    states, seed = (random.getstate(), np.random.get_state()), _seed_of(*numbers)
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _checked(image: Any, index: int) -> Any:
    if isinstance(image, Tensor):
        return image
    raise DatasetError(
        f"a training dataset gives (tensor, target); image {index} is {type(image).__name__}: give it a transform "
        "that ends with the largest level as one normalised tensor (srnn_zoo.training.image_transform)"
    )


def _collate(items: Sequence[tuple[Any, Any, list[str]]]) -> Batch:
    readable = [(image, target) for image, target, _ in items if image is not None]
    skipped = [reason for _, _, reasons in items for reason in reasons]
    if not readable:
        return Batch(None, torch.empty(0, dtype=torch.long), skipped)
    images, targets = default_collate(readable)
    return Batch(images, targets, skipped)


def _loader(dataset: Dataset[Any], batches: Iterable[list[Key]], workers: int, pin_memory: bool) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_main_process,
    )


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach all processes; the main one saves, and then ends the workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # where it is missing, a SIGTERM to all processes is not survived
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_the_main_process, daemon=True).start()


def _obey_the_main_process() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
