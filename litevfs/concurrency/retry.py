"""Retries of failed calls: one loop, and one policy for the pauses. Knows no storage.

Threads with a pace of their own (the poller, uploads, a followed file) take their pauses from `Backoff` too.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Self, TypeVar

from litevfs.errors import LitevfsError, LTXFormatError, StorageNotFoundError, TransientStorageError, TXIDGapError

logger = logging.getLogger("litevfs.concurrency.retry")

T = TypeVar("T")

WITHIN_SHARE = 0.1
"""Longest pause, as part of the time for all tries: a pause longer than the time that is left ends the tries early."""


class Backoff:
    """Pauses between tries: full jitter, doubling up to a bound, never shorter than the storage asked for."""

    base_s = 0.05
    cap_s = 32.0

    def __init__(self, cap_s: float = cap_s, *, asked_cap_s: float | None = None) -> None:
        """Pauses of at most `cap_s`; where the storage asks for longer ones, of at most `asked_cap_s` (as `cap_s`)."""
        self.cap_s = cap_s
        self._asked_cap_s = cap_s if asked_cap_s is None else asked_cap_s
        self._tries = 0

    @classmethod
    def within(cls, timeout_s: float) -> Self:
        """A Backoff for tries that have so many seconds in all, with pauses short enough to fit several tries."""
        return cls(min(cls.cap_s, timeout_s * WITHIN_SHARE), asked_cap_s=cls.cap_s)

    def next_s(self, retry_after_s: float | None = None) -> float:
        """Seconds to wait before the next try."""
        ceiling = min(self.cap_s, self.base_s * 2 ** min(self._tries, 32))
        self._tries += 1
        pause = random.uniform(0, ceiling)
        return pause if retry_after_s is None else max(pause, min(retry_after_s, self._asked_cap_s))

    def after(self, error: Exception) -> float:
        """Seconds to wait after this error of a try."""
        return self.next_s(error.retry_after_s if isinstance(error, TransientStorageError) else None)

    def reset(self) -> None:
        """Start from the shortest pause again, after a success."""
        self._tries = 0


def is_transient(error: LitevfsError) -> bool:
    """Whether the storage says, or shows, that the same call may succeed the next time."""
    return isinstance(error, TransientStorageError)


def wait(seconds: float, error: LitevfsError) -> None:
    """Pause for `seconds`; nothing ends this early."""
    threading.Event().wait(seconds)


def retry(
    call: Callable[[], T],
    backoff: Backoff,
    *,
    until: float = math.inf,
    may_pass: Callable[[LitevfsError], bool] = is_transient,
    pause: Callable[[float, LitevfsError], object] = wait,
    after: LitevfsError | None = None,
    tries_at_the_end: bool = False,
) -> T:
    """What `call()` returns, made again after errors that may pass while the next try begins before `until`.

    `until` is a `time.monotonic()`. `pause(seconds, error)` waits so long or less; what it raises ends the tries. With
    `after`, the error of a try that the caller made, a pause comes first. With `tries_at_the_end`, a pause that
    would take too long is cut, for one more try at `until`. Raises the last try's error.
    """

    def wait_after(error: LitevfsError) -> None:
        seconds = backoff.after(error)
        left_s = until - time.monotonic()
        if left_s <= 0 or (seconds >= left_s and not tries_at_the_end):
            raise error
        pause(min(seconds, left_s), error)

    if after is not None:
        wait_after(after)
    while True:
        try:
            return call()
        except LitevfsError as error:
            if not may_pass(error):
                raise
            wait_after(error)


class LookAgain:
    """Whether a run over many files may succeed when it lists the replica again: a `may_pass` of `retry`.

    That is so for files that vanished (compaction and retention replace them) and for damaged ones: damage in transit
    is gone at the second read, and a gap between levels that were not listed at the same moment at the second
    listing. A failure that occurs twice is final.
    """

    attempts = 10

    def __init__(self, *more: type[LitevfsError]) -> None:
        """Errors of the types `more` may pass too."""
        self._kinds: tuple[type[LitevfsError], ...] = (StorageNotFoundError, LTXFormatError, TXIDGapError, *more)
        self._left = self.attempts
        self._seen: set[tuple[int | None, int | None, int | None]] = set()

    def __call__(self, error: LitevfsError) -> bool:
        """Whether to list again after this error. The tenth error of any kind is the last."""
        self._left -= 1
        place = (error.level, error.min_txid, error.max_txid)
        if not isinstance(error, self._kinds) or self._left == 0 or place in self._seen:
            return False
        if isinstance(error, StorageNotFoundError) and error.min_txid is None:
            return False  # not a file but the whole storage is missing: a folder, a bucket
        if isinstance(error, LTXFormatError | TXIDGapError):
            self._seen.add(place)
        logger.info("looking at the replica again: %s", error)
        return True
