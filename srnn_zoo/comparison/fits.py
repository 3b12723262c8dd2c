"""Cells and classifiers fitted to the features of views: every rate and seed once, and what the best of them answer."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from srnn_zoo.inference.answers import CollectedAnswers
from srnn_zoo.models.cells import log_mean_probability
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.training.features import evaluate_features, fit_features
from srnn_zoo.training.recipe import Recipe

from .views import FrozenViews, View


class Fit(NamedTuple):
    """What is fitted: a cell and a classifier to the features of these views, at a learning rate."""

    views: tuple[View, ...]
    variant: str
    lr: float


class Answers(NamedTuple):
    """What one fit says of the images that choose and of those that measure."""

    val: CollectedAnswers
    test: CollectedAnswers


class Fits:
    """Fits cells and classifiers, and remembers in a file how good they were, so that a run can go on.

    Args:
        views: where features come from.
        create: makes a model of so many levels and a variant.
        recipe: how to fit; its `lr` and `seed` are replaced.
        rates: the learning rates to try.
        seeds: the seeds.
        journal: the file.
    """

    def __init__(
        self,
        views: FrozenViews,
        create: Callable[[int, str], SRNN],
        recipe: Recipe,
        rates: Sequence[float],
        seeds: Sequence[int],
        journal: Path,
    ) -> None:
        self.views, self._create, self._recipe = views, create, recipe
        self._rates, self.seeds, self._journal = rates, seeds, journal
        self._models: dict[tuple[int, str], tuple[SRNN, dict[str, Tensor]]] = {}
        self._answers: dict[Fit, list[Answers]] = {}
        self._version = f"{views.version('train', 'val')} {dataclasses.replace(recipe, lr=1.0, seed=0)}"
        self._known = dict(_whole_lines(journal))

    def best(self, choices: Sequence[Sequence[View]], variant: str) -> Fit:
        """The choice of views, and the rate, with the best mean accuracy on the images that choose."""
        tried = [Fit(tuple(views), variant, lr) for views in choices for lr in self._rates]
        return max(tried, key=self.accuracy)

    def accuracy(self, fit: Fit) -> float:
        """Mean accuracy over the seeds on the images that choose, in per cent."""
        return statistics.fmean(self._accuracy(fit, seed) for seed in self.seeds)

    def answers(self, fit: Fit) -> list[Answers]:
        """What a fit says, seed by seed."""
        if fit not in self._answers:
            self._answers[fit] = [self._answer(fit, seed) for seed in self.seeds]
        return self._answers[fit]

    def augmented(self, fit: Fit, views: Sequence[View]) -> list[Answers]:
        """What the mean of the probabilities says that a fit of one view gives to several, seed by seed."""
        found: list[Answers] = []
        for seed in self.seeds:
            model = self._fitted(fit, seed)
            logits: dict[str, Tensor] = {}
            for split in ("val", "test"):
                alone = [evaluate_features(model, self.views.features([view], split))[0] for view in views]
                logits[split] = log_mean_probability(torch.stack(alone), dim=0)[None]
            gmacs = [sum(map(self.views.gmacs, views))]
            found.append(Answers(*(self.collected(logits[split], split, fit.views, gmacs) for split in logits)))
        return found

    def collected(
        self, logits: Tensor, split: str, views: Sequence[View], gmacs: Sequence[float] | None = None
    ) -> CollectedAnswers:
        """Logits `(L, N, K)` of a split as answers with their costs, by default those of reading view after view."""
        costs = torch.tensor(gmacs or [self.views.gmacs(view) for view in views], dtype=torch.float64)
        targets = self.views.features(views[:1], split).targets
        return CollectedAnswers(logits, targets, costs if gmacs else costs.cumsum(0))

    def _accuracy(self, fit: Fit, seed: int) -> float:
        key = json.dumps([fit, seed, self._version])
        if key not in self._known:
            right = self._collect(self._fitted(fit, seed), fit, "val").right[-1]
            self._known[key] = 100 * right.double().mean().item()
            with self._journal.open("a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps([key, self._known[key]])}")  # a line that was cut stays alone
        return self._known[key]

    def _answer(self, fit: Fit, seed: int) -> Answers:
        model = self._fitted(fit, seed)
        return Answers(self._collect(model, fit, "val"), self._collect(model, fit, "test"))

    def _collect(self, model: SRNN, fit: Fit, split: str) -> CollectedAnswers:
        logits = evaluate_features(model, self.views.features(fit.views, split))
        return self.collected(logits, split, fit.views)

    def _fitted(self, fit: Fit, seed: int) -> SRNN:
        """A model with the fitted cell and classifier; the next call changes it."""
        train = self.views.features(fit.views, "train")
        kind = (len(fit.views), fit.variant)
        if kind not in self._models:
            model = self._create(*kind)
            self._models[kind] = (model, copy.deepcopy(model.cell.state_dict()))
        model, start = self._models[kind]
        torch.manual_seed(seed)
        model.reset_classifier(model.num_classes)
        model.cell.load_state_dict(start)
        how = dataclasses.replace(self._recipe, lr=fit.lr, seed=seed)
        fit_features(model, train, how, progress=False)
        return model


def _whole_lines(journal: Path) -> Iterator[tuple[str, float]]:
    """What the file holds, without lines that an interruption has cut."""
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
        with contextlib.suppress(ValueError):
            key, accuracy = json.loads(line)
            yield key, accuracy
