"""Lets a C function of SQLite itself answer `xAccess` for a VFS in APSW's library: "not there", for any name.

SQLite asks twice a transaction. Through APSW each question takes as long as a lock: SQLite waits for Python's
interpreter, and the name becomes an object. If anything is not as expected, APSW's function stays.
"""

from __future__ import annotations

import ctypes
from collections.abc import Container
from functools import cache

import apsw

from litevfs.bindings import sqlite3_library as c


def answer_access_in_c(connection: apsw.Connection, names: Container[str]) -> bool:
    """Give the VFS of a connection the `xAccess` of SQLite's `memdb`, if it has one of these names. Whether it has."""
    address = ctypes.c_void_p()
    connection.file_control("main", apsw.SQLITE_FCNTL_VFS_POINTER, ctypes.addressof(address))
    if not address.value or (c.VFS.from_address(address.value).name or b"").decode() not in names:
        return False
    place = ctypes.c_void_p.from_address(address.value + c.VFS.access.offset)
    if (function := _says_not_there()) is not None:
        place.value = function
    return place.value == function


@cache
def _says_not_there() -> int | None:
    """The address of a function that says so; None if APSW's library has none."""
    for vfs in apsw.vfs_details():
        if vfs["zName"] == "memdb" and isinstance(function := vfs.get("xAccess"), int):
            answer = ctypes.c_int(1)
            code = c.AccessFunction(function)(None, b"/", 0, ctypes.addressof(answer))
            return function if (code, answer.value) == (c.OK, 0) else None
    return None
