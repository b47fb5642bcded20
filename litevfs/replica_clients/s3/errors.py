"""What an S3 server's answer means: status and error code to the error of ours that says what to do. Does no I/O."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from litevfs.errors import (
    StorageError,
    StorageNotFoundError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)

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
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
STALE_CREDENTIALS = frozenset({"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "TokenRefreshRequired"})
"""Codes that say of credentials that they are no good any more: there may be newer ones."""
_WRONG_REGION = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}
_PERMANENT_STATUS = {501, 505, 507}  # of the server's own, no other try helps: not implemented, out of space

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
    "NoSuchBucket": "check the bucket's name, the endpoint and the region",
}
MESSAGE_LIMIT = 300  # characters
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,80})</Code>")
_MESSAGE = re.compile(rb"<Message>([^<]{1,1000})</Message>")


def code_and_message(body: bytes) -> tuple[str, str]:
    """What an error's XML says, both empty when it is no S3 error."""
    code, message = _CODE.search(body), _MESSAGE.search(body)
    return (
        code[1].decode("ascii") if code else "",
        message[1].decode("utf-8", "replace") if message else "",
    )


def error_kind(status: int, code: str) -> type[StorageError]:
    """The class of error that `status` and `code` stand for."""
    if code in _TIMEOUT or status == 504:
        return StorageTimeoutError
    if code in _TRANSIENT or status in (408, 425, 429) or (status >= 500 and status not in _PERMANENT_STATUS):
        return TransientStorageError
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
    """The error to raise for an answer that is none of those hoped for."""
    said = f"{status} {code}: {message}" if code else f"{status} without an S3 error"
    kind = error_kind(status, code)
    error = kind(
        f"{endpoint} answered {said[:MESSAGE_LIMIT]}",
        key=key,
        hint=_hint(kind, status, code, headers),
    )
    if isinstance(error, TransientStorageError):
        error.retry_after_s = retry_after_s(headers)
    return error


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The Retry-After header in seconds: a number, or a date (RFC 9110, 10.2.3); None when it is absent or neither."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _hint(kind: type[StorageError], status: int, code: str, headers: Mapping[str, str]) -> str | None:
    if code in _HINTS:
        return _HINTS[code]
    if code in _WRONG_REGION or 300 <= status < 400:
        region = headers.get("x-amz-bucket-region")
        return f"the bucket is in another region: say region={region or '...'} in the URL"
    if issubclass(kind, StoragePermissionError):
        return CREDENTIALS_HINT
    return None if code else NO_S3_HINT
