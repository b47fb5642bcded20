"""Replicas in Google Cloud Storage: `gs://bucket/path`, files at `path/ltx/<level in decimal>/<name>`.

Source of the layout: Litestream 0.5, `gs/replica_client.go`; the timestamp of a file's LTX header is in the object's
metadata. Speaks the JSON API over our own connections, which closing can end; credentials are Google's own library's
(`google-auth`). Why not `obstore`: see `http.exchange`. Google's `google-cloud-storage` is not used either: its
transport (requests) cannot be ended from another thread.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode

from litevfs.errors import (
    StorageError,
    StorageFileExistsError,
    StorageNotFoundError,
    StoragePreconditionError,
)
from litevfs.ltx.names import parse_file_name
from litevfs.replica_clients.base import LEVELS, MAX_SIDE_OBJECT_BYTES, LTXFileInfo, SideObject
from litevfs.replica_clients.google_tokens import PERMISSION_HINT, google_tokens
from litevfs.replica_clients.http.answers import about, range_header, read_named, read_range
from litevfs.replica_clients.http.exchange import Exchange
from litevfs.replica_clients.http.tokens import Tokens
from litevfs.replica_clients.http.transport import endpoint_of
from litevfs.replica_clients.http.uploads import open_stream, parts_of, read_part
from litevfs.replica_clients.location import parse_location
from litevfs.replica_clients.times import iso_ms, rfc3339

BLOCK_SIZE = 1 << 16
PART_SIZE = 16 << 20
"""Bytes of a part of a resumable upload, a multiple of 256 KiB as Google wants it, and of memory an upload takes."""
_ENDPOINT = "https://storage.googleapis.com"
_BOUNDARY = "litevfs-9f1c2b7a53d84e06"
_FIELDS = "items(name,size,generation,timeCreated),nextPageToken"
_RESUME = 308
_LEVELS = frozenset(map(str, LEVELS))


class GSReplicaClient:
    """A replica in Google Cloud Storage.

    STORAGE_EMULATOR_HOST names another endpoint, which gets no credentials, as in Google's own libraries.
    `read_timeout_s` bounds each wait for the server. Before the first call, it sends nothing and looks for no
    credential. An etag is the object's generation. Raises OptionError if `google-auth` is missing.
    """

    block_size = BLOCK_SIZE
    keeps_conditions = True

    def __init__(self, url: str, *, read_timeout_s: float = 30.0, part_size: int = PART_SIZE) -> None:
        self._location = parse_location(url, example="gs://bucket/path")
        self._bucket = quote(self._location.host, safe="")
        emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
        self._endpoint = _ENDPOINT
        self._tokens: Tokens | None = None
        self._exchange = Exchange(
            read_timeout_s=read_timeout_s,
            authorize=self._authorize,
            renew=lambda deadline: self._tokens is not None and self._tokens.renew(deadline),
            permission_hint=PERMISSION_HINT,
        )
        if emulator:
            self._endpoint = (emulator if "://" in emulator else f"http://{emulator}").rstrip("/")
        else:
            self._tokens = google_tokens(self._exchange.transport, read_timeout_s)
        self._part_size = part_size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        """The replica's URL in its one spelling."""
        return self._location.url

    @property
    def requests(self) -> dict[str, int]:
        """HTTP requests sent so far, by kind: LIST, GET, PUT (every request of an upload), DELETE."""
        return self._exchange.transport.requests

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`. One request per 1,000 files from `min_txid` on."""
        self._exchange.transport.check_open()
        prefix = self._location.folder(level)
        found: list[LTXFileInfo] = []
        token: str | None = ""
        while token is not None:
            files, token = self._list_page(prefix, level, min_txid, token)
            found += files
        return sorted(found, key=lambda file: (file.min_txid, file.max_txid))

    def list_from(self, level: int, min_txid: int = 1) -> tuple[list[LTXFileInfo], bool]:
        """See `ListsLevels.list_from`. The first 1,000 files, which are all that a usual replica has."""
        self._exchange.transport.check_open()
        files, token = self._list_page(f"{self._location.prefix}ltx/", level, min_txid, "")
        return sorted(files, key=lambda file: (file.level, file.min_txid, file.max_txid)), token is None

    def _list_page(self, prefix: str, level: int, min_txid: int, token: str) -> tuple[list[LTXFileInfo], str | None]:
        """Files below `prefix` from a level and a TXID on, and the token of the next page, None after the last.

        The names of levels have one digit, so Google's order of names is that of levels.
        """
        query = {"prefix": prefix, "maxResults": "1000", "fields": _FIELDS}
        query["startOffset"] = f"{self._location.folder(level)}{min_txid:016x}"
        if token:
            query["pageToken"] = token
        url = f"{self._endpoint}/storage/v1/b/{self._bucket}/o?{urlencode(query)}"
        answer = _parsed(self._exchange.call("LIST", "GET", url, {}, key=f"{self._location.host}/{prefix}")[1], url)
        found = []
        for item in answer.get("items", ()):
            folder, _, name = str(item["name"]).removeprefix(f"{self._location.prefix}ltx/").rpartition("/")
            txids = parse_file_name(name)
            if txids is None or folder not in _LEVELS or (int(folder) == level and txids[0] < min_txid):
                continue
            created_ms = iso_ms(item["timeCreated"])
            found.append(LTXFileInfo(int(folder), *txids, int(item["size"]), created_ms, str(item["generation"])))
        following = answer.get("nextPageToken")
        return found, str(following) if following and following != token else None

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """See `ReplicaClient.read`. One request; none for zero bytes."""
        self._exchange.transport.check_open()
        if size == 0:
            return b""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        key = self.key(file)
        # Read the generation that was listed, also if the bucket keeps replaced ones.
        version = {"generation": file.etag} if file.etag else {}
        url = self._object_url(key, alt="media", **version)
        with about(file, key):
            headers = range_header(offset, size)
            response = self._exchange.send("GET", "GET", url, headers, expected=(200, 206, 416), deadline=deadline)
            generation = response.headers.get("x-goog-generation", "")
            if file.etag and generation and generation != file.etag:
                response.close()
                raise StorageNotFoundError("the object was replaced since it was listed")
            return read_range(self._exchange.transport, response, url, file, offset, size)

    def read_named(
        self, level: int, min_txid: int, max_txid: int, size: int, *, timeout_s: float | None = None
    ) -> tuple[LTXFileInfo, bytes] | None:
        """See `ReadsNamed.read_named`."""
        self._exchange.transport.check_open()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        file = LTXFileInfo(level, min_txid, max_txid, 0, 0)
        key = self.key(file)
        url = self._object_url(key, alt="media")
        with about(file, key):
            headers, expected = range_header(0, size), (200, 206, 404, 416)
            response = self._exchange.send("GET", "GET", url, headers, expected=expected, deadline=deadline)
            if response.status == 404:
                self._exchange.read(response, url)
                return None
            return read_named(
                self._exchange.transport, response, url, file, size, response.headers.get("x-goog-generation", "")
            )

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
        """See `ReplicaClient.write`. One request up to `part_size` bytes, a resumable upload beyond."""
        self._exchange.transport.check_open()
        file = LTXFileInfo(level, min_txid, max_txid, 0, timestamp_ms)
        key = self.key(file)
        metadata = {"name": key, "metadata": {"litestream-timestamp": rfc3339(timestamp_ms)}}
        condition = {"ifGenerationMatch": "0"} if exclusive else {}
        stream = open_stream(data)
        first = read_part(stream, self._part_size)
        with about(file, key):
            if len(first) < self._part_size:
                answer = self._put(metadata, first, condition)
            else:
                answer = self._put_parts(metadata, first, stream, condition)
        created_ms = iso_ms(str(answer.get("timeCreated", "")), int(time.time() * 1000))
        return LTXFileInfo(level, min_txid, max_txid, int(answer["size"]), created_ms, str(answer["generation"]))

    def _put(self, metadata: dict[str, Any], data: bytes, condition: dict[str, str]) -> dict[str, Any]:
        head = (
            f"--{_BOUNDARY}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(metadata)}\r\n"
            f"--{_BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\r\n"
        )
        body = b"".join((head.encode(), data, f"\r\n--{_BOUNDARY}--\r\n".encode()))
        url = self._upload_url("multipart", condition)
        return self._stored(url, "POST", {"Content-Type": f"multipart/related; boundary={_BOUNDARY}"}, body)

    def _put_parts(
        self, metadata: dict[str, Any], first: bytes, stream: BinaryIO, condition: dict[str, str]
    ) -> dict[str, Any]:
        """Upload in parts; readers see nothing before the last. Google ends an abandoned session after a week."""
        headers = {"Content-Type": "application/json; charset=UTF-8"}
        url = self._upload_url("resumable", condition)
        response, _ = self._exchange.call(
            "PUT", "POST", url, headers, body=json.dumps(metadata).encode(), expected=(200, 201, 412)
        )
        _check_condition(response.status)
        session = response.headers.get("Location", "")
        if endpoint_of(session) != endpoint_of(url):  # never send our credentials to another server
            raise StorageError(f"{endpoint_of(url)} wants an upload to go to {endpoint_of(session)}")
        sent = 0
        try:
            for part, is_last in parts_of(first, stream, self._part_size):
                end = sent + len(part)
                headers = {"Content-Range": f"bytes {sent}-{end - 1}/{end if is_last else '*'}"}
                if is_last:
                    return self._stored(session, "PUT", headers, part)
                response, _ = self._exchange.call("PUT", "PUT", session, headers, body=part, expected=(_RESUME,))
                taken = response.headers.get("Range", "")
                if taken != f"bytes=0-{end - 1}":
                    raise StorageError(f"{endpoint_of(session)} took {taken or 'nothing'} of {end} bytes uploaded")
                sent = end
        except BaseException:
            self._cancel(session)
            raise
        raise AssertionError("the last part ends the upload")

    def _cancel(self, session: str) -> None:
        try:
            self._exchange.call("DELETE", "DELETE", session, {}, expected=(200, 204, 404, 410, 499))
        except StorageError:
            pass  # report the first failure

    def _stored(self, url: str, method: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
        response, answer = self._exchange.call("PUT", method, url, headers, body=body, expected=(200, 201, 412))
        _check_condition(response.status)
        return _parsed(answer, url)

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """See `ReplicaClient.delete`. One request a file."""
        self._exchange.transport.check_open()
        for file in files:
            with about(file, self.key(file)):
                self._delete(self.key(file))

    def _delete(self, key: str) -> None:
        self._exchange.call("DELETE", "DELETE", self._object_url(key), {}, expected=(200, 204, 404))

    # --- objects beside the levels ------------------------------------------------------------------------------------

    def read_object(self, name: str) -> SideObject | None:
        """See `SideObjects.read_object`. One request."""
        self._exchange.transport.check_open()
        key = f"{self._location.prefix}{name}"
        url = self._object_url(key, alt="media")
        response = self._exchange.send("GET", "GET", url, {}, expected=(200, 404), key=key)
        data = self._exchange.read(response, url, MAX_SIDE_OBJECT_BYTES)
        return None if response.status == 404 else SideObject(data, response.headers.get("x-goog-generation", "0"))

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `SideObjects.put_object`. One request."""
        self._exchange.transport.check_open()
        generation = "0" if if_absent else if_match
        condition = {} if generation is None else {"ifGenerationMatch": generation}
        key = f"{self._location.prefix}{name}"
        try:
            answer = self._put({"name": key, "cacheControl": "no-cache"}, data, condition)
        except StorageFileExistsError as exc:
            raise StoragePreconditionError("the object is another", key=key) from exc
        return str(answer["generation"])

    def delete_object(self, name: str) -> None:
        """See `SideObjects.delete_object`. One request."""
        self._exchange.transport.check_open()
        self._delete(f"{self._location.prefix}{name}")

    # --- the rest -----------------------------------------------------------------------------------------------------

    def key(self, file: LTXFileInfo) -> str:
        """The object's name in the bucket."""
        return self._location.key(file)

    def close(self) -> None:
        """See `ReplicaClient.close`."""
        if self._tokens is not None:
            self._tokens.close()
        self._exchange.transport.close()

    def _authorize(self, method: str, url: str, headers: dict[str, str], deadline: float | None) -> dict[str, str]:
        if self._tokens is None:
            return headers
        return {**headers, "Authorization": f"Bearer {self._tokens.get(deadline)}"}

    def _object_url(self, key: str, **query: str) -> str:
        url = f"{self._endpoint}/storage/v1/b/{self._bucket}/o/{quote(key, safe='')}"
        return f"{url}?{urlencode(query)}" if query else url

    def _upload_url(self, kind: str, condition: dict[str, str]) -> str:
        query = urlencode({"uploadType": kind, **condition})
        return f"{self._endpoint}/upload/storage/v1/b/{self._bucket}/o?{query}"


def _check_condition(status: int) -> None:
    if status == 412:
        raise StorageFileExistsError("the object exists")


def _parsed(body: bytes, url: str) -> dict[str, Any]:
    try:
        answer = json.loads(body)
        if isinstance(answer, dict):
            return answer
    except ValueError:
        pass
    raise StorageError(f"{endpoint_of(url)} gave no answer of Google Cloud Storage", hint="is a proxy in between?")
