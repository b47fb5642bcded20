"""Small objects beside a replica in S3, with conditional writes. Knows no LTX files.

Conditions (`If-None-Match: *`, `If-Match`) are S3's of 2024. Servers that do not know them say so in different ways, or
ignore them: whoever depends on them has to try them first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError

from litevfs.errors import ConditionsUnsupportedError, StorageNotFoundError, StoragePreconditionError
from litevfs.replica_clients.base import MAX_SIDE_OBJECT_BYTES, SideObject
from litevfs.replica_clients.http.transport import Transport
from litevfs.replica_clients.s3.access import S3Access
from litevfs.replica_clients.s3.requests import SignedRequests

_NO_CONDITIONS_STATUS = {400, 405, 501}
"""Answers of servers that refuse a condition as such; Amazon's own is 501 where it does not have one."""


def read_object(
    access: S3Access, requests: SignedRequests, transport: Transport, key: str, is_gone: Callable[[], bool]
) -> SideObject | None:
    """See `SideObjects.read_object`. `is_gone` tells whether an object, the read of which was refused, is not there."""
    try:
        url, response = requests.get("GET", lambda: access.object_url(key), {}, None, key, is_gone)
    except StorageNotFoundError:
        return None
    data = transport.read_body(response, url, MAX_SIDE_OBJECT_BYTES)
    return SideObject(data, response.headers.get("ETag", "") or "none")


def put_object(access: S3Access, bucket: str, key: str, data: bytes, if_match: str | None, if_absent: bool) -> str:
    """See `SideObjects.put_object`."""
    condition: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {"IfMatch": if_match} if if_match else {}
    with access.translated(key):
        try:
            answer = access.client.put_object(
                Bucket=bucket, Key=key, Body=data, ContentType="application/json", **condition
            )
        except ClientError as exc:
            status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if not condition:
                raise
            if status == 412 or (status == 404 and if_match):  # 404: there is nothing that could match
                raise StoragePreconditionError("the object is not as expected", key=key) from exc
            if status in _NO_CONDITIONS_STATUS:
                raise ConditionsUnsupportedError(f"the server answers {status} to conditions", key=key) from exc
            raise
    return str(answer.get("ETag", "")) or "none"


def delete_object(access: S3Access, bucket: str, key: str) -> None:
    """See `SideObjects.delete_object`."""
    with access.translated(key):
        access.client.delete_object(Bucket=bucket, Key=key)
