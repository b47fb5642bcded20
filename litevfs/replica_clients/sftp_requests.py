"""SFTP requests that are sent before earlier ones are answered. Knows the protocol, version 3, and no LTX file.

A request costs a round trip, so the reads of a file are sent together with the request for its attributes, and several
folders are listed at the same time. paramiko itself waits for each answer, or starts a thread for each read, which ends
with a traceback if the connection breaks. Source: draft-ietf-secsh-filexfer-02.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_OPEN, _CLOSE, _READ, _FSTAT, _OPENDIR, _READDIR = 3, 4, 5, 8, 11, 12  # SSH_FXP_*
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS, _EXTENDED = 101, 102, 103, 104, 105, 200
_READ_FLAG = 1  # SSH_FXF_READ
_REQUEST_BYTES = 1 << 15  # the largest read that every server answers in one packet
_READS_AT_ONCE = 64
_NAMES_AT_ONCE = 4  # READDIR requests; OpenSSH answers each with a hundred names
_MAX_HANDLES = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a folder, and its attributes as paramiko keeps them."""

    name: str
    attributes: Any


class Requests:
    """Requests over one SFTP channel, used by one thread at a time.

    Keeps the handles of files that are read in parts, as the read of an open file takes one round trip and not two.
    """

    def __init__(self, sftp: Any) -> None:
        import paramiko

        self._sftp = sftp
        self._attributes: Any = paramiko.SFTPAttributes
        self._int64: Any = paramiko.sftp.int64
        self._answers: dict[int, tuple[int, Any]] = {}
        self._first = 0  # number of the first request of this call: answers to earlier ones are of no more use
        self._handles: OrderedDict[str, bytes] = OrderedDict()

    # --- files --------------------------------------------------------------------------------------------------------

    def is_open(self, path: str) -> bool:
        """Whether a read of the file needs no request to open it."""
        return path in self._handles

    def open(self, path: str) -> None:
        """Open the file. Raises FileNotFoundError."""
        self._begin()
        self.close(path)
        self._handles[path] = self._opened(self._send(_OPEN, path, _READ_FLAG, self._attributes()))
        while len(self._handles) > _MAX_HANDLES:
            self.close(next(iter(self._handles)))

    def close(self, path: str) -> None:
        """Let the server close the file, if it is open; does not wait for the answer."""
        handle = self._handles.pop(path, None)
        if handle is not None:
            self._send_unheeded(_CLOSE, handle)

    def close_all(self) -> None:
        """Let the server close all files."""
        for path in list(self._handles):
            self.close(path)

    def read(self, path: str, offset: int, size: int) -> tuple[Any, bytes]:
        """(attributes, bytes from `offset` on) of an open file, in one round trip.

        The bytes are `size` at most, and fewer if the file or this round trip has no more.
        """
        self._begin()
        handle = self._handles.pop(path)  # kept only if the server still knows it
        asked = self._send(_FSTAT, handle)
        reads = []
        end = offset + min(size, _READS_AT_ONCE * _REQUEST_BYTES)
        for start in range(offset, end, _REQUEST_BYTES):
            count = min(_REQUEST_BYTES, end - start)
            reads.append((self._send(_READ, handle, self._int64(start), count), count))
        attributes = self._attributes._from_msg(self._answer(asked, _ATTRS))
        data = b"".join(self._pieces(reads))
        self._handles[path] = handle
        return attributes, data

    def _pieces(self, reads: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        """The answers up to the first that is short; the others are heard, too."""
        is_whole = True
        for number, count in reads:
            message = self._answer(number, _DATA, is_end_allowed=True)
            piece = b"" if message is None else bytes(message.get_string())
            if is_whole:
                yield piece
            is_whole = is_whole and len(piece) == count

    # --- folders ------------------------------------------------------------------------------------------------------

    def list_folders(self, folders: Sequence[str]) -> list[list[Entry]]:
        """The entries of each folder; none of one that does not exist. Two round trips for a few hundred names."""
        self._begin()
        asked = [self._send(_OPENDIR, folder) for folder in folders]
        handles: dict[int, bytes] = {}
        failed: OSError | None = None
        for place, number in enumerate(asked):
            try:
                handles[place] = self._opened(number)
            except OSError as exc:
                if exc.errno != errno.ENOENT:
                    failed = failed or exc
        found: list[list[Entry]] = [[] for _ in folders]
        try:
            if failed is not None:
                raise failed
            self._list_all(handles, found)
        finally:
            for handle in handles.values():
                self._send_unheeded(_CLOSE, handle)
        return found

    def _list_all(self, handles: dict[int, bytes], found: list[list[Entry]]) -> None:
        left = dict(handles)
        while left:
            asked = [(place, self._send(_READDIR, left[place])) for place in left for _ in range(_NAMES_AT_ONCE)]
            for place, number in asked:
                message = self._answer(number, _NAME, is_end_allowed=True)
                if message is None:
                    left.pop(place, None)
                else:
                    found[place] += self._entries(message)

    def _entries(self, message: Any) -> Iterator[Entry]:
        for _ in range(message.get_int()):
            name = message.get_string().decode("utf-8", "replace")
            message.get_string()  # the line that `ls -l` would show
            yield Entry(name, self._attributes._from_msg(message))

    # --- both ---------------------------------------------------------------------------------------------------------

    def extended(self, name: str, *arguments: str | bytes) -> None:
        """Send a request that extends the protocol. Raises OSError, also if the server does not know it."""
        self._begin()
        self._answer(self._send(_EXTENDED, name, *arguments), _STATUS)

    def _begin(self) -> None:
        self._answers.clear()
        self._first = self._sftp.request_number

    def _send(self, kind: int, *arguments: Any) -> int:
        return int(self._sftp._async_request(self, kind, *arguments))  # paramiko has no public way to send one

    def _send_unheeded(self, kind: int, *arguments: Any) -> None:
        self._sftp._async_request(type(None), kind, *arguments)

    def _async_response(self, kind: int, message: Any, number: int) -> None:
        """paramiko calls this with the answer to a request of `_send`."""
        if number >= self._first:
            self._answers[number] = kind, message

    def _opened(self, number: int) -> bytes:
        return bytes(self._answer(number, _HANDLE).get_string())

    def _answer(self, number: int, wanted: int, *, is_end_allowed: bool = False) -> Any:
        """The answer to a request; None at the end of a file or folder. Raises OSError, EOFError, SSHException."""
        while number not in self._answers:
            self._sftp._read_response()
        kind, message = self._answers.pop(number)
        if kind == _STATUS:
            try:
                self._sftp._convert_status(message)
            except EOFError:
                if is_end_allowed:
                    return None
                raise
        if kind != wanted:
            raise OSError(None, f"answer {kind} to a request whose answer is {wanted}")
        return message
