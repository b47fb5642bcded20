"""How long to wait before trying again. Knows no storage and waits for nothing itself."""

from __future__ import annotations

import random

from litevfs.errors import TransientStorageError


class Backoff:
    """Pauses between tries: full jitter, doubling up to a bound, never less than what the storage asked for."""

    base_s = 0.05
    cap_s = 32.0

    def __init__(self, cap_s: float = cap_s) -> None:
        self.cap_s = cap_s
        self._tries = 0

    def next_s(self, retry_after_s: float | None = None) -> float:
        """Seconds to wait before the next try."""
        ceiling = min(self.cap_s, self.base_s * 2 ** min(self._tries, 32))
        self._tries += 1
        pause = random.uniform(0, ceiling)
        return pause if retry_after_s is None else max(pause, min(retry_after_s, self.cap_s))

    def after(self, error: Exception) -> float:
        """Seconds to wait after this error of a try."""
        return self.next_s(error.retry_after_s if isinstance(error, TransientStorageError) else None)

    def reset(self) -> None:
        """Start from the shortest pause again, after a success."""
        self._tries = 0
