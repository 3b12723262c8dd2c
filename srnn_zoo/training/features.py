"""Probes: the backbone stays as it is, its features are extracted once, and cell and classifiers are fitted to them."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srnn_zoo._errors import WeightsUnavailableError
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.weights.files import read_weights, write_weights

__all__ = ["Features", "LastEpoch", "evaluate_features", "extract_features", "fit_features", "head_logits"]


@dataclass(frozen=True)
class Features:
    """What a backbone says of a data set: C(x_s) of every level.

    Attributes:
        levels: `(L, N, D)`, smallest level first.
        targets: classes `(N,)`.
        sizes: `(H_s, W_s)` of the levels in pixels.
        skipped: one sentence for every image that could not be read, and is not among them.
    """

    levels: Tensor
    targets: Tensor
    sizes: tuple[tuple[int, int], ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, levels: Sequence[int]) -> Features:
        """Some of the levels."""
        return replace(self, levels=self.levels[list(levels)], sizes=tuple(self.sizes[s] for s in levels))

    def save(self, path: Path) -> None:
        """Write them to a file, with a checksum; the file is whole or not there.

        Raises:
            OSError: if it cannot be written.
        """
        sizes = ",".join(f"{height}x{width}" for height, width in self.sizes)
        beside = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        header = {"sizes": sizes, "skipped": json.dumps(self.skipped)}
        try:
            write_weights({"levels": self.levels, "targets": self.targets}, beside, header)
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> Features:
        """Read them back.

        Raises:
            FileNotFoundError: if there is no such file.
            WeightsUnavailableError: if it is damaged, or holds something else.
        """
        state, header = read_weights(path)
        try:
            pairs = [text.split("x") for text in header["sizes"].split(",")]
            sizes = tuple((int(h), int(w)) for h, w in pairs)
            return cls(state["levels"], state["targets"], sizes, tuple(json.loads(header.get("skipped", "[]"))))
        except (KeyError, ValueError) as error:
            raise WeightsUnavailableError(f"{path} holds no features") from error


class LastEpoch(NamedTuple):
    """How a fit has ended.

    Attributes:
        loss: the mean over the last epoch's images.
        lr: of the last update, the classifiers'.
    """

    loss: float
    lr: float


@torch.no_grad()
def extract_features(model: SRNN, loader: Iterable[Any], progress: bool = True) -> Features:
    """C(x_s) of every level of all images, on the CPU; the model's mode is kept, and evaluation used.

    Args:
        model: any SRNN.
        loader: batches of images or levels, all of the same sizes, with their classes `(B,)`.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for no image, and batches of different sizes.
    """
    from tqdm import tqdm

    device = next(model.parameters()).device
    levels: list[Tensor] = []
    targets: list[Tensor] = []
    sizes: tuple[tuple[int, int], ...] = ()
    with _evaluating(model):
        for images, classes in tqdm(loader, desc="features", unit="batch", leave=False, disable=not progress or None):
            moved = images.to(device) if isinstance(images, Tensor) else [level.to(device) for level in images]
            pyramid = model.levels(moved)
            found = tuple((x.shape[-2], x.shape[-1]) for x in pyramid)
            if sizes not in ((), found):
                raise ValueError(f"all images must have levels of the same sizes; got {sizes}, then {found}")
            sizes = found
            levels.append(torch.stack([model.level_features(x, s).float().cpu() for s, x in enumerate(pyramid)]))
            targets.append(torch.as_tensor(classes).cpu())
    if not targets:
        raise ValueError("the loader gave no image")
    return Features(torch.cat(levels, dim=1), torch.cat(targets), sizes)


def head_logits(model: SRNN, levels: Tensor) -> Tensor:
    """The logits `(L, B, num_classes)` after every level of features `(L, B, D)`; of `concat` after the last alone."""
    state = model.cell.initial_state(levels[0])
    answers: list[Tensor] = []
    for s, features in enumerate(levels):
        state = model.cell(features, state)
        if model.cell.anytime or s + 1 == len(levels):
            answers.append(model.forward_head(model.cell.feature_map(state), level=s))
    return torch.stack(answers)


def fit_features(
    model: SRNN,
    train: Features,
    *,
    epochs: int = 20,
    batch_size: int = 256,
    lr: float = 5e-3,
    cell_lr: float = 0.02,
    weight_decay: float = 0.05,
    identity_decay: float = 0.05,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> LastEpoch:
    """Fit cell and classifiers to features, in place: AdamW, one cosine over all epochs.

    Args:
        model: whose backbone gave the features; its backbone is not changed.
        train: features of the training images.
        epochs: passes over them.
        batch_size: images in a batch; the last one may be smaller.
        lr: learning rate of the classifiers at the start.
        cell_lr: the cell's, as a part of it: the cell starts from something that works, and has most of the parameters.
            At 0 it stays as it is.
        weight_decay: decoupled, of all weights but U.
        identity_decay: decoupled, of U towards what it was (the identity) instead of towards zero.
        loss: of the logits after every level; by default cross-entropy of the last, as in the paper.
        seed: of the order of the images.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if the features are none of this model's.
        FloatingPointError: if the loss is not finite any more.
    """
    from tqdm import trange

    if train.levels.shape[2] != model.num_features:
        raise ValueError(f"the model has features of width {model.num_features}; got {train.levels.shape[2]}")
    like = next(model.fc.parameters())
    levels, targets = train.levels.to(like.device, like.dtype), train.targets.to(like.device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = _optimizer(model, lr, cell_lr, weight_decay, identity_decay)
    steps = epochs * math.ceil(len(targets) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    moving = [p for group in optimizer.param_groups for p in group["params"]]
    last = LastEpoch(math.nan, lr)
    with _alone(model, moving):
        for _ in trange(epochs, desc="probe", unit="epoch", leave=False, disable=not progress or None):
            loss_sum = 0.0
            for rows in torch.randperm(len(targets), generator=generator).split(batch_size):
                answers = head_logits(model, levels[:, rows])
                value = F.cross_entropy(answers[-1], targets[rows]) if loss is None else loss(answers, targets[rows])
                if not value.isfinite():
                    raise FloatingPointError(f"the loss is {value.item()}: a smaller lr than {lr} may help")
                loss_sum += value.item() * len(rows)
                last = LastEpoch(loss_sum / len(targets), optimizer.param_groups[0]["lr"])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                schedule.step()
    return last


def _optimizer(
    model: SRNN, lr: float, cell_lr: float, weight_decay: float, identity_decay: float
) -> torch.optim.Optimizer:
    cell = dict(model.cell.named_parameters()) if cell_lr > 0 else {}
    u = cell.pop("recurrent.weight", None)
    groups = [
        {"params": [*model.exit_fc.parameters(), *model.fc.parameters()], "lr": lr},
        {"params": list(cell.values()), "lr": lr * cell_lr},
        {"params": [] if u is None else [u], "lr": lr * cell_lr, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, weight_decay=weight_decay)
    if u is not None:
        start = u.detach().clone()

        def decay(optimizer: Any, args: Any, kwargs: Any) -> None:
            with torch.no_grad():
                u.lerp_(start, optimizer.param_groups[-1]["lr"] * identity_decay)

        optimizer.register_step_post_hook(decay)
    return optimizer


@contextlib.contextmanager
def _alone(model: SRNN, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Training mode, in which these parameters alone get gradients; afterwards everything is as it was."""
    wanted = {id(p) for p in parameters}
    still = [p for p in model.parameters() if p.requires_grad and id(p) not in wanted]
    was_training = model.training
    model.train()
    for p in still:
        p.requires_grad_(False)
    try:
        yield
    finally:
        model.train(was_training)
        for p in still:
            p.requires_grad_(True)


@torch.no_grad()
def evaluate_features(model: SRNN, features: Features, batch_size: int = 1024) -> Tensor:
    """The logits `(L, N, num_classes)` after every level, in evaluation mode, on the CPU."""
    like = next(model.fc.parameters())
    with _evaluating(model):
        batches: Iterator[Tensor] = iter(features.levels.split(batch_size, dim=1))
        return torch.cat([head_logits(model, x.to(like.device, like.dtype)).float().cpu() for x in batches], dim=1)


@contextlib.contextmanager
def _evaluating(model: SRNN) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
