"""The VFS in the SQLite library of the standard library's `sqlite3`: its files in front of sessions, by ctypes.

A replica's file is an empty file of the default VFS in which a few methods are Python's: those that SQLite calls only
while a statement runs. Unlocking and closing, which can happen while a Python exception propagates, stay in C; a
session learns of unlocking from SQLite's next question, and of closing from `Closings`. All other files that SQLite
opens, temporary files above all, are plain files of the default VFS.

No callback raises. The error of a session is kept (`last_error`), logged, and SQLite gets the code that it carries.
When the interpreter ends, each file that is still open gets its C methods back.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_int, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

from litevfs.bindings import sqlite3_library as c
from litevfs.bindings.callbacks import c_callback, interrupt_soon, keep_for_ever
from litevfs.bindings.closings import Closings
from litevfs.bindings.kept_errors import keep_error
from litevfs.bindings.sqlite3_functions import SQLFunctions
from litevfs.bindings.sqlite3_library import Library
from litevfs.errors import LitevfsError, OptionError, SQLiteLibraryError
from litevfs.live.pragmas import answer_pragma
from litevfs.live.session import SHARED, UNLOCKED, Session
from litevfs.options import Options, check_names

logger = logging.getLogger("litevfs.bindings.sqlite3_vfs")


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


@dataclass(slots=True, eq=False)
class _Open:
    """A replica's file that SQLite has open."""

    file: int  # the address of SQLite's file structure; another file's, once SQLite has closed this one
    session: Session
    has_no_locks: bool  # SQLite was told to take none (nolock, immutable)
    database: int = 0  # address of SQLite's connection, once known


