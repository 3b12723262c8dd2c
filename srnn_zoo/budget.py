"""Budgets: exit thresholds from held-out images, and the curve of accuracy against cost."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._errors import unknown_name
from .anytime import SCORE_RULES, Anytime
from .exits import ScoreRule
from .flops import level_gmacs
from .model import SRNN

__all__ = ["Answers", "Point", "calibrate", "collect", "pareto", "write_pareto"]


@dataclass(frozen=True)
class Answers:
    """What a model says of a data set after every level.

    Attributes:
        logits: `(L, N, K)`.
        targets: `(N,)`.
        gmacs: what it costs an image to be answered after each level, `(L,)`, growing.
    """

    logits: Tensor
    targets: Tensor
    gmacs: Tensor


@dataclass(frozen=True)
class Point:
    """One way to stop, on a data set.

    Attributes:
        name: of the rule, or `level 0`, ….
        gmacs: mean cost of an image.
        accuracy: top-1, in per cent.
        exits: the part of the images that stopped at each level, in [0, 1].
        thresholds: for every level but the last.
    """

    name: str
    gmacs: float
    accuracy: float
    exits: tuple[float, ...]
    thresholds: tuple[float, ...] = ()


def calibrate(
    model: SRNN,
    loader: Iterable[tuple[Any, Tensor]] | Answers,
    *,
    budget_gmacs: float | None = None,
    target_accuracy: float | None = None,
    rule: str = "confidence",
) -> Anytime:
    """Find one exit threshold for every level on held-out images, never on the test split.

    Temperatures come first, one for every level (Guo et al., 2017). Then thresholds are searched as in MSDNet's
    budgeted batch classification (Huang et al., 2018): a level lets a part of the images go that shrinks, or grows,
    geometrically from level to level. The result is stored in `model.metadata`, so that it is saved with the model and
    comes back.

    Args:
        model: in eval mode.
        loader: batches of images or levels, with their classes `(B,)`; or what `collect` made of them.
        budget_gmacs: mean cost of an image that must not be exceeded; the most accurate thresholds are taken.
        target_accuracy: top-1 accuracy in per cent that must be reached; the cheapest thresholds are taken.
        rule: `"confidence"`, `"margin"` or `"entropy"`.

    Raises:
        ValueError: if not exactly one aim is given, the budget is below the first level's cost, the accuracy is out of
            reach, the rule is unknown, or images are missing.

    Examples:
        >>> fast = calibrate(model, val_loader, budget_gmacs=1.0)
        >>> model.save_pretrained("flowers")
        >>> fast = Anytime(SRNN.from_pretrained("flowers").eval())
    """
    if (budget_gmacs is None) == (target_accuracy is None):
        raise ValueError("give either budget_gmacs or target_accuracy")
    if rule not in SCORE_RULES:
        raise ValueError(unknown_name("rule", rule, SCORE_RULES))
    answers = loader if isinstance(loader, Answers) else collect(model, loader)
    temperatures = [_temperature(logits, answers.targets) for logits in answers.logits]
    points = _search(answers, rule, temperatures)
    if budget_gmacs is not None:
        cheapest = answers.gmacs[0].item()
        if not budget_gmacs >= cheapest:
            raise ValueError(
                f"the first level alone costs {cheapest:.3f} GMACs; a budget of {budget_gmacs} is too small"
            )
        best = max((p for p in points if p.gmacs <= budget_gmacs + 1e-9), key=lambda p: (p.accuracy, -p.gmacs))
    else:
        reached = [p for p in points if p.accuracy >= float(target_accuracy or 0) - 1e-9]
        if not reached:
            most = max(p.accuracy for p in points)
            raise ValueError(f"no thresholds reach {target_accuracy} %: the most on these images is {most:.2f} %")
        best = min(reached, key=lambda p: (p.gmacs, -p.accuracy))
    model.metadata["exit"] = {
        "rule": rule,
        "thresholds": list(best.thresholds),
        "temperatures": temperatures,
        "held_out": {"gmacs": best.gmacs, "top1": best.accuracy, "images": len(answers.targets)},
    }
    return Anytime(model)


@torch.no_grad()
def collect(model: SRNN, loader: Iterable[tuple[Any, Tensor]], progress: bool = True) -> Answers:
    """A model's logits after every level, for all images of a loader; all must have the same sizes.

    Args:
        model: in eval mode.
        loader: batches of images or levels, with their classes `(B,)`.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for no image, for batches of different sizes, and a variant that cannot stop early.
    """
    from tqdm import tqdm

    if not model.cell.anytime:
        raise ValueError(f"variant {model.variant!r} answers after the last level only; it cannot stop early")
    device = next(model.parameters()).device
    logits: list[Tensor] = []
    targets: list[Tensor] = []
    sizes: list[tuple[int, int]] = []
    for images, classes in tqdm(loader, unit="batch", leave=False, disable=None if progress else True):
        moved = images.to(device) if isinstance(images, Tensor) else [level.to(device) for level in images]
        steps = list(model.steps(moved))
        if sizes and sizes != [step.size for step in steps]:
            raise ValueError(f"all images must have levels of the same sizes; got {sizes}, then others")
        sizes = [step.size for step in steps]
        logits.append(torch.stack([step.logits.float().cpu() for step in steps]))
        targets.append(torch.as_tensor(classes).cpu())
    if not targets:
        raise ValueError("the loader gave no image")
    gmacs = torch.tensor([level_gmacs(model, size) for size in sizes]).cumsum(0)
    return Answers(torch.cat(logits, dim=1), torch.cat(targets), gmacs)


def pareto(answers: Answers, rule: str = "confidence", temperatures: list[float] | None = None) -> list[Point]:
    """Accuracy against mean cost: the thresholds that no others beat in both, and every level by itself.

    Args:
        answers: what `collect` made.
        rule: `"confidence"`, `"margin"` or `"entropy"`.
        temperatures: one for every level; by default found on these answers.

    Returns:
        the curve, cheapest first, then the fixed levels.
    """
    temperatures = temperatures or [_temperature(logits, answers.targets) for logits in answers.logits]
    curve: list[Point] = []
    for point in sorted(_search(answers, rule, temperatures), key=lambda p: (p.gmacs, -p.accuracy)):
        if not curve or point.accuracy > curve[-1].accuracy:
            curve.append(point)
    levels = len(answers.gmacs)
    correct = (answers.logits.argmax(dim=2) == answers.targets).float().mean(dim=1) * 100
    fixed = [
        Point(f"level {s}", answers.gmacs[s].item(), correct[s].item(), tuple(float(s == t) for t in range(levels)))
        for s in range(levels)
    ]
    return [*curve, *fixed]


def write_pareto(points: Iterable[Point], path: str | Path) -> None:
    """Write points to a CSV file, one a row."""
    rows = [{**asdict(p), "exits": _numbers(p.exits), "thresholds": _numbers(p.thresholds)} for p in points]
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def _temperature(logits: Tensor, targets: Tensor) -> float:
    """The T for which softmax(logits / T) is best calibrated, in negative log-likelihood; 1 where nothing is finite."""
    finite = logits.isfinite().all(dim=1)
    logits, targets = logits[finite].double(), targets[finite]
    if len(targets) == 0:
        return 1.0
    low, high = -1.5, 1.5  # powers of ten
    for _ in range(3):  # ever finer around the best
        grid = torch.linspace(low, high, 31, dtype=torch.float64)
        losses = torch.stack([torch.nn.functional.cross_entropy(logits / 10**power, targets) for power in grid])
        best = grid[losses.argmin()].item()
        low, high = best - (high - low) / 30, best + (high - low) / 30
    return 10 ** ((low + high) / 2)


def _search(answers: Answers, rule: str, temperatures: list[float]) -> list[Point]:
    """Points for many thresholds: for every rate, the parts of the images that stop at each level go by its powers."""
    levels = len(answers.logits)
    score: ScoreRule = SCORE_RULES[rule](0.0)
    probabilities = [(logits / t).softmax(dim=1) for logits, t in zip(answers.logits, temperatures, strict=True)]
    scores = torch.stack([score.score(p) for p in probabilities]).nan_to_num(nan=-1.0)  # (L, N); NaN is never sure
    correct = answers.logits.argmax(dim=2) == answers.targets
    candidates = {(2.0,) * level + (0.0,) * (levels - 1 - level) for level in range(levels)}  # all stop at one level
    for rate in torch.logspace(-3, 3, 241).tolist():
        parts = torch.tensor([rate**level for level in range(levels)], dtype=torch.float64)
        candidates.add(_thresholds(scores, parts / parts.sum()))
    return [_point(rule, thresholds, scores, correct, answers.gmacs) for thresholds in candidates]


def _thresholds(scores: Tensor, parts: Tensor) -> tuple[float, ...]:
    """Thresholds at which these parts of the images stop at each level."""
    left = torch.ones(scores.shape[1], dtype=torch.bool)
    found: list[float] = []
    for level in range(len(parts) - 1):
        ranked = scores[level][left].sort(descending=True).values
        count = min(round(parts[level].item() * scores.shape[1]), len(ranked))
        found.append(2.0 if count == 0 else max(ranked[count - 1].item(), 0.0))
        left &= scores[level] < found[-1]
    return tuple(found)


def _point(rule: str, thresholds: tuple[float, ...], scores: Tensor, correct: Tensor, gmacs: Tensor) -> Point:
    levels = len(gmacs)
    sure = torch.cat(
        [scores[:-1] >= torch.tensor(thresholds)[:, None], torch.ones(1, scores.shape[1], dtype=torch.bool)]
    )
    exits = sure.int().argmax(dim=0)  # the first level that is sure
    right = correct.gather(0, exits[None])[0].double().mean().item() * 100
    parts = torch.bincount(exits, minlength=levels) / len(exits)
    return Point(rule, gmacs[exits].double().mean().item(), right, tuple(parts.tolist()), thresholds)
