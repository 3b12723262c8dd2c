"""Activation maps through the cell: what is known of linear cells, where they look, and what has none."""

import pytest
import torch

import srnn_zoo
from srnn_zoo import activation_maps


def small(variant, **options):
    torch.manual_seed(0)
    options = {"num_classes": 5, "img_size": 64, **options}
    return srnn_zoo.create_model("srnn_test_resnet", variant=variant, **options).eval()


@pytest.fixture
def levels():
    return [torch.randn(3, 3, size, size) for size in (32, 64)]


@torch.no_grad()
def test_the_untrained_half_gru_halves_what_each_level_shows_alone(levels):
    """h_s = ½ (C(x_1) + … + C(x_s)), so that each map is half of the base CNN's."""
    model, answers = small("half_gru"), []
    with torch.no_grad():
        answers = [step.logits.argmax(dim=1) for step in model.steps(levels)]
    for index, found in enumerate(activation_maps(model, levels)):
        alone = model.activation_map(levels[index], answers[index], index)
        assert found.abs().max() > 0.1 * alone.abs().max() > 0
        torch.testing.assert_close(found, alone / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["vanilla", "vanilla_map", "half_gru_map"])
@torch.no_grad()
def test_the_mean_of_the_first_map_is_what_the_first_level_gives_the_logit(variant, levels):
    """With no state before it a level gives all of the logit but the bias, at the paper's initialisation."""
    model = small(variant)
    for name in ("weight", "bias"):
        torch.nn.init.normal_(getattr(model.fc, name))
    classes = torch.tensor([0, 3, 4])
    maps = activation_maps(model, levels, classes)
    first = next(iter(model.steps(levels))).logits
    wanted = first.gather(1, classes[:, None])[:, 0] - model.fc.bias[classes]  # pyright: ignore
    torch.testing.assert_close(maps[0].mean(dim=(1, 2)), wanted, rtol=1e-3, atol=1e-4)
    assert maps[1].shape[1] == 2 * maps[0].shape[1]


@torch.no_grad()
def test_a_map_is_warm_where_the_object_is(lite0):
    """A cat in a corner, and grey elsewhere."""
    from PIL import Image

    from tests.cli.command import CAT

    canvas = Image.new("RGB", (448, 448), (124, 116, 104))
    with Image.open(CAT) as cat:
        canvas.paste(cat.convert("RGB").crop((60, 0, 360, 300)).resize((224, 224)), (224, 224))
    images = [level[None] for level in srnn_zoo.create_transform(lite0, sizes=(128, 224))(canvas)]
    for heat in activation_maps(lite0, images):
        warm = heat[0].clamp(min=0)
        middle = warm.shape[0] // 2
        corner = warm[middle:, middle:]
        assert corner.mean() > 2 * (warm.sum() - corner.sum()) / (warm.numel() - corner.numel())


@pytest.mark.parametrize("variant", ["concat", "lstm", "mean_prob"])
def test_every_variant_has_finite_maps_also_inside_inference_mode(variant, levels):
    model = small(variant)
    with torch.inference_mode():
        maps = activation_maps(model, levels)
    assert [heat.shape[0] for heat in maps] == [3, 3]
    assert all(heat.isfinite().all() and heat.abs().max() > 0 for heat in maps)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_has_no_maps_says_why(levels):
    with pytest.raises(ValueError, match="no classifier"):
        activation_maps(small("half_gru", num_classes=0), levels)
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        activation_maps(small("half_gru").train(), levels)
    with pytest.raises(TypeError, match="images of one size"):
        activation_maps(small("half_gru"), srnn_zoo.Pyramid.pack([[levels[0][0], levels[1][0]], [levels[0][1]]]))
