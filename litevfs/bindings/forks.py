"""A fork waits until no thread of this package is in SQLite: the child would inherit a lock that no thread releases.

SQLite's memory and page caches have locks of the whole process, each held for a moment. An application knows when its
own threads query, but not of the threads that rehearse and warm. These enter the gate before they call SQLite, and let
forks happen where SQLite calls them and holds no such lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

WAIT_S = 1.0
"""Neither a fork nor a thread waits longer for the other."""


class ForkGate:
    """Who is in SQLite, and whether a fork is about to come."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0  # threads
        self._forks = False  # a thread forks, or waits to

    @property
    def is_occupied(self) -> bool:
        """Whether a thread is inside."""
        return bool(self._inside)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """For calls of SQLite in a thread of this package."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """For a wait in a function that SQLite calls, in a thread that is inside."""
        self._leave()
        try:
            yield
        finally:
            self._enter()

    def rest(self) -> None:
        """Let a fork happen, in a function that SQLite calls, in a thread that is inside."""
        if self._forks:
            with self.outside():
                pass

    def _enter(self) -> None:
        with self._changed:
            if self._forks:
                self._changed.wait_for(lambda: not self._forks, WAIT_S)
            self._inside += 1

    def _leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    # --- called around a fork, in the thread that forks -------------------------------------------------------------

    def before_fork(self) -> None:
        """Wait until no thread is inside, and let none enter."""
        with self._changed:
            self._forks = True
            self._changed.wait_for(lambda: not self._inside, WAIT_S)

    def after_fork(self) -> None:
        """Let threads enter again, in the parent."""
        with self._changed:
            self._forks = False
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        """Begin again: the threads are gone."""
        self._begin()


gate = ForkGate()
"""That of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=gate.before_fork, after_in_parent=gate.after_fork, after_in_child=gate.after_fork_in_child
    )
