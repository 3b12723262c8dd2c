"""The networks of `finetuned.py`: what the frozen blocks say of every image, kept in files, and what learns from it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _common import grocery
from _shown import Shown
from timm.layers import BatchNormAct2d
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm, trange

import srnn_zoo
from srnn_zoo.comparison.views import View
from srnn_zoo.models.norms import Norm, select_level
from srnn_zoo.training import image_transform, open_split, recipe
from srnn_zoo.training.losses import AnytimeLoss
from srnn_zoo.training.optimizer import create_optimizer, create_schedule, decay_to_identity, scale_recurrence
from srnn_zoo.weights.files import write_weights

NAME = "srnn_tf_efficientnet_lite0"
SMALL, LARGE, CROP, ZOOM = View(160), View(240), View(160, 1.25), View(160, 1.6)
VIEWS = (SMALL, LARGE, CROP, ZOOM)
FROZEN = 6  # blocks
SPLITS = ("train", "val", "test")
SHOWN = {"half": 0.5, "plain half": 0.5, "twice": 2.0}  # splits of test images, and how large they are shown
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
        gates: where the weight of the gates' input starts, on its diagonal.
        settings: of the recipe, where they are other ones.
    """

    name: str
    views: tuple[View, ...]
    variant: str = "vanilla_scalar"
    norm: Norm = "shared"
    exponent: float = 1.0
    start: str = ""
    gates: float = 0.0
    settings: tuple[tuple[str, Any], ...] = ()


class Maps:
    """What the frozen blocks say of every view of every image, in files of 16 bits a number.

    Args:
        folder: for the files.
        splits: of the images.
    """

    def __init__(self, folder: Path, splits: Sequence[str] = SPLITS) -> None:
        self._folder = folder
        self._opened: dict[Path, Any] = {}
        self.targets = {split: targets(split) for split in splits}
        versions = [(split, version) for split in splits for version in range(VERSIONS if split == "train" else 1)]
        for split, version in versions:
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
    if split in SHOWN:
        return Shown(opened("test"), SHOWN[split], plain=split.startswith("plain"))
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
    if net.gates:
        nn.init.constant_(model.cell.gate_input.weight, net.gates)
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
    path = answers_file(runs, net, seed)
    if path.exists():
        return
    torch.manual_seed(seed)
    model = create(net)
    how = dataclasses.replace(HOW, seed=seed, **dict(net.settings))
    if net.start:
        _begin_fixres(model, torch.load(runs / f"{net.start}-seed{seed}.pt", weights_only=True))
        how = dataclasses.replace(how, epochs=5, lr=how.lr / 3)
    scale_recurrence(model, how)
    optimizer = create_optimizer(model, how)
    updates = math.ceil(len(maps.targets["train"]) / how.batch_size)
    schedule = create_schedule(optimizer, how, updates)
    average = ModelEmaV3(model, decay=how.ema_decay, use_warmup=True)
    known = maps.targets["train"]
    own = nn.CrossEntropyLoss(label_smoothing=how.label_smoothing)
    weights = None if how.loss == "anytime" else [0.0] * (len(net.views) - 1) + [1.0]
    loss = AnytimeLoss(weights, how.distillation, loss=own)
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


def answered_shown(runs: Path, maps: Maps, net: Net, seed: int) -> None:
    """Keep what a trained network answers where test images are shown at other sizes."""
    missing = [split for split in maps.targets if not answers_file(runs, net, seed, split).exists()]
    if not missing:
        return
    model = create(net)
    model.load_state_dict(torch.load(runs / f"{net.name}-seed{seed}.pt", weights_only=True))
    for split in missing:
        write_weights({split: answered(model, net, maps, split)}, answers_file(runs, net, seed, split), {})


def answers_file(runs: Path, net: Net, seed: int, shown: str = "") -> Path:
    """The answers on the splits of training, or on one of `SHOWN`."""
    return runs / f"{net.name}-seed{seed}{f'-{shown}' if shown else ''}.safetensors"
