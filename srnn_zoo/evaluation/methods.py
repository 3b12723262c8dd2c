"""The methods that an evaluation compares: what each reads, what it answers batch by batch, and what that costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from srnn_zoo.inference.answers import ensembles
from srnn_zoo.inference.prepare import for_inference
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
    passes.
    """

    def __init__(self, model: SRNN, view: int) -> None:
        self.model, self.view = for_inference(model), view
        self.sizes = tuple(model.level_sizes())
        self.like = next(model.parameters())
        self.clocks = [Clock(self.like.device) for _ in self.sizes]
        self.features: list[Tensor] = []

    def read(self, images: Tensor | Sequence[Tensor]) -> None:
        """What the cell reads of every level `(B, C, H_s, W_s)`, or of images from which the model makes the levels."""
        self.features = []  # first, so that two batches of features never stand in memory
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
    source: Pass  # that it reads
    levels: slice  # of the pass
    model: SRNN  # whose classes it answers with
    head: Callable[[list[Tensor]], Tensor]  # from features of these levels to logits (B, K)
    temperature: float = 1.0  # of its probabilities
    correct: list[Tensor] = field(default_factory=list)
    in_top5: list[Tensor] = field(default_factory=list)
    not_finite: int = 0

    def __post_init__(self) -> None:
        self.clock = Clock(self.source.like.device)

    def answer(self, targets: Tensor) -> ScoredBatch:
        """Answer on the batch that the pass has read; `targets` `(B,)` are indices of the model's own classes."""
        features = self.source.features[self.levels]
        with self.clock.time(len(targets)):
            logits = self.head(features).float()
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
        sizes = self.source.sizes[self.levels]
        zeros = [torch.zeros_like(features[:1]) for features in self.source.features[self.levels]]
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:  # counts the product with h_0 = 0 too
            self.head(zeros)
        gmacs = sum(self.model.level_gmacs(size) for size in sizes) + counter.get_total_flops() / 2e9
        return Cost(gmacs, 1 / sum(clock.seconds_per_image for clock in [*self.source.clocks[self.levels], self.clock]))

    def row(self, cost: Cost) -> Row:
        """The row of the table, from all answers that are kept."""
        sizes = self.source.sizes[self.levels]
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


def base_methods(model: SRNN, source: Pass) -> list[Method]:
    """The base CNN by itself: every single scale, F(C(x_s)), and the two ensembles of section 4.1."""

    def single(level: int) -> Method:
        height, width = source.sizes[level]
        name = f"base CNN {height}" if height == width else f"base CNN {height} x {width}"
        name += f" zoom {model.zooms[level]:g}" if model.zooms and model.zooms[level] > 1 else ""
        return Method(name, source, slice(level, level + 1), model, lambda x: model.level_logits(x[0], level))

    def ensemble(name: str, which: int) -> Method:
        def head(features: list[Tensor]) -> Tensor:
            return ensembles(torch.stack([model.level_logits(x, level) for level, x in enumerate(features)]))[which]

        return Method(name, source, slice(None), model, head)

    singles = [single(level) for level in range(len(source.sizes))]
    return singles if len(singles) == 1 else [*singles, ensemble(PROBABILITY_ENSEMBLE, 1), ensemble(LOGIT_ENSEMBLE, 0)]


def srnn_method(name: str, model: SRNN, source: Pass) -> Method:
    """A model itself: its cell over all levels, and its classifier."""
    last = len(source.sizes) - 1

    def head(features: list[Tensor]) -> Tensor:
        return model.forward_head(model.fuse(features), level=last)

    return Method(name, source, slice(None), model, head, model.temperature(last))


def _equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two backbones are built alike, on one device, with the same weights."""
    if a is b or repr(a) != repr(b):
        return a is b
    weights, others = a.state_dict(), b.state_dict()
    return weights.keys() == others.keys() and all(
        one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
        for one, other in zip(weights.values(), others.values(), strict=True)
    )
