"""What SQLite's library of `sqlite3` asks of a replica's file, in front of sessions, by ctypes. Knows no options.

A replica's file is an empty file of the default VFS in which a few methods are Python's: those that SQLite calls only
while a statement runs. Unlocking and closing, which can happen while a Python exception propagates, stay in C; a
session learns of unlocking from SQLite's next question, and of closing from `Closings`. Locking is in C, too, for a
call less in each transaction: what SQLite asks first under the lock begins the transaction. That is its check of
page 1, and the size of the file in the first transaction of all (`sqlite3PagerSharedLock` in SQLite's pager.c).

No callback raises. The error of a session is kept (`last_error`), logged, and SQLite gets the code that it carries.
When the interpreter ends, each file that is still open gets its C methods back.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_char, c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

from litevfs.bindings import sqlite3_library as c
from litevfs.bindings.callbacks import c_callback, interrupt_soon, keep_for_ever
from litevfs.bindings.closings import Closings
from litevfs.bindings.kept_errors import keep_error
from litevfs.bindings.sqlite3_library import Library
from litevfs.errors import LitevfsError, SQLiteLibraryError
from litevfs.live.pragmas import answer_pragma
from litevfs.live.session import CHECK_BYTES, CHECK_OFFSET, SHARED, Session

logger = logging.getLogger("litevfs.bindings.sqlite3_files")


def fail(error: BaseException, code: int, *, level: int = logging.WARNING) -> int:
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


@dataclass(slots=True, eq=False)
class OpenFile:
    """A replica's file that SQLite has open."""

    file: int  # the address of SQLite's file structure; another file's, once SQLite has closed this one
    session: Session
    has_no_locks: bool  # SQLite was told to take none (nolock, immutable)
    database: int = 0  # address of SQLite's connection, once known
    has_checked: bool = False  # SQLite has checked page 1, as it does in each transaction but the first
    is_exclusive: bool = False  # SQLite keeps its lock from one transaction to the next, as far as is known


