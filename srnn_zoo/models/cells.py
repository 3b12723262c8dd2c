"""The cells: what happens between two scales, from the paper's two recurrences to the ensembles they are compared with.

A cell reads the features of one level, `C(x_s)` of shape `(B, D)`, and the state that the smaller levels left, and
returns the new state: one tensor `(B, S)`, images first, so that it can be kept, indexed and continued.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srnn_zoo._errors import unknown_name
from srnn_zoo.transforms.resizing import is_captured

Activation = Literal["relu", "identity"]
CellT = TypeVar("CellT", bound="type[Cell]")

_CELLS: dict[str, type[Cell]] = {}


def register_cell(name: str) -> Callable[[CellT], CellT]:
    """Class decorator: makes a `Cell` available as `variant=name`.

    Examples:
        >>> @register_cell("keep_last")
        ... class KeepLast(Cell):
        ...     def forward(self, features, state):
        ...         return features
        >>> "keep_last" in list_cells()
        True

    Raises:
        ValueError: if another class holds the name.
    """

    def register(cls: CellT) -> CellT:
        ours, held = (f"{c.__module__}.{c.__qualname__}" for c in (cls, _CELLS.get(name, cls)))
        if ours != held:
            raise ValueError(f"variant {name!r} is already registered by {held}; choose another name")
        _CELLS[name] = cls
        return cls

    return register


def list_cells() -> list[str]:
    """The registered variants, in the order they were registered: the paper's two first."""
    return list(_CELLS)


def create_cell(variant: str, dim: int, *, activation: Activation = "relu", height: int = 2) -> Cell:
    """A new cell at the paper's initialisation (identity transition, zero gates).

    Args:
        variant: a name from `list_cells()`; for an unknown one a `ValueError` names the closest.
        dim: width D of the features of a level.
        activation: φ, `"relu"` as in the paper or `"identity"` for signed features.
        height: number of levels; only `concat`, whose weights depend on it, uses it.
    """
    if variant not in _CELLS:
        raise ValueError(unknown_name("variant", variant, list_cells(), "srnn_zoo.list_cells() gives them all"))
    parameters = inspect.signature(_CELLS[variant]).parameters.values()
    options: dict[str, Any] = {"activation": activation, "height": height}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):  # a cell need not take what it does not use
        options = {p.name: options[p.name] for p in parameters if p.name in options}
    return _CELLS[variant](dim, **options)


class Cell(nn.Module):
    """What happens between two scales. Subclass it, write `forward`, and decorate with `register_cell`.

    A constructor of its own takes `dim`, and of the others those that it uses.

    Args:
        dim: width D of the features of a level.
        activation: φ in the equations.
        height: number of levels; cells of any height ignore it.
    """

    #: True where the state after any level can be classified; False where only the last one can.
    anytime: bool = True

    #: What `forward` gets of a level: its pooled features `(B, D)`, or a map of them, as `models.places` describes it.
    reads: ClassVar[Literal["features", "maps"]] = "features"

    def __init__(self, dim: int, activation: Activation = "relu", height: int = 2) -> None:
        super().__init__()
        if activation not in ("relu", "identity"):
            raise ValueError(f'activation must be "relu" or "identity"; got {activation!r}')
        self.dim = dim
        self.activation = activation
        self.height = height

    def initial_state(self, features: Tensor) -> Tensor:
        """h_0 for features `(B, D)`: zeros, on the same device and of the same dtype."""
        return torch.zeros_like(features)

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        """The state after a level, from its features `(B, D)` and the state before it."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(features, state)")

    def output(self, state: Tensor) -> Tensor:
        """The part of a state that the classifier reads: h_s, `(B, D)`."""
        return state

    def pooled(self, features: Tensor) -> Tensor:
        """C(x_s) `(B, D)`, from what this cell reads of a level."""
        return features

    def as_read(self, features: Tensor) -> Tensor:
        """What this cell reads of a level of which no more is known than C(x_s), `(B, D)`."""
        return features

    def feature_map(self, state: Tensor) -> Tensor:
        """What `SRNN.forward_features` returns: `output` as a map `(B, D, 1, 1)`."""
        return self.output(state)[:, :, None, None]

    def merge_logits(self, logits: Tensor, feature_map: Tensor) -> Tensor:
        """Logits of every position of a feature map, `(B * positions, K)`, to one answer an image `(B, K)`."""
        return logits

    def phi(self, x: Tensor) -> Tensor:
        """φ: the rectifier, or nothing where features are signed."""
        return F.relu(x) if self.activation == "relu" else x

    def extra_repr(self) -> str:
        return f"dim={self.dim}, activation={self.activation}"


class Matrix(nn.Linear):
    """A product `U h` without biases, which is not computed on a CPU where h is all zeros.

    It is for h_0 = 0, with which every image starts. Training computes it nevertheless: U must have a gradient where an
    image has one level, and DistributedDataParallel waits for it. So do a GPU, as the host would have to wait for it to
    see the zeros, and a graph, which is made for all states.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        if _is_seen_to_be_zero(input):
            return input.new_zeros(*input.shape[:-1], self.out_features)
        return super().forward(input)


