"""Models on the Hub: pushed, opened by revision and with a token; their cards; and the command."""

import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from srnn_zoo import SRNN, WeightsUnavailableError, create_model
from srnn_zoo.weights.card import model_card
from srnn_zoo.weights.download import download_files
from tests.cli.command import COFFEE, refused, run
from tests.conftest import same_weights
from tests.models.harness import trained

from .test_damage import exit_codes
from .test_hub import NAMES


def test_push_makes_a_repository_that_opens_by_branch_tag_and_commit(hub, cache):
    images = torch.randn(1, 3, 64, 64)
    models = [trained("srnn_test_resnet", num_classes=3), trained("srnn_test_resnet", num_classes=3, variant="gru")]
    first = models[0].push_to_hub("ada/net", token=hub.token("ada"), label_names=NAMES)
    hub.repositories["ada/net"].names["v1"] = first.oid
    models[1].push_to_hub("ada/net", token=hub.token("ada"), commit_message="Better")
    models[0].push_to_hub("ada/net", token=hub.token("ada"), revision="old")
    files = hub.repositories["ada/net"].files()
    assert sorted(files) == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    for revision, model in [("@v1", 0), ("", 1), ("@main", 1), ("@old", 0), (f"@{first.oid}", 0)]:
        loaded = SRNN.from_pretrained(f"ada/net{revision}", cache_dir=cache).eval()
        assert torch.equal(loaded(images), models[model](images))
    assert loaded.pretrained_cfg["hf_hub_id"] == f"ada/net@{first.oid}"


def test_a_private_repository_opens_with_a_token_only(hub, cache, model):
    model.push_to_hub("ada/secret", token=hub.token("ada"), private=True)
    assert hub.repositories["ada/secret"].private
    with pytest.raises(WeightsUnavailableError, match=r"the Hub has no such model, or it is private; .* token="):
        SRNN.from_pretrained("ada/secret", cache_dir=cache)
    assert same_weights(SRNN.from_pretrained("ada/secret", cache_dir=cache, token=hub.token("ada")), model)


def test_pushing_without_the_right_or_to_no_place_is_refused(hub, model):
    login = r"cannot push to ada/net: the Hub refuses \(401\); run `hf auth login`, or give a token="
    for name, options, error, message in (
        ("ada/net", {}, PermissionError, login),
        ("ada/net", {"token": hub.token("bob")}, PermissionError, r"cannot push to ada/net: the Hub refuses \(403\)"),
        ("ada/net@v1", {}, ValueError, "give the branch as revision='v1', not after an @"),
        ("ada/net", {"create_pr": True, "revision": "v1"}, ValueError, "give create_pr or revision, not both"),
        ("ada/net/more", {"token": hub.token("ada")}, ValueError, "neither a folder nor a Hub id"),
    ):
        with pytest.raises(error, match=message):
            model.push_to_hub(name, **options)


def test_a_pull_request_leaves_the_branch_alone_and_a_card_of_ones_own_stays(hub, cache, model):
    hub.add_repo("ada/net", {"README.md": b"mine"})
    commit = model.push_to_hub("ada/net", token=hub.token("ada"), create_pr=True)
    assert commit.pr_revision == "refs/pr/1"
    assert same_weights(SRNN.from_pretrained("ada/net@refs/pr/1", cache_dir=cache), model)
    assert hub.repositories["ada/net"].files() == {"README.md": b"mine"}
    model.push_to_hub("ada/net", token=hub.token("ada"))
    files = hub.repositories["ada/net"].files()
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert files["README.md"] == b"mine"


def test_scores_on_data_sets_of_the_hub_are_files_that_it_reads(hub, saved, model):
    metrics = {"ILSVRC/imagenet-1k": {"top1": 71.5, "top5": 90.0}, "mine": {"top1": 80.0}}
    model.push_to_hub("ada/net", token=hub.token("ada"), metrics=metrics)
    pushed = hub.repositories["ada/net"].files()
    found = {name: yaml.safe_load(text) for name, text in pushed.items() if name.startswith(".eval_results/")}
    dataset, notes = {"id": "ILSVRC/imagenet-1k", "task_id": "default"}, "top-1 accuracy, per cent"
    assert found == {".eval_results/ILSVRC--imagenet-1k.yaml": [{"dataset": dataset, "value": 71.5, "notes": notes}]}
    theirs = saved / ".eval_results" / "theirs.yaml"
    model.save_pretrained(saved, metrics=metrics)
    theirs.write_text("[]")
    model.save_pretrained(saved)
    assert [path.name for path in theirs.parent.iterdir()] == ["theirs.yaml"]
    theirs.unlink()
    model.save_pretrained(saved)
    assert not theirs.parent.exists()


