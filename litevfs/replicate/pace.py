"""How often the databases of one process are captured, so that all of them together leave a processor some rest.

A processor that is never idle makes everything wait: commits then reach the replica later than with fewer captures of
more commits each.
"""

from __future__ import annotations

import time

from litevfs.replicate import limits

_SETTLE_S = 0.001
_PATIENCE_S = 0.0125
_MOST_PATIENCE_S = 1.25
_WANTED_SHARE = 0.65
"""Of a processor, for what a process does all in all."""
_MOST = 4.0


class Pace:
    """Shared by the captures of a process. One thread calls `adapt`; others read."""

    def __init__(self) -> None:
        self.databases = 0
        self.stretch = 1.0
        """How many times their own interval passes between two syncs."""
        self._at, self._used_s = time.monotonic(), time.process_time()

    @property
    def shortest_pause_s(self) -> float:
        """Seconds between two turns of a capture: a thousand databases look after checkpoints once a second each."""
        return _SETTLE_S * self.databases

    @property
    def patience_s(self) -> float:
        """How long nothing is written before a capture looks whether a checkpoint holds writers off: to look is to
        checkpoint, and in a hundred databases with a commit a second each it took more than to replicate them."""
        return max(limits.MAKE_WAY_AFTER_S, min(_MOST_PATIENCE_S, _PATIENCE_S * self.databases))

    def adapt(self) -> None:
        """Go by what the process has used since the last call. For every second or so."""
        now, used_s = time.monotonic(), time.process_time()
        passed_s, share_s = now - self._at, used_s - self._used_s
        self._at, self._used_s = now, used_s
        if passed_s > 0:
            self.adapt_to(share_s / passed_s)

    def adapt_to(self, share: float) -> None:
        """Go by the share of a processor that the process has used."""
        step = (max(share, 0.0) / _WANTED_SHARE) ** 0.5  # part of the way: what it leads to shows a sync later
        self.stretch = min(_MOST, max(1.0, self.stretch * step))
