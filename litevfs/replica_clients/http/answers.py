"""What an HTTP answer means: its status as an error of ours, its body as the requested range.

Knows HTTP (RFC 9110) and LTX file infos, and no storage's protocol.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.utils import parsedate_to_datetime

from litevfs.errors import (
    StorageError,
    StorageNotFoundError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.replica_clients.base import LTXFileInfo, Take
from litevfs.replica_clients.http.plain import Answer
from litevfs.replica_clients.http.transport import Transport, endpoint_of

PERMANENT_STATUS = frozenset({501, 505, 507})  # retries do not help: not implemented, out of space
_SAID_LIMIT = 300  # characters
_SKIP_BYTES = 1 << 20
_MAX_OFFSET = 2**63 - 1  # servers refuse larger numbers
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)", re.ASCII)
_SAID = re.compile(
    rb'"message"\s*:\s*"((?:[^"\\]|\\.){1,1000})"|<(?:[a-z]+:)?Message>([^<]{1,1000})<|<title>([^<]{1,300})<',
    re.IGNORECASE,
)
_SHORTER = "the file is shorter than it was when listed"
_CLOCK_LIMIT_S = 300.0  # Google and Azure take requests that are so old, and older ones up to 15 minutes
_UNSOUND_HINT = "a proxy or cache before the server, or the server, is at fault"


def error_kind(status: int) -> type[StorageError]:
    """The class of error for a status. 423 says that a WebDAV server does another request about the resource now, and
    has not done this one (RFC 4918, 11.3).
    """
    if status == 504:
        return StorageTimeoutError
    if status in (408, 423, 425, 429) or (status >= 500 and status not in PERMANENT_STATUS):
        return TransientStorageError
    if status in (401, 403, 407):
        return StoragePermissionError
    return StorageNotFoundError if status in (404, 410) else StorageError


def error_of(
    response: Answer,
    body: bytes,
    url: str,
    *,
    key: str | None = None,
    permission_hint: str | None = None,
    hint: str | None = None,
) -> StorageError:
    """The error to raise for an unexpected answer, whose body is read already. `hint`: for one that is no refusal."""
    kind = error_kind(response.status)
    said = _SAID.search(body)
    text = next(filter(None, said.groups()), b"").decode("utf-8", "replace")[:_SAID_LIMIT] if said else ""
    text = " ".join(text.split())  # Azure's has three lines
    if kind is StoragePermissionError:
        hint = "; ".join(filter(None, (_clock_hint(response), permission_hint))) or None
    if 300 <= response.status < 400:
        hint = "the server answers from another place: name that in the URL"
    if response.status == 413:
        hint = "let the server, and a proxy before it, take larger bodies (nginx: client_max_body_size)"
    error = kind(f"{endpoint_of(url)} answered {response.status}" + (f": {text}" if text else ""), key=key, hint=hint)
    if isinstance(error, TransientStorageError):
        error.retry_after_s = retry_after_s(response.headers.get("Retry-After", ""))
    return error


def _clock_hint(response: Answer) -> str:
    """What to do about this machine's clock, if that may be why a request was refused."""
    server_ms = date_ms(response.headers.get("Date"))
    offset_s = server_ms / 1000 - time.time()
    if not server_ms or abs(offset_s) < _CLOCK_LIMIT_S:
        return ""
    return f"set this machine's clock, which differs from the server's by {offset_s:.0f} s"


def retry_after_s(text: str) -> float | None:
    """A Retry-After header in seconds: a number, or a date (RFC 9110, 10.2.3); None when it is absent or neither."""
    text = text.strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def date_ms(text: str | None, default: int = 0) -> int:
    """A date header in milliseconds since the Unix epoch."""
    try:
        return int(parsedate_to_datetime(text or "").timestamp() * 1000)
    except (ValueError, TypeError):
        return default


def plain_etag(text: str | None) -> str:
    """An ETag without quotes, and without the mark of a weak one, which proxies add and drop."""
    return (text or "").strip().removeprefix("W/").strip('"')


