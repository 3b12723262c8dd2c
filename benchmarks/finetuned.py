"""An SRNN beside its rivals where the backbone is trained too: whole images at two sizes, and a level that zooms in.

EfficientNet-Lite0 with ImageNet weights on the Grocery Store data set's official splits. The stem and the first six of
seven blocks stay as they are, so that two cores can do it: their maps of every image, and of each training image in
four augmented versions, are computed once and kept. The last block, the last convolution, cell and classifier are
trained: a third of the parameters. Every way has the same recipe and the same seeds. Of the crops, the one counts that
is best on the validation split.

Everything is kept in --runs: the same command goes on after an interruption, and with more seeds or ways it trains what
is new.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _common import RESULTS, grocery
from timm.layers import BatchNormAct2d
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm, trange

import srnn_zoo
from srnn_zoo.comparison.picture import plot_comparison
from srnn_zoo.comparison.result import Comparison, advice, lines_of
from srnn_zoo.comparison.views import View
from srnn_zoo.comparison.ways import Answers, Way
from srnn_zoo.inference.answers import CollectedAnswers
from srnn_zoo.models.cells import log_mean_probability
from srnn_zoo.models.norms import Norm, select_level
from srnn_zoo.training import image_transform, open_split, recipe
from srnn_zoo.training.losses import AnytimeLoss
from srnn_zoo.training.optimizer import (
    create_optimizer,
    create_schedule,
    decay_to_identity,
    scale_recurrence,
)
from srnn_zoo.weights.files import read_weights, write_weights

NAME = "srnn_tf_efficientnet_lite0"
SMALL, LARGE, CROP, ZOOM = View(160), View(240), View(160, 1.25), View(160, 1.6)
VIEWS = (SMALL, LARGE, CROP, ZOOM)
FROZEN = 6  # blocks
SPLITS = ("train", "val", "test")
VERSIONS = 4  # of a training image
HOW = recipe("finetune", loss="anytime", epochs=10)


class Net(NamedTuple):
    """A network that is trained.

    Attributes:
        name: in file names.
        views: of its levels, smallest or first read first.
        variant: of the SRNN.
        norm: batch norm `"shared"` or `"per_level"`.
        exponent: where the generalised mean starts that pools the last map (GeM); 1 for the mean, which is not trained.
        start: of FixRes, the network whose last batch norm and classifier are trained on.
    """

    name: str
    views: tuple[View, ...]
    variant: str = "vanilla_scalar"
    norm: Norm = "shared"
    exponent: float = 1.0
    start: str = ""


SINGLES = [
    Net("single160", (SMALL,)),
    Net("single160-zoom1.6", (ZOOM,)),
    Net("single160-zoom1.25", (CROP,)),
    Net("single240", (LARGE,)),
    Net("fixres240", (LARGE,), start="single160"),
    Net("gem160", (SMALL,), exponent=3.0),
    Net("gem240", (LARGE,), exponent=3.0),
]
PAIRS = {"160 + 240": (SMALL, LARGE), "160 + zoom": (SMALL, ZOOM), "zoom + 160": (ZOOM, SMALL)}
JOINT = [
    Net(f"{variant} {title}", views, variant, "per_level")
    for title, views in PAIRS.items()
    for variant in ("vanilla_scalar", "half_gru_diag", "mean_logit")
]
NETS = {net.name: net for net in [*SINGLES, *JOINT]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/finetuned"), help="folder of everything that is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS), help="these only")
    parser.add_argument("--table", action="store_true", help="write the table of what is trained, and train nothing")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    srnn_zoo.keep_freed_memory()
    args.runs.mkdir(parents=True, exist_ok=True)
    if not args.table:
        maps = Maps(args.runs)
        for seed, name in itertools.product(args.seeds, args.nets):
            trained(args.runs, maps, NETS[name], seed)
    if args.table or set(args.nets) == set(NETS):
        write_table(args.runs, args.seeds, args.nets)


class Maps:
    """What the frozen blocks say of every view of every image, in files of 16 bits a number.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: dict[Path, Any] = {}
        self.targets = {split: targets(split) for split in SPLITS}
        for split, version in [("val", 0), ("test", 0), *(("train", version) for version in range(VERSIONS))]:
            if not all(self._file(view, split, version).exists() for view in VIEWS):
                self._compute(split, version)

    def open(self, view: View, split: str, version: int = 0) -> Any:
        """`(N, C, h, w)` of one view."""
        path = self._file(view, split, version)
        if path not in self._opened:
            self._opened[path] = np.load(path, mmap_mode="r")
        return self._opened[path]

    def _file(self, view: View, split: str, version: int) -> Path:
        return self._folder / f"maps-{split}-{version}-{view.file}.npy"

    @torch.no_grad()
    def _compute(self, split: str, version: int) -> None:
        model = create(Net("", VIEWS)).eval()
        augmentation = HOW.augmentation() if split == "train" else {}
        images: Any = opened(split)
        images.transform = image_transform(model, train=split == "train", **augmentation)
        torch.manual_seed(version)
        found: list[list[Any]] = [[] for _ in VIEWS]
        loader = DataLoader(_Numbered(images), batch_size=32)
        for pixels in tqdm(loader, desc=f"maps of {split}, version {version}", disable=None):
            for kept, level in zip(found, model.levels(model.as_input(pixels)), strict=True):
                kept.append(stem(model, level).half().numpy())
        for view, kept in zip(VIEWS, found, strict=True):
            path = self._file(view, split, version)
            beside = path.with_suffix(".unfinished.npy")
            np.save(beside, np.concatenate(kept))
            beside.replace(path)


