"""Replicas on a WebDAV server: `webdav://user@host/path`, over TLS `webdavs://`; `path/ltx/<level in decimal>/<name>`.

Source of the layout: Litestream 0.5, `webdav/replica_client.go`; of the protocol: RFC 4918. A server keeps no time from
a client, so a file's time is when it was stored. Owns requests and the reading of their answers.
"""

from __future__ import annotations

import posixpath
import secrets
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import suppress
from typing import IO, BinaryIO
from urllib.parse import quote, unquote, urlsplit

from litevfs.errors import (
    ConditionsUnsupportedError,
    StorageError,
    StorageFileExistsError,
    StoragePermissionError,
    TransientStorageError,
)
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.http.answers import about, date_ms, plain_etag
from litevfs.replica_clients.http.basic import BasicAuth
from litevfs.replica_clients.http.exchange import LIST_LIMIT_BYTES, Exchange
from litevfs.replica_clients.http.files import HTTPFiles
from litevfs.replica_clients.http.plain import Answer
from litevfs.replica_clients.http.transport import endpoint_of
from litevfs.replica_clients.http.uploads import open_stream
from litevfs.replica_clients.http.xml import parse_xml
from litevfs.replica_clients.layouts import GENERATIONS
from litevfs.replica_clients.location import parse_location

BLOCK_SIZE = 1 << 16
_SPOOL_BYTES = 8 << 20  # bytes of an upload in memory; a larger one goes through a temporary file
_COPY_BYTES = 1 << 20
_PASSWORD = "LITEVFS_WEBDAV_PASSWORD"
_STORED = (200, 201, 204)
_NO_METHOD = (405, 501)
_MISSING_FOLDER = (403, 404, 409)  # answers to a PUT if the folder does not exist: 409 by RFC 4918, 9.7.1
_OTHER_SERVER_HINT = (
    "is it a WebDAV server, and does a proxy before it let WebDAV's methods through? What a plain web server serves is "
    "read by http://host/path"
)
_D = "{DAV:}"
_PROPERTIES = (
    b'<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop>'
    b"<getcontentlength/><getlastmodified/><getetag/><resourcetype/></prop></propfind>"
)


