"""What an S3 server's answer means: from status and error code to our error, with a hint. Does no I/O."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from litevfs.errors import (
    StorageError,
    StorageNotFoundError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.replica_clients.http.answers import PERMANENT_STATUS, retry_after_s

# Codes: Amazon S3 API reference, "Error responses"; the first is of STS, the last three are MinIO's.
_TRANSIENT = {
    "ConditionalRequestConflict",
    "IDPCommunicationError",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "SlowDownRead",
    "SlowDownWrite",
    "XMinioServerNotInitialized",
}
_TIMEOUT = {"RequestTimeout"}
_PERMISSION = {
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "XAdminUserNotFound",  # versitygw, with status 404
}
STALE_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "InvalidTokenId",  # MinIO
        "SignatureDoesNotMatch",  # a new secret of the same access key
        "TokenRefreshRequired",
    }
)
"""Codes that say that credentials are no longer valid: there may be newer ones."""
CLOCK_CODES = frozenset({"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"})
"""Codes that say that the clocks of client and server differ."""
_ARCHIVED = {"InvalidObjectState", "ObjectNotInActiveTierError"}
_WRONG_REGION = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}

CREDENTIALS_HINT = (
    "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the AWS profile or role of this machine, "
    "or LITESTREAM_ACCESS_KEY_ID and LITESTREAM_SECRET_ACCESS_KEY"
)
NO_S3_HINT = "is this the endpoint of an S3 server, and no proxy in between?"
_HINTS = {
    "AccessDenied": "the credentials need s3:ListBucket on the bucket and s3:GetObject on its objects, "
    "those of a primary s3:PutObject and s3:DeleteObject too",
    "RequestTimeTooSkewed": "set this machine's clock",
    "ExpiredToken": "renew the temporary credentials",
    "InvalidObjectState": "a lifecycle rule has moved the object to a class such as GLACIER: restore it there, "
    "and let no rule archive what lies below a replica",
    "InvalidBucketName": "the name of a bucket has small letters, digits, dots and hyphens",
    "NoSuchBucket": "check the bucket's name, the endpoint and the region",
}
MESSAGE_LIMIT = 300  # characters
# With a namespace or without, and as JSON, which some gateways in front of a server send.
_CODE = re.compile(
    rb'<(?:\w+:)?Code(?: [^>]*)?>\s*([A-Za-z0-9._-]{1,80})\s*</|"[Cc]ode"\s*:\s*"([A-Za-z0-9._-]{1,80})"'
)
_MESSAGE = re.compile(rb'<(?:\w+:)?Message(?: [^>]*)?>([^<]{1,1000})</|"[Mm]essage"\s*:\s*"([^"]{1,1000})"')
_REGION = re.compile(rb"<(?:\w+:)?Region(?: [^>]*)?>\s*([a-z0-9-]{1,40})\s*</")
_CODE_HEADERS = ("x-amz-error-code", "x-minio-error-code", "x-error-code")


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """The fields of an error answer; "" for each missing one."""

    code: str
    message: str
    region: str  # of the bucket
    date: str  # the server's


def parse_error(body: bytes, headers: Mapping[str, str]) -> ErrorAnswer:
    """The fields of an error, from its body or headers (names in lower case); all empty if it is no S3 error."""
    code, message, region = _CODE.search(body), _MESSAGE.search(body), _REGION.search(body)
    named = next((headers[name] for name in _CODE_HEADERS if headers.get(name)), "")
    return ErrorAnswer(
        _found(code) or named,
        _found(message),
        headers.get("x-amz-bucket-region", "") or _found(region),
        headers.get("date", ""),
    )


def _found(match: re.Match[bytes] | None) -> str:
    return next((group.decode("utf-8", "replace") for group in match.groups() if group), "") if match else ""


def unzipped(body: bytes, headers: Mapping[str, str], limit: int = 1 << 20) -> bytes:
    """`body` before a proxy compressed it, against the request's headers; cut off after `limit` bytes."""
    if headers.get("content-encoding", "").lower() not in ("gzip", "x-gzip", "deflate"):
        return body
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, limit)
    except zlib.error:
        return body


def error_kind(status: int, code: str) -> type[StorageError]:
    """The class of error that `status` and `code` stand for."""
    if code in _TIMEOUT or status == 504:
        return StorageTimeoutError
    if code in _TRANSIENT or status in (408, 425, 429) or (status >= 500 and status not in PERMANENT_STATUS):
        return TransientStorageError
    if code in _ARCHIVED:
        return StorageError
    if code in _PERMISSION or (status in (401, 403) and code not in _WRONG_REGION):
        return StoragePermissionError
    return StorageNotFoundError if status == 404 else StorageError


def error_from_answer(
    status: int,
    code: str,
    message: str,
    headers: Mapping[str, str],
    endpoint: str,
    *,
    key: str | None = None,
) -> StorageError:
    """The error to raise for an unexpected answer."""
    if code in _ARCHIVED:
        code = "InvalidObjectState"
        message = f"the object is archived: {message}"
    said = f"{status} {code}: {message}" if code else f"{status} without an S3 error" + (message and f": {message}")
    kind = error_kind(status, code)
    if 200 <= status < 300 and not code:
        said = f"{status}: no answer of an S3 server"
    error = kind(
        f"{endpoint} answered {said[:MESSAGE_LIMIT]}",
        key=key,
        hint=_hint(kind, status, code, headers),
    )
    if isinstance(error, TransientStorageError):
        error.retry_after_s = retry_after_s(headers.get("retry-after", ""))
    return error


def _hint(kind: type[StorageError], status: int, code: str, headers: Mapping[str, str]) -> str | None:
    if code in _HINTS:
        return _HINTS[code]
    if code in _WRONG_REGION or 300 <= status < 400:
        region = headers.get("x-amz-bucket-region")
        return f"the bucket is in another region or at another endpoint: say region={region or '...'} in the URL"
    if issubclass(kind, StoragePermissionError):
        return CREDENTIALS_HINT
    return None if code else NO_S3_HINT
