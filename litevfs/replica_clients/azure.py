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
from dataclasses import replace
from typing import BinaryIO
from urllib.parse import quote, urlencode, urlsplit

from litevfs.errors import ReplicaURLError, StorageError, StorageFileExistsError, StoragePreconditionError
from litevfs.replica_clients.azure_access import PERMISSION_HINT, AzureAccess
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.http.answers import about, date_ms, plain_etag
from litevfs.replica_clients.http.exchange import Exchange
from litevfs.replica_clients.http.files import HTTPFiles, Page
from litevfs.replica_clients.http.plain import Answer
from litevfs.replica_clients.http.transport import endpoint_of
from litevfs.replica_clients.http.uploads import open_stream, parts_of, read_part
from litevfs.replica_clients.http.xml import parse_xml
from litevfs.replica_clients.layouts import GENERATIONS
from litevfs.replica_clients.location import parse_location
from litevfs.replica_clients.times import rfc3339

BLOCK_SIZE = 1 << 16
PART_SIZE = 16 << 20
"""Bytes of a block of an upload, and of memory an upload takes; Azure allows 50,000 blocks."""
_STARTING_VERSION = "2026-02-06"
"""The first version of the service whose List Blobs takes `startFrom`."""
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
            is_refused=self._access.is_refused,
            address=self._access.address,
            permission_hint=PERMISSION_HINT,
            hint_of=self._hint_of,
        )
        self._part_size = part_size
        self._can_start = True  # listings at a name, as far as is known
        self._files = HTTPFiles(
            self._exchange,
            self._location,
            url=self._url,
            page=self._list_page,
            condition=lambda version: {"If-Match": f'"{version}"'},
            has_old=self._has_old,
        )
        # What storages that speak HTTP have in common.
        self.list_files, self.list_from = self._files.list_files, self._files.list_from
        self.read, self.read_pieces, self.read_named = self._files.read, self._files.read_pieces, self._files.read_named
        self.read_object, self.delete_object = self._files.read_object, self._files.delete_object
        self.delete = self._files.delete

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

    @property
    def workarounds(self) -> tuple[str, ...]:
        """See `FindsWays.workarounds`."""
        if self._can_start:
            return ()
        return (f"listings do not start at a name (service version {_STARTING_VERSION}): whole levels are listed",)

    def _list_page(self, prefix: str, level: int, min_txid: int, mark: str) -> Page:
        """At most 5,000 files below `prefix`, from a level and a TXID on if the service can start at a name.

        Azure's order of names is that of levels.
        """
        query = {"prefix": prefix} | ({"marker": mark} if mark else {})
        status = 400
        if self._can_start:
            start = f"{self._location.folder(level)}{min_txid:016x}"
            status, body, url = self._list({**query, "startFrom": start}, {"x-ms-version": _STARTING_VERSION}, 400)
        if status == 400:
            status, body, url = self._list(query, {})
            self._can_start = False  # the service is older: it knows neither the parameter nor the version
        root = parse_xml(body, endpoint_of(url))
        found = []
        for blob in root.iterfind("Blobs/Blob"):
            parsed = self._location.parse_key(blob.findtext("Name") or "")
            if parsed is not None:
                found.append(_file_info(parsed, blob))
        return found, root.findtext("NextMarker") or ""

    @property
    def path(self) -> str:
        """See `ListsFolders.path`."""
        return self._location.path

    def list_folders(self, path: str) -> list[str]:
        """See `ListsFolders.list_folders`. The first 5,000 names."""
        prefix = f"{path}/" if path else ""
        _, body, url = self._list({"prefix": prefix, "delimiter": "/"}, {})
        names = (
            found.findtext("Name") or "" for found in parse_xml(body, endpoint_of(url)).iterfind("Blobs/BlobPrefix")
        )
        return [name.removeprefix(prefix).strip("/") for name in names]

    def place_of(self, path: str) -> str:
        """See `ListsFolders.place_of`."""
        return replace(self._location, path=path).url

    def _has_old(self) -> bool:
        query = {"prefix": f"{self._location.prefix}{GENERATIONS}/", "maxresults": "1"}
        _, body, url = self._list(query, {})
        return parse_xml(body, endpoint_of(url)).find("Blobs/Blob") is not None

    def _list(self, query: dict[str, str], headers: dict[str, str], *also: int) -> tuple[int, bytes, str]:
        url = self._url("", {"restype": "container", "comp": "list", **query})
        response, body = self._exchange.call(
            "LIST", "GET", url, headers, expected=(200, *also), key=self._location.host
        )
        return response.status, body, url

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

    def _put(self, key: str, data: bytes, headers: dict[str, str]) -> Answer:
        return self._send_body(self._url(key), data, {"x-ms-blob-type": "BlockBlob", **headers})

    def _put_blocks(self, key: str, first: bytes, stream: BinaryIO, headers: dict[str, str]) -> tuple[Answer, int]:
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
    ) -> Answer:
        if not {"If-None-Match", "If-Match"} & headers.keys():
            expected = (201,)
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/octet-stream", **headers}
        return self._exchange.call("PUT", "PUT", url, headers, body=body, expected=expected)[0]

    # --- objects beside the levels ------------------------------------------------------------------------------------

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

    # --- the rest -----------------------------------------------------------------------------------------------------

    def key(self, file: LTXFileInfo) -> str:
        """The blob's name in the container."""
        return self._location.key(file)

    def close(self) -> None:
        """See `ReplicaClient.close`."""
        self._access.close()
        self._exchange.transport.close()

    def _hint_of(self, kind: str, status: int) -> str | None:
        if status != 404 or kind not in ("LIST", "PUT"):
            return None
        container = self._location.host
        made = (
            f"is there a container {container!r} in the account? `az storage container create -n {container}` makes it"
        )
        if "endpoint" in self._location.parameters:
            made += "; the endpoint of Azurite ends with the account: http://127.0.0.1:10000/devstoreaccount1"
        return made

    def _url(self, key: str, query: dict[str, str] | None = None) -> str:
        url = f"{self._endpoint}/{quote(self._location.host)}" + (f"/{quote(key)}" if key else "")
        return f"{url}?{urlencode(query)}" if query else url


def _endpoint(given: str | None, account: str) -> str:
    if given is None:
        if not account:
            raise ReplicaURLError("an abs URL without an account", hint=f"{_EXAMPLE}, or AZURE_STORAGE_ACCOUNT")
        return f"https://{quote(account, safe='')}.blob.core.windows.net"
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in parts.netloc:
        raise ReplicaURLError("the endpoint of an abs URL is none", hint="for example endpoint=https://host/account")
    return given.rstrip("/")


def _file_info(parsed: tuple[int, int, int], blob: ET.Element) -> LTXFileInfo:
    size = blob.findtext("Properties/Content-Length") or ""
    if not size.isdecimal():
        raise StorageError(f"a blob of level {parsed[0]} is listed without its size")
    modified_ms = date_ms(blob.findtext("Properties/Last-Modified"))
    etag = plain_etag(blob.findtext("Properties/Etag") or blob.findtext("Properties/ETag"))
    return LTXFileInfo(*parsed, int(size), modified_ms, etag)
