"""A reverse proxy that records HTTP requests, delays them and injects faults, for tests and measurements.

Forwards bytes unchanged (the signed Host header too, so signatures stay valid), over kept-alive connections on both
sides: a delay is paid once per request, as on a network. `http_relay` knows the framing; neither knows S3.

Faults (`http_faults`) are set in Python, `proxy.faults`, or over HTTP: `POST /_test/inject-fault` takes one or a list
of them as JSON, `GET` shows those that are set, `DELETE` clears them.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BufferedReader
from urllib.parse import urlsplit

from litevfs.testing.http_faults import HTTPFault, HTTPFaults, faults_of_json
from litevfs.testing.http_relay import (
    Head,
    Reader,
    has_body,
    read_answer_head,
    read_body,
    read_head,
    refuse_body,
    relay_answer,
    relay_body,
    relay_interim,
    with_length,
)

_PIECE_BYTES = _BUFFER_BYTES = 1 << 14
_CONTROL_PATH = "/_test/inject-fault"


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request as the proxy saw it. Headers are keyed in lower case."""

    method: str
    path: str  # percent-encoded, as sent
    query: str
    headers: dict[str, str]
    time: float = 0.0  # time.monotonic() at its arrival, seconds

    @property
    def range(self) -> str | None:
        """The Range header, or None."""
        return self.headers.get("range")


class HTTPProxy:
    """Listens on a free loopback port from construction to `close`.

    `delay_s`, `bytes_per_s` and `faults` may be changed at any time. `seed` makes random faults repeatable, for
    requests that come one after the other.
    """

    def __init__(self, upstream: str, *, delay_s: float = 0.0, seed: int | None = None) -> None:
        parts = urlsplit(upstream)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"not an http endpoint: {upstream}")
        self.delay_s = delay_s  # seconds between a request's arrival and its forwarding
        self.bytes_per_s = 0.0  # of the answers, all connections together; 0: no limit
        self.answered_bytes = 0  # of all answers since the start or the last `clear`, heads included
        self._line_free_at = 0.0  # time.monotonic(), seconds
        self.faults = HTTPFaults(seed=seed)
        self._upstream = (parts.hostname, parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._requests: list[RecordedRequest] = []
        self._unread: list[tuple[Head, float]] = []  # requests to record when they are asked for
        self._sockets: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name="http-proxy-accept", daemon=True)
        self._acceptor.start()

    @property
    def requests(self) -> list[RecordedRequest]:
        """Requests seen since the start or the last `clear`, in order of arrival."""
        with self._lock:
            self._requests += [_recorded(head, at) for head, at in self._unread]
            self._unread.clear()
            return list(self._requests)

    def clear(self) -> None:
        """Forget the requests and bytes seen so far."""
        with self._lock:
            self._requests.clear()
            self._unread.clear()
            self.answered_bytes = 0

    def close(self) -> None:
        """Stop listening, drop all connections, end all threads."""
        self._closing.set()
        _shut(self._listener)
        with self._lock:
            sockets, threads = list(self._sockets), list(self._threads)
        for sock in sockets:
            _shut(sock)
        for thread in [self._acceptor, *threads]:
            thread.join()

    def _accept(self) -> None:
        with self._listener:
            while not self._closing.is_set():
                try:
                    client, _ = self._listener.accept()
                except OSError:
                    return
                thread = threading.Thread(target=self._serve, args=(client,), name="http-proxy", daemon=True)
                with self._lock:
                    if self._closing.is_set():
                        client.close()
                        return
                    self._sockets.add(client)
                    self._threads.add(thread)
                    thread.start()

    def _serve(self, client: socket.socket) -> None:
        upstream: socket.socket | None = None
        try:
            upstream = socket.create_connection(self._upstream)
            with self._lock:
                self._sockets.add(upstream)
            for sock in (both := (client, upstream)):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            from_client, from_server = (BufferedReader(sock.makefile("rb", 0), _BUFFER_BYTES) for sock in both)
            with from_client, from_server:
                while not self._closing.is_set() and self._exchange(from_client, upstream, from_server, client):
                    pass
        except OSError:
            pass  # one side closed its connection: the other sees it when both sockets close
        finally:
            with self._lock:
                self._sockets -= {client, upstream}
                self._threads.discard(threading.current_thread())
            for sock in filter(None, (client, upstream)):
                _shut(sock)
                sock.close()

    def _exchange(
        self, from_client: Reader, upstream: socket.socket, from_server: Reader, client: socket.socket
    ) -> bool:
        """Relay one request and its answer; False when the connection ends with it."""
        head = read_head(from_client)
        if head is None:
            return False
        method, target, _ = head.first.split(" ", 2)
        path = target.partition("?")[0]
        if path == _CONTROL_PATH:
            client.sendall(self._control(method, read_body(head, from_client)))
            return True
        with self._lock:
            self._unread.append((head, time.monotonic()))
        fault = self.faults.take(method, path)
        delay_s = self.delay_s + (self.faults.delay_s(fault) if fault else 0.0)
        if delay_s and self._closing.wait(delay_s):
            return False
        if fault is not None and fault.drop_connection == "before":
            return False
        awaits_consent = head.value("expect").lower() == "100-continue"
        if fault is not None and fault.status:
            if awaits_consent:
                refuse_body(fault.answer(), from_client, client)
                return False
            read_body(head, from_client)
            client.sendall(fault.answer())
            return True
        upstream.sendall(head.data)
        if awaits_consent and not relay_interim(from_server, client):
            return False
        relay_body(head, from_client, upstream)
        if fault is not None and fault.changes_body:
            return self._relay_changed(fault, method, from_server, client)
        return relay_answer(method, from_server, _PacedSocket(client, self))

    def _wait_for_line(self, size: int) -> None:
        """Wait until `size` more bytes of an answer have passed the line that all connections share."""
        with self._lock:
            self.answered_bytes += size
        if self.bytes_per_s:
            with self._lock:
                self._line_free_at = max(self._line_free_at, time.monotonic()) + size / self.bytes_per_s
                passed_at = self._line_free_at
            self._closing.wait(max(0.0, passed_at - time.monotonic()))

    def _relay_changed(self, fault: HTTPFault, method: str, from_server: Reader, client: socket.socket) -> bool:
        head = read_answer_head(from_server)
        if head is None:
            return False
        body = read_body(head, from_server) if has_body(method, head) else b""
        sent, is_end = self.faults.changed_body(fault, body)
        data = with_length(head.data, len(body)) if head.is_chunked else head.data
        client.sendall(data + sent)
        return not is_end and head.value("connection").lower() != "close"

    def _control(self, method: str, body: bytes) -> bytes:
        """Set, show or clear faults; returns the answer."""
        try:
            if method == "POST":
                self.faults.add(*faults_of_json(json.loads(body)))
            elif method == "DELETE":
                self.faults.clear()
        except ValueError as error:
            return _json_answer("400 Bad Request", {"error": str(error)})
        return _json_answer("200 OK", [asdict(fault) for fault in self.faults.active])


