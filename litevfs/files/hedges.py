"""When a request is made a second time because it is slow, and how often that may be. Makes no request itself.

A request is late once it takes longer than 19 of 20 of its size did lately. Then a second one pays, as the answer of a
storage that is slow once in a while seldom is twice in a row. Invariant: at most SHARE of all requests are second ones.
"""

from __future__ import annotations

import threading
from collections import deque

SHARE = 0.05
"""Requests made a second time, as part of all."""
QUANTILE = 0.95
SIZE_CLASSES_BYTES = 1 << 16, 1 << 18
"""Requests up to these sizes, and larger ones, are measured apart."""
REMEMBERED, LEAST = 200, 40
"""Requests of a size that are remembered; how many have to be known before one counts as late."""
LEAST_LATE_S = 0.05
"""A second request for an answer that comes so soon gains nothing that is felt."""


class Hedges:
    """The requests of one replica. Safe to use from many threads."""

    def __init__(self) -> None:
        self.made = 0  # requests that were answered
        self.second = 0  # requests made a second time
        self._took: tuple[deque[float], ...] = tuple(
            deque(maxlen=REMEMBERED) for _ in range(len(SIZE_CLASSES_BYTES) + 1)
        )
        self._lock = threading.Lock()

    def note(self, size: int, seconds: float) -> None:
        """A request for `size` bytes was answered after so many seconds."""
        with self._lock:
            self.made += 1
            self._of(size).append(seconds)

    def late_after_s(self, size: int) -> float | None:
        """After how many seconds a request for `size` bytes is late; None while too little is known."""
        with self._lock:
            known = sorted(self._of(size))
        return None if len(known) < LEAST else max(known[int(len(known) * QUANTILE)], LEAST_LATE_S)

    def take(self) -> bool:
        """Whether one more request may be made a second time; it is counted if so."""
        with self._lock:
            if self.second + 1 > SHARE * self.made:
                return False
            self.second += 1
            return True

    def _of(self, size: int) -> deque[float]:
        return self._took[sum(size > most for most in SIZE_CLASSES_BYTES)]
