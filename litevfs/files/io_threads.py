"""The threads in which the requests of one replica are made: as many as its line carries, from the first one on.

Knows no file. Where a request costs no round trip, the caller makes each by itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from litevfs.concurrency.futures import result_of, run_ahead, settle
from litevfs.concurrency.workers import Job, WorkerPool
from litevfs.errors import StorageClosedError
from litevfs.files.line import MIN_AT_ONCE, Line

logger = logging.getLogger("litevfs.files.io_threads")

T = TypeVar("T")


class IOThreads:
    """Those of a replica at `line`, until `is_closed()`. Safe to use from many threads."""

    def __init__(self, line: Line, is_closed: Callable[[], bool], *, is_remote: bool) -> None:
        self.pool: WorkerPool | None = None
        self._line, self._is_closed, self._is_remote = line, is_closed, is_remote
        self._lock = threading.Lock()

    def parallel(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Results in order; in parallel where that pays. Raises the first call's error."""
        if len(calls) < 2 or not self._is_remote:
            return [call() for call in calls]
        futures = [self._submit_or_run(call) for call in calls]
        try:
            return [result_of(future) for future in futures]
        finally:
            for future in futures:
                future.cancel()

    @property
    def has_room(self) -> bool:
        """Whether a call that is submitted now is made at once."""
        pool = self.pool
        return pool is None or pool.has_room

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Run in the replica's pool. A call must not wait for another one of the pool.

        Raises StorageClosedError, or RuntimeError if no thread can start or the interpreter is ending.
        """
        with self._lock:
            return self._open_pool().submit(call)

    def start(self, jobs: Sequence[Job]) -> None:
        """Run jobs as `submit` makes calls. Raises what that raises."""
        if jobs:
            with self._lock:
                self._open_pool().start(jobs)

    def _open_pool(self) -> WorkerPool:
        if self._is_closed():
            raise StorageClosedError("the replica is closed")
        self.pool = self.pool or WorkerPool(MIN_AT_ONCE, "litevfs-io")
        self.pool.max_threads = self._line.at_once
        return self.pool

    def _submit_or_run(self, call: Callable[[], T]) -> Future[T]:
        try:
            return self.submit(call)
        except RuntimeError as error:
            logger.info("reading without another thread: %s", error)
        future: Future[T] = Future()
        try:
            settle(future, call())
        except Exception as error:  # noqa: BLE001 (handed to the waiting thread)
            settle(future, error)
        return future

    def in_order(self, calls: Iterable[Callable[[], T]], at_once: int) -> Generator[T, None, None]:
        """Results in order, of up to `at_once` calls under way where that pays. See `run_ahead`."""
        return run_ahead(calls, self._submit_or_run if self._is_remote else None, at_once)

    def close(self) -> None:
        """Drop the calls that wait, and end the threads. Waits for none; idempotent."""
        with self._lock:
            pool, self.pool = self.pool, None
        if pool is not None:
            pool.shutdown()
