"""How long to wait before trying again. Knows no storage and waits for nothing itself."""

from __future__ import annotations

import random
from typing import Self

from litevfs.errors import TransientStorageError

WITHIN_SHARE = 0.1
"""Longest pause, as part of the time for all tries: what is drawn longer than the time that is left ends it early."""


class Backoff:
    """Pauses between tries: full jitter, doubling up to a bound, never less than what the storage asked for."""

    base_s = 0.05
    cap_s = 32.0

    def __init__(self, cap_s: float = cap_s, *, asked_cap_s: float | None = None) -> None:
        """Pauses of at most `cap_s`; where the storage asks for longer ones, of at most `asked_cap_s` (as `cap_s`)."""
        self.cap_s = cap_s
        self._asked_cap_s = cap_s if asked_cap_s is None else asked_cap_s
        self._tries = 0

    @classmethod
    def within(cls, timeout_s: float) -> Self:
        """For tries that have so many seconds in all, to make some of them until the time is nearly over."""
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
