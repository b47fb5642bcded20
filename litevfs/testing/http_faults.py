"""Faults of HTTP requests to an S3 server, and which request each happens to. Sends and receives nothing.

`HTTPProxy` (`s3_proxy`) applies them. In JSON a fault is an object of the fields of `HTTPFault`, for
`POST /_test/inject-fault`.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args
from urllib.parse import unquote
from xml.sax.saxutils import escape

Drop = Literal["", "before", "body"]

S3_ERROR_CODES = {
    400: "InvalidRequest",
    403: "AccessDenied",
    404: "NoSuchKey",
    412: "PreconditionFailed",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
}
"""S3's codes for these answers (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html)."""
_REASONS = {429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPFault:
    """One fault, and when it happens. It may have several effects.

    Raises ValueError, also for a fault without any effect.
    """

    status: int = 0  # answer with this status and do not ask the server; 0: ask it
    code: str = ""  # S3's error code in that answer; by default the usual one of the status
    retry_after_s: int | None = None  # Retry-After header of that answer, seconds
    delay_ms: float = 0.0  # before the request goes on, milliseconds
    jitter_ms: float = 0.0  # up to so much more, evenly distributed, milliseconds
    drop_connection: Drop = ""  # instead of an answer, or in the middle of its body
    truncate_body_bytes: int | None = None  # the connection ends after so many bytes of the answer's body
    corrupt_body: bool = False  # one bit of the answer's body is flipped
    method: str = ""  # of the requests concerned; empty: all
    path: str = "*"  # of those, a shell pattern of the decoded path
    probability: float = 1.0  # of each of those, 0 to 1
    count: int | None = None  # how often it happens before it is over; None: until it is cleared

    def __post_init__(self) -> None:
        if self.status and not 400 <= self.status <= 599:
            raise ValueError(f"not the status of an error: {self.status}")
        if self.drop_connection not in get_args(Drop):
            raise ValueError(f"a connection cannot be dropped {self.drop_connection!r}: before or body")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"not a probability: {self.probability}")
        if any(value is not None and value < 0 for value in self._amounts()):
            raise ValueError("a fault's numbers are not negative")
        if not (self.status or self.delay_ms or self.jitter_ms or self.drop_connection or self.changes_body):
            raise ValueError("a fault without any effect")

    def _amounts(self) -> tuple[float | None, ...]:
        return self.delay_ms, self.jitter_ms, self.truncate_body_bytes, self.count, self.retry_after_s

    @classmethod
    def from_json(cls, value: Any) -> HTTPFault:
        """The fault that a parsed JSON object describes. Raises ValueError."""
        if not isinstance(value, dict) or not value.keys() <= {field.name for field in fields(cls)}:
            raise ValueError(f"not a fault: {value!r}")
        try:
            return cls(**value)
        except TypeError as error:
            raise ValueError(f"not a fault: {error}") from error

    @property
    def changes_body(self) -> bool:
        """Whether the fault changes the body of the server's answer."""
        return self.drop_connection == "body" or self.truncate_body_bytes is not None or self.corrupt_body

    def concerns(self, method: str, path: str) -> bool:
        """Whether it can happen to a request; `path` is percent-encoded, as sent."""
        return self.method in {"", method} and fnmatchcase(unquote(path), self.path)

    def answer(self) -> bytes:
        """The answer with `status`, as S3 sends it; the connection stays open."""
        code = self.code or S3_ERROR_CODES.get(self.status, "InternalError")
        body = f"<?xml version='1.0'?><Error><Code>{escape(code)}</Code><Message>injected fault</Message></Error>"
        retry_after = "" if self.retry_after_s is None else f"Retry-After: {self.retry_after_s}\r\n"
        reason = _REASONS.get(self.status, "Injected Fault")
        head = f"HTTP/1.1 {self.status} {reason}\r\nContent-Type: application/xml\r\n{retry_after}"
        return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


class HTTPFaults:
    """The faults that are set, and how often each kind of effect happened. Safe to use from many threads."""

    def __init__(self, *, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._left: list[tuple[HTTPFault, int | None]] = []
        self.happened: Counter[HTTPFault] = Counter()

    def add(self, *faults: HTTPFault) -> None:
        """Add faults, after those that were added before."""
        with self._lock:
            self._left += [(fault, fault.count) for fault in faults]

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._left.clear()

    @property
    def active(self) -> list[HTTPFault]:
        """The faults that may still happen."""
        with self._lock:
            return [fault for fault, left in self._left if left != 0]

    def take(self, method: str, path: str) -> HTTPFault | None:
        """The first fault that happens to this request, counted; None if none does."""
        with self._lock:
            for i, (fault, left) in enumerate(self._left):
                if left == 0 or not fault.concerns(method, path) or self._random.random() >= fault.probability:
                    continue
                self.happened[fault] += 1
                if left is not None:
                    self._left[i] = (fault, left - 1)
                return fault
        return None

    def delay_s(self, fault: HTTPFault) -> float:
        """How long the fault holds this request up, seconds."""
        return (fault.delay_ms + self._random.uniform(0, fault.jitter_ms)) / 1000

    def changed_body(self, fault: HTTPFault, body: bytes) -> tuple[bytes, bool]:
        """(what to send of an answer's body, whether the connection ends there)."""
        if fault.corrupt_body and body:
            place = self._random.randrange(len(body))
            changed = body[place] ^ 1 << self._random.randrange(8)
            body = body[:place] + bytes([changed]) + body[place + 1 :]
        if fault.truncate_body_bytes is not None:
            return body[: fault.truncate_body_bytes], True
        if fault.drop_connection == "body":
            return body[: len(body) // 2], True
        return body, False


def faults_of_json(value: Any) -> Iterable[HTTPFault]:
    """One fault or a list of them, parsed. Raises ValueError."""
    return [HTTPFault.from_json(one) for one in (value if isinstance(value, list) else [value])]
