"""The VFS in the SQLite library of the standard library's `sqlite3`, by ctypes: it opens replicas, with their options.

All other files that SQLite opens, temporary files above all, are plain files of the default VFS.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import threading
from ctypes import c_int, c_void_p
from typing import Any

from litevfs.bindings import sqlite3_library as c
from litevfs.bindings.beside import start_beside
from litevfs.bindings.callbacks import c_callback, keep_for_ever
from litevfs.bindings.sqlite3_files import Files, OpenFile, fail
from litevfs.bindings.sqlite3_functions import SQLFunctions
from litevfs.bindings.sqlite3_library import Library
from litevfs.errors import OptionError, SQLiteLibraryError
from litevfs.live.session import SHARED, Session
from litevfs.options import Options, check_names


def register(name: str, keywords: dict[str, object], library: str | None) -> None:
    """Make the VFS known to a SQLite library as `name`; None is the one of `sqlite3`. See `litevfs.register_stdlib`."""
    check_names(keywords, "option")
    if not _is_main_interpreter():
        raise SQLiteLibraryError("SQLite cannot call Python in a subinterpreter", hint="use it in the main interpreter")
    with _lock:
        if (library, name) in _registered:
            if keywords:
                _registered[library, name].keywords = dict(keywords)
            return
        found = Library(library)
        binding = _bindings.setdefault(found.identity, None) or Binding(found)
        _bindings[found.identity] = binding
        _registered[library, name] = binding.add(name, dict(keywords))
    found.check_vfs(name)


class Named:
    """A name of the VFS in one library, and the options of connections that use it."""

    def __init__(self, name: str, keywords: dict[str, object]) -> None:
        self.name = name
        self.keywords = keywords


class Binding:
    """The VFS of one SQLite library, under all its names."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._default = library.sqlite3_vfs_find(None)
        system = library.sqlite3_vfs_find(b"unix") or self._default
        self._system = system.contents
        self._is_over = False
        self._files = Files(library, self._default)
        keep_for_ever(self)
        self._functions = SQLFunctions(library, self._files.session_now)
        self._functions.add_to_every_connection()
        atexit.register(self._end)

    def add(self, name: str, keywords: dict[str, object]) -> Named:
        """Register the VFS under a name. Raises OptionError if another VFS has it."""
        library = self.library
        if library.sqlite3_vfs_find(name.encode()):
            raise OptionError(f"another VFS has the name {name!r}", hint="give this one another: register_stdlib(name)")
        named = Named(name, keywords)
        vfs = self._make_vfs(named)
        if (code := library.sqlite3_vfs_register(ctypes.byref(vfs), 0)) != c.OK:
            raise SQLiteLibraryError(f"SQLite does not take the VFS {name!r}: code {code}")
        return named

    def _make_vfs(self, named: Named) -> c.VFS:
        system = self._system
        vfs = c.VFS(
            version=2,
            file_size=max(self._default.contents.file_size, ctypes.sizeof(c_void_p)),
            max_pathname=self._default.contents.max_pathname,
            name=named.name.encode(),
            open=self._make_open(named),
            access=self._find_access(),
            full_pathname=c_callback(c.FullPathnameFunction, _full_pathname),
        )
        for field in ("delete", "dl_open", "dl_error", "dl_sym", "dl_close", "randomness", "sleep", "current_time"):
            setattr(vfs, field, getattr(system, field))  # they ignore the VFS that they are called for
        vfs.get_last_error = system.get_last_error
        vfs.current_time_int64 = system.current_time_int64
        keep_for_ever(vfs)
        return vfs

    def _make_open(self, named: Named) -> Any:
        default, open_default = ctypes.addressof(self._default.contents), self._default.contents.open

        def x_open(_: int, name: int, file: int, flags: int, out_flags: int) -> int:
            try:
                try:
                    if not flags & c.OPEN_MAIN_DB:
                        return int(open_default(default, name, file, flags, out_flags))
                    c_void_p.from_address(file).value = None  # SQLite has nothing to close yet
                    self._open_replica(named, name, file)
                    if out_flags:
                        writing = c.OPEN_READWRITE | c.OPEN_CREATE
                        c_int.from_address(out_flags).value = flags & ~writing | c.OPEN_READONLY
                    return c.OK
                except BaseException as error:  # noqa: BLE001 (kept, logged)
                    return fail(error, c.CANTOPEN)
            except BaseException:  # noqa: BLE001 (one more Ctrl-C; the first one is on its way)
                return c.CANTOPEN

        return c_callback(c.OpenFunction, x_open)

    def _open_replica(self, named: Named, name: int, file: int) -> None:
        if self._is_over or not _is_main_interpreter():
            raise SQLiteLibraryError("SQLite cannot call Python: the interpreter ends, or this is a subinterpreter")
        library = self.library
        options = Options.collect(library.uri_parameters(name), named.keywords)
        if not options.replica_url:
            raise OptionError(
                "no replica URL",
                hint="add &replica_url=... to the URI, or set LITESTREAM_REPLICA_URL; for an ordinary file write "
                "'file:x.db?vfs=unix'",
            )
        has_no_locks = bool(
            library.sqlite3_uri_boolean(name, b"nolock", 0) or library.sqlite3_uri_boolean(name, b"immutable", 0)
        )
        session = Session(options)
        try:
            if has_no_locks:
                session.lock(SHARED)  # SQLite will not, and would read pages of one state after the other
                session.keeps_state = True
            opened = OpenFile(file, session, has_no_locks)
            start_beside(session, lambda _: library.running(opened.database) if opened.database else None)
            self._files.open(opened)
        except BaseException:
            session.close()
            raise

    def _find_access(self) -> Any:
        """A function that says "not there" of every file: a replica has no journal, whatever the current folder has.

        SQLite asks twice a transaction. The VFS `memdb` has such a function, in C; where it is missing, Python answers.
        """
        memory = self.library.sqlite3_vfs_find(b"memdb")
        if memory:
            answer = c_int(1)
            code = memory.contents.access(memory, b"/", 0, ctypes.addressof(answer))
            if (code, answer.value) == (c.OK, 0):
                return memory.contents.access
        fill_bytes, size = c.fill_bytes, ctypes.sizeof(c_int)

        def x_access(_: int, __: int, ___: int, result: int) -> int:
            try:
                fill_bytes(result, 0, size)
                return c.OK
            except BaseException:  # noqa: BLE001 (Ctrl-C)
                return c.IOERR

        return c_callback(c.AccessFunction, x_access)

    def _end(self) -> None:
        """Let SQLite call no Python any more, before the interpreter ends and frees the callbacks."""
        self._is_over = True
        self._functions.remove_from_new_connections()
        self._files.end()


def _full_pathname(_: int, name: bytes, size: int, result: int) -> int:
    """The name, which is a label and no path, with a number that no other opening has.

    In shared-cache mode (`cache=shared`, `sqlite3.enable_shared_cache`) SQLite takes files of one name for one file: it
    would read the replica, and the state, of the connection that came first.
    """
    try:
        label = b"%b#%d" % (name, next(_openings))
        if len(label) >= size:
            return c.CANTOPEN
        c.copy_bytes(result, label, len(label) + 1)
        return c.OK
    except BaseException:  # noqa: BLE001 (Ctrl-C)
        return c.CANTOPEN


def _is_main_interpreter() -> bool:
    current, main = ctypes.pythonapi.PyInterpreterState_Get, ctypes.pythonapi.PyInterpreterState_Main
    current.restype = main.restype = c_void_p
    return bool(current() == main())


_openings = itertools.count(1)
_lock = threading.Lock()
_bindings: dict[int, Binding | None] = {}  # by the identity of the library
_registered: dict[tuple[str | None, str], Named] = {}  # by the library's path and the VFS's name
