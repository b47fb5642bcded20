"""Where every request of one replica passes: counted, kept below a rate limit, and shown to an observer.

Knows neither files nor retries. Safe to use from many threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from litevfs.concurrency.futures import closed_error
from litevfs.concurrency.rate_limit import rate_limit_of
from litevfs.errors import TransientStorageError
from litevfs.files.fetched import RequestCounters

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """A request that has ended. Times are seconds of `time.monotonic()`."""

    kind: str  # "LIST" or "GET"
    name: str  # of the file, or what was listed
    offset: int  # of the first byte that was asked for
    size_bytes: int  # of the answer
    began: float
    took_s: float
    has_failed: bool


Observer = Callable[[Request], object]
"""Called in the thread that made the request; must be quick and must not raise."""


class Requests:
    """The requests of one replica to its storage."""

    def __init__(self, max_per_s: float | None, timeout_s: float) -> None:
        """A request waits at most `timeout_s` for its turn below `max_per_s`, which all that give it share."""
        self.counters = RequestCounters()
        self.observer: Observer | None = None
        self._rate_limit = None if max_per_s is None else rate_limit_of(max_per_s)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._is_closed = False

    def list(self, call: Callable[[], T], name: str) -> T:
        """Make the request for a listing. Raises what it raises, and what `get` does before it."""
        self._wait_for_turn()
        with self._lock:
            self.counters.list += 1
        return self._observed(call, "LIST", name, 0, lambda _: 0)

    def get(self, call: Callable[[], T], size_of: Callable[[T], int], name: str = "", offset: int = 0) -> T:
        """Make the request for bytes, `size_of` which come with its answer. Raises what it raises.

        Before that, raises TransientStorageError if its turn does not come in time, StorageClosedError once closed.
        """
        self._wait_for_turn()
        result = self._observed(call, "GET", name, offset, size_of)
        with self._lock:
            self.counters.get += 1
            self.counters.bytes_read += size_of(result)
        return result

    def fail(self) -> None:
        """Count an answer that was of no use."""
        with self._lock:
            self.counters.errors += 1

    def retry(self) -> None:
        """Count a request that is made again."""
        with self._lock:
            self.counters.retries += 1

    def close(self) -> None:
        """End the waits."""
        self._is_closed = True
        if self._rate_limit is not None:
            self._rate_limit.wake()

    def _wait_for_turn(self) -> None:
        limit = self._rate_limit
        if limit is None or limit.take(self, self._timeout_s, lambda: self._is_closed):
            return
        if self._is_closed:
            raise closed_error()
        raise TransientStorageError(
            f"max_requests_per_s has left no room for a request within {self._timeout_s:.3g} s",
            hint="raise it, poll less often, or open fewer replicas at once",
        )

    def _observed(self, call: Callable[[], T], kind: str, name: str, offset: int, size_of: Callable[[T], int]) -> T:
        began = time.monotonic()
        size, has_failed = 0, True
        try:
            result = call()
            size, has_failed = size_of(result), False
            return result
        except Exception:
            self.fail()
            raise
        finally:
            if self.observer is not None:
                self.observer(Request(kind, name, offset, size, began, time.monotonic() - began, has_failed))