class WebDAVReplicaClient:
    """A replica on a WebDAV server, with basic authentication; the user's password is LITEVFS_WEBDAV_PASSWORD.

    `read_timeout_s` bounds each wait for the server. Sends nothing before the first call.
    """

    block_size = BLOCK_SIZE
    keeps_conditions = False  # see `put_object`

    def __init__(self, url: str, *, read_timeout_s: float = 30.0) -> None:
        self._location = parse_location(
            url,
            example="webdavs://user@host/path",
            default_port=443 if url.lower().startswith("webdavs:") else 80,
            password_from=f"{_PASSWORD} holds the password",
        )
        scheme = "https" if self._location.scheme == "webdavs" else "http"
        port = "" if self._location.port is None else f":{self._location.port}"
        self._origin = f"{scheme}://{self._location.host}{port}"
        auth = BasicAuth(self._location.user, _PASSWORD)
        self._exchange = Exchange(
            read_timeout_s=read_timeout_s,
            authorize=lambda method, url, headers, deadline: {**auth.headers, **headers},
            renew=auth.renew,
            permission_hint=f"webdav://user@host/path, with the password in {_PASSWORD}",
            hint_of=lambda kind, status: _OTHER_SERVER_HINT if status in (200, *_NO_METHOD) else None,
        )
        self._made: set[str] = set()  # folders that are known to exist
        self._files = HTTPFiles(self._exchange, self._location, url=self._url, has_old=self._has_old)
        # What storages that speak HTTP have in common.
        self.read, self.read_pieces, self.read_named = self._files.read, self._files.read_pieces, self._files.read_named
        self.read_object, self.delete_object = self._files.read_object, self._files.delete_object
        self.delete = self._files.delete

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        """The replica's URL, without a password."""
        return self._location.url

    @property
    def requests(self) -> dict[str, int]:
        """HTTP requests sent so far, by kind: LIST, GET, PUT (every request of an upload), DELETE."""
        return self._exchange.transport.requests

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`. One request, for the whole folder: WebDAV cannot begin within it."""
        files, _ = self._list(self._location.folder(level), "1")
        return [file for file in files if file.level == level and file.min_txid >= min_txid]

    def list_from(self, level: int, min_txid: int = 1) -> tuple[list[LTXFileInfo], bool]:
        """See `ListsLevels.list_from`. Raises StoragePermissionError if the server lists no folder with all below it
        (RFC 4918, 9.1, allows that); those that list it without what is below show folders only.
        """
        try:
            files, folders = self._list(f"{self._location.prefix}ltx/", "infinity")
        except TransientStorageError:
            raise
        except StorageError as error:
            raise StoragePermissionError(f"{error.message}: it lists folders one by one", key=error.key) from error
        wanted = [file for file in files if file.level > level or (file.level, file.min_txid) >= (level, min_txid)]
        return wanted, bool(files) or not folders

    def _list(self, path: str, depth: str) -> tuple[list[LTXFileInfo], int]:
        """The files at and below `path`, in order, and how many folders of levels there are."""
        self._exchange.transport.check_open()
        found, folders = {}, 0  # rclone lists a file twice while it is being replaced
        for place, properties in self._properties(path, depth):
            parsed = self._location.parse_key(f"{self._location.prefix}ltx/{place}")
            if properties.find(f"{_D}resourcetype/{_D}collection") is not None:
                folders += place.startswith("ltx/")
            elif parsed is not None:
                found[parsed] = _file_info(parsed, properties)
        files = [found[parsed] for parsed in sorted(found)]
        self._files.check_old(files)
        return files, folders

    def _has_old(self) -> bool:
        return bool(self._properties(f"{self._location.prefix}{GENERATIONS}/", "0"))

    def _properties(self, path: str, depth: str) -> list[tuple[str, ET.Element]]:
        """(folder and name, properties) of each resource at `path`; empty if there is none."""
        url = self._url(path)
        headers = {"Depth": depth, "Content-Type": "application/xml", "Content-Length": str(len(_PROPERTIES))}
        response = self._exchange.send(
            "LIST", "PROPFIND", url, headers, body=_PROPERTIES, expected=(207, 404, 405), key=path
        )
        data = self._exchange.read(response, url, LIST_LIMIT_BYTES)
        if response.status == 405:
            self._check_speaks_webdav(path)
        found = []
        if response.status == 207:
            for answer in parse_xml(data, endpoint_of(url)).iterfind(f"{_D}response"):
                href = unquote(urlsplit(answer.findtext(f"{_D}href") or "").path).rstrip("/")
                place = "/".join(href.split("/")[-2:])  # a proxy may serve the folders above under other names
                for group in answer.iterfind(f"{_D}propstat"):
                    properties = group.find(f"{_D}prop")
                    if properties is not None and " 200 " in f"{group.findtext(f'{_D}status') or ' 200 '} ":
                        found.append((place, properties))
        return found

    def _check_speaks_webdav(self, path: str) -> None:
        """Raise StorageError if the server does not speak WebDAV. Some that do answer 405 where nothing is."""
        url = self._url(path)
        response = self._exchange.send("LIST", "OPTIONS", url, {}, expected=range(200, 600), key=path)
        self._exchange.read(response, url)
        if response.status in (200, 204, *_NO_METHOD) and "DAV" not in response.headers:
            raise StorageError(f"{endpoint_of(url)} does not speak WebDAV", key=path, hint=_OTHER_SERVER_HINT)

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
        """See `ReplicaClient.write`. A `.tmp` beside the file is moved to its name at the end.

        The server keeps no `timestamp_ms`. A MOVE deletes the file that it replaces first (RFC 4918, 9.9.3): on a
        server that follows this literally, neither file exists for a moment. With `exclusive` the MOVE may replace
        nothing; but some servers (Apache, wsgidav) look first and move then, so that of writers at the same moment
        more than one may succeed, and the file of the last one stays. A replicator looks at its files again.
        """
        self._exchange.transport.check_open()
        file = LTXFileInfo(level, min_txid, max_txid, 0, timestamp_ms)
        key = self.key(file)
        temporary = f"{key}.{secrets.token_hex(8)}.tmp"
        with about(file, key), tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
            # Send the length first: many servers accept no body without one.
            stream = open_stream(data)
            while piece := stream.read(_COPY_BYTES):
                spool.write(piece)
            size = spool.tell()
            try:
                self._put_making_folders(temporary, spool, size)
                self._move(temporary, key, overwrite=not exclusive)
            except BaseException:
                with suppress(StorageError):  # report the first failure
                    self._files.delete_key(temporary)
                raise
            for place, properties in self._properties(key, "0"):
                if place.endswith(f"/{file.name}"):
                    stored = _file_info((level, min_txid, max_txid), properties)
                    if exclusive and stored.size != size:
                        raise StorageFileExistsError("another writer replaced the file")
                    return stored
        return LTXFileInfo(level, min_txid, max_txid, size, int(time.time() * 1000))

    def _put_making_folders(self, path: str, body: IO[bytes], size: int) -> None:
        """Store a body that may be large: a server that lacks the folder ends the connection while it is sent."""
        folder = posixpath.dirname(path)
        if folder not in self._made:
            self._make_folders(folder)
        self._made.discard(folder)  # until this has succeeded
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}

        def put(expected: tuple[int, ...]) -> Answer:
            body.seek(0)
            # urllib3 takes an empty file for no body.
            sent = body if size else b""
            return self._exchange.call("PUT", "PUT", self._url(path), headers, body=sent, expected=expected)[0]

        self._in_folder(path, put)
        self._made.add(folder)

    def _in_folder(self, path: str, put: Callable[[tuple[int, ...]], Answer]) -> Answer:
        """The answer to `put`, which stores `path` and is given the statuses to expect.

        If the server lacks the folder, it is made, and `put` called once more. Raises TransientStorageError if the
        folder is still missing while other requests make it.
        """
        response = put((*_STORED, *_MISSING_FOLDER))
        if response.status not in _MISSING_FOLDER:
            return response
        others_make_it = self._make_folders(posixpath.dirname(path))
        response = put((*_STORED, *_MISSING_FOLDER) if others_make_it else _STORED)
        if response.status in _MISSING_FOLDER:
            raise TransientStorageError("the folder is being made by another request", key=path)
        return response

    def _make_folders(self, folder: str) -> bool:
        """Make the folder and those above it that are missing; returns whether other requests were at that (423)."""
        with suppress(StorageError):
            response, _ = self._exchange.call("PUT", "MKCOL", self._url(folder) + "/", {}, expected=(201, 405, 409))
            if response.status != 409:  # a folder above is missing
                return False
        parts = folder.split("/")
        locked = False
        for count in range(1, len(parts) + 1):
            path = "/".join(parts[:count])
            with suppress(StorageError):  # it exists (405), or the PUT that follows raises the error
                response, _ = self._exchange.call("PUT", "MKCOL", self._url(path) + "/", {}, expected=(201, 405, 423))
                locked |= response.status == 423
        return locked

    def _move(self, source: str, target: str, *, overwrite: bool) -> None:
        headers = {"Destination": self._url(target), "Overwrite": "T" if overwrite else "F"}
        expected = (201, 204) if overwrite else (201, 204, 412)
        response, _ = self._exchange.call("PUT", "MOVE", self._url(source), headers, expected=expected)
        if response.status == 412:
            raise StorageFileExistsError("the file exists")

    # --- objects beside the levels ------------------------------------------------------------------------------------

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `SideObjects.put_object`. One request, two where the answer has no ETag.

        Raises ConditionsUnsupportedError for any condition: servers of files, as Apache, look at the old one first and
        write then, so of several writers at once more than one would hear that it succeeded.
        """
        self._exchange.transport.check_open()
        path = f"{self._location.prefix}{name}"
        if if_absent or if_match is not None:
            raise ConditionsUnsupportedError("WebDAV servers keep conditions of one writer at a time only", key=path)
        headers = {"Content-Length": str(len(data)), "Content-Type": "application/octet-stream"}

        def put(expected: tuple[int, ...]) -> Answer:
            return self._exchange.call("PUT", "PUT", self._url(path), headers, body=data, expected=expected)[0]

        response = self._in_folder(path, put)
        etag = plain_etag(response.headers.get("ETag"))
        if not etag:
            etag = next((_etag(properties) for _, properties in self._properties(path, "0")), "")
        return etag or "0"

    # --- the rest -----------------------------------------------------------------------------------------------------

    def key(self, file: LTXFileInfo) -> str:
        """The file's path on the server."""
        return self._location.key(file)

    def remove_folder(self) -> None:
        """See `LeavesFolders.remove_folder`. One request."""
        url = self._url(self._location.prefix.rstrip("/")) + "/"
        self._exchange.call("DELETE", "DELETE", url, {}, expected=(200, 204, 404))
        self._made.clear()

    def close(self) -> None:
        """See `ReplicaClient.close`."""
        self._exchange.transport.close()

    def _url(self, path: str) -> str:
        return f"{self._origin}/{quote(path)}"


def _file_info(parsed: tuple[int, int, int], properties: ET.Element) -> LTXFileInfo:
    size = properties.findtext(f"{_D}getcontentlength") or ""
    if not size.isdecimal():
        raise StorageError(f"a file of level {parsed[0]} is listed without its size")
    modified_ms = date_ms(properties.findtext(f"{_D}getlastmodified"))
    return LTXFileInfo(*parsed, int(size), modified_ms, _etag(properties))


def _etag(properties: ET.Element) -> str:
    return plain_etag(properties.findtext(f"{_D}getetag"))
