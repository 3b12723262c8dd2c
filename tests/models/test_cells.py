"""The cells against the paper's equations, written out as plain loops in float64."""

import math
from typing import Any

import pytest
import torch

from srnn_zoo import Cell, create_model, list_cells, register_cell
from srnn_zoo.models import cells
from srnn_zoo.models.cells import create_cell

RECURRENT = ["vanilla", "half_gru", "gru", "lstm", "mgu"]
BASELINES = ["mean_logit", "mean_prob", "concat"]
BATCH, DIM, CLASSES = 3, 5, 4


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def matvec(matrix, vector):
    return [sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix]


def reference_state(variant, weights, levels, relu):
    """h_n of one image, one number at a time, from the equations and in their order."""

    def phi(value):
        return max(value, 0.0) if relu else value

    def w(name, part=0):
        return weights[f"{name}.weight"][part * DIM : (part + 1) * DIM].tolist()

    def gate(c, h, part=0):
        return [
            sigmoid(a + b)
            for a, b in zip(matvec(w("gate_input", part), c), matvec(w("gate_recurrent", part), h), strict=True)
        ]

    def candidate(c, h):
        return [phi(a + b) for a, b in zip(c, matvec(w("recurrent"), h), strict=True)]

    def blend(z, h, new):
        return [(1 - zi) * hi + zi * ni for zi, hi, ni in zip(z, h, new, strict=True)]

    def times(a, b):
        return [x * y for x, y in zip(a, b, strict=True)]

    h = [0.0] * DIM  # h_0 = 0
    memory = [0.0] * DIM
    for c in levels:
        if variant == "vanilla":  # eq. (1)
            h = candidate(c, h)
        elif variant == "half_gru":  # eq. (2)
            h = blend(gate(c, h), h, candidate(c, h))
        elif variant == "gru":  # Cho et al. (2014)
            r, z = gate(c, h, 0), gate(c, h, 1)
            h = blend(z, h, candidate(c, times(r, h)))
        elif variant == "mgu":  # Heck & Salem (2017)
            f = gate(c, h)
            h = blend(f, h, candidate(c, times(f, h)))
        elif variant == "lstm":  # Hochreiter & Schmidhuber (1997)
            i, f, o = (gate(c, h, part) for part in range(3))
            memory = [a + b for a, b in zip(times(f, memory), times(i, candidate(c, h)), strict=True)]
            h = times(o, [phi(m) for m in memory])
    if variant in ("mean_logit", "mean_prob"):
        return [sum(column) / len(levels) for column in zip(*levels, strict=True)]
    if variant == "concat":
        joined = [value for level in levels for value in level]
        return [phi(value) for value in matvec(weights["fusion.weight"].tolist(), joined)]
    return h


def random_cell(variant, activation, height):
    cell = create_cell(variant, DIM, activation=activation, height=height).double()
    for parameter in cell.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return cell


def run(cell, levels):
    state = cell.initial_state(levels[0])
    for features in levels:
        state = cell(features, state)
    return state


@pytest.mark.parametrize("height", range(1, 6))
@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("variant", RECURRENT + BASELINES)
def test_a_cell_is_its_equation_in_float64(variant, activation, height):
    cell = random_cell(variant, activation, height)
    levels = [torch.randn(BATCH, DIM, dtype=torch.float64) for _ in range(height)]
    ours = cell.output(run(cell, levels))
    weights = cell.state_dict()
    for image in range(BATCH):
        expected = reference_state(variant, weights, [x[image].tolist() for x in levels], activation == "relu")
        assert (ours[image] - torch.tensor(expected, dtype=torch.float64)).abs().max() <= 1e-12


@pytest.mark.parametrize("height", range(1, 6))
def test_mean_prob_is_the_mean_of_the_levels_probabilities(height):
    cell = create_cell("mean_prob", DIM, height=height).double()
    fc = torch.nn.Linear(DIM, CLASSES, dtype=torch.float64)
    levels = [torch.randn(BATCH, DIM, dtype=torch.float64) for _ in range(height)]
    feature_map = cell.feature_map(run(cell, levels))
    assert feature_map.shape == (BATCH, DIM, height, 1)
    positions = feature_map.flatten(2).transpose(1, 2).flatten(0, 1)
    probabilities = cell.merge_logits(fc(positions), feature_map).softmax(1)
    for image in range(BATCH):
        total = [0.0] * CLASSES
        for level in levels:
            logits = fc(level[image]).tolist()
            exponentials = [math.exp(v) for v in logits]
            total = [t + e / sum(exponentials) for t, e in zip(total, exponentials, strict=True)]
        expected = torch.tensor([t / height for t in total], dtype=torch.float64)
        assert (probabilities[image] - expected).abs().max() <= 1e-12
        assert abs(cell.merge_logits(fc(positions), feature_map)[image].exp().sum() - 1) <= 1e-12


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("variant", RECURRENT + BASELINES)
def test_gradients_are_those_of_finite_differences(variant, activation):
    cell = random_cell(variant, activation, height=3)
    names = [name for name, _ in cell.named_parameters()]
    levels = tuple(torch.randn(2, DIM, dtype=torch.float64, requires_grad=True) for _ in range(3))
    parameters = tuple(p.detach().clone().requires_grad_() for p in cell.parameters())

    def output(*inputs):
        values = dict(zip(names, inputs[3:], strict=True))
        state = cell.initial_state(inputs[0])
        for features in inputs[:3]:
            state = torch.func.functional_call(cell, values, (features, state))
        with torch.nn.utils.stateless._reparametrize_module(cell, values):
            return cell.output(state)

    assert torch.autograd.gradcheck(output, (*levels, *parameters))


