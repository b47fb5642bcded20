"""Replicas in S3 and on servers that speak its protocol: `path/<level as 4 hex digits>/<min_txid>-<max_txid>.ltx`.

Source of the layout: Litestream 0.5, `s3/replica_client.go`; the client reads the other layout too (see `layouts`). The
timestamp of a file's LTX header is in the object's metadata. Owns the requests of each operation; `requests` signs
and corrects them; `listing`, `ranges` and `errors` interpret the answers.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import BinaryIO

from litevfs.concurrency.clock import deadline_in
from litevfs.errors import OptionError, StorageError, StorageNotFoundError
from litevfs.ltx.names import format_file_name, parse_file_name
from litevfs.replica_clients.base import LTXFileInfo, SideObject, Take
from litevfs.replica_clients.http.answers import about, date_ms, plain_etag
from litevfs.replica_clients.http.connections import MAX_WAIT_S
from litevfs.replica_clients.http.plain import Answer
from litevfs.replica_clients.http.transport import Transport, endpoint_of
from litevfs.replica_clients.layouts import GENERATIONS, layout_of
from litevfs.replica_clients.pieces import ReadsByPieces
from litevfs.replica_clients.s3 import objects
from litevfs.replica_clients.s3.access import S3Access
from litevfs.replica_clients.s3.listing import Continuation, ListPage, all_pages, list_query, parse_list_page
from litevfs.replica_clients.s3.ranges import Wanted, check_size, expected_length, total_size
from litevfs.replica_clients.s3.requests import AnswerError, Request, SignedRequests
from litevfs.replica_clients.s3.url import parse_s3_url
from litevfs.replica_clients.s3.ways import ServerWays, Way
from litevfs.replica_clients.s3.writing import NO_CONDITIONS_STATUS, Writer
from litevfs.replica_clients.times import rfc3339

BLOCK_SIZE = 1 << 16
"""To read so many bytes costs hardly more than to read one."""
PART_SIZE = 32 << 20
"""Bytes of a part of a multipart upload, and of memory an upload takes; S3 allows 10,000 parts (here 320 GB)."""

_LIST_LIMIT_BYTES = 16 << 20  # of one page of at most 1,000 keys
MAX_UNKNOWN_BYTES = 1 << 30
"""Read of an answer whose length neither the server nor the listing says."""


class S3ReplicaClient(ReadsByPieces):
    """A replica in S3.

    `url` is described in `s3.url`; without `endpoint` in it, LITESTREAM_S3_ENDPOINT counts. `read_timeout_s`
    bounds each wait for bytes from the server (which has to send them faster than a drip, see `http.connections`),
    `connect_timeout_s` that for a connection; `max_connections` are kept for parallel requests. Uploads of more than
    `part_size` bytes (at least 5 MiB) go in parts. Before the first call, it sends nothing and looks for no
    credential. Raises OptionError for a time limit in which nothing can arrive.
    """

    block_size = BLOCK_SIZE
    keeps_conditions = False  # some servers ignore them

    def __init__(
        self,
        url: str,
        *,
        read_timeout_s: float = 30.0,
        connect_timeout_s: float = 10.0,
        max_connections: int = 80,
        part_size: int = PART_SIZE,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
    ) -> None:
        self._location = parse_s3_url(url, os.environ.get("LITESTREAM_S3_ENDPOINT"))
        if read_timeout_s <= 0:
            raise OptionError(f"read_timeout {read_timeout_s:g} s leaves S3 no time to answer", hint="for example 30s")
        read_timeout_s = min(read_timeout_s, MAX_WAIT_S)
        self.access = S3Access(self._location, access_key_id, secret_access_key, timeout_s=read_timeout_s)
        """Credentials, region and addresses."""
        self._transport = Transport(
            connect_timeout_s=min(connect_timeout_s, read_timeout_s),
            read_timeout_s=read_timeout_s,
            max_connections=max_connections,
            verify=self.access.certificates,
        )
        self._ways = ServerWays(self._location.url)
        self._requests = SignedRequests(self.access, self._transport, self._ways)
        self._sse_headers = self._location.sse.headers() if self._location.sse else {}
        self._writer = Writer(
            self.access,
            self._requests,
            self._ways,
            part_size=part_size,
            headers=self._location.write_headers,
            sse_headers=self._sse_headers,
        )
        self._layout = self._location.layout
        self._is_layout_known = False
        self._layout_lock = threading.Lock()
        self._looked_at = float("-inf")  # `time.monotonic()` of the last listing of the whole replica

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        """The replica's URL in its shortest form, without an encryption key."""
        return self._location.url

    @property
    def requests(self) -> dict[str, int]:
        """HTTP requests sent so far, by kind: LIST, GET, PUT (every request of an upload), DELETE."""
        return self._transport.requests

    @property
    def workarounds(self) -> tuple[str, ...]:
        """See `FindsWays.workarounds`."""
        return self._ways.texts

    # --- listing ------------------------------------------------------------------------------------------------------

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`. One request per 1,000 files from `min_txid` on."""
        self._transport.check_open()
        layout, started = self._layout, time.monotonic()
        found = self._list_level(level, min_txid)
        if found:
            self._is_layout_known = True
            return found
        if not self._is_layout_known:
            self._look_for_layout(started)
        return found if self._layout is layout else self._list_level(level, min_txid)

    def _list_level(self, level: int, min_txid: int) -> list[LTXFileInfo]:
        prefix = self._folder(level)
        # Sorts before all names with this min_txid, and after those with a smaller one.
        start_after = f"{prefix}{min_txid:016x}" if min_txid > 1 else None
        endpoint = endpoint_of(self.access.bucket_url())
        found = []
        for listed in all_pages(partial(self._list_page, prefix, start_after), endpoint):
            txids = parse_file_name(listed.key.removeprefix(prefix))
            if txids is not None and txids[0] >= min_txid and listed.key.startswith(prefix):
                found.append(LTXFileInfo(level, *txids, listed.size, listed.modified_ms, listed.etag))
        return sorted(found, key=lambda file: (file.min_txid, file.max_txid))

    def list_from(self, level: int, min_txid: int = 1) -> tuple[list[LTXFileInfo], bool]:
        """See `ListsLevels.list_from`: the first 1,000 names, which are all that a usual replica has."""
        self._transport.check_open()
        prefix = self._location.prefix
        start_after = f"{self._folder(level)}{min_txid:016x}" if level or min_txid > 1 else None
        page = self._list_page(prefix, start_after, None)
        self._learn_layout(page)
        found = []
        for listed in page.objects:
            path = listed.key.removeprefix(prefix)
            listed_level, txids = self._layout.level_of(path), parse_file_name(path.rpartition("/")[2])
            if listed_level is None or txids is None or not listed.key.startswith(prefix):
                continue
            if listed_level > level or (listed_level == level and txids[0] >= min_txid):
                found.append(LTXFileInfo(listed_level, *txids, listed.size, listed.modified_ms, listed.etag))
        is_past = bool(page.objects) and page.objects[-1].key >= f"{prefix}{self._layout.end}"
        return sorted(found, key=lambda file: file.place), page.next_token is None or is_past

    def _learn_layout(self, page: ListPage) -> None:
        """Take the layout of the files on a page of the whole replica; ReplicaError for one of Litestream 0.3."""
        if self._is_layout_known:
            return
        prefix = self._location.prefix
        paths = (listed.key.removeprefix(prefix) for listed in page.objects if listed.key.startswith(prefix))
        layout = layout_of(paths, self._location.layout, self.url)
        if layout is not None:
            if layout is not self._location.layout:
                self._ways.note(Way.OTHER_LAYOUT)
            self._layout, self._is_layout_known = layout, True

    def _look_for_layout(self, started: float) -> None:
        """List the whole replica to find its layout, unless that was done since `started`, as a listing was empty."""
        with self._layout_lock:
            if not self._is_layout_known and self._looked_at < started:
                looked_at, prefix = time.monotonic(), self._location.prefix
                page = self._list_page(prefix, None, None)
                self._learn_layout(page)
                if page.next_token is not None:  # other files below the prefix may fill the page
                    self._learn_layout(self._list_page(f"{prefix}ltx/", None, None))
                    self._learn_layout(self._list_page(f"{prefix}{GENERATIONS}/", None, None))
                self._looked_at = looked_at

    @property
    def path(self) -> str:
        """See `ListsFolders.path`."""
        return self._location.path

    def list_folders(self, path: str) -> list[str]:
        """See `ListsFolders.list_folders`. The first thousand names."""
        prefix = f"{path}/" if path else ""
        by_marker = Way.LISTS_BY_MARKER in self._ways
        try:
            page = self._list_once(prefix, None, None, None, by_marker=by_marker, delimiter="/")
        except AnswerError as refusal:
            raise refusal.error from None
        return [folder.removeprefix(prefix).strip("/") for folder in page.folders if folder.startswith(prefix)]

    def place_of(self, path: str) -> str:
        """See `ListsFolders.place_of`."""
        return replace(self._location, path=path).url

    def _list_page(
        self, prefix: str, start_after: str | None, token: Continuation | None, deadline: float | None = None
    ) -> ListPage:
        try:
            page = self._list_once(prefix, start_after, token, deadline, by_marker=Way.LISTS_BY_MARKER in self._ways)
        except AnswerError as refusal:
            is_of_kind = refusal.status in NO_CONDITIONS_STATUS and type(refusal.error) is StorageError
            if Way.LISTS_BY_MARKER in self._ways or not is_of_kind or refusal.answer.region:
                raise refusal.error from None
            try:
                page = self._list_once(prefix, start_after, token, deadline, by_marker=True)
            except (AnswerError, StorageError):
                raise refusal.error from None  # the refusal was not about the version of the request
            self._ways.note(Way.LISTS_BY_MARKER)
        if page.is_v1:
            self._ways.note(Way.LISTS_BY_MARKER)
        return page

    def _list_once(
        self,
        prefix: str,
        start_after: str | None,
        token: Continuation | None,
        deadline: float | None,
        *,
        by_marker: bool,
        delimiter: str | None = None,
    ) -> ListPage:
        query = list_query(prefix, start_after, token, by_marker=by_marker, delimiter=delimiter)
        where = f"{self._location.bucket}/{prefix}"
        request = Request("LIST", "GET", where, query, is_of_bucket=True, deadline=deadline)
        _, body = self._requests.try_to_call(request, _LIST_LIMIT_BYTES)
        return parse_list_page(body, endpoint_of(self.access.bucket_url()), prefix)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read_pieces(
        self, file: LTXFileInfo, offset: int, size: int | None, take: Take, *, timeout_s: float | None = None
    ) -> int:
        """See `ReadsByPieces`."""
        deadline = deadline_in(timeout_s)
        self._transport.check_open()
        if size == 0:
            return 0
        wanted, key = Wanted(file, offset, size), self.key(file)
        with about(file, key):
            answer = self._ask(wanted, key, deadline, partial(self._is_gone, key, deadline))
            if answer is None:
                if offset < file.size:
                    raise StorageNotFoundError("the object is shorter than it was when listed")
                return 0
            url, response, length = answer
            limit = length if length is not None else file.size + 1 if file.size else MAX_UNKNOWN_BYTES
            came = self._transport.read_pieces(take, response, url, limit)
            check_size(came, length, wanted, endpoint_of(url))
            return came

    def _ask(
        self, wanted: Wanted, key: str, deadline: float | None, is_gone: Callable[[], bool] = bool
    ) -> tuple[str, Answer, int | None] | None:
        """The URL that answered, the answer, and the bytes that its body must have (None if only its end tells).

        None if the object has no such bytes.
        """
        headers = {**self._sse_headers, **wanted.headers()}
        url, response = self._requests.send(
            Request("GET", "GET", key, headers=headers, deadline=deadline, is_gone=is_gone)
        )
        if response.status == 416:
            return None
        try:
            return url, response, expected_length(response, wanted, endpoint_of(url))
        except StorageError:
            response.close()  # its body may be of any size
            raise

    def read_named(
        self, level: int, min_txid: int, max_txid: int, size: int, *, timeout_s: float | None = None
    ) -> tuple[LTXFileInfo, bytes] | None:
        """See `ReadsNamed.read_named`."""
        deadline = deadline_in(timeout_s)
        self._transport.check_open()
        file = LTXFileInfo(level, min_txid, max_txid, size, 0)  # its size is at most that, as far as known
        key = self.key(file)
        with about(file, key):
            try:
                answer = self._ask(Wanted(file, 0, size), key, deadline)
            except StorageNotFoundError:
                return None
            if answer is None:
                return replace(file, size=0), b""
            url, response, length = answer
            data = self._transport.read_body(response, url, size if length is None else length)
        date, total = response.headers.get("Last-Modified", ""), total_size(response, len(data))
        etag = plain_etag(response.headers.get("ETag"))
        return replace(file, size=total, modified_ms=_date_ms(date), etag=etag), data

    def _is_gone(self, key: str, deadline: float | None) -> bool:
        """Whether a listing shows that an object whose read was refused does not exist.

        To credentials that may list only some prefixes, S3 answers 403 instead of 404 for a missing object.
        """
        try:
            return all(listed.key != key for listed in self._list_page(key, None, None, deadline).objects)
        except StorageError:
            return False

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(
        self,
        level: int,
        min_txid: int,
        max_txid: int,
        data: bytes | BinaryIO,
        timestamp_ms: int,
        *,
        exclusive: bool = False,
    ) -> LTXFileInfo:
        """See `ReplicaClient.write`. One request up to `part_size` bytes, a multipart upload beyond.

        `exclusive` needs a server that knows `If-None-Match`, as Amazon's and MinIO do. If the server says
        that it does not, the client checks before each upload; then two writers at the same moment can miss each other.
        """
        self._transport.check_open()
        name = format_file_name(min_txid, max_txid)
        key = f"{self._folder(level)}{name}"
        stream = io.BytesIO(data) if isinstance(data, bytes) else data
        metadata = {"x-amz-meta-litestream-timestamp": rfc3339(timestamp_ms)}

        def exists() -> bool:
            return any(other.name == name for other in self._list_level(level, min_txid))

        with about(LTXFileInfo(level, min_txid, max_txid, 0, 0), key):
            stored = self._writer.store(key, stream, metadata, exists if exclusive else None)
        self._is_layout_known = True
        return LTXFileInfo(level, min_txid, max_txid, stored.size, _date_ms(stored.date), stored.etag)

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """See `ReplicaClient.delete`. One request per 1,000 files; all are tried before an error is raised."""
        self._transport.check_open()
        self._writer.delete(list(dict.fromkeys(map(self.key, files))))

    def read_object(self, name: str) -> SideObject | None:
        """See `SideObjects.read_object`. One request."""
        self._transport.check_open()
        key = f"{self._location.prefix}{name}"
        is_gone = partial(self._is_gone, key, None)
        return objects.read_object(self._requests, self._transport, key, self._sse_headers, is_gone)

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `SideObjects.put_object`. One request."""
        self._transport.check_open()
        key, headers = f"{self._location.prefix}{name}", self._location.write_headers
        return objects.put_object(self._requests, key, data, headers, if_match, if_absent)

    def delete_object(self, name: str) -> None:
        """See `SideObjects.delete_object`. One request."""
        self._transport.check_open()
        objects.delete_object(self._requests, f"{self._location.prefix}{name}")

    def key(self, file: LTXFileInfo) -> str:
        """The object's key in the bucket."""
        return f"{self._folder(file.level)}{file.name}"

    def close(self) -> None:
        """See `ReplicaClient.close`."""
        self._transport.close()

    def _folder(self, level: int) -> str:
        return f"{self._location.prefix}{self._layout.folder(level)}"


def _date_ms(date: str) -> int:
    """A Date header in milliseconds since the Unix epoch; our own clock if the server gives none."""
    return date_ms(date, int(time.time() * 1000))
