"""How much may be read ahead. Counts only bytes: those requested ahead, those of them used, and those needed.

Invariants, at any moment and over any session of queries:

1. Bytes read ahead and not used are at most FREE_BYTES plus the bytes used. Used are bytes that a reader took, whether
   read ahead or requested when needed; a gap that a request reads over is never used.
2. A guess earns nothing: it is charged when its request begins, and credit comes back only when a reader takes it.
3. Bytes are taken once: bytes used twice, or evicted before their use, do not count again.
"""

from __future__ import annotations

import threading

FREE_BYTES = 8_000_000
"""Bytes that may be read for nothing before any were used."""
MAX_CREDIT_BYTES = 24_000_000
"""However many bytes were used long ago, at most so many may be read for nothing in a row."""


class Governor:
    """The credit that all read-ahead of one replica draws on. Safe to use from many threads."""

    def __init__(self, free_bytes: int = FREE_BYTES) -> None:
        self.ahead = 0  # bytes requested before they were needed
        self.used = 0  # bytes of those that a reader took
        self.needed = 0  # bytes requested when they were needed
        self._credit = free_bytes
        self._lock = threading.Lock()

    @property
    def unused(self) -> int:
        """Bytes read ahead that no reader took so far."""
        return self.ahead - self.used

    @property
    def credit(self) -> int:
        """Bytes that may be requested ahead now."""
        return self._credit

    def has_room(self, size: int, *, beside: int = 0) -> bool:
        """Whether `size` bytes may be requested ahead, and `beside` bytes more after that."""
        return self._credit - size >= beside

    def grant(self, size: int) -> bool:
        """Whether `size` bytes may be requested ahead; they are charged if so."""
        with self._lock:
            if size > self._credit:
                return False
            self._credit -= size
            self.ahead += size
            return True

    def give_back(self, size: int) -> None:
        """Return the charge of a granted request for `size` bytes that brought none."""
        with self._lock:
            self.ahead -= size
            self._earn(size)

    def take(self, size: int) -> None:
        """A reader takes `size` bytes that were read ahead."""
        with self._lock:
            self.used += size
            self._earn(2 * size)  # they no longer count as read for nothing, and count as used

    def need(self, size: int) -> None:
        """Count `size` bytes that were requested because a reader waits for them."""
        with self._lock:
            self.needed += size
            self._earn(size)

    def _earn(self, size: int) -> None:
        self._credit = min(self._credit + size, MAX_CREDIT_BYTES)
