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
from srnn_zoo.models.cost import level_gmacs
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.transforms.presets import create_transform

from .table import Row

PROBABILITY_ENSEMBLE = "probability ensemble"
LOGIT_ENSEMBLE = "logit ensemble"


class Clock:
    """Measures work that is done once a batch, on any device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []
        self.images: list[int] = []

    @contextmanager
    def time(self, images: int) -> Iterator[None]:
        """Measure the body of a `with` statement, which works on this many images."""
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

    Args:
        model: the owner of the backbone.
        view: index of the preprocessing among those of all passes.
    """

    def __init__(self, model: SRNN, view: int) -> None:
        self.model = model
        self.view = view
        self.sizes = tuple(model.level_sizes())
        self.like = next(model.parameters())
        self.clocks = [Clock(self.like.device) for _ in self.sizes]
        self.features: list[Tensor] = []

    def read(self, levels: Sequence[Tensor]) -> None:
        """C(x_s) of every level `(B, C, H_s, W_s)`."""
        self.features = []  # first, so that two batches of features never stand in memory
        for index, (level, clock) in enumerate(zip(levels, self.clocks, strict=True)):
            on_device = level.to(self.like.device, self.like.dtype)
            with clock.time(len(level)):
                self.features.append(self.model.level_features(on_device, index))


class ScoredBatch(NamedTuple):
    """What a row of the table says of a batch, one entry an image, on the CPU.

    Attributes:
        classes: its first answer.
        probabilities: of that answer, in [0, 1]; NaN where logits are not finite.
        correct: whether it is right; never where logits are not finite.
        in_top5: whether one of the first five answers is right.
    """

    classes: Tensor
    probabilities: Tensor
    correct: Tensor
    in_top5: Tensor


@dataclass(eq=False)
class Method:
    """A row of the table while it is made.

    Attributes:
        name: of the row.
        source: the pass that it reads.
        levels: which of the pass's levels.
        model: whose classes it answers with.
        head: from features `(B, D)` of these levels to logits `(B, K)`.
    """

    name: str
    source: Pass
    levels: slice
    model: SRNN
    head: Callable[[list[Tensor]], Tensor]
    correct: list[Tensor] = field(default_factory=list)
    in_top5: list[Tensor] = field(default_factory=list)
    not_finite: int = 0

    def __post_init__(self) -> None:
        self.sizes = self.source.sizes[self.levels]
        self.clock = Clock(self.source.like.device)

    def answer(self, targets: Tensor) -> ScoredBatch:
        """Answer on the batch that the pass has read; `targets` `(B,)` are indices of the model's own classes."""
        features = self.source.features[self.levels]
        with self.clock.time(len(targets)):
            logits = self.head(features).float()
        finite = logits.isfinite().all(dim=1)
        best = logits.topk(min(5, logits.shape[1])).indices
        hits = (best == targets.to(best.device)[:, None]) & finite[:, None]
        probabilities = logits.softmax(dim=1).gather(1, best[:, :1])[:, 0].masked_fill(~finite, torch.nan)
        scored = ScoredBatch(best[:, 0].cpu(), probabilities.cpu(), hits[:, 0].cpu(), hits.any(dim=1).cpu())
        self.correct.append(scored.correct)
        self.in_top5.append(scored.in_top5)
        self.not_finite += int((~finite).sum())
        return scored

    def row(self) -> Row:
        """The row of the table, from all answers."""
        correct, in_top5 = torch.cat(self.correct), torch.cat(self.in_top5)
        seconds = sum(clock.seconds_per_image for clock in [*self.source.clocks[self.levels], self.clock])
        return Row(self.name, self.sizes, correct, in_top5, self._gmacs(), 1 / seconds, self.not_finite)

    @torch.no_grad()  # in inference mode older counters see nothing
    def _gmacs(self) -> float:
        features = [self.source.like.new_zeros(1, self.model.num_features) for _ in self.sizes]
        with FlopCounterMode(display=False) as counter:
            self.head(features)
        return sum(level_gmacs(self.model, size) for size in self.sizes) + counter.get_total_flops() / 2e9


def passes(models: Iterable[SRNN]) -> tuple[dict[SRNN, Pass], list[Any]]:
    """The pass of every model, shared by models with equal backbones and preprocessing; and the views' transforms."""
    found: dict[SRNN, Pass] = {}
    transforms: dict[str, Any] = {}
    for model in models:
        transform = create_transform(model)
        transforms.setdefault(repr(transform), transform)  # that text names all settings
        view = list(transforms).index(repr(transform))
        shared = (p for p in found.values() if p.view == view and _equal(p.model.backbone, model.backbone))
        found[model] = next(shared, None) or Pass(model, view)
    return found, list(transforms.values())


def base_methods(model: SRNN, source: Pass) -> list[Method]:
    """The base CNN by itself: every single scale, F(C(x_s)), and the two ensembles of section 4.1."""

    def alone(features: list[Tensor], first: int = 0) -> list[Tensor]:
        return [model.level_logits(of_level, level) for level, of_level in enumerate(features, first)]

    def single(level: int) -> Method:
        levels = slice(level, level + 1)
        return Method(f"base CNN {_size(source.sizes[level])}", source, levels, model, lambda x: alone(x, level)[0])

    def ensemble(name: str, which: int) -> Method:
        return Method(name, source, slice(None), model, lambda x: ensembles(torch.stack(alone(x)))[which])

    singles = [single(level) for level in range(len(source.sizes))]
    return singles if len(singles) == 1 else [*singles, ensemble(PROBABILITY_ENSEMBLE, 1), ensemble(LOGIT_ENSEMBLE, 0)]


def srnn_method(name: str, model: SRNN, source: Pass) -> Method:
    """A model itself: its cell over all levels, and its classifier."""
    last = len(source.sizes) - 1
    return Method(name, source, slice(None), model, lambda x: model.forward_head(model.fuse(x), level=last))


def _size(size: tuple[int, int]) -> str:
    height, width = size
    return str(height) if height == width else f"{height} x {width}"


def _equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two backbones are built alike, on one device, with the same weights."""
    if a is b or repr(a) != repr(b):
        return a is b
    weights, others = a.state_dict(), b.state_dict()
    return weights.keys() == others.keys() and all(_same(weights[key], others[key]) for key in weights)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
