"""Threads of a pool that make the requests that wait, one after the other. Knows nothing of what is requested.

A request that waits costs no call of the pool, and no thread changes hands between one request and the next.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from litevfs.concurrency.futures import closed_error
from litevfs.errors import LitevfsError, StorageClosedError, TransientStorageError
from litevfs.files.fetch import PARALLEL_REQUESTS, Fetcher

logger = logging.getLogger("litevfs.files.lanes")

T = TypeVar("T")


class Lanes(Generic[T]):
    """Up to PARALLEL_REQUESTS calls of the fetcher's pool. Other calls there wait for no more than one request each."""

    def __init__(
        self,
        fetcher: Fetcher,
        lock: threading.RLock,
        *,
        waiting: Callable[[], int],
        take: Callable[[int], T | None],
        make: Callable[[T], object],
        abandon: Callable[[LitevfsError], object],
    ) -> None:
        """`waiting()` is how many requests wait; `take(others)` gives the next one, while `others` can be made, too.

        Both are called with the lock held. `make(request)` must not raise; `abandon(error)` ends all that wait.
        """
        self._fetcher = fetcher
        self._lock = lock
        self._waiting, self._take, self._make, self._abandon = waiting, take, make, abandon
        self._pending: set[object] = set()  # calls that no thread makes yet
        self._running = self._busy = 0  # the other calls, and those of them that are in a request

    def start(self) -> None:
        """Let threads come for the requests that wait. If there can be none, those are abandoned."""
        error: LitevfsError | None = None
        with self._lock:
            while (opened := len(self._pending) + self._running) < PARALLEL_REQUESTS:
                if opened - self._busy >= self._waiting():
                    break
                if (error := self._submit(object())) is not None:
                    break
            is_over = not self._pending and not self._running
        if error is not None and is_over:
            logger.info("not reading ahead: %s", error)
            self._abandon(error)

    def _submit(self, lane: object) -> LitevfsError | None:
        """Let one more thread come; returns why none can."""
        try:
            self._pending.add(lane)
            call = self._fetcher.submit(lambda: self._work(lane))
            call.add_done_callback(lambda call: self._end_cancelled(lane) if call.cancelled() else None)
        except StorageClosedError as error:
            self._pending.discard(lane)
            return error
        except RuntimeError as error:
            self._pending.discard(lane)
            return TransientStorageError(f"no thread for reading ahead: {error}")
        except BaseException:
            self._pending.discard(lane)  # a thread that comes nevertheless has nothing to do
            raise
        return None

    def _end_cancelled(self, lane: object) -> None:
        with self._lock:
            self._pending.discard(lane)
            is_over = not self._pending and not self._running
        if is_over:
            self._abandon(closed_error())

    def _work(self, lane: object) -> None:
        with self._lock:
            if lane not in self._pending:
                return
            self._pending.discard(lane)
            self._running += 1
        while (request := self._next()) is not None:
            try:
                self._make(request)
            finally:
                with self._lock:
                    self._busy -= 1
        self.start()  # behind the calls that it has made way for

    def _next(self) -> T | None:
        with self._lock:
            others = PARALLEL_REQUESTS - self._busy - 1
            makes_way = self._fetcher.has_others_waiting(len(self._pending))
            request = None if makes_way else self._take(others)
            if request is None:
                self._running -= 1
            else:
                self._busy += 1
            return request