def test_two_processes_that_load_at_once_download_once(published, cache):
    published.fault("model.safetensors", method="GET", delay=0.5)  # long enough for both to want it
    both = 2 * [lambda: download_files("ada/net", "config.json", "model.safetensors", cache_dir=cache)]
    assert exit_codes(*both) == [0, 0]
    assert published.count("GET", "model.safetensors") == 1


# The model card


def test_the_card_says_what_the_model_is_in_valid_yaml(hub):
    model = create_model("srnn_tf_efficientnet_lite0", pretrained=True, num_classes=3)
    facts = {"metrics": {"iris": {"top1": 97.0, "top5": 100}}, "recipe": {"epochs": 3, "lr": 0.001}, "license": "mit"}
    model.push_to_hub("ada/net", token=hub.token("ada"), label_names=NAMES, dataset="iris", **facts)
    card = ModelCard(hub.repositories["ada/net"].files()["README.md"].decode())
    data = card.data
    assert (data.license, data.base_model, data.datasets) == ("mit", "timm/tf_efficientnet_lite0.in1k", ["iris"])
    assert data.pipeline_tag == "image-classification"
    results = [(result.dataset_name, result.metric_name, result.metric_value) for result in data.eval_results]
    assert results == [("iris", "top1", 97.0), ("iris", "top5", 100)]
    for part in ("| iris | top1 | 97 |", 'srnn_zoo.SRNN.from_pretrained("ada/net")', "epochs 3, lr 0.001"):
        assert part in card.text
    assert "never trained" not in card.text


def test_a_card_lists_classes_by_what_they_are_called_and_not_a_thousand_of_them(saved, model):
    model.save_pretrained(saved, label_names=["a|b", "`c`", "two\nlines"])
    assert "\n## Classes\n\n`a|b`, `'c'`, `two lines`\n\n## Cite" in (saved / "README.md").read_text()
    config = json.loads((saved / "config.json").read_text())
    config |= {"num_classes": 1000, "label_names": [f"n{index}" for index in range(1000)]}
    config["pretrained_cfg"]["label_descriptions"] = {"n0": "tench"}
    card = model_card(config, "net", 1)
    assert "`tench`, `n1`, " in card
    assert "`n199`, and 800 more in `config.json`" in card
    assert "## Classes" not in model_card({**config, "label_names": []}, "net", 1)


def test_the_cards_own_lines_run(lite0, tmp_path, monkeypatch):
    lite0.save_pretrained(tmp_path / "path" / "to" / "net")
    card = ModelCard.load(tmp_path / "path" / "to" / "net" / "README.md")
    monkeypatch.chdir(tmp_path)
    code = card.text.split("```python\n")[1].split("```")[0]
    namespace = {"image": Image.new("RGB", (320, 240))}
    exec(code, namespace)
    assert namespace["logits"].shape == (1, 1000)


def test_a_card_that_we_wrote_is_renewed_and_another_stays(saved, model):
    model.save_pretrained(saved, license="mit")
    assert ModelCard.load(saved / "README.md").data.license == "mit"
    (saved / "README.md").write_text("mine")
    model.save_pretrained(saved)
    assert (saved / "README.md").read_text() == "mine"


# The command


def test_a_saved_model_is_named_by_its_folder_or_hub_id(saved, published):
    model = SRNN.from_pretrained(saved)
    model.save_pretrained(saved, label_names=["cat", "cup", "other"], base_model="ada/base")
    answer = json.loads(run("predict", COFFEE, "--model", str(saved), "--json").out)
    assert {top["label"] for top in answer["levels"][0]["top"]} == {"cat", "cup", "other"}
    facts = json.loads(run("info", str(saved), "--json").out)
    assert (facts["model"], facts["classes"], facts["base_model"]) == ("srnn_test_resnet", 3, "ada/base")
    assert json.loads(run("info", "ada/net", "--json").out)["classes"] == 3
    assert "/no/where is no saved model: no such folder" in refused("info", "/no/where")
    assert "ada/none is no folder here, and the Hub has no such model" in refused("info", "ada/none")
