"""Exit rules and promises on the Grocery Store data set: models of `foveated.py`, on the features in its folder.

First, what every rule answers rightly at the same mean cost: thresholds use a budget up on the validation split, and
are measured on the test split. Second, whether thresholds keep what was said of them: half of the test images
calibrate, the other half measures, over random halves; a promise of at most one point against the plain choice of the
cheapest thresholds that lose no more than one point on the calibrating half.
"""

from __future__ import annotations

import argparse
import statistics

import foveated
import torch
from _common import RESULTS, Row, report
from torch import Tensor
from tqdm import tqdm

from srnn_zoo.inference.answers import CollectedAnswers
from srnn_zoo.inference.exits import list_exits
from srnn_zoo.inference.guarantee import certify
from srnn_zoo.inference.thresholds import Outcome, fit_rule, measure, search, use_up

SHARES = (0.15, 0.3, 0.5)
LOSS, PROBABILITY = 1.0, 0.9


def main() -> None:
    parser = foveated.options(__doc__ or "")
    parser.add_argument("--variant", default="vanilla_scalar")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--halves", type=int, default=20, help="random halves for each seed (default: %(default)s)")
    args = parser.parse_args()
    rules: list[Row] = []
    promises: list[Row] = []
    for name, way in foveated.COMPARED.items():
        models = [foveated.fitted(args, way, args.lr, seed) for seed in tqdm(args.seeds, desc=name, leave=False)]
        for rule in list_exits(scored=True):
            rules += [at_share(name, rule, share, models) for share in SHARES]
        promises += kept_promises(args, name, [answers["test"] for answers in models])
    report(rules, RESULTS / "exits_grocery.csv")
    report(promises, RESULTS / "promises_grocery.csv")


def at_share(name: str, rule: str, share: float, models: list[dict[str, CollectedAnswers]]) -> Row:
    """What a rule answers rightly where that share of the cost of going on is allowed."""
    found: list[Outcome] = []
    for answers in models:
        first, last = answers["val"].gmacs[0].item(), answers["val"].gmacs[-1].item()
        fitted = fit_rule(answers["val"], rule)
        chosen = use_up(answers["val"], fitted, first + share * (last - first))
        found += measure(answers["test"], fitted, [chosen.thresholds])
    row: Row = {"way": name, "rule": rule, "share_of_going_on": share}
    row |= {"test_gmacs": round(statistics.mean(outcome.gmacs for outcome in found), 3)}
    row |= {"test_top1": round(statistics.mean(outcome.accuracy for outcome in found), 2)}
    return {**row, "test_top1_of_seeds": " ".join(f"{outcome.accuracy:.2f}" for outcome in found)}


def kept_promises(args: argparse.Namespace, name: str, models: list[CollectedAnswers]) -> list[Row]:
    """How often more than a point was lost on the other half, by each way to choose thresholds, and at what cost."""
    found: dict[str, list[tuple[float, float]]] = {"promise": [], "plain": []}
    for seed, answers in enumerate(models):
        for half in range(args.halves):
            order = torch.randperm(len(answers.targets), generator=torch.Generator().manual_seed(1000 * seed + half))
            ours, theirs = (rows(answers, part) for part in order.chunk(2))
            fitted, best = certify(ours, "confidence", LOSS, PROBABILITY)
            found["promise"].append(lost(theirs, measure(theirs, fitted, [best.thresholds])[0]))
            fitted = fit_rule(ours, "confidence")
            enough = 100 * ours.right[-1].double().mean().item() - LOSS
            best = next(outcome for outcome in search(ours, fitted) if outcome.accuracy >= enough)
            found["plain"].append(lost(theirs, measure(theirs, fitted, [best.thresholds])[0]))
    return [
        {
            "way": name,
            "thresholds": kind,
            "halves": len(losses),
            "lost_more_than_promised": sum(points > LOSS for points, _ in losses),
            "mean_loss": round(statistics.mean(points for points, _ in losses), 2),
            "mean_gmacs": round(statistics.mean(gmacs for _, gmacs in losses), 3),
        }
        for kind, losses in found.items()
    ]


def rows(answers: CollectedAnswers, part: Tensor) -> CollectedAnswers:
    """The answers on some of the images."""
    return CollectedAnswers(answers.logits[:, part], answers.targets[part], answers.gmacs, answers.sizes)


def lost(answers: CollectedAnswers, outcome: Outcome) -> tuple[float, float]:
    """Points of accuracy that stopping early loses against all levels, and the mean cost."""
    return 100 * answers.right[-1].double().mean().item() - outcome.accuracy, outcome.gmacs


if __name__ == "__main__":
    main()
