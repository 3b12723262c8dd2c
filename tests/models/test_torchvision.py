"""After `register()`, torchvision finds every SRNN and its weights, and gets what it expects of them."""

import pickle
import re

import pytest
import timm
import torch
import torchvision
from PIL import Image
from torchvision.models import Weights, WeightsEnum

import srnn_zoo
from srnn_zoo.models import entries as srnn_weights
from srnn_zoo.models.torchvision import register
from tests.conftest import SKIMAGE, same_weights

models = torchvision.models
ZERO_SHOT = "srnn_tf_efficientnet_lite0.half_gru_zero_shot_in1k"


@pytest.fixture(autouse=True, scope="module")
def lite0_weights():
    register()
    return models.get_model_weights("srnn_tf_efficientnet_lite0")


@pytest.fixture
def image():
    return Image.open(SKIMAGE / "chelsea.png")


def test_every_srnn_is_registered_and_torchvisions_own_models_and_weights_stay():
    assert models.list_models(include="srnn_*") == sorted(srnn_zoo.list_models())
    assert not any(name.startswith("srnn_") for name in models.list_models(module=models))
    assert type(models.get_model("resnet18")) is models.ResNet
    before = {name: value for name, value in vars(models).items() if name.endswith("_Weights")}
    register()
    assert {name: value for name, value in vars(models).items() if name.endswith("_Weights")} == before


def test_a_builder_makes_the_srnn_with_its_options():
    builder = models.get_model_builder("SRNN_Test_ResNet")
    assert builder is models.srnn_test_resnet  # as PyTorch's ImageNet example finds it
    options = {"weights": None, "num_classes": 3, "variant": "vanilla", "scales": (0.25, 1.0)}
    for model in (models.get_model("srnn_test_resnet", **options), builder(**options)):
        assert isinstance(model, srnn_zoo.SRNN)
        assert (model.variant, model.scales, model.num_classes) == ("vanilla", (0.25, 1.0), 3)
        assert not model.zero_shot


def test_weights_are_those_of_the_srnn_and_then_timms_and_the_default_is_that_of_pretrained_true(lite0_weights):
    assert lite0_weights.DEFAULT.meta["name"] == ZERO_SHOT
    for name in (*srnn_zoo.list_models("srnn_resnet*"), "srnn_tf_efficientnet_lite0", "srnn_convnext_tiny"):
        base = name.removeprefix("srnn_")
        own = [entry.tag for entry in srnn_weights.weights_of(name)]
        configs = timm.models.get_arch_pretrained_cfgs(base)
        timms = [key.partition(".")[2] for key, config in configs.items() if config.has_weights]
        enum = models.get_model_weights(name)
        assert issubclass(enum, WeightsEnum)
        assert [member.name.lower() for member in enum] == [*own, *timms]
        assert all(isinstance(member.value, Weights) for member in enum)
        assert models.get_model_weights(models.get_model_builder(name)) is enum
        default = timm.models.get_pretrained_cfg(base)
        assert ("DEFAULT" in enum.__members__) == (len(enum) > 0) == bool(own or default.has_weights)
        if len(enum):
            assert enum.DEFAULT.name.lower() == (own[0] if own else default.tag)


def test_weights_are_found_by_their_full_name():
    member = models.get_weight("SRNN_RESNET18_Weights.A1_IN1K")
    assert member is models.SRNN_RESNET18_Weights.A1_IN1K is models.get_model_weights("srnn_resnet18").DEFAULT
    assert pickle.loads(pickle.dumps(member)) is member


def test_weights_given_by_name_are_those_of_create_model_and_other_classes_are_for_fine_tuning(lite0, lite0_weights):
    for options in (
        {"weights": "HALF_GRU_ZERO_SHOT_IN1K", "progress": False},  # the default, which is asked for below
        {"weights": "SRNN_TF_EFFICIENTNET_LITE0_Weights.IN1K"},
        {"pretrained": True},  # as old programs say it
    ):
        model = models.get_model("srnn_tf_efficientnet_lite0", **options)
        assert same_weights(model, lite0)
        assert model.zero_shot
    model.load_state_dict(lite0_weights.DEFAULT.get_state_dict(progress=False, check_hash=True))
    assert same_weights(model, lite0)
    model = models.get_model("srnn_tf_efficientnet_lite0", weights="DEFAULT", num_classes=3)
    assert model.fc.weight.shape == (3, 1280)
    assert same_weights(model.backbone, lite0.backbone)


