"""The real `huggingface_hub` finds in the tests' hub what it would find in the real one, and so do the faults."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import get_hf_file_metadata

from .hub_server import HubServer

WEIGHTS = bytes(range(256)) * (3 << 12)  # 3 MiB
NEW_WEIGHTS = WEIGHTS[::-1]
CARD = b"---\nlicense: mit\n---\n# A net\n"
FILE = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "logs").mkdir(parents=True)
    (folder / "config.json").write_text('{"architecture": "net"}')
    (folder / "README.md").write_bytes(CARD)
    (folder / "logs" / "loss.csv").write_text("1.0\n0.5\n")
    (folder / FILE).write_bytes(WEIGHTS)
    return folder


def download(cache: Path, **options: str | bool) -> bytes:
    return Path(hf_hub_download("ada/net", FILE, cache_dir=cache, **options)).read_bytes()  # pyright: ignore


# What the Hub does


def test_a_folder_goes_up_and_comes_down_by_branch_tag_and_commit_hash(
    hub: HubServer, ada: HfApi, folder: Path, cache: Path
) -> None:
    assert ada.create_repo("ada/net").repo_id == "ada/net"
    first = ada.upload_folder(repo_id="ada/net", folder_path=folder)
    ada.create_tag("ada/net", tag="v1")
    ada.create_branch("ada/net", branch="feature/x")
    (folder / FILE).write_bytes(NEW_WEIGHTS)
    second = ada.upload_folder(repo_id="ada/net", folder_path=folder)
    assert re.fullmatch("[0-9a-f]{40}", first.oid)
    assert first.oid != second.oid
    assert hub.count("PUT", "/lfs/") == 2

    for revision, weights in {
        "main": NEW_WEIGHTS,
        second.oid: NEW_WEIGHTS,
        "v1": WEIGHTS,
        "feature/x": WEIGHTS,
        first.oid: WEIGHTS,
    }.items():
        assert download(cache, revision=revision) == weights
    assert hub.count("GET", FILE) == 2  # the other three were in the cache

    snapshot = Path(snapshot_download("ada/net", revision="v1", cache_dir=cache))
    assert snapshot.name == first.oid
    assert (snapshot / FILE).read_bytes() == WEIGHTS
    assert (snapshot / "logs" / "loss.csv").read_text() == "1.0\n0.5\n"
    assert hub.count("GET", FILE) == 2


def test_a_repository_is_listed_and_described(hub: HubServer, ada: HfApi, folder: Path) -> None:
    assert not ada.repo_exists("ada/net")
    ada.create_repo("ada/net", private=True)
    assert ada.repo_exists("ada/net")
    empty = ada.model_info("ada/net").sha
    assert ada.list_repo_files("ada/net") == [".gitattributes"]

    commit = ada.upload_folder(repo_id="ada/net", folder_path=folder)
    assert sorted(ada.list_repo_files("ada/net")) == [
        ".gitattributes",
        "README.md",
        "config.json",
        "logs/loss.csv",
        FILE,
    ]
    info = ada.model_info("ada/net", files_metadata=True)
    assert (info.id, info.author, info.sha, info.private, info.gated) == ("ada/net", "ada", commit.oid, True, False)
    (weights,) = [file for file in info.siblings or [] if file.rfilename == FILE]
    assert weights.size == len(WEIGHTS)
    assert weights.lfs is not None
    assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert ada.model_info("ada/net", revision=empty).sha == empty
    assert ada.list_repo_files("ada/net", revision=empty) == [".gitattributes"]

    assert {entry.path for entry in ada.list_repo_tree("ada/net")} >= {"logs", FILE}
    assert [entry.path for entry in ada.list_repo_tree("ada/net", "logs")] == ["logs/loss.csv"]
    with pytest.raises(EntryNotFoundError):
        list(ada.list_repo_tree("ada/net", "nowhere"))
    assert [entry.path for entry in ada.get_paths_info("ada/net", ["logs", FILE, "nowhere"])] == ["logs", FILE]
    assert ada.file_exists("ada/net", "config.json")
    assert not ada.file_exists("ada/net", "nowhere.json")
    assert not ada.file_exists("ada/nowhere", "config.json")
    assert ada.whoami()["name"] == "ada"


def test_refs_are_made_once(hub: HubServer, ada: HfApi) -> None:
    commit = hub.add_repo("ada/net", {FILE: WEIGHTS})
    ada.create_branch("ada/net", branch="dev", revision=commit)
    ada.create_tag("ada/net", tag="v1", revision="dev")
    refs = ada.list_repo_refs("ada/net")
    assert {(ref.name, ref.ref) for ref in refs.branches} == {("main", "refs/heads/main"), ("dev", "refs/heads/dev")}
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", commit)]

    for again in (ada.create_repo, lambda _, **kw: ada.create_branch("ada/net", branch="dev", **kw)):
        with pytest.raises(HfHubHTTPError, match="409"):
            again("ada/net")
        again("ada/net", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        ada.create_tag("ada/net", tag="v1")
    assert ada.create_repo("ada/net", exist_ok=True).repo_id == "ada/net"


def test_commits_add_copy_and_delete(hub: HubServer, ada: HfApi) -> None:
    first = hub.add_repo("ada/net", {"a.txt": b"a", "old/b.txt": b"b", FILE: WEIGHTS})
    ada.create_commit(
        "ada/net",
        [
            CommitOperationAdd("c.txt", b"c"),
            CommitOperationAdd("empty.safetensors", b""),
            CommitOperationCopy(FILE, "copy.safetensors"),
            CommitOperationDelete("a.txt"),
            CommitOperationDelete("old/"),
        ],
        commit_message="tidy",
        parent_commit=first,
    )
    assert sorted(ada.list_repo_files("ada/net")) == ["c.txt", "copy.safetensors", "empty.safetensors", FILE]
    assert hub.read("ada/net", "copy.safetensors") == WEIGHTS
    assert hub.read("ada/net", "old/b.txt", revision=first) == b"b"
    with pytest.raises(HfHubHTTPError, match="412"):
        ada.create_commit("ada/net", [CommitOperationAdd("d.txt", b"d")], commit_message="late", parent_commit=first)
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        ada.create_commit("ada/net", [CommitOperationDelete("a.txt")], commit_message="gone")


def test_what_has_not_changed_is_not_committed_again(hub: HubServer, ada: HfApi, folder: Path) -> None:
    ada.create_repo("ada/net")
    first = ada.upload_folder(repo_id="ada/net", folder_path=folder)
    assert ada.upload_folder(repo_id="ada/net", folder_path=folder).oid == first.oid
    assert hub.count("POST", "/commit/") == 1
    assert hub.count("PUT", "/lfs/") == 1


def test_anybody_may_open_a_pull_request(hub: HubServer, cache: Path) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    bob = HfApi(token=hub.token("bob"))
    commit = bob.upload_file(path_or_fileobj=NEW_WEIGHTS, path_in_repo=FILE, repo_id="ada/net", create_pr=True)
    assert commit.pr_revision == "refs/pr/1"
    assert download(cache, revision="refs/pr/1") == NEW_WEIGHTS
    assert download(cache) == WEIGHTS
    (pull_request,) = bob.list_repo_refs("ada/net", include_pull_requests=True).pull_requests or []
    assert pull_request.target_commit == commit.oid


@pytest.mark.skipif(huggingface_hub.__version__ < "2", reason="1.x sends the card to huggingface.co to be checked")
def test_a_model_card_is_pushed(hub: HubServer, ada: HfApi) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    ModelCard(CARD.decode()).push_to_hub("ada/net", token=hub.token("ada"))
    assert hub.read("ada/net", "README.md") == CARD


def test_metadata_names_the_commit_and_the_content(hub: HubServer) -> None:
    commit = hub.add_repo("ada/net", {FILE: WEIGHTS, "config.json": b"{}"})
    weights = get_hf_file_metadata(f"{hub.url}/ada/net/resolve/main/{FILE}")
    assert (weights.commit_hash, weights.size) == (commit, len(WEIGHTS))
    assert weights.etag == hashlib.sha256(WEIGHTS).hexdigest()
    assert weights.xet_file_data is None
    config = get_hf_file_metadata(f"{hub.url}/ada/net/resolve/main/config.json")
    assert config.etag == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # what `git hash-object` says of {}


def test_a_second_download_asks_for_the_headers_only(hub: HubServer, cache: Path) -> None:
    commit = hub.add_repo("ada/net", {FILE: WEIGHTS})
    assert download(cache) == WEIGHTS
    assert hub.count("GET", FILE) == 1
    hub.clear()
    assert download(cache) == WEIGHTS
    assert [request.method for request in hub.requests] == ["HEAD"]
    hub.clear()
    assert download(cache, revision=commit) == WEIGHTS
    assert download(cache, local_files_only=True) == WEIGHTS
    assert hub.requests == []


def test_a_commit_is_noticed(hub: HubServer, cache: Path) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    assert download(cache) == WEIGHTS
    hub.commit("ada/net", {FILE: NEW_WEIGHTS})
    assert download(cache) == NEW_WEIGHTS


def test_the_log_says_who_got_how_much(hub: HubServer, cache: Path) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    download(cache, token=hub.token("ada"))
    head, get = hub.requests
    assert (head.method, head.status, head.sent) == ("HEAD", 200, 0)
    assert (get.method, get.status, get.sent) == ("GET", 200, len(WEIGHTS))
    assert get.path == "/ada/net/resolve/main/model.safetensors"
    assert (get.user, get.range) == ("ada", None)


@pytest.mark.parametrize("user", [None, "ada"])
def test_a_child_process_finds_the_hub_in_its_environment(user: str | None, hub: HubServer, cache: Path) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    code = f"import huggingface_hub; huggingface_hub.hf_hub_download('ada/net', {FILE!r}, cache_dir={str(cache)!r})"
    developer = {**os.environ, "HF_TOKEN": "hf_for_the_real_hub"}
    login = {"HF_TOKEN": hub.token(user)} if user else {}
    subprocess.run([sys.executable, "-c", code], env={**developer, **hub.environ, **login}, check=True)
    assert [(request.method, request.user) for request in hub.requests] == [("HEAD", user), ("GET", user)]


def test_one_connection_carries_many_requests(hub: HubServer) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    path = f"/ada/net/resolve/main/{FILE}"
    connection = http.client.HTTPConnection("127.0.0.1", int(hub.url.split(":")[-1]), timeout=5)

    def ask(method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str) -> tuple[int, bytes]:
        connection.request(method, path, body, headers, encode_chunked=not isinstance(body, bytes))
        response = connection.getresponse()
        return response.status, response.read()

    connection.connect()
    socket = connection.sock
    assert ask("PUT", "/nowhere", b"unwanted")[0] == 501
    chunks = {"Transfer-Encoding": "chunked"}
    assert ask("PUT", f"/lfs/{hashlib.sha256(b'onetwo').hexdigest()}", iter((b"one", b"two")), **chunks)[0] == 200
    assert ask("PUT", f"/lfs/{hashlib.sha256(b'three').hexdigest()}", b"four")[0] == 400
    assert ask("POST", "/api/repos/create", b"{", Authorization=f"Bearer {hub.token('ada')}")[0] == 400
    assert ask("HEAD", path) == (200, b"")
    assert ask("GET", path) == (200, WEIGHTS)
    assert ask("GET", path, Range="bytes=10-19") == (206, WEIGHTS[10:20])
    assert ask("GET", path, Range="bytes=3145700-9999999") == (206, WEIGHTS[3145700:])
    assert ask("GET", path, Range="bytes=-5") == (206, WEIGHTS[-5:])
    assert ask("GET", path, Range=f"bytes={len(WEIGHTS)}-") == (416, b"")
    assert connection.sock is socket
    assert len(hub.requests) == 10
    connection.close()


# Who may do what


def test_a_private_repository_is_there_for_its_owner_only(hub: HubServer, ada: HfApi, cache: Path) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS}, private=True)
    bob = hub.token("bob")
    for token, status in ((False, 401), (bob, 404)):
        with pytest.raises(RepositoryNotFoundError) as error:
            download(cache, token=token)
        assert error.value.response.status_code == status
        assert not HfApi(token=token).repo_exists("ada/net")
    assert hub.count("GET", FILE) == 0
    assert download(cache, token=hub.token("ada")) == WEIGHTS


def test_a_gated_repository_is_described_but_not_downloaded(hub: HubServer, ada: HfApi, cache: Path) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS}, gated=True)
    bob = hub.token("bob")
    assert HfApi(token=bob).model_info("ada/net").gated == "manual"
    for token, status in ((False, 401), (bob, 403)):
        with pytest.raises(GatedRepoError) as error:
            download(cache, token=token)
        assert error.value.response.status_code == status
    with pytest.raises(GatedRepoError):
        snapshot_download("ada/net", cache_dir=cache)
    assert download(cache, token=hub.token("ada")) == WEIGHTS


def test_what_is_missing_is_told_apart(hub: HubServer, cache: Path) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    with pytest.raises(RepositoryNotFoundError, match="401"):
        hf_hub_download("ada/nowhere", FILE, cache_dir=cache)
    with pytest.raises(RepositoryNotFoundError, match="404"):
        hf_hub_download("ada/nowhere", FILE, cache_dir=cache, token=hub.token("ada"))
    with pytest.raises(RevisionNotFoundError):
        download(cache, revision="v9")
    with pytest.raises(RevisionNotFoundError):
        snapshot_download("ada/net", cache_dir=cache, revision="v9")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("ada/net", "nowhere.json", cache_dir=cache)


def test_writing_needs_the_right_token(hub: HubServer, ada: HfApi) -> None:
    hub.add_repo("ada/net", {FILE: WEIGHTS})
    change = {"path_or_fileobj": b"{}", "path_in_repo": "config.json", "repo_id": "ada/net"}
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token=False).upload_file(**change)
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(token=hub.token("bob")).upload_file(**change)
    with pytest.raises(HfHubHTTPError, match="403"):
        ada.create_repo("bob/net")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token=False).create_repo("ada/other")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi(token="hf_stale").model_info("ada/net")
    with pytest.raises(RevisionNotFoundError):
        ada.upload_file(**change, revision="nowhere")
    assert hub.count("POST", "/commit/") == 0
