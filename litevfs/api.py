"""The public functions. They connect the parts and own only the names registered with SQLite."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Collection
from contextlib import closing
from inspect import ismethod
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode

import apsw

from litevfs.bindings.apsw_access import answer_in_c
from litevfs.bindings.apsw_connections import (
    AsyncReplicaConnection,
    ReplicaConnection,
)
from litevfs.bindings.apsw_errors import apsw_errors
from litevfs.bindings.apsw_vfs import FILE_CLASS, ReplicaVFS, tracer_of_last_opened
from litevfs.errors import LitevfsError, OptionError
from litevfs.live.registry import registry
from litevfs.live.replica import Replica
from litevfs.live.subscription import Subscription
from litevfs.ltx.names import format_txid, parse_txid
from litevfs.options import OPTION_NAMES, Options, check_names, to_uri_text
from litevfs.states.snapshot import Snapshot
from litevfs.states.views import Moment
from litevfs.units import parse_moment_ms

if TYPE_CHECKING:
    import asyncio
    import sqlite3

    from litevfs.operations.diff import Diff
    from litevfs.operations.whole_check import Progress, Report
    from litevfs.replica_clients.base import ReplicaClient

_registered: dict[str, ReplicaVFS] = {}
_lock = threading.Lock()
_closing: set[object] = set()  # tasks, of which an event loop keeps no reference
_SQLITE3_ARGUMENTS = (
    "timeout",
    "detect_types",
    "isolation_level",
    "check_same_thread",
    "factory",
    "cached_statements",
    "autocommit",
)
READ_TIMEOUT_S = 30.0
_FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
"""The replica is read-only (see `ReplicaVFS.xOpen`), not the connection: databases attached to it are writable."""


@apsw_errors()
def register(name: str = "litestream", **options: object) -> None:
    """Make the VFS known to SQLite as `name`, for every connection of this process. May be called again.

    `options` become the defaults of connections opened through that name (see the README for all of them); another
    call replaces them for connections opened from then on. Raises OptionError for an unknown one.
    """
    check_names(options, "option")
    with _lock:
        if name in _registered:
            if options:
                _registered[name].keywords = dict(options)
            return
        _set_log_level()
        if _equip not in apsw.connection_hooks:
            apsw.connection_hooks.append(_equip)
        _registered[name] = ReplicaVFS(name, dict(options))


@apsw_errors()
def connect(replica_url: str, *, vfs: str = "litestream", **options: object) -> apsw.Connection:
    """A connection to the replica at `replica_url`; registers the VFS if needed.

    The replica is read-only; temporary tables and databases that are attached beside it are writable.

    Options are those of the URI, for example `poll_interval="250ms"`, `cache_size="50MB"`, `txid=...`. Raises
    OptionError and ReplicaURLError for bad options, ReplicaEmptyError when there is no state to read within
    `open_timeout`, and StorageError when the storage does not answer or refuses.
    """
    return ReplicaConnection(_checked_uri(replica_url, vfs, options), flags=_FLAGS, vfs=vfs)


async def connect_async(replica_url: str, *, vfs: str = "litestream", **options: object) -> apsw.AsyncConnection:
    """`connect` for asyncio, trio and AnyIO: a connection of APSW's async mode, with its own worker thread.

    `await connection.execute(...)`, then `async for row in cursor`; `await connection.async_run(litevfs.wait_for,
    connection, txid)`. Close it with `await connection.aclose()`, or its thread keeps the process alive. Raises what
    `connect` raises, and OptionError where APSW has no async mode.
    """
    with apsw_errors():
        if not hasattr(apsw.Connection, "as_async"):
            raise OptionError(
                f"APSW {apsw.apsw_version()} has no async mode", hint="pip install --upgrade apsw, or use threads"
            )
        uri = _checked_uri(replica_url, vfs, options)
        return await _opened(AsyncReplicaConnection.as_async(uri, flags=_FLAGS, vfs=vfs))


async def _opened(opening: Awaitable[apsw.AsyncConnection]) -> apsw.AsyncConnection:
    """Await the connection. If the caller gives up, the opening ends first and is then closed, with APSW's thread."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:  # the event loop is not asyncio's
        return await opening
    task = asyncio.ensure_future(opening)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_close_given_up)
        raise


def _close_given_up(task: asyncio.Future[apsw.AsyncConnection]) -> None:
    if not task.cancelled() and task.exception() is None:
        _closing.add(closing := task.get_loop().create_task(task.result().aclose()))
        closing.add_done_callback(_closing.discard)


def register_stdlib(
    name: str = "litestream", *, library: str | os.PathLike[str] | None = None, **options: object
) -> None:
    """Make the VFS known as `name` to the SQLite library that the standard library's `sqlite3` uses. Like `register`.

    Then `sqlite3.connect("file:x.db?vfs=litestream&replica_url=...", uri=True)` opens a replica, and so does any
    library on top of `sqlite3`. `library` is the path of another SQLite library, or of an extension module that is
    linked to one. Raises SQLiteLibraryError if the library cannot be reached (`litevfs.dbapi` needs none), and
    OptionError.
    """
    from litevfs.bindings import sqlite3_vfs  # loads ctypes and sqlite3

    _set_log_level()
    sqlite3_vfs.register(name, dict(options), None if library is None else os.fspath(library))


