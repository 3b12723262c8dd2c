"""The methods that an evaluation compares: what each reads, what it answers batch by batch, and what that costs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from srnn_zoo.datasets.classes import label_names
from srnn_zoo.inference.answers import ensembles
from srnn_zoo.inference.prepare import for_inference
from srnn_zoo.models.cells import log_mean_probability
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.transforms.presets import create_transform

from .table import Row

PROBABILITY_ENSEMBLE = "probability ensemble"
LOGIT_ENSEMBLE = "logit ensemble"
MEASURED_BATCHES = 20  # the first, while nothing else is done


class Clock:
    """Measures work that is done once a batch, on any device, in the first batches."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []  # of every batch that is measured
        self.images: list[int] = []

    @contextmanager
    def time(self, images: int) -> Iterator[None]:
        """Measure the body of a `with` statement, which works on this many images."""
        if len(self.seconds) == MEASURED_BATCHES:
            yield
            return
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds.append(time.perf_counter() - start)
        self.images.append(images)

    @property
    def seconds_per_image(self) -> float:
        """The mean; of several batches the first is a warm-up and does not count."""
        first = int(len(self.seconds) > 1)
        return sum(self.seconds[first:]) / sum(self.images[first:])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()


class Pass:
    """One backbone on the levels of one preprocessing: run once a batch, for all rows that share both.

    `model` is the owner of the backbone, made ready to answer; `view` the index of the preprocessing among those of all
    passes; `mirrored` says whether it reads mirror images.
    """

    def __init__(self, model: SRNN, view: int, mirrored: bool = False) -> None:
        self.model, self.view, self.mirrored = for_inference(model), view, mirrored
        self.sizes = tuple(model.level_sizes())
        self.like = next(model.parameters())
        self.clocks = [Clock(self.like.device) for _ in self.sizes]
        self.features: list[Tensor] = []

    def read(self, images: Tensor | Sequence[Tensor]) -> None:
        """What the cell reads of every level `(B, C, H_s, W_s)`, or of images from which the model makes the levels."""
        self.features = []  # first, so that two batches of features never stand in memory
        if self.mirrored:
            images = images.flip(-1) if isinstance(images, Tensor) else [level.flip(-1) for level in images]
        levels = self.model.lazy_levels(self.model.as_input(images))
        for index, clock in enumerate(self.clocks):
            with clock.time(levels.batch_size):
                self.features.append(self.model.read_level(levels, index))


class ScoredBatch(NamedTuple):
    """What a row of the table says of a batch, one entry an image, on the CPU."""

    classes: Tensor  # its first answer
    probabilities: Tensor  # of that answer, in [0, 1]; NaN where logits are not finite
    correct: Tensor  # whether it is right; never where logits are not finite
    in_top5: Tensor  # whether one of the first five answers is right


class Cost(NamedTuple):
    """What a row costs."""

    gmacs: float  # an image
    images_per_second: float


@dataclass(eq=False)
class Method:
    """A row of the table while it is made."""

    name: str  # of the row
    reads: Sequence[tuple[Pass, slice]]  # passes, and which of their levels
    model: SRNN  # whose classes it answers with
    head: Callable[[list[Tensor]], Tensor]  # from features of these levels to logits (B, K)
    temperature: float = 1.0  # of its probabilities
    correct: list[Tensor] = field(default_factory=list)
    in_top5: list[Tensor] = field(default_factory=list)
    not_finite: int = 0

    def __post_init__(self) -> None:
        self.source = self.reads[0][0]
        self.clock = Clock(self.source.like.device)

    @property
    def features(self) -> list[Tensor]:
        """What is read of the batch."""
        return [x for source, levels in self.reads for x in source.features[levels]]

    def answer(self, targets: Tensor) -> ScoredBatch:
        """Answer on the batch that the pass has read; `targets` `(B,)` are indices of the model's own classes."""
        with self.clock.time(len(targets)):
            logits = self.head(self.features).float()
        finite = logits.isfinite().all(dim=1)
        best = logits.topk(min(5, logits.shape[1])).indices
        hits = ((best == targets.to(best.device)[:, None]) & finite[:, None]).cpu()
        calibrated = (logits / self.temperature).softmax(dim=1)
        probabilities = calibrated.gather(1, best[:, :1])[:, 0].masked_fill(~finite, torch.nan)
        return ScoredBatch(best[:, 0].cpu(), probabilities.cpu(), hits[:, 0], hits.any(dim=1))

    def keep(self, scored: ScoredBatch) -> None:
        """Count the answers on a batch, of this process or of another."""
        self.correct.append(scored.correct)
        self.in_top5.append(scored.in_top5)
        self.not_finite += int(scored.probabilities.isnan().sum())

    def cost(self) -> Cost:
        """What an image costs; something must have been answered."""
        zeros = [torch.zeros_like(features[:1]) for features in self.features]
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:  # counts the product with h_0 = 0 too
            self.head(zeros)
        gmacs = sum(source.model.level_gmacs(size) for source, levels in self.reads for size in source.sizes[levels])
        clocks = [clock for source, levels in self.reads for clock in source.clocks[levels]]
        seconds = sum(clock.seconds_per_image for clock in [*clocks, self.clock])
        return Cost(gmacs + counter.get_total_flops() / 2e9, 1 / seconds)

    def row(self, cost: Cost) -> Row:
        """The row of the table, from all answers that are kept."""
        sizes = tuple(size for source, levels in self.reads for size in source.sizes[levels])
        return Row(self.name, sizes, torch.cat(self.correct), torch.cat(self.in_top5), *cost, self.not_finite)


