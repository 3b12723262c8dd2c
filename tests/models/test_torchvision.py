"""After `register()`, torchvision finds every SRNN and its weights, and gets what it expects of them."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image
from torchvision.models import Weights, WeightsEnum

import srnn_zoo
from srnn_zoo.models import entries as srnn_weights
from srnn_zoo.models.torchvision import register, weights_enum

models = torchvision.models
ZERO_SHOT = "srnn_tf_efficientnet_lite0.half_gru_zero_shot_in1k"


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    register()


@pytest.fixture
def image() -> Image.Image:
    noise = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0))
    tensor = torch.nn.functional.interpolate(noise[None], (300, 400), mode="bicubic").clamp(0, 1)[0]
    return torchvision.transforms.functional.to_pil_image(tensor)


def test_every_srnn_is_registered_and_torchvisions_own_models_stay() -> None:
    assert models.list_models(include="srnn_*") == sorted(srnn_zoo.list_models())
    assert not any(name.startswith("srnn_") for name in models.list_models(module=models))
    assert type(models.get_model("resnet18")) is models.ResNet


def test_registering_again_changes_nothing() -> None:
    before = dict(models.__dict__), dict(models._api.BUILTIN_MODELS)
    register()
    assert (dict(models.__dict__), dict(models._api.BUILTIN_MODELS)) == before


def test_nothing_is_registered_before_one_asks_and_then_it_is_quick() -> None:
    code = (
        "import time, srnn_zoo, torchvision\n"
        "from srnn_zoo.models.torchvision import register\n"
        "print(len(torchvision.models.list_models(include='srnn_*')))\n"
        "start = time.process_time(); register(); print(time.process_time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, seconds = done.stdout.split()
    assert before == "0"
    assert float(seconds) < 2  # 0.4 on a quiet machine


@pytest.mark.parametrize("make", [models.get_model, lambda name, **kwargs: models.__dict__[name](**kwargs)])
def test_a_builder_makes_the_srnn_with_its_options(make: Any) -> None:
    model = make("srnn_test_resnet", weights=None, num_classes=3, variant="vanilla", scales=(0.25, 1.0))
    assert isinstance(model, srnn_zoo.SRNN)
    assert (model.variant, model.scales, model.num_classes) == ("vanilla", (0.25, 1.0), 3)
    assert not model.zero_shot


def test_a_builder_is_what_scripts_pick_from_the_modules_names() -> None:
    name = "srnn_resnet18"
    assert name.islower()
    assert callable(models.__dict__[name])  # as PyTorch's ImageNet example looks for them
    assert models.get_model_builder("SRNN_ResNet18") is models.srnn_resnet18
    assert models.srnn_resnet18.__name__ == name
    assert pickle.loads(pickle.dumps(models.srnn_resnet18)).__name__ == name


def test_weights_are_those_of_the_srnn_and_then_timms_of_its_base_cnn() -> None:
    for name in ("srnn_resnet18", "srnn_tf_efficientnet_lite0", "srnn_convnext_tiny"):
        base = name.removeprefix("srnn_")
        own = [entry.tag for entry in srnn_weights.weights_of(name)]
        timms = [key.partition(".")[2] for key, config in timm_configs(base).items() if config.has_weights]
        enum = models.get_model_weights(name)
        assert issubclass(enum, WeightsEnum)
        assert [member.name.lower() for member in enum] == [*own, *timms]
        assert all(isinstance(member.value, Weights) for member in enum)
        assert models.get_model_weights(models.get_model_builder(name)) is enum


def timm_configs(architecture: str) -> dict[str, Any]:
    return timm.models.get_arch_pretrained_cfgs(architecture)


def test_the_default_weights_are_those_of_pretrained_true() -> None:
    assert models.get_model_weights("srnn_tf_efficientnet_lite0").DEFAULT.value.name == ZERO_SHOT
    for name in srnn_zoo.list_models("srnn_resnet*"):
        enum = models.get_model_weights(name)
        default = timm.models.get_pretrained_cfg(name.removeprefix("srnn_"))
        assert default is not None
        assert ("DEFAULT" in enum.__members__) == (len(enum) > 0) == bool(default.has_weights)
        if len(enum):
            assert enum.DEFAULT.name.lower() == default.tag


def test_weights_are_found_by_their_full_name() -> None:
    member = models.get_weight("SRNN_RESNET18_Weights.A1_IN1K")
    assert member is models.SRNN_RESNET18_Weights.A1_IN1K is models.get_model_weights("srnn_resnet18").DEFAULT
    with pytest.raises(KeyError):
        models.get_weight("SRNN_RESNET18_Weights.A9")


@pytest.mark.parametrize("weights", ["DEFAULT", "HALF_GRU_ZERO_SHOT_IN1K", "SRNN_TF_EFFICIENTNET_LITE0_Weights.IN1K"])
def test_weights_may_be_given_by_name_and_are_the_ones_of_create_model(lite0: srnn_zoo.SRNN, weights: str) -> None:
    model = models.get_model("srnn_tf_efficientnet_lite0", weights=weights, progress=False)
    assert_same_state(model.state_dict(), lite0.state_dict())
    assert model.zero_shot


def test_old_programs_say_pretrained(lite0: srnn_zoo.SRNN) -> None:
    model = models.srnn_tf_efficientnet_lite0(pretrained=True)
    assert_same_state(model.state_dict(), lite0.state_dict())
    assert not models.srnn_test_resnet(pretrained=False).zero_shot
    with pytest.raises(ValueError, match="either weights or pretrained=True"):
        models.srnn_tf_efficientnet_lite0(weights="DEFAULT", pretrained=True)


def test_weights_with_other_classes_are_for_fine_tuning(lite0: srnn_zoo.SRNN) -> None:
    model = models.get_model("srnn_tf_efficientnet_lite0", weights="DEFAULT", num_classes=3)
    assert model.fc.weight.shape == (3, 1280)
    assert_same_state(model.backbone.state_dict(), lite0.backbone.state_dict())


def test_the_state_dict_is_the_models_and_not_a_web_page(lite0: srnn_zoo.SRNN) -> None:
    weights = models.get_model_weights("srnn_tf_efficientnet_lite0").DEFAULT
    assert_same_state(weights.get_state_dict(progress=False, check_hash=True), lite0.state_dict())


def assert_same_state(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_unknown_weights_raise_an_error_with_the_closest_name() -> None:
    with pytest.raises(ValueError, match="unknown member of SRNN_RESNET18_Weights 'A1_IN1'; did you mean 'A1_IN1K'"):
        models.srnn_resnet18(weights="A1_IN1")
    with pytest.raises(TypeError, match="expected SRNN_RESNET18_Weights but received SRNN_RESNET34_Weights"):
        models.srnn_resnet18(weights=models.get_model_weights("srnn_resnet34").DEFAULT)
    without = next(n for n in srnn_zoo.list_models() if not len(models.get_model_weights(n)))
    with pytest.raises(ValueError, match=f"there are no weights for {without}"):
        models.get_model(without, weights="DEFAULT")


def test_the_transforms_of_timms_weights_are_timms_at_twice_the_size(image: Image.Image) -> None:
    transform = models.get_weight("SRNN_RESNET18_Weights.A1_IN1K").transforms()
    config = timm.models.get_pretrained_cfg("resnet18.a1_in1k")
    assert config is not None
    expected = timm.data.create_transform(
        input_size=(3, 448, 448),
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
    )
    torch.testing.assert_close(transform(image), expected(image))


def test_the_transforms_of_an_srnns_weights_give_its_largest_level(image: Image.Image, lite0: srnn_zoo.SRNN) -> None:
    weights = models.get_model_weights("srnn_tf_efficientnet_lite0").DEFAULT
    tensor = weights.transforms(antialias=True)(image)
    torch.testing.assert_close(tensor, srnn_zoo.create_transform(lite0)(image)[-1])
    with torch.inference_mode():
        assert lite0(tensor.unsqueeze(0)).shape == (1, len(weights.meta["categories"]))


def test_transforms_read_tensors_and_batches_as_torchvisions_do(image: Image.Image) -> None:
    transform = models.get_weight("SRNN_RESNET18_Weights.TV_IN1K").transforms()
    tensor = torchvision.transforms.functional.pil_to_tensor(image)
    assert (transform(tensor) - transform(image)).abs().mean() < 0.02  # resizing uint8 tensors rounds otherwise
    batch = transform(torch.stack([tensor, tensor.flip(-1)]))
    assert batch.shape == (2, 3, 448, 448)
    torch.testing.assert_close(batch[0], transform(tensor))


def test_transforms_take_other_settings_and_travel_to_workers(image: Image.Image) -> None:
    weights = models.get_weight("SRNN_RESNET18_Weights.A1_IN1K")
    transform = weights.transforms(crop_pct=1.0, input_size=(3, 96, 128))
    assert transform(image).shape == (3, 96, 128)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))
    assert repr(transform).startswith(
        "LargestLevel(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=1.0"
    )
    with pytest.raises(ValueError, match="always antialiased"):
        weights.transforms(antialias=False)


def test_meta_has_torchvisions_keys_and_says_what_the_weights_are() -> None:
    enum = models.get_model_weights("srnn_tf_efficientnet_lite0")
    entry = srnn_weights.get_weights(ZERO_SHOT)
    meta = enum.DEFAULT.meta
    assert (meta["architecture"], meta["variant"], meta["zero_shot"]) == (
        "srnn_tf_efficientnet_lite0",
        "half_gru",
        True,
    )
    assert (meta["base"], meta["recipe"], meta["license"]) == (entry.base, entry.recipe, "apache-2.0")
    assert meta["sha256"] == entry.sha256
    assert meta["_file_size"] == pytest.approx(entry.file_size / 2**20, abs=1e-3)
    assert meta["_metrics"] == {data: {"acc@1": values["top1"]} for data, values in entry.metrics.items()}
    assert meta["categories"][281:283] == ["tabby, tabby cat", "tiger cat"]
    timms = enum.IN1K.meta
    assert timms["categories"] is meta["categories"]
    assert (timms["base"], timms["num_classes"]) == ("tf_efficientnet_lite0.in1k", 1000)
    assert "sha256" not in timms
    assert "_metrics" not in timms


def test_metrics_on_imagenet_have_torchvisions_names(new_weights: srnn_weights.Weights) -> None:
    meta = weights_enum("srnn_test_resnet").HALF_GRU_FLOWERS.meta
    assert meta["_metrics"] == {"ImageNet-1K": {"acc@1": 71.5, "acc@5": 90.0}}
    assert meta["categories"] == ["rose", "tulip"]


@pytest.fixture
def new_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[srnn_weights.Weights]:
    """Weights that somebody adds to an architecture after it was registered."""
    weights = dataclasses.replace(
        srnn_weights.get_weights(ZERO_SHOT),
        name="srnn_test_resnet.half_gru_flowers",
        source="owner/name@v1",
        sizes=((160, 160), (320, 320)),
        num_classes=2,
        categories=("rose", "tulip"),
        zero_shot=False,
        metrics={"imagenet-1k": {"top1": 71.5, "top5": 90.0}},
    )
    with monkeypatch.context() as patch:
        patch.setattr(srnn_weights, "_WEIGHTS", {**srnn_weights._WEIGHTS, weights.name: weights})
        register()
        yield weights
    register()


def test_weights_added_later_are_known_after_registering_again(new_weights: srnn_weights.Weights) -> None:
    member = models.get_weight("SRNN_TEST_RESNET_Weights.HALF_GRU_FLOWERS")
    assert member is models.get_model_weights("srnn_test_resnet").DEFAULT
    assert member.url == new_weights.url
    assert member.transforms().config["input_size"] == (3, 320, 320)


def test_a_member_survives_copying_and_a_trip_to_another_process() -> None:
    member = models.get_weight("SRNN_RESNET18_Weights.A1_IN1K")
    assert copy.deepcopy(member) is pickle.loads(pickle.dumps(member)) is member
    code = "import pickle, sys; print(repr(pickle.loads(sys.stdin.buffer.read())))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(member), capture_output=True, check=True)
    assert done.stdout == b"SRNN_RESNET18_Weights.A1_IN1K\n"


def test_progress_bars_of_downloads_are_off_only_while_a_model_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    from srnn_zoo.models import torchvision as integration

    seen = []
    monkeypatch.setattr(integration, "create_model", lambda *_, **__: seen.append(are_progress_bars_disabled()))
    before = are_progress_bars_disabled()
    models.srnn_resnet18(progress=False)
    models.srnn_resnet18()
    assert seen == [True, before]
    assert are_progress_bars_disabled() == before


def test_a_torchvision_without_registration_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torchvision.models._api.register_model")
    with pytest.raises(ImportError, match=rf"torchvision {re.escape(torchvision.__version__)} cannot be told of other"):
        register()


def test_an_unknown_attribute_of_the_module_is_an_attribute_error() -> None:
    from srnn_zoo.models import torchvision as integration

    assert integration.SRNN_RESNET18_Weights is models.SRNN_RESNET18_Weights
    for name in ("SRNN_NOPE_Weights", "resnet18"):
        with pytest.raises(AttributeError, match=name):
            getattr(integration, name)
