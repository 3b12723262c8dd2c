"""Prediction: many images through a model, level by level; what cannot be read is reported and left out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple, cast

import torch

from srnn_zoo.datasets.classes import class_names
from srnn_zoo.datasets.images import Skipped
from srnn_zoo.models.reading import NoMapError
from srnn_zoo.models.recurrence import check_every_exit
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.models.tasks import scores
from srnn_zoo.transforms.levels import Levels
from srnn_zoo.transforms.presets import NormalizeLevels, create_transform
from srnn_zoo.transforms.scale_pyramid import ScalePyramid
from srnn_zoo.transforms.views import cut, level_names, shares

from .early_exit import stop_early
from .exits import ExitRule
from .prepare import for_inference
from .read_ahead import Image, ReadLevels, read_ahead


class Answer(NamedTuple):
    """What the model says of an image after one level.

    Attributes:
        size: `(H, W)` of the level in pixels.
        top: the best classes with their probabilities in [0, 1], best first. Where the model is for several labels,
            each has a probability of its own; where it is for numbers, all outputs in their order, as they are.
    """

    size: tuple[int, int]
    top: tuple[tuple[str, float], ...]


class Prediction(NamedTuple):
    """The answers on one image.

    Attributes:
        path: the file, or "image 3" for what is no file.
        answers: what the model says after every level that it read, smallest first.
        notes: what had to be done to read the file.
        levels: the levels of the image, uint8 `(C, H_s, W_s)`, including those that were not read; where views follow
            from the level before, without these.
        stopped_at: with an exit rule, the level at which the image stopped, 0 for the smallest.
        gmacs: with an exit rule, what the backbone then cost, in billions of multiply-accumulates.
        views: where the levels have zooms, what each shows: top, left, bottom and right, from 0 to 1.
        maps: if asked for, how much each position of a level speaks for its answer, `(h, w)`; none where the backbone
            gives no map.
    """

    path: str
    answers: tuple[Answer, ...]
    notes: tuple[str, ...]
    levels: tuple[torch.Tensor, ...]
    stopped_at: int | None = None
    gmacs: float | None = None
    views: tuple[tuple[float, ...], ...] = ()
    maps: tuple[torch.Tensor, ...] = ()

    @property
    def level_names(self) -> list[str]:
        """What the levels are called."""
        zooms = [1 / (bottom - top) for top, _, bottom, _ in self.views]
        return level_names((level.shape[-2:] for level in self.levels), zooms or None)

    @property
    def first_answer(self) -> int:
        """The level of the first answer: a model may answer after the last level only."""
        return len(self.levels) - len(self.answers) if self.stopped_at is None else 0


def predict(
    model: SRNN,
    images: Image | Iterable[Image],
    *,
    sizes: Sequence[int] | None = None,
    topk: int = 5,
    batch_size: int = 8,
    exit: ExitRule | None = None,
    exact: bool = False,
    maps: bool = False,
    workers: int = 0,
) -> Iterator[Prediction | Skipped]:
    """Classify images, in order, on the model's device.

    Threads read the next batch while the network, made ready by `for_inference`, works on this one. Memory holds the
    levels of these two batches, and of at most eight images the whole file at a time.

    Args:
        model: in eval mode.
        images: one or several: paths (`srnn_zoo.datasets.images.find_images` lists those of a folder), PIL images,
            files as bytes, uint8 arrays `(H, W)` or `(H, W, 3)`, or what `srnn_zoo.datasets.inputs.find_inputs` found
            in tars and data sets; taken one batch ahead.
        sizes: sizes of the levels, smallest first, instead of the model's own.
        topk: how many classes to name; no more than there are. Numbers of a regression are all given.
        batch_size: images read and classified at a time.
        exit: when an image stops (`srnn_zoo.inference.exits`); the levels after that are not read. By default all are.
        exact: decode and resize as Pillow does, as for `create_transform`.
        maps: whether to give class activation maps too (`SRNN.activation_map`), for which every level is read twice.
        workers: processes that read the images, instead of up to eight threads of this one. All images are then listed
            first, and each of these processes holds two batches.

    Yields:
        a `Prediction`, or `Skipped` for an image that cannot be read.

    Raises:
        ValueError: if `topk` or `batch_size` is less than 1, for sizes that do not grow, and for those that the model's
            backbone cannot read; with `exit` also for a model that cannot stop early, a rule that is not for its task,
            and thresholds of the wrong number.
        TypeError: for what is no image.
        ChildProcessError: if one of the processes that read is killed.
    """
    from torchvision.transforms import Compose

    for option, value in {"topk": topk, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{option} must be 1 or more; got {value}")
    if exit is not None:
        check_every_exit(model)
    reader, *steps = create_transform(model, sizes=sizes, exact=exact).transforms
    at = next(index for index, step in enumerate(steps) if isinstance(step, NormalizeLevels))
    to_levels, normalize = steps[:at], Compose(steps[at:])
    names, device = class_names(model), next(model.parameters()).device
    with closing(read_ahead(images, ReadLevels(reader.read, to_levels), batch_size, workers)) as batches:
        for number, (batch, levels) in enumerate(batches):
            if number or len(batch) > 1:  # for one image alone it would take longer than it saves
                model = for_inference(model)
            on_device = [level.to(device) for level in levels]
            answered = enumerate(_answers(model, on_device, normalize, names, topk, exit, maps) if levels else ())
            for item in batch:
                if isinstance(item, Skipped):
                    yield item
                    continue
                row, answer = next(answered)
                own = tuple(level[row] for level in levels)
                yield Prediction(item.name, (), item.notes, own)._replace(**answer)


@torch.inference_mode()
def _answers(
    model: SRNN,
    images: list[torch.Tensor],
    normalize: Callable[[Any], Any],
    names: list[str],
    topk: int,
    exit: ExitRule | None,
    maps: bool,
) -> list[dict[str, Any]]:
    """For every image of a batch its answers level by level, and with an exit rule where it stopped at what cost."""
    levels = cast(Levels, model.lazy_levels(model.as_input(normalize(images))))
    found: list[dict[str, Any]] = [{"answers": ()} for _ in range(levels.batch_size)]
    if exit is None:
        steps = [(step.size, step.logits) for step in model.steps(levels)]
    else:
        seen: list[torch.Tensor] = []
        _, stopped_at, gmacs = stop_early(model, exit, levels, seen)
        for answer, stop, cost in zip(found, stopped_at.tolist(), gmacs.tolist(), strict=True):
            answer |= {"stopped_at": stop, "gmacs": cost}
        steps = zip(levels.sizes, seen, strict=False)
    leaders: list[dict[int, int]] = []  # of every answer, the first class of each image
    for index, (size, logits) in enumerate(steps):
        readers = [row for row, answer in enumerate(found) if answer.get("stopped_at", index) >= index]
        values = scores(logits.float(), model.task, model.temperature(index))
        classes = torch.arange(model.num_classes).expand_as(values)
        if model.task != "regression":
            values, classes = values.topk(min(topk, model.num_classes))
        leaders.append(dict(zip(readers, classes[:, 0].tolist(), strict=True)))
        for row, v, c in zip(readers, values.tolist(), classes.tolist(), strict=True):
            found[row]["answers"] += (Answer(size, tuple((names[k], x) for k, x in zip(c, v, strict=True))),)
    _add_views(model, levels, images[0], found)
    if maps:
        with contextlib.suppress(NoMapError):
            _add_maps(model, levels, leaders, found)
    return found


def _add_views(model: SRNN, levels: Levels, images: torch.Tensor, found: list[dict[str, Any]]) -> None:
    """What each level shows of an image; and the levels themselves, where they follow from the answers."""
    if (shown := shares(model.zooms)) is None:
        return
    boxes = [levels.views(level, share).tolist() for level, share in enumerate(shown)]
    for row, answer in enumerate(found):
        read = answer.get("stopped_at", levels.height - 1) + 1 if levels.centers else levels.height
        answer["views"] = tuple(tuple(box[row]) for box in boxes[:read])
        if levels.centers:
            answer["levels"] = tuple(_level(levels, images[[row]], row, level) for level in range(read))


def _level(levels: Levels, image: torch.Tensor, row: int, level: int) -> torch.Tensor:
    """A level of an image of the batch, uint8 `(C, H_s, W_s)`."""
    seen = cut(image, levels.shown[level], levels.center(level, [row]))
    return ScalePyramid([levels.sizes[level]], levels.interpolation)(seen[0])[0]


def _add_maps(model: SRNN, levels: Levels, leaders: list[dict[int, int]], found: list[dict[str, Any]]) -> None:
    """The class activation maps of what was read and answered."""
    first = 0 if model.cell.anytime else levels.height - 1
    for level, best in enumerate(leaders, start=first):
        for rows, images in levels.groups(level, best):
            classes = torch.tensor([best[row] for row in rows], device=images.device)
            maps = model.activation_map(images, classes, level)
            for row, each in zip(rows, maps.float().cpu(), strict=True):
                found[row]["maps"] = (*found[row].get("maps", ()), each)
