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
from dataclasses import replace
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode

from litevfs.errors import StorageError, StorageFileExistsError, StoragePreconditionError
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.google_tokens import PERMISSION_HINT, google_tokens
from litevfs.replica_clients.http.answers import about
from litevfs.replica_clients.http.exchange import Exchange
from litevfs.replica_clients.http.files import HTTPFiles, Page
from litevfs.replica_clients.http.tokens import Tokens
from litevfs.replica_clients.http.transport import endpoint_of
from litevfs.replica_clients.http.uploads import open_stream, parts_of, read_part
from litevfs.replica_clients.layouts import GENERATIONS
from litevfs.replica_clients.location import parse_location
from litevfs.replica_clients.times import iso_ms, rfc3339

BLOCK_SIZE = 1 << 16
PART_SIZE = 16 << 20
"""Bytes of a part of a resumable upload, a multiple of 256 KiB as Google wants it, and of memory an upload takes."""
_ENDPOINT = "https://storage.googleapis.com"
_BOUNDARY = "litevfs-9f1c2b7a53d84e06"
_FIELDS = "items(name,size,generation,timeCreated),nextPageToken"
_RESUME = 308


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
            renew=lambda refused, deadline: self._tokens is not None and self._tokens.renew(refused, deadline),
            permission_hint=PERMISSION_HINT,
            hint_of=self._hint_of,
        )
        if emulator:
            self._endpoint = (emulator if "://" in emulator else f"http://{emulator}").rstrip("/")
        else:
            self._tokens = google_tokens(self._exchange.transport, read_timeout_s)
        self._part_size = part_size
        self._files = HTTPFiles(
            self._exchange,
            self._location,
            url=self._object_url,
            page=self._list_page,
            # Read the generation that was listed, also if the bucket keeps replaced ones.
            content_url=lambda key, version: self._object_url(
                key, alt="media", **({"generation": version} if version else {})
            ),
            version_of=lambda response: response.headers.get("x-goog-generation", ""),
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
        """The replica's URL in its one spelling."""
        return self._location.url

    @property
    def requests(self) -> dict[str, int]:
        """HTTP requests sent so far, by kind: LIST, GET, PUT (every request of an upload), DELETE."""
        return self._exchange.transport.requests

    def _list_page(self, prefix: str, level: int, min_txid: int, mark: str) -> Page:
        """At most 1,000 files below `prefix`, from a level and a TXID on.

        The names of levels have one digit, so Google's order of names is that of levels.
        """
        query = {"prefix": prefix, "maxResults": "1000", "fields": _FIELDS}
        query["startOffset"] = f"{self._location.folder(level)}{min_txid:016x}"
        if mark:
            query["pageToken"] = mark
        answer = self._list(query)
        found = []
        for item in answer.get("items", ()):
            parsed = self._location.parse_key(str(item["name"]))
            if parsed is not None:
                created_ms = iso_ms(item["timeCreated"])
                found.append(LTXFileInfo(*parsed, int(item["size"]), created_ms, str(item["generation"])))
        return found, str(answer.get("nextPageToken") or "")

    @property
    def path(self) -> str:
        """See `ListsFolders.path`."""
        return self._location.path

    def list_folders(self, path: str) -> list[str]:
        """See `ListsFolders.list_folders`. The first thousand names."""
        prefix = f"{path}/" if path else ""
        found = self._list({"prefix": prefix, "delimiter": "/", "maxResults": "1000"}).get("prefixes", ())
        return [str(folder).removeprefix(prefix).strip("/") for folder in found]

    def place_of(self, path: str) -> str:
        """See `ListsFolders.place_of`."""
        return replace(self._location, path=path).url

    def _has_old(self) -> bool:
        query = {"prefix": f"{self._location.prefix}{GENERATIONS}/", "maxResults": "1", "fields": _FIELDS}
        return bool(self._list(query).get("items"))

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        url = f"{self._endpoint}/storage/v1/b/{self._bucket}/o?{urlencode(query)}"
        key = f"{self._location.host}/{query['prefix']}"
        return _parsed(self._exchange.call("LIST", "GET", url, {}, key=key)[1], url)

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

    # --- objects beside the levels ------------------------------------------------------------------------------------

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `SideObjects.put_object`. One request."""
        self._exchange.transport.check_open()
        generation = "0" if if_absent else if_match
        condition = {} if generation is None else {"ifGenerationMatch": generation}
        key = f"{self._location.prefix}{name}"
        if if_match is not None and not if_match.isdecimal():  # an etag of another storage
            raise StoragePreconditionError("the object is another", key=key)
        try:
            answer = self._put({"name": key, "cacheControl": "no-cache"}, data, condition)
        except StorageFileExistsError as exc:
            raise StoragePreconditionError("the object is another", key=key) from exc
        return str(answer["generation"])

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

    def _hint_of(self, kind: str, status: int) -> str | None:
        if status != 404 or kind not in ("LIST", "PUT"):
            return None
        bucket = self._location.host
        return f"is there a bucket {bucket!r}? `gcloud storage buckets create gs://{bucket}` makes it"

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
