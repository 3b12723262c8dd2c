"""Cells whose state is a map: against a plain loop over positions in float64, and models that have them."""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from srnn_zoo import SRNN, Anytime, count_gmacs, create_model, init_from_base_cnn
from srnn_zoo.models.cells import GRU, LSTM, MGU, HalfGRU, Vanilla, create_cell
from srnn_zoo.models.map_cells import MapCell
from srnn_zoo.models.places import aligned, mean, placed, same_size, values
from srnn_zoo.models.reading import NoMapError
from srnn_zoo.models.recurrence import scan
from srnn_zoo.training.features import extract_features
from tests.models.harness import SRNNTests, full, trained

MAPS = ["vanilla_map", "half_gru_map", "vanilla_map_diag", "half_gru_map_diag"]
WHOLE, DIM = (0.0, 0.0, 1.0, 1.0), 3
VIEWS = {  # of three levels: how many rows and columns they have, and what each shows
    "plain": [((2, 3), WHOLE), ((4, 6), WHOLE), ((7, 5), WHOLE)],
    "zooms": [((4, 4), WHOLE), ((4, 5), (0.25, 0.1, 0.75, 0.6)), ((3, 2), (0.3, 0.3, 0.55, 0.55))],
    "glimpse first": [((3, 3), (0.5, 0.0, 1.0, 0.5)), ((5, 4), WHOLE), ((1, 1), (0.2, 0.2, 0.7, 0.7))],
}


class TestMaps(SRNNTests):
    """Levels in the middle that have parts of their own; others must be given with their places."""

    size = 80

    @pytest.fixture
    def model(self):
        own = {"exits": "separate", "norm": "per_level"}
        return trained(variant="vanilla_map_diag", zooms=(1.0, 1.6), img_size=self.size, std=0.05, **own)


def state_at(state, view, y, x):
    """The state `(D, h, w)` of a level that shows `view` at a point of the image; zero where it shows nothing."""
    (top, left, bottom, right), (_, height, width) = view, state.shape
    v, u = (y - top) / (bottom - top) * height, (x - left) / (right - left) * width
    if not (0 <= v <= height and 0 <= u <= width):
        return np.zeros(len(state))
    v, u = min(max(v - 0.5, 0), height - 1), min(max(u - 0.5, 0), width - 1)
    total = 0
    for row in range(height):
        for column in range(width):
            total = total + state[:, row, column] * max(0, 1 - abs(v - row)) * max(0, 1 - abs(u - column))
    return total


def plain_loop(cell, levels):
    """h_n pooled, of one image, from what each level has at its positions `(D, h, w)` and the part it shows."""
    weights = {name.removesuffix(".weight"): x.detach().numpy() for name, x in cell.named_parameters()}
    u, w_z, u_z = (
        np.diag(x) if x is not None and x.ndim == 1 else x
        for x in map(weights.get, ("recurrent", "gate_input", "gate_recurrent"))
    )
    before, view_before = None, None
    for level, view in levels:
        (_, height, width), (top, left, bottom, right) = level.shape, view
        state = np.zeros_like(level)
        for row in range(height):
            for column in range(width):
                y = top + (row + 0.5) / height * (bottom - top)
                x = left + (column + 0.5) / width * (right - left)
                c = level[:, row, column]
                h = np.zeros(len(c)) if before is None else state_at(before, view_before, y, x)
                candidate = c + u @ h
                if cell.activation == "relu":
                    candidate = np.maximum(candidate, 0)
                z = 1 if w_z is None else 1 / (1 + np.exp(-(w_z @ c + u_z @ h)))
                state[:, row, column] = (1 - z) * h + z * candidate
        before, view_before = state, view
    return before.mean(axis=(1, 2))


def at(levels, view):
    """Values as a map that shows a part of its image."""
    share = view[2] - view[0]
    centers = torch.tensor([[(view[0] + view[2]) / 2, (view[1] + view[3]) / 2]], dtype=torch.float64)
    ratio = (round(share * 1000), 1000)
    return placed(levels, ratio, centers.expand(len(levels), 2))


def random_cell(variant, activation="relu"):
    cell = create_cell(variant, DIM, activation=activation).double()
    for parameter in cell.parameters():
        nn.init.normal_(parameter, std=0.7)
    return cell


