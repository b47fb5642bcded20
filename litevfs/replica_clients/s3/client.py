"""Replicas in S3 and what speaks its protocol: `path/<level as 4 hex digits>/<min_txid>-<max_txid>.ltx`.

Source of the layout: Litestream 0.5, `s3/replica_client.go`. The timestamp of a file's LTX header is in the object's
metadata. Owns what is asked of the server and the judgement of its answers; reads and listings go straight over
`s3_transport`, at a third of the CPU that botocore's own calls take, writes and deletes go through botocore.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, BinaryIO

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import BotoCoreError, ClientError
from urllib3 import BaseHTTPResponse

from litevfs.errors import OptionError, StorageError, StorageFileExistsError, StorageNotFoundError
from litevfs.ltx.names import format_file_name, parse_file_name
from litevfs.replica_clients.base import LEVELS, LTXFileInfo, SideObject
from litevfs.replica_clients.http.transport import MAX_WAIT_S, Transport, endpoint_of
from litevfs.replica_clients.s3 import objects
from litevfs.replica_clients.s3.access import S3Access
from litevfs.replica_clients.s3.errors import error_from_answer
from litevfs.replica_clients.s3.listing import ListPage, all_pages, list_query, parse_list_page, plain_etag
from litevfs.replica_clients.s3.requests import SignedRequests
from litevfs.replica_clients.s3.url import parse_s3_url

BLOCK_SIZE = 1 << 16
"""Bytes that cost hardly more to read than one byte."""
PART_SIZE = 32 << 20
"""Bytes of a part of a multipart upload, and of memory an upload takes; S3 allows 10,000 parts (here 320 GB)."""

_LEVEL_OF = {f"{level:04x}": level for level in LEVELS}  # by the name of its folder
_DELETE_BATCH = 1000  # keys S3 takes in one DeleteObjects
_LIST_LIMIT_BYTES = 16 << 20  # of one page of at most 1,000 keys
_MAX_OFFSET = 2**63 - 1  # servers refuse larger numbers
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)", re.ASCII)
_KINDS = {"DeleteObjects": "DELETE", "AbortMultipartUpload": "DELETE", "HeadBucket": "HEAD"}  # all others write: PUT

_Answer = dict[str, Any]
_Call = Callable[..., _Answer]


class S3ReplicaClient:
    """A replica in S3.

    `url` is described in `s3_url`; without `endpoint` in it, LITESTREAM_S3_ENDPOINT is looked at. `read_timeout_s`
    bounds each wait for bytes from the server (which has to send them faster than a drip, see `s3_connections`),
    `connect_timeout_s` that for a connection; `max_connections` are kept for parallel requests. Uploads of more than
    `part_size` bytes (at least 5 MiB) go in parts. Nothing is sent, and no credential looked for, before the first
    call. Raises OptionError for a time limit in which nothing can arrive.
    """

    block_size = BLOCK_SIZE
    keeps_conditions = False  # some servers ignore them

    def __init__(
        self,
        url: str,
        *,
        read_timeout_s: float = 30.0,
        connect_timeout_s: float = 10.0,
        max_connections: int = 32,
        part_size: int = PART_SIZE,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
    ) -> None:
        self._location = parse_s3_url(url, os.environ.get("LITESTREAM_S3_ENDPOINT"))
        if read_timeout_s <= 0:
            raise OptionError(f"read_timeout {read_timeout_s:g} s leaves S3 no time to answer", hint="for example 30s")
        read_timeout_s = min(read_timeout_s, MAX_WAIT_S)
        self._access = S3Access(
            self._location, self._send_for_botocore, access_key_id, secret_access_key, timeout_s=read_timeout_s
        )
        self._transport = Transport(
            connect_timeout_s=min(connect_timeout_s, read_timeout_s),
            read_timeout_s=read_timeout_s,
            max_connections=max_connections,
            verify=self._access.certificates,
        )
        self._requests = SignedRequests(self._access, self._transport)
        self._part_size = part_size
        self._knows_conditions = True  # until the server says otherwise
        self._sse_headers = self._location.sse.headers() if self._location.sse else {}

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

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`. One request per 1,000 files from `min_txid` on."""
        self._transport.check_open()
        prefix = self._folder(level)
        # Sorts before all names with this min_txid, and after those with a smaller one.
        start_after = f"{prefix}{min_txid:016x}" if min_txid > 1 else None
        endpoint = endpoint_of(self._access.bucket_url())
        found = []
        for listed in all_pages(lambda token: self._list_page(prefix, start_after, token), endpoint):
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
        found = []
        for listed in page.objects:
            folder, _, name = listed.key.removeprefix(prefix).partition("/")
            txids, listed_level = parse_file_name(name), _LEVEL_OF.get(folder, -1)
            is_wanted = listed_level > level or (listed_level == level and txids is not None and txids[0] >= min_txid)
            if txids is not None and is_wanted and listed.key.startswith(prefix):
                found.append(LTXFileInfo(listed_level, *txids, listed.size, listed.modified_ms, listed.etag))
        is_past = bool(page.objects) and page.objects[-1].key >= self._folder(LEVELS.stop)
        return sorted(found, key=lambda f: (f.level, f.min_txid, f.max_txid)), page.next_token is None or is_past

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """See `ReplicaClient.read`. One request; none for zero bytes."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._transport.check_open()
        if size == 0:
            return b""
        headers = dict(self._sse_headers)
        if offset or size is not None:
            headers["Range"] = f"bytes={offset}-" + ("" if size is None else str(min(offset + size - 1, _MAX_OFFSET)))
        key = self.key(file)
        with _about(file, key):
            url, response = self._requests.get(
                "GET",
                lambda: self._access.object_url(key),
                headers,
                deadline,
                key,
                is_gone=lambda: self._is_gone(key, deadline),
            )
            if response.status == 416:
                if offset < file.size:
                    raise StorageNotFoundError("the object is shorter than it was when listed")
                return b""
            try:
                length = _expected_length(response, file, offset, size, endpoint_of(url))
            except StorageError:
                response.close()  # its body may be of any size
                raise
            return self._transport.read_body(response, url, length)

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

        `exclusive` needs a server that knows `If-None-Match`, as Amazon's and MinIO do. One that says that it does not
        is asked before each upload what is there; then two writers at the same moment can miss each other.
        """
        self._transport.check_open()
        key = f"{self._folder(level)}{format_file_name(min_txid, max_txid)}"
        target = {"Bucket": self._location.bucket, "Key": key}
        metadata = {"Metadata": {"litestream-timestamp": rfc3339(timestamp_ms)}}
        stream = io.BytesIO(data) if isinstance(data, bytes) else data
        first = self._read_part(stream)
        file = LTXFileInfo(level, min_txid, max_txid, len(first), timestamp_ms)
        store = partial(self._store_new, file) if exclusive else _store
        with self._access.translated(key):
            if len(first) < self._part_size:
                size, sse = len(first), self._sse_parameters()
                answer = store(partial(self._access.client.put_object, Body=first, **target, **metadata, **sse))
            else:
                size, answer = self._upload_parts(first, stream, target, metadata, store)
        modified_ms = _date_ms(answer["ResponseMetadata"]["HTTPHeaders"].get("date"))
        return LTXFileInfo(level, min_txid, max_txid, size, modified_ms, plain_etag(answer.get("ETag", "")))

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """See `ReplicaClient.delete`. One request per 1,000 files; all are tried before an error is raised."""
        self._transport.check_open()
        keys = list(dict.fromkeys(map(self.key, files)))
        errors: list[dict[str, str]] = []
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = [{"Key": key} for key in keys[start : start + _DELETE_BATCH]]
            with self._access.translated(f"{batch[0]['Key']} and {len(batch) - 1} more"):
                client = self._access.client
                answer = client.delete_objects(Bucket=self._location.bucket, Delete={"Objects": batch, "Quiet": True})
            errors += [error for error in answer.get("Errors", ()) if error.get("Code") != "NoSuchKey"]
        if errors:
            code, key = errors[0].get("Code", ""), errors[0].get("Key", "")
            message = self._access.redacted(f"{errors[0].get('Message', '')} ({len(errors)} of {len(keys)} files)")
            status = 403 if code == "AccessDenied" else 200
            raise error_from_answer(status, code, message, {}, self._access.endpoint, key=key)

    def read_object(self, name: str) -> SideObject | None:
        """See `SideObjects.read_object`. One request."""
        self._transport.check_open()
        key = f"{self._location.prefix}{name}"
        return objects.read_object(
            self._access, self._requests, self._transport, key, is_gone=lambda: self._is_gone(key, None)
        )

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `SideObjects.put_object`. One request."""
        self._transport.check_open()
        key = f"{self._location.prefix}{name}"
        return objects.put_object(self._access, self._location.bucket, key, data, if_match, if_absent)

    def delete_object(self, name: str) -> None:
        """See `SideObjects.delete_object`. One request."""
        self._transport.check_open()
        objects.delete_object(self._access, self._location.bucket, f"{self._location.prefix}{name}")

    def key(self, file: LTXFileInfo) -> str:
        """The object's key in the bucket."""
        return f"{self._folder(file.level)}{file.name}"

    def close(self) -> None:
        """See `ReplicaClient.close`."""
        self._transport.close()

    def _folder(self, level: int) -> str:
        return f"{self._location.prefix}{level:04x}/"

    def _is_gone(self, key: str, deadline: float | None) -> bool:
        """Whether a listing shows that an object, the read of which was refused, does not exist.

        To credentials that may list some prefixes only, S3 answers 403 instead of 404 for what does not exist.
        """
        try:
            return all(listed.key != key for listed in self._list_page(key, None, None, deadline).objects)
        except StorageError:
            return False

    def _list_page(
        self, prefix: str, start_after: str | None, token: str | None, deadline: float | None = None
    ) -> ListPage:
        query = list_query(prefix, start_after, token)
        where = f"{self._location.bucket}/{prefix}"
        url, response = self._requests.get("LIST", lambda: f"{self._access.bucket_url()}?{query}", {}, deadline, where)
        return parse_list_page(self._transport.read_body(response, url, _LIST_LIMIT_BYTES), endpoint_of(url))

    def _store_new(self, file: LTXFileInfo, call: _Call) -> _Answer:
        """The call that stores `file`, made so that it replaces nothing. Raises StorageFileExistsError."""
        with _about(file, self.key(file)):
            if self._knows_conditions:
                try:
                    return call(IfNoneMatch="*")
                except ClientError as exc:
                    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                    if status == 412:
                        raise StorageFileExistsError("the object exists") from exc
                    if status != 501:
                        raise
                    self._knows_conditions = False
            if any(other.name == file.name for other in self.list_files(file.level, file.min_txid)):
                raise StorageFileExistsError("the object exists")
            return call()

    def _upload_parts(
        self,
        first: bytes,
        rest: BinaryIO,
        target: dict[str, str],
        metadata: dict[str, Any],
        store: Callable[[_Call], _Answer],
    ) -> tuple[int, _Answer]:
        """Upload `first` and all of `rest` in parts that become one object at the end; its size and the last answer."""
        client, sse = self._access.client, self._sse_parameters()
        upload = {**target, "UploadId": client.create_multipart_upload(**target, **metadata, **sse)["UploadId"]}
        parts: list[dict[str, Any]] = []
        size, part = 0, first
        try:
            while part:
                number = len(parts) + 1
                answer = client.upload_part(Body=part, PartNumber=number, **upload, **sse)
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
                size += len(part)
                part = self._read_part(rest)
            return size, store(partial(client.complete_multipart_upload, MultipartUpload={"Parts": parts}, **upload))
        except BaseException:
            with contextlib.suppress(ClientError, BotoCoreError, StorageError):  # the first failure is the one to tell
                client.abort_multipart_upload(**upload)
            raise

    def _read_part(self, stream: BinaryIO) -> bytes:
        """`part_size` bytes, fewer only at the end (a raw stream may give less at a time)."""
        part = stream.read(self._part_size)
        if not part or len(part) == self._part_size:
            return part
        pieces, size = [part], len(part)
        while size < self._part_size and (piece := stream.read(self._part_size - size)):
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)

    def _sse_parameters(self) -> dict[str, Any]:
        sse = self._location.sse
        if sse is None:
            return {}
        # With the MD5, botocore takes the key as the base64 it is.
        return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": sse.key_base64, "SSECustomerKeyMD5": sse.md5}

    def _send_for_botocore(self, request: AWSPreparedRequest, event_name: str, **_: object) -> AWSResponse:
        """Handler of botocore's `before-send` event: its requests go over our connections, which `close` can end."""
        operation = event_name.rpartition(".")[2]
        if operation == "DeleteObjects" and isinstance(request.body, bytes):
            # botocore sends a newer checksum instead, which not every server of S3's protocol knows.
            request.headers["Content-MD5"] = _base64_md5(request.body)
        kind = _KINDS.get(operation, "PUT")
        response = self._transport.request(kind, request.method, request.url, request.headers, request.body)
        answer = AWSResponse(request.url, response.status, response.headers, response)  # type: ignore[arg-type]
        with self._transport.translated(request.url):
            answer.content  # noqa: B018 - reads the body now, while errors are translated
        return answer


