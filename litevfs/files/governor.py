"""How much may be read ahead. Counts bytes alone: what was asked for ahead, what of it was used, what was needed.

Invariants, at any moment and over any session of queries:

1. What was asked for ahead and not used is at most FREE_BYTES plus what was used. Used is what a reader took, whether
   it was read ahead or asked for when it was needed; a gap that a request reads over is never used.
2. A guess earns nothing: it is charged when its request begins, and credit comes back only when a reader takes it.
3. Bytes are taken once: what is used twice, or was driven out before its use, does not count again.
"""

from __future__ import annotations

import threading

FREE_BYTES = 8_000_000
"""What may be read in vain before anything was used."""
MAX_CREDIT_BYTES = 24_000_000
"""However much was used long ago, no more than this may be read in vain at a stretch."""


class Governor:
    """The credit that all reading ahead of one replica draws on. Safe to use from many threads."""

    def __init__(self, free_bytes: int = FREE_BYTES) -> None:
        self.ahead = 0  # bytes asked for before they were needed
        self.used = 0  # bytes of those that a reader took
        self.needed = 0  # bytes asked for when they were needed
        self._credit = free_bytes
        self._lock = threading.Lock()

    @property
    def unused(self) -> int:
        """Bytes read ahead that no reader took so far."""
        return self.ahead - self.used

    def grant(self, size: int) -> bool:
        """Whether `size` bytes may be asked for ahead; they are charged if so."""
        with self._lock:
            if size > self._credit:
                return False
            self._credit -= size
            self.ahead += size
            return True

    def give_back(self, size: int) -> None:
        """A request for `size` bytes that was granted brought none."""
        with self._lock:
            self.ahead -= size
            self._earn(size)

    def take(self, size: int) -> None:
        """A reader takes `size` bytes that were read ahead."""
        with self._lock:
            self.used += size
            self._earn(2 * size)  # they are in vain no more, and are used

    def need(self, size: int) -> None:
        """`size` bytes were asked for because a reader waits for them."""
        with self._lock:
            self.needed += size
            self._earn(size)

    def _earn(self, size: int) -> None:
        self._credit = min(self._credit + size, MAX_CREDIT_BYTES)
