"""Light cells: the recurrences of `cells` with D weights where the paper has D x D.

The suffix of a variant's name says what U is: `_scalar`, one number; `_diag`, a number for each feature; `_low_rank`, a
number for each feature and a product of two thin matrices. Their gates have a number for each feature. All start where
the paper starts: U = I, gates half open.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .cells import GRU, LSTM, MGU, GatedCell, HalfGRU, Vanilla, register_cell

_SHARE = 16  # the rank of a low-rank U is D / 16


class Diagonal(nn.Module):
    """Products with diagonal matrices: `(B, D)` to `(B, n * D)`.

    Args:
        width: how many numbers a matrix has: D, or 1 where it is the same for all features.
        value: what all of them are at the start.
        matrices: how many there are, n.
    """

    def __init__(self, width: int, value: float, matrices: int = 1) -> None:
        super().__init__()
        self.matrices = matrices
        self.weight = nn.Parameter(torch.full((matrices * width,), value))

    def forward(self, x: Tensor) -> Tensor:
        """Each feature times its numbers, one matrix after the other."""
        return x.repeat(1, self.matrices) * self.weight

    def extra_repr(self) -> str:
        return f"width={len(self.weight)}"


class LowRank(Diagonal):
    """`U = diag(w) + B A`, where A is `(r, D)` and B `(D, r)`.

    At the start B is zero, so that U is the identity, and A gives the means of r groups of features.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__(dim, 1.0)
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, dim, bias=False)
        nn.init.zeros_(self.up.weight)
        with torch.no_grad():
            groups = torch.arange(dim) * rank // dim
            members = (groups == torch.arange(rank)[:, None]).to(self.down.weight)
            self.down.weight.copy_(members / members.sum(1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        """U x."""
        return super().forward(x) + self.up(self.down(x))


class DiagonalTransition(Vanilla):
    """U is diagonal."""

    def transition(self) -> nn.Module:
        return Diagonal(self.dim, 1.0)


class ScalarTransition(Vanilla):
    """U is one number."""

    def transition(self) -> nn.Module:
        return Diagonal(1, 1.0)


class LowRankTransition(Vanilla):
    """U is diagonal plus a matrix of rank D / 16."""

    def transition(self) -> nn.Module:
        return LowRank(self.dim, max(1, self.dim // _SHARE))


class DiagonalGates(GatedCell):
    """W and U_g are diagonal, of each gate."""

    def gate_weights(self) -> nn.Module:
        return Diagonal(self.dim, 0.0, matrices=self.num_gates)


@register_cell("vanilla_diag")
class VanillaDiag(DiagonalTransition):
    """`vanilla` with a diagonal U: D parameters."""


@register_cell("vanilla_scalar")
class VanillaScalar(ScalarTransition):
    """`vanilla` with one number for U."""


@register_cell("vanilla_low_rank")
class VanillaLowRank(LowRankTransition):
    """`vanilla` with U of low rank beside a diagonal: about D² / 8 parameters."""


@register_cell("half_gru_diag")
class HalfGRUDiag(DiagonalTransition, DiagonalGates, HalfGRU):
    """`half_gru` with a diagonal U and diagonal gates: 3 D parameters."""


@register_cell("half_gru_scalar")
class HalfGRUScalar(ScalarTransition, DiagonalGates, HalfGRU):
    """`half_gru` with one number for U and diagonal gates: 2 D + 1 parameters."""


@register_cell("half_gru_low_rank")
class HalfGRULowRank(LowRankTransition, DiagonalGates, HalfGRU):
    """`half_gru` with U of low rank beside a diagonal, and diagonal gates."""


@register_cell("gru_diag")
class GRUDiag(DiagonalTransition, DiagonalGates, GRU):
    """`gru` with a diagonal U and diagonal gates: 5 D parameters."""


@register_cell("lstm_diag")
class LSTMDiag(DiagonalTransition, DiagonalGates, LSTM):
    """`lstm` with a diagonal U and diagonal gates: 7 D parameters."""


@register_cell("mgu_diag")
class MGUDiag(DiagonalTransition, DiagonalGates, MGU):
    """`mgu` with a diagonal U and diagonal gates: 3 D parameters."""
