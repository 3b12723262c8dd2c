"""Names: factories, create_model, list_models and timm's registry."""

import inspect
import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

import srnn_zoo
from srnn_zoo import SRNN, create_model, list_models
from srnn_zoo.models import factories


def test_every_timm_architecture_has_a_name_and_is_listed_by_word_and_by_pattern():
    assert list_models() == [f"srnn_{name}" for name in timm.list_models(exclude_filters="srnn_*")]
    assert "srnn_regnetz_b16" in dir(srnn_zoo)
    assert timm.list_models("srnn_*", pretrained=True) == []
    assert list_models("srnn_resnet1?") == ["srnn_resnet18"]
    assert "srnn_tf_efficientnet_lite0" in list_models("lite")
    assert list_models("no_such_thing") == []


def test_popular_backbones_have_typed_documented_factories():
    names = sorted(name for name in vars(factories) if name.startswith("srnn_"))
    assert set(names) < set(list_models())
    for name in names:
        factory = getattr(srnn_zoo, name)
        assert factory.__name__ == name
        assert "variant: what happens between two scales" in inspect.getdoc(factory)
        parameters = inspect.signature(create_model).parameters
        assert list(inspect.signature(factory).parameters.values()) == list(parameters.values())[1:]
    with torch.device("meta"):
        for name in ("srnn_resnet18", "srnn_vit_tiny_patch16_224"):
            model = getattr(srnn_zoo, name)(activation="relu", num_classes=5)
            assert (model.pretrained_cfg["architecture"], model.num_classes) == (name, 5)


def test_every_argument_of_create_model_has_a_type_and_all_but_the_name_a_default():
    _, *parameters, rest = inspect.signature(create_model).parameters.values()
    assert all(parameter.annotation and parameter.default in (None, False) for parameter in parameters)
    assert rest.kind is inspect.Parameter.VAR_KEYWORD
    written = inspect.signature(SRNN).parameters.keys() - {"backbone", "global_pool"}
    assert written <= {parameter.name for parameter in parameters}


@pytest.mark.parametrize("create", [create_model, timm.create_model, lambda name, **kw: getattr(srnn_zoo, name)(**kw)])
def test_one_model_three_ways(create):
    options = {"variant": "vanilla", "scales": (0.25, 1.0), "num_classes": 5, "in_chans": 1}
    model = create("srnn_test_resnet", **options)
    assert {key: getattr(model, key) for key in options} == options
    assert model.img_size == (640, 640)
    assert {k: model._model_args[k] for k in options} == options
    assert model.eval()(torch.rand(1, 1, 64, 64)).shape == (1, 5)


def test_an_architecture_registered_with_timm_later_gets_a_name_too():
    def entry(pretrained=False, **kwargs):
        return timm.create_model("test_resnet", pretrained=pretrained, **kwargs)

    entry.__name__, entry.__module__ = "mine", "srnn_zoo.models.create"  # else timm lists this file among its own
    timm.models.register_model(entry)
    assert create_model("srnn_mine", num_classes=3).eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3)


def test_the_config_is_the_backbones_with_sizes_and_names_of_its_own():
    model = create_model("srnn_resnet18")
    config, inner = model.pretrained_cfg, timm.get_pretrained_cfg("resnet18").to_dict()
    assert config is model.default_cfg
    for key in ("mean", "std", "crop_pct", "interpolation", "num_classes", "license"):
        assert config[key] == inner[key]
    assert config["input_size"] == (3, 448, 448)
    assert (config["first_conv"], config["classifier"], config["pool_size"]) == ("backbone.conv1", "fc", (1, 1))
    assert not {"url", "hf_hub_id", "file"} & config.keys()  # the backbone's weights are not an SRNN's
    assert resolve_model_data_config(model)["input_size"] == (3, 448, 448)


def test_the_default_size_makes_the_smallest_level_the_backbones_own():
    for options, size in (
        ({"scales": (1.0,)}, (160, 160)),
        ({"scales": (0.25, 0.5, 1.0)}, (640, 640)),
        ({"img_size": 336}, (336, 336)),
        ({"img_size": (320, 480)}, (320, 480)),
    ):
        model = create_model("srnn_test_resnet", **options)
        assert model.img_size == size
        assert resolve_model_data_config(model)["input_size"] == (3, *size)
        assert "img_size" in options or model.level_sizes()[0] == (160, 160)


