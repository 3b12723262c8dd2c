"""The cells against the paper's equations, written out in numpy for one image at a time, in float64."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import symbolic_trace
from torch.utils.flop_counter import FlopCounterMode

from srnn_zoo import Cell, create_model, list_cells, register_cell
from srnn_zoo.models import cells
from srnn_zoo.models.cells import create_cell
from srnn_zoo.models.recurrence import scan

from .harness import full

FULL = ["vanilla", "half_gru", "gru", "lstm", "mgu"]
LIGHT = [*(f"{variant}_diag" for variant in FULL), *(f"{v}_{u}" for v in FULL[:2] for u in ("scalar", "low_rank"))]
RECURRENT = [*FULL, *LIGHT]
ALL = [*RECURRENT, "mean_logit", "mean_prob", "concat"]
BATCH, DIM = 3, 5


def reference_state(variant, weights, levels, relu):
    """h_n of one image from its features `(D,)` of every level: the equations, in their order."""
    w = {name.removesuffix(".weight"): value.numpy() for name, value in weights.items()}
    for name, value in w.items():
        if value.ndim == 1:  # the diagonals of one matrix after the other
            of_matrices = np.split(value, max(1, len(value) // DIM))
            w[name] = np.concatenate([np.diag(np.broadcast_to(diagonal, DIM)) for diagonal in of_matrices])
    if "recurrent.up" in w:
        w["recurrent"] = w["recurrent"] + w["recurrent.up"] @ w["recurrent.down"]
    variant = full(variant)

    def phi(x):
        return np.maximum(x, 0) if relu else x

    def gates(c, h):
        return np.split(1 / (1 + np.exp(-(w["gate_input"] @ c + w["gate_recurrent"] @ h))), len(w["gate_input"]) // DIM)

    def candidate(c, h):
        return phi(c + w["recurrent"] @ h)

    if variant in ("mean_logit", "mean_prob"):
        return sum(levels) / len(levels)
    if variant == "concat":
        return phi(w["fusion"] @ np.concatenate(levels))
    h = memory = np.zeros(DIM)  # h_0 = 0
    for c in levels:
        if variant == "vanilla":  # eq. (1)
            h = candidate(c, h)
        elif variant == "half_gru":  # eq. (2)
            (z,) = gates(c, h)
            h = (1 - z) * h + z * candidate(c, h)
        elif variant == "gru":  # Cho et al. (2014)
            r, z = gates(c, h)
            h = (1 - z) * h + z * candidate(c, r * h)
        elif variant == "mgu":  # Heck & Salem (2017)
            (f,) = gates(c, h)
            h = (1 - f) * h + f * candidate(c, f * h)
        else:  # Hochreiter & Schmidhuber (1997)
            i, f, o = gates(c, h)
            memory = f * memory + i * candidate(c, h)
            h = o * phi(memory)
    return h


def random_cell(variant, activation, height):
    cell = create_cell(variant, DIM, activation=activation, height=height).double()
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return cell


def answer(cell, levels):
    *_, state = scan(cell, levels)
    return cell.output(state)


@pytest.mark.parametrize("height", range(1, 6))
@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("variant", ALL)
def test_a_cell_is_its_equation_in_float64(variant, activation, height):
    cell = random_cell(variant, activation, height)
    levels = torch.randn(height, BATCH, DIM, dtype=torch.float64)
    ours = answer(cell, levels).detach().numpy()
    for image in range(BATCH):
        expected = reference_state(variant, cell.state_dict(), list(levels[:, image].numpy()), activation == "relu")
        assert np.abs(ours[image] - expected).max() <= 1e-12


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("variant", ALL)
def test_gradients_are_those_of_finite_differences(variant, activation):
    cell = random_cell(variant, activation, height=3)
    levels = [torch.randn(2, DIM, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *inputs: answer(cell, inputs[:3]), (*levels, *cell.parameters()))


@pytest.mark.parametrize("variant", RECURRENT)
def test_a_cell_starts_with_the_identity_and_half_open_gates(variant):
    cell = create_cell(variant, DIM)
    gates = [x for name, x in cell.named_parameters() if name in ("gate_input.weight", "gate_recurrent.weight")]
    assert torch.equal(cell.recurrent(torch.eye(DIM)), torch.eye(DIM))
    assert len(gates) == (0 if variant.startswith("vanilla") else 2)
    assert not any(gate.any() for gate in gates)


def test_what_makes_no_cell_or_no_answer_is_refused():
    for variant, options, message in (
        ("transformer", {}, "unknown variant .transformer.; srnn_zoo.list_cells.. gives them all"),
        ("vanilla", {"activation": "tanh"}, 'activation must be "relu" or "identity"'),
        ("concat", {"height": 2}, "fuses exactly 2 levels; got 3"),
        ("concat", {"height": 4}, "fuses exactly 4 levels; got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            answer(create_cell(variant, DIM, **options), torch.rand(3, 1, DIM))


@pytest.fixture
def own_list(monkeypatch):
    """Cells that a test registers are forgotten after it."""
    monkeypatch.setattr(cells, "_CELLS", dict(cells._CELLS))


def test_a_user_can_register_a_cell_and_use_it_by_name(own_list):
    @register_cell("keep_largest")
    class KeepLargest(Cell):
        def forward(self, features, state):
            return torch.maximum(features, state)

    assert list_cells()[:8] == [*FULL, *ALL[-3:]]  # the paper's come first
    assert set(ALL) < set(list_cells())
    assert "keep_largest" in list_cells()
    model = create_model("srnn_test_resnet", variant="keep_largest", num_classes=3).eval()
    images = torch.rand(2, 3, 64, 64)
    small, large = (model.level_features(x) for x in model.levels(images))
    assert torch.equal(model(images), model.fc(torch.maximum(small, large)))
    for cls in (KeepLargest, type("Vanilla", (Cell,), {"__module__": "elsewhere"})):
        with pytest.raises(ValueError, match=r"already registered by srnn_zoo\.models\.cells\.Vanilla"):
            register_cell("vanilla")(cls)


def test_a_cells_constructor_takes_only_what_it_uses(own_list):
    class Plain(Cell):
        def __init__(self, dim):
            super().__init__(dim)

    class Positional(Cell):
        def __init__(self, dim, activation):
            super().__init__(dim, activation)

    class WithOptions(Cell):
        def __init__(self, dim, **options):
            super().__init__(dim, **options)

    for cls, expected in ((Plain, ("relu", 2)), (Positional, ("identity", 2)), (WithOptions, ("identity", 3))):
        register_cell(cls.__name__)(cls)
        cell = create_cell(cls.__name__, DIM, activation="identity", height=3)
        assert (cell.dim, cell.activation, cell.height) == (DIM, *expected)


@pytest.mark.parametrize("variant", FULL)
def test_no_product_with_h_0_is_computed_where_none_is_needed(variant):
    """Bit by bit the same answers. Where there are gradients, or a state has no values to look at, it is computed."""
    cell = random_cell(variant, "relu", height=2)
    levels = torch.randn(2, BATCH, DIM, dtype=torch.float64)

    def multiplications(height):
        with FlopCounterMode(display=False) as counter:
            found = answer(cell, levels[:height])
        return found.detach(), counter.get_total_flops() / (2 * BATCH)

    every = [multiplications(height) for height in (1, 2)]
    of_state = [weight for name, weight in cell.named_parameters() if "recurrent" in name]
    with torch.no_grad():
        for height, (expected, all_of_them) in zip((1, 2), every, strict=True):
            found, fewer = multiplications(height)
            assert torch.equal(found, expected)
            assert all_of_them - fewer == sum(weight.numel() for weight in of_state)
        one = every[0][0]
        assert torch.equal(torch.vmap(lambda level: answer(cell, [level]))(levels[:1]), one[None])
        assert torch.equal(cell.output(symbolic_trace(cell)(levels[0], cell.initial_state(levels[0]))), one)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert answer(cell, [torch.empty(BATCH, DIM, dtype=torch.float64)]).shape == one.shape


@pytest.mark.parametrize("variant", FULL)
def test_training_gives_u_a_gradient_from_one_level(variant):
    cell = random_cell(variant, "relu", height=1)
    answer(cell, torch.randn(1, BATCH, DIM, dtype=torch.float64)).sum().backward()
    for name, weight in cell.named_parameters():
        if "recurrent" in name:
            assert torch.equal(weight.grad, torch.zeros_like(weight))
