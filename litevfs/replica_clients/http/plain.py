"""A fast path for requests without a body: one send for the head, usually one wait for head and body of the answer.

Most requests of a reader are small reads, which cost three times the CPU through urllib3 and `http.client`. urllib3
makes and keeps the connections; this module sends over them, and reads plain answers: HTTP/1.1, with a length.
`http.client` reads all others: in chunks, up to the end of the connection, after an interim one, malformed.
"""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ProtocolError

from litevfs.replica_clients.http.connections import TimedSocket, TimedStream, left_s

METHODS = ("GET", "HEAD")
_TARGET = re.compile(r"/(?:[A-Za-z0-9/_.~=&?+:@!$'()*,;-]|%[0-9A-F]{2})*")
"""What goes over the line as it is; urllib3 encodes the rest."""
_FIRST_BYTES = 1 << 16
_HEAD_LIMIT_BYTES = 1 << 16
_PIECE_BYTES = 1 << 18
_ODD_PIECE_BYTES = 1 << 16  # `http.client` waits for all of them
_PLAIN_STATUS = re.compile(r"HTTP/1\.1 ([2-5][0-9][0-9])(?: .*)?", re.DOTALL)
_ODD_LINE = re.compile(r"\n(?![!-9;-~]+:)")
"""The beginning of a line that is no header, as one that goes on with the one before."""
_HEAD_END = re.compile(rb"\n\r?\n")  # some end their lines with LF alone
DEFAULT_PORTS = {"http": 80, "https": 443}
_NO_BODY = (204, 304)


class Answer(Protocol):
    """An answer whose head has come; urllib3's are of the kind too."""

    @property
    def status(self) -> int:
        """Of HTTP."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in any case."""
        ...

    @property
    def length_remaining(self) -> int | None:
        """Bytes of the body to come; None if only its end tells."""
        ...

    def read(self, amt: int, /) -> bytes:
        """Up to `amt` of the body's next bytes; none at its end, or where it breaks off."""
        ...

    def release_conn(self) -> None:
        """Keep the connection for other requests, after the whole body."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


class Headers(Mapping[str, str]):
    """Header values by name in any case; those of one name are joined by commas."""

    def __init__(self, lines: Iterable[str]) -> None:
        """From lines `name: value`."""
        self._values: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip(" \t")
            self._values[name] = f"{self._values[name]}, {value}" if name in self._values else value

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default`."""
        return self._values.get(name.lower(), default)

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class _OddAnswer(http.client.HTTPResponse):
    """An answer that `http.client` reads."""

    def flush(self) -> None:
        """Nothing is written; and the collector may have closed the stream before it comes to the answer."""


class PlainAnswer:
    """An `Answer`. One that is forsaken ends its connection."""

    status: int
    headers: Headers
    length_remaining: int | None

    def __init__(self, pool: HTTPConnectionPool, connection: Any, source: TimedSocket, method: str) -> None:
        """Read the head of the answer. Raises OSError, HTTPException."""
        self._connection: Any = None  # not ours yet
        self._pool = pool
        self._socket = source
        self._body: http.client.HTTPResponse | None = None
        head, self._rest = _head_of(source)
        plain = _plain(head, method)
        if plain is None:
            self._begin_odd(head + self._rest, method)
        else:
            self.status, self.headers, length, self._is_kept = plain
            self.length_remaining = length
        self._connection = connection

    def _begin_odd(self, came: bytes, method: str) -> None:
        body = self._body = _OddAnswer(TimedStream(self._socket, came), method=method)  # type: ignore[arg-type]  # makefile is all
        try:
            body.begin()
        except BaseException:
            body.close()
            raise
        self._rest = b""
        self.status = body.status
        self.headers = Headers(f"{name}:{' '.join(text.split())}" for name, text in body.headers.items())
        self.length_remaining = body.length
        self._is_kept = not body.will_close

    def read(self, amt: int, /) -> bytes:
        """See `Answer.read`; waits only if no byte of the body has come yet. Raises OSError, ProtocolError."""
        if self._body is not None:
            return self._read_odd(self._body, min(amt, _ODD_PIECE_BYTES))
        assert self.length_remaining is not None
        size = min(amt, self.length_remaining)
        if self._rest and size:
            data, self._rest = self._rest[:size], self._rest[size:]
        else:
            data = self._socket.recv(min(size, _PIECE_BYTES)) if size else b""
        self.length_remaining -= len(data)
        return data

    def _read_odd(self, body: http.client.HTTPResponse, amt: int) -> bytes:
        try:
            data = body.read(amt)
        except http.client.HTTPException as exc:
            raise ProtocolError(f"Connection broken: {exc!r}", exc) from exc
        if self.length_remaining is not None:
            self.length_remaining -= len(data)
        return data

    def release_conn(self) -> None:
        """See `Answer.release_conn`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if not self._is_kept or self._rest:  # bytes after the body answer nothing that was asked
                connection.close()
            self._pool._put_conn(connection)

    def close(self) -> None:
        """See `Answer.close`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            self._pool._put_conn(connection)

    def __del__(self) -> None:
        # Not `close`: the collector may run in a thread that has the pool's lock. The pool makes another connection.
        if self._connection is not None:
            self._connection.close()


