"""Replicas in Azure Blob Storage: `abs://account@container/path`, blobs at `path/ltx/<level in decimal>/<name>`.

Source of the layout: Litestream 0.5, `abs/replica_client.go`; the timestamp of a file's LTX header is in the blob's
metadata. Speaks the REST API over our own connections, which closing can end. Why not `obstore`: see `http.exchange`;
`azure-storage-blob` sends by way of requests, whose calls cannot be ended from another thread.
"""

from __future__ import annotations

import base64
import os
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from typing import BinaryIO
from urllib.parse import quote, urlencode, urlsplit

from urllib3 import BaseHTTPResponse

from litevfs.errors import (
    ReplicaURLError,
    StorageError,
    StorageFileExistsError,
    StorageNotFoundError,
    StoragePreconditionError,
)
from litevfs.ltx.names import parse_file_name
from litevfs.replica_clients.azure_access import PERMISSION_HINT, AzureAccess
from litevfs.replica_clients.base import MAX_SIDE_OBJECT_BYTES, LTXFileInfo, SideObject
from litevfs.replica_clients.http.answers import about, date_ms, plain_etag, range_header, read_named, read_range
from litevfs.replica_clients.http.exchange import Exchange
from litevfs.replica_clients.http.transport import endpoint_of
from litevfs.replica_clients.http.uploads import open_stream, parts_of, read_part
from litevfs.replica_clients.http.xml import parse_xml
from litevfs.replica_clients.location import parse_location
from litevfs.replica_clients.times import rfc3339

BLOCK_SIZE = 1 << 16
PART_SIZE = 16 << 20
"""Bytes of a block of an upload, and of memory an upload takes; Azure allows 50,000 blocks."""
_EXAMPLE = "abs://account@container/path"


