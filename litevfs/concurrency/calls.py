"""Calls that a waiting caller can give up. Does not know what they do."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from litevfs.concurrency.clock import now_s
from litevfs.concurrency.workers import spare_threads
from litevfs.errors import LitevfsError, StorageTimeoutError

T = TypeVar("T")

TooLate = Callable[[float, float], LitevfsError]
"""The error of a call that began at a moment (`now_s()`) and has not ended within so many seconds."""


class Troubles:
    """Notes why calls to one storage are retried, for the error of a caller that gives up waiting for them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._last: tuple[float, LitevfsError] | None = None  # when, and what

    def note(self, error: LitevfsError) -> None:
        """Note that a call failed and will be retried."""
        copy = LitevfsError(  # the error itself has the frames of a caller, and so what that has open
            error.message,
            level=error.level,
            min_txid=error.min_txid,
            max_txid=error.max_txid,
            key=error.key,
            hint=error.hint,
        )
        self._last = (now_s(), copy)

    def too_late(self, began: float, timeout_s: float) -> StorageTimeoutError:
        """See `TooLate`: names the last error since then, or says that the storage has not answered at all."""
        if self._last is None or self._last[0] < began:
            return StorageTimeoutError(_no_answer(began, timeout_s).message, key=self._url)
        last = self._last[1]
        return StorageTimeoutError(
            f"no success within {timeout_s:.3g} s; the last try failed: {last.message}",
            level=last.level,
            min_txid=last.min_txid,
            max_txid=last.max_txid,
            key=last.key or self._url,
            hint=last.hint,
        )


def _no_answer(began: float, timeout_s: float) -> StorageTimeoutError:
    return StorageTimeoutError(f"the storage has not answered within {timeout_s:.3g} s")


def call_elsewhere(call: Callable[[], T], name: str) -> Future[T]:
    """What a call in a spare thread of that name returns or raises.

    Raises TransientStorageError when no thread can start.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 (handed to the waiting thread)
            future.set_exception(error)

    spare_threads.run(run, name)
    return future


@dataclass(frozen=True, slots=True, eq=False)
class _Running(Generic[T]):
    began: float
    future: Future[T]


class SharedCall(Generic[T]):
    """Makes `call()` once for all callers that ask while it runs. A call that all of them give up runs to its end."""

    def __init__(self, call: Callable[[], T], name: str, too_late: TooLate = _no_answer) -> None:
        self._call = call
        self._name = name
        self._too_late = too_late
        self._running: _Running[T] | None = None
        self._lock = threading.Lock()

    def result(self, timeout_s: float, *, not_before: float = -math.inf) -> T:
        """What the call returns or raises; `too_late` when it has not ended within `timeout_s`.

        This waits for a call that began before `not_before` (`now_s()`, at most now), but returns only the result of
        a later one. Raises TransientStorageError when no thread can start.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            running = self._join()
            try:
                result = _result(running.future, deadline, partial(self._too_late, running.began, timeout_s))
            except Exception:
                self._drop(running)
                if running.began >= not_before or not running.future.done():
                    raise
            else:
                if running.began >= not_before:
                    return result

    def _drop(self, running: _Running[T]) -> None:
        """Keep no error of a call that has ended: it has the frames of its callers, and so what they have open."""
        with self._lock:
            if self._running is running and running.future.done():
                self._running = None

    def _join(self) -> _Running[T]:
        with self._lock:
            running = self._running
            if running is None or running.future.done():
                running = self._running = _Running(now_s(), call_elsewhere(self._call, self._name))
            return running


def call_alone(
    call: Callable[[], T], lock: threading.Lock, timeout_s: float, name: str, too_late: TooLate = _no_answer
) -> T:
    """What `call()` returns or raises while it has the lock; `too_late` when that has not ended in time.

    A call that is given up goes on to its end, and has the lock until then. Raises TransientStorageError when no
    thread can start.
    """
    began = now_s()
    deadline = time.monotonic() + timeout_s

    def call_locked() -> T:
        # In the thread that makes the call: so Ctrl-C in the waiting thread neither keeps nor releases the lock.
        if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise too_late(began, timeout_s)
        try:
            return call()
        finally:
            lock.release()

    return _result(call_elsewhere(call_locked, name), deadline, partial(too_late, began, timeout_s))


def call_within(call: Callable[[], T], timeout_s: float, name: str, too_late: TooLate = _no_answer) -> T:
    """What `call()` returns or raises; `too_late` when it has not ended in time, and then goes on to its end.

    Raises TransientStorageError when no thread can start.
    """
    began = now_s()
    return _result(call_elsewhere(call, name), time.monotonic() + timeout_s, partial(too_late, began, timeout_s))


def _result(future: Future[T], deadline: float, too_late: Callable[[], LitevfsError]) -> T:
    try:
        return future.result(max(0.0, deadline - time.monotonic()))
    except FutureTimeoutError:
        if future.done():
            return future.result()
        raise too_late() from None
