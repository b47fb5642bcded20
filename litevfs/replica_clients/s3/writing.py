"""Writes and deletes in an S3 bucket: uploads in one request or in parts, conditions, deletes of many keys.

Sends only what the oldest servers understand: Content-MD5 and no newer checksum, no `Expect`. Knows no LTX files.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from litevfs.errors import (
    StorageError,
    StorageFileExistsError,
    StorageNotFoundError,
    StoragePermissionError,
    TransientStorageError,
)
from litevfs.replica_clients.http.answers import plain_etag
from litevfs.replica_clients.s3.access import S3Access
from litevfs.replica_clients.s3.errors import NO_S3_HINT, error_from_answer
from litevfs.replica_clients.s3.requests import AnswerError, Request, SignedRequests
from litevfs.replica_clients.s3.ways import ServerWays, Way

NO_CONDITIONS_STATUS = frozenset({400, 405, 501})
"""Answers of servers that do not support a condition; Amazon's own is 501."""
EXISTS_STATUS = frozenset({304, 412})
_BATCH = 1000  # keys S3 takes in one DeleteObjects
_LIMIT_BYTES = 4 << 20  # of an answer
_HEAD_BYTES = 1000  # of a page, enough to see what it is
_UPLOAD_ID = re.compile(rb"<(?:\w+:)?UploadId(?: [^>]*)?>\s*([^<\s]+)\s*</")
_ETAG = re.compile(rb"<(?:\w+:)?ETag(?: [^>]*)?>\s*(?:&quot;|&#34;|\")?([^<&\"\s]+)")


@dataclass(frozen=True, slots=True)
class Stored:
    """A server's answer about an object that it has stored."""

    size: int  # bytes
    etag: str  # plain, "" if the answer has none
    date: str  # the server's


