"""Whether a state that stays a map pays on the Grocery Store data set: diagonal cells against their pooled twins.

A frozen backbone reads a level of 224 and a zoom of 1.6 at the middle. What map cells read of them is kept in --runs,
in 16 bits, and the pooled twins read the means of the very same maps. Of several settings the one with the best mean
accuracy on the validation split counts, and twins have the same choice; the test split is read once, for these.

`vanilla_map_diag` is fitted by means in seconds (`VanillaMeans`). `half_gru_map_diag` is fitted at each of 49
positions, in pieces that fit a processor's cache, in minutes; so it and its twin have fewer settings and epochs
(--slow-rates, --slow-epochs). All answers are the map cells' own. A full U at every position is slower by far, and left
out. What fitted cells answer is kept in --runs too, so that the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import foveated
import torch
from _common import RESULTS, Row, report
from foveated import SIZE, Way
from safetensors.torch import load_file, save_file
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

import srnn_zoo
from srnn_zoo import SRNN
from srnn_zoo.models import map_cells
from srnn_zoo.models.cells import register_cell
from srnn_zoo.models.light_cells import VanillaDiag
from srnn_zoo.models.places import aligned, mean, values, with_values
from srnn_zoo.training import recipe
from srnn_zoo.training.features import Features, evaluate_features, fit_features

WAY = foveated.COMPARED["224 + zoom at the middle"]
SLOW = "half_gru"
PIECES = 32  # of a batch of 256, for fits at every position


class Setting(NamedTuple):
    """How a cell is fitted: the learning rate, its factor for the cell, and the epochs."""

    lr: float
    lr_cell: float
    epochs: int


@register_cell("vanilla_map_diag_means")
class VanillaMeans(VanillaDiag):
    """`vanilla_map_diag` by means alone: exact for two levels, where neither U nor what the backbone gives is negative.

    Then φ changes nothing, and `mean(h_2) = mean(C(x_2)) + U mean(C(x_1) where the second level looks)`. It reads
    the two means of a level, `(B, 2 D)`: of all of it, and of the part where the next one looks.
    """

    def initial_state(self, features: Tensor) -> Tensor:
        return torch.zeros_like(features)

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        (own, seen), (_, before) = features.chunk(2, dim=1), state.chunk(2, dim=1)
        return torch.cat([super().forward(own, before), seen], dim=1)

    def output(self, state: Tensor) -> Tensor:
        return state[:, : self.dim]

    def pooled(self, features: Tensor) -> Tensor:
        return features[:, : self.dim]


def main() -> None:
    parser = foveated.options(__doc__ or "")
    parser.set_defaults(runs=Path("runs/map_cells"))
    parser.add_argument("--kinds", nargs="+", default=["vanilla", SLOW], choices=["vanilla", SLOW])
    parser.add_argument("--rates", type=float, nargs="+", default=list(foveated.RATES))
    parser.add_argument("--cell-rates", type=float, nargs="+", default=[0.02, 1.0], help="factors for the cell")
    parser.add_argument("--slow-rates", type=float, nargs="+", default=[0.01])
    parser.add_argument("--slow-epochs", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.runs.mkdir(parents=True, exist_ok=True)
    report([row for kind in args.kinds for row in twins(args, kind)], RESULTS / "map_cells_grocery.csv")


def twins(args: argparse.Namespace, kind: str) -> Iterator[Row]:
    """The rows of a pooled cell, and of the one with a map as its state, with the difference between the two."""
    rates, epochs = (args.slow_rates, args.slow_epochs) if kind == SLOW else (args.rates, args.epochs)
    settings = [Setting(*each, epochs) for each in itertools.product(rates, args.cell_rates)]
    pooled: list[Tensor] | None = None
    for cell in (f"{kind}_diag", f"{kind}_map_diag"):
        found = {
            setting: [fitted(args.runs, cell, setting, seed) for seed in args.seeds]
            for setting in tqdm(settings, desc=cell, leave=False)
        }
        val = {setting: statistics.mean(map(top1, (a["val"] for a in each))) for setting, each in found.items()}
        best = max(val, key=lambda setting: val[setting])
        right = [answers["test"] for answers in found[best]]
        row: Row = {"cell": cell, **best._asdict(), "val_top1": round(val[best], 2)}
        row |= {"test_top1": round(statistics.mean(map(top1, right)), 2)}
        row |= {"test_top1_of_seeds": " ".join(f"{top1(each):.2f}" for each in right)}
        yield row | difference(right, pooled or [])
        pooled = right


def difference(ours: list[Tensor], theirs: list[Tensor]) -> Row:
    """Points of the mean over seeds, their 95 % interval over images, and McNemar's exact test of each seed."""
    names = ("minus_pooled", "minus_pooled_95_percent", "p_of_seeds")
    if not theirs:
        return dict.fromkeys(names, "")
    pairs = list(zip(ours, theirs, strict=True))
    gain = 100 * torch.stack([one.double() - other.double() for one, other in pairs]).mean(dim=0)
    points, wide = float(gain.mean()), 1.96 * float(gain.std()) / len(gain) ** 0.5
    p = " ".join(f"{mcnemar(*pair):.2g}" for pair in pairs)
    return dict(zip(names, (f"{points:.2f}", f"{points - wide:.2f} to {points + wide:.2f}", p), strict=True))