@pytest.mark.parametrize("variant", RECURRENT)
def test_a_cell_starts_with_the_identity_and_half_open_gates(variant):
    cell = create_cell(variant, DIM)
    state = cell.state_dict()
    assert torch.equal(state.pop("recurrent.weight"), torch.eye(DIM))
    assert all(name.startswith("gate_") and not value.any() for name, value in state.items())
    assert not any(name.endswith("bias") for name in cell.state_dict())


@pytest.mark.parametrize(
    ("variant", "first", "second"),
    [
        ("vanilla", 1, 1),
        ("half_gru", 1 / 2, 1 / 2),
        ("gru", 3 / 8, 1 / 2),
        ("mgu", 3 / 8, 1 / 2),
        ("lstm", 3 / 16, 1 / 4),
        ("mean_logit", 1 / 2, 1 / 2),
        ("mean_prob", 1 / 2, 1 / 2),
        ("concat", 1 / 2, 1 / 2),
    ],
)
def test_the_untrained_state_of_two_levels_is_the_documented_sum(variant, first, second):
    small, large = torch.rand(2, BATCH, DIM, dtype=torch.float64)
    cell = create_cell(variant, DIM, height=2).double()
    assert torch.allclose(cell.output(run(cell, [small, large])), first * small + second * large, atol=1e-14)


@pytest.mark.parametrize("height", range(1, 6))
def test_the_untrained_half_gru_holds_half_the_sum_of_the_levels(height):
    levels = [torch.rand(BATCH, DIM, dtype=torch.float64) for _ in range(height)]
    cell = create_cell("half_gru", DIM).double()
    assert torch.allclose(run(cell, levels), sum(levels) / 2, atol=1e-14)


def test_the_papers_names_are_in_the_state_dict():
    expected = {"recurrent.weight": (DIM, DIM), "gate_input.weight": (DIM, DIM), "gate_recurrent.weight": (DIM, DIM)}
    assert {k: tuple(v.shape) for k, v in create_cell("half_gru", DIM).state_dict().items()} == expected


def test_a_state_can_be_kept_indexed_and_continued():
    for variant in [*RECURRENT, "mean_logit"]:
        cell = random_cell(variant, "relu", 2)
        first, second = torch.rand(2, BATCH, DIM, dtype=torch.float64)
        kept = cell(first, cell.initial_state(first))[[2, 0]]
        assert torch.allclose(cell(second[[2, 0]], kept), run(cell, [first, second])[[2, 0]], atol=1e-13)


def test_concat_refuses_another_height():
    cell = create_cell("concat", DIM, height=2)
    with pytest.raises(ValueError, match=r"fuses exactly 2 levels; got 3"):
        cell.output(run(cell, [torch.rand(1, DIM)] * 3))


def test_an_unknown_variant_names_the_closest():
    with pytest.raises(ValueError, match="unknown variant 'halfgru'; did you mean 'half_gru'"):
        create_cell("halfgru", DIM)
    with pytest.raises(ValueError, match="choose one of concat, gru, half_gru"):
        create_cell("transformer", DIM)
    with pytest.raises(ValueError, match='activation must be "relu" or "identity"'):
        create_cell("vanilla", DIM, activation="tanh")


def test_a_user_can_register_a_cell_and_use_it_by_name(monkeypatch):
    monkeypatch.setattr("srnn_zoo.models.cells._CELLS", dict(cells._CELLS))

    @register_cell("keep_largest")
    class KeepLargest(Cell):
        def forward(self, features, state):
            return torch.maximum(features, state)

    assert "keep_largest" in list_cells()
    model = create_model("srnn_test_resnet", variant="keep_largest", num_classes=3).eval()
    images = torch.rand(2, 3, 64, 64)
    small, large = (model.level_features(x) for x in model.levels(images))
    assert torch.equal(model(images), model.fc(torch.maximum(small, large)))
    impostor = type("Vanilla", (Cell,), {"__module__": "elsewhere"})
    for cls in (KeepLargest, impostor):
        with pytest.raises(ValueError, match=r"already registered by srnn_zoo\.models\.cells\.Vanilla"):
            register_cell("vanilla")(cls)


def test_a_cells_constructor_takes_only_what_it_uses(monkeypatch):
    monkeypatch.setattr("srnn_zoo.models.cells._CELLS", dict(cells._CELLS))

    class Plain(Cell):
        def __init__(self, dim: int):
            super().__init__(dim)
            self.scale = torch.nn.Parameter(torch.ones(dim))

    class Positional(Cell):
        def __init__(self, dim: int, activation: Any):
            super().__init__(dim, activation)

    class Any_(Cell):
        def __init__(self, dim: int, **options: Any):
            super().__init__(dim, **options)

    for cls, expected in ((Plain, ("relu", 2)), (Positional, ("identity", 2)), (Any_, ("identity", 3))):
        register_cell(cls.__name__)(cls)
        cell = create_cell(cls.__name__, DIM, activation="identity", height=3)
        assert (cell.dim, cell.activation, cell.height) == (DIM, *expected)


def test_the_papers_variants_come_first_in_the_list():
    assert list_cells()[:8] == RECURRENT + BASELINES
