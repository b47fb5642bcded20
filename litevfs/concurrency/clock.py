"""The clocks: how old something is, and when a call has to end. Knows nothing else."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
# Python's own monotonic clock stands still while the machine sleeps, on Linux (clock_gettime(2): CLOCK_MONOTONIC "does
# not count time that the system is suspended", CLOCK_BOOTTIME does) and on macOS, whose CLOCK_MONOTONIC does count it.


def now_s() -> float:
    """Seconds since some moment, always growing, also while the machine sleeps: a state gets old meanwhile."""
    return time.clock_gettime(_CLOCK)


def deadline_in(timeout_s: float | None) -> float | None:
    """When a call that begins now and may take so many seconds has to end, by `time.monotonic()`; None: no limit."""
    return None if timeout_s is None else time.monotonic() + timeout_s