def _store(call: _Call) -> _Answer:
    return call()


def _base64_md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def rfc3339(timestamp_ms: int) -> str:
    """A time in milliseconds since the Unix epoch as Go's time.RFC3339Nano writes it: UTC, no zeros at the end."""
    seconds, millis = divmod(timestamp_ms, 1000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return text + f".{millis:03d}".rstrip("0").rstrip(".") + "Z"


def _expected_length(
    response: BaseHTTPResponse, file: LTXFileInfo, offset: int, size: int | None, endpoint: str
) -> int:
    """The bytes the body must have, by headers that are whole and fit what was asked for."""
    etag = plain_etag(response.headers.get("ETag", ""))
    if file.etag and etag and etag != file.etag:
        raise StorageNotFoundError("the object was replaced since it was listed")
    length = response.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise _unsound(f"{endpoint} answered without Content-Length")
    if response.status == 200:
        if offset == 0 and (size is None or int(length) <= size):
            return int(length)
        raise _unsound(f"{endpoint} ignored the byte range asked for")
    given = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(given)
    if match is None:
        raise _unsound(f"{endpoint} answered with Content-Range {given!r}")
    first, last, total = map(int, match.groups())
    end = total if size is None else min(offset + size, total)
    if (first, last + 1, int(length)) != (offset, end, end - offset):
        raise _unsound(f"{endpoint} answered {given!r} and {length} bytes, asked for bytes {offset}-{end - 1}")
    return int(length)


def _unsound(message: str) -> StorageError:
    return StorageError(message, hint="a proxy or cache before the server, or the server, is at fault")


@contextlib.contextmanager
def _about(file: LTXFileInfo, key: str) -> Iterator[None]:
    """Say in every storage error of this block which file it is about."""
    try:
        yield
    except StorageError as error:
        error.level, error.min_txid, error.max_txid, error.key = file.level, file.min_txid, file.max_txid, key
        raise


def _date_ms(date: str | None) -> int:
    """A Date header in milliseconds since the Unix epoch; our own clock where the server gives none."""
    try:
        return int(parsedate_to_datetime(date or "").timestamp() * 1000)
    except ValueError:
        return int(time.time() * 1000)
