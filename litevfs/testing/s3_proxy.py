"""A reverse proxy that records and delays HTTP requests, to count them and to measure under latency.

Forwards bytes as they are (the signed Host header too, so signatures stay valid), over kept-alive connections on both
sides: a delay is paid once per request, as on a network. Knows HTTP/1.1 framing and nothing of S3.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from urllib.parse import urlsplit

_CHUNK_BYTES = 1 << 17
_HEAD_LIMIT_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request as the proxy saw it. Headers are keyed in lower case."""

    method: str
    path: str  # percent-encoded, as sent
    query: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        """The Range header, or None."""
        return self.headers.get("range")


class HTTPProxy:
    """Listens on a free loopback port from construction to `close`; `delay_s` may be changed at any time."""

    def __init__(self, upstream: str, *, delay_s: float = 0.0) -> None:
        parts = urlsplit(upstream)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"not an http endpoint: {upstream}")
        self.delay_s = delay_s  # seconds between a request's arrival and its forwarding
        self._upstream = (parts.hostname, parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._requests: list[RecordedRequest] = []
        self._sockets: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name="http-proxy-accept", daemon=True)
        self._acceptor.start()

    @property
    def requests(self) -> list[RecordedRequest]:
        """Requests seen since the start or the last `clear`, in order of arrival."""
        with self._lock:
            return list(self._requests)

    def clear(self) -> None:
        """Forget the requests seen so far."""
        with self._lock:
            self._requests.clear()

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
            for sock in client, upstream:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with (
                client.makefile("rb") as from_client,
                upstream.makefile("rb") as from_server,
            ):
                while not self._closing.is_set() and self._exchange(from_client, upstream, from_server, client):
                    pass
        except OSError:
            pass  # one side hung up: the other sees it when both sockets close
        finally:
            with self._lock:
                self._sockets -= {client, upstream}
                self._threads.discard(threading.current_thread())
            for sock in filter(None, (client, upstream)):
                _shut(sock)
                sock.close()

    def _exchange(
        self, from_client: BufferedReader, upstream: socket.socket, from_server: BufferedReader, client: socket.socket
    ) -> bool:
        """Relay one request and its answer; False when the connection ends with it."""
        head = _read_head(from_client)
        if head is None:
            return False
        request_line, headers = _parse_head(head)
        method, target, _ = request_line.split(" ", 2)
        path, _, query = target.partition("?")
        with self._lock:
            self._requests.append(RecordedRequest(method, path, query, headers))
        if self.delay_s and self._closing.wait(self.delay_s):
            return False
        upstream.sendall(head)
        if headers.get("expect", "").lower() == "100-continue" and not _relay_interim(from_server, client):
            return False
        _relay_body(headers, from_client, upstream)
        return _relay_answer(method, from_server, client)


@contextmanager
def running_s3_proxy(upstream: str, *, delay_s: float = 0.0) -> Iterator[HTTPProxy]:
    """An `HTTPProxy` before the endpoint `upstream` (`http://host:port`), closed at the end."""
    proxy = HTTPProxy(upstream, delay_s=delay_s)
    try:
        yield proxy
    finally:
        proxy.close()


def _relay_interim(from_server: BufferedReader, client: socket.socket) -> bool:
    """Relay the answer to `Expect: 100-continue`; False when it is a final one, which ends the connection."""
    head = _read_head(from_server)
    if head is None:
        return False
    client.sendall(head)
    status_line, headers = _parse_head(head)
    if status_line.split(" ", 2)[1] == "100":
        return True
    _relay_body(headers, from_server, client)
    return False


def _relay_answer(method: str, from_server: BufferedReader, client: socket.socket) -> bool:
    head = _read_head(from_server)
    while head is not None and head[9:12] == b"100":
        head = _read_head(from_server)
    if head is None:
        return False
    client.sendall(head)
    status_line, headers = _parse_head(head)
    status = int(status_line.split(" ", 2)[1])
    if method != "HEAD" and status not in (204, 304):
        _relay_body(headers, from_server, client)
    return headers.get("connection", "").lower() != "close"


def _read_head(stream: BufferedReader) -> bytes | None:
    """A message up to its empty line, or None at the end of the stream."""
    lines: list[bytes] = []
    size = 0
    while size < _HEAD_LIMIT_BYTES:
        line = stream.readline(_HEAD_LIMIT_BYTES)
        if not line.endswith(b"\n"):
            return None
        lines.append(line)
        size += len(line)
        if line == b"\r\n" and len(lines) > 1:
            return b"".join(lines)
    return None


def _parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return first, {name.lower(): value.strip() for name, _, value in pairs}


def _relay_body(headers: dict[str, str], source: BufferedReader, target: socket.socket) -> None:
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := _relay_line(source, target):
            _relay_bytes(source, target, size + 2)
        while source_line := source.readline(_HEAD_LIMIT_BYTES):
            target.sendall(source_line)
            if source_line == b"\r\n":
                return
    else:
        _relay_bytes(source, target, int(headers.get("content-length", "0")))


def _relay_line(source: BufferedReader, target: socket.socket) -> int:
    line = source.readline(_HEAD_LIMIT_BYTES)
    target.sendall(line)
    return int(line.split(b";")[0], 16) if line else 0


def _relay_bytes(source: BufferedReader, target: socket.socket, size: int) -> None:
    while size:
        data = source.read1(min(size, _CHUNK_BYTES))
        if not data:
            raise ConnectionError("closed in mid-body")
        target.sendall(data)
        size -= len(data)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # not connected any more