class Binding:
    """The callbacks of one SQLite library, and the files that it has open."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._files: dict[int, _Open] = {}  # by the address of SQLite's file structure
        self._reads: dict[int, Callable[[int, int], bytes]] = {}  # the files' `read`: a page costs one look-up
        self._default = library.sqlite3_vfs_find(None)
        system = library.sqlite3_vfs_find(b"unix") or self._default
        self._system = system.contents
        self._open_default = self._default.contents.open
        self._is_over = False
        self._methods: dict[int, c.IOMethods] = {}  # ours, by the address of the native methods they replace
        self._closings: Closings[_Open] = Closings(self._forget)
        self._read, self._file_size = self._make_read(), self._make_file_size()
        self._lock_file, self._file_control = self._make_lock(), self._make_file_control()
        keep_for_ever(self)
        self._functions = SQLFunctions(library, self.session_now)
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

    # --- errors -------------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException, code: int, *, level: int = logging.WARNING) -> int:
        """Keep an error that a callback ended with, and log it; what the callback returns for it."""
        if isinstance(error, KeyboardInterrupt):
            interrupt_soon()
            return c.INTERRUPT
        if isinstance(error, LitevfsError):
            code = error.extendedresult or code
            logger.log(level, "SQLite is told code %d: %s", code, error)
        else:
            logger.error("SQLite is told code %d", code, exc_info=error)
        keep_error(error, code)
        return code

    # --- the VFS ------------------------------------------------------------------------------------------------------

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
        default, open_default = ctypes.addressof(self._default.contents), self._open_default

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
                    return self.fail(error, c.CANTOPEN)
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
            if options.warm:
                from litevfs.bindings.warming import warm  # loads APSW

                warm(session)
            opened = _Open(file, session, has_no_locks)
            if session.replica.pages.ahead is not None:
                from litevfs.bindings.rehearsal import rehearse  # loads APSW

                rehearse(session, lambda _: self.library.running(opened.database) if opened.database else None)
            self._open_empty(opened)
        except BaseException:
            session.close()
            raise

    def _open_empty(self, opened: _Open) -> None:
        """Open an empty file of the default VFS, give it our methods, and let `Closings` watch it."""
        path, descriptor = self._closings.make_fifo()
        file = opened.file
        try:
            name = ctypes.create_string_buffer(path.encode() + b"\0\0\0\0")  # laid out as SQLite does, no parameters
            flags = c.OPEN_TEMP_DB | c.OPEN_READWRITE | c.OPEN_DELETEONCLOSE
            default = ctypes.addressof(self._default.contents)
            code = self._open_default(default, ctypes.addressof(name), file, flags, None)
            if code != c.OK:
                raise SQLiteLibraryError(f"SQLite cannot open a FIFO (code {code})", key=path, hint="see TMPDIR")
            native = c_void_p.from_address(file).value or 0
            if native not in self._methods:
                self._methods[native] = self._make_methods(c.IOMethods.from_address(native))
        except BaseException:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108 - a FIFO
            raise
        self._closings.watch(descriptor, opened)
        self._files[file] = opened
        self._reads[file] = opened.session.read
        c_void_p.from_address(file).value = ctypes.addressof(self._methods[native])

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

    # --- files --------------------------------------------------------------------------------------------------------

    def _make_methods(self, native: c.IOMethods) -> c.IOMethods:
        methods = c.IOMethods(
            version=1,
            read=c_callback(c.ReadFunction, self._read),
            write=c_callback(c.ReadFunction, lambda *_: c.READONLY),
            truncate=c_callback(c.TruncateFunction, lambda *_: c.READONLY),
            file_size=c_callback(c.FileSizeFunction, self._file_size),
            lock=c_callback(c.FileIntFunction, self._lock_file),
            file_control=c_callback(c.FileControlFunction, self._file_control),
        )
        for field in ("close", "sync", "unlock", "check_reserved_lock", "sector_size", "device_characteristics"):
            setattr(methods, field, getattr(native, field))
        keep_for_ever(methods)
        return methods

    def session_now(self, file: int) -> Session | None:
        """The session of a file, unlocked first if its transaction is over."""
        if (opened := self._files.get(file)) is None:
            return None
        if opened.database and not opened.has_no_locks:
            state = self.library.sqlite3_txn_state(opened.database, None)
            if state == c.TXN_NONE:
                opened.session.unlock(UNLOCKED)
        return opened.session

    def _forget(self, opened: _Open) -> None:
        """Forget a file that SQLite has closed. Another file may have its address by now."""
        if self._files.get(opened.file) is opened:
            self._files.pop(opened.file)
            self._reads.pop(opened.file)
        opened.session.close()

    def _make_read(self) -> Callable[..., int]:
        reads, array_at, copy_bytes, fill_bytes = self._reads, c.array_at, c.copy_bytes, c.fill_bytes

        def x_read(file: int, buffer: int, amount: int, offset: int) -> int:
            try:
                try:
                    data = reads[file](amount, offset)
                    if len(data) == amount and amount in array_at:
                        array_at[amount](buffer).raw = data
                        return c.OK
                    if len(data) == amount:
                        copy_bytes(buffer, data, amount)
                        return c.OK
                    fill_bytes(buffer, 0, amount)
                    copy_bytes(buffer, data, len(data))
                    return c.IOERR_SHORT_READ
                except BaseException as error:  # noqa: BLE001 (kept, logged)
                    return self.fail(error, c.IOERR_READ)
            except BaseException:  # noqa: BLE001 (one more Ctrl-C)
                return c.IOERR_READ

        return x_read

    def _make_file_size(self) -> Callable[..., int]:
        files, number_at = self._files, c_int64.from_address

        def x_file_size(file: int, result: int) -> int:
            try:
                try:
                    number_at(result).value = files[file].session.size()
                    return c.OK
                except BaseException as error:  # noqa: BLE001 (kept, logged)
                    return self.fail(error, c.IOERR)
            except BaseException:  # noqa: BLE001 (one more Ctrl-C)
                return c.IOERR

        return x_file_size

    def _make_lock(self) -> Callable[..., int]:
        files, closings = self._files, self._closings

        def x_lock(file: int, level: int) -> int:
            try:
                try:
                    if closings.needs_thread:
                        closings.watch_after_fork()
                    # SQLite takes SHARED only without a lock: it has unlocked
                    files[file].session.lock(level, level == SHARED)
                    return c.OK
                except BaseException as error:  # noqa: BLE001 (kept, logged)
                    return self.fail(error, c.IOERR)
            except BaseException:  # noqa: BLE001 (one more Ctrl-C)
                return c.IOERR

        return x_lock

    def _make_file_control(self) -> Callable[..., int]:
        library = self.library

        def x_file_control(file: int, operation: int, argument: Any) -> int:
            try:
                if operation == c.FCNTL_PDB:
                    self._files[file].database = argument[0] or 0
                if operation != c.FCNTL_PRAGMA:
                    return c.NOTFOUND
                try:
                    session = self.session_now(file) or self._files[file].session
                    value = None if argument[2] is None else ctypes.string_at(argument[2]).decode()
                    answer = answer_pragma(session, ctypes.string_at(argument[1]).decode(), value)
                    if answer is None:
                        return c.NOTFOUND
                    argument[0] = library.allocate_text(answer)
                    return c.OK if argument[0] else c.NOMEM
                except BaseException as error:  # noqa: BLE001 (kept, logged)
                    code = self.fail(error, c.ERROR, level=logging.INFO)  # SQLite reports its text
                    argument[0] = library.allocate_text(str(error) or "interrupted")
                    return code
            except BaseException:  # noqa: BLE001 (one more Ctrl-C)
                return c.ERROR

        return x_file_control

    # --- the end of the interpreter -----------------------------------------------------------------------------------

    def _end(self) -> None:
        """Let SQLite call no Python any more, before the interpreter ends and frees the callbacks."""
        self._is_over = True
        self._functions.remove_from_new_connections()
        keep_for_ever(list(self._files.values()))  # they end with the process, like their threads
        for address, methods in self._methods.items():
            native = c.IOMethods.from_address(address)
            for field in ("read", "write", "truncate", "file_size", "lock", "file_control"):
                setattr(methods, field, getattr(native, field))


def _full_pathname(_: int, name: bytes, size: int, result: int) -> int:
    """The name as it is: it is a label, not a path."""
    try:
        if len(name) >= size:
            return c.CANTOPEN
        c.copy_bytes(result, name, len(name) + 1)
        return c.OK
    except BaseException:  # noqa: BLE001 (Ctrl-C)
        return c.CANTOPEN


def _is_main_interpreter() -> bool:
    current, main = ctypes.pythonapi.PyInterpreterState_Get, ctypes.pythonapi.PyInterpreterState_Main
    current.restype = main.restype = c_void_p
    return bool(current() == main())


_lock = threading.Lock()
_bindings: dict[int, Binding | None] = {}  # by the identity of the library
_registered: dict[tuple[str | None, str], Named] = {}  # by the library's path and the VFS's name
