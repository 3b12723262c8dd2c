"""Optimiser and schedule of a recipe, by timm, with groups for backbone, cell and classifier, and U decaying to I."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, get_optimizer_info
from timm.scheduler import create_scheduler_v2
from torch import Tensor

from .recipe import Recipe

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler
    from torch.optim import Optimizer

    from srnn_zoo.models.srnn import SRNN

__all__ = [
    "create_optimizer",
    "create_schedule",
    "decay_to_identity",
    "learning_rate",
    "parameter_groups",
    "scale_recurrence",
]

_U = "cell.recurrent.weight"


def create_optimizer(model: SRNN, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser, by timm, over `parameter_groups`."""
    options: dict[str, Any] = {}
    if "nesterov" in (get_optimizer_info(recipe.optimizer).defaults or {}):
        options["nesterov"] = recipe.nesterov and recipe.momentum > 0
    return create_optimizer_v2(
        parameter_groups(model, recipe),
        recipe.optimizer,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        **options,
    )


def parameter_groups(model: SRNN, recipe: Recipe) -> list[dict[str, Any]]:
    """The trainable parameters by what their learning rate is multiplied with (`lr_scale`) and their weight decay."""
    layers: dict[str, Any] = {}
    if recipe.layer_decay < 1:
        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    last: Any = max(layers.values(), default=0)
    exempt = model.no_weight_decay() | ({_U} if recipe.identity_decay else set())
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = _lr_scale(name, recipe)
        if name.startswith("backbone."):
            scale *= recipe.layer_decay ** (last - layers.get(name, last))
        decays = name not in exempt and (recipe.decay_1d or parameter.ndim > 1)
        groups.setdefault((scale, recipe.weight_decay if decays else 0.0), []).append(parameter)
    return [{"params": params, "lr_scale": key[0], "weight_decay": key[1]} for key, params in groups.items()]


def create_schedule(optimizer: Optimizer, recipe: Recipe, updates_per_epoch: int) -> Scheduler:
    """timm's schedule of the learning rate, update by update; call its `step_update` after each."""
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.schedule,
        num_epochs=recipe.epochs,
        decay_epochs=recipe.decay_epochs,
        decay_rate=recipe.decay_rate,
        min_lr=recipe.min_lr,
        warmup_lr=recipe.warmup_lr,
        warmup_epochs=recipe.warmup_epochs,  # pyright: ignore[reportArgumentType] -- fractions work
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    assert schedule is not None  # for "none" alone, which no recipe has
    schedule.step_update(0)
    return schedule


def learning_rate(optimizer: Optimizer) -> float:
    """The base learning rate now, before the groups' multipliers."""
    group = max(optimizer.param_groups, key=lambda group: group["lr_scale"])
    return group["lr"] / group["lr_scale"] if group["lr_scale"] else 0.0


@torch.no_grad()
def scale_recurrence(model: SRNN, recipe: Recipe) -> None:
    """Start from U = r I, r being the recipe's `recurrence`. Cells without U, and a U that was trained, stay."""
    weight = _recurrent_weight(model)
    if weight is not None and torch.equal(weight, _identity(weight)):
        weight.mul_(recipe.recurrence)


@torch.no_grad()
def decay_to_identity(model: SRNN, optimizer: Optimizer, recipe: Recipe) -> None:
    """`U += lr * identity_decay * (r I - U)`, with the learning rate that U has now; r is the recipe's `recurrence`.

    Cells without U, and a frozen U, stay.
    """
    weight = _recurrent_weight(model)
    if weight is None or not weight.requires_grad:
        return
    group = next(group for group in optimizer.param_groups if any(p is weight for p in group["params"]))
    weight.lerp_(recipe.recurrence * _identity(weight), group["lr"] * recipe.identity_decay)


def _recurrent_weight(model: SRNN) -> Tensor | None:
    return dict(model.cell.named_parameters()).get(_U.removeprefix("cell."))


def _identity(weight: Tensor) -> Tensor:
    return torch.eye(len(weight), device=weight.device, dtype=weight.dtype)


def _lr_scale(name: str, recipe: Recipe) -> float:
    if name.startswith("backbone."):
        return recipe.lr_backbone
    return recipe.lr_cell if name.startswith("cell.") else recipe.lr_classifier
