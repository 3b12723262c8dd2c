"""A Hugging Face Hub on loopback, real enough for the real `huggingface_hub`, that fails when a test tells it to."""

import hashlib
import math
import os
import re
import socket
import socketserver
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from .hub_api import Call, Repository, answer, as_json


class Request(NamedTuple):
    """What somebody asked for, and what they got; `status` is 0 where the hub stayed silent."""

    method: str
    path: str
    range: str | None
    user: str | None
    status: int
    sent: int


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
    """A Hub for as long as its `with` lasts.

        with HubServer() as hub:
            commit = hub.add_repo("ada/net", {"config.json": b"{}", "model.safetensors": weights})
            hub.fault("model.safetensors", cut_after=1000, times=1)
            hf_hub_download("ada/net", "model.safetensors", endpoint=hub.url, cache_dir=tmp_path)
            assert hub.count("GET", "model.safetensors") == 2

    A file is downloaded from /<repo>/resolve/<revision>/<file>, a large one is uploaded to /lfs/<sha256>; everything
    else is asked of /api/.
    """

    def __init__(self):
        self.users = {}
        self.repositories = {}
        self.large_files = {}
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._requests = []
        self._faults = []
        self._listener = Listener(self)
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.closing.set()
        self._listener.shutdown()
        self._listener.server_close()
        self._listener.drop_connections()

    def token(self, user):
        """The token of a user, who is made by it."""
        token = "hf_" + hashlib.sha1(user.encode()).hexdigest()[:34]
        self.users[token] = user
        return token

    def add_repo(self, repo_id, files, private=False, gated=False):
        """Make a repository with just these files, or make it anew, and return the hash of its commit."""
        with self.lock:
            repository = self.repositories[repo_id] = Repository(repo_id, private, gated)
            return repository.commit("main", files)

    def read(self, repo_id, path):
        """A file's content on main, whoever may see it."""
        with self.lock:
            return self.repositories[repo_id].files("main")[path]

    @property
    def requests(self):
        """Everything that was asked so far, in order."""
        with self.lock:
            return self._requests.copy()

    def count(self, method, part=""):
        """How many requests had this method, and this part in their path."""
        return sum(request.method == method and part in request.path for request in self.requests)

    def clear(self):
        """Forget what was asked; faults stay."""
        with self.lock:
            self._requests.clear()

    def log(self, request):
        with self.lock:
            self._requests.append(request)

    def fault(self, part, **options):
        """Spoil the answers to requests with this part in their path (`Fault`); of several faults, the oldest first."""
        with self.lock:
            self._faults.append(Fault(part, **options))

    def heal(self):
        """Forget all faults."""
        with self.lock:
            self._faults.clear()

    def next_fault(self, method, path):
        with self.lock:
            for fault in self._faults:
                if fault.concerns(method, path):
                    fault.times -= 1
                    return fault
        return Fault("")


@dataclass
class Fault:
    """Something that goes wrong.

    Attributes:
        part: of the path of the requests that it concerns.
        method: of these requests; any by default, though `cut_after` and `flip_at` spare HEAD.
        times: after so many requests all is well again; a HEAD and the GET after it are two.
        status: do nothing, and answer with this.
        delay: do what was asked, and answer so many seconds later.
        silent: do nothing, and never answer.
        cut_after: hang up after so many bytes of the body.
        flip_at: flip a bit of this byte of the file, under the ETag of the sound one.
        truncate_to: serve a file that has only so many bytes left, and says so, under the ETag of the whole one.
    """

    part: str
    method: str | None = None
    times: float = math.inf
    status: int | None = None
    delay: float = 0.0
    silent: bool = False
    cut_after: int | None = None
    flip_at: int | None = None
    truncate_to: int | None = None

    def concerns(self, method, path):
        if method == "HEAD" and (self.cut_after is not None or self.flip_at is not None):
            return False  # there is no body to harm, and `times` is meant for the download that follows
        return self.times > 0 and self.method in (None, method) and self.part in path

    def spoil(self, answer):
        """Let the file in an answer rot."""
        if answer.status == 200:
            body = bytearray(answer.body[: self.truncate_to])
            if self.flip_at is not None:
                body[self.flip_at] ^= 1
            answer.body = bytes(body)
            if "X-Linked-Size" in answer.headers:
                answer.headers["X-Linked-Size"] = str(len(body))


class Handler(BaseHTTPRequestHandler):
    """Serves one connection, request by request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the client waits 40 ms for a body that follows its headers

    def __init__(self, hub, *args):
        self.hub = hub
        super().__init__(*args)

    def do_GET(self):
        call = self._read()
        path = unquote(call.path)
        fault = self.hub.next_fault(call.method, path)
        asked = self.headers.get("Range")
        if fault.silent:
            self.hub.log(Request(call.method, path, asked, call.user, status=0, sent=0))
            self.hub.closing.wait()
            self.close_connection = True
            return
        if fault.status is not None:
            found = as_json({"error": f"the tests' hub was told to answer {fault.status}"}, fault.status)
        else:
            with self.hub.lock:
                found = answer(call)
        fault.spoil(found)
        from_range(found, asked)
        body = b"" if call.method == "HEAD" else found.body
        sent = body[: fault.cut_after]
        # before it is sent: a test that has the last byte may look at once
        self.hub.log(Request(call.method, path, asked, call.user, found.status, len(sent)))
        self.hub.closing.wait(fault.delay)
        self.send_response(found.status)
        for name, value in {**found.headers, "Content-Length": str(len(found.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)
        self.close_connection |= len(sent) < len(body)

    do_HEAD = do_POST = do_PUT = do_GET

    def _read(self):
        # to the end, even if it is not wanted: the next request on this connection comes after it
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = urlsplit(self.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return Call(self.hub, self.command, address.path, address.query, token, body)

    def _chunks(self):
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def log_message(self, format, *args):
        pass  # the hub keeps a log of its own


def from_range(answer, asked):
    """Leave of a file what a Range header asks for, all from a byte on."""
    match = re.fullmatch(r"bytes=(\d+)-", asked or "")
    if match is not None and answer.headers.get("Accept-Ranges") == "bytes":
        start, size = int(match[1]), len(answer.body)
        answer.body, answer.status = answer.body[start:], 206
        answer.headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"


class Listener(socketserver.ThreadingTCPServer):
    """Accepts connections on loopback, and can drop all of them at once."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub):
        self.connections = set()
        super().__init__(("127.0.0.1", 0), lambda *args: Handler(hub, *args))

    def get_request(self):
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def close_request(self, request):
        self.connections.discard(request)
        super().close_request(request)

    def drop_connections(self):
        # a client keeps its connections for later; their threads would wait for it for ever
        for connection in self.connections.copy():
            with suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients may hang up
            super().handle_error(request, client_address)
