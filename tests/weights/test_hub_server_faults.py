"""The faults of the tests' hub are those of a network, and the real client meets them as such."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from huggingface_hub import (
    HfApi,
    hf_hub_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
)

from .hub_server import HubServer

WEIGHTS = bytes(range(256)) * (3 << 12)  # 3 MiB
FILE = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / FILE).write_bytes(WEIGHTS)
    return folder


def download(cache: Path, **options: str | bool) -> bytes:
    return Path(hf_hub_download("ada/net", FILE, cache_dir=cache, **options)).read_bytes()  # pyright: ignore


def test_a_download_that_was_cut_goes_on_where_it_stopped(
    hub: HubServer, cache: Path, no_backoff: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # the client keeps whole chunks only
    hub.fault(FILE, cut_after=1_000_000, times=1)
    assert download(cache) == WEIGHTS
    first, second = [request for request in hub.requests if request.method == "GET"]
    assert (first.status, first.range, first.sent) == (200, None, 1_000_000)
    assert (second.status, second.range, second.sent) == (206, "bytes=1000000-", len(WEIGHTS) - 1_000_000)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_out_of_order_for_a_moment_is_asked_again(
    status: int, hub: HubServer, cache: Path, no_backoff: None
) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    hub.fault(FILE, status=status, method="HEAD", times=2)
    assert download(cache) == WEIGHTS
    assert [request.status for request in hub.requests] == [status, status, 200, 200]


def test_a_hub_that_is_out_of_order_for_good_is_given_up_until_it_heals(
    hub: HubServer, cache: Path, no_backoff: None
) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    hub.fault(re.compile(r"/resolve/.*\.safetensors$"), status=503)
    with pytest.raises(LocalEntryNotFoundError):
        download(cache)
    assert hub.count("GET") == 0
    hub.heal()
    assert download(cache) == WEIGHTS


def test_a_fault_keeps_to_its_method_and_its_path(hub: HubServer, ada: HfApi, cache: Path) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    hub.fault("/api/", method="POST", status=403)
    with pytest.raises(HfHubHTTPError, match="403"):
        ada.create_repo("ada/other")
    assert "ada/other" not in hub.store.repositories
    assert ada.model_info("ada/net").id == "ada/net"
    assert download(cache) == WEIGHTS


def test_an_upload_that_failed_is_tried_again(hub: HubServer, ada: HfApi, folder: Path, no_backoff: None) -> None:
    ada.create_repo("ada/net")
    hub.fault("/lfs/", method="PUT", status=500, times=1)
    ada.upload_folder(repo_id="ada/net", folder_path=folder)
    assert [request.status for request in hub.requests if request.method == "PUT"] == [500, 200]
    assert hub.read("ada/net", FILE) == WEIGHTS


def test_a_late_answer_is_waited_for(hub: HubServer, cache: Path) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    hub.fault(FILE, method="GET", delay=0.2)
    started = time.monotonic()
    assert download(cache) == WEIGHTS
    assert time.monotonic() - started > 0.2


def test_silence_is_not_waited_for_for_ever(
    hub: HubServer, cache: Path, no_backoff: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.fault(FILE, method="GET", silent=True, times=1)
    assert download(cache) == WEIGHTS
    assert [(request.method, request.status) for request in hub.requests] == [("HEAD", 200), ("GET", 0), ("GET", 200)]


def test_closing_does_not_wait_for_those_it_keeps_waiting(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer() as hub:
        hub.redirect_client(monkeypatch)
        hub.add_repo("ada/net", {FILE: WEIGHTS})
        hub.fault(FILE, method="GET", silent=True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        with pytest.raises(Exception, match="timed out"):
            download(cache)
        closing = time.monotonic()
    assert time.monotonic() - closing < 0.2


def test_a_flipped_bit_changes_the_content_but_not_what_is_said_of_it(hub: HubServer, cache: Path) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    hub.fault(FILE, flip_at=1234, times=1)
    spoilt = download(cache)
    assert [i for i, (a, b) in enumerate(zip(spoilt, WEIGHTS, strict=True)) if a != b] == [1234]
    assert download(cache, force_download=True) == WEIGHTS


def test_a_truncated_file_is_noticed_if_it_was_announced_whole(hub: HubServer, cache: Path) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    hub.fault(FILE, truncate_to=1000, method="GET")
    with pytest.raises(OSError, match="Consistency check failed"):
        download(cache)
    hub.fault(FILE, truncate_to=1000, method="HEAD")
    assert download(cache) == WEIGHTS[:1000]
