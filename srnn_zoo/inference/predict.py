"""Prediction: many pictures through a model, level by level; what cannot be read is reported and passed over."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import torch

from srnn_zoo.datasets.images import ImageError, open_image
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.transforms.presets import create_transform

from .early_exit import Anytime
from .exits import Decision, ExitRule, ScoreRule

__all__ = ["Answer", "Prediction", "Skipped", "class_names", "predict"]


class Answer(NamedTuple):
    """What the model says after one level.

    Attributes:
        size: `(H, W)` of the level in pixels.
        top: the best classes with their probabilities in [0, 1], best first.
    """

    size: tuple[int, int]
    top: tuple[tuple[str, float], ...]


class Prediction(NamedTuple):
    """The answers on one picture.

    Attributes:
        path: the file.
        answers: what the model says after every level it read, smallest first.
        notes: what had to be done to read the file.
        levels: the levels of the picture, uint8 `(C, H_s, W_s)`, those that were not read included.
        exit: where an exit rule was given, the level at which the picture stopped, 0 for the smallest.
        gmacs: what the backbone cost it then, in billions of multiply-accumulates.
    """

    path: str
    answers: tuple[Answer, ...]
    notes: tuple[str, ...]
    levels: tuple[torch.Tensor, ...]
    exit: int | None = None
    gmacs: float | None = None


class Skipped(NamedTuple):
    """A picture that could not be read; the reason is one sentence that starts with its path."""

    path: str
    reason: str


def predict(
    model: SRNN,
    paths: Iterable[str | os.PathLike[str]],
    *,
    sizes: Sequence[int] | None = None,
    topk: int = 5,
    batch_size: int = 8,
    exit: ExitRule | None = None,
) -> Iterator[Prediction | Skipped]:
    """Classify picture files, in order, on the model's device.

    Args:
        model: in eval mode.
        paths: picture files (`srnn_zoo.datasets.images.find_images` lists those of a folder).
        sizes: sizes of the levels, smallest first, instead of the model's own.
        topk: how many classes to name; no more than there are.
        batch_size: pictures read and classified at a time.
        exit: when a picture stops (`srnn_zoo.inference.exits`); the levels after that are not read. By default all are.

    Yields:
        a `Prediction`, or `Skipped` for a picture that cannot be read.

    Raises:
        ValueError: if `topk` or `batch_size` is less than 1, for sizes that do not grow, and for those that the model's
            backbone cannot read; with `exit` also for a model that cannot stop early, and thresholds of the wrong
            number.
    """
    for option, value in {"topk": topk, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{option} must be 1 or more; got {value}")
    *to_levels, normalize = create_transform(model, sizes=sizes).transforms
    names = class_names(model)
    device = next(model.parameters()).device
    remaining = iter(paths)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        while batch := list(islice(remaining, batch_size)):
            loaded = list(pool.map(lambda path: _load(path, to_levels), batch))
            readable = [normalize(item.levels) for item in loaded if isinstance(item, _Loaded)]
            answers = iter(_answers(model, readable, names, topk, device, exit) if readable else ())
            for path, item in zip(batch, loaded, strict=True):
                if isinstance(item, _Loaded):
                    said, level, gmacs = next(answers)
                    yield Prediction(os.fspath(path), said, item.notes, item.levels, level, gmacs)
                else:
                    yield Skipped(os.fspath(path), str(item))


def class_names(model: SRNN) -> list[str]:
    """Names of the classes: from the model's config, ImageNet's where the number of classes says so, else numbers."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    config: dict[str, Any] = model.pretrained_cfg
    labels = config.get("label_names")
    if labels and len(labels) == model.num_classes:
        descriptions = config.get("label_descriptions") or {}
        return [descriptions.get(label, label) for label in labels]
    subset = infer_imagenet_subset(model)
    if subset:
        return list(ImageNetInfo(subset).label_descriptions())
    return [f"class {index}" for index in range(model.num_classes)]


class _Loaded(NamedTuple):
    levels: tuple[torch.Tensor, ...]
    notes: tuple[str, ...]


def _load(path: str | os.PathLike[str], to_levels: Sequence[Callable[[Any], Any]]) -> _Loaded | ImageError:
    try:
        picture = open_image(path)
    except ImageError as error:
        return error
    levels: Any = picture.image
    for step in to_levels:
        levels = step(levels)
    return _Loaded(tuple(levels), picture.notes)


class _Read(NamedTuple):
    """What is said after a level, and by which pictures of the batch it was read."""

    size: tuple[int, int]
    logits: torch.Tensor
    readers: list[int]


@torch.inference_mode()
def _answers(
    model: SRNN,
    pictures: list[list[torch.Tensor]],
    names: list[str],
    topk: int,
    device: torch.device,
    exit: ExitRule | None,
) -> list[tuple[tuple[Answer, ...], int | None, float | None]]:
    """For every picture of a batch its answers level by level, and with an exit rule where it stopped at what cost."""
    levels = [torch.stack(level).to(device) for level in zip(*pictures, strict=True)]
    exits: list[Any] = [None] * len(pictures)
    gmacs: list[Any] = exits
    if exit is None:
        everyone = list(range(len(pictures)))
        read = [_Read(step.size, step.logits, everyone) for step in model.steps(levels)]
    else:
        read, exits, gmacs = _stop_early(model, levels, exit)
    answers: list[list[Answer]] = [[] for _ in pictures]
    for size, logits, readers in read:
        probabilities, classes = logits.float().softmax(dim=1).topk(min(topk, model.num_classes))
        for reader, p, c in zip(readers, probabilities.tolist(), classes.tolist(), strict=True):
            answers[reader].append(Answer(size, tuple((names[k], v) for k, v in zip(c, p, strict=True))))
    return list(zip(map(tuple, answers), exits, gmacs, strict=True))


def _stop_early(model: SRNN, levels: list[torch.Tensor], exit: ExitRule) -> tuple[list[_Read], list[int], list[float]]:
    """What is said after every level that some picture reads; where each stops, and what it cost."""
    if isinstance(exit, ScoreRule):
        exit.check(len(levels))
    seen: list[torch.Tensor] = []  # at every level but the last, the logits of those that read it, in order

    def look(decision: Decision) -> torch.Tensor | bool:
        seen.append(decision.logits)
        return exit(decision)

    logits, exits, gmacs = Anytime(model, look)(levels)
    stops = exits.tolist()
    read: list[_Read] = []
    for index, level in enumerate(levels[: max(stops) + 1]):
        readers = [row for row, stop in enumerate(stops) if stop >= index]
        said = seen[index] if index < len(seen) else logits[readers]
        read.append(_Read((level.shape[-2], level.shape[-1]), said, readers))
    return read, stops, gmacs.tolist()
