"""Which bytes the answer to a read of an S3 object has, by headers that must fit the request. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from litevfs.errors import StorageError, StorageNotFoundError, TransientStorageError
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.http.answers import plain_etag, range_header
from litevfs.replica_clients.http.plain import Answer

# RFC 9110, 14.4, where the whole length may be unknown; some leave it out, or write the unit as in a request.
_CONTENT_RANGE = re.compile(r"bytes[ =]\s*(\d+)-(\d+)(?:/(\d+|\*))?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A read: `size` bytes of `file` from `offset` on, or all up to its end (None)."""

    file: LTXFileInfo
    offset: int
    size: int | None

    def headers(self) -> dict[str, str]:
        """The request's header for it, none for a whole file."""
        return range_header(self.offset, self.size)


def expected_length(response: Answer, wanted: Wanted, endpoint: str) -> int | None:
    """The bytes the body must have, None if only its end tells.

    Raises StorageNotFoundError if the object is not the listed one, and StorageError if the answer does not fit the
    request.
    """
    file, offset, size = wanted.file, wanted.offset, wanted.size
    etag = plain_etag(response.headers.get("ETag"))
    if file.etag and etag and etag != file.etag:
        raise StorageNotFoundError("the object was replaced since it was listed")
    length = _content_length(response.headers, endpoint)
    if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity", "aws-chunked"):
        raise _unsound(f"{endpoint} answered with bytes that something on the way has encoded")
    if response.status == 200:
        if offset == 0 and (size is None or (length if length is not None else file.size) <= size):
            return length
        raise _unsound(f"{endpoint} ignored the byte range asked for")
    given = response.headers.get("Content-Range", "").strip()
    match = _CONTENT_RANGE.fullmatch(given)
    if match is None:
        raise _unsound(f"{endpoint} answered with Content-Range {given!r}")
    first, last = int(match[1]), int(match[2])
    total = int(match[3]) if match[3] and match[3] != "*" else max(file.size, last + 1)
    end = total if size is None else min(offset + size, total)
    given_length = last + 1 - first if length is None else length
    if (first, last + 1, given_length) != (offset, end, end - offset):
        raise _unsound(f"{endpoint} answered {given!r} and {given_length} bytes, asked for bytes {offset}-{end - 1}")
    return given_length


def total_size(response: Answer, read: int) -> int:
    """Bytes of the whole object, of which the first `read` have come."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    return int(match[3]) if match is not None and match[3] and match[3] != "*" else read


def check_size(came: int, length: int | None, wanted: Wanted, endpoint: str) -> None:
    """Check that a body of `came` bytes has all that the answer's headers promised. Raises TransientStorageError."""
    expected = length if length is not None else wanted.file.size or came
    if came != expected:
        raise TransientStorageError(f"the answer of {endpoint} broke off after {came} of {expected} bytes")


def _content_length(headers: Mapping[str, str], endpoint: str) -> int | None:
    """The body's length; None if it comes in chunks, or ends with the connection."""
    text = headers.get("Content-Length", "").strip()
    if not text:
        return None
    if not text.isdecimal():
        raise _unsound(f"{endpoint} answered with Content-Length {text!r}")
    return int(text)


def _unsound(message: str) -> StorageError:
    return StorageError(message, hint="a proxy or cache before the server, or the server, is at fault")
