"""What networks and hubs do to downloads: told in one sentence, soon, and with no harm done."""

import errno
import time
from contextlib import contextmanager
from functools import partial
from unittest.mock import Mock

import huggingface_hub
import pytest

from srnn_zoo import SRNN, WeightsUnavailableError, create_model
from srnn_zoo.weights.download import NETWORK_TIMEOUT
from tests.conftest import same_weights

from .hub_server import redirect_client

FILE = "model.safetensors"


@pytest.fixture(params=["silent", "closed"])
def dead(request, hub, monkeypatch):
    """Takes the network away when called: a host that accepts and says nothing, or one that is not there."""
    silence = partial(hub.fault, "", silent=True)
    return silence if request.param == "silent" else partial(redirect_client, monkeypatch, "http://127.0.0.1:9")


@contextmanager
def within_two_seconds():
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start <= 2


@pytest.mark.parametrize(
    ("load", "seconds"),
    [
        (lambda cache: SRNN.from_pretrained("ada/net", cache_dir=cache), NETWORK_TIMEOUT),
        (lambda cache: create_model("hf-hub:ada/net", pretrained=True, cache_dir=cache), 0.4),
        (lambda cache: create_model("srnn_test_resnet", weights="ada/net", cache_dir=cache), 0.4),
    ],
)
def test_without_a_network_a_cached_model_opens_and_a_download_and_a_push_are_refused_soon(
    load, seconds, published, cache, model, dead, tmp_path, monkeypatch
):
    if seconds != NETWORK_TIMEOUT:
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", str(seconds))
    load(cache)
    dead()
    with within_two_seconds():
        assert same_weights(load(cache), model)
    silence = rf"127\.0\.0\.1 does not answer within {seconds} s"
    refusal = f"{silence} .*: on a machine with network run `hf download ada/net`"
    with within_two_seconds(), pytest.raises(WeightsUnavailableError, match=refusal):
        load(tmp_path / "empty")
    with within_two_seconds(), pytest.raises(ConnectionError, match=f"cannot push to ada/net: {silence}"):
        model.push_to_hub("ada/net")


def test_a_hub_that_hangs_on_files_alone_is_known_soon(published, cache, model, monkeypatch):
    SRNN.from_pretrained("ada/net", cache_dir=cache)
    published.fault("/resolve/", silent=True)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.5")
    refusal = r"fetched again: .* within 0\.5 s \(HF_HUB_ETAG_TIMEOUT sets the seconds\)"
    with within_two_seconds():
        assert same_weights(SRNN.from_pretrained("ada/net", cache_dir=cache), model)
        with pytest.raises(WeightsUnavailableError, match=refusal):
            SRNN.from_pretrained("ada/net", cache_dir=cache, force_download=True)


def test_the_hub_is_asked_for_the_models_own_files_alone_once_and_never_for_what_cannot_change(published, cache, model):
    with pytest.raises(WeightsUnavailableError, match="local_files_only is set"):
        SRNN.from_pretrained("ada/net", cache_dir=cache, local_files_only=True)
    assert not published.requests
    for _ in range(2):
        SRNN.from_pretrained("ada/net", cache_dir=cache)
    got = [request.path.rpartition("/")[2] for request in published.requests if request.method == "GET"]
    assert got == ["config.json", FILE]
    published.requests.clear()
    assert same_weights(SRNN.from_pretrained("ada/net", cache_dir=cache, local_files_only=True), model)
    SRNN.from_pretrained(f"ada/net@{published.repositories['ada/net'].oid('main')}", cache_dir=cache)
    assert not published.requests  # what a full hash names cannot change


