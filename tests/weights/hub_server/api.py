"""The Hub's routes, in the paths, fields and headers that huggingface_hub sends and reads."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote

from .store import (
    LFS_SUFFIXES,
    Blob,
    Commit,
    HubError,
    Repository,
    Store,
    check_namespace,
    unauthorized,
)

DATE = "2025-01-01T00:00:00.000Z"
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class Call:
    """A request that was read to its end."""

    hub_url: str
    method: str
    path: str
    query: Mapping[str, list[str]]
    token: str | None
    user: str | None
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """A response, before ranges and faults."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Route = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []


def answer(store: Store, call: Call) -> Answer:
    """Call the route that `call` asks for."""
    try:
        if call.token and call.user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        method = "GET" if call.method == "HEAD" else call.method
        for route_method, pattern, handle in ROUTES:
            if method == route_method and (match := pattern.fullmatch(call.path)):
                return handle(store, call, **{name: unquote(part) for name, part in match.groupdict().items()})
        # Neither this status nor the next one makes the client try again.
        raise HubError(501, f"tests/hub_server has no route for {call.method} {call.path}")
    except HubError as error:
        return as_json({"error": str(error)}, error.status, error.headers)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        return as_json({"error": f"tests/hub_server cannot read {call.method} {call.path}: {error!r}"}, 400)


def as_json(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(json.dumps(data).encode(), status, {"Content-Type": "application/json", **(headers or {})})


def route(method: str, template: str) -> Callable[[Route], Route]:
    """Register a function for the paths that `template` describes; what its braces name becomes an argument."""
    wide = {"repo": "[^/]+/[^/]+", "path": ".+"}
    pattern = re.sub(r"{(\w+)}", lambda name: f"(?P<{name[1]}>{wide.get(name[1], '[^/]+')})", template)

    def register(handle: Route) -> Route:
        ROUTES.append((method, re.compile(pattern), handle))
        return handle

    return register


@route("GET", "/api/whoami-v2")
def whoami(store: Store, call: Call) -> Answer:
    if call.user is None:
        unauthorized()
    access = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
    return as_json({"type": "user", "name": call.user, "fullname": call.user, "orgs": [], "auth": access})


@route("POST", "/api/validate-yaml")
def validate_yaml(store: Store, call: Call) -> Answer:
    return as_json({"errors": [], "warnings": []})


@route("POST", "/api/repos/create")
def create_repo(store: Store, call: Call) -> Answer:
    if call.user is None:
        unauthorized()
    wanted = call.json()
    if wanted.get("type") not in (None, "model"):
        raise HubError(501, f"tests/hub_server has no {wanted['type']} repositories")
    namespace = wanted.get("organization") or call.user
    check_namespace(namespace, call.user)
    repo_id = f"{namespace}/{wanted['name']}"
    created = {"name": repo_id, "url": f"{call.hub_url}/{repo_id}"}
    if repo_id in store.repositories:
        # With exist_ok, the client takes the address from this answer.
        return as_json({"error": "You already created this model repo", **created}, 409)
    private = wanted.get("private") or wanted.get("visibility") == "private"
    store.create(repo_id, store.blobs({".gitattributes": GITATTRIBUTES}), bool(private))
    return as_json(created)


@route("GET", "/api/models/{repo}")
@route("GET", "/api/models/{repo}/revision/{revision}")
def model_info(store: Store, call: Call, repo: str, revision: str = "main") -> Answer:
    repository = store.visible(repo, call.user)
    commit = repository[revision]
    about = {"id": repo, "modelId": repo, "author": repository.owner, "sha": commit.oid}
    access = {"private": repository.private, "gated": "manual" if repository.gated else False, "disabled": False}
    about |= {**access, "createdAt": DATE, "lastModified": DATE, "downloads": 0, "likes": 0, "tags": []}
    details = "blobs" in call.query
    return as_json({**about, "siblings": [sibling(path, blob, details) for path, blob in sorted(commit.tree.items())]})


def sibling(path: str, blob: Blob, details: bool) -> dict[str, Any]:
    if not details:
        return {"rfilename": path}
    lfs = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    size = {"size": len(blob.data), "blobId": blob.oid}
    return {"rfilename": path, **size, **({"lfs": lfs} if blob.in_lfs else {})}


@route("GET", "/api/models/{repo}/refs")
def list_refs(store: Store, call: Call, repo: str) -> Answer:
    refs = store.visible(repo, call.user).refs
    kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
    found = {
        kind: [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
            for ref, oid in refs.items()
            if ref.startswith(prefix)
        ]
        for kind, prefix in kinds.items()
    }
    return as_json({**found, "converts": []})


@route("GET", "/api/models/{repo}/tree/{revision}")
@route("GET", "/api/models/{repo}/tree/{revision}/{path}")
def list_tree(store: Store, call: Call, repo: str, revision: str, path: str = "") -> Answer:
    commit = store.visible(repo, call.user)[revision]
    below = f"{path}/" if path else ""
    if path and not any(name.startswith(below) for name in commit.tree):
        commit[path]
    entries = [entry for entry in tree_entries(commit) if entry["path"].startswith(below)]
    if call.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
        entries = [entry for entry in entries if "/" not in entry["path"][len(below) :]]
    return as_json(entries)


@route("POST", "/api/models/{repo}/paths-info/{revision}")
def paths_info(store: Store, call: Call, repo: str, revision: str) -> Answer:
    wanted = parse_qs(call.body.decode())["paths"]
    return as_json([e for e in tree_entries(store.visible(repo, call.user)[revision]) if e["path"] in wanted])


def tree_entries(commit: Commit) -> Iterator[dict[str, Any]]:
    folders = {str(folder) for path in commit.tree for folder in PurePosixPath(path).parents} - {"."}
    for folder in sorted(folders):
        yield {"type": "directory", "path": folder, "size": 0, "oid": hashlib.sha1(folder.encode()).hexdigest()}
    for path, blob in sorted(commit.tree.items()):
        lfs = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
        entry = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.oid}
        yield {**entry, **({"lfs": lfs} if blob.in_lfs else {})}