def is_plain(method: str, target: str, body: object, pool: HTTPConnectionPool) -> bool:
    """Whether a request can go the short way."""
    return (
        body is None
        and method in METHODS
        and pool.proxy is None
        and pool.host.isascii()
        and _TARGET.fullmatch(target) is not None
    )


def ask(
    pool: HTTPConnectionPool,
    method: str,
    target: str,
    headers: Mapping[str, str],
    *,
    connect_timeout_s: float,
    read_timeout_s: float,
    deadline: float | None,
) -> PlainAnswer:
    """Send a request that `is_plain`; returns once the answer's head is there.

    On a connection that was kept, and that the server drops without a byte, the request is made again at once: a
    server or a load balancer may have let it go while this process was idle, or frozen. `read_timeout_s` bounds each
    wait; or `deadline`, if it is given, all of them together, those for the body too.

    Raises OSError, HTTPError of urllib3.
    """
    head = _request_head(pool, method, target, headers)
    connection: Any = pool._get_conn()
    try:
        while True:
            was_kept = not connection.is_closed
            if not was_kept:
                connection.timeout = min(connect_timeout_s, left_s(deadline))
                connection.connect()
            limit_s = read_timeout_s if deadline is None else left_s(deadline)
            source = TimedSocket(connection.sock, limit_s, limit_s, is_total=deadline is not None)
            try:
                return _sent(pool, connection, source, method, head)
            except ConnectionError:
                if not was_kept:
                    raise
                connection.close()
    except BaseException as exc:
        connection.close()
        pool._put_conn(connection)
        if isinstance(exc, http.client.HTTPException | ConnectionError):
            raise ProtocolError("Connection aborted.", exc) from exc
        raise


def _sent(pool: HTTPConnectionPool, connection: Any, source: TimedSocket, method: str, head: bytes) -> PlainAnswer:
    try:
        source.sendall(head)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server may have answered, and closed the connection then
    return PlainAnswer(pool, connection, source, method)


def _request_head(pool: HTTPConnectionPool, method: str, target: str, headers: Mapping[str, str]) -> bytes:
    host = f"[{pool.host}]" if ":" in pool.host else pool.host
    port = "" if pool.port in (None, DEFAULT_PORTS[pool.scheme]) else f":{pool.port}"
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}{port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "\r\n"])
    if head.count("\n") != len(lines) + 1 or head.count("\r") != len(lines) + 1:
        raise ValueError("a header of the request has a line break")
    return head.encode("latin-1")


def _head_of(source: TimedSocket) -> tuple[bytes, bytes]:
    """The head with its empty line, and the bytes of the body that came with it.

    Of a head that is too long, or that breaks off, what came: `http.client` says what is wrong with it.
    """
    came = source.recv(_FIRST_BYTES)
    end = _HEAD_END.search(came)
    while end is None and len(came) < _HEAD_LIMIT_BYTES:
        more = source.recv(_FIRST_BYTES)
        if not more:
            break
        came += more
        end = _HEAD_END.search(came)
    return (came, b"") if end is None else (came[: end.end()], came[end.end() :])


def _plain(head: bytes, method: str) -> tuple[int, Headers, int, bool] | None:
    """(status, headers, bytes of the body, whether the connection is kept) of a plain answer; None for another."""
    if not head.endswith(b"\r\n\r\n"):
        return None
    text = head[:-4].decode("latin-1")
    lines = text.split("\r\n")
    breaks = len(lines) - 1
    match = _PLAIN_STATUS.fullmatch(lines[0])
    if match is None or text.count("\n") != breaks or text.count("\r") != breaks or _ODD_LINE.search(text):
        return None
    headers = Headers(lines[1:])
    status, length = int(match[1]), headers.get("content-length", "")
    if "transfer-encoding" in headers:
        return None
    if method == "HEAD" or status in _NO_BODY:
        length = "0"
    if not (length.isascii() and length.isdecimal()):
        return None
    return status, headers, int(length), "close" not in headers.get("connection", "").lower()