def mcnemar(one: Tensor, other: Tensor) -> float:
    """The p of as many images that only one or only the other has right."""
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def top1(right: Tensor) -> float:
    """In per cent."""
    return 100 * float(right.double().mean())


def fitted(runs: Path, cell: str, setting: Setting, seed: int) -> dict[str, Tensor]:
    """Which images of the other splits a fitted cell answers rightly after the last level."""
    file = runs / f"{cell}-{'-'.join(map(str, setting))}-{seed}.safetensors"
    if file.is_file():
        return load_file(file)
    model = create(cell)
    torch.manual_seed(seed)
    model.reset_classifier(model.num_classes)
    how = recipe("probe", loss="anytime", seed=seed, **setting._asdict())
    if cell == "vanilla_map_diag":
        by_means = create("vanilla_map_diag_means")
        by_means.fc.load_state_dict(model.fc.state_dict())
        fit_features(by_means, means_with_views(runs, "train"), how, progress=False)
        model.cell.load_state_dict(by_means.cell.state_dict())
        model.fc.load_state_dict(by_means.fc.state_dict())
    elif model.cell.reads == "maps":
        train = maps(runs, "train")
        with compiled(model, train.levels):
            fit_features(model, train, dataclasses.replace(how, grad_accum_steps=PIECES))
    else:
        fit_features(model, means(runs, "train"), how, progress=False)
    found: dict[str, Tensor] = {}
    for split in ("val", "test"):
        data = (maps if model.cell.reads == "maps" else means)(runs, split)
        found[split] = evaluate_features(model, data, batch_size=32)[-1].argmax(1) == data.targets
    save_file(found, file)
    return found


def create(cell: str, way: Way = WAY) -> SRNN:
    """A model with such a cell at its start."""
    return foveated.create(argparse.Namespace(variant=cell), way)


@contextmanager
def compiled(model: SRNN, levels: Tensor) -> Iterator[None]:
    """A map cell made fast for fitting: compiled, and as all images look at one place, aligned by one matrix."""
    first, second = levels[:, :1].float()
    positions = torch.eye(first[0, 0].numel()).unflatten(1, first.shape[2:])[None]
    matrix = aligned(with_values(first, positions), second)[0].flatten(1).T

    def product(state: Tensor, like: Tensor) -> Tensor:
        found = matrix @ values(state).permute(0, 2, 3, 1).flatten(1, 2)
        return found.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)

    def answers(levels: Tensor) -> Tensor:
        return torch.stack(list(SRNN.exit_logits(model, levels)))

    fast = torch.compile(answers, dynamic=False)
    with patch.object(map_cells, "aligned", product), patch.object(model, "exit_logits", fast):
        yield


def means(runs: Path, split: str) -> Features:
    """C(x_s): the means of the maps."""
    found = means_with_views(runs, split)
    return dataclasses.replace(found, levels=found.levels.chunk(2, dim=2)[0])


@functools.cache
@torch.no_grad()
def means_with_views(runs: Path, split: str) -> Features:
    """What `VanillaMeans` reads of both levels, `(2, N, 2 D)`."""
    data, parts = maps(runs, split), list[Tensor]()
    for first, second in (piece.float() for piece in data.levels.split(256, dim=1)):
        own, seen = torch.stack([mean(first), mean(second)]), aligned(first, second).mean(dim=(2, 3))
        parts.append(torch.cat([own, torch.stack([seen, torch.zeros_like(seen)])], dim=2))
    return dataclasses.replace(data, levels=torch.cat(parts, dim=1))


@functools.cache
def maps(runs: Path, split: str) -> Features:
    """What map cells read of both levels, `(2, N, D + 6, h, w)`, in memory with the channels last."""
    found = foveated.joined([kept(runs, zoom, split) for zoom in WAY.zooms or ()])
    return dataclasses.replace(found, levels=found.levels.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3))


@torch.no_grad()
def kept(runs: Path, zoom: float, split: str) -> Features:
    """The maps of one level in the folder, or new ones, which are put there."""
    file = runs / f"maps-{zoom}-{split}.safetensors"
    if file.is_file():
        return Features.load(file)
    model = create("vanilla_map_diag", Way((SIZE,), (zoom,)))
    batches = foveated.loader(model, split)
    model = srnn_zoo.for_inference(model.eval())
    read = [(model.pyramid_features(images)[0].half(), classes) for images, classes in tqdm(batches, desc=split)]
    levels, targets = (torch.cat(parts) for parts in zip(*read, strict=True))
    found = Features(levels[None], targets, ((SIZE, SIZE),))
    found.save(file)
    return found


if __name__ == "__main__":
    main()