def test_unknown_weights_raise_an_error_with_the_closest_name():
    without = next(n for n in srnn_zoo.list_models() if not len(models.get_model_weights(n)))
    others = models.get_model_weights("srnn_resnet34").DEFAULT
    for name, options, error, message in (
        ("srnn_resnet18", {"weights": "A1_IN1"}, ValueError, "SRNN_RESNET18_Weights 'A1_IN1'; did you mean 'A1_IN1K'"),
        ("srnn_resnet18", {"weights": others}, TypeError, "expected SRNN_RESNET18_Weights but received SRNN_RESNET34_"),
        ("srnn_resnet18", {"weights": "DEFAULT", "pretrained": True}, ValueError, "either weights or pretrained=True"),
        (without, {"weights": "DEFAULT"}, ValueError, f"there are no weights for {without}"),
    ):
        with pytest.raises(error, match=message):
            models.get_model(name, **options)


def test_transforms_of_timms_weights_are_timms_at_twice_the_size_and_an_srnns_are_its_own(image, lite0, lite0_weights):
    config = timm.models.get_pretrained_cfg("resnet18.a1_in1k")
    settings = {key: getattr(config, key) for key in ("interpolation", "mean", "std", "crop_pct", "crop_mode")}
    expected = timm.data.create_transform(input_size=(3, 448, 448), **settings)
    torch.testing.assert_close(models.SRNN_RESNET18_Weights.A1_IN1K.transforms(exact=True)(image), expected(image))
    tensor = lite0_weights.DEFAULT.transforms(antialias=True)(image)
    torch.testing.assert_close(tensor, srnn_zoo.create_transform(lite0)(image)[-1])
    with torch.inference_mode():
        assert lite0(tensor.unsqueeze(0)).shape == (1, len(lite0_weights.DEFAULT.meta["categories"]))


def test_transforms_read_tensors_and_batches_take_other_settings_and_travel_to_workers(image):
    weights = models.get_weight("SRNN_RESNET18_Weights.TV_IN1K")
    transform, tensor = weights.transforms(), torchvision.transforms.functional.pil_to_tensor(image)
    assert (transform(tensor) - transform(image)).abs().mean() < 0.02  # resizing uint8 tensors rounds otherwise
    batch = transform(torch.stack([tensor, tensor.flip(-1)]))
    assert batch.shape == (2, 3, 448, 448)
    torch.testing.assert_close(batch[0], transform(tensor))
    transform = weights.transforms(crop_pct=1.0, input_size=(3, 96, 128))
    assert transform(image).shape == (3, 96, 128)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))
    with pytest.raises(ValueError, match="always antialiased"):
        weights.transforms(antialias=False)


def test_meta_says_what_the_weights_are(lite0_weights):
    entry, meta, timms = srnn_weights.get_weights(ZERO_SHOT), lite0_weights.DEFAULT.meta, lite0_weights.IN1K.meta
    assert meta["architecture"] == timms["architecture"] == "srnn_tf_efficientnet_lite0"
    for key in ("name", "variant", "zero_shot", "base", "recipe", "license", "sha256", "file_size", "num_classes"):
        assert meta[key] == getattr(entry, key)
    assert meta["categories"][281:283] == ["tabby, tabby cat", "tiger cat"]
    assert timms["categories"] is meta["categories"]
    assert (timms["base"], timms["num_classes"]) == ("tf_efficientnet_lite0.in1k", 1000)
    assert "sha256" not in timms


def test_a_torchvision_without_a_registry_is_named_in_one_sentence(monkeypatch):
    monkeypatch.delattr("torchvision.models._api.BUILTIN_MODELS")
    with pytest.raises(ImportError, match=rf"torchvision {re.escape(torchvision.__version__)} takes no other models"):
        register()