class AzureReplicaClient:
    """A replica in Azure Blob Storage.

    `endpoint` in the URL replaces `https://<account>.blob.core.windows.net`; AZURE_STORAGE_ACCOUNT is the
    account where the URL names none. `read_timeout_s` bounds each wait for the server. Before the first call, it sends
    nothing and looks for no token. Raises ReplicaURLError, and OptionError if `azure-identity` is missing.
    """

    block_size = BLOCK_SIZE
    keeps_conditions = True

    def __init__(self, url: str, *, read_timeout_s: float = 30.0, part_size: int = PART_SIZE) -> None:
        # `az` is another word for the same scheme.
        url = "abs" + url[url.index(":") :]
        self._location = parse_location(url, example=_EXAMPLE, parameters=("endpoint",))
        account = self._location.user or os.environ.get("AZURE_STORAGE_ACCOUNT", "")
        self._endpoint = _endpoint(self._location.parameters.get("endpoint"), account)
        self._access = AzureAccess(account)
        self._exchange = Exchange(
            read_timeout_s=read_timeout_s,
            authorize=self._access.authorize,
            renew=self._access.renew,
            permission_hint=PERMISSION_HINT,
        )
        self._part_size = part_size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        """The replica's URL in its one spelling, without a key or a token."""
        return self._location.url

    @property
    def requests(self) -> dict[str, int]:
        """HTTP requests sent so far, by kind: LIST, GET, PUT (every request of an upload), DELETE."""
        return self._exchange.transport.requests

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`. One request per 5,000 files of the level: Azure cannot start within one."""
        self._exchange.transport.check_open()
        prefix = self._location.folder(level)
        query = {"restype": "container", "comp": "list", "prefix": prefix, "delimiter": "/"}
        found = []
        while True:
            url = self._url("", query)
            root = parse_xml(self._exchange.call("LIST", "GET", url, {}, key=self._location.host)[1], endpoint_of(url))
            for blob in root.iterfind("Blobs/Blob"):
                txids = parse_file_name((blob.findtext("Name") or "").removeprefix(prefix))
                if txids is not None and txids[0] >= min_txid:
                    found.append(_file_info(level, txids, blob))
            marker = root.findtext("NextMarker") or ""
            if not marker or marker == query.get("marker"):
                return sorted(found, key=lambda file: (file.min_txid, file.max_txid))
            query["marker"] = marker

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """See `ReplicaClient.read`. One request; none for zero bytes."""
        self._exchange.transport.check_open()
        if size == 0:
            return b""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        key = self.key(file)
        url = self._url(key)
        headers = range_header(offset, size)
        if file.etag:
            headers["If-Match"] = f'"{file.etag}"'
        with about(file, key):
            response = self._exchange.send("GET", "GET", url, headers, expected=(200, 206, 412, 416), deadline=deadline)
            if response.status == 412:
                response.close()
                raise StorageNotFoundError("the blob was replaced since it was listed")
            return read_range(self._exchange.transport, response, url, file, offset, size)

    def read_named(
        self, level: int, min_txid: int, max_txid: int, size: int, *, timeout_s: float | None = None
    ) -> tuple[LTXFileInfo, bytes] | None:
        """See `ReadsNamed.read_named`."""
        self._exchange.transport.check_open()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        file = LTXFileInfo(level, min_txid, max_txid, 0, 0)
        key = self.key(file)
        url = self._url(key)
        with about(file, key):
            headers, expected = range_header(0, size), (200, 206, 404, 416)
            response = self._exchange.send("GET", "GET", url, headers, expected=expected, deadline=deadline)
            if response.status == 404:
                self._exchange.read(response, url)
                return None
            return read_named(
                self._exchange.transport, response, url, file, size, plain_etag(response.headers.get("ETag"))
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
        """See `ReplicaClient.write`. One request up to `part_size` bytes, blocks beyond."""
        self._exchange.transport.check_open()
        file = LTXFileInfo(level, min_txid, max_txid, 0, timestamp_ms)
        key = self.key(file)
        headers = {
            "x-ms-meta-litestreamtimestamp": rfc3339(timestamp_ms),  # Azure's names of metadata have no dashes
            "x-ms-blob-content-type": "application/octet-stream",
        }
        if exclusive:
            headers["If-None-Match"] = "*"
        stream = open_stream(data)
        first = read_part(stream, self._part_size)
        with about(file, key):
            if len(first) < self._part_size:
                response, size = self._put(key, first, headers), len(first)
            else:
                response, size = self._put_blocks(key, first, stream, headers)
            if response.status in (409, 412):
                raise StorageFileExistsError("the blob exists")
        modified_ms = date_ms(response.headers.get("Last-Modified"), int(time.time() * 1000))
        etag = plain_etag(response.headers.get("ETag"))
        return LTXFileInfo(level, min_txid, max_txid, size, modified_ms, etag)

    def _put(self, key: str, data: bytes, headers: dict[str, str]) -> BaseHTTPResponse:
        return self._send_body(self._url(key), data, {"x-ms-blob-type": "BlockBlob", **headers})

    def _put_blocks(
        self, key: str, first: bytes, stream: BinaryIO, headers: dict[str, str]
    ) -> tuple[BaseHTTPResponse, int]:
        """Upload in blocks, which become a blob once they are listed; Azure deletes unlisted blocks after a week."""
        upload, size = uuid.uuid4().hex, 0
        names: list[str] = []
        for part, _ in parts_of(first, stream, self._part_size):
            name = base64.b64encode(f"{upload}-{len(names):06d}".encode()).decode()
            self._send_body(self._url(key, {"comp": "block", "blockid": name}), part, {}, expected=(201,))
            names.append(name)
            size += len(part)
        listed = "".join(f"<Latest>{name}</Latest>" for name in names)
        body = f"<?xml version='1.0' encoding='utf-8'?><BlockList>{listed}</BlockList>".encode()
        return self._send_body(self._url(key, {"comp": "blocklist"}), body, headers), size

    def _send_body(
        self, url: str, body: bytes, headers: dict[str, str], expected: tuple[int, ...] = (201, 409, 412)
    ) -> BaseHTTPResponse:
        if not {"If-None-Match", "If-Match"} & headers.keys():
            expected = (201,)
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/octet-stream", **headers}
        return self._exchange.call("PUT", "PUT", url, headers, body=body, expected=expected)[0]

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """See `ReplicaClient.delete`. One request a file."""
        self._exchange.transport.check_open()
        for file in files:
            with about(file, self.key(file)):
                self._delete(self.key(file))

    def _delete(self, key: str) -> None:
        self._exchange.call("DELETE", "DELETE", self._url(key), {}, expected=(202, 404))

    # --- objects beside the levels ------------------------------------------------------------------------------------

    def read_object(self, name: str) -> SideObject | None:
        """See `SideObjects.read_object`. One request."""
        self._exchange.transport.check_open()
        key = f"{self._location.prefix}{name}"
        url = self._url(key)
        response = self._exchange.send("GET", "GET", url, {}, expected=(200, 404), key=key)
        data = self._exchange.read(response, url, MAX_SIDE_OBJECT_BYTES)
        return None if response.status == 404 else SideObject(data, plain_etag(response.headers.get("ETag")))

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `SideObjects.put_object`. One request."""
        self._exchange.transport.check_open()
        key = f"{self._location.prefix}{name}"
        headers = {"x-ms-blob-cache-control": "no-cache"}
        if if_absent:
            headers["If-None-Match"] = "*"
        elif if_match is not None:
            headers["If-Match"] = f'"{if_match}"'
        response = self._put(key, data, headers)
        if response.status in (409, 412):
            raise StoragePreconditionError("the blob is another", key=key)
        return plain_etag(response.headers.get("ETag"))

    def delete_object(self, name: str) -> None:
        """See `SideObjects.delete_object`. One request."""
        self._exchange.transport.check_open()
        self._delete(f"{self._location.prefix}{name}")

    # --- the rest -----------------------------------------------------------------------------------------------------

    def key(self, file: LTXFileInfo) -> str:
        """The blob's name in the container."""
        return self._location.key(file)

    def close(self) -> None:
        """See `ReplicaClient.close`."""
        self._access.close()
        self._exchange.transport.close()

    def _url(self, key: str, query: dict[str, str] | None = None) -> str:
        url = f"{self._endpoint}/{quote(self._location.host)}" + (f"/{quote(key)}" if key else "")
        texts = [text for text in (urlencode(query or {}), self._access.sas) if text]
        return f"{url}?{'&'.join(texts)}" if texts else url


def _endpoint(given: str | None, account: str) -> str:
    if given is None:
        if not account:
            raise ReplicaURLError("an abs URL without an account", hint=f"{_EXAMPLE}, or AZURE_STORAGE_ACCOUNT")
        return f"https://{quote(account, safe='')}.blob.core.windows.net"
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in parts.netloc:
        raise ReplicaURLError("the endpoint of an abs URL is none", hint="for example endpoint=https://host/account")
    return given.rstrip("/")


def _file_info(level: int, txids: tuple[int, int], blob: ET.Element) -> LTXFileInfo:
    size = blob.findtext("Properties/Content-Length") or ""
    if not size.isdecimal():
        raise StorageError(f"a blob of level {level} is listed without its size")
    modified_ms = date_ms(blob.findtext("Properties/Last-Modified"))
    etag = plain_etag(blob.findtext("Properties/Etag") or blob.findtext("Properties/ETag"))
    return LTXFileInfo(level, *txids, int(size), modified_ms, etag)
