"""Starts what runs beside a connection from its opening on: the queries of `warm`, and rehearsals.

Both run in APSW, whichever library the connection has; APSW is loaded for them.
"""

from __future__ import annotations

from litevfs.bindings.statements import FindRunning
from litevfs.live.session import Session


def start_beside(session: Session, find: FindRunning) -> bool:
    """Start what its options ask for. Returns whether `find` will be asked for statements. Raises OptionError."""
    if session.options.warm:
        from litevfs.bindings.warming import warm  # few connections need it

        warm(session)
    if session.replica.pages.ahead is None:
        return False
    from litevfs.bindings.rehearsal import rehearse  # local replicas need none

    rehearse(session, find)
    return True
