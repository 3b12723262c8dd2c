"""A model comes back whole: through our own API, timm's local-dir: and hf-hub:, and from the Hub by revision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard
from timm.models import save_for_hf

import srnn_zoo
from srnn_zoo import SRNN, create_model, create_transform, list_cells
from srnn_zoo.predict import class_names

from .hub_server import HubServer
from .test_cli import COFFEE, refused, run

# CNNs, signed CNNs, ViTs; head_hidden_size and num_features differ in the MobileNet
BACKBONES = ["resnet18", "mobilenetv3_small_050", "test_efficientnet", "test_convnext", "test_vit", "test_nfnet"]
NAMES = ["setosa", "versicolor", "virginica"]


def trained(name: str, **options: Any) -> SRNN:
    """A model whose cell and batch norms are not as they were made, as after training."""
    model = create_model(name, **options)
    for parameter in model.cell.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            torch.nn.init.normal_(buffer, std=0.1)
    return model.eval()


def in_timm(model: Any) -> SRNN:
    return model.eval()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def config(model: SRNN, folder: Path) -> Any:
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("variant", list_cells())
def test_every_variant_comes_back_every_way(
    variant: str, backbone: str, tmp_path: Path, cache: Path, hub: HubServer
) -> None:
    options: dict[str, Any] = {"variant": variant, "scales": (0.25, 0.5, 1.0), "num_classes": 3, "in_chans": 1}
    model = trained(f"srnn_{backbone}", interpolation="bilinear", img_size=128, **options)
    saved = tmp_path / "saved"
    model.save_pretrained(saved, label_names=NAMES, recipe={"epochs": 3}, metrics={"iris": {"top1": 97.0}})
    hub.add_repo("ada/net", files(saved))
    images = torch.randn(2, 1, 128, 128)
    with torch.inference_mode():
        logits = model(images)
        for index, loaded in enumerate(
            [
                SRNN.from_pretrained(saved).eval(),
                SRNN.from_pretrained("ada/net", cache_dir=cache).eval(),
                in_timm(timm.create_model(f"local-dir:{saved}", pretrained=True)),
                in_timm(timm.create_model("hf-hub:ada/net", pretrained=True, cache_dir=cache)),
                create_model("hf-hub:ada/net", pretrained=True, cache_dir=cache).eval(),
                create_model(f"srnn_{backbone}", weights=saved).eval(),
            ]
        ):
            assert torch.equal(loaded(images), logits)
            for attribute in ("variant", "scales", "interpolation", "num_classes", "in_chans", "img_size", "metadata"):
                expected = getattr(model, attribute) or {"recipe": {"epochs": 3}, "metrics": {"iris": {"top1": 97.0}}}
                assert getattr(loaded, attribute) == expected
            assert loaded.cell.activation == model.cell.activation
            assert class_names(loaded) == NAMES
            again = config(loaded, tmp_path / str(index))
            assert again == json.loads((saved / "config.json").read_text())
    assert hub.count("GET", "model.safetensors") == 1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_was_changed_after_making_comes_back(backbone: str, tmp_path: Path) -> None:
    model = trained(f"srnn_{backbone}", num_classes=7)
    images = torch.randn(1, 3, 96, 96)
    for classes in (7, 4, 0):
        model.reset_classifier(classes)
        model.save_pretrained(tmp_path / str(classes))
        for loaded in (
            SRNN.from_pretrained(tmp_path / str(classes)).eval(),
            in_timm(timm.create_model(f"local-dir:{tmp_path / str(classes)}", pretrained=True)),
        ):
            assert loaded.num_classes == classes
            assert torch.equal(loaded(images), model(images))


def test_a_factory_called_directly_keeps_its_arguments(tmp_path: Path) -> None:
    model = srnn_zoo.get_factory("srnn_test_vit")(
        variant="gru", scales=(0.5, 0.75, 1.0), activation="relu", num_classes=4, img_size=96, drop_path_rate=0.1
    ).eval()
    model.save_pretrained(tmp_path)
    loaded = SRNN.from_pretrained(tmp_path).eval()
    images = torch.randn(1, 3, 96, 96)
    assert torch.equal(loaded(images), model(images))
    changed = {
        "global_pool": "avg",
        "in_chans": 3,
        "img_size": [96, 96],
    }  # as timm writes it, which leaves drop rates out
    args = {key: value for key, value in model._model_args.items() if key not in ("drop_path_rate", "num_classes")}
    assert loaded._model_args == {**args, "scales": loaded.scales, **changed}


def test_an_input_size_set_later_comes_back(tmp_path: Path) -> None:
    model = trained("srnn_test_vit", num_classes=7)
    model.set_input_size(448)
    model.save_pretrained(tmp_path)
    loaded = SRNN.from_pretrained(tmp_path).eval()
    images = torch.randn(1, 3, 448, 448)
    assert loaded.img_size == (448, 448)
    assert torch.equal(loaded(images), model(images))


def test_what_timm_itself_saved_comes_back(tmp_path: Path) -> None:
    model = trained("srnn_test_resnet", variant="vanilla", num_classes=7)
    images = torch.randn(1, 3, 96, 96)
    for safe in (True, False):
        save_for_hf(model, str(tmp_path / str(safe)), safe_serialization=safe)
        assert torch.equal(SRNN.from_pretrained(tmp_path / str(safe)).eval()(images), model(images))


def test_the_preprocessing_comes_back(tmp_path: Path) -> None:
    model = create_model("srnn_tf_efficientnet_lite1", num_classes=3, scales=(0.5, 0.75, 1.0))
    model.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), crop_pct=0.8)
    model.save_pretrained(tmp_path)
    loaded = SRNN.from_pretrained(tmp_path)
    assert str(create_transform(loaded)) == str(create_transform(model))
    assert "mean=(0.1, 0.2, 0.3)" in str(create_transform(loaded))
    assert loaded.level_sizes() == model.level_sizes() == [(240, 240), (360, 360), (480, 480)]


def test_another_number_of_classes_makes_the_classifier_new_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained("srnn_test_resnet", num_classes=3)
    model.save_pretrained(tmp_path, label_names=NAMES, metrics={"iris": {"top1": 97.0}}, base_model="ada/net")
    loaded = SRNN.from_pretrained(tmp_path, num_classes=5)
    assert "the classifier is new, of 5 classes instead of 3" in caplog.text
    assert loaded.fc.weight.shape == (5, model.num_features)
    for part in ("backbone", "cell"):
        ours, theirs = getattr(loaded, part).state_dict(), getattr(model, part).state_dict()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    assert loaded.metadata == {"base_model": "ada/net"}  # what was measured, was of the other classifier
    assert class_names(loaded) == [f"class {index}" for index in range(5)]


def test_other_channels_adapt_the_first_convolution_as_in_timm(tmp_path: Path) -> None:
    model = trained("srnn_test_resnet", num_classes=3)
    model.save_pretrained(tmp_path)
    loaded = SRNN.from_pretrained(tmp_path, in_chans=1)
    stem, wanted = loaded.backbone.conv1[0].weight, model.backbone.conv1[0].weight  # pyright: ignore
    assert torch.allclose(stem, wanted.sum(1, keepdim=True))


def test_zero_shot_is_said_until_training_moves_the_cell(tmp_path: Path) -> None:
    model = create_model("srnn_tf_efficientnet_lite0", pretrained=True)
    assert config(model, tmp_path)["srnn"]["zero_shot"]
    assert SRNN.from_pretrained(tmp_path).zero_shot
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    assert not model.zero_shot
    assert "notes" not in model.pretrained_cfg
    written = config(model, tmp_path)
    assert not written["srnn"]["zero_shot"]
    assert "tag" not in written["pretrained_cfg"]
    assert written["srnn"]["base_model"] == "tf_efficientnet_lite0.in1k"


def test_features_come_from_a_saved_model(tmp_path: Path) -> None:
    model = trained("srnn_test_resnet", num_classes=3)
    model.save_pretrained(tmp_path)
    features: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    images = torch.randn(1, 3, 96, 96)
    maps = model.forward_intermediates(images, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(features(images), maps, strict=True))


# The Hub


def test_push_makes_a_repository_that_opens_by_branch_tag_and_commit(hub: HubServer, ada: HfApi, cache: Path) -> None:
    images = torch.randn(1, 3, 64, 64)
    models = [trained("srnn_test_resnet", num_classes=3), trained("srnn_test_resnet", num_classes=3, variant="gru")]
    first = models[0].push_to_hub("ada/net", token=ada.token, label_names=NAMES)
    ada.create_tag("ada/net", tag="v1")
    models[1].push_to_hub("ada/net", token=ada.token, commit_message="Better")
    models[0].push_to_hub("ada/net", token=ada.token, revision="old")
    assert sorted(ada.list_repo_files("ada/net")) == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    for revision, model in [("@v1", 0), ("", 1), ("@main", 1), ("@old", 0), (f"@{first.oid}", 0)]:
        loaded = SRNN.from_pretrained(f"ada/net{revision}", cache_dir=cache).eval()
        assert torch.equal(loaded(images), models[model](images))
    assert loaded.pretrained_cfg["hf_hub_id"] == f"ada/net@{first.oid}"


def test_a_private_repository_opens_with_a_token_only(hub: HubServer, ada: HfApi, cache: Path) -> None:
    model = trained("srnn_test_resnet", num_classes=3)
    model.push_to_hub("ada/secret", token=ada.token, private=True)
    assert ada.model_info("ada/secret").private
    with pytest.raises(
        srnn_zoo.WeightsUnavailableError, match=r"the Hub has no such model, or it is private; .* token="
    ):
        SRNN.from_pretrained("ada/secret", cache_dir=cache)
    loaded = SRNN.from_pretrained("ada/secret", cache_dir=cache, token=ada.token).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(images), model(images))


def test_pushing_without_the_right_is_refused(hub: HubServer) -> None:
    model = create_model("srnn_test_resnet", num_classes=3)
    with pytest.raises(
        PermissionError, match=r"cannot push to ada/net: the Hub refuses \(401\); run `hf auth login`, or give a token="
    ):
        model.push_to_hub("ada/net")
    with pytest.raises(PermissionError, match=r"cannot push to ada/net: the Hub refuses \(403\)"):
        model.push_to_hub("ada/net", token=hub.token("bob"))
    with pytest.raises(ValueError, match="neither a folder nor a Hub id"):
        model.push_to_hub("ada/net/more", token=hub.token("ada"))


def test_a_pull_request_leaves_the_branch_alone(hub: HubServer, ada: HfApi) -> None:
    hub.add_repo("ada/net", {"README.md": b"mine"})
    commit = create_model("srnn_test_resnet", num_classes=3).push_to_hub("ada/net", token=ada.token, create_pr=True)
    assert commit.pr_url is not None
    assert ada.list_repo_files("ada/net") == ["README.md"]


def test_nothing_but_the_models_own_files_is_downloaded_and_nothing_twice(hub: HubServer, cache: Path) -> None:
    model = create_model("srnn_test_resnet", num_classes=3)
    model.push_to_hub("ada/net", token=hub.token("ada"))
    hub.clear()
    SRNN.from_pretrained("ada/net", cache_dir=cache)
    assert {request.path.rpartition("/")[2] for request in hub.requests if request.method == "GET"} == {
        "config.json",
        "model.safetensors",
    }
    SRNN.from_pretrained("ada/net", cache_dir=cache)
    assert hub.count("GET", "model.safetensors") == hub.count("GET", "config.json") == 1
    commit = next((cache / "models--ada--net" / "snapshots").iterdir()).name
    hub.clear()
    SRNN.from_pretrained(f"ada/net@{commit}", cache_dir=cache)
    assert not hub.requests  # what a full hash names cannot change


def test_two_processes_that_load_at_once_download_once(hub: HubServer, cache: Path) -> None:
    create_model("srnn_test_resnet", num_classes=3).push_to_hub("ada/net", token=hub.token("ada"))
    hub.clear()
    hub.fault("model.safetensors", method="GET", delay=1.0)  # long enough for both to want it
    program = "import sys, srnn_zoo; srnn_zoo.SRNN.from_pretrained('ada/net', cache_dir=sys.argv[1])"
    environment = {**os.environ, **hub.environ, "OMP_NUM_THREADS": "1"}
    children = [subprocess.Popen([sys.executable, "-c", program, str(cache)], env=environment) for _ in range(2)]
    assert [child.wait(120) for child in children] == [0, 0]
    assert hub.count("GET", "model.safetensors") == 1


# The model card


def test_the_card_says_what_the_model_is_in_valid_yaml(hub: HubServer, ada: HfApi) -> None:
    model = create_model("srnn_tf_efficientnet_lite0", pretrained=True, num_classes=3)
    model.push_to_hub(
        "ada/net",
        token=ada.token,
        label_names=NAMES,
        dataset="iris",
        metrics={"iris": {"top1": 97.0, "top5": 100}},
        recipe={"epochs": 3, "lr": 0.001},
        license="mit",
    )
    card = ModelCard(hub.read("ada/net", "README.md").decode())
    data: Any = card.data
    assert (data.license, data.base_model, data.datasets) == ("mit", "timm/tf_efficientnet_lite0.in1k", ["iris"])
    assert data.pipeline_tag == "image-classification"
    assert [(r.dataset_name, r.metric_name, r.metric_value) for r in data.eval_results] == [
        ("iris", "top1", 97.0),
        ("iris", "top5", 100),
    ]
    assert "| iris | top1 | 97 |" in card.text
    assert 'srnn_zoo.SRNN.from_pretrained("ada/net")' in card.text
    assert "epochs 3, lr 0.001" in card.text
    assert "never trained" not in card.text


def test_the_cards_own_lines_run(lite0: SRNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    lite0.save_pretrained(tmp_path / "path" / "to" / "net")
    card = ModelCard.load(tmp_path / "path" / "to" / "net" / "README.md")
    monkeypatch.chdir(tmp_path)
    code = card.text.split("```python\n")[1].split("```")[0]
    namespace: dict[str, Any] = {"image": Image.new("RGB", (320, 240))}
    exec(code, namespace)
    assert namespace["logits"].shape == (1, 1000)


def test_a_card_of_ones_own_stays(hub: HubServer, ada: HfApi, tmp_path: Path) -> None:
    model = create_model("srnn_test_resnet", num_classes=3)
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, license="mit")
    assert ModelCard.load(tmp_path / "README.md").data.license == "mit"  # pyright: ignore
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    hub.add_repo("ada/net", {"README.md": b"mine"})
    model.push_to_hub("ada/net", token=ada.token)
    assert hub.read("ada/net", "README.md") == b"mine"


# The command


def test_a_saved_model_is_named_by_its_folder_or_hub_id(saved: Path, published: HubServer) -> None:
    model = SRNN.from_pretrained(saved)
    model.save_pretrained(saved, label_names=["cat", "cup", "other"], base_model="ada/base")
    said = run("predict", COFFEE, "--model", str(saved), "--json")
    assert said.code == 0
    (answer,) = map(json.loads, said.out.splitlines())
    assert {top["label"] for top in answer["levels"][0]["top"]} == {"cat", "cup", "other"}
    facts = json.loads(run("info", str(saved), "--json").out)
    assert (facts["model"], facts["classes"], facts["base_model"]) == ("srnn_test_resnet", 3, "ada/base")
    assert json.loads(run("info", "ada/net", "--json").out)["classes"] == 3
    assert "is neither a folder nor a Hub id" in refused("info", "/no/where")
    assert "ada/none is no folder here, and the Hub has no such model" in refused("info", "ada/none")
