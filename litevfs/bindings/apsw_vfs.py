"""The VFS in APSW's SQLite library: its files in front of sessions.

Everything that is not a replica's main database, temporary files and sorters above all, goes to the default VFS.
Errors reach the caller unchanged: APSW passes the exception object on, and SQLite gets the code it carries.
"""

from __future__ import annotations

import threading
from functools import partial
from urllib.parse import quote

import apsw

from litevfs.bindings.apsw_errors import apsw_errors, make_apsw_error
from litevfs.bindings.statements import Noted
from litevfs.errors import OptionError
from litevfs.live.pragmas import answer_pragma
from litevfs.live.session import SHARED, Session
from litevfs.options import Options

_says_no = "".startswith
"""False to any name, with flags or without: `xAccess`, until `apsw_access` has put a function of C in its place.

SQLite asks for a journal and a WAL beside a replica, which has none, whatever lies in the current folder. The one other
name is that of a new journal for a commit to several attached databases, which SQLite then opens exclusively.
"""


class ReplicaVFS(apsw.VFS):
    """Opens replicas as read-only databases."""

    def __init__(self, name: str, keywords: dict[str, object]) -> None:
        self.name = name
        self.keywords = keywords
        super().__init__(name, base="")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        """A replica for a main database, else a file of the default VFS."""
        if not flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            return apsw.VFSFile("", name, flags)
        with apsw_errors():
            file = ReplicaFile(self._open_session(name))
        flags[1] = flags[0] & ~(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) | apsw.SQLITE_OPEN_READONLY
        return file  # type: ignore[return-value]  # any object with the methods of a VFSFile works

    def _open_session(self, name: str | apsw.URIFilename | None) -> Session:
        options = Options.collect(_uri_parameters(name), self.keywords)
        if not options.replica_url:
            raise OptionError("no replica URL", hint=_no_url_hint(name))
        session = Session(options, make_apsw_error)
        _opened.tracer = None
        try:
            if isinstance(name, apsw.URIFilename) and (
                name.uri_boolean("nolock", False) or name.uri_boolean("immutable", False)
            ):
                session.lock(SHARED)  # SQLite takes no lock, and would mix pages of different states
            if options.warm:
                from litevfs.bindings.warming import warm  # few connections need it

                warm(session)
            if session.replica.pages.ahead is not None:
                from litevfs.bindings.rehearsal import rehearse  # local replicas need none

                noted = Noted()
                rehearse(session, noted.find)
                _opened.tracer = noted.note
        except BaseException:
            session.close()  # SQLite does not close it: it has no file yet
            raise
        return session

    xAccess = _says_no  # type: ignore[assignment]  # noqa: N815 - a function of C, without `self`

    def xFullPathname(self, name: str) -> str:
        """The name as it is: it is a label, not a path."""
        return name


def _uri_parameters(name: str | apsw.URIFilename | None) -> dict[str, str]:
    if not isinstance(name, apsw.URIFilename):
        return {}
    if name.parameters.count("warm") > 1:
        raise OptionError("URI parameter warm is given more than once", hint="put semicolons between the queries")
    return {key: name.uri_parameter(key) or "" for key in name.parameters}


def _no_url_hint(name: str | apsw.URIFilename | None) -> str:
    path = name.filename() if isinstance(name, apsw.URIFilename) else name
    return (
        "add ?replica_url=... to the URI (and open with SQLITE_OPEN_URI), or set LITESTREAM_REPLICA_URL; for an "
        f"ordinary file, as in VACUUM INTO and ATTACH, write 'file:{quote(path or 'x.db')}?vfs={apsw.vfs_names()[0]}'"
    )


_opened = threading.local()


def tracer_of_last_opened() -> apsw.ExecTracer | None:
    """What wants to know the statements of the connection that this thread has opened a replica for last, if anything.

    To be asked once: another connection of this thread may have other statements.
    """
    tracer: apsw.ExecTracer | None = getattr(_opened, "tracer", None)
    _opened.tracer = None
    return tracer


class ReplicaFile:
    """A session as an APSW file; its methods are the session's own where possible, so no page costs a further call."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.xRead = session.read
        self.xFileSize = session.size
        self.xLock = session.lock
        self.xUnlock = session.unlock
        self.xClose = session.close

    def xFileControl(self, op: int, ptr: int) -> bool:
        """Answer `PRAGMA litestream_...`; SQLite deals with the rest."""
        if op != apsw.SQLITE_FCNTL_PRAGMA:
            return False
        pragma = apsw.VFSFcntlPragma(ptr)
        with apsw_errors():
            answer = answer_pragma(self.session, pragma.name, pragma.value)
        if answer is None:
            return False
        pragma.result = answer
        return True

    # SQLite takes only a number from these methods, so an exception in them is lost. So no Python code runs in them: a
    # Ctrl-C there would be lost, too, and the query would go on.
    xSectorSize = staticmethod(partial(int, 4096))  # noqa: N815 - bytes; SQLite's default
    xDeviceCharacteristics = staticmethod(partial(int, 0))  # noqa: N815 - no promise about writes

    def xCheckReservedLock(self) -> bool:
        """No connection ever writes."""
        return False

    def xWrite(self, data: bytes, offset: int) -> None:
        """Refused."""
        with apsw_errors():
            raise self.session.read_only()

    def xTruncate(self, newsize: int) -> None:
        """Refused."""
        with apsw_errors():
            raise self.session.read_only()

    def xSync(self, flags: int) -> None:
        """Nothing to do."""


FILE_CLASS = f"{ReplicaFile.__module__}.{ReplicaFile.__qualname__}"
"""How APSW names the VFS of a database that is a replica (`Connection.vfsname`)."""
