"""The ways that a comparison has in its table: an SRNN, and the rivals that a sceptic names first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from srnn_zoo.inference.cascade import all_answer, last_answer
from srnn_zoo.inference.curve import top1
from srnn_zoo.inference.exits import ScoreRule
from srnn_zoo.inference.thresholds import Outcome, family, fit_rule, measure, stops

from .fits import Answers, Fit, Fits
from .views import EXPONENTS, View

Group = Literal["single scale", "ensemble", "cascade", "trained mean", "SRNN"]

SINGLE = "vanilla_scalar"  # of one level, where all cells give F(C(x))


class Operating(NamedTuple):
    """A way at a budget, chosen on the images that choose, and what it does on those that measure.

    Attributes:
        val_accuracy: on the images that choose, in per cent, mean over the seeds.
        gmacs: mean cost of an image on those that measure.
        right: `(seeds, N)`, whether each of these is answered rightly.
    """

    val_accuracy: float
    gmacs: float
    right: Tensor

    @property
    def accuracy(self) -> float:
        """On the images that measure, in per cent, mean over the seeds."""
        return 100 * self.right.double().mean().item()


@dataclass(eq=False)
class Way:
    """One way to answer.

    Attributes:
        name: of its row.
        group: which kind of way it is.
        chosen: what was chosen for it on the images that choose.
        answers: seed by seed.
        rule: of early exit, where there are several answers.
        fit: what was fitted, of an SRNN and of the trained mean.
        reads: the levels that it has in common with other ways, as they are named in tables; empty for a single one.
    """

    name: str
    group: Group
    chosen: str
    answers: Sequence[Answers] = field(repr=False)
    rule: str = "confidence"
    fit: Fit | None = None
    reads: str = ""
    _known: dict[float, Operating | None] = field(default_factory=dict, repr=False)

    @property
    def gmacs(self) -> float:
        """The cost of all of it."""
        return self.answers[0].val.gmacs[-1].item()

    @property
    def stops_early(self) -> bool:
        """Whether it answers before its end as well."""
        return len(self.answers[0].val.gmacs) > 1

    @property
    def budgets(self) -> list[float]:
        """What its curve is drawn at: twenty, from its first answer to all of it; one where it does not stop early."""
        first = self.answers[0].val.gmacs[0].item()
        return [first + (self.gmacs - first) * step / 19 for step in range(20)] if self.stops_early else [self.gmacs]

    def whole(self) -> Operating:
        """All of it, for every image, without early exit."""
        return _mean([(top1(val.right[-1]), self.gmacs, test.right[-1]) for val, test in self.answers])

    def at(self, budget: float) -> Operating | None:
        """What it does for so many GMACs an image on average; None where it cannot be that cheap.

        Thresholds use most of the budget up on the images that choose. Whether these are answered rightly plays no part
        (MSDNet's budgeted classification; Huang et al., 2018), so that their accuracy promises no more than that of a
        way without thresholds.
        """
        if budget not in self._known:
            self._known[budget] = self._within(budget)
        return self._known[budget]

    def _within(self, budget: float) -> Operating | None:
        if budget * (1 + 1e-6) >= self.gmacs:
            return self.whole()
        if not self.stops_early or budget * (1 + 1e-6) < self.answers[0].val.gmacs[0]:
            return None
        found: list[tuple[float, float, Tensor]] = []
        for (_, test), (rule, outcomes) in zip(self.answers, self._spending, strict=True):
            outcome = max((each for each in outcomes if each.gmacs <= budget * (1 + 1e-6)), key=lambda each: each.gmacs)
            levels = stops(test, rule, outcome.thresholds)
            found.append((outcome.accuracy, test.gmacs[levels].mean().item(), test.right.gather(0, levels[None])[0]))
        return _mean(found)

    @functools.cached_property
    def _spending(self) -> list[tuple[ScoreRule, list[Outcome]]]:
        """For each seed the rule, and what the thresholds of MSDNet's search do on the images that choose."""
        found: list[tuple[ScoreRule, list[Outcome]]] = []
        for val, _ in self.answers:
            rule = fit_rule(val, self.rule)
            at_once = (0.0,) * (len(val.gmacs) - 1)  # all stop at the first level
            found.append((rule, measure(val, rule, [at_once, *family(val, rule)])))
        return found


def _mean(found: Sequence[tuple[float, float, Tensor]]) -> Operating:
    accuracies, costs, right = zip(*found, strict=True)
    return Operating(sum(accuracies) / len(found), sum(costs) / len(found), torch.stack(right))


class Ways:
    """All ways of a comparison, each chosen on the images that choose.

    Args:
        fits: what fits and answers.
        sizes: of the levels, smallest first.
        zooms: that are tried for tight crops and for a second level.
        variants: of the SRNNs.
        rule: of early exit.
    """

    def __init__(
        self, fits: Fits, sizes: Sequence[int], zooms: Sequence[float], variants: Sequence[str], rule: str
    ) -> None:
        self._fits, self._sizes, self._zooms = fits, sizes, zooms
        self._variants, self._rule = variants, rule

    def plan(self) -> list[tuple[str, Callable[[], Way]]]:
        """The names of the rows, and what makes each."""
        views, plan = self._fits.views, list[tuple[str, Callable[[], Way]]]()

        def add(name: str, make: Callable[[str], Way], reads: str = "") -> None:
            plan.append((name, lambda: replace(make(name), reads=reads)))

        for size in self._sizes:
            add(f"single scale {size}", functools.partial(self._single, [View(size)]))
            if self._zooms:
                add(f"tight crop {size}", functools.partial(self._single, [View(size, zoom) for zoom in self._zooms]))
            if views.has_batch_norm:
                add(f"FixRes {size}", functools.partial(self._single, [View(size, own_norm=True)]))
            if views.has_pooled_maps:
                means = [View(size, exponent=exponent) for exponent in (1.0, *EXPONENTS)]
                add(f"GeM {size}", functools.partial(self._single, means))
        add("test-time augmentation", self._augmented)
        for pyramids in self._pyramids():
            what = " + ".join(map(str, pyramids[0]))
            if len(pyramids) > 1:
                what = " + ".join("zoom" if view.zoom > 1 else str(view) for view in pyramids[0])
            if pyramids[0][0].zoom == 1:  # it has no order
                add(f"ensemble {what}", functools.partial(self._ensemble, pyramids), what)
            add(f"cascade {what}, last answers", functools.partial(self._cascade, pyramids, False), what)
            add(f"cascade {what}, all answer", functools.partial(self._cascade, pyramids, True), what)
            add(f"trained mean {what}", functools.partial(self._joint, pyramids, "mean_logit", "trained mean"), what)
            for variant in self._variants:
                add(f"{variant} {what}", functools.partial(self._joint, pyramids, variant, "SRNN"), what)
        return plan

    def _pyramids(self) -> Iterator[list[tuple[View, ...]]]:
        """Whole images at all sizes; at the smallest the whole image and one of its zooms, in either order."""
        if len(self._sizes) > 1:
            yield [tuple(View(size) for size in self._sizes)]
        if self._zooms:
            whole = View(self._sizes[0])
            yield [(whole, View(whole.size, zoom)) for zoom in self._zooms]
            yield [(View(whole.size, zoom), whole) for zoom in self._zooms]

    def _single(self, choices: Sequence[View], name: str) -> Way:
        fit = self._best_single(choices)
        chosen = _chosen(fit, len(choices) > 1)
        if len({view.exponent for view in choices}) > 1:
            chosen = f"exponent {fit.views[0].exponent:g}, lr {fit.lr:g}"
        return Way(name, "single scale", chosen, self._fits.answers(fit))

    def _joint(self, pyramids: Sequence[tuple[View, ...]], variant: str, group: Group, name: str) -> Way:
        fit = self._fits.best(pyramids, variant)
        return Way(name, group, _chosen(fit, len(pyramids) > 1), self._fits.answers(fit), self._rule, fit)

    def _ensemble(self, pyramids: Sequence[tuple[View, ...]], name: str) -> Way:
        """The mean of the probabilities of networks that were fitted one by one."""
        tried = [(views, self._combined(views, both=True)) for views in pyramids]
        views, answers = max(tried, key=lambda each: _val(each[1]))
        ends = [Answers(*map(last_answer, each)) for each in answers]
        return Way(name, "ensemble", " + ".join(map(str, views)), ends)

    def _cascade(self, pyramids: Sequence[tuple[View, ...]], both: bool, name: str) -> Way:
        """The next network is asked only where the ones before are unsure; it answers alone, or all together."""
        tried = [(views, self._combined(views, both)) for views in pyramids]
        views, answers = max(tried, key=lambda each: _val(each[1]))
        return Way(name, "cascade", " + ".join(map(str, views)), answers, self._rule)

    def _augmented(self, name: str) -> Way:
        """One network on the image and its mirror image, at its own size or at all: the mean of the probabilities."""
        tried: list[tuple[str, list[Answers]]] = []
        for size in self._sizes:
            fit = self._best_single([View(size)])
            for read in dict.fromkeys([(size,), tuple(self._sizes)]):
                views = [View(each, flipped=flipped) for each in read for flipped in (False, True)]
                words = "flip" if read == (size,) else f"flip and {' + '.join(map(str, read))}"
                tried.append((f"fitted at {size}; {words}", self._fits.augmented(fit, views)))
        chosen, answers = max(tried, key=lambda each: _val(each[1]))
        return Way(name, "single scale", chosen, answers)

    def _best_single(self, choices: Sequence[View]) -> Fit:
        return self._fits.best([(view,) for view in choices], SINGLE)

    def _combined(self, views: Sequence[View], both: bool) -> list[Answers]:
        """The answers of networks of one view each, as levels: of the last asked, or the mean of all asked so far."""
        alone = [self._fits.answers(self._best_single([view])) for view in views]
        found: list[Answers] = []
        for of_seed in zip(*alone, strict=True):
            splits: list[Tensor] = [torch.cat([answers[split].logits for answers in of_seed]) for split in (0, 1)]
            if both:
                splits = [all_answer(logits) for logits in splits]
            pairs = zip(splits, ("val", "test"), strict=True)
            found.append(Answers(*(self._fits.collected(logits, split, views) for logits, split in pairs)))
        return found


def _val(answers: Sequence[Answers]) -> float:
    return sum(top1(each.val.right[-1]) for each in answers)


def _chosen(fit: Fit, choice: bool) -> str:
    views = f"{' + '.join(map(str, fit.views))}, " if choice else ""
    return f"{views}lr {fit.lr:g}"
