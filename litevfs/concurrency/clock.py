"""The clock that tells how old something is. Knows nothing else."""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
# Python's own monotonic clock stands still while the machine sleeps, on Linux (clock_gettime(2): CLOCK_MONOTONIC "does
# not count time that the system is suspended", CLOCK_BOOTTIME does) and on macOS, whose CLOCK_MONOTONIC does count it.


def now_s() -> float:
    """Seconds since some moment, always growing, also while the machine sleeps: a state gets old meanwhile."""
    return time.clock_gettime(_CLOCK)
