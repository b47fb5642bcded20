"""What APSW's SQLite library asks of a VFS and its files, in front of sessions. Knows no options.

Everything that is not a replica's main database, temporary files and sorters above all, goes to the default VFS.
Errors reach the caller unchanged: APSW passes the exception object on, and SQLite gets the code it carries.
"""

from __future__ import annotations

import ctypes
import sys
from functools import partial
from weakref import WeakSet

import apsw

from litevfs.bindings.apsw_errors import apsw_errors
from litevfs.live.pragmas import answer_pragma
from litevfs.live.session import Session

_says_no = "".startswith
"""False to any name, with flags or without: `xAccess`, until `apsw_access` has put a function of C in its place.

SQLite asks for a journal and a WAL beside a replica, which has none, whatever lies in the current folder. The one other
name is that of a new journal for a commit to several attached databases, which SQLite then opens exclusively.
"""


class SessionVFS(apsw.VFS):
    """Opens sessions as read-only databases."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name, base="")

    def open_session(self, name: str | apsw.URIFilename | None) -> Session:
        """The session for a main database of this name. For a subclass to say."""
        raise NotImplementedError

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        """A replica for a main database, else a file of the default VFS."""
        if not flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            return apsw.VFSFile("", name, flags)
        with apsw_errors():
            file = ReplicaFile(self.open_session(name))
        flags[1] = flags[0] & ~(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) | apsw.SQLITE_OPEN_READONLY
        return file  # type: ignore[return-value]  # any object with the methods of a VFSFile works

    xAccess = _says_no  # type: ignore[assignment]  # noqa: N815 - a function of C, without `self`

    def xFullPathname(self, name: str) -> str:
        """The name as it is: it is a label, not a path."""
        return name


class ReplicaFile:
    """A session as an APSW file; its methods are the session's own where possible, so no page costs a further call."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.xRead = session.read
        self.xFileSize = session.size
        self.xLock = session.lock
        self.xUnlock = session.unlock
        self.xClose = session.close
        _files.add(self)

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


_files: WeakSet[ReplicaFile] = WeakSet()  # that SQLite has open


class _End:
    """Closes the connections that are still open when the interpreter ends, before APSW's module is cleared.

    APSW looks up the methods of a file by names that go with its module: a connection, or a cursor, that lives longer
    (in `sys.excepthook`, in a cycle) would crash the process. All functions that are registered with `atexit` have run
    by then, and no other thread runs any more.
    """

    def __init__(self) -> None:  # what `__del__` needs: the names of this module may be gone by then
        self._is_end = sys.is_finalizing
        self._files, self._connections, self._class = _files, apsw.connections, FILE_CLASS
        self._no = lambda *_: False
        self._keep = ctypes.pythonapi.Py_IncRef
        self._object = ctypes.py_object

    def __del__(self) -> None:
        if not self._is_end():  # the module is loaded again
            return
        for file in tuple(self._files):  # nothing is to be released any more: threads that it would wait for are gone
            self._keep(self._object(file))
            for method in ("xUnlock", "xClose", "xFileControl"):
                setattr(file, method, self._no)
        for connection in self._connections():
            try:
                if any(self._class in (connection.vfsname(name) or "") for name in connection.db_names()):
                    connection.close(True)
            except Exception:  # noqa: BLE001 - a thread that stands still had it in use
                self._keep(self._object(connection))


_end = _End()
