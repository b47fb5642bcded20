"""Files that clients of folders keep open between reads, and how many of them this process has. Reads nothing.

A process may have thousands of replicas in folders, each with a client of its own: what all of them keep is bounded.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
T = TypeVar("T")

NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}
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


class KeptOpen(Generic[Key]):
    """The files that one client keeps open, up to `most` of them. Safe to use from many threads."""

    def __init__(self, most: int) -> None:
        self.descriptors: dict[Key, Descriptor] = {}
        """To be read from outside, which takes no lock; a reader marks what it has `used`."""
        self.is_closed = False
        self._most = most
        self._lock = threading.Lock()

    def keep(self, key: Key, descriptor: Descriptor) -> None:
        """Keep an open file for the reads to come, unless this is closed.

        Second chance: the oldest one is closed instead, unless it was read again; then it counts as new.
        """
        with self._lock:
            if self.is_closed:
                return
            self.descriptors[key] = descriptor
            most = self._most if len(_kept) <= KEPT_IN_ALL else min(self._most, KEPT_OF_MANY)
            while len(self.descriptors) > most:
                oldest = next(iter(self.descriptors))
                other = self.descriptors.pop(oldest)
                if other.used:
                    other.used = False
                    self.descriptors[oldest] = other

    def drop(self, key: Key) -> None:
        """Keep a file open no more. It closes with the reads that use it."""
        with self._lock:
            self.descriptors.pop(key, None)

    def with_room(self, call: Callable[[], T]) -> T:
        """`call()`; if the process has no free descriptor, once more after closing those that are only kept open.

        From then on fewer are kept, so that the process has some left for its other work.
        """
        try:
            return call()
        except OSError as exc:
            if exc.errno not in NO_DESCRIPTOR:
                raise
        with self._lock:
            if self.descriptors:  # else another thread was faster
                self._most = max(1, len(self.descriptors) // 2)
                self.descriptors.clear()
        return call()

    def close(self) -> None:
        """Keep none any more."""
        with self._lock:
            self.is_closed = True
            self.descriptors.clear()
