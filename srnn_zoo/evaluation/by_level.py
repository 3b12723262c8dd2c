"""What a model says after every level, kept image by image; and the images that are worth looking at."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from srnn_zoo.inference.calibrate import check_calibrated
from srnn_zoo.inference.early_exit import stopping_levels
from srnn_zoo.inference.exits import Deadline, ExitRule, ScoreRule, check_rule, exit_rule, stored_rule
from srnn_zoo.inference.processes import Processes
from srnn_zoo.models.recurrence import check_every_exit
from srnn_zoo.models.srnn import SRNN

Group = Literal["mended", "spoiled", "worst"]
GROUPS: tuple[Group, ...] = ("mended", "spoiled", "worst")
CALIBRATED = "calibrated"  # stands for the rule that `calibrate` stored with a model


@dataclass(frozen=True, eq=False)
class Example:
    """An image that is worth looking at, with what the model said of it after every level.

    Attributes:
        name: of the image.
        target: index of its class.
        answers: the class after each level; -1 where logits were not finite.
        confidences: the probability of each answer, in [0, 1].
        truths: the probability of the target after each level, in [0, 1].
        images: what the model read: its levels, each `(1, C, H_s, W_s)`, or the image from which it makes them.
    """

    name: str
    target: int
    answers: tuple[int, ...]
    confidences: tuple[float, ...]
    truths: tuple[float, ...]
    images: Tensor | list[Tensor] = field(repr=False)


class Part(NamedTuple):
    """What a model says of a batch after every level; see `ByLevel`."""

    targets: Tensor  # (B,)
    answers: Tensor  # (L, B), as all below but the last
    confidences: Tensor
    truths: Tensor
    stopped_at: Tensor  # (B,)


class ByLevel:
    """Collects what a model says after every level, batch by batch; of most images a few numbers are kept.

    Args:
        name: of the model.
        model: in eval mode.
        rule: when an image stops; by default none does.
        most: how many examples of each group to keep.

    Attributes:
        first: the level of the first answer: 0, or the last for a cell that answers once (`concat`). The rows of
            everything below are the levels from there on.
        gmacs: what an image costs that is answered after each of these levels.
    """

    def __init__(self, name: str, model: SRNN, rule: ExitRule | None = None, most: int = 12) -> None:
        self.name, self.model, self.rule, self.most = name, model, rule, most
        sizes = model.level_sizes()
        self.first = 0 if model.cell.anytime else len(sizes) - 1
        self.gmacs = list(itertools.accumulate(map(model.level_gmacs, sizes)))[self.first :]
        self.temperatures = [model.temperature(level) for level in range(self.first, len(sizes))]
        self._parts: list[Part] = []
        self._heaps: dict[Group, list[tuple[float, int, Example]]] = {group: [] for group in GROUPS}

    def look(
        self,
        names: Sequence[str],
        targets: Tensor,
        features: Sequence[Tensor],
        images: Tensor | Sequence[Tensor],
        position: int = 0,
    ) -> Part:
        """What the model says of a batch, to be kept; its most telling images are remembered.

        Args:
            names: of the images.
            targets: their classes `(B,)`.
            features: what the cell reads of every level.
            images: what the model read.
            position: of the first image among all.
        """
        logits = torch.stack(list(self.model.exit_logits(features))).float().cpu()
        finite = logits.isfinite().all(dim=2)
        scaled = logits / torch.tensor(self.temperatures)[:, None, None]
        probabilities = scaled.softmax(dim=2).nan_to_num(0.0) * finite[:, :, None]
        confidences, answers = probabilities.max(dim=2)
        answers = answers.where(finite, -1)
        truths = probabilities.gather(2, targets.expand(len(logits), -1)[:, :, None])[:, :, 0]
        stopped_at = torch.full_like(targets, len(logits) - 1)
        if self.rule is not None:
            stopped_at = stopping_levels(self.rule, logits, self.gmacs, self.temperatures)
        part = Part(targets, answers, confidences, truths, stopped_at)
        right = answers == targets
        for row, (group, score) in enumerate(zip(*_groups(right, confidences, truths), strict=True)):
            if group is not None:
                self._offer(group, (score, -position - row), part, row, names[row], images)
        return part

    def keep(self, part: Part) -> None:
        """Count what was said of a batch, in this process or in another."""
        self._parts.append(part)

    def share(self, processes: Processes) -> None:
        """The examples of all processes, in all of them."""
        for group, heap in self._heaps.items():
            self._heaps[group] = heapq.nlargest(self.most, processes.share(heap), key=lambda item: item[:2])

    def _offer(
        self,
        group: Group,
        rank: tuple[float, int],
        part: Part,
        row: int,
        name: str,
        images: Tensor | Sequence[Tensor],
    ) -> None:
        """Keep an image of a batch, if it is among the best examples of its group so far; of two alike, the first."""
        heap = self._heaps[group]
        if self.most == 0 or (len(heap) == self.most and rank <= heap[0][:2]):
            return
        shown = [each[[row]].clone() for each in ([images] if isinstance(images, Tensor) else images)]
        read = shown[0] if isinstance(images, Tensor) else shown
        values = (part.answers, part.confidences, part.truths)
        answers, confidences, truths = (tuple(value[:, row].tolist()) for value in values)
        item = (*rank, Example(name, int(part.targets[row]), answers, confidences, truths, read))
        heapq.heappush(heap, item) if len(heap) < self.most else heapq.heapreplace(heap, item)

    def examples(self, group: Group) -> list[Example]:
        """The images of a group, the most telling first.

        `"mended"`: the first answer is wrong and the last right. `"spoiled"`: the reverse. `"worst"`: other images that
        are wrong after the last level, the surest first.
        """
        return [example for *_, example in sorted(self._heaps[group], key=lambda item: item[:2], reverse=True)]

    @property
    def targets(self) -> Tensor:
        """The classes `(N,)`."""
        return torch.cat([part.targets for part in self._parts])

    @property
    def answers(self) -> Tensor:
        """The class after each level, `(L, N)`; -1 where logits were not finite."""
        return torch.cat([part.answers for part in self._parts], dim=1)

    @property
    def confidences(self) -> Tensor:
        """The probability of each answer, `(L, N)`; 0 where logits were not finite."""
        return torch.cat([part.confidences for part in self._parts], dim=1)

    @property
    def truths(self) -> Tensor:
        """The probability of the true class after each level, `(L, N)`."""
        return torch.cat([part.truths for part in self._parts], dim=1)

    @property
    def stopped_at(self) -> Tensor | None:
        """Where the rule stopped each image, `(N,)`; None without a rule."""
        return None if self.rule is None else torch.cat([part.stopped_at for part in self._parts])


def rule_for(model: SRNN, exit: str | ExitRule) -> ExitRule:
    """The exit rule of a text, or itself, where it fits the model; `"calibrated"` is what `calibrate` stored.

    Raises:
        ValueError: for an unknown rule, one that does not fit or looks at the clock, and a model that cannot stop
            early or was not calibrated.
    """
    check_every_exit(model)
    if exit == CALIBRATED:
        check_calibrated(model, model.level_sizes())
        return stored_rule(model)
    rule = exit_rule(exit) if isinstance(exit, str) else exit
    check_rule(rule, model.task)
    if isinstance(rule, Deadline):
        raise ValueError("a deadline depends on the clock, not on the images: give a rule such as confidence:0.9")
    if isinstance(rule, ScoreRule):
        rule.check(len(model.scales))
    return rule


def _groups(right: Tensor, confidences: Tensor, truths: Tensor) -> tuple[list[Group | None], list[float]]:
    """To which group each image belongs, and how telling it is there."""
    first, last = right[0].tolist(), right[-1].tolist()
    gains = (truths[-1] - truths[0]).tolist()
    groups: list[Group | None] = []
    scores: list[float] = []
    for began, ended, gain, sure in zip(first, last, gains, confidences[-1].tolist(), strict=True):
        groups.append("mended" if ended and not began else "spoiled" if began and not ended else None)
        groups[-1] = groups[-1] or (None if ended else "worst")
        scores.append(sure if groups[-1] == "worst" else abs(gain))
    return groups, scores
