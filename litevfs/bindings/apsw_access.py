"""Lets functions of SQLite's own answer questions about replicas in APSW's library, where the answer never changes.

SQLite asks twice a transaction for a file beside the replica (`xAccess`: "not there", of any name), and once what the
storage promises about writes, of which a replica has none (`xDeviceCharacteristics`). By way of APSW each question
takes as long as a lock: SQLite waits for Python's interpreter, and the arguments become objects. The functions are
those of the VFS `memdb`. Where anything is not as expected, APSW's function stays.
"""

from __future__ import annotations

import ctypes
from collections.abc import Container
from ctypes import c_int, c_void_p
from functools import cache
from typing import Any

import apsw

from litevfs.bindings import sqlite3_library as c
from litevfs.bindings.apsw_vfs import SECTOR_BYTES

_ABOUT_WRITES = (
    apsw.SQLITE_IOCAP_ATOMIC
    | apsw.SQLITE_IOCAP_SAFE_APPEND
    | apsw.SQLITE_IOCAP_SEQUENTIAL
    | apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE
)
"""What a function may promise in place of ours, which promises nothing: SQLite never writes to a replica."""
_FILE_VERSION = 1
"""Of the methods that APSW gives to a file; later versions have more of them."""


def answer_in_c(connection: apsw.Connection, names: Container[str]) -> bool:
    """Give the main database of a connection such functions, if its VFS has one of these names. Whether it has both."""
    vfs = c_void_p()
    connection.file_control("main", apsw.SQLITE_FCNTL_VFS_POINTER, ctypes.addressof(vfs))
    if not vfs.value or (c.VFS.from_address(vfs.value).name or b"").decode() not in names:
        return False
    place = c_void_p.from_address(vfs.value + c.VFS.access.offset)
    if (function := _says_not_there()) is not None:
        place.value = function
    return _promise_in_c(connection) and place.value == function


def _promise_in_c(connection: apsw.Connection) -> bool:
    file = c_void_p()
    connection.file_control("main", apsw.SQLITE_FCNTL_FILE_POINTER, ctypes.addressof(file))
    if not file.value or not (methods := c_void_p.from_address(file.value)).value:
        return False
    if (changed := _promising_in_c(methods.value, file.value)) is not None:
        methods.value = changed
    return changed is not None


_changed: dict[int, int | None] = {}  # by the address of APSW's methods: ours, or None where those stay


def _promising_in_c(methods: int, file: int) -> int | None:
    """The address of the same methods of a file but for one; None if they are not as expected."""
    if methods not in _changed:
        native, function = c.IOMethods.from_address(methods), _promises_about_writes()
        is_known = (
            function is not None
            and native.version == _FILE_VERSION
            and _ask(native.sector_size, file) == SECTOR_BYTES
            and _ask(native.device_characteristics, file) == 0
        )
        if is_known:
            ours = c.IOMethods.from_buffer_copy(native)
            ours.device_characteristics = function
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(ours))  # SQLite uses it for as long as the process lives
        _changed[methods] = ctypes.addressof(ours) if is_known else None
    return _changed[methods]


def _ask(function: int | None, file: int) -> int:
    """What a method says that takes a file and nothing else; -1 if there is none."""
    return int(c.CloseFunction(function)(file)) if function else -1


@cache
def _says_not_there() -> int | None:
    """The address of a function that says so; None if APSW's library has none."""
    function = _memdb().get("xAccess")
    if not isinstance(function, int):
        return None
    answer = c_int(1)
    code = c.AccessFunction(function)(None, b"/", 0, ctypes.addressof(answer))
    return function if (code, answer.value) == (c.OK, 0) else None


@cache
def _promises_about_writes() -> int | None:
    """The address of a function that promises nothing about a file but of writes; None if APSW's library has none."""
    details = _memdb()
    if not details:
        return None
    vfs = c.VFS(version=details["iVersion"], name=b"memdb", app_data=details["pAppData"])
    file = ctypes.create_string_buffer(details["szOsFile"])
    name = ctypes.create_string_buffer(b"litevfs\0\0\0\0")  # laid out as SQLite does, no parameters
    flags = c.OPEN_MAIN_DB | c.OPEN_READWRITE | c.OPEN_CREATE
    address = ctypes.addressof(file)
    opened = c.OpenFunction(details["xOpen"])(ctypes.addressof(vfs), ctypes.addressof(name), address, flags, None)
    methods = c.IOMethods.from_address(c_void_p.from_address(address).value or 0) if opened == c.OK else None
    if methods is None:
        return None
    function: int | None = methods.device_characteristics
    promised = _ask(function, address)
    _ask(methods.close, address)
    return function if promised >= 0 and not promised & ~_ABOUT_WRITES else None


def _memdb() -> dict[str, Any]:
    """What APSW tells of the VFS `memdb`; empty if its library has none."""
    return next((dict(vfs) for vfs in apsw.vfs_details() if vfs["zName"] == "memdb"), {})