def connect_stdlib(replica_url: str, *, vfs: str = "litestream", **options: Any) -> sqlite3.Connection:
    """A `sqlite3.Connection` to the replica at `replica_url`; registers the VFS if needed.

    Options are those of `connect`, and the keywords of `sqlite3.connect` (`check_same_thread`, `isolation_level`, ...).
    Raises what `connect` raises, from the error of `sqlite3`, and SQLiteLibraryError as `register_stdlib` does. The
    error of a query is that of `sqlite3`, with ours as its cause and in its message.
    """
    if "replica_url" in options:
        raise OptionError("replica_url is given twice")
    arguments = {name: options.pop(name) for name in _SQLITE3_ARGUMENTS if name in options}
    check_names(options, "option")
    register_stdlib(vfs)
    from litevfs.bindings import sqlite3_connection

    return sqlite3_connection.connect(_uri(replica_url, options), vfs, arguments)


def last_error() -> BaseException | None:
    """The last error that the VFS of `register_stdlib` reported to SQLite in this thread, or None.

    `sqlite3` raises its own error with SQLite's text ("disk I/O error"); this error names the cause.
    """
    binding = sys.modules.get("litevfs.bindings.kept_errors")
    return binding.last_error() if binding else None


def plain_connection(connection: Any) -> Any:
    """The connection of APSW, `sqlite3` or `litevfs.dbapi` that lies in one of SQLAlchemy or Django."""
    if hasattr(connection, "ensure_connection"):  # Django's, which connects when it first has to
        connection.ensure_connection()
    while not hasattr(connection, "dbapi_connection"):
        inner = getattr(connection, "connection", None)
        if inner is None:
            return connection
        connection = inner() if ismethod(inner) else inner  # a Session of SQLAlchemy has a method
    return connection.dbapi_connection


@apsw_errors()
def wait_for(
    connection: apsw.Connection | sqlite3.Connection | Any,
    txid: int | str,
    timeout: float = 10.0,
    *,
    schema: str = "main",
) -> int:
    """Wait until the next transaction of `connection` sees `txid` (a number or hex digits) or later: read your writes.

    The connection may also be one of SQLAlchemy, a Session, or one of Django. Returns the TXID it will see. `timeout`
    is in seconds, `schema` names an attached replica. Raises StaleReplicaError when the transaction has not arrived in
    time, and OptionError if the connection sees a fixed earlier state or `schema` is no replica.
    """
    connection = plain_connection(connection)
    wanted = txid if isinstance(txid, int) else parse_txid(txid)
    value = f"{format_txid(wanted)} {timeout:.9f}s"
    if isinstance(connection, apsw.Connection):
        answer = connection.pragma("litestream_wait_txid", value, schema=schema)
    elif not hasattr(connection, "execute"):
        raise OptionError(f"no connection: {type(connection).__name__}", hint="pass an open connection to the replica")
    else:
        name = schema.replace('"', '""')
        answer = next(iter(connection.execute(f"PRAGMA \"{name}\".litestream_wait_txid = '{value}'")), (None,))[0]
    if answer is None:  # SQLite's answer to an unknown PRAGMA
        raise OptionError(f"schema {schema} of this connection is no replica", hint="schema= names an attached one")
    return parse_txid(str(answer))


@apsw_errors()
def subscribe(
    replica_url: str, callback: Callable[[int], object], *, tables: Collection[str] | None = None, **options: object
) -> Subscription:
    """Call `callback(txid)` for each new transaction of a replica, in order, once each, in a thread of its own.

    With `tables`, only when one of these may have changed: one of its pages changed, or it was made or dropped;
    transactions of one refresh then make one call, with the last TXID. Close the subscription (or leave its `with`
    block) to end it. Options are those of `connect`; transactions that were compacted before they were seen are
    reported as one. Raises what `connect` raises.
    """
    from litevfs.operations.changed_sides import TableFilter

    collected = Options.collect({}, {**options, "replica_url": os.fspath(replica_url)})
    return Subscription(collected, callback, None if tables is None else TableFilter(tables))


