"""Features of a frozen backbone: extracted once, kept in a file, and a cell and classifiers fitted to them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from srnn_zoo._errors import WeightsUnavailableError
from srnn_zoo.models.backbone import in_mode
from srnn_zoo.models.srnn import SRNN
from srnn_zoo.weights.files import read_weights, write_weights

from .losses import create_loss
from .optimizer import create_optimizer, create_schedule, decay_to_identity, learning_rate, scale_recurrence
from .recipe import Recipe
from .tasks import Loss, training_task


@dataclass(frozen=True)
class Features:
    """What a backbone says of a data set: C(x_s) of every level.

    Attributes:
        levels: `(L, N, D)`, smallest level first; for a cell that reads maps `(L, N, D + 6, h, w)`, as
            `SRNN.level_features` gives them.
        targets: classes `(N,)`, or labels or numbers `(N, K)`.
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
        beside = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
        sizes = ",".join(f"{height}x{width}" for height, width in self.sizes)
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
            sizes = tuple((int(height), int(width)) for height, width in pairs)
            return cls(state["levels"], state["targets"], sizes, tuple(json.loads(header.get("skipped", "[]"))))
        except (KeyError, ValueError) as error:
            raise WeightsUnavailableError(f"{path} holds no features") from error


def check_reads_features(model: SRNN) -> None:
    """Refuse a cell that reads maps, which would fill memory and disk."""
    if model.cell.reads == "maps":
        raise ValueError(
            f"variant {model.variant!r} reads maps, and a probe keeps pooled features: choose the recipe finetune"
        )


@torch.no_grad()
def extract_features(model: SRNN, loader: Iterable[Any], progress: bool = True) -> Features:
    """C(x_s) of every level of all images, on the CPU, in evaluation mode; the model's own mode is kept.

    Args:
        model: any SRNN.
        loader: batches of images or levels, all of the same sizes, with their targets.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for no image, batches of different sizes, and a cell that reads maps.
    """
    from tqdm import tqdm

    check_reads_features(model)
    levels: list[Tensor] = []
    targets: list[Tensor] = []
    sizes: tuple[tuple[int, int], ...] = ()
    with in_mode(model, training=False):
        for images, classes in tqdm(loader, desc="features", unit="batch", leave=False, disable=not progress or None):
            moved = model.as_input(images)
            found = tuple(model.lazy_levels(moved).sizes)
            if sizes not in ((), found):
                raise ValueError(f"all images must have levels of the same sizes; got {sizes}, then {found}")
            sizes = found
            levels.append(torch.stack([x.float().cpu() for x in model.pyramid_features(moved)]))
            targets.append(torch.as_tensor(classes).cpu())
    if not targets:
        raise ValueError("the loader gave no image")
    return Features(torch.cat(levels, dim=1), torch.cat(targets), sizes)


class Fitted(NamedTuple):
    """What `fit_features` leaves behind beside the model.

    Attributes:
        loss: mean over the images of the epoch that is kept.
        lr: the base learning rate of its last update.
        epoch: which one it is, from 1: the last, or with `patience` the best.
    """

    loss: float
    lr: float
    epoch: int


def fit_features(
    model: SRNN,
    train: Features,
    recipe: Recipe,
    progress: bool = True,
    own_loss: Loss | None = None,
    merit: Callable[[], Any] | None = None,
) -> Fitted:
    """Fit cell and classifiers to features, in place, with the recipe's optimiser, schedule and loss.

    Args:
        model: whose backbone gave the features; its backbone is not changed.
        train: features of the training images.
        recipe: such as `recipe("probe")`. With `lr_cell=0` the cell stays as it starts; the last batch of an epoch may
            be smaller than `batch_size`. A batch is read in `grad_accum_steps` pieces, which large maps need.
        progress: whether to show a progress bar.
        own_loss: in place of the task's, of logits `(B, K)` and targets.
        merit: how good the model is after an epoch, a number or a tuple of numbers; more is better, and what has a NaN
            is never the best. With the recipe's `patience` the best epoch is kept, and training ends after so many
            without a better one; if none has a merit, the last epoch is kept.

    Raises:
        ValueError: if the features have another width than this model's, and for `patience` without a `merit`.
        FloatingPointError: if the loss is not finite any more.
    """
    from tqdm import trange

    if (width := model.cell.pooled(train.levels[0, :1]).shape[1]) != model.num_features:
        raise ValueError(f"the model has features of width {model.num_features}; got {width}")
    if recipe.patience and merit is None:
        raise ValueError("patience needs images that choose: give merit, or leave patience=0")
    like = next(model.fc.parameters())
    levels, targets = train.levels.to(like.device, like.dtype), train.targets.to(like.device)
    generator = torch.Generator().manual_seed(recipe.seed)
    scale_recurrence(model, recipe)
    optimizer = create_optimizer(model, recipe)  # the backbone gets no gradients, so it is not changed
    updates = math.ceil(len(targets) / recipe.batch_size)
    schedule = create_schedule(optimizer, recipe, updates)
    loss = create_loss(recipe, training_task(model.task), own_loss)
    fitted, update = Fitted(math.nan, recipe.lr, 0), 0
    best: tuple[Any, Fitted, dict[str, Tensor]] | None = None
    with in_mode(model, training=True):
        for epoch in trange(recipe.epochs, desc="probe", unit="epoch", leave=False, disable=not progress or None):
            loss_sum, lr = 0.0, recipe.lr
            for rows in torch.randperm(len(targets), generator=generator).split(recipe.batch_size):
                lr = learning_rate(optimizer)
                optimizer.zero_grad()
                for piece in rows.split(recipe.batch_size // recipe.grad_accum_steps):
                    answers = list(model.exit_logits(levels[:, piece]))
                    value = loss(torch.stack(answers) if recipe.loss == "anytime" else answers[-1], targets[piece])
                    loss_sum += (number := value.item()) * len(piece)
                    if not math.isfinite(number):
                        raise FloatingPointError(f"the loss is {number}: a smaller lr than {recipe.lr} may help")
                    (value * (len(piece) / len(rows))).backward()
                optimizer.step()
                decay_to_identity(model, optimizer, recipe)
                schedule.step_update(update := update + 1)
            fitted = Fitted(loss_sum / len(targets), lr, epoch + 1)
            if not recipe.patience or merit is None:
                continue
            now = merit()
            if not _has_nan(now) and (best is None or now > best[0]):
                best = now, fitted, {key: value.clone() for key, value in _trained_state(model).items()}
            elif fitted.epoch - (best[1].epoch if best else 0) >= recipe.patience:
                break
    if best is not None:
        fitted = best[1]
        model.load_state_dict(best[2], strict=False)
    return fitted


def _has_nan(merit: Any) -> bool:
    return any(math.isnan(number) for number in (merit if isinstance(merit, tuple) else (merit,)))


def _trained_state(model: SRNN) -> dict[str, Tensor]:
    """What a fit changes: all but the backbone."""
    return {key: value for key, value in model.state_dict().items() if not key.startswith("backbone.")}


@torch.no_grad()
def evaluate_features(model: SRNN, features: Features, batch_size: int = 1024) -> Tensor:
    """Logits `(L, N, num_classes)` after every level (of `concat`: after the last), in evaluation mode, on the CPU."""
    like = next(model.fc.parameters())
    with in_mode(model, training=False):
        batches = (x.to(like.device, like.dtype) for x in features.levels.split(batch_size, dim=1))
        return torch.cat([torch.stack(list(model.exit_logits(x))).float().cpu() for x in batches], dim=1)