# A hub that refuses or fails


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"no such model, or it is private; .* `hf auth login`|refuses ada/net \(401\)"),
        (403, r"the Hub refuses ada/net \(403\): run `hf auth login`"),
        (404, "ada/net"),
        (503, "the Hub answers 503 for ada/net: try again later"),
    ],
)
@pytest.mark.parametrize("file", ["config.json", FILE])
def test_a_refusal_is_one_sentence_and_the_cache_is_used_where_there_is_one(
    status, message, file, published, cache, no_backoff, model
):
    published.fault(file, status=status)
    with pytest.raises(WeightsUnavailableError, match=message) as caught:
        SRNN.from_pretrained("ada/net", cache_dir=cache)
    assert "\n" not in str(caught.value)
    published.faults.clear()
    SRNN.from_pretrained("ada/net", cache_dir=cache)
    published.fault(file, status=status)
    if status != 404:  # gone for good
        assert same_weights(SRNN.from_pretrained("ada/net", cache_dir=cache), model)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("ada/nothing", WeightsUnavailableError, "ada/nothing is no folder here, and the Hub has no such model, or "),
        ("hf-hub:ada/nothing", WeightsUnavailableError, "the Hub has no such model, or it is private; for a private"),
        ("ada/net@v9", WeightsUnavailableError, "ada/net has no revision 'v9'"),
        ("ada/empty", WeightsUnavailableError, "ada/empty has no file config.json: it is no model"),
        ("ada/half", WeightsUnavailableError, r"ada/half has no file pytorch_model\.bin: it is no model"),
        ("ada/gated", WeightsUnavailableError, r"ada/gated is gated: ask for access at http.*/ada/gated, then run"),
        ("ada/net/x", FileNotFoundError, "no file or folder 'ada/net/x'"),
        ("/no/where", FileNotFoundError, "no file or folder '/no/where'"),
        ("./ada", FileNotFoundError, "no file or folder './ada'"),
        ("", FileNotFoundError, "no file or folder ''"),
        ("https://huggingface.co/ada/net", ValueError, r"give a Hub id \(owner/name or .*, not an addr"),
        ("srnn_resnet18", ValueError, r"is the name of a model: use srnn_zoo\.create_model\('srnn"),
        ("a b", ValueError, r"'a b' is neither a folder nor a Hub id \(owner/name"),
    ],
)
def test_what_is_not_there_is_told_apart(name, error, message, published, cache, saved):
    published.add_repo("ada/empty", {"README.md": b"nothing"})
    published.add_repo("ada/half", {"config.json": (saved / "config.json").read_bytes()})
    published.add_repo("ada/gated", {"config.json": b"{}"}, gated=True)
    with pytest.raises(error, match=message):
        SRNN.from_pretrained(name, cache_dir=cache)


def test_a_full_disk_is_said_to_be_one(published, cache, monkeypatch):
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(WeightsUnavailableError, match=r"cannot write config\.json .*No space left on device.*HF_HOME"):
        SRNN.from_pretrained("ada/net", cache_dir=cache)


@pytest.mark.skipif(huggingface_hub.__version__ < "1", reason="0.x takes it up in the next call only")
def test_a_download_that_was_cut_goes_on_where_it_stopped(published, cache, no_backoff, monkeypatch, model):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # the client keeps whole chunks only
    published.fault(FILE, method="GET", cut_after=500_000, times=1)
    assert same_weights(SRNN.from_pretrained("ada/net", cache_dir=cache), model)
    first, again = [request for request in published.requests if request.method == "GET" and FILE in request.path]
    assert (first.range, again.range, again.status) == (None, "bytes=500000-", 206)


@pytest.mark.parametrize(("fault", "reason"), [({"silent": True}, "ReadTimeout"), ({"cut_after": 1000}, "")])
def test_a_download_that_never_comes_through_is_not_taken_for_cached(
    fault, reason, published, cache, no_backoff, monkeypatch, model
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    published.fault(FILE, method="GET", **fault)
    stopped = rf"the download of {FILE} of ada/net stopped \({reason}.*: try again"
    with pytest.raises(WeightsUnavailableError, match=stopped):
        SRNN.from_pretrained("ada/net", cache_dir=cache)
    with pytest.raises(WeightsUnavailableError, match="is not in the Hugging Face cache"):
        SRNN.from_pretrained("ada/net", cache_dir=cache, local_files_only=True)
    published.faults.clear()
    assert same_weights(SRNN.from_pretrained("ada/net", cache_dir=cache), model)
