"""The rows of the comparison on Grocery: the paper's methods, honest baselines, and ideas to improve on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from srnn_zoo.models.cells import HalfGRU, register_cell


@dataclass(frozen=True)
class Trial:
    """A row: a variant, and how it differs from the others.

    Attributes:
        variant: of the model.
        parts: sizes of the levels as parts of the largest; empty for the sizes of the command line.
        settings: of the recipe.
        options: of the model.
    """

    variant: str
    parts: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@register_cell("half_gru_gate_bias")
class HalfGRUGateBias(HalfGRU):
    """Half-GRU with a bias of the gate, which the paper leaves out: `z_s = σ(W_z C(x_s) + U_z h_{s-1} + b)`, b = 2.

    Every gate starts at 0.88 instead of 1/2, so that less of the state bypasses U. With two levels
    `h_2 = 0.88 C(x_2) + (0.10 + 0.78 U) C(x_1)`: from U = I both levels count alike, as without a bias.
    """

    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, **options)
        self.gate_bias = nn.Parameter(torch.full((dim,), 2.0))

    def gates(self, features: Tensor, hidden: Tensor) -> Tensor:
        return torch.sigmoid(self.gate_input(features) + self.gate_recurrent(hidden) + self.gate_bias)


_PER_LEVEL = {"norm": "per_level"}
_QUARTER = {"recurrence": 0.25}
_TAUGHT = {"loss": "anytime", "distillation": 0.5}
_THREE = (0.5, 0.75, 1.0)

#: Every way to fuse the levels, as the paper starts it.
FUSIONS = {name: Trial(name) for name in ("mean_logit", "concat", "vanilla", "half_gru", "gru", "lstm", "mgu")}

#: Ideas beyond the paper.
IDEAS = {
    "half_gru, cell lr x 10": Trial("half_gru", settings={"lr_cell": 1.0}),
    "half_gru, cell lr / 10": Trial("half_gru", settings={"lr_cell": 0.01}),
    "half_gru, no decay to I": Trial("half_gru", settings={"identity_decay": 0.0}),
    "half_gru, strong decay to I": Trial("half_gru", settings={"identity_decay": 10.0}),
    "half_gru, gate bias": Trial("half_gru_gate_bias"),
    "half_gru, U = I/4": Trial("half_gru", settings=_QUARTER),
    "vanilla, U = I/4": Trial("vanilla", settings=_QUARTER),
    "half_gru, norm per level": Trial("half_gru", options=_PER_LEVEL),
    "vanilla, norm per level": Trial("vanilla", options=_PER_LEVEL),
    "mean_logit, norm per level": Trial("mean_logit", options=_PER_LEVEL),
    "half_gru, norm frozen": Trial("half_gru", options={"norm": "frozen"}),
    "half_gru, anytime loss with distillation": Trial("half_gru", settings=_TAUGHT),
    "half_gru, norm per level, U = I/4": Trial("half_gru", settings=_QUARTER, options=_PER_LEVEL),
    "vanilla, norm per level, U = I/4": Trial("vanilla", settings=_QUARTER, options=_PER_LEVEL),
    "half_gru, norm per level, U = I/4, gate bias": Trial("half_gru_gate_bias", settings=_QUARTER, options=_PER_LEVEL),
    "half_gru, norm per level, U = I/4, anytime loss with distillation": Trial(
        "half_gru", settings=_QUARTER | _TAUGHT, options=_PER_LEVEL
    ),
    "mean_logit, norm per level, anytime loss with distillation": Trial(
        "mean_logit", settings=_TAUGHT, options=_PER_LEVEL
    ),
    "mean_logit, three levels": Trial("mean_logit", parts=_THREE),
    "half_gru, three levels": Trial("half_gru", parts=_THREE),
    "half_gru, three levels, norm per level, U = I/4": Trial(
        "half_gru", parts=_THREE, settings=_QUARTER, options=_PER_LEVEL
    ),
    "vanilla, three levels, norm per level, U = I/4": Trial(
        "vanilla", parts=_THREE, settings=_QUARTER, options=_PER_LEVEL
    ),
    "half_gru, norm per level, levels 3/4 and 1": Trial("half_gru", parts=(0.75, 1.0), options=_PER_LEVEL),
    "vanilla, norm per level, U = I/4, levels 3/4 and 1": Trial(
        "vanilla", parts=(0.75, 1.0), settings=_QUARTER, options=_PER_LEVEL
    ),
}
