"""Connections of APSW that read by a session which stands beside another one, on its replica."""

from __future__ import annotations

from itertools import count

import apsw

from litevfs.bindings.apsw_vfs import ReplicaVFS
from litevfs.live.session import Session

_FLAGS = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_PRIVATECACHE


class _GuestVFS(ReplicaVFS):
    """Opens sessions that lie ready."""

    def _open_session(self, name: str | apsw.URIFilename | None) -> Session:
        return _guests[str(name.filename() if isinstance(name, apsw.URIFilename) else name)]


_numbers = count(1)
_guests: dict[str, Session] = {}
_vfs = _GuestVFS("litevfs-guest", {})


def connect_guest(session: Session) -> apsw.Connection:
    """A connection that reads by this session. Raises what APSW raises."""
    name = f"guest-{next(_numbers)}"
    _guests[name] = session
    try:
        return apsw.Connection(name, flags=_FLAGS, vfs=_vfs.name)
    finally:
        _guests.pop(name, None)
