"""`threading.Condition` that Ctrl-C cannot leave locked."""

from __future__ import annotations

import threading
from operator import attrgetter


class Condition(threading.Condition):
    """Like that of the standard library, whose `with` calls two methods in Python.

    A signal's handler may raise in them: after the lock was taken and before the block began, or before it is released.
    Then it stays locked for ever. Here, as with a lock itself, `with` runs no line of Python on its way.
    """

    def __init__(self, lock: threading.Lock | None = None) -> None:
        """`lock`: instead of a new one that a thread may take several times."""
        self.lock = threading.RLock() if lock is None else lock
        super().__init__(self.lock)

    # Descriptors: `with` looks methods up on the class, and binds what it finds there.
    __enter__ = property(attrgetter("lock.__enter__"))
    __exit__ = property(attrgetter("lock.__exit__"))