@route("POST", "/api/models/{repo}/branch/{branch}")
def create_branch(store: Store, call: Call, repo: str, branch: str) -> Answer:
    repository = store.writable(repo, call.user)
    repository.new_ref(f"refs/heads/{branch}", repository[call.json().get("startingPoint", "main")])
    return as_json({})


@route("POST", "/api/models/{repo}/tag/{revision}")
def create_tag(store: Store, call: Call, repo: str, revision: str) -> Answer:
    repository = store.writable(repo, call.user)
    repository.new_ref(f"refs/tags/{call.json()['tag']}", repository[revision])
    return as_json({})


@route("POST", "/api/models/{repo}/preupload/{revision}")
def preupload(store: Store, call: Call, repo: str, revision: str) -> Answer:
    tree = to_change(store, call, repo)[revision].tree

    def upload_mode(path: str) -> dict[str, Any]:
        mode = {"path": path, "uploadMode": "lfs" if path.endswith(LFS_SUFFIXES) else "regular", "shouldIgnore": False}
        # Having seen it, the client leaves files that have not changed out of the commit.
        return {**mode, **({"oid": tree[path].etag} if path in tree else {})}

    return as_json({"files": [upload_mode(file["path"]) for file in call.json()["files"]]})


@route("POST", "/{repo}.git/info/lfs/objects/batch")
def lfs_batch(store: Store, call: Call, repo: str) -> Answer:
    to_change(store, call, repo, pull_request="ref" not in call.json())

    def instructions(wanted: dict[str, Any]) -> dict[str, Any]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in store.large_files:
            return entry
        # The real Hub signs an address of its storage, which is why the upload itself carries no token.
        return {**entry, "actions": {"upload": {"href": f"{call.hub_url}/lfs/{wanted['oid']}", "header": {}}}}

    objects = [instructions(wanted) for wanted in call.json()["objects"]]
    return as_json({"transfer": "basic", "hash_algo": "sha256", "objects": objects})


@route("PUT", "/lfs/{sha256}")
def lfs_upload(store: Store, call: Call, sha256: str) -> Answer:
    if hashlib.sha256(call.body).hexdigest() != sha256:
        raise HubError(400, f"What was uploaded does not have the sha256 {sha256}")
    store.large_files[sha256] = call.body
    return Answer(b"")


@route("POST", "/api/models/{repo}/commit/{revision}")
def create_commit(store: Store, call: Call, repo: str, revision: str) -> Answer:
    repository = to_change(store, call, repo)
    base = repository[revision]
    header, *operations = [json.loads(line) for line in call.body.splitlines()]
    if header["value"].get("parentCommit", base.oid) != base.oid:
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    tree = dict(base.tree)
    for operation in operations:
        change(tree, operation["key"], operation["value"], base, store.large_files)

    made = {}
    if "create_pr" in call.query:
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
        made["pullRequestUrl"] = f"{call.hub_url}/{repo}/discussions/{number}"
        oid = repository.commit(f"refs/pr/{number}", tree).oid
    else:
        oid = repository.commit(repository.moving_ref(revision), tree).oid
    return as_json({"success": True, "commitOid": oid, "commitUrl": f"{call.hub_url}/{repo}/commit/{oid}", **made})


def to_change(store: Store, call: Call, repo: str, pull_request: bool = False) -> Repository:
    """The repository, if the caller may change it, or may see it and only proposes a change."""
    if call.user is not None and (pull_request or "create_pr" in call.query):
        return store.visible(repo, call.user)
    return store.writable(repo, call.user)


def change(
    tree: dict[str, Blob], key: str, value: dict[str, Any], base: Commit, large_files: Mapping[str, bytes]
) -> None:
    """Apply one line of a commit to `tree`."""
    path = value["path"]
    if key == "file":
        tree[path] = Blob(base64.b64decode(value["content"]), in_lfs=False)
    elif key == "lfsFile":
        if value["oid"] not in large_files:
            raise HubError(400, f"Your push was rejected because the LFS object {value['oid']} was not uploaded")
        tree[path] = Blob(large_files[value["oid"]], in_lfs=True)
    elif key == "deletedFile":
        if path not in base.tree:
            raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        tree.pop(path, None)
    elif key == "deletedFolder":
        for inside in [name for name in tree if name.startswith(f"{path.rstrip('/')}/")]:
            del tree[inside]
    else:
        raise HubError(501, f"tests/hub_server cannot commit a {key}")


@route("GET", "/{repo}/resolve/{revision}/{path}")
def resolve(store: Store, call: Call, repo: str, revision: str, path: str) -> Answer:
    commit = store.downloadable(repo, call.user)[revision]
    blob = commit[path]
    headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if blob.in_lfs:
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
    return Answer(blob.data, headers={"Content-Type": "application/octet-stream", **headers})
