"""Signed requests of a bucket, sent again once for each correction that an answer makes. Knows no LTX files.

An answer may correct the region, the credentials, the clock, and the address (a redirect).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from litevfs.errors import StorageError, StorageNotFoundError, TransientStorageError
from litevfs.replica_clients.http.plain import Answer
from litevfs.replica_clients.http.transport import Transport, endpoint_of
from litevfs.replica_clients.s3.access import S3Access
from litevfs.replica_clients.s3.errors import (
    CLOCK_CODES,
    STALE_CREDENTIALS,
    ErrorAnswer,
    error_from_answer,
    parse_error,
    unzipped,
)
from litevfs.replica_clients.s3.signing import Credentials
from litevfs.replica_clients.s3.ways import ServerWays, Way

_ERROR_LIMIT_BYTES = 1 << 16
_PIECE_BYTES = 1 << 17  # of a body; as the transport's connections send it
_REDIRECTS = (301, 302, 307, 308)


@dataclass(frozen=True, slots=True)
class Request:
    """One request to a bucket."""

    kind: str  # what it is counted as: LIST, GET, PUT, DELETE
    method: str
    key: str  # of the object; of the bucket, what errors are about
    query: str = ""
    is_of_bucket: bool = False
    headers: dict[str, str] = field(default_factory=dict, repr=False)  # may carry an encryption key
    body: bytes | None = field(default=None, repr=False)
    expected: Collection[int] = (200, 206)
    deadline: float | None = None  # `time.monotonic()`, seconds
    is_gone: Callable[[], bool] = lambda: False  # whether the object is missing, if access is denied


class AnswerError(Exception):
    """Carries a server's answer beside our error for it."""

    def __init__(self, status: int, answer: ErrorAnswer, error: StorageError) -> None:
        super().__init__(status, answer.code)
        self.status, self.answer, self.error = status, answer, error


class SignedRequests:
    """Sends requests, signed by `access`, over `transport`."""

    def __init__(self, access: S3Access, transport: Transport, ways: ServerWays) -> None:
        self._access = access
        self._transport = transport
        self._ways = ways

    def send(self, request: Request) -> tuple[str, Answer]:
        """Send a request; returns the URL that answered, and the answer, whose body is for `Transport.read_body`.

        The status is an expected one, or 416, whose body is read already. Raises the error for any other status:
        if access is denied, StorageNotFoundError if the object `is_gone()`.
        """
        try:
            return self.try_to_send(request)
        except AnswerError as refusal:
            if refusal.answer.code == "AccessDenied" and request.is_gone():
                raise StorageNotFoundError("the object is gone", key=request.key) from refusal.error
            raise refusal.error from None

    def try_to_send(self, request: Request) -> tuple[str, Answer]:
        """As `send`, but raises AnswerError for an answer that is not expected."""
        corrected: set[str] = set()
        url: str | None = None
        while True:
            credentials = self._access.credentials(request.deadline)
            url = url or self._url(request)
            region = self._access.region
            response = self._send_once(url, request, credentials)
            if response.status in request.expected:
                return url, response
            location = response.headers.get("Location")
            refusal = self._refusal(url, response, request)
            if response.status == 416:
                return url, response
            what, url = self._correct(refusal, url, location, region, credentials, request, corrected)
            if not what:
                raise refusal
            corrected.add(what)

    def _url(self, request: Request) -> str:
        """What a correction may have changed since the last try."""
        url = self._access.bucket_url() if request.is_of_bucket else self._access.object_url(request.key)
        return f"{url}?{request.query}" if request.query else url

    def _correct(
        self,
        refusal: AnswerError,
        url: str,
        location: str | None,
        region: str,
        credentials: Credentials | None,
        request: Request,
        corrected: set[str],
    ) -> tuple[str, str | None]:
        """The correction that an answer makes ("" for none), and the URL for the next try (None: unchanged)."""
        answer = refusal.answer
        if answer.region and answer.region != region and "region" not in corrected:
            self._access.use_region(answer.region)
            return "region", None
        if refusal.status in _REDIRECTS and location and "address" not in corrected:
            there = self._access.follow(url, location)
            if there:
                self._ways.note(Way.MOVED)
                return "address", there
        if answer.code in CLOCK_CODES and "clock" not in corrected and self._access.set_clock(answer.date):
            self._ways.note(Way.CLOCK)
            return "clock", None
        is_stale = answer.code in STALE_CREDENTIALS and "credentials" not in corrected
        if is_stale and self._access.renew(credentials, request.deadline):
            return "credentials", None
        return "", None

    def _send_once(self, url: str, request: Request, credentials: Credentials | None) -> Answer:
        headers = self._access.headers(request.method, url, request.headers, request.body or b"", credentials)
        body: bytes | io.BytesIO | None = request.body
        if request.body and len(request.body) > _PIECE_BYTES:
            # A socket's time limit covers one send: pieces make it suit a slow line.
            headers["Content-Length"] = str(len(request.body))
            body = io.BytesIO(request.body)
        try:
            return self._transport.request(request.kind, request.method, url, headers, body, deadline=request.deadline)
        except TransientStorageError:
            self._access.return_home()
            raise

    def _refusal(self, url: str, response: Answer, request: Request) -> AnswerError:
        headers = {name.lower(): value for name, value in response.headers.items()}
        body = unzipped(self._transport.read_body(response, url, _ERROR_LIMIT_BYTES), headers)
        return self.refusal(response.status, parse_error(body, headers), headers, url, request.key)

    def refusal(self, status: int, answer: ErrorAnswer, headers: dict[str, str], url: str, key: str) -> AnswerError:
        """The error for an answer, without secrets."""
        message = self._access.redacted(answer.message)
        error = error_from_answer(status, answer.code, message, headers, endpoint_of(url), key=key)
        return AnswerError(status, answer, error)

    def call(self, request: Request, limit: int) -> tuple[dict[str, str], bytes]:
        """The headers (names in lower case) and the whole body of an answer to `request`.

        A successful answer may contain an error: S3 begins some answers before it knows.
        """
        try:
            return self.try_to_call(request, limit)
        except AnswerError as refusal:
            raise refusal.error from None

    def try_to_call(self, request: Request, limit: int) -> tuple[dict[str, str], bytes]:
        """As `call`, but raises AnswerError for an answer that is not expected."""
        url, response = self.try_to_send(request)
        headers = {name.lower(): value for name, value in response.headers.items()}
        body = unzipped(self._transport.read_body(response, url, limit), headers, limit)
        answer = parse_error(body, headers) if b"<Error" in body[:500] and b"<DeleteResult" not in body[:500] else None
        if answer is not None and answer.code:
            raise self.refusal(response.status, answer, headers, url, request.key)
        return headers, body