class Files:
    """The replicas' files that one SQLite library has open, and their methods."""

    def __init__(self, library: Library, default: Any) -> None:
        """`default` points to the library's default VFS."""
        self._library, self._default = library, default
        self._files: dict[int, OpenFile] = {}  # by the address of SQLite's file structure
        self._reads: dict[int, Callable[[int, int], bytes]] = {}  # the files' `read`: a page costs one look-up
        self._methods: dict[int, c.IOMethods] = {}  # ours, by the address of the native methods they replace
        self._closings: Closings[OpenFile] = Closings(self._forget)
        self._read, self._file_size = self._make_read(), self._make_file_size()
        self._file_control = self._make_file_control()

    def open(self, opened: OpenFile) -> None:
        """Open an empty file of the default VFS, give it our methods, and let `Closings` watch it."""
        try:
            path, descriptor = self._closings.make_fifo()
        except OSError as error:
            hint = "set TMPDIR to a folder that can be written to; litevfs.connect and litevfs.dbapi need none"
            raise SQLiteLibraryError(f"no FIFO can be made in the temporary folder: {error}", hint=hint) from error
        file = opened.file
        try:
            name = ctypes.create_string_buffer(path.encode() + b"\0\0\0\0")  # laid out as SQLite does, no parameters
            flags = c.OPEN_TEMP_DB | c.OPEN_READWRITE | c.OPEN_DELETEONCLOSE
            default = ctypes.addressof(self._default.contents)
            code = self._default.contents.open(default, ctypes.addressof(name), file, flags, None)
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

    def _make_methods(self, native: c.IOMethods) -> c.IOMethods:
        methods = c.IOMethods(
            version=1,
            read=c_callback(c.ReadFunction, self._read),
            write=c_callback(c.ReadFunction, lambda *_: c.READONLY),
            truncate=c_callback(c.TruncateFunction, lambda *_: c.READONLY),
            file_size=c_callback(c.FileSizeFunction, self._file_size),
            lock=native.unlock,  # does nothing but succeed: to the native file, it is not locked
            file_control=c_callback(c.FileControlFunction, self._file_control),
        )
        for field in ("close", "sync", "unlock", "check_reserved_lock", "sector_size", "device_characteristics"):
            setattr(methods, field, getattr(native, field))
        keep_for_ever(methods)
        return methods

    def session_now(self, file: int) -> Session | None:
        """The session of a file, which is told first if its transaction is over."""
        if (opened := self._files.get(file)) is None:
            return None
        if opened.database and not (opened.has_no_locks or opened.is_exclusive):
            state = self._library.sqlite3_txn_state(opened.database, None)
            if state == c.TXN_NONE:
                opened.session.end()
        return opened.session

    def _forget(self, opened: OpenFile) -> None:
        """Forget a file that SQLite has closed. Another file may have its address by now."""
        if self._files.get(opened.file) is opened:
            self._files.pop(opened.file)
            self._reads.pop(opened.file)
        opened.session.close()

    def _make_read(self) -> Callable[..., int]:
        files, reads, closings = self._files, self._reads, self._closings
        array_at, copy_bytes, fill_bytes = c.array_at, c.copy_bytes, c.fill_bytes
        checks = c.Places(c_char * CHECK_BYTES)

        def x_read(file: int, buffer: int, amount: int, offset: int) -> int:
            try:
                try:
                    if offset == CHECK_OFFSET and amount == CHECK_BYTES:
                        opened = files[file]
                        opened.has_checked = True
                        if closings.needs_thread:
                            closings.watch_after_fork()
                        # In place of the transaction before.
                        data = reads[file](amount, offset) if opened.has_no_locks else opened.session.begin_again()
                        if len(data) == amount:
                            checks[buffer].raw = data
                            return c.OK
                    else:
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
                    return fail(error, c.IOERR_READ)
            except BaseException:  # noqa: BLE001 (one more Ctrl-C)
                return c.IOERR_READ

        return x_read

    def _make_file_size(self) -> Callable[..., int]:
        files, numbers = self._files, c.Places(c_int64)

        def x_file_size(file: int, result: int) -> int:
            try:
                try:
                    opened = files[file]
                    session = opened.session
                    if not opened.has_checked and not opened.has_no_locks:
                        session.lock(SHARED, True)
                    numbers[result].value = session.size()
                    return c.OK
                except BaseException as error:  # noqa: BLE001 (kept, logged)
                    return fail(error, c.IOERR)
            except BaseException:  # noqa: BLE001 (one more Ctrl-C)
                return c.IOERR

        return x_file_size

    def _make_file_control(self) -> Callable[..., int]:
        library = self._library

        def x_file_control(file: int, operation: int, argument: Any) -> int:
            try:
                if operation == c.FCNTL_PDB:
                    self._files[file].database = argument[0] or 0
                if operation != c.FCNTL_PRAGMA:
                    return c.NOTFOUND
                try:
                    session = self.session_now(file) or self._files[file].session
                    name = ctypes.string_at(argument[1]).decode()
                    value = None if argument[2] is None else ctypes.string_at(argument[2]).decode()
                    if value and name.lower() == "locking_mode":
                        self._files[file].is_exclusive = value.lower() == "exclusive"
                    answer = answer_pragma(session, name, value)
                    if answer is None:
                        return c.NOTFOUND
                    argument[0] = library.allocate_text(answer)
                    return c.OK if argument[0] else c.NOMEM
                except BaseException as error:  # noqa: BLE001 (kept, logged)
                    code = fail(error, c.ERROR, level=logging.INFO)  # SQLite reports its text
                    argument[0] = library.allocate_text(str(error) or "interrupted")
                    return code
            except BaseException:  # noqa: BLE001 (one more Ctrl-C)
                return c.ERROR

        return x_file_control

    def end(self) -> None:
        """Let SQLite call no Python any more for the files that are open."""
        keep_for_ever(list(self._files.values()))  # they end with the process, like their threads
        for address, methods in self._methods.items():
            native = c.IOMethods.from_address(address)
            for field in ("read", "write", "truncate", "file_size", "file_control"):
                setattr(methods, field, getattr(native, field))
