"""The files of one storage that speaks HTTP, and the objects beside them: listed by page, read, deleted.

The clients of such storages take the methods of `HTTPFiles` for their own.

What varies is handed in: URLs, one page of a listing, and where an answer and a request carry a file's version (an
ETag, a generation). Knows no storage's protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from litevfs.concurrency.clock import deadline_in
from litevfs.errors import StorageNotFoundError
from litevfs.replica_clients.base import MAX_SIDE_OBJECT_BYTES, LTXFileInfo, SideObject, Take
from litevfs.replica_clients.http.answers import about, plain_etag, range_header, read_named, read_range
from litevfs.replica_clients.http.exchange import Exchange
from litevfs.replica_clients.http.plain import Answer
from litevfs.replica_clients.layouts import OldReplicaCheck
from litevfs.replica_clients.location import Location
from litevfs.replica_clients.pieces import ReadsByPieces

Page = tuple[list[LTXFileInfo], str]
"""Files, and the mark of the page that follows; empty after the last."""


def etag_of(response: Answer) -> str:
    """The version of most storages."""
    return plain_etag(response.headers.get("ETag"))


class HTTPFiles(ReadsByPieces):
    """Those at `location`. For the methods see `ReplicaClient` and its optional parts; each makes one request."""

    def __init__(
        self,
        exchange: Exchange,
        location: Location,
        *,
        url: Callable[[str], str],
        page: Callable[[str, int, int, str], Page] | None = None,
        content_url: Callable[[str, str], str] | None = None,
        condition: Callable[[str], dict[str, str]] = lambda version: {},
        version_of: Callable[[Answer], str] = etag_of,
        has_old: Callable[[], bool],
    ) -> None:
        """`url` is that of a key, `content_url` that of a key's content in a version (empty: the newest).

        `page(prefix, level, min_txid, mark)` lists files; it may begin earlier and go on further. Without it, there are
        no `list_files` and `list_from`.
        `condition` gives the headers that ask for a version; the answer may be 412 then. `has_old` is for
        `OldReplicaCheck`.
        """
        self._exchange, self._location, self._url = exchange, location, url
        self._content_url = content_url or (lambda key, version: url(key))
        self._page, self._condition, self._version_of = page, condition, version_of
        self._old = OldReplicaCheck(location.url, has_old)

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`. One request for each page."""
        assert self._page is not None
        self._exchange.transport.check_open()
        found: list[LTXFileInfo] = []
        before, mark = None, ""
        while mark != before:  # a server that repeats itself is at its end
            files, following = self._page(self._location.folder(level), level, min_txid, mark)
            found += (file for file in files if file.level == level and file.min_txid >= min_txid)
            before, mark = mark, following
            if not mark:
                break
        self.check_old(found)
        return sorted(found, key=lambda file: (file.min_txid, file.max_txid))

    def list_from(self, level: int, min_txid: int = 1) -> tuple[list[LTXFileInfo], bool]:
        """See `ListsLevels.list_from`. The first page, which has all files of a usual replica."""
        assert self._page is not None
        self._exchange.transport.check_open()
        files, mark = self._page(f"{self._location.prefix}ltx/", level, min_txid, "")
        wanted = [file for file in files if (file.level, file.min_txid) >= (level, min_txid) or file.level > level]
        self.check_old(files)
        return sorted(wanted, key=lambda file: file.place), not mark

    def check_old(self, files: list[LTXFileInfo]) -> None:
        """Raise ReplicaError for a replica of Litestream 0.3, where a listing has no files."""
        self._old.check(files)

    def read_pieces(
        self, file: LTXFileInfo, offset: int, size: int | None, take: Take, *, timeout_s: float | None = None
    ) -> int:
        """See `ReadsByPieces`."""
        self._exchange.transport.check_open()
        if size == 0:
            return 0
        with about(file, self._location.key(file)):
            response, url = self._ask(file, offset, size, timeout_s)
            return read_range(self._exchange.transport, response, url, file, offset, size, take)

    def _ask(self, file: LTXFileInfo, offset: int, size: int | None, timeout_s: float | None) -> tuple[Answer, str]:
        deadline = deadline_in(timeout_s)
        url = self._content_url(self._location.key(file), file.etag)
        headers = range_header(offset, size) | (self._condition(file.etag) if file.etag else {})
        response = self._exchange.send("GET", "GET", url, headers, expected=(200, 206, 412, 416), deadline=deadline)
        version = "" if response.status == 416 else self._version_of(response)
        if response.status == 412 or (file.etag and version and version != file.etag):
            response.close()
            raise StorageNotFoundError("the file was replaced since it was listed")
        return response, url

    def read_named(
        self, level: int, min_txid: int, max_txid: int, size: int, *, timeout_s: float | None = None
    ) -> tuple[LTXFileInfo, bytes] | None:
        """See `ReadsNamed.read_named`."""
        self._exchange.transport.check_open()
        deadline = deadline_in(timeout_s)
        file = LTXFileInfo(level, min_txid, max_txid, 0, 0)
        key = self._location.key(file)
        url = self._content_url(key, "")
        with about(file, key):
            headers, expected = range_header(0, size), (200, 206, 404, 416)
            response = self._exchange.send("GET", "GET", url, headers, expected=expected, deadline=deadline)
            if response.status == 404:
                self._exchange.read(response, url)
                return None
            return read_named(self._exchange.transport, response, url, file, size, self._version_of(response))

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """See `ReplicaClient.delete`. One request a file."""
        self._exchange.transport.check_open()
        for file in files:
            key = self._location.key(file)
            with about(file, key):
                self.delete_key(key)

    def delete_key(self, key: str) -> None:
        """Delete what may be there."""
        self._exchange.call("DELETE", "DELETE", self._url(key), {}, expected=(200, 202, 204, 404))

    def read_object(self, name: str) -> SideObject | None:
        """See `SideObjects.read_object`."""
        self._exchange.transport.check_open()
        key = f"{self._location.prefix}{name}"
        url = self._content_url(key, "")
        response = self._exchange.send("GET", "GET", url, {}, expected=(200, 404), key=key)
        data = self._exchange.read(response, url, MAX_SIDE_OBJECT_BYTES)
        return None if response.status == 404 else SideObject(data, self._version_of(response) or "0")

    def delete_object(self, name: str) -> None:
        """See `SideObjects.delete_object`."""
        self._exchange.transport.check_open()
        self.delete_key(f"{self._location.prefix}{name}")
