"""A Hugging Face Hub on loopback, real enough for the real `huggingface_hub`, that fails when a test tells it to."""

import math
import os
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from .hub_api import Repository, answer, as_json


class Request(NamedTuple):
    """What somebody asked for; `status` is 0 where the hub stayed silent."""

    method: str
    path: str
    range: str | None
    status: int


def redirect_client(monkeypatch, url):
    """Let the `huggingface_hub` of this process talk to a hub, over plain HTTP and as nobody in particular."""
    from huggingface_hub import constants, file_download, hf_api

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(hf_api.api, "endpoint", url)  # read when the module was imported
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # 0.30 looks in the second
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # younger than 0.30
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # it would ask the hub for more
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


class HubServer:
    """A Hub for as long as its `with` lasts: files lie at /<repo>/resolve/<revision>/<file>, the rest at /api/."""

    def __init__(self):
        self.repositories = {}
        self.requests = []  # everything that was asked, in order
        self.faults = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._listener.server_port}"

    def __enter__(self):
        threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.closing.set()
        self._listener.shutdown()
        self._listener.server_close()

    def token(self, user):
        return f"hf_{user}"

    def add_repo(self, repo_id, files, private=False, gated=False):
        """Make a repository with just these files, or make it anew, and return the hash of its commit."""
        repository = self.repositories[repo_id] = Repository(repo_id, private, gated)
        return repository.commit("main", files)

    def count(self, method, part=""):
        """How many requests had this method, and this part in their path."""
        return sum(request.method == method and part in request.path for request in self.requests)

    def fault(self, part, **options):
        """Spoil the answers to requests with this part in their path (`Fault`); of several faults, the oldest first."""
        self.faults.append(Fault(part, **options))

    def next_fault(self, method, path):
        for fault in self.faults:
            if fault.times > 0 and fault.method in (None, method) and fault.part in path:
                fault.times -= 1
                return fault
        return Fault("")


@dataclass
class Fault:
    """Something that goes wrong."""

    part: str  # of the path of the requests that it concerns
    method: str | None = None  # of these requests; any by default
    times: float = math.inf  # after so many requests all is well again; a HEAD and the GET after it are two
    status: int | None = None  # do nothing, and answer with this
    delay: float = 0.0  # do what was asked, and answer so many seconds later
    silent: bool = False  # do nothing, and never answer
    cut_after: int | None = None  # hang up after so many bytes of the body
    rot: Any = None  # serve what this function makes of the file, under the ETag of the sound one


class Handler(BaseHTTPRequestHandler):
    """Serves one request to `hub`."""

    def do_GET(self):
        self.path, _, self.query = self.path.partition("?")
        self.user = self.headers.get("Authorization", "").removeprefix("Bearer hf_")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = self.headers.get("Range")
        with self.hub.lock:
            fault = self.hub.next_fault(self.command, self.path)
            if fault.silent:
                found = as_json(None, status=0)
            elif fault.status is not None:
                found = as_json({"error": f"the tests' hub was told to answer {fault.status}"}, fault.status)
            else:
                found = answer(self)
            if fault.rot is not None and found.status == 200:
                found.body = fault.rot(found.body)
            start = re.fullmatch(r"bytes=(\d+)-", asked or "")
            if start and "Accept-Ranges" in found.headers:
                first, size = int(start[1]), len(found.body)
                found.body, found.status = found.body[first:], 206
                found.headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
            # before it is sent: a test that has the last byte may look at once
            self.hub.requests.append(Request(self.command, self.path, asked, found.status))
        if fault.silent:
            self.hub.closing.wait()
            return
        self.hub.closing.wait(fault.delay)
        self.send_response(found.status)
        for name, value in {**found.headers, "Content-Length": str(len(found.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(found.body[: fault.cut_after])

    do_HEAD = do_POST = do_GET

    def log_message(self, format, *args):
        pass  # the hub keeps a log of its own