def passes(models: Iterable[SRNN], exact: bool = False) -> tuple[dict[SRNN, Pass], list[Any]]:
    """The pass of every model, shared by models with equal backbones and preprocessing; and the views' transforms."""
    found: dict[SRNN, Pass] = {}
    transforms: dict[str, Any] = {}
    for model in models:
        transform = create_transform(model, exact=exact)
        transforms.setdefault(repr(transform), transform)  # that text names all settings
        view = list(transforms).index(repr(transform))
        alike = [
            m
            for m in found
            if found[m].view == view and m.views == model.views == "center" and m.cell.reads == model.cell.reads
        ]
        shared = (found[m] for m in alike if _equal(m.backbone, model.backbone))
        found[model] = next(shared, None) or Pass(model, view)
    return found, list(transforms.values())


def base_methods(model: SRNN, source: Pass, flip: bool = False) -> list[Method]:
    """The base CNN by itself: every single scale, F(C(x_s)), and the two ensembles of section 4.1.

    With `flip` also test-time augmentation: the mean of the probabilities of image and mirror image, at the last level,
    and at all.
    """

    def answer(features: list[Tensor], levels: Iterable[int]) -> Tensor:
        return torch.stack([model.level_logits(x, level) for x, level in zip(features, levels, strict=True)])

    def single(level: int) -> Method:
        read = [(source, slice(level, level + 1))]
        return Method(names[level], read, model, lambda features: answer(features, [level])[0])

    def ensemble(name: str, which: int, read: list[tuple[Pass, slice]], levels: list[int]) -> Method:
        return Method(name, read, model, lambda features: ensembles(answer(features, levels))[which])

    names = [_level_name(model, level, *size) for level, size in enumerate(source.sizes)]
    every = list(range(len(names)))
    found = [single(level) for level in every]
    if len(every) > 1:
        found.append(ensemble(PROBABILITY_ENSEMBLE, 1, [(source, slice(None))], every))
        found.append(ensemble(LOGIT_ENSEMBLE, 0, [(source, slice(None))], every))
    if flip:
        mirror = Pass(source.model, source.view, mirrored=True)
        last = slice(len(every) - 1, None)
        found.append(ensemble(f"{names[-1]}, flipped too", 1, [(source, last), (mirror, last)], every[-1:] * 2))
        if len(every) > 1:
            whole = [(source, slice(None)), (mirror, slice(None))]
            found.append(ensemble(f"{PROBABILITY_ENSEMBLE}, flipped too", 1, whole, every * 2))
    return found


def srnn_method(name: str, model: SRNN, source: Pass) -> Method:
    """A model itself: its cell over all levels, and its classifier."""
    last = len(source.sizes) - 1
    return Method(name, [(source, slice(None))], model, partial(_answer_of, model), model.temperature(last))


def ensemble_method(named: Mapping[str, SRNN], source: Mapping[SRNN, Pass]) -> Method:
    """Several models together: the mean of their probabilities.

    Raises:
        ValueError: for one model, and for models with other classes, or another order of them.
    """
    models = list(named.values())
    if len(models) < 2:
        raise ValueError("an ensemble needs two models or more")
    for name, model in named.items():
        if label_names(model) != label_names(models[0]):
            raise ValueError(
                f"{name} has other classes than {next(iter(named))}, or another order of them: no ensemble"
            )
    passes = list(dict.fromkeys(source[model] for model in models))
    starts = dict(zip(passes, itertools.accumulate((len(each.sizes) for each in passes), initial=0), strict=False))

    def head(features: list[Tensor]) -> Tensor:
        answers: list[Tensor] = []
        for model in models:
            start = starts[source[model]]
            answers.append(_answer_of(model, features[start : start + len(source[model].sizes)]).float())
        return log_mean_probability(torch.stack(answers), dim=0)

    return Method(f"ensemble of {', '.join(named)}", [(each, slice(None)) for each in passes], models[0], head)


def _answer_of(model: SRNN, features: list[Tensor]) -> Tensor:
    return model.forward_head(model.fuse(features), level=len(features) - 1)


def _level_name(model: SRNN, level: int, height: int, width: int) -> str:
    name = f"base CNN {height}" if height == width else f"base CNN {height} x {width}"
    return name + (f" zoom {model.zooms[level]:g}" if model.zooms and model.zooms[level] > 1 else "")


def _equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two backbones are built alike, on one device, with the same weights."""
    if a is b or repr(a) != repr(b):
        return a is b
    weights, others = a.state_dict(), b.state_dict()
    return weights.keys() == others.keys() and all(
        one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
        for one, other in zip(weights.values(), others.values(), strict=True)
    )
