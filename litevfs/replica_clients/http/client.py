"""Replicas that a plain web server or a CDN serves, read only: `http://host/path`, `https://host/path`.

The client finds the files by `index.json` (`kept_index.py`), else by the listings that the server makes of its folders
(nginx, Apache, `python -m http.server`), in Litestream's layout of files (`ltx/<level in decimal>/`) or of S3
(`<level in 4 hex digits>/`). Owns which of these exists, and what is known of each file.

It notes a file's ETag or Last-Modified at the first read; a later read that finds another reports the file as gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO
from urllib.parse import quote, urlsplit

from litevfs.concurrency.clock import deadline_in
from litevfs.errors import StorageError, StorageNotFoundError, StoragePermissionError
from litevfs.ltx.names import parse_file_name
from litevfs.replica_clients.base import LEVELS, LTXFileInfo, Take
from litevfs.replica_clients.http.answers import about, date_ms, plain_etag, range_header, read_named, read_range
from litevfs.replica_clients.http.basic import BasicAuth
from litevfs.replica_clients.http.exchange import Exchange
from litevfs.replica_clients.http.index import INDEX_NAME, level_of, names_in_page
from litevfs.replica_clients.http.kept_index import LIST_HINT, KeptIndex
from litevfs.replica_clients.http.plain import Answer
from litevfs.replica_clients.http.redirects import Redirects
from litevfs.replica_clients.layouts import GENERATIONS, old_replica
from litevfs.replica_clients.location import parse_location
from litevfs.replica_clients.pieces import ReadsByPieces

BLOCK_SIZE = 1 << 16
_MAX_KNOWN = 100_000  # files with a noted ETag or size
_HEADS_AT_ONCE = 16
_PASSWORD = "LITEVFS_HTTP_PASSWORD"
_READ_ONLY_HINT = "write to the storage that the web server serves, by its own URL"


class HTTPReplicaClient(ReadsByPieces):
    """A replica at `http(s)://[user@]host[:port]/path`, read only; the user's password is LITEVFS_HTTP_PASSWORD.

    `read_timeout_s` bounds each wait for the server. Sends nothing before the first call.
    """

    block_size = BLOCK_SIZE

    def __init__(self, url: str, *, read_timeout_s: float = 30.0) -> None:
        self._location = parse_location(
            url,
            example="https://host/path",
            default_port={"http": 80, "https": 443}.get(urlsplit(url).scheme.lower()),
            password_from=f"{_PASSWORD} holds the password",
        )
        auth = BasicAuth(self._location.user, _PASSWORD)
        self._exchange = Exchange(
            read_timeout_s=read_timeout_s,
            # Where the header was put in: a server that this one redirects to gets none.
            authorize=lambda method, url, headers, deadline: (
                headers | (auth.headers if auth.headers.keys() <= headers.keys() else {})
            ),
            renew=auth.renew,
            permission_hint=f"https://user@host/path, with the password in {_PASSWORD}",
        )
        port = "" if self._location.port is None else f":{self._location.port}"
        origin = f"{self._location.scheme}://{self._location.host}{port}"
        self._root = f"{origin}/{quote(self._location.prefix)}"
        self._requests = Redirects(self._exchange, origin, auth)
        self._index = KeptIndex(
            self._requests, f"{self._root}{INDEX_NAME}", read_timeout_s=self._exchange.read_timeout_s
        )
        self._base: str | None = None  # where the levels' folders lie
        self._folders: dict[int, str] = {}
        self._known: dict[tuple[int, str], LTXFileInfo] = {}  # by HEAD, where there is no index
        self._versions: dict[LTXFileInfo, str] = {}  # ETag or Last-Modified at the first read

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        """The replica's URL, without a password."""
        return self._location.url

    @property
    def requests(self) -> dict[str, int]:
        """HTTP requests sent so far, by kind: LIST (of an index too), HEAD, GET."""
        return self._exchange.transport.requests

    @property
    def workarounds(self) -> tuple[str, ...]:
        """See `FindsWays.workarounds`: caches that hold old indexes, and a server without one."""
        found = []
        if self._index.oldest_s:
            found.append(
                f"a cache answers with an index.json up to {self._index.oldest_s:.1f} s older than one seen before: "
                "the newer one is kept; let caches hold it for less than the poll interval"
            )
        if self._base is not None and self._index.newest is None:
            found.append("there is no index.json: folders are listed as the server shows them, with a HEAD a file")
        return tuple(found)

    # --- listing ------------------------------------------------------------------------------------------------------

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`. One request; without an index a further one for each file not yet known.

        Raises StorageNotFoundError when the server has neither an index nor a listing of the folder.
        """
        self._exchange.transport.check_open()
        began = time.monotonic()
        base = self._find()
        if self._index.newest is not None:
            index = self._index.since(began)
            return [file for file in index.files.get(level, ()) if file.min_txid >= min_txid]
        folder = self._folders.get(level)
        names = None if folder is None else self._names_in(f"{base}{folder}/")
        if folder is None or names is None:
            self._folders = self._levels_in(self._names_in(base) or [])
            folder = self._folders.get(level)
            names = None if folder is None else self._names_in(f"{base}{folder}/")
        wanted = [name for name in names or () if (txids := parse_file_name(name)) and txids[0] >= min_txid]
        files = self._describe(level, wanted)
        return sorted(files, key=lambda file: (file.min_txid, file.max_txid))

    def list_from(self, level: int, min_txid: int = 1) -> tuple[list[LTXFileInfo], bool]:
        """See `ListsLevels.list_from`. One request if there is an index; without one it lists each level."""
        self._exchange.transport.check_open()
        began = time.monotonic()
        self._find()
        if self._index.newest is None:
            upper = [file for other in LEVELS if other > level for file in self.list_files(other)]
            return self.list_files(level, min_txid) + upper, True
        index = self._index.since(began)
        own = [file for file in index.files.get(level, ()) if file.min_txid >= min_txid]
        return own + [file for other in LEVELS if other > level for file in index.files.get(other, ())], True

    def _find(self, deadline: float | None = None) -> str:
        """The URL of the levels' folders, found once; while there are none, each call tries again."""
        if self._base is not None:
            return self._base
        if self._index.find(deadline):
            self._base = self._root
            return self._root
        for base in (f"{self._root}ltx/", self._root):
            folders = self._levels_in(self._names_in(base, deadline) or [])
            if folders:
                self._folders, self._base = folders, base
                return base
        names = self._names_in(self._root, deadline)
        if names is not None and GENERATIONS in names:
            raise old_replica(self.url)
        if names is None:
            raise StorageNotFoundError("the server lists no replica there", key=self._root, hint=LIST_HINT)
        return self._root

    @staticmethod
    def _levels_in(names: list[str]) -> dict[int, str]:
        return {level: name for name in names if (level := level_of(name)) is not None}

    def _names_in(self, folder: str, deadline: float | None = None) -> list[str] | None:
        """The names that the server lists in a folder; None if the folder is missing or not listed."""
        response, body = self._requests.get_list(folder, {}, deadline)
        return names_in_page(body, response.headers.get("Content-Type", "")) if response.status == 200 else None

    def _describe(self, level: int, names: list[str]) -> list[LTXFileInfo]:
        """Each file as HEAD describes it; makes no request for a known file."""
        new = [name for name in names if (level, name) not in self._known]
        if len(self._known) + len(new) > _MAX_KNOWN:
            self._known.clear()
            new = names
        found: dict[str, LTXFileInfo | None]
        if len(new) < 2:
            found = {name: self._head(level, name) for name in new}
        else:
            with ThreadPoolExecutor(min(_HEADS_AT_ONCE, len(new)), "litevfs-head") as pool:
                found = dict(zip(new, pool.map(lambda name: self._head(level, name), new), strict=True))
        self._known |= {(level, name): file for name, file in found.items() if file is not None}
        known = self._known
        return [file for name in names if (file := found.get(name) or known.get((level, name))) is not None]

    def _head(self, level: int, name: str) -> LTXFileInfo | None:
        txids = parse_file_name(name)
        if txids is None:
            return None
        response, url = self._requests.get("HEAD", f"{self._base}{self._folders[level]}/{name}", {}, (200, 404, 410))
        self._exchange.read(response, url)
        length = response.headers.get("Content-Length", "")
        if response.status != 200 or not length.isdecimal():
            return None
        modified_ms = date_ms(response.headers.get("Last-Modified"))
        return LTXFileInfo(level, *txids, int(length), modified_ms, _version_of(response))

    # --- reading ------------------------------------------------------------------------------------------------------

    def read_pieces(
        self, file: LTXFileInfo, offset: int, size: int | None, take: Take, *, timeout_s: float | None = None
    ) -> int:
        """See `ReadsByPieces`."""
        self._exchange.transport.check_open()
        if size == 0:
            return 0
        with about(file, self.key(file)):
            response, url = self._ask(file, offset, size, timeout_s)
            return read_range(self._exchange.transport, response, url, file, offset, size, take)

    def _ask(self, file: LTXFileInfo, offset: int, size: int | None, timeout_s: float | None) -> tuple[Answer, str]:
        deadline = deadline_in(timeout_s)
        headers = range_header(offset, size)
        response, url = self._requests.get("GET", self.key(file), headers, (200, 206, 416), deadline)
        try:
            self._check_version(file, response)
        except StorageError:
            response.close()
            raise
        return response, url

    def read_named(
        self, level: int, min_txid: int, max_txid: int, size: int, *, timeout_s: float | None = None
    ) -> tuple[LTXFileInfo, bytes] | None:
        """See `ReadsNamed.read_named`; raises StoragePermissionError if there is an index.

        An index that has not changed costs no more, and a cache may answer for long that a file is missing.
        """
        self._exchange.transport.check_open()
        deadline = deadline_in(timeout_s)
        self._find(deadline)
        if self._index.newest is not None:
            raise StoragePermissionError("the index says which files there are", key=self.url)
        file = LTXFileInfo(level, min_txid, max_txid, 0, 0)
        key = self.key(file)
        with about(file, key):
            response, url = self._requests.get("GET", key, range_header(0, size), (200, 206, 404, 410, 416), deadline)
            if response.status in (404, 410):
                self._exchange.read(response, url)
                return None
            found, data = read_named(self._exchange.transport, response, url, file, size, _version_of(response))
        self._known[level, found.name] = found
        return found, data

    def _check_version(self, file: LTXFileInfo, response: Answer) -> None:
        version = _version_of(response)
        if not version or response.status == 416:
            return
        noted = self._known.get((file.level, file.name))
        first = file.etag if noted is not None else self._versions.get(file, version)
        if first == version or not first:
            if noted is None:
                if len(self._versions) >= _MAX_KNOWN:
                    self._versions.clear()
                self._versions[file] = version
            return
        self._versions.pop(file, None)
        self._known.pop((file.level, file.name), None)
        raise StorageNotFoundError("the file was replaced since it was listed")

    # --- the rest -----------------------------------------------------------------------------------------------------

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
        """Raises StoragePermissionError: a web server's replica is read only."""
        self._exchange.transport.check_open()
        raise StoragePermissionError("a replica at http(s):// is read only", key=self.url, hint=_READ_ONLY_HINT)

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """Raises StoragePermissionError: a web server's replica is read only."""
        self._exchange.transport.check_open()
        raise StoragePermissionError("a replica at http(s):// is read only", key=self.url, hint=_READ_ONLY_HINT)

    def key(self, file: LTXFileInfo) -> str:
        """The file's URL."""
        index = self._index.newest
        folders = self._folders if index is None else index.folders
        base = self._base or f"{self._root}ltx/"
        folder = folders.get(file.level)
        if folder is None:  # named like its neighbours
            neighbour = next(iter(folders.values()), "0")
            parent = "ltx/" if neighbour.startswith("ltx/") else ""
            folder = parent + (f"{file.level:04x}" if len(neighbour) == 4 else str(file.level))
        return f"{base}{folder}/{file.name}"

    def close(self) -> None:
        """See `ReplicaClient.close`."""
        self._exchange.transport.close()


def _version_of(response: Answer) -> str:
    """A text that differs when the content does, as far as the server tells."""
    etag, modified = plain_etag(response.headers.get("ETag")), response.headers.get("Last-Modified", "")
    return etag or modified