class _Numbered(Dataset[Tensor]):
    """The images of a split without their classes; each must be readable, as maps are found by their place."""

    def __init__(self, split: Any) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> Tensor:
        return self._split[index][0]


@functools.cache
def opened(split: str) -> Any:
    """The images of a split, with the classes of the training images."""
    return open_split(grocery() / split, "", None if split == "train" else opened("train").classes)


def targets(split: str) -> Tensor:
    """The classes `(N,)` of a split."""
    return torch.tensor([target for _, target in opened(split).samples])


def create(net: Net) -> srnn_zoo.SRNN:
    """The model of a network at its start: the first blocks are frozen."""
    largest = max(view.size for view in net.views)
    zooms = [view.zoom for view in net.views]
    shown = math.ceil(max(view.size * view.zoom for view in net.views))
    model = srnn_zoo.create_model(
        NAME,
        pretrained_backbone=True,
        variant=net.variant,
        norm=net.norm,
        num_classes=len(opened("train").classes),
        scales=[view.size / largest for view in net.views],
        zooms=zooms if max(zooms) > 1 else None,
        img_size=shown,
    )
    for module in (model.backbone.conv_stem, model.backbone.bn1, *model.backbone.blocks[:FROZEN]):
        module.requires_grad_(False)
    if net.exponent != 1:
        model.backbone.global_pool = GeM(net.exponent)
    return model


class GeM(nn.Module):
    """mean(x^p)^(1/p) over positions, with a trained exponent p (Radenović et al., 2018)."""

    def __init__(self, exponent: float) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.tensor(exponent))

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=1e-6).pow(self.exponent).mean((2, 3)).pow(1 / self.exponent)


def stem(model: Any, x: Tensor) -> Tensor:
    """The maps `(B, C, h, w)` of the frozen blocks."""
    return model.backbone.blocks[:FROZEN](model.backbone.bn1(model.backbone.conv_stem(x)))


def features(model: Any, maps: Sequence[Tensor]) -> Iterator[Tensor]:
    """C(x_s) of every level from the maps of its frozen blocks."""
    backbone = model.backbone
    for level, x in enumerate(maps):
        select_level(backbone, level)
        yield backbone.forward_head(backbone.bn2(backbone.conv_head(backbone.blocks[FROZEN:](x))), pre_logits=True)


