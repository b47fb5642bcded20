"""What a new connection of APSW to a replica is given: SQL functions, and a tracer for reading ahead."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import cast

import apsw

from litevfs.bindings.apsw_access import answer_access_in_c
from litevfs.bindings.apsw_files import FILE_CLASS
from litevfs.bindings.apsw_vfs import ReplicaVFS, tracer_of_last_opened


def equip(registered: Mapping[str, ReplicaVFS], connection: apsw.Connection) -> None:
    """Litestream's SQL functions, each of which asks its PRAGMA, and a tracer for reading ahead.

    On connections whose main database is a replica.
    """
    # A URI may name the VFS: `open_vfs` is then the one it would have been without.
    if connection.open_vfs not in registered and FILE_CLASS not in (connection.vfsname("main") or ""):
        return
    answer_access_in_c(connection, registered)
    if connection.exec_trace is None:
        connection.exec_trace = tracer_of_last_opened()
    reference = weakref.ref(connection)

    def pragma(name: str, *value: str) -> apsw.SQLiteValue:
        connection = reference()
        return None if connection is None else cast("apsw.SQLiteValue", connection.pragma(name, *value))

    def txid(*_: apsw.SQLiteValue) -> apsw.SQLiteValue:
        return pragma("litestream_txid")

    def lag(*_: apsw.SQLiteValue) -> apsw.SQLiteValue:
        return int(str(pragma("litestream_lag")))

    def time(*_: apsw.SQLiteValue) -> apsw.SQLiteValue:
        return pragma("litestream_time")

    def set_time(*values: apsw.SQLiteValue) -> apsw.SQLiteValue:
        return pragma("litestream_time", str(values[0]))

    for function, arguments in ((txid, 0), (lag, 0), (time, 0), (set_time, 1)):
        connection.create_scalar_function(f"litestream_{function.__name__}", function, arguments)