def _is_seen_to_be_zero(x: Tensor) -> bool:
    captured = is_captured(x) or torch.compiler.is_compiling()
    if captured or torch.is_grad_enabled() or x.device.type != "cpu":
        return False
    try:
        return not x.any()
    except RuntimeError:  # it has no values to look at: it is fake, or inside vmap
        return False


@register_cell("vanilla")
class Vanilla(Cell):
    """Vanilla SRNN, equation (1) of the paper: `h_s = φ(C(x_s) + U h_{s-1})`.

    With U = I and one level it is the base CNN.
    """

    def __init__(self, dim: int, activation: Activation = "relu", height: int = 2) -> None:
        super().__init__(dim, activation, height)
        self.recurrent = self.transition()

    def transition(self) -> nn.Module:
        """U, the identity at the start (section 4)."""
        matrix = Matrix(self.dim, self.dim)
        nn.init.eye_(matrix.weight)
        return matrix

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        return self.phi(features + self.recurrent(state))  # eq. (1)


class GatedCell(Vanilla):
    """A transition U with `num_gates` sigmoid gates `σ(W C(x_s) + U_g h_{s-1})`, stacked in one weight each."""

    num_gates: int = 1

    def __init__(self, dim: int, activation: Activation = "relu", height: int = 2) -> None:
        super().__init__(dim, activation, height)
        self.gate_input = self.gate_weights()
        self.gate_recurrent = self.gate_weights()

    def gate_weights(self) -> nn.Module:
        """W or U_g of all gates, zero at the start (section 4), so that every gate is half open."""
        matrix = Matrix(self.dim, self.num_gates * self.dim)
        nn.init.zeros_(matrix.weight)
        return matrix

    def gates(self, features: Tensor, hidden: Tensor) -> Tensor:
        """All gates, `(B, num_gates * D)`, each in (0, 1)."""
        return torch.sigmoid(self.gate_input(features) + self.gate_recurrent(hidden))


@register_cell("half_gru")
class HalfGRU(GatedCell):
    """SRNN with half-GRU, equation (2) of the paper.

        h'_s = φ(C(x_s) + U h_{s-1})
        z_s  = σ(W_z C(x_s) + U_z h_{s-1})
        h_s  = (1 - z_s) ⊙ h_{s-1} + z_s ⊙ h'_s

    At the paper's initialisation `h_n = ½ Σ C(x_s)`: with two levels it is the logit ensemble.
    """

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        candidate = self.phi(features + self.recurrent(state))  # eq. (2)
        z = self.gates(features, state)
        return (1 - z) * state + z * candidate


@register_cell("gru")
class GRU(GatedCell):
    """The full gated recurrent unit (Cho et al., 2014) with the paper's φ, no biases, and z as in its equation (2).

        r_s, z_s = σ(W C(x_s) + U_g h_{s-1})          weights stacked in this order
        h'_s     = φ(C(x_s) + U (r_s ⊙ h_{s-1}))
        h_s      = (1 - z_s) ⊙ h_{s-1} + z_s ⊙ h'_s

    At the start, two levels give `h_2 = 3/8 C(x_1) + 1/2 C(x_2)`.
    """

    num_gates = 2

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        r, z = self.gates(features, state).chunk(2, dim=1)
        candidate = self.phi(features + self.recurrent(r * state))
        return (1 - z) * state + z * candidate


