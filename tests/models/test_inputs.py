"""What reaches a model: its device and dtype, decided in one place; compiled models; factories in other processes."""

import pickle

import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo import Anytime, Pyramid, collect, create_model, create_transform
from srnn_zoo.inference.predict import predict
from srnn_zoo.models.cost import level_gmacs
from srnn_zoo.training.features import extract_features


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_any_dtype_answers_wherever_images_come_in(dtype, tmp_path):
    model = create_model("srnn_test_resnet", num_classes=3, img_size=64).to(dtype).eval()
    Image.effect_noise((80, 70), 60).save(tmp_path / "a.png")
    images, targets = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    expected = model(images.to(dtype))
    assert expected.dtype == dtype
    for given in (images, model.levels(images.to(dtype)), Pyramid(model.levels(images.to(dtype)))):
        given = [level.float() for level in given] if isinstance(given, list) else given
        assert torch.allclose(model(model.as_input(given)), expected, atol=0.02)
    assert torch.allclose(collect(model, [(images, targets)]).logits[-1], expected.float(), atol=0.02)
    assert extract_features(model, [(images, targets)]).levels.shape == (2, 4, model.num_features)
    assert Anytime(model, "confidence:0.5")(images.to(dtype)).logits.dtype == dtype
    for exit in (None, Anytime(model, "confidence:1.1").exit):
        (said,) = predict(model, [tmp_path / "a.png"], exit=exit)
        assert len(said.answers) == 2


def test_images_of_another_dtype_than_the_model_are_an_error_of_dtype_not_of_size():
    images = torch.randn(1, 3, 64, 64)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        model = create_model("srnn_test_resnet").to(dtype)
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(TypeError, match=f"the model is {name} and its images are float32: model.as_input"):
            model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert create_model("srnn_test_resnet").eval()(images).shape == (1, 1000)
    with pytest.raises(ValueError, match="cannot read a level of 8 x 8; it was made for 160 x 160"):
        create_model("srnn_test_vit", dynamic_img_size=False)([torch.rand(1, 3, 8, 8)])


def test_a_compiled_model_is_prepared_for_and_predicts_as_the_plain_one(tmp_path):
    model = create_model("srnn_test_resnet", num_classes=3, img_size=64).eval()
    compiled = torch.compile(model, backend="eager")
    Image.effect_noise((80, 70), 60).save(tmp_path / "a.png")
    assert repr(create_transform(compiled)) == repr(create_transform(model))
    assert [x.answers for x in predict(compiled, [tmp_path / "a.png"])] == [
        x.answers for x in predict(model, [tmp_path / "a.png"])
    ]


def test_factories_pickle_by_their_public_name_for_spawned_workers():
    for factory in (srnn_zoo.srnn_resnet18, srnn_zoo.srnn_resnet26):
        assert pickle.loads(pickle.dumps(factory)) is factory


def test_maps_alone_are_of_the_levels_that_the_model_builds(monkeypatch):
    model = create_model("srnn_test_vit", interpolation="bilinear", img_size=160).eval()
    images = torch.randn(1, 3, 150, 150)  # rounded to steps of 16 pixels
    _, maps = model.forward_intermediates(images)
    alone = model.forward_intermediates(images, intermediates_only=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(alone, maps, strict=True))


def test_layers_that_are_dropped_no_longer_cost_anything():
    model = create_model("srnn_test_vit").eval()
    before = level_gmacs(model, (160, 160))
    model.prune_intermediate_layers([0])
    assert level_gmacs(model, (160, 160)) < before


@pytest.mark.slow
def test_export_takes_a_plain_range_of_sizes():
    """As wide a range as timm's own ResNet takes: from 33 pixels in the smaller level."""
    model = create_model("srnn_resnet18", num_classes=3).eval()
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("h", min=66), 3: torch.export.Dim("w", min=66)}
    program = torch.export.export(model, (torch.randn(2, 3, 160, 192),), dynamic_shapes=(dims,)).module()
    for images in (torch.randn(1, 3, 66, 131), torch.randn(3, 3, 192, 160)):
        assert torch.equal(program(images), model(images))
