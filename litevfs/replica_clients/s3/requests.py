"""Signed GETs of a bucket: sent again where its region or our credentials turn out to be others. Knows no LTX files."""

from __future__ import annotations

import time
from collections.abc import Callable

from botocore.credentials import ReadOnlyCredentials
from urllib3 import BaseHTTPResponse

from litevfs.errors import StorageError, StorageNotFoundError
from litevfs.replica_clients.http.transport import Transport, endpoint_of
from litevfs.replica_clients.s3.access import S3Access
from litevfs.replica_clients.s3.errors import STALE_CREDENTIALS, code_and_message, error_from_answer

_ERROR_LIMIT_BYTES = 1 << 16
_Answer = tuple[str, BaseHTTPResponse]
"""The URL that answered, and what."""


class SignedRequests:
    """GETs by way of `access` over `transport`. One with a `deadline` (`time.monotonic()`, seconds) ends by then."""

    def __init__(self, access: S3Access, transport: Transport) -> None:
        self._access = access
        self._transport = transport

    def get(
        self,
        kind: str,
        url_of: Callable[[], str],
        headers: dict[str, str],
        deadline: float | None,
        key: str,
        is_gone: Callable[[], bool] = lambda: False,
    ) -> _Answer:
        """Send a GET, counted as a `kind`; its URL and its answer: 200 or 206, or 416, whose body is read already.

        Any other is raised as an error about `key`, where access to it is denied as StorageNotFoundError if it
        `is_gone()`. The body is for `Transport.read_body`.
        """
        for is_first in (True, False):
            credentials = self._access.credentials(deadline)
            url, response = self._get_in_region(kind, url_of, headers, credentials, deadline)
            if response.status in (200, 206):
                break
            code, error = self._read_error(url, response, key)
            if response.status == 416:
                break
            if code == "AccessDenied" and is_gone():
                raise StorageNotFoundError("the object is gone", key=key) from error
            if not (is_first and code in STALE_CREDENTIALS and self._access.renew(credentials, deadline)):
                raise error
        return url, response

    def _get_in_region(
        self,
        kind: str,
        url_of: Callable[[], str],
        headers: dict[str, str],
        credentials: ReadOnlyCredentials,
        deadline: float | None,
    ) -> _Answer:
        signed_for = self._access.region
        url, response = self._get_once(kind, url_of(), headers, credentials, deadline)
        region = response.headers.get("x-amz-bucket-region")
        if response.status in (301, 307, 400) and region and region != signed_for:
            response.close()
            self._access.use_region(region)
            url, response = self._get_once(kind, url_of(), headers, credentials, deadline)
        return url, response

    def _get_once(
        self, kind: str, url: str, headers: dict[str, str], credentials: ReadOnlyCredentials, deadline: float | None
    ) -> _Answer:
        signed = self._access.signed_headers("GET", url, headers, credentials)
        timeout_s = None if deadline is None else deadline - time.monotonic()
        return url, self._transport.request(kind, "GET", url, signed, timeout_s=timeout_s)

    def _read_error(self, url: str, response: BaseHTTPResponse, key: str) -> tuple[str, StorageError]:
        """The code in an answer, and the error to raise."""
        code, message = code_and_message(self._transport.read_body(response, url, _ERROR_LIMIT_BYTES))
        headers = {name.lower(): value for name, value in response.headers.items()}
        message = self._access.redacted(message)
        return code, error_from_answer(response.status, code, message, headers, endpoint_of(url), key=key)