def test_a_tag_brings_the_preprocessing_of_its_weights():
    tags = ("a1_in1k", "tv_in1k")
    with torch.device("meta"):
        crops = [create_model(f"srnn_resnet50.{tag}", activation="relu").pretrained_cfg["crop_pct"] for tag in tags]
    assert crops == [timm.get_pretrained_cfg(f"resnet50.{tag}").crop_pct for tag in tags]
    assert crops[0] != crops[1]


def test_a_wrong_name_or_option_is_met_with_the_closest():
    for name, options, error, message in (
        ("srnn_resnt18", {}, ValueError, "unknown model 'srnn_resnt18'; did you mean 'srnn_resnet18'"),
        ("resnet18", {}, ValueError, "did you mean 'srnn_resnet18'"),
        ("srnn_vit_tiny", {}, ValueError, "did you mean 'srnn_vit_tiny_patch16_224'"),
        ("srnn_srnn_resnet18", {}, ValueError, "unknown model 'srnn_srnn_resnet18'"),
        ("zzz", {}, ValueError, r"srnn_zoo.list_models\(\) gives all names"),
        ("srnn_resnet18.tv_in2k", {}, ValueError, "unknown tag of srnn_resnet18 'tv_in2k'; did you mean 'tv_in1k'"),
        ("srnn_resnet18", {"variant": "half-gru"}, ValueError, "unknown variant 'half-gru'; did you mean 'half_gru'"),
        ("srnn_resnet18", {"varient": "gru"}, TypeError, "unknown option 'varient'; did you mean 'variant'"),
        ("srnn_densenet121", {"num_class": 3}, TypeError, "unknown option 'num_class'; did you mean 'num_classes'"),
        ("srnn_efficientnet_b0", {"scale": (1,)}, TypeError, "unknown option 'scale'; did you mean 'scales'"),
        ("srnn_test_resnet", {"interpolation": "bicubik"}, ValueError, "did you mean 'bicubic'"),
        ("srnn_test_resnet", {"scales": (1.0, 0.5)}, ValueError, "must grow, smallest first"),
        ("srnn_test_resnet", {"img_size": 0}, ValueError, "must be positive"),
        ("srnn_test_resnet", {"norm": "per_levle"}, ValueError, "unknown norm 'per_levle'; did you mean 'per_level'"),
        ("srnn_test_vit", {"exits": "seperate"}, ValueError, "kind of exits 'seperate'; did you mean 'separate'"),
        ("srnn_test_vit", {"exits": "separate", "variant": "concat"}, ValueError, "answers after the last level only"),
        ("srnn_levit_128s", {"norm": "frozen", "scales": (1.0,)}, ValueError, "is for batch norm of maps; .* are not"),
        ("srnn_test_vit", {"norm": "per_level"}, ValueError, 'this backbone has none: leave norm="shared"'),
    ):
        with pytest.raises(error, match=message):
            create_model(name, **options)
    for name, message in (
        ("srnn_resnt18", "did you mean 'srnn_resnet18'"),
        ("nonsense", "module 'srnn_zoo' has no attribute 'nonsense'"),
    ):
        with pytest.raises(AttributeError, match=message):
            getattr(srnn_zoo, name)


IMPORT = """
import json, sys, time
start = time.process_time()
import timm
timms = time.process_time() - start
import srnn_zoo
seconds = time.process_time() - start - timms
optional = [name for name in ("matplotlib", "typer", "skimage") if name in sys.modules]
import torchvision
listed = torchvision.models.list_models(include="srnn_*")
from srnn_zoo.models.torchvision import register
start = time.process_time()
register()
print(json.dumps([timms, seconds, optional, listed, time.process_time() - start]))
"""


@pytest.mark.slow
def test_importing_is_quick_and_tells_timm_alone():
    """At most a tenth of the CPU time that timm takes, where all is compiled, and half of it for torchvision."""
    python, env = [sys.executable, "-c", IMPORT], {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # compiled but once
    for _ in range(2):
        done = subprocess.run(python, env=env, capture_output=True, text=True, check=True)
        timms, ours, optional, listed, to_register = json.loads(done.stdout)
        assert optional == listed == []
        if ours <= 0.1 * timms and to_register <= 0.5 * timms:
            return
    pytest.fail(f"too slow: {ours} s to import, {to_register} s to register; timm takes {timms} s")
