"""What the tests' hub keeps and answers, in the paths, fields and headers that huggingface_hub sends and reads."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

ROUTES = []


class HubError(Exception):
    """An answer other than success; from `code`, sent as X-Error-Code, the client knows which exception to raise."""

    def __init__(self, status, message, code="", **headers):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


@dataclass
class Repository:
    """A model repository: the files of all its commits, and the commits that branches, tags and the like name."""

    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def oid(self, revision):
        oid = self.names.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def files(self, revision="main"):
        return self.commits[self.oid(revision)]

    def commit(self, name, files):
        oid = hashlib.sha1(f"{self.id} {len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.names[name] = oid
        return oid


@dataclass
class Answer:
    """A response, before ranges and faults."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def refused(call, status, *args):
    return HubError(status if call.user else 401, *args)


def open_repository(call, repo_id):
    """The repository, if the caller may open it: to strangers, a private one looks like a missing one."""
    found = call.hub.repositories.get(repo_id)
    is_owner = call.user == repo_id.split("/")[0]
    if found is None or (found.private and not is_owner):
        raise refused(call, 404, "Repository not found", "RepoNotFound")
    if found.gated and not is_owner:
        raise refused(call, 403, f"Access to model {repo_id} is restricted.", "GatedRepo")
    return found


def answer(call):
    """Call the route for a request that the server's `Handler` has read to its end."""
    try:
        for method, pattern, handle in ROUTES:
            if method == call.command.replace("HEAD", "GET") and (match := pattern.fullmatch(call.path)):
                return handle(call, **{name: unquote(part) for name, part in match.groupdict().items()})
        raise HubError(501, f"the tests' hub has no route for {call.command} {call.path}")  # the client asks once only
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
    wanted = json.loads(call.body)
    namespace = wanted.get("organization") or call.user
    if not call.user or namespace != call.user:
        raise refused(call, 403, f'You don\'t have the rights to write under the namespace "{namespace}"')
    repo_id = f"{namespace}/{wanted['name']}"
    is_new = repo_id not in call.hub.repositories
    if is_new:
        is_private = bool(wanted.get("private") or wanted.get("visibility") == "private")
        call.hub.add_repo(repo_id, {".gitattributes": b""}, is_private)
    return as_json({"name": repo_id, "url": f"{call.hub.url}/{repo_id}"}, 200 if is_new else 409)


@route("POST", "/api/models/{repo}/branch/{branch}")
def create_branch(call, repo, branch):
    repository = open_repository(call, repo)
    repository.names[branch] = repository.oid("main")
    return as_json({})


@route("POST", "/api/models/{repo}/preupload/{revision}")
def preupload(call, repo, revision):
    open_repository(call, repo).oid(revision)
    # the real Hub has large files uploaded to a storage first; this one takes them in the commit
    files = json.loads(call.body)["files"]
    return as_json({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]})


@route("POST", "/api/models/{repo}/commit/{revision}")
def create_commit(call, repo, revision):
    repository = open_repository(call, repo)
    files = dict(repository.files(revision))
    for line in call.body.splitlines()[1:]:  # after the message
        file = json.loads(line)["value"]
        files[file["path"]] = base64.b64decode(file["content"])
    address, is_proposed = f"{call.hub.url}/{repo}", "create_pr" in call.query
    oid = repository.commit("refs/pr/1" if is_proposed else revision, files)
    made = {"pullRequestUrl": f"{address}/discussions/1"} if is_proposed else {}
    return as_json({"success": True, "commitOid": oid, "commitUrl": f"{address}/commit/{oid}", **made})


@route("GET", "/{repo}/resolve/{revision}/{path}")
def resolve(call, repo, revision, path):
    repository = open_repository(call, repo)
    oid, files = repository.oid(revision), repository.files(revision)
    if path not in files:  # the client remembers for this commit that a file is missing
        raise HubError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": oid})
    etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    return Answer(files[path], headers={"ETag": etag, "X-Repo-Commit": oid, **headers})
