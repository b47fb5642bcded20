"""Connections of APSW for rehearsals and `warm`: each reads by a session of its own on another connection's replica.

Also waits for the threads that use them when the interpreter ends.
"""

from __future__ import annotations

import atexit
import time
from itertools import count
from typing import Protocol
from weakref import WeakSet

import apsw

from litevfs.bindings.apsw_files import SessionVFS
from litevfs.live.session import Session

EXIT_S = 0.5
"""The end of the interpreter waits so long for such threads."""
_FLAGS = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_PRIVATECACHE


class _GuestVFS(SessionVFS):
    """Opens the session that `connect_guest` has put under the name."""

    def open_session(self, name: str | apsw.URIFilename | None) -> Session:
        """See `SessionVFS.open_session`."""
        return _guests[str(name.filename() if isinstance(name, apsw.URIFilename) else name)]


_numbers = count(1)
_guests: dict[str, Session] = {}
_vfs = _GuestVFS("litevfs-guest")


def connect_guest(session: Session) -> apsw.Connection:
    """A connection that reads by this session. Raises what APSW raises."""
    name = f"guest-{next(_numbers)}"
    _guests[name] = session
    try:
        return apsw.Connection(name, flags=_FLAGS, vfs=_vfs.name)
    finally:
        _guests.pop(name, None)


class GuestThreads(Protocol):
    """Threads that use such connections."""

    def stop(self) -> None:
        """Ask them to end. Waits for nothing; idempotent."""
        ...

    def join(self, timeout_s: float) -> None:
        """Wait for their end, so long at most."""
        ...


_running: WeakSet[GuestThreads] = WeakSet()


def end_at_exit(threads: GuestThreads) -> None:
    """Let none of them be in SQLite when the interpreter ends."""
    _running.add(threads)


@atexit.register
def end_all() -> None:
    """What the interpreter does at its end: ask all threads to end, and wait for them."""
    deadline = time.monotonic() + EXIT_S
    running = list(_running)
    for threads in running:
        threads.stop()
    for threads in running:
        threads.join(deadline - time.monotonic())
