"""Optimiser and schedule of a recipe, by timm, with groups for backbone, cell and classifier, and U decaying to r I."""

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


def create_optimizer(model: SRNN, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser, by timm, over `parameter_groups`."""
    options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "momentum": recipe.momentum}
    if "nesterov" in (get_optimizer_info(recipe.optimizer).defaults or {}):
        options["nesterov"] = recipe.nesterov and recipe.momentum > 0
    return create_optimizer_v2(parameter_groups(model, recipe), recipe.optimizer, **options)


def parameter_groups(model: SRNN, recipe: Recipe) -> list[dict[str, Any]]:
    """The trainable parameters, grouped by the factor of their learning rate (`lr_scale`) and their weight decay."""
    layers: dict[str, Any] = {}
    if recipe.layer_decay < 1:
        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    last: Any = max(layers.values(), default=0)
    u = _recurrent_weight(model) if recipe.identity_decay else None
    exempt = model.no_weight_decay()
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = {"backbone": recipe.lr_backbone, "cell": recipe.lr_cell}.get(name.split(".")[0], recipe.lr_classifier)
        if name.startswith("backbone."):
            scale *= recipe.layer_decay ** (last - layers.get(name, last))
        decays = parameter is not u and name not in exempt and (recipe.decay_1d or parameter.ndim > 1)
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
    assert schedule is not None  # timm gives None for "none", which no recipe has
    schedule.step_update(0)
    return schedule


def learning_rate(optimizer: Optimizer) -> float:
    """The base learning rate now, before the groups' factors."""
    group = max(optimizer.param_groups, key=lambda group: group["lr_scale"])
    return group["lr"] / group["lr_scale"] if group["lr_scale"] else 0.0


@torch.no_grad()
def scale_recurrence(model: SRNN, recipe: Recipe) -> None:
    """Start from U = r I, where r is the recipe's `recurrence`. Cells without U, and a U that was trained, stay."""
    u = _recurrent_weight(model)
    if u is not None and torch.equal(u, _identity(u)):
        u.mul_(recipe.recurrence)


@torch.no_grad()
def decay_to_identity(model: SRNN, optimizer: Optimizer, recipe: Recipe) -> None:
    """`U += lr * identity_decay * (r I - U)`, with the learning rate that U has now; r is the recipe's `recurrence`.

    Cells without U, and a frozen U, stay.
    """
    u = _recurrent_weight(model)
    if u is None or not u.requires_grad or not recipe.identity_decay:
        return
    group = next(group for group in optimizer.param_groups if any(p is u for p in group["params"]))
    u.lerp_(recipe.recurrence * _identity(u), group["lr"] * recipe.identity_decay)


def _recurrent_weight(model: SRNN) -> Tensor | None:
    """U, where the cell has one."""
    return dict(model.cell.named_parameters()).get("recurrent.weight")


def _identity(weight: Tensor) -> Tensor:
    """The weight of U = I: a matrix, or the diagonal of one."""
    if weight.dim() == 1:
        return torch.ones_like(weight)
    return torch.eye(len(weight), device=weight.device, dtype=weight.dtype)