def trained(runs: Path, maps: Maps, net: Net, seed: int) -> None:
    """Train a network, or go on, and keep what it answers."""
    path = _answers_file(runs, net, seed)
    if path.exists():
        return
    torch.manual_seed(seed)
    model = create(net)
    how = dataclasses.replace(HOW, seed=seed)
    if net.start:
        _begin_fixres(model, torch.load(runs / f"{net.start}-seed{seed}.pt", weights_only=True))
        how = dataclasses.replace(how, epochs=5, lr=how.lr / 3)
    scale_recurrence(model, how)
    optimizer = create_optimizer(model, how)
    updates = math.ceil(len(maps.targets["train"]) / how.batch_size)
    schedule = create_schedule(optimizer, how, updates)
    average = ModelEmaV3(model, decay=how.ema_decay, use_warmup=True)
    known = maps.targets["train"]
    loss = AnytimeLoss(loss=nn.CrossEntropyLoss(label_smoothing=how.label_smoothing))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    generator = np.random.default_rng(seed)
    for epoch in trange(how.epochs, desc=f"{net.name}, seed {seed}", unit="epoch", disable=None):
        _train_mode(model, fixres=bool(net.start))
        order = generator.permutation(len(known))
        versions = generator.integers(VERSIONS, size=len(known))
        for number, rows in enumerate(np.array_split(order, updates)):
            batch = [
                np.stack([maps.open(view, "train", int(versions[row]))[row] for row in rows]) for view in net.views
            ]
            logits = list(model.exit_logits(list(features(model, [torch.from_numpy(x).float() for x in batch]))))
            optimizer.zero_grad()
            loss(torch.stack(logits), known[rows]).backward()
            nn.utils.clip_grad_norm_(parameters, how.clip_grad)
            optimizer.step()
            decay_to_identity(model, optimizer, how)
            update = epoch * updates + number + 1
            schedule.step_update(update)
            average.update(model, step=update)
    kept = average.module
    torch.save(kept.state_dict(), runs / f"{net.name}-seed{seed}.pt")
    answers = {split: answered(kept, net, maps, split) for split in ("val", "test")}
    write_weights(answers, path, {})
    right = {split: (x[-1].argmax(1) == maps.targets[split]).float().mean() for split, x in answers.items()}
    print(f"{net.name}, seed {seed}: " + ", ".join(f"{split} {100 * x:.2f}" for split, x in right.items()), flush=True)


def _begin_fixres(model: Any, state: dict[str, Tensor]) -> None:
    """FixRes (Touvron et al., 2019): all but the last batch norm and the classifier stays as it is."""
    model.load_state_dict(state)
    model.requires_grad_(False)
    for module in (model.backbone.bn2, model.fc):
        module.requires_grad_(True)


def _train_mode(model: Any, fixres: bool) -> None:
    model.train()
    for module in model.backbone.modules():
        if fixres and isinstance(module, BatchNormAct2d) and module is not model.backbone.bn2:
            module.eval()


@torch.no_grad()
def answered(model: Any, net: Net, maps: Maps, split: str) -> Tensor:
    """Logits `(L, N, K)` after every level."""
    model.eval()
    found: list[Tensor] = []
    for start in range(0, len(maps.targets[split]), 128):
        batch = [torch.from_numpy(maps.open(view, split)[start : start + 128]).float() for view in net.views]
        found.append(torch.stack(list(model.exit_logits(list(features(model, batch))))))
    return torch.cat(found, dim=1)


def _answers_file(runs: Path, net: Net, seed: int) -> Path:
    return runs / f"{net.name}-seed{seed}.safetensors"


def write_table(runs: Path, seeds: Sequence[int], nets: Sequence[str]) -> None:
    """The table, the curves and the sentence of `srnn-zoo compare`, of these networks."""
    found = list(Table(runs, seeds, nets).ways())
    count = len(found[0].answers[0].test.targets)
    caption = (
        f"Grocery Store: trained on {len(opened('train'))} images, {len(seeds)} seed(s), "
        f"measured on {count}. GMACs: of the whole backbone."
    )
    comparison = Comparison(tuple(found), tuple(lines_of(found)), advice(found), caption)
    comparison.save(runs)
    plot_comparison(comparison, runs / "plot.png")
    for name in ("table", "curves", "pairs"):
        (RESULTS / f"finetuned_{name}.csv").write_text((runs / f"{name}.csv").read_text(encoding="utf-8"))
    print(comparison.to_markdown())