def answer(cell, levels):
    *_, state = scan(cell, levels)
    return cell.output(state)


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("variant", MAPS)
def test_a_cell_is_a_loop_over_positions_in_float64(variant, views, activation):
    cell = random_cell(variant, activation)
    levels = [torch.randn(2, DIM, *size, dtype=torch.float64) for size, _ in VIEWS[views]]
    shown = [view for _, view in VIEWS[views]]
    ours = answer(cell, map(at, levels, shown)).detach().numpy()
    for image in range(2):
        expected = plain_loop(cell, [(x[image].numpy(), view) for x, view in zip(levels, shown, strict=True)])
        assert np.abs(ours[image] - expected).max() <= 1e-10


@pytest.mark.parametrize("variant", MAPS)
def test_gradients_are_those_of_finite_differences(variant):
    cell = random_cell(variant, "identity")
    levels = [torch.randn(1, DIM, *size, dtype=torch.float64, requires_grad=True) for size, _ in VIEWS["zooms"]]
    shown = [view for _, view in VIEWS["zooms"]]
    assert torch.autograd.gradcheck(
        lambda *inputs: answer(cell, map(at, inputs[:3], shown)), (*levels, *cell.parameters())
    )


@pytest.mark.parametrize("cell", [Vanilla, HalfGRU, GRU, LSTM, MGU])
def test_any_cell_works_at_positions_and_on_one_position_it_is_itself(cell):
    of_maps = type("OfMaps", (MapCell, cell), {})(DIM).double()
    plain = cell(DIM).double()
    for parameter in of_maps.parameters():
        nn.init.normal_(parameter, std=0.7)
    plain.load_state_dict(of_maps.state_dict())
    levels = torch.randn(3, 4, DIM, dtype=torch.float64)
    torch.testing.assert_close(answer(of_maps, [of_maps.as_read(x) for x in levels]), answer(plain, levels))


@pytest.mark.parametrize("sizes", [((3, 4), (6, 8)), ((4, 4), (4, 4)), ((5, 3), (7, 11)), ((8, 6), (3, 4))])
def test_a_map_of_the_same_view_is_resized_as_torch_does(sizes):
    small, large = (torch.randn(2, DIM, *size, dtype=torch.float64) for size in sizes)
    expected = F.interpolate(small, sizes[1], mode="bilinear", align_corners=False)
    torch.testing.assert_close(aligned(placed(small), placed(large)), expected, rtol=0, atol=1e-12)


def test_padded_maps_are_what_they_are_alone():
    maps = [placed(torch.randn(1, DIM, *size, dtype=torch.float64)) for size in ((2, 5), (4, 3), (4, 5))]
    like = placed(torch.randn(3, DIM, 6, 6, dtype=torch.float64))
    together = torch.cat(same_size(maps))
    assert together.shape == (3, DIM + 6, 4, 5)
    torch.testing.assert_close(mean(together), torch.cat([values(x).mean(dim=(2, 3)) for x in maps]))
    torch.testing.assert_close(aligned(together, like), torch.cat([aligned(x, like[:1]) for x in maps]))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@torch.no_grad()
def test_a_zero_shot_model_is_the_base_cnn_on_one_level_and_its_pooled_variant_where_maps_grow_by_whole_factors(name):
    base_cnn = timm.create_model(name, num_classes=5).double().eval()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    for variant in ("vanilla_map", "half_gru_map") if name == "test_resnet" else ("vanilla_map",):
        model, pooled = (
            create_model(f"srnn_{name}", variant=v, num_classes=5).double().eval() for v in (variant, full(variant))
        )
        for each in (model, pooled):
            init_from_base_cnn(each, base_cnn)
        assert model.temperature(0) == pooled.temperature(0)
        torch.testing.assert_close(model(images), pooled(images), rtol=0, atol=1e-10)
        torch.testing.assert_close(model.level_logits(model.level_features(images)), base_cnn(images))
        if variant == "vanilla_map":
            torch.testing.assert_close(model([images]), base_cnn(images), rtol=0, atol=1e-10)
            if model.cell.activation == "identity":  # then with any U
                nn.init.normal_(model.cell.recurrent.weight, std=0.1)
                pooled.load_state_dict(model.state_dict())
                torch.testing.assert_close(model(images), pooled(images), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "zooms", "views"),
    [
        ("test_resnet", (1.6, 1.0), "center"),
        ("test_resnet", (1.0, 1.25, 2.5), "attention"),
        ("test_vit", (1.0, 1.6), "attention"),
    ],
)
@torch.no_grad()
def test_the_state_of_a_model_follows_its_views(name, zooms, views):
    model = trained(f"srnn_{name}", variant="half_gru_map", zooms=zooms, views=views).double()
    images = torch.randn(2, 3, 160, 200, dtype=torch.float64)
    lazy = model.lazy_levels(images)
    *_, last = model.steps(lazy)
    levels = list[torch.Tensor]()
    for level in model.levels(images):
        features, positions = model.position_features(level)
        levels.append(positions + (features - positions.mean(dim=(2, 3)))[:, :, None, None])
    for image in range(2):
        shown = [lazy.views(level)[-1 if lazy.centers.get(level) is None else image] for level in range(len(zooms))]
        state = plain_loop(model.cell, [(x[image].numpy(), v.tolist()) for x, v in zip(levels, shown, strict=True)])
        expected = model.fc(torch.from_numpy(state))
        for logits in (last.logits, model(images)):
            torch.testing.assert_close(logits[image], expected, rtol=0, atol=1e-6)
    if views == "attention":
        assert not torch.equal(lazy.views(len(zooms) - 1)[0], lazy.views(len(zooms) - 1)[1])


