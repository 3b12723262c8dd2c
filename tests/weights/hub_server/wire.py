"""The hub's end of a connection: reads requests, writes answers down, and spoils those that a test wants spoilt."""

from __future__ import annotations

import math
import re
import socket
import socketserver
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from . import api
from .api import Answer, Call

if TYPE_CHECKING:
    from . import HubServer

Pattern = str | re.Pattern[str]


@dataclass(frozen=True)
class Request:
    """What somebody asked for, and what they got; `status` is 0 where the hub stayed silent."""

    method: str
    path: str
    range: str | None
    user: str | None
    status: int
    sent: int


@dataclass
class Fault:
    """Something that goes wrong with the requests whose path has `pattern`; see `HubServer.fault`."""

    pattern: Pattern
    method: str | None = None
    times: float = math.inf
    status: int | None = None
    delay: float = 0.0
    silent: bool = False
    cut_after: int | None = None
    flip_at: int | None = None
    truncate_to: int | None = None

    def concerns(self, method: str, path: str) -> bool:
        if method == "HEAD" and (self.cut_after is not None or self.flip_at is not None):
            return False  # there is no body to harm, and `times` is meant for the download that follows
        return self.times > 0 and self.method in (None, method) and matches(self.pattern, path)

    def spoil(self, answer: Answer) -> Answer:
        """The answer from a store in which the file has rotted."""
        if answer.status != 200:
            return answer
        body = bytearray(answer.body[: self.truncate_to])
        if self.flip_at is not None:
            body[self.flip_at] ^= 1
        size = {"X-Linked-Size": str(len(body))} if "X-Linked-Size" in answer.headers else {}
        return replace(answer, body=bytes(body), headers={**answer.headers, **size})


class Handler(BaseHTTPRequestHandler):
    """Serves one connection, request by request."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the client waits 40 ms for a body that follows its headers

    def __init__(self, hub: HubServer, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def do_GET(self) -> None:
        call = self._read()
        path = unquote(call.path)
        fault = self.hub.next_fault(call.method, path)
        asked_range = self.headers.get("Range")

        if fault.silent:
            self.hub.log(Request(call.method, path, asked_range, call.user, status=0, sent=0))
            self.hub.closing.wait()
            self.close_connection = True
            return

        if fault.status is not None:
            answer = api.as_json({"error": f"tests/hub_server was told to answer {fault.status}"}, fault.status)
        else:
            with self.hub.lock:
                answer = api.answer(self.hub.store, call)
        answer = one_range(fault.spoil(answer), asked_range)
        body = b"" if call.method == "HEAD" else answer.body
        sent = body[: fault.cut_after]
        # Before it is sent: a test that has the last byte may look at once.
        self.hub.log(Request(call.method, path, asked_range, call.user, answer.status, len(sent)))
        self.hub.closing.wait(fault.delay)
        self._write(answer, sent)
        if len(sent) < len(body):
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _read(self) -> Call:
        # To the end, even if it is not wanted: the next request on this connection comes after it.
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(iter(self._read_chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = urlsplit(self.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        user = self.hub.store.users.get(token or "")
        query = parse_qs(address.query, keep_blank_values=True)
        return Call(self.hub.url, self.command, address.path, query, token, user, body)

    def _read_chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        chunk = self.rfile.read(size)
        self.rfile.readline()
        return chunk

    def _write(self, answer: Answer, body: bytes) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the hub keeps a log of its own


class Listener(socketserver.ThreadingTCPServer):
    """Accepts connections on loopback, and can drop all of them at once."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: HubServer) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), lambda *args: Handler(hub, *args))

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def close_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().close_request(request)

    def drop_connections(self) -> None:
        # A client keeps its connections for later; their threads would wait for it for ever.
        for connection in self.connections.copy():
            with suppress(OSError):  # the client was faster
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients may hang up
            super().handle_error(request, client_address)


def matches(pattern: Pattern, path: str) -> bool:
    """Whether `path` contains the string, or a match of the regular expression."""
    return pattern in path if isinstance(pattern, str) else bool(pattern.search(path))


def one_range(answer: Answer, asked: str | None) -> Answer:
    """The part of a file that a Range header asks for."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
    if match is None or match[0] == "bytes=-" or answer.headers.get("Accept-Ranges") != "bytes":
        return answer
    size = len(answer.body)
    if match[1]:
        start, stop = int(match[1]), min(int(match[2] or size) + 1, size)
    else:
        start, stop = max(size - int(match[2]), 0), size
    if start >= stop:
        return Answer(b"", 416, {**answer.headers, "Content-Range": f"bytes */{size}"})
    part = {**answer.headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return Answer(answer.body[start:stop], 206, part)
