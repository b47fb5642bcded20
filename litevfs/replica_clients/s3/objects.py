"""Small objects beside a replica in S3, with conditional writes. Knows no LTX files.

Conditions (`If-None-Match: *`, `If-Match`) are S3's of 2024. Servers that do not know them say so in different ways, or
ignore them: a caller that depends on them has to try them first.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

from litevfs.errors import ConditionsUnsupportedError, StorageNotFoundError, StoragePreconditionError
from litevfs.replica_clients.base import MAX_SIDE_OBJECT_BYTES, SideObject
from litevfs.replica_clients.http.transport import Transport
from litevfs.replica_clients.s3.requests import AnswerError, Request, SignedRequests
from litevfs.replica_clients.s3.writing import EXISTS_STATUS, NO_CONDITIONS_STATUS

_LIMIT_BYTES = 1 << 16  # of an answer without an object


def read_object(
    requests: SignedRequests, transport: Transport, key: str, headers: dict[str, str], is_gone: Callable[[], bool]
) -> SideObject | None:
    """See `SideObjects.read_object`. `is_gone` tells whether an object whose read was refused is missing."""
    try:
        url, response = requests.send(Request("GET", "GET", key, headers=headers, is_gone=is_gone))
    except StorageNotFoundError:
        return None
    data = transport.read_body(response, url, MAX_SIDE_OBJECT_BYTES)
    return SideObject(data, response.headers.get("ETag", "") or "none")


def put_object(
    requests: SignedRequests,
    key: str,
    data: bytes,
    headers: dict[str, str],
    if_match: str | None,
    if_absent: bool,
) -> str:
    """See `SideObjects.put_object`."""
    condition = {"If-None-Match": "*"} if if_absent else {"If-Match": if_match} if if_match else {}
    md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    headers = {**headers, "Content-Type": "application/json", "Content-MD5": md5, **condition}
    request = Request("PUT", "PUT", key, headers=headers, body=data, expected=(200, 201, 204))
    try:
        answer, _ = requests.try_to_call(request, _LIMIT_BYTES)
    except AnswerError as refusal:
        if condition:
            _raise_unmet(refusal, if_match, key)
        raise refusal.error from None
    return answer.get("etag", "") or "none"


def _raise_unmet(refusal: AnswerError, if_match: str | None, key: str) -> None:
    """Raise the error for a refused conditional write, if the refusal is about the condition."""
    status = refusal.status
    if status in EXISTS_STATUS or (status == 404 and if_match):  # 404: there is no object that could match
        raise StoragePreconditionError("the object is not as expected", key=key) from refusal.error
    if status in NO_CONDITIONS_STATUS:
        raise ConditionsUnsupportedError(f"the server answers {status} to conditions", key=key) from refusal.error


def delete_object(requests: SignedRequests, key: str) -> None:
    """See `SideObjects.delete_object`."""
    requests.call(Request("DELETE", "DELETE", key, expected=(200, 202, 204, 404)), _LIMIT_BYTES)