@torch.no_grad()
def test_images_that_go_on_alone_take_their_states_and_views_along():
    model, images = trained(variant="half_gru_map", zooms=(1.0, 2.0), views="attention"), torch.randn(8, 3, 96, 96)
    steps = list(model.steps(images))
    sure = steps[0].logits.softmax(dim=1).amax(dim=1)
    found = Anytime(model, f"confidence:{sure.median().item():.4f}")(images)
    assert 0 < found.stopped_at.sum() < 8
    both = torch.stack([step.logits for step in steps])
    torch.testing.assert_close(found.logits, both[found.stopped_at, torch.arange(8)])


def test_the_head_costs_what_it_computes_at_every_position():
    model = create_model("srnn_test_resnet", variant="vanilla_map", num_classes=5)
    positions = [
        values(model.level_features(level)).shape[2:].numel() for level in model.levels(torch.zeros(1, 3, 128, 64))
    ]
    assert count_gmacs(model, (128, 64)).head * 1e9 == pytest.approx(
        model.num_features**2 * sum(positions) + 5 * model.num_features
    )
    assert positions[1] == 4 * positions[0]


@torch.no_grad()
def test_intermediate_maps_come_with_the_last_state():
    model, images = trained(variant="half_gru_map"), torch.randn(2, 3, 96, 64)
    final, maps = model.forward_intermediates(images, indices=[1])
    assert torch.equal(final, model.forward_features(images))
    assert torch.equal(maps[0], model.forward_intermediates(images, indices=[1], intermediates_only=True)[0])


class Features(nn.Module):
    """A network that gives features alone."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x.mean(dim=(1, 2, 3))[:, None] * self.gain


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda _: SRNN.wrap(Features(), num_classes=2, img_size=64, variant="vanilla_map")(
                torch.rand(1, 3, 64, 64)
            ),
            NoMapError,
            "variant 'vanilla_map' reads maps, and .* gives no map of a level, only its features",
        ),
        (
            lambda _: create_model("srnn_mixer_s32_224", variant="vanilla_map")(torch.rand(1, 3, 448, 448)),
            ValueError,
            "reads a level of 448 x 448 in tiles of 224 x 224, and has no map of it",
        ),
        (
            lambda folder: trained(variant="half_gru_map").export(folder / "it"),
            ValueError,
            r"'half_gru_map' hands a map from level to level, .*: give kind=\"whole\"",
        ),
        (
            lambda _: extract_features(trained(variant="half_gru_map"), []),
            ValueError,
            "'half_gru_map' reads maps, and a probe keeps pooled features: choose the recipe finetune",
        ),
    ],
)
def test_what_cannot_be_done_with_maps_is_one_sentence(act, error, message, tmp_path):
    with torch.no_grad(), pytest.raises(error, match=message):
        act(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "format"),
    [
        ({}, "torch"),
        ({"zooms": (1.0, 1.6)}, "onnx"),
        ({"zooms": (1.0, 1.6), "views": "attention"}, "onnx"),
        ({"zooms": (1.0, 1.6), "views": "attention"}, "openvino"),
    ],
)
def test_the_whole_graph_is_exported(options, format, tmp_path):
    model = trained(variant="half_gru_map", img_size=96, std=0.05, **options)
    done = model.export(tmp_path / "it", format=format, kind="whole")
    assert max(done.differences.values()) < 1e-4