@register_cell("lstm")
class LSTM(GatedCell):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997) with φ for tanh and no biases. State: `[h, c]`.

        i_s, f_s, o_s = σ(W C(x_s) + U_g h_{s-1})     weights stacked in this order
        g_s           = φ(C(x_s) + U h_{s-1})
        c_s           = f_s ⊙ c_{s-1} + i_s ⊙ g_s
        h_s           = o_s ⊙ φ(c_s)

    At the start, two levels give `h_2 = 3/16 C(x_1) + 1/4 C(x_2)`: right order, small logits.
    """

    num_gates = 3

    def initial_state(self, features: Tensor) -> Tensor:
        return torch.zeros_like(features).repeat(1, 2)

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        hidden, memory = state.chunk(2, dim=1)
        i, f, o = self.gates(features, hidden).chunk(3, dim=1)
        memory = f * memory + i * self.phi(features + self.recurrent(hidden))
        return torch.cat([o * self.phi(memory), memory], dim=1)

    def output(self, state: Tensor) -> Tensor:
        return state.chunk(2, dim=1)[0]


@register_cell("mgu")
class MGU(GatedCell):
    """Minimal gated unit (Zhou et al., 2016; Heck & Salem, 2017): the half-GRU whose gate also reads into U.

        f_s  = σ(W_f C(x_s) + U_f h_{s-1})
        h'_s = φ(C(x_s) + U (f_s ⊙ h_{s-1}))
        h_s  = (1 - f_s) ⊙ h_{s-1} + f_s ⊙ h'_s

    At the start, two levels give `h_2 = 3/8 C(x_1) + 1/2 C(x_2)`.
    """

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        f = self.gates(features, state)
        candidate = self.phi(features + self.recurrent(f * state))
        return (1 - f) * state + f * candidate


class Collect(Cell):
    """A cell without recurrence: its state is the features of all levels so far, `(B, s * D)`."""

    def initial_state(self, features: Tensor) -> Tensor:
        return features[:, :0]

    def forward(self, features: Tensor, state: Tensor) -> Tensor:
        return torch.cat([state, features], dim=1)


@register_cell("mean_logit")
class MeanLogit(Collect):
    """Scale ensemble of the logits (section 4.1): as F is linear, F of the mean features is the mean of the logits."""

    def output(self, state: Tensor) -> Tensor:
        return state.unflatten(1, (-1, self.dim)).mean(dim=1)


@register_cell("mean_prob")
class MeanProb(MeanLogit):
    """Scale ensemble of the probabilities (section 4.1). Its logits are the logarithm of the mean probability.

    As the mean comes after the classifier, the feature map keeps the levels apart: `(B, D, s, 1)`.
    """

    def feature_map(self, state: Tensor) -> Tensor:
        return state.unflatten(1, (-1, self.dim)).transpose(1, 2)[..., None]

    def merge_logits(self, logits: Tensor, feature_map: Tensor) -> Tensor:
        of_levels = logits.unflatten(0, (feature_map.shape[0], feature_map.shape[2]))
        return log_mean_probability(of_levels, dim=1)


def log_mean_probability(logits: Tensor, dim: int) -> Tensor:
    """The logarithm of the probabilities' mean along `dim`; the classes are the last dimension. It is never -inf."""
    log_prob = F.log_softmax(logits, dim=-1)
    return log_prob.logsumexp(dim) - torch.zeros_like(log_prob).logsumexp(dim)  # log n: a trace has no number n


@register_cell("concat")
class Concat(Collect):
    """Fully connected fusion of a fixed number of levels: `h = φ(W [C(x_1); …; C(x_n)])`, W = [I … I] / n at the start.

    The paper's introduction names it as the alternative that cannot follow images of variable size.
    """

    anytime = False

    def __init__(self, dim: int, activation: Activation = "relu", height: int = 2) -> None:
        super().__init__(dim, activation, height)
        self.fusion = nn.Linear(height * dim, dim, bias=False)
        with torch.no_grad():
            self.fusion.weight.copy_(torch.eye(dim).repeat(1, height) / height)

    def output(self, state: Tensor) -> Tensor:
        traced = torch.jit.is_tracing() or not isinstance(state, Tensor)
        if not traced and state.shape[1] != self.height * self.dim:
            raise ValueError(
                f"variant 'concat' fuses exactly {self.height} levels; got {state.shape[1] // self.dim}. "
                "Choose a recurrent variant for images of variable height"
            )
        return self.phi(self.fusion(state))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, height={self.height}"
