"""What reaches a model: its device and dtype, decided in one place; compiled models; factories in other processes."""

import pickle

import pytest
import torch
from PIL import Image

import srnn_zoo
from srnn_zoo import Anytime, Pyramid, collect, create_model, create_transform
from srnn_zoo.inference.predict import predict
from srnn_zoo.training.features import extract_features


@pytest.fixture
def model():
    return create_model("srnn_test_resnet", num_classes=3, img_size=64).eval()


@pytest.fixture
def image(tmp_path):
    Image.effect_noise((80, 70), 60).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_any_dtype_answers_wherever_images_come_in_and_names_another_dtype(model, dtype, image):
    model = model.to(dtype)
    images, targets = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    expected = model(images.to(dtype))
    assert expected.dtype == dtype
    levels = model.levels(images.to(dtype))
    for given in (images, [level.float() for level in levels], Pyramid(levels)):
        assert torch.allclose(model(model.as_input(given)), expected, atol=0.02)
    assert torch.allclose(collect(model, [(images, targets)]).logits[-1], expected.float(), atol=0.02)
    assert extract_features(model, [(images, targets)]).levels.shape == (2, 4, model.num_features)
    assert Anytime(model, "confidence:0.5")(images.to(dtype)).logits.dtype == dtype
    for exit in (None, Anytime(model, "confidence:1.1").exit):
        (said,) = predict(model, [image], exit=exit)
        assert len(said.answers) == 2
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(TypeError, match=f"the model is {name} and its images are float32: model.as_input"):
        model(images)


def test_a_compiled_model_is_prepared_for_and_predicts_as_the_plain_one(model, image):
    compiled = torch.compile(model, backend="eager")
    assert repr(create_transform(compiled)) == repr(create_transform(model))
    ours, plain = (next(iter(predict(m, [image]))).answers for m in (compiled, model))
    assert ours == plain


def test_factories_pickle_by_their_public_name_for_spawned_workers():
    for factory in (srnn_zoo.srnn_resnet18, srnn_zoo.srnn_resnet26):
        assert pickle.loads(pickle.dumps(factory)) is factory


def test_maps_alone_are_of_the_levels_that_the_model_builds_and_layers_that_are_dropped_cost_nothing():
    model = create_model("srnn_test_vit", interpolation="bilinear", img_size=160).eval()
    images = torch.randn(1, 3, 150, 150)  # rounded to steps of 16 pixels
    _, maps = model.forward_intermediates(images)
    alone = model.forward_intermediates(images, intermediates_only=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(alone, maps, strict=True))
    before = model.level_gmacs((160, 160))
    model.prune_intermediate_layers([0])
    assert model.level_gmacs((160, 160)) < before
