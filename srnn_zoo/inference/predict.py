"""Prediction: many images through a model, level by level; what cannot be read is reported and left out."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import torch

from srnn_zoo.datasets.classes import class_names
from srnn_zoo.datasets.images import Skipped, open_or_skip
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.transforms.presets import create_transform

from .early_exit import Anytime
from .exits import Decision, ExitRule, ScoreRule


class Answer(NamedTuple):
    """What the model says of an image after one level.

    Attributes:
        size: `(H, W)` of the level in pixels.
        top: the best classes with their probabilities in [0, 1], best first.
    """

    size: tuple[int, int]
    top: tuple[tuple[str, float], ...]


class Prediction(NamedTuple):
    """The answers on one image.

    Attributes:
        path: the file.
        answers: what the model says after every level that it read, smallest first.
        notes: what had to be done to read the file.
        levels: the levels of the image, uint8 `(C, H_s, W_s)`, including those that were not read.
        stopped_at: with an exit rule, the level at which the image stopped, 0 for the smallest.
        gmacs: with an exit rule, what the backbone then cost, in billions of multiply-accumulates.
    """

    path: str
    answers: tuple[Answer, ...]
    notes: tuple[str, ...]
    levels: tuple[torch.Tensor, ...]
    stopped_at: int | None = None
    gmacs: float | None = None


def predict(
    model: SRNN,
    paths: Iterable[str | os.PathLike[str]],
    *,
    sizes: Sequence[int] | None = None,
    topk: int = 5,
    batch_size: int = 8,
    exit: ExitRule | None = None,
) -> Iterator[Prediction | Skipped]:
    """Classify image files, in order, on the model's device.

    Threads read the next batch while the network works on this one. Memory holds the levels of these two batches, and
    of at most eight images the whole file at a time.

    Args:
        model: in eval mode.
        paths: image files (`srnn_zoo.datasets.images.find_images` lists those of a folder); taken one batch ahead.
        sizes: sizes of the levels, smallest first, instead of the model's own.
        topk: how many classes to name; no more than there are.
        batch_size: images read and classified at a time.
        exit: when an image stops (`srnn_zoo.inference.exits`); the levels after that are not read. By default all are.

    Yields:
        a `Prediction`, or `Skipped` for an image that cannot be read.

    Raises:
        ValueError: if `topk` or `batch_size` is less than 1, for sizes that do not grow, and for those that the model's
            backbone cannot read; with `exit` also for a model that cannot stop early, and thresholds of the wrong
            number.
    """
    for option, value in {"topk": topk, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{option} must be 1 or more; got {value}")
    *to_levels, normalize = create_transform(model, sizes=sizes).transforms
    names, device = class_names(model), next(model.parameters()).device
    with closing(_read_ahead((os.fspath(path) for path in paths), to_levels, batch_size)) as batches:
        for batch in batches:
            levels = zip(*(item.levels for item in batch if isinstance(item, _Read)), strict=True)
            on_device = normalize([torch.stack(level).to(device) for level in levels])
            answers = iter(_answers(model, on_device, names, topk, exit) if on_device else ())
            for item in batch:
                if isinstance(item, Skipped):
                    yield item
                else:
                    said, stopped_at, gmacs = next(answers)
                    yield Prediction(item.path, said, item.notes, item.levels, stopped_at, gmacs)


class _Read(NamedTuple):
    path: str
    notes: tuple[str, ...]
    levels: tuple[torch.Tensor, ...]


def _read_ahead(
    paths: Iterator[str], to_levels: Sequence[Callable[[Any], Any]], batch_size: int
) -> Generator[list[_Read | Skipped]]:
    """Batches in order; threads read the next one while the caller works on this one."""

    def read(path: str) -> _Read | Skipped:
        opened = open_or_skip(path)
        if isinstance(opened, Skipped):
            return opened
        levels: Any = opened.image
        for step in to_levels:
            levels = step(levels)
        return _Read(path, opened.notes, tuple(levels))

    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        ahead = [pool.submit(read, path) for path in islice(paths, batch_size)]
        while ahead:
            batch = [reading.result() for reading in ahead]
            ahead = [pool.submit(read, path) for path in islice(paths, batch_size)]
            yield batch
    finally:  # also where the caller stops early, or the network fails
        pool.shutdown(cancel_futures=True)


@torch.inference_mode()
def _answers(
    model: SRNN, levels: list[torch.Tensor], names: list[str], topk: int, exit: ExitRule | None
) -> list[tuple[tuple[Answer, ...], int | None, float | None]]:
    """For every image of a batch its answers level by level, and with an exit rule where it stopped at what cost."""
    answers: list[list[Answer]] = [[] for _ in levels[0]]
    stops: list[Any] = [None] * len(answers)
    gmacs = stops
    if exit is None:
        steps = [(step.size, step.logits) for step in model.steps(levels)]
    else:
        decided, stops, gmacs = _stop_early(model, levels, exit)
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        steps = list(zip(sizes, decided, strict=False))
    for index, (size, logits) in enumerate(steps):
        readers = [said for said, stop in zip(answers, stops, strict=True) if stop is None or stop >= index]
        probabilities, classes = logits.float().softmax(dim=1).topk(min(topk, model.num_classes))
        for said, p, c in zip(readers, probabilities.tolist(), classes.tolist(), strict=True):
            said.append(Answer(size, tuple((names[k], v) for k, v in zip(c, p, strict=True))))
    return list(zip(map(tuple, answers), stops, gmacs, strict=True))


def _stop_early(
    model: SRNN, levels: list[torch.Tensor], exit: ExitRule
) -> tuple[list[torch.Tensor], list[int], list[float]]:
    """For every level that is read the logits of the images that read it; where each image stops, and its cost."""
    if isinstance(exit, ScoreRule):
        exit.check(len(levels))
    decided: list[torch.Tensor] = []

    def look(decision: Decision) -> torch.Tensor | bool:
        decided.append(decision.logits)
        return exit(decision)

    logits, stops, gmacs = Anytime(model, look)(levels)
    if (last := int(stops.max())) == len(decided):  # no rule is asked after the last level
        decided.append(logits[stops == last])
    return decided, stops.tolist(), gmacs.tolist()
