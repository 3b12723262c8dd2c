"""All methods on every batch: what one process answers, and how the answers of all processes come together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from srnn_zoo.datasets.classes import label_names
from srnn_zoo.datasets.images import Skipped
from srnn_zoo.datasets.loader import Batch, read_ahead
from srnn_zoo.datasets.readers import Images, target_indices
from srnn_zoo.inference.processes import Processes, in_order

from .by_level import ByLevel, Part
from .methods import MEASURED_BATCHES, Method, ScoredBatch
from .table import Row


class Answers(NamedTuple):
    """What is said of a batch.

    Attributes:
        names: of the images that can be read.
        targets: indices of their classes in the data set's own order.
        scored: what each method says.
        seen: what each watched model says after every level, by its name.
        skipped: what could not be read.
    """

    names: list[str]
    targets: list[int]
    scored: list[ScoredBatch]
    seen: dict[str, Part]
    skipped: list[Skipped]


class Answering:
    """All methods on all images of a data set.

    Args:
        methods: with different names.
        images: whose classes all models must know.
        watched: what collects the answers of a method level by level, by its name.
        load: gives the batches of these ranges of indices, or all.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        images: Images,
        watched: Mapping[str, ByLevel],
        load: Callable[[Sequence[range] | None], Iterable[Batch]],
    ) -> None:
        self.methods, self.watched, self.load = methods, watched, load
        self._indices = [target_indices(method.model, images) for method in methods]
        self._labels = [label_names(method.model) for method in methods]

    def answer_all(self, batches: Sequence[range], processes: Processes, writer: Any, bar: Any) -> list[Skipped]:
        """Share the batches among processes; all of them get all answers. Without batches, answer all in this one.

        Args:
            batches: of indices of the images.
            processes: that share them.
            writer: of the file of predictions, or None for none.
            bar: shows how many images are done.

        Returns:
            what could not be read.

        Raises:
            ValueError: if no image can be read.
        """
        found: Iterable[Answers] = self._answer()
        if batches:
            found = itertools.chain.from_iterable(in_order(batches, self._answer, 1, processes, everywhere=True))
        skipped: list[Skipped] = []
        for answers in found:
            skipped += answers.skipped
            self._keep(answers, writer)
            bar.update(len(answers.names) + len(answers.skipped))
        if not self.methods[0].correct:
            first = f"; the first: {skipped[0].reason}" if skipped else ""
            raise ValueError(f"none of {len(skipped)} images can be read{first}")
        for model in self.watched.values():
            model.share(processes)
        return skipped

    def rows(self, processes: Processes) -> tuple[Row, ...]:
        """The rows of the table; costs are as the first process measures them that has answered."""
        own = [method.cost() for method in self.methods] if self.methods[0].source.features else None
        costs = next(each for each in processes.share([own]) if each)
        return tuple(method.row(cost) for method, cost in zip(self.methods, costs, strict=True))

    @torch.inference_mode()
    def _answer(self, own: Sequence[range] | None = None) -> Iterator[Answers]:
        """What is said of each of these batches, or of all."""
        position = 0
        for number, batch in enumerate(read_ahead(self.load(own), start=MEASURED_BATCHES)):
            position = position if own is None else own[number].start
            yield self._answer_batch(batch, position) if batch.names else Answers([], [], [], {}, batch.skipped)
            position += len(batch.names) + len(batch.skipped)

    def _answer_batch(self, batch: Batch, position: int) -> Answers:
        for source in dict.fromkeys(source for method in self.methods for source, _ in method.reads):
            source.read(batch.levels[source.view])
        targets = [batch.targets_of(indices) for indices in self._indices]
        scored = [method.answer(own) for method, own in zip(self.methods, targets, strict=True)]
        seen: dict[str, Part] = {}
        for method, own in zip(self.methods, targets, strict=True):
            if model := self.watched.get(method.name):
                levels = batch.levels[method.source.view]
                seen[method.name] = model.look(batch.names, own, method.source.features, levels, position)
        return Answers(batch.names, batch.targets, scored, seen, batch.skipped)

    def _keep(self, answers: Answers, writer: Any) -> None:
        for method, scored in zip(self.methods, answers.scored, strict=bool(answers.names)):
            method.keep(scored)
        for name, part in answers.seen.items():
            self.watched[name].keep(part)
        if writer is not None and answers.names:
            targets = [self._labels[0][self._indices[0][target]] for target in answers.targets]
            columns = [_cells(*each) for each in zip(self._labels, answers.scored, strict=True)]
            for name, target, *cells in zip(answers.names, targets, *columns, strict=True):
                writer.writerow([name, target, *itertools.chain(*cells)])


def _cells(labels: list[str], answers: ScoredBatch) -> Iterator[tuple[str, str, int]]:
    """What one method says of each image, for the file of predictions."""
    for index, probability, correct, _ in zip(*answers, strict=True):
        yield labels[index], f"{probability:.6g}", int(correct)
