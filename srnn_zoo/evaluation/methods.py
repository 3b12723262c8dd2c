"""Methods of an evaluation: what each reads, what it answers on batch after batch, and what that costs."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from srnn_zoo.models.cost import level_gmacs
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.transforms.presets import create_transform

from .table import Row

__all__ = [
    "LOGIT_ENSEMBLE",
    "PROBABILITY_ENSEMBLE",
    "BatchAnswers",
    "Method",
    "Pass",
    "base_methods",
    "passes",
    "srnn_method",
]

PROBABILITY_ENSEMBLE = "probability ensemble"
LOGIT_ENSEMBLE = "logit ensemble"


class Clock:
    """Measures what is done once a batch, on any device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []
        self.images: list[int] = []

    @contextmanager
    def time(self, images: int) -> Iterator[None]:
        """Measure the body, which works on so many images."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds.append(time.perf_counter() - start)
        self.images.append(images)

    @property
    def seconds_per_image(self) -> float:
        """The mean; where there are several batches, the first is a warm-up and does not count."""
        first = 1 if len(self.seconds) > 1 else 0
        return sum(self.seconds[first:]) / sum(self.images[first:])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()


class Pass:
    """One backbone on the levels of one preprocessing: run once a batch, for all rows that share both.

    Args:
        model: whose backbone it is.
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
        """C(x_s) of every level `(B, C, H_s, W_s)`; the features of the batch before are let go."""
        self.features = []
        for index, (level, clock) in enumerate(zip(levels, self.clocks, strict=True)):
            on_device = level.to(self.like.device, self.like.dtype)
            with clock.time(len(level)):
                self.features.append(self.model.level_features(on_device, index))


class BatchAnswers(NamedTuple):
    """What a method says of a batch, one entry an image, on the CPU.

    Attributes:
        classes: its first answer.
        probabilities: of that answer, in [0, 1]; NaN where logits are not finite.
        correct: whether it is right; never where logits are not finite.
        in_top5: whether one of the first five answers is.
    """

    classes: Tensor
    probabilities: Tensor
    correct: Tensor
    in_top5: Tensor


class Method:
    """A row of the table while it is made.

    Args:
        name: of the row.
        source: the pass it reads.
        levels: which of its levels.
        model: whose classes it answers with.
        head: features `(B, D)` of these levels to logits `(B, K)`.
    """

    def __init__(
        self, name: str, source: Pass, levels: slice, model: SRNN, head: Callable[[list[Tensor]], Tensor]
    ) -> None:
        self.name = name
        self.source = source
        self.levels = levels
        self.model = model
        self.head = head
        self.clock = Clock(source.like.device)
        self.correct: list[Tensor] = []
        self.in_top5: list[Tensor] = []
        self.not_finite = 0

    def answer(self, targets: Tensor) -> BatchAnswers:
        """Answer on the batch that the pass has read; `targets` `(B,)` are of the model's own classes."""
        features = self.source.features[self.levels]
        with self.clock.time(len(targets)):
            logits = self.head(features)
        logits = logits.float()
        finite = logits.isfinite().all(dim=1)
        best = logits.topk(min(5, logits.shape[1])).indices
        hits = (best == targets.to(best.device)[:, None]) & finite[:, None]
        probabilities = logits.softmax(dim=1).gather(1, best[:, :1])[:, 0].masked_fill(~finite, torch.nan)
        answers = BatchAnswers(best[:, 0].cpu(), probabilities.cpu(), hits[:, 0].cpu(), hits.any(dim=1).cpu())
        self.correct.append(answers.correct)
        self.in_top5.append(answers.in_top5)
        self.not_finite += int((~finite).sum())
        return answers

    def row(self) -> Row:
        """The row of what was answered till now."""
        clocks = [*self.source.clocks[self.levels], self.clock]
        return Row(
            self.name,
            self.source.sizes[self.levels],
            torch.cat(self.correct),
            torch.cat(self.in_top5),
            self._gmacs(),
            1 / sum(clock.seconds_per_image for clock in clocks),
            self.not_finite,
        )

    @torch.no_grad()  # in inference mode older counters see nothing
    def _gmacs(self) -> float:
        sizes = self.source.sizes[self.levels]
        features = [self.source.like.new_zeros(1, self.model.num_features) for _ in sizes]
        with FlopCounterMode(display=False) as counter:
            self.head(features)
        return sum(level_gmacs(self.model, size) for size in sizes) + counter.get_total_flops() / 2e9


def passes(models: Iterable[SRNN]) -> tuple[dict[SRNN, Pass], list[Any]]:
    """For every model its pass, one for all with equal backbones and preprocessing; and the transforms of the views."""
    found: dict[SRNN, Pass] = {}
    transforms: dict[str, Any] = {}
    for model in models:
        transform = create_transform(model)
        transforms.setdefault(repr(transform), transform)  # it shows all there is in a transform
        view = list(transforms).index(repr(transform))
        shared = (p for p in found.values() if p.view == view and _equal(p.model.backbone, model.backbone))
        found[model] = next(shared, None) or Pass(model, view)
    return found, list(transforms.values())


def base_methods(model: SRNN, source: Pass) -> list[Method]:
    """The base CNN by itself: every single scale, F(C(x_s)), and the two ensembles of section 4.1."""

    def single(features: list[Tensor], level: int) -> Tensor:
        (of_level,) = features
        return model.forward_head(of_level[:, :, None, None], level=level)

    def every(features: list[Tensor]) -> Tensor:
        return torch.stack([single([of_level], level) for level, of_level in enumerate(features)])  # (n, B, K)

    def mean_logit(features: list[Tensor]) -> Tensor:
        return every(features).mean(dim=0)

    def mean_probability(features: list[Tensor]) -> Tensor:
        log_prob = every(features).float().log_softmax(dim=2)
        return log_prob.logsumexp(dim=0) - math.log(len(features))  # the logarithm of the mean, never of zero

    rows = [
        Method(f"base CNN {_size(size)}", source, slice(s, s + 1), model, functools.partial(single, level=s))
        for s, size in enumerate(source.sizes)
    ]
    if len(rows) > 1:
        rows.append(Method(PROBABILITY_ENSEMBLE, source, slice(None), model, mean_probability))
        rows.append(Method(LOGIT_ENSEMBLE, source, slice(None), model, mean_logit))
    return rows


def srnn_method(name: str, model: SRNN, source: Pass) -> Method:
    """A model: its cell over all levels, and its classifier."""

    def head(features: list[Tensor]) -> Tensor:
        return model.forward_head(model.fuse(features), level=len(features) - 1)

    return Method(name, source, slice(None), model, head)


def _size(size: tuple[int, int]) -> str:
    height, width = size
    return str(height) if height == width else f"{height} x {width}"


def _equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two backbones are built alike, on one device, with the same weights."""
    if a is b:
        return True
    if repr(a) != repr(b):
        return False
    weights, others = a.state_dict(), b.state_dict()
    return weights.keys() == others.keys() and all(_same(weights[key], others[key]) for key in weights)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