class Writer:
    """Stores and deletes objects of the bucket that `access` reaches."""

    def __init__(
        self,
        access: S3Access,
        requests: SignedRequests,
        ways: ServerWays,
        *,
        part_size: int,
        headers: dict[str, str],
        sse_headers: dict[str, str],
    ) -> None:
        self._access = access
        self._requests = requests
        self._ways = ways
        self._part_size = part_size
        self._headers = headers  # headers of requests that make an object
        self._sse_headers = sse_headers  # headers of each part of an object

    def store(
        self, key: str, stream: BinaryIO, metadata: dict[str, str], exists: Callable[[], bool] | None = None
    ) -> Stored:
        """Store all of `stream` as the object `key`, in one step as readers see it.

        With `exists`, only if there is none: raises StorageFileExistsError. For a server that refuses the condition,
        the writer calls `exists` before each upload from then on.
        """
        first = self._read_part(stream)
        headers = {**self._headers, **metadata}
        if len(first) < self._part_size:
            request = self._put(key, first, headers)
            answer, said = self._conditionally(request, exists)
            if said.strip() and (b"<html" in said[:_HEAD_BYTES].lower() or not said.lstrip().startswith((b"<", b"{"))):
                raise self._no_answer(key)
            return Stored(len(first), plain_etag(answer.get("etag", "")), answer.get("date", ""))
        return self._store_parts(key, first, stream, headers, exists)

    def _put(self, key: str, body: bytes, headers: dict[str, str], query: str = "") -> Request:
        return Request(
            "PUT",
            "PUT",
            key,
            query,
            headers={**headers, "Content-MD5": _base64_md5(body)},
            body=body,
            expected=(200, 201, 204),
        )

    def _post(self, key: str, query: str, body: bytes, headers: dict[str, str]) -> Request:
        headers = {**headers, **({"Content-Type": "application/xml"} if body else {})}
        return Request("PUT", "POST", key, query, headers=headers, body=body, expected=(200, 201))

    def _conditionally(self, request: Request, exists: Callable[[], bool] | None) -> tuple[dict[str, str], bytes]:
        """The answer to a request that makes an object; with `exists`, only if there is no such object."""
        if exists is None:
            return self._requests.call(request, _LIMIT_BYTES)
        refused: AnswerError | None = None
        if Way.NO_CONDITIONS not in self._ways:
            try:
                condition = {"If-None-Match": "*"}
                return self._requests.try_to_call(
                    replace(request, headers={**request.headers, **condition}), _LIMIT_BYTES
                )
            except AnswerError as refusal:
                if refusal.status in EXISTS_STATUS or refusal.answer.code == "PreconditionFailed":
                    raise StorageFileExistsError("the object exists", key=request.key) from refusal.error
                if refusal.status not in NO_CONDITIONS_STATUS or isinstance(refusal.error, _NOT_OF_CONDITIONS):
                    raise refusal.error from None
                refused = refusal
        if exists():
            raise StorageFileExistsError("the object exists", key=request.key)
        answer = self._requests.call(request, _LIMIT_BYTES)
        if refused is not None:  # the server accepts it without the condition
            self._ways.note(Way.NO_CONDITIONS)
        return answer

    def _store_parts(
        self, key: str, first: bytes, rest: BinaryIO, headers: dict[str, str], exists: Callable[[], bool] | None
    ) -> Stored:
        """Upload `first` and all of `rest` in parts that become one object at the end."""
        _, body = self._requests.call(self._post(key, "uploads=", b"", headers), _LIMIT_BYTES)
        match = _UPLOAD_ID.search(body)
        if match is None:
            raise self._no_answer(key)
        upload = f"uploadId={quote(match[1].decode('utf-8', 'replace'), safe='-_.~')}"
        try:
            etags: list[str] = []
            size, part = 0, first
            while part:
                query = f"partNumber={len(etags) + 1}&{upload}"
                answer, _ = self._requests.call(self._put(key, part, self._sse_headers, query), _LIMIT_BYTES)
                # S3 accepts this as the ETag of a part whose answer has none.
                etags.append(answer.get("etag", "") or f'"{hashlib.md5(part, usedforsecurity=False).hexdigest()}"')
                size += len(part)
                part = self._read_part(rest)
            return self._complete(key, upload, etags, size, exists)
        except BaseException:
            with contextlib.suppress(StorageError):  # report the first failure
                self._requests.call(self._delete_request(key, upload), _LIMIT_BYTES)
            raise

    def _complete(
        self, key: str, upload: str, etags: Sequence[str], size: int, exists: Callable[[], bool] | None
    ) -> Stored:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
            for number, etag in enumerate(etags, start=1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        if exists is not None and exists():  # some servers keep the conditions of a PUT, and ignore this request's
            raise StorageFileExistsError("the object exists", key=key)
        answer, said = self._conditionally(self._post(key, upload, body, {}), exists)
        etag = _ETAG.search(said)
        if b"CompleteMultipartUploadResult" not in said:
            raise self._no_answer(key)
        return Stored(size, etag[1].decode("utf-8", "replace") if etag else "", answer.get("date", ""))

    def _no_answer(self, key: str) -> StorageError:
        return StorageError(f"{self._access.endpoint} gave no answer of an S3 server", key=key, hint=NO_S3_HINT)

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

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; one that does not exist is not an error. Tries all before it raises an error."""
        errors: list[StorageError] = []
        for start in range(0, len(keys), _BATCH):
            errors += self._delete_batch(keys[start : start + _BATCH])
        if errors:
            first = errors[0]
            if len(keys) > 1:
                first.message += f" ({len(errors)} of {len(keys)} files)"
            raise first

    def _delete_batch(self, keys: Sequence[str]) -> list[StorageError]:
        if len(keys) == 1 or Way.NO_BATCH_DELETE in self._ways:
            return self._delete_each(keys)
        try:
            return self._delete_objects(keys)
        except AnswerError as refusal:
            is_of_kind = not isinstance(refusal.error, _NOT_OF_CONDITIONS)
            if not is_of_kind and (refusal.status != 404 or refusal.answer.code == "NoSuchBucket"):
                raise refusal.error from None
            errors = self._delete_each(keys)  # shows whether the refusal was about the kind of request
            if errors:
                return errors
            self._ways.note(Way.NO_BATCH_DELETE)
            return []

    def _delete_objects(self, keys: Sequence[str]) -> list[StorageError]:
        """Delete with one request; the errors of single keys. Raises AnswerError if the whole request is refused."""
        listed = "".join(f"<Object><Key>{escape(key)}</Key></Object>" for key in keys)
        body = f"<Delete><Quiet>true</Quiet>{listed}</Delete>".encode()
        headers = {"Content-MD5": _base64_md5(body), "Content-Type": "application/xml"}
        about = f"{keys[0]} and {len(keys) - 1} more"
        request = Request(
            "DELETE", "POST", about, "delete=", is_of_bucket=True, headers=headers, body=body, expected=(200, 204)
        )
        _, said = self._requests.try_to_call(request, _LIMIT_BYTES)
        if not said.strip():
            return []
        try:
            root = ElementTree.fromstring(said.strip())
        except ElementTree.ParseError:
            raise self._no_answer(about) from None
        if root.tag.rpartition("}")[2] not in ("DeleteResult", "DeleteObjectsResult", "Error"):
            raise self._no_answer(about)
        return [error for element in root.iterfind("{*}Error") if (error := self._error_of(element)) is not None]

    def _error_of(self, element: ElementTree.Element) -> StorageError | None:
        """The error of one key; None for an empty element (B2 sends some on success), and for a missing key."""
        code, key = element.findtext("{*}Code") or "", element.findtext("{*}Key") or ""
        message = self._access.redacted(element.findtext("{*}Message") or "")
        if code in ("NoSuchKey", "NoSuchVersion") or not (code or message):
            return None
        return error_from_answer(
            403 if code == "AccessDenied" else 200, code, message, {}, self._access.endpoint, key=key
        )

    def _delete_each(self, keys: Sequence[str]) -> list[StorageError]:
        errors: list[StorageError] = []
        for key in keys:
            try:
                self._requests.call(self._delete_request(key, ""), _LIMIT_BYTES)
            except StorageNotFoundError as error:
                if "NoSuchBucket" in error.message:
                    raise
            except TransientStorageError:
                raise
            except StorageError as error:
                errors.append(error)
        return errors

    def _delete_request(self, key: str, query: str) -> Request:
        return Request("DELETE", "DELETE", key, query, expected=(200, 202, 204))


_NOT_OF_CONDITIONS = (TransientStorageError, StoragePermissionError, StorageNotFoundError)
"""Errors that do not show whether the server supports the request."""


def _base64_md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