class Table:
    """The ways of the table, from what the networks answer.

    Args:
        runs: where these answers are.
        seeds: of the networks.
        nets: the names of those that are there; of SRNNs and trained means some may be missing.
    """

    def __init__(self, runs: Path, seeds: Sequence[int], nets: Sequence[str]) -> None:
        self._runs, self._seeds, self._nets = runs, seeds, nets
        self._targets = {split: targets(split) for split in SPLITS[1:]}
        model = create(Net("", (SMALL,)))
        self._gmacs = {size: model.level_gmacs((size, size)) for size in (SMALL.size, LARGE.size)}

    def ways(self) -> Iterator[Way]:
        """Rivals first."""
        for name, title in (
            ("single160", "single scale 160"),
            ("single240", "single scale 240"),
            ("fixres240", "FixRes 240"),
            ("gem160", "GeM 160"),
            ("gem240", "GeM 240"),
        ):
            yield Way(title, "single scale", "", self._of(NETS[name]))
        crops = [self._of(NETS[f"single160-zoom{zoom}"]) for zoom in ("1.25", "1.6")]
        best = max((0, 1), key=lambda number: sum(_top1(each.val) for each in crops[number]))
        yield Way("tight crop 160", "single scale", f"zoom {(1.25, 1.6)[best]:g}", crops[best])
        for title, views in PAIRS.items():
            alone = [self._of(next(net for net in SINGLES if net.views == (view,))) for view in views]
            asked = [self._together(each, views, both=False) for each in zip(*alone, strict=True)]
            all_answer = [self._together(each, views, both=True) for each in zip(*alone, strict=True)]
            yield Way(
                f"ensemble {title}", "ensemble", "", [Answers(*map(_last, each)) for each in all_answer], reads=title
            )
            yield Way(f"cascade {title}, last answers", "cascade", "", asked, reads=title)
            yield Way(f"cascade {title}, all answer", "cascade", "", all_answer, reads=title)
            for variant in ("mean_logit", "vanilla_scalar", "half_gru_diag"):
                if (name := f"{variant} {title}") in self._nets:
                    mean = variant == "mean_logit"
                    group = "trained mean" if mean else "SRNN"
                    yield Way(f"trained mean {title}" if mean else name, group, "", self._of(NETS[name]), reads=title)

    def _of(self, net: Net) -> list[Answers]:
        states = [read_weights(_answers_file(self._runs, net, seed))[0] for seed in self._seeds]
        return [
            Answers(*(self._collected(state[split], split, net.views) for split in ("val", "test"))) for state in states
        ]

    def _together(self, alone: Sequence[Answers], views: Sequence[View], both: bool) -> Answers:
        """Networks of one view each, as levels: the last that was asked answers, or the mean of all asked so far."""
        splits: list[CollectedAnswers] = []
        for split, of_split in zip(("val", "test"), zip(*alone, strict=True), strict=True):
            logits = torch.cat([answers.logits for answers in of_split])
            if both:
                ends = range(1, len(logits) + 1)
                logits = torch.stack([log_mean_probability(logits[:end], dim=0) for end in ends])
            splits.append(self._collected(logits, split, views))
        return Answers(*splits)

    def _collected(self, logits: Tensor, split: str, views: Sequence[View]) -> CollectedAnswers:
        gmacs = torch.tensor([self._gmacs[view.size] for view in views], dtype=torch.float64).cumsum(0)
        return CollectedAnswers(logits, self._targets[split], gmacs)


def _last(answers: CollectedAnswers) -> CollectedAnswers:
    return CollectedAnswers(answers.logits[-1:], answers.targets, answers.gmacs[-1:])


def _top1(answers: CollectedAnswers) -> float:
    return answers.right[-1].double().mean().item()


if __name__ == "__main__":
    main()