def range_header(offset: int, size: int | None) -> dict[str, str]:
    """The header that asks for `size` bytes (not 0) from `offset` on; nothing for a whole file."""
    if not offset and size is None:
        return {}
    return {"Range": f"bytes={offset}-" + ("" if size is None else str(min(offset + size - 1, _MAX_OFFSET)))}


def read_range(
    transport: Transport, response: Answer, url: str, file: LTXFileInfo, offset: int, size: int | None, take: Take
) -> int:
    """Call `take` with the requested bytes of `file`, as they come; returns how many there were.

    The answer is one of 200, 206 or 416, which this reads to its end. A server may ignore the range: bytes before it
    are read and dropped. Raises StorageNotFoundError when the file is shorter than it was, StorageError for headers
    that lie.
    """
    if response.status == 416:
        response.close()
        if offset < file.size:
            raise StorageNotFoundError(_SHORTER)
        return 0
    least = max(0, file.size - offset)  # when the file was listed
    if size is not None:
        least = min(size, least)
    try:
        skip, expected = _place(response, file, offset, size, endpoint_of(url))
        if expected is not None and expected < least:
            raise StorageNotFoundError(_SHORTER)
        _skip(transport, response, url, skip)
    except BaseException:
        response.close()
        raise
    came = transport.read_pieces(take, response, url, _MAX_OFFSET if expected is None else expected)
    if came < least:
        raise StorageNotFoundError(_SHORTER)
    return came


def read_named(
    transport: Transport, response: Answer, url: str, file: LTXFileInfo, size: int, etag: str
) -> tuple[LTXFileInfo, bytes]:
    """A file that was not listed and its first `size` bytes, from the answer to a request for this range."""
    file = replace(file, size=0, modified_ms=date_ms(response.headers.get("Last-Modified")), etag=etag)
    if response.status == 416:  # an empty file has no range
        response.close()
        return file, b""
    total = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    length = response.headers.get("Content-Length", "")
    pieces: list[bytes] = []
    read_range(transport, response, url, file, 0, size, pieces.append)
    data = b"".join(pieces)
    if response.status == 206 and total is not None:
        return replace(file, size=int(total[3])), data
    return replace(file, size=int(length) if length.isdecimal() else len(data)), data


def _place(response: Answer, file: LTXFileInfo, offset: int, size: int | None, endpoint: str) -> tuple[int, int | None]:
    """(bytes to drop, bytes to take then: None for all that come)."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        message = f"{endpoint} sent a file in the encoding {encoding!r}, which was not asked for"
        raise StorageError(message, hint="let the server send .ltx files as they are")
    length = response.headers.get("Content-Length", "")
    known = int(length) if length.isdecimal() else None
    if response.status == 200:
        # Without a length, chunks or the listed size show the body's end.
        total = known if known is not None else file.size or None
        if total is None:
            return offset, size
        skip = min(offset, total)
        return skip, total - skip if size is None else min(size, total - skip)
    given = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(given)
    if match is None:
        raise StorageError(f"{endpoint} answered with Content-Range {given!r}", hint=_UNSOUND_HINT)
    first, last, total = map(int, match.groups())
    end = total if size is None else min(offset + size, total)
    if (first, last + 1) != (offset, end) or known not in (None, end - offset):
        message = f"{endpoint} answered {given!r} and {length or 'unknown'} bytes, asked for bytes {offset}-{end - 1}"
        raise StorageError(message, hint=_UNSOUND_HINT)
    return 0, end - offset


def _skip(transport: Transport, response: Answer, url: str, count: int) -> None:
    with transport.translated(url):
        while count > 0:
            piece = response.read(min(count, _SKIP_BYTES))
            if not piece:
                return
            count -= len(piece)


@contextmanager
def about(file: LTXFileInfo, key: str) -> Iterator[None]:
    """Add the file to every storage error of this block."""
    try:
        yield
    except StorageError as error:
        error.level, error.min_txid, error.max_txid, error.key = file.level, file.min_txid, file.max_txid, key
        raise
