"""A Hugging Face Hub on loopback, real enough for the real `huggingface_hub`, that fails when a test tells it to."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .store import Store
from .wire import Fault, Listener, Pattern, Request, matches

if TYPE_CHECKING:
    import pytest

__all__ = ["Fault", "HubServer", "Request"]

NO_FAULT = Fault("")


class HubServer:
    """A Hub for as long as its `with` lasts.

        with HubServer() as hub:
            commit = hub.add_repo("ada/net", {"config.json": b"{}", "model.safetensors": weights})
            hub.fault("model.safetensors", cut_after=1000, times=1)
            hf_hub_download("ada/net", "model.safetensors", endpoint=hub.url, cache_dir=tmp_path)
            assert hub.count("GET", "model.safetensors") == 2

    A `pattern` is a string that the path contains, or a compiled regular expression. A file is downloaded from
    /<repo>/resolve/<revision>/<file>, a large one is uploaded to /lfs/<sha256>, and everything else is asked of /api/.
    """

    def __init__(self) -> None:
        self.store = Store()
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._requests: list[Request] = []
        self._faults: list[Fault] = []
        self._listener = Listener(self)
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self._listener.shutdown()
        self._listener.server_close()
        self._listener.drop_connections()

    # Clients

    @property
    def environ(self) -> dict[str, str]:
        """What a child process needs in its environment to do as after `redirect_client`; add HF_TOKEN to log in."""
        nobody = {"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": "", "HF_TOKEN_PATH": os.devnull}
        plain = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
        return {"HF_ENDPOINT": self.url, **plain, **nobody}

    def redirect_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the `huggingface_hub` of this process talk to this hub, over plain HTTP and as nobody in particular."""
        from huggingface_hub import constants, file_download, hf_api

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(hf_api.api, "endpoint", self.url)  # read when the module was imported
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):  # 0.30 looks in the second
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # younger than 0.30
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # it would ask the hub for more
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)

    def token(self, user: str) -> str:
        """The token of `user`, who comes into being with it."""
        token = "hf_" + hashlib.sha1(user.encode()).hexdigest()[:34]
        self.store.users[token] = user
        return token

    # Repositories, without a client

    def add_repo(self, repo_id: str, files: Mapping[str, bytes], private: bool = False, gated: bool = False) -> str:
        """Make a repository with just these files, or make it anew, and return the hash of its commit."""
        with self.lock:
            return self.store.create(repo_id, self.store.blobs(files), private, gated).head.oid

    def commit(self, repo_id: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add or overwrite files, and return the hash of the commit."""
        with self.lock:
            repository = self.store.repositories[repo_id]
            tree = {**repository[branch].tree, **self.store.blobs(files)}
            return repository.commit(repository.moving_ref(branch), tree).oid

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """A file's content, whoever may see it."""
        with self.lock:
            return self.store.repositories[repo_id][revision][path].data

    # What was asked

    @property
    def requests(self) -> list[Request]:
        """Everything that was asked so far, in order."""
        with self.lock:
            return self._requests.copy()

    def count(self, method: str, pattern: Pattern = "") -> int:
        return sum(request.method == method and matches(pattern, request.path) for request in self.requests)

    def clear(self) -> None:
        """Forget what was asked; faults stay."""
        with self.lock:
            self._requests.clear()

    def log(self, request: Request) -> None:
        with self.lock:
            self._requests.append(request)

    # What goes wrong

    def fault(
        self,
        pattern: Pattern,
        *,
        method: str | None = None,
        times: float = math.inf,
        status: int | None = None,
        delay: float = 0.0,
        silent: bool = False,
        cut_after: int | None = None,
        flip_at: int | None = None,
        truncate_to: int | None = None,
    ) -> None:
        """Spoil the next `times` answers to `method` whose path has `pattern`; of several faults, the oldest first.

        Args:
            pattern: Says which paths.
            method: Says which requests; any by default, though `cut_after` and `flip_at` spare HEAD.
            times: After so many requests all is well again; a HEAD and the GET after it are two.
            status: Do nothing, and answer with this.
            delay: Do what was asked, and answer so many seconds later.
            silent: Do nothing, and never answer.
            cut_after: Hang up after so many bytes of the body.
            flip_at: Flip a bit of this byte of the file, under the ETag of the sound one.
            truncate_to: Serve a file that has only so many bytes left, and says so, under the ETag of the whole one.
        """
        fault = Fault(pattern, method, times, status, delay, silent, cut_after, flip_at, truncate_to)
        with self.lock:
            self._faults.append(fault)

    def heal(self) -> None:
        """Forget all faults."""
        with self.lock:
            self._faults.clear()

    def next_fault(self, method: str, path: str) -> Fault:
        with self.lock:
            for fault in self._faults:
                if fault.concerns(method, path):
                    fault.times -= 1
                    return fault
        return NO_FAULT
