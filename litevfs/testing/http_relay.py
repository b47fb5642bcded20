"""HTTP/1.1 messages as a proxy hands them on: heads, bodies with a length or in chunks, interim answers.

Knows the framing (RFC 9112), and no fault, delay or record.
"""

from __future__ import annotations

import socket
from io import BufferedReader
from typing import Protocol, TypeAlias

_CHUNK_BYTES = 1 << 17
_HEAD_LIMIT_BYTES = 1 << 16
Reader: TypeAlias = "BufferedReader[socket.SocketIO]"


class Head:
    """The head of a message, whose fields are looked for when they are asked for: most never are."""

    def __init__(self, data: bytes, following: int) -> None:
        self.data = data  # with its empty line
        self.following = following  # bytes after it that have come already
        self._lower = data.lower()

    @property
    def first(self) -> str:
        """The first line."""
        return self.data[: self.data.index(b"\r\n")].decode("latin-1")

    def value(self, name: str) -> str:
        """The value of a field, whose name is given in lower case; empty if there is none."""
        start = b"\r\n%s:" % name.encode()
        at = self._lower.find(start)
        end = self.data.find(b"\r\n", at + 2)
        return "" if at < 0 else self.data[at + len(start) : end].decode("latin-1").strip()

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return self.value("transfer-encoding").lower() == "chunked"

    @property
    def length(self) -> int:
        """Bytes of a body that does not come in chunks."""
        return int(self.value("content-length") or 0)


class Sink(Protocol):
    """Accepts bytes."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of them."""
        ...


def relay_interim(from_server: Reader, client: socket.socket) -> bool:
    """Relay the answer to `Expect: 100-continue`; False when it is a final one, which ends the connection."""
    head = read_head(from_server)
    if head is None:
        return False
    client.sendall(head.data)
    if head.data[9:12] == b"100":
        return True
    relay_body(head, from_server, client)
    return False


def refuse_body(answer: bytes, from_client: Reader, client: socket.socket) -> None:
    """Answer a request whose body may or may not follow: closing before it came could cost the client the answer."""
    client.sendall(answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
    client.shutdown(socket.SHUT_WR)
    while from_client.read1(_CHUNK_BYTES):
        pass


def relay_answer(method: str, from_server: Reader, client: Sink) -> bool:
    """Relay a whole answer; False when the connection ends with it."""
    head = read_answer_head(from_server)
    if head is None:
        return False
    size = head.length if has_body(method, head) and not head.is_chunked else 0
    if size and size <= head.following:  # the whole answer is here: one send, and the client needs one wait
        client.sendall(head.data + from_server.read(size))
    else:
        client.sendall(head.data)
        if has_body(method, head):
            relay_body(head, from_server, client)
    return head.value("connection").lower() != "close"


def read_answer_head(from_server: Reader) -> Head | None:
    """The head of the final answer, or None at the end of the stream."""
    head = read_head(from_server)
    while head is not None and head.data[9:12] == b"100":
        head = read_head(from_server)
    return head


def has_body(method: str, head: Head) -> bool:
    """Whether an answer to `method` has a body."""
    return method != "HEAD" and head.data[9:12] not in (b"204", b"304")


def read_head(stream: Reader) -> Head | None:
    """A message up to its empty line, or None at the end of the stream."""
    came = stream.peek()
    end = came.find(b"\r\n\r\n")
    if end >= 0:
        return Head(stream.read(end + 4), len(came) - end - 4)
    lines: list[bytes] = []
    size = 0
    while size < _HEAD_LIMIT_BYTES:
        line = stream.readline(_HEAD_LIMIT_BYTES)
        if not line.endswith(b"\n"):
            return None
        lines.append(line)
        size += len(line)
        if line == b"\r\n" and len(lines) > 1:
            return Head(b"".join(lines), 0)
    return None


def relay_body(head: Head, source: Reader, target: Sink) -> None:
    """Relay the body of a message, framed as it is. Raises ConnectionError if it breaks off."""
    if head.is_chunked:
        while size := _relay_line(source, target):
            _relay_bytes(source, target, size + 2)
        while source_line := source.readline(_HEAD_LIMIT_BYTES):
            target.sendall(source_line)
            if source_line == b"\r\n":
                return
    else:
        _relay_bytes(source, target, head.length)


def read_body(head: Head, source: Reader) -> bytes:
    """A body in memory, without its framing."""
    if not head.is_chunked:
        return source.read(head.length)
    chunks: list[bytes] = []
    while size := int(source.readline(_HEAD_LIMIT_BYTES).split(b";")[0], 16):
        chunks.append(source.read(size))
        source.readline(_HEAD_LIMIT_BYTES)
    while source.readline(_HEAD_LIMIT_BYTES).strip():
        pass
    return b"".join(chunks)


def with_length(head: bytes, size: int) -> bytes:
    """The head of a message that came in chunks, for its body in one piece."""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"transfer-encoding:")]
    return b"\r\n".join([lines[0], b"Content-Length: %d" % size, *lines[1:]])


def _relay_line(source: Reader, target: Sink) -> int:
    line = source.readline(_HEAD_LIMIT_BYTES)
    target.sendall(line)
    return int(line.split(b";")[0], 16) if line else 0


def _relay_bytes(source: Reader, target: Sink, size: int) -> None:
    while size:
        data = source.read1(min(size, _CHUNK_BYTES))
        if not data:
            raise ConnectionError("closed in mid-body")
        target.sendall(data)
        size -= len(data)
