"""Results of calls that other threads make: set once, taken in order. Knows no threads and no storage."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, InvalidStateError, wait
from contextlib import suppress
from itertools import islice
from typing import TypeVar

from litevfs.errors import StorageClosedError

T = TypeVar("T")

NAP_S = 0.5


def settle(future: Future[T], outcome: T | Exception) -> None:
    """Give a result, or an error, to the threads that wait for `future`; does nothing if it has one."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def result_of(future: Future[T]) -> T:
    """What the call returned or raised. Raises StorageClosedError if its pool was shut down before the call began.

    Ctrl-C just before a thread falls asleep does not wake it: so it sleeps for a while at a time.
    """
    while not future.done():
        wait([future], NAP_S)
    try:
        return future.result()
    except CancelledError:
        raise closed_error() from None


def closed_error() -> StorageClosedError:
    """The error for a read that the closing of its replica ended."""
    return StorageClosedError("the replica was closed during a read")


def run_ahead(
    calls: Iterable[Callable[[], T]], submit: Callable[[Callable[[], T]], Future[T]] | None, at_once: int
) -> Generator[T, None, None]:
    """Results in order, with up to `at_once` calls under way; one after the other when there is no `submit`.

    Raises the first call's error, and StorageClosedError if the pool was shut down meanwhile.
    """
    if submit is None:
        yield from (call() for call in calls)
        return
    waiting = iter(calls)
    running = deque(submit(call) for call in islice(waiting, at_once))
    try:
        while running:
            result = result_of(running.popleft())
            running.extend(submit(call) for call in islice(waiting, 1))
            yield result
    finally:
        for future in running:
            future.cancel()