class _PacedSocket:
    """A socket that sends no faster than the line allows."""

    def __init__(self, sock: socket.socket, proxy: HTTPProxy) -> None:
        self._socket = sock
        self._proxy = proxy

    def sendall(self, data: bytes) -> None:
        """Send the bytes, over a line with a limit in pieces small enough for connections to take turns."""
        piece_bytes = _PIECE_BYTES if self._proxy.bytes_per_s else max(len(data), 1)
        for start in range(0, len(data), piece_bytes):
            piece = data[start : start + piece_bytes]
            self._proxy._wait_for_line(len(piece))
            self._socket.sendall(piece)


@contextmanager
def running_s3_proxy(upstream: str, *, delay_s: float = 0.0, seed: int | None = None) -> Iterator[HTTPProxy]:
    """An `HTTPProxy` in front of the endpoint `upstream` (`http://host:port`), closed at the end."""
    proxy = HTTPProxy(upstream, delay_s=delay_s, seed=seed)
    try:
        yield proxy
    finally:
        proxy.close()


def _recorded(head: Head, at: float) -> RecordedRequest:
    method, target, _ = head.first.split(" ", 2)
    path, _, query = target.partition("?")
    pairs = (line.partition(":") for line in head.data.decode("latin-1").split("\r\n")[1:] if line)
    return RecordedRequest(method, path, query, {name.lower(): value.strip() for name, _, value in pairs}, at)


def _json_answer(status: str, value: object) -> bytes:
    body = json.dumps(value).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # not connected any more
