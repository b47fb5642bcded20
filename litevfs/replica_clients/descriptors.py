"""Files that clients of folders keep open between reads, and how many of them this process has. Reads nothing.

A process may have thousands of replicas in folders, each with a client of its own: what all of them keep is bounded.
"""

from __future__ import annotations

import os
from collections.abc import Callable

KEPT_IN_ALL = 1024
"""While the clients of this process keep no more than so many files open, each keeps as many as it likes."""
KEPT_OF_MANY = 4
"""Beyond that, each keeps so many."""

_kept: set[int] = set()
"""Their numbers. Changed by one call each time, so that no lock is needed, which a finalizer could not take."""


class Descriptor:
    """An open file that closes with its last reference, so that eviction never closes it under a reader."""

    __slots__ = ("fd", "used")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.used = False  # read again since it was opened or last spared from eviction
        _kept.add(fd)

    def __del__(self, _forget: Callable[[int], None] = _kept.discard, _close: Callable[[int], None] = os.close) -> None:
        _forget(self.fd)  # first: from its close on, the number may be that of another file
        _close(self.fd)


def most_kept(wanted: int) -> int:
    """How many files a client that would keep `wanted` may keep open now."""
    return wanted if len(_kept) <= KEPT_IN_ALL else min(wanted, KEPT_OF_MANY)
