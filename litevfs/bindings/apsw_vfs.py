"""Replicas in APSW's SQLite library: their options, and what runs beside a connection. Knows no call of SQLite's."""

from __future__ import annotations

import itertools
import threading
from urllib.parse import quote

import apsw

from litevfs.bindings.apsw_errors import make_apsw_error
from litevfs.bindings.apsw_files import SessionVFS
from litevfs.bindings.beside import start_beside
from litevfs.bindings.statements import Noted
from litevfs.errors import OptionError
from litevfs.live.session import SHARED, Session
from litevfs.options import Options, first_of_equals

_SHARES_CACHES = "OMIT_SHARED_CACHE" not in apsw.compile_options
"""Not so in APSW's own wheels."""


class ReplicaVFS(SessionVFS):
    """Opens replicas by a URI's parameters and these keywords."""

    def __init__(self, name: str, keywords: dict[str, object]) -> None:
        super().__init__(name)
        self.keywords = keywords

    if _SHARES_CACHES:

        def xFullPathname(self, name: str) -> str:
            """The name with a number that no other opening has: see `sqlite3_vfs`, where this is so as a rule."""
            return f"{name}#{next(_openings)}"

    def open_session(self, name: str | apsw.URIFilename | None) -> Session:
        """See `SessionVFS.open_session`."""
        options = Options.collect(_uri_parameters(name), self.keywords)
        if not options.replica_url:
            raise OptionError("no replica URL", hint=_no_url_hint(name))
        session, noted = Session(options, make_apsw_error), Noted()
        _opened.tracer = None
        try:
            if isinstance(name, apsw.URIFilename) and (
                name.uri_boolean("nolock", False) or name.uri_boolean("immutable", False)
            ):
                session.lock(SHARED)  # SQLite takes no lock, and would mix pages of different states
                session.keeps_state = True
            if start_beside(session, noted.find):
                _opened.tracer = noted.note
        except BaseException:
            session.close()  # SQLite does not close it: it has no file yet
            raise
        return session


def _uri_parameters(name: str | apsw.URIFilename | None) -> dict[str, str]:
    if not isinstance(name, apsw.URIFilename):
        return {}
    return first_of_equals((key, name.uri_parameter(key) or "") for key in name.parameters)


def _no_url_hint(name: str | apsw.URIFilename | None) -> str:
    path = name.filename() if isinstance(name, apsw.URIFilename) else name
    if path and _SHARES_CACHES:
        path = path.rpartition("#")[0]
    if path and "://" in path:  # not shown: it may contain an encryption key
        return "a replica's URL stands in a URI, percent-encoded: 'file:app?replica_url=s3%3A%2F%2Fbucket%2Fapp'"
    return (
        "add ?replica_url=... to the URI (and open with SQLITE_OPEN_URI), or set LITESTREAM_REPLICA_URL; for an "
        f"ordinary file, as in VACUUM INTO and ATTACH, write 'file:{quote(path or 'x.db')}?vfs={apsw.vfs_names()[0]}'"
    )


_openings = itertools.count(1)
_opened = threading.local()


def tracer_of_last_opened() -> apsw.ExecTracer | None:
    """What wants to know the statements of the connection that this thread has opened a replica for last, if anything.

    To be asked once: another connection of this thread may have other statements.
    """
    tracer: apsw.ExecTracer | None = getattr(_opened, "tracer", None)
    _opened.tracer = None
    return tracer
