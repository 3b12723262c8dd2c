"""What the tests' hub keeps and answers, in the paths, fields and headers that huggingface_hub sends and reads."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

Files = Mapping[str, bytes]
LFS_SUFFIXES = (".safetensors", ".bin")


class HubError(Exception):
    """An answer other than success; from `code`, sent as X-Error-Code, the client knows which exception to raise."""

    def __init__(self, status, message, code="", **headers):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


@dataclass
class Repository:
    """A model repository: the files of all its commits, and the names of some."""

    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # branches, tags and pull requests

    @property
    def owner(self):
        return self.id.split("/")[0]

    def oid(self, revision):
        oid = self.names.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def files(self, revision):
        return self.commits[self.oid(revision)]

    def commit(self, name, files):
        oid = hashlib.sha1(f"{self.id} {len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.names[name] = oid
        return oid


# What it answers


@dataclass
class Answer:
    """A response, before ranges and faults."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Call:
    """A request that was read to its end, and who may do it."""

    hub: Any
    method: str
    path: str
    query: str
    token: str
    body: bytes

    @property
    def user(self):
        return self.hub.users.get(self.token)

    def json(self):
        return json.loads(self.body)

    def visible(self, repo_id):
        """The repository, if the caller may know of it: to strangers, a private one looks like a missing one."""
        repository = self.hub.repositories.get(repo_id)
        if repository is not None and (not repository.private or self.user == repository.owner):
            return repository
        raise HubError(401 if self.user is None else 404, "Repository not found", "RepoNotFound")

    def downloadable(self, repo_id):
        repository = self.visible(repo_id)
        if repository.gated and self.user != repository.owner:
            raise HubError(401 if self.user is None else 403, f"Access to model {repo_id} is restricted.", "GatedRepo")
        return repository

    def changeable(self, repo_id, proposal=False):
        """The repository, if the caller may change it, or may see it and only proposes a change."""
        if self.user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        repository = self.visible(repo_id)
        if not proposal and "create_pr" not in self.query:
            self.check_namespace(repository.owner)
        return repository

    def check_namespace(self, namespace):
        if self.user != namespace:
            raise HubError(403, f'You don\'t have the rights to write under the namespace "{namespace}"')


Route = Callable[..., Answer]
ROUTES = []


def answer(call):
    """Call the route that `call` asks for."""
    try:
        if call.token and call.user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        for method, pattern, handle in ROUTES:
            if method == call.method.replace("HEAD", "GET") and (match := pattern.fullmatch(call.path)):
                return handle(call, **{name: unquote(part) for name, part in match.groupdict().items()})
        raise HubError(501, f"the tests' hub has no route for {call.method} {call.path}")  # the client asks once only
    except HubError as error:
        return as_json({"error": str(error)}, error.status, error.headers)


def as_json(data, status=200, headers=None):
    return Answer(json.dumps(data).encode(), status, {"Content-Type": "application/json", **(headers or {})})


def route(method, template):
    """Register a function for the paths that `template` describes; what its braces name becomes an argument."""
    wide = {"repo": "[^/]+/[^/]+", "path": ".+"}
    pattern = re.sub(r"{(\w+)}", lambda name: f"(?P<{name[1]}>{wide.get(name[1], '[^/]+')})", template)

    def register(handle):
        ROUTES.append((method, re.compile(pattern), handle))
        return handle

    return register


@route("POST", "/api/validate-yaml")
def validate_yaml(call):
    return as_json({"errors": [], "warnings": []})


@route("POST", "/api/repos/create")
def create_repo(call):
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    wanted = call.json()
    namespace = wanted.get("organization") or call.user
    call.check_namespace(namespace)
    repo_id = f"{namespace}/{wanted['name']}"
    created = {"name": repo_id, "url": f"{call.hub.url}/{repo_id}"}
    if repo_id in call.hub.repositories:
        return as_json({"error": "You already created this model repo", **created}, 409)
    is_private = bool(wanted.get("private") or wanted.get("visibility") == "private")
    call.hub.add_repo(repo_id, {".gitattributes": b""}, is_private)
    return as_json(created)


@route("GET", "/api/models/{repo}")
@route("GET", "/api/models/{repo}/revision/{revision}")
def model_info(call, repo, revision="main"):
    repository = call.visible(repo)
    siblings = [{"rfilename": path} for path in sorted(repository.files(revision))]
    about = {"id": repo, "sha": repository.oid(revision), "private": repository.private}
    return as_json({**about, "tags": [], "siblings": siblings})


@route("GET", "/api/models/{repo}/tree/{revision}")
def list_tree(call, repo, revision):
    files = call.visible(repo).files(revision)
    return as_json(
        [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in sorted(files.items())
        ]
    )


@route("POST", "/api/models/{repo}/branch/{branch}")
def create_branch(call, repo, branch):
    repository = call.changeable(repo)
    if branch in repository.names:
        raise HubError(409, f"Reference {branch} already exists")
    repository.names[branch] = repository.oid("main")
    return as_json({})


@route("POST", "/api/models/{repo}/tag/{revision}")
def create_tag(call, repo, revision):
    repository = call.changeable(repo)
    repository.names[call.json()["tag"]] = repository.oid(revision)
    return as_json({})


@route("POST", "/api/models/{repo}/preupload/{revision}")
def preupload(call, repo, revision):
    call.changeable(repo).oid(revision)
    paths = [file["path"] for file in call.json()["files"]]
    modes = {path: "lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths}
    files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
    return as_json({"files": files})


@route("POST", "/{repo}.git/info/lfs/objects/batch")
def lfs_batch(call, repo):
    call.changeable(repo, proposal="ref" not in call.json())
    upload = f"{call.hub.url}/lfs"  # the real Hub signs an address of its storage: an upload carries no token
    objects = [
        {**wanted, "actions": {"upload": {"href": f"{upload}/{wanted['oid']}", "header": {}}}}
        for wanted in call.json()["objects"]
    ]
    return as_json({"transfer": "basic", "hash_algo": "sha256", "objects": objects})


@route("PUT", "/lfs/{sha256}")
def lfs_upload(call, sha256):
    if hashlib.sha256(call.body).hexdigest() != sha256:
        raise HubError(400, f"What was uploaded does not have the sha256 {sha256}")
    call.hub.large_files[sha256] = call.body
    return Answer(b"")


@route("POST", "/api/models/{repo}/commit/{revision}")
def create_commit(call, repo, revision):
    repository = call.changeable(repo)
    files = dict(repository.files(revision))
    for operation in [json.loads(line) for line in call.body.splitlines()][1:]:  # after the message
        value = operation["value"]
        if operation["key"] == "lfsFile":
            files[value["path"]] = call.hub.large_files[value["oid"]]
        else:
            files[value["path"]] = base64.b64decode(value["content"])
    made = {}
    if "create_pr" in call.query:
        revision = "refs/pr/1"
        made["pullRequestUrl"] = f"{call.hub.url}/{repo}/discussions/1"
    oid = repository.commit(revision, files)
    return as_json({"success": True, "commitOid": oid, "commitUrl": f"{call.hub.url}/{repo}/commit/{oid}", **made})


@route("GET", "/{repo}/resolve/{revision}/{path}")
def resolve(call, repo, revision, path):
    repository = call.downloadable(repo)
    oid, files = repository.oid(revision), repository.files(revision)
    if path not in files:  # the client remembers for this commit that a file is missing
        raise HubError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": oid})
    data = files[path]
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    headers = {"ETag": etag, "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
    if path.endswith(LFS_SUFFIXES):
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(data))}
    return Answer(data, headers={"Content-Type": "application/octet-stream", **headers})
