"""A model comes back whole: through our own API, timm's local-dir: and hf-hub:, and from the Hub by revision."""

import json

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

import srnn_zoo
from srnn_zoo import SRNN, create_model, create_transform
from srnn_zoo.datasets.classes import class_names
from tests.conftest import files, same_weights
from tests.models.harness import CELLS, trained

from .test_saved_earlier import EARLIER

# CNNs, signed CNNs, ViTs; head_hidden_size and num_features differ in MambaOut and the MobileNet
BACKBONES = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", "test_nfnet", "test_mambaout"]
MANY = ["lstm", "mean_prob", "concat", "half_gru_diag"]  # with several states, or several answers
LARGER = ["resnet18", "mobilenetv3_small_050"]
NAMES = ["setosa", "versicolor", "virginica"]


def pairs():
    """Every variant with every backbone; in the quick tests, each kind of both once."""
    return [
        pytest.param(variant, backbone, marks=() if backbone in quick else pytest.mark.slow)
        for variant in CELLS
        for quick in [
            {"half_gru": ["test_resnet", "test_vit", "test_mambaout"]}.get(
                variant, BACKBONES[:1] if variant in MANY else []
            )
        ]
        for backbone in BACKBONES + LARGER
    ]


def in_timm(saved):
    return timm.create_model(f"local-dir:{saved}", pretrained=True).eval()


def same_again(model, folder):
    """The model, saved and loaded through our API and timm's: both give its very answers."""
    model.save_pretrained(folder)
    images = torch.randn(2, model.in_chans, *model.level_sizes()[-1]).to(next(model.parameters()))
    with torch.no_grad():
        for loaded in (in_timm(folder), SRNN.from_pretrained(folder).eval()):
            assert loaded.num_classes == model.num_classes
            assert torch.equal(loaded(images), model(images))
    return loaded


def config(model, folder):
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(("variant", "backbone"), pairs())
def test_every_variant_comes_back_every_way(variant, backbone, tmp_path, cache, hub):
    options = {"variant": variant, "scales": (0.25, 0.5, 1.0), "num_classes": 3, "in_chans": 1}
    model = trained(f"srnn_{backbone}", interpolation="bilinear", img_size=128, **options)  # the smallest level is 32
    saved = tmp_path / "saved"
    facts = {"recipe": {"epochs": 3}, "metrics": {"iris": {"top1": 97.0}}}
    model.save_pretrained(saved, label_names=NAMES, **facts)
    hub.add_repo("ada/net", files(saved))
    images = torch.randn(2, 1, 128, 128)
    ways = [
        SRNN.from_pretrained(saved),
        SRNN.from_pretrained("ada/net", cache_dir=cache),
        in_timm(saved),
        timm.create_model("hf-hub:ada/net", pretrained=True, cache_dir=cache),
        create_model("hf-hub:ada/net", pretrained=True, cache_dir=cache),
        create_model(f"srnn_{backbone}", weights=saved),
    ]
    with torch.inference_mode():
        logits = model(images)
        for index, loaded in enumerate(ways):
            assert torch.equal(loaded.eval()(images), logits)
            for attribute in ("variant", "scales", "interpolation", "num_classes", "in_chans", "img_size"):
                assert getattr(loaded, attribute) == getattr(model, attribute)
            assert loaded.metadata == facts
            assert loaded.cell.activation == model.cell.activation
            assert class_names(loaded) == NAMES
            assert config(loaded, tmp_path / str(index)) == json.loads((saved / "config.json").read_text())
    assert hub.count("GET", "model.safetensors") == 1


@pytest.mark.parametrize(
    "backbone",
    [
        *(QUICK := ["test_resnet", "test_vit", "test_nfnet"]),
        *(pytest.param(name, marks=pytest.mark.slow) for name in (*BACKBONES, *LARGER) if name not in QUICK),
    ],
)
def test_what_was_changed_after_making_comes_back(backbone, tmp_path):
    model = trained(f"srnn_{backbone}", num_classes=7, img_size=128)
    for classes in (7, 4, 0):
        model.reset_classifier(classes)
        assert same_again(model, tmp_path).num_classes == classes
    if hasattr(model, "set_input_size"):
        model.set_input_size(192)
        assert same_again(model, tmp_path).img_size == (192, 192)


def test_a_factory_called_directly_keeps_its_arguments(tmp_path):
    model = srnn_zoo.get_factory("srnn_test_vit")(
        variant="gru", scales=(0.5, 0.75, 1.0), activation="relu", num_classes=4, img_size=96, drop_path_rate=0.1
    ).eval()
    loaded = same_again(model, tmp_path)
    assert config(loaded, tmp_path)["srnn"]["cell"] == "srnn_zoo.models.cells.GRU"
    changed = {"global_pool": "avg", "in_chans": 3, "img_size": [96, 96]}  # as timm writes it
    args = {key: value for key, value in model._model_args.items() if key != "num_classes"}
    assert loaded._model_args == {**args, "scales": loaded.scales, **changed}


def test_what_timm_itself_saved_comes_back(tmp_path):
    model = trained("srnn_test_resnet", variant="vanilla", num_classes=7)
    images = torch.randn(1, 3, 96, 96)
    for safe in (True, False):
        save_for_hf(model, str(tmp_path / str(safe)), safe_serialization=safe)
        assert torch.equal(SRNN.from_pretrained(tmp_path / str(safe)).eval()(images), model(images))


