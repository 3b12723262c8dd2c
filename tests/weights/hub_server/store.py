"""What the hub keeps: users, and repositories with every commit they ever had; and who may see and change what."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

# Of the suffixes in the .gitattributes of a new model repository, those a model zoo meets.
LFS_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".h5", ".npz", ".onnx", ".pt", ".pt2", ".pth", ".tflite", ".zip")


class HubError(Exception):
    """An answer other than success; from `code`, sent as X-Error-Code, the client knows which exception to raise."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


@dataclass(frozen=True)
class Blob:
    """A file's content, and whether git holds it or only a pointer to it."""

    data: bytes
    in_lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        header = "version https://git-lfs.github.com/spec/v1"
        return f"{header}\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @cached_property
    def oid(self) -> str:
        content = self.pointer if self.in_lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.in_lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """The whole tree at one time, so that old revisions stay downloadable."""

    oid: str
    tree: Mapping[str, Blob]

    def __getitem__(self, path: str) -> Blob:
        if path not in self.tree:
            # The client remembers per commit that a file is missing.
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": self.oid})
        return self.tree[path]


@dataclass
class Repository:
    """A model repository: its commits, and the branches, tags and pull requests that name them."""

    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    @property
    def head(self) -> Commit:
        return self[self.refs["refs/heads/main"]]

    def __getitem__(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a pull request's ref or a commit hash stands for."""
        for prefix in ("refs/heads/", "refs/tags/", ""):
            if oid := self.refs.get(prefix + revision):
                return self.commits[oid]
        if revision not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[revision]

    def moving_ref(self, revision: str) -> str:
        """The ref that a commit to `revision` moves on; tags and commit hashes stay where they are."""
        for ref in (f"refs/heads/{revision}", revision):
            if ref in self.refs and not ref.startswith("refs/tags/"):
                return ref
        raise HubError(400, f"Cannot commit to {revision}: it is neither a branch nor a pull request.")

    def new_ref(self, ref: str, target: Commit) -> None:
        if ref in self.refs:
            raise HubError(409, f"Reference {ref} already exists")
        self.refs[ref] = target.oid

    def commit(self, ref: str, tree: Mapping[str, Blob]) -> Commit:
        # Counting the commits gives the same files, committed again, a new hash.
        files = "".join(f"\n{path} {blob.oid}" for path, blob in sorted(tree.items()))
        oid = hashlib.sha1(f"{self.id} {len(self.commits)}{files}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, dict(tree))
        self.refs[ref] = oid
        return self.commits[oid]


class Store:
    """All repositories, all users by their tokens, and the large files that were uploaded ahead of their commit."""

    def __init__(self) -> None:
        self.users: dict[str, str] = {}
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}

    def blobs(self, files: Mapping[str, bytes]) -> dict[str, Blob]:
        """A tree of these files, the large ones uploaded."""
        tree = {path: Blob(data, path.endswith(LFS_SUFFIXES)) for path, data in files.items()}
        self.large_files |= {blob.sha256: blob.data for blob in tree.values() if blob.in_lfs}
        return tree

    def create(self, repo_id: str, tree: Mapping[str, Blob], private: bool = False, gated: bool = False) -> Repository:
        repository = self.repositories[repo_id] = Repository(repo_id, private, gated)
        repository.commit("refs/heads/main", tree)
        return repository

    def visible(self, repo_id: str, user: str | None) -> Repository:
        """The repository, if `user` may know of it: to strangers, a private one looks like a missing one."""
        repository = self.repositories.get(repo_id)
        if repository is not None and (not repository.private or user == repository.owner):
            return repository
        if user is None:
            unauthorized("RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def downloadable(self, repo_id: str, user: str | None) -> Repository:
        """The repository, if `user` may have its files."""
        repository = self.visible(repo_id, user)
        if repository.gated and user != repository.owner:
            reason = "You must have access to it and be authenticated to access it. Please log in."
            if user is not None:
                reason = "You are not in the authorized list. Visit the model's page to ask for access."
            message = f"Access to model {repo_id} is restricted. {reason}"
            raise HubError(401 if user is None else 403, message, "GatedRepo")
        return repository

    def writable(self, repo_id: str, user: str | None) -> Repository:
        """The repository, if `user` may change it."""
        if user is None:
            # The client takes every 401 below https://…/api/models/ for a missing repository, code or no code.
            # Here it sees http://, so that the code has to tell it.
            unauthorized("RepoNotFound")
        repository = self.visible(repo_id, user)
        check_namespace(repository.owner, user)
        return repository


def unauthorized(code: str = "") -> NoReturn:
    """Refuse somebody who has shown no token."""
    raise HubError(401, "Invalid username or password.", code)


def check_namespace(namespace: str, user: str) -> None:
    """Refuse `user` whatever is not theirs."""
    if user != namespace:
        raise HubError(403, f'You don\'t have the rights to write under the namespace "{namespace}"')