@apsw_errors()
def diff(
    replica_url: str,
    from_: int | str,
    to: int | str = "latest",
    tables: Collection[str] | None = None,
    *,
    vfs: str = "litestream",
    **options: object,
) -> Diff:
    """The rows that differ between two states of a replica: `for change in diff(url, "8", "latest"): ...`.

    `from_` and `to` are TXIDs (numbers or hex digits), times (RFC 3339, "5 minutes ago") or "latest"; `tables` names
    those to compare, by default all ordinary ones. A `Change` has `.table`, `.op` ("insert", "update", "delete"),
    `.key`, `.old` and `.new` (column -> value, or None); `.schema` of the result names what else differs. Only pages
    that differ are read, and those that lead to them. Close the result, or use it as a context manager.

    Raises OptionError for states in the wrong order and for tables that neither state has, TXIDNotFoundError for a
    state that the replica does not hold, and what `connect` raises.
    """
    from litevfs.operations.diff import Diff, State

    check_names(options, "option")
    url = os.fspath(replica_url)
    lease = registry.acquire(Options.collect({}, {**options, "replica_url": url, "txid": 1}))
    connection: apsw.Connection | None = None

    def close() -> None:
        if connection is not None:
            connection.close()
        registry.release(lease)

    try:
        replica = lease.replica
        old, new = replica.pair(_moment(from_), _moment(to))
        if old.txid > new.txid:
            raise OptionError(
                f"the state {format_txid(old.txid)} is newer than {format_txid(new.txid)}", hint="swap from and to"
            )
        connection = connect(url, vfs=vfs, txid=format_txid(new.txid), **options)
        connection.execute(
            "ATTACH ? AS older", (_uri(url, {**options, "txid": format_txid(old.txid)}) + f"&vfs={vfs}",)
        )
        states = State(connection, "older", old), State(connection, "main", new)
        return Diff(connection, *states, replica.pages, tables, close=close)
    except BaseException:
        close()
        raise


@apsw_errors()
def verify(
    replica: str | os.PathLike[str] | ReplicaClient, *, integrity_check: bool = True, progress: Progress | None = None
) -> Report:
    """Read every LTX file of a replica whole and check it, the chain they make, and the newest state's integrity.

    `replica` is a URL, a path or a client (which stays open). `progress` is called with (bytes read so far, bytes to
    read in all). The report's `is_sound` says whether the replica is sound, `findings.problems` what is not. Raises
    StorageError and ReplicaURLError.
    """
    from litevfs.files.fetch import Fetcher
    from litevfs.files.stream import client_of
    from litevfs.operations.whole_check import check_replica

    with client_of(replica) as client:

        def in_place(txid: int) -> list[str]:
            try:
                connection = connect(client.url, txid=format_txid(txid), poll_interval=0)
                with closing(connection):
                    return [str(line) for (line,) in connection.execute("PRAGMA integrity_check")]
            except (LitevfsError, apsw.Error) as error:
                return [str(error)]

        return check_replica(
            Fetcher(client, read_timeout_s=READ_TIMEOUT_S), in_place if integrity_check else None, progress
        )


def find_view(replica: Replica, moment: int | str) -> Snapshot:
    """A fixed state: of a TXID (a number or hex digits), of a time, or "latest". Raises what `Replica.view` raises."""
    txid, timestamp_ms = _moment(moment)
    return replica.view(txid=txid, timestamp_ms=timestamp_ms)


def _moment(moment: int | str) -> Moment:
    """(TXID, ms since the Unix epoch) of a moment; neither for "latest". Raises OptionError."""
    if moment == "latest":
        return None, None
    try:
        return moment if isinstance(moment, int) else parse_txid(moment), None
    except OptionError:
        return None, parse_moment_ms(str(moment), now_ms=int(time.time() * 1000))


def _uri(replica_url: str, options: dict[str, object]) -> str:
    parameters = {"replica_url": os.fspath(replica_url)}
    parameters |= {name: to_uri_text(name, options[name]) for name in OPTION_NAMES if options.get(name) is not None}
    return f"file:{_label(replica_url)}?{urlencode(parameters, quote_via=quote)}"


def _checked_uri(replica_url: str, vfs: str, options: dict[str, object]) -> str:
    """The URI to open with the VFS, which is registered. Raises OptionError."""
    if "replica_url" in options:
        raise OptionError("replica_url is given twice")
    check_names(options, "option")
    register(vfs)
    return _uri(replica_url, options)


def _label(replica_url: str) -> str:
    """A file name for messages and `Connection.filename`: the last part of the URL's path."""
    path = os.fspath(replica_url).partition("?")[0].rstrip("/")
    return quote(path.rpartition("/")[2] or "replica", safe="")


def _set_log_level() -> None:
    level = os.environ.get("LITESTREAM_LOG_LEVEL", "").upper()
    if level in {"DEBUG", "INFO", "WARN", "WARNING", "ERROR"}:
        logging.getLogger("litevfs").setLevel("WARNING" if level == "WARN" else level)


def _equip(connection: apsw.Connection) -> None:
    """Litestream's SQL functions, each of which asks its PRAGMA, and a tracer for reading ahead.

    On connections whose main database is a replica.
    """
    # A URI may name the VFS: `open_vfs` is then the one it would have been without.
    if connection.open_vfs not in _registered and FILE_CLASS not in (connection.vfsname("main") or ""):
        return
    answer_in_c(connection, _registered)
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