def test_the_preprocessing_comes_back(tmp_path):
    model = create_model("srnn_tf_efficientnet_lite1", num_classes=3, scales=(0.5, 0.75, 1.0))
    model.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), crop_pct=0.8)
    model.save_pretrained(tmp_path)
    loaded = SRNN.from_pretrained(tmp_path)
    assert str(create_transform(loaded)) == str(create_transform(model))
    assert "mean=(0.1, 0.2, 0.3)" in str(create_transform(loaded))
    assert loaded.level_sizes() == model.level_sizes() == [(240, 240), (360, 360), (480, 480)]


def test_another_number_of_classes_makes_the_classifier_new_and_says_so(tmp_path, caplog):
    model = trained("srnn_test_resnet", num_classes=3)
    model.save_pretrained(tmp_path, label_names=NAMES, metrics={"iris": {"top1": 97.0}}, base_model="ada/net")
    loaded = SRNN.from_pretrained(tmp_path, num_classes=5)
    assert "the classifier is new, of 5 classes instead of 3" in caplog.text
    assert loaded.fc.weight.shape == (5, model.num_features)
    assert same_weights(model.backbone, loaded.backbone)
    assert same_weights(model.cell, loaded.cell)
    assert loaded.metadata == {"base_model": "ada/net"}  # what was measured, was of the other classifier
    assert class_names(loaded) == [f"class {index}" for index in range(5)]


def test_timm_reads_the_features_of_a_saved_model_and_adapts_its_first_convolution_to_other_channels(saved, model):
    adapted = SRNN.from_pretrained(saved, in_chans=1).backbone.conv1[0].weight
    assert torch.allclose(adapted, model.backbone.conv1[0].weight.sum(1, keepdim=True))
    features = timm.create_model(f"local-dir:{saved}", pretrained=True, features_only=True).eval()
    images = torch.randn(1, 3, 96, 96)
    maps = model.forward_intermediates(images, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(features(images), maps, strict=True))


def test_zero_shot_is_said_until_the_model_is_trained(tmp_path):
    model = create_model("srnn_tf_efficientnet_lite0", pretrained=True)
    assert config(model, tmp_path)["srnn"]["zero_shot"]
    assert "license: apache-2.0" in (tmp_path / "README.md").read_text()
    assert SRNN.from_pretrained(tmp_path).eval().zero_shot
    assert "notes" not in SRNN.from_pretrained(EARLIER / "half_gru").pretrained_cfg  # earlier versions said it there
    model.train()
    written = config(model, tmp_path)
    assert not written["srnn"]["zero_shot"]
    assert "tag" not in written["pretrained_cfg"]
    assert written["srnn"]["metadata"]["base_model"] == "tf_efficientnet_lite0.in1k"
    assert "never trained" not in (tmp_path / "README.md").read_text()
    assert not SRNN.from_pretrained(tmp_path).zero_shot


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_precision_comes_back(dtype, tmp_path):
    assert same_again(trained(img_size=64).to(dtype), tmp_path).fc.weight.dtype == dtype


def test_the_same_model_is_saved_as_the_same_bytes(model, tmp_path):
    for index in range(8):
        model.save_pretrained(tmp_path / str(index))
    assert len({(tmp_path / str(index) / "model.safetensors").read_bytes() for index in range(8)}) == 1


def test_scalars_of_numpy_and_torch_are_numbers_in_json(tmp_path):
    model = create_model("srnn_test_resnet", num_classes=3)
    model.metadata["epochs"] = torch.tensor(3)
    model.save_pretrained(
        tmp_path,
        label_names=np.array(NAMES),
        dataset=np.str_("iris"),
        metrics={"iris": {"top1": np.mean([90.0, 91.0]), "top5": np.float32(100)}},
        recipe={"lr": torch.tensor(0.5), "path": tmp_path, "sizes": (1, 2)},
    )
    loaded = SRNN.from_pretrained(tmp_path)
    recipe = {"lr": 0.5, "path": str(tmp_path), "sizes": [1, 2]}
    metrics = {"iris": {"top1": 90.5, "top5": 100.0}}
    assert loaded.metadata == {"epochs": 3, "dataset": "iris", "metrics": metrics, "recipe": recipe}
    assert class_names(loaded) == NAMES


def test_an_unknown_keyword_is_not_published(model, tmp_path):
    with pytest.raises(TypeError, match="token"):
        model.save_pretrained(tmp_path, token="hf_secret")
    with pytest.raises(TypeError, match="give the revision after an @: ada/net@v1"):
        SRNN.from_pretrained("ada/net", revision="v1")
    with pytest.raises(TypeError, match="from_pretrained loads what was saved, without pretrained_backbone, weights"):
        SRNN.from_pretrained("ada/net", weights="x", pretrained_backbone=True)


def test_a_model_without_a_base_has_no_licence(tmp_path):
    create_model("srnn_convnextv2_atto", num_classes=3).save_pretrained(tmp_path)  # timm's weights are not for commerce
    for name in ("README.md", "config.json"):
        assert "license" not in (tmp_path / name).read_text()
