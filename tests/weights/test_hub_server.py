"""The real `huggingface_hub` finds in the tests' hub what it would find in the real one, and so do the faults."""

import hashlib
import http.client
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import get_hf_file_metadata

from .hub_server import HubServer, Request, redirect_client

WEIGHTS = bytes(range(256)) * (1 << 12)  # 1 MiB
FILE = "model.safetensors"
ADDRESS = f"/ada/net/resolve/main/{FILE}"


def download(cache, **options):
    return Path(hf_hub_download("ada/net", FILE, cache_dir=cache, **options)).read_bytes()  # pyright: ignore


def test_a_file_is_described_and_the_log_says_who_got_how_much(hub, cache):
    commit = hub.add_repo("ada/net", {FILE: WEIGHTS})
    found = get_hf_file_metadata(hub.url + ADDRESS)
    assert (found.commit_hash, found.size, found.etag) == (commit, len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    hub.clear()
    assert download(cache, token=hub.token("ada")) == WEIGHTS
    assert hub.requests == [
        Request("HEAD", ADDRESS, None, "ada", 200, 0),
        Request("GET", ADDRESS, None, "ada", 200, len(WEIGHTS)),
    ]


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_a_closed_repository_is_there_for_its_owner_only(kind, hub, cache):
    hub.add_repo("ada/net", {FILE: WEIGHTS}, **{kind: True})
    expected = {"private": (RepositoryNotFoundError, 401, 404), "gated": (GatedRepoError, 401, 403)}[kind]
    for token, status in zip((False, hub.token("bob")), expected[1:], strict=True):
        with pytest.raises(expected[0]) as caught:
            download(cache, token=token)
        assert caught.value.response.status_code == status
    assert hub.count("GET", FILE) == 0
    assert download(cache, token=hub.token("ada")) == WEIGHTS
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(token="hf_stale").model_info("ada/net")


def test_one_connection_carries_many_requests(hub):
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    connection = http.client.HTTPConnection("127.0.0.1", int(hub.url.split(":")[-1]), timeout=5)

    def ask(method, path, body=None, **headers):
        connection.request(method, path, body, headers, encode_chunked=not isinstance(body, bytes))
        response = connection.getresponse()
        return response.status, response.read()

    connection.connect()
    socket = connection.sock
    assert ask("PUT", "/nowhere", b"unwanted")[0] == 501
    chunks = {"Transfer-Encoding": "chunked"}
    assert ask("PUT", f"/lfs/{hashlib.sha256(b'onetwo').hexdigest()}", iter((b"one", b"two")), **chunks)[0] == 200
    assert ask("PUT", f"/lfs/{hashlib.sha256(b'three').hexdigest()}", b"four")[0] == 400
    assert ask("HEAD", ADDRESS) == (200, b"")
    assert ask("GET", ADDRESS, Range="bytes=1000000-") == (206, WEIGHTS[1000000:])
    assert connection.sock is socket
    assert len(hub.requests) == 5
    connection.close()


# Faults


again = pytest.mark.skipif(huggingface_hub.__version__ < "1", reason="0.x asks once only")


@again
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_out_of_order_for_a_moment_is_asked_again(status, hub, cache, no_backoff):
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    hub.fault(FILE, status=status, method="HEAD", times=2)
    assert download(cache) == WEIGHTS
    assert [request.status for request in hub.requests] == [status, status, 200, 200]


def test_a_fault_keeps_to_its_method_and_its_path(hub, ada, cache):
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    hub.fault("/api/", method="POST", status=403)
    hub.fault(FILE, method="GET", delay=0.2)
    with pytest.raises(HfHubHTTPError, match="403"):
        ada.create_repo("ada/other")
    assert "ada/other" not in hub.repositories
    assert ada.model_info("ada/net").id == "ada/net"
    started = time.monotonic()
    assert download(cache) == WEIGHTS
    assert time.monotonic() - started > 0.2


@again
def test_silence_is_not_waited_for_for_ever_and_does_not_keep_the_hub_open(cache, no_backoff, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    with HubServer() as hub:
        redirect_client(monkeypatch, hub.url)
        hub.add_repo("ada/net", {FILE: WEIGHTS})
        hub.fault(FILE, method="GET", silent=True, times=1)
        assert download(cache) == WEIGHTS
        assert [request.status for request in hub.requests] == [200, 0, 200]
        closing = time.monotonic()
    assert time.monotonic() - closing < 0.2


def test_a_spoilt_file_has_the_etag_of_the_sound_one(hub, cache):
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    hub.fault(FILE, flip_at=1234, times=1)
    assert [i for i, (a, b) in enumerate(zip(download(cache), WEIGHTS, strict=True)) if a != b] == [1234]
    hub.fault(FILE, truncate_to=1000, times=2)
    assert download(cache, force_download=True) == WEIGHTS[:1000]
    assert download(cache, force_download=True) == WEIGHTS
