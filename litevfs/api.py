"""The public functions. They connect the parts and own only the names registered with SQLite."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import apsw

from litevfs.bindings.any_connection import plain_connection, pragma, schemas
from litevfs.bindings.apsw_connections import AsyncReplicaConnection, ReplicaConnection
from litevfs.bindings.apsw_errors import apsw_errors
from litevfs.bindings.apsw_functions import equip
from litevfs.bindings.apsw_vfs import ReplicaVFS
from litevfs.errors import LitevfsError, OptionError, shown
from litevfs.live.registry import registry
from litevfs.live.replica import Replica
from litevfs.live.subscription import Subscription
from litevfs.ltx.names import format_txid, parse_txid
from litevfs.options import OPTION_NAMES, Options, check_names, to_uri_text
from litevfs.states.snapshot import Snapshot
from litevfs.states.views import Moment
from litevfs.texts import check_vfs_name, names_of, parse_replica_url, parse_text
from litevfs.units import parse_duration_s, parse_moment_ms

if TYPE_CHECKING:
    import asyncio
    import sqlite3

    from litevfs.operations.diff import Diff
    from litevfs.operations.whole_check import Progress, Report
    from litevfs.replica_clients.base import ReplicaClient

_registered: dict[str, ReplicaVFS] = {}
_lock = threading.Lock()
_equip = partial(equip, _registered)
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
_MOST_LABEL = 200
"""Characters of a replica's name, for SQLite limits the bytes of a file's (`mxPathname` of a VFS)."""
STEPS_BETWEEN_SIGNALS = 100_000
"""Of SQLite's machine, some milliseconds: without Python in between, Ctrl-C would wait for the end of a query."""
_FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
"""The replica is read-only (see `ReplicaVFS.xOpen`), not the connection: databases attached to it are writable."""


@apsw_errors()
def register(name: str = "litestream", **options: object) -> None:
    """Make the VFS known to SQLite as `name`, for every connection of this process. May be called again.

    `options` become the defaults of connections opened through that name (see the README for all of them); another
    call replaces them for connections opened from then on. Raises OptionError for an unknown one.
    """
    check_vfs_name(name)
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


def _goes_on() -> bool:
    return False


@apsw_errors()
def connect(replica_url: str | os.PathLike[str], *, vfs: str = "litestream", **options: object) -> apsw.Connection:
    """A connection to the replica at `replica_url`; registers the VFS if needed.

    The replica is read-only; temporary tables and databases that are attached beside it are writable.

    `vfs` names the VFS, whose defaults apply (`register`). Options are those of the URI, for example
    `poll_interval="250ms"`, `cache_size="50MB"`, `txid=...`. Raises OptionError and ReplicaURLError for bad options,
    ReplicaEmptyError when there is no state to read within `open_timeout`, and StorageError when the storage does not
    answer or refuses.
    """
    connection = ReplicaConnection(_checked_uri(replica_url, vfs, options), flags=_FLAGS, vfs=vfs)
    connection.set_progress_handler(_goes_on, STEPS_BETWEEN_SIGNALS)
    return connection


async def connect_async(
    replica_url: str | os.PathLike[str], *, vfs: str = "litestream", **options: object
) -> apsw.AsyncConnection:
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

    check_vfs_name(name)
    _set_log_level()
    sqlite3_vfs.register(name, dict(options), None if library is None else parse_text(library))


def connect_stdlib(
    replica_url: str | os.PathLike[str], *, vfs: str = "litestream", **options: Any
) -> sqlite3.Connection:
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


@apsw_errors()
def wait_for(
    connection: apsw.Connection | sqlite3.Connection | Any,
    txid: int | str,
    timeout: float | str = 10.0,
    *,
    schema: str = "main",
) -> int:
    """Wait until the next transaction of `connection` sees `txid` (a number or hex digits) or later: read your writes.

    The connection may also be one of SQLAlchemy, a Session, or one of Django. Returns the TXID it will see. `timeout`
    is in seconds, or text such as "250ms"; `schema` names an attached replica. Raises StaleReplicaError when the
    transaction has not arrived in time, and OptionError if the connection sees a fixed earlier state or `schema` is no
    replica.
    """
    connection = plain_connection(connection)
    value = f"{format_txid(parse_txid(txid))} {parse_duration_s(timeout):.9f}s"
    if not hasattr(connection, "execute"):
        raise OptionError(f"no connection: {type(connection).__name__}", hint="pass an open connection to the replica")
    is_there = parse_text(schema).lower() in schemas(connection)
    answer = pragma(connection, schema, "litestream_wait_txid", value) if is_there else None
    if answer is None:  # SQLite's answer to an unknown PRAGMA
        raise OptionError(f"schema {schema} of this connection is no replica", hint="schema= names an attached one")
    return parse_txid(answer)


@apsw_errors()
def subscribe(
    replica_url: str | os.PathLike[str],
    callback: Callable[[int], object],
    *,
    tables: Collection[str] | None = None,
    **options: object,
) -> Subscription:
    """Call `callback(txid)` for each new transaction of a replica, in order, once each, in a thread of its own.

    With `tables`, only when one of these may have changed: one of its pages changed, or it was made or dropped;
    transactions of one refresh then make one call, with the last TXID. Close the subscription (or leave its `with`
    block) to end it. Options are those of `connect`; transactions that were compacted before they were seen are
    reported as one. Raises OptionError for a table that does not exist at the start, and what `connect` raises.
    """
    from litevfs.operations.changed_sides import TableFilter

    if not callable(callback):
        raise OptionError(f"not a function to call: {shown(callback)}", hint="subscribe(url, callback)")
    collected = Options.of(replica_url, options)
    if tables is None:
        return Subscription(collected, callback)
    tables_of_interest = TableFilter(names_of(tables, "tables"))
    subscription = Subscription(collected, callback, tables_of_interest)
    try:
        if subscription.first is not None:
            tables_of_interest.check_names(subscription.replica, subscription.first)
    except BaseException:
        subscription.close()
        raise
    return subscription


@apsw_errors()
def diff(
    replica_url: str | os.PathLike[str],
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
    from litevfs.operations.diff import Diff
    from litevfs.operations.tables import State

    check_names(options, "option")
    url, tables = parse_replica_url(replica_url), None if tables is None else names_of(tables, "tables")
    lease = registry.acquire(Options.of(url, {**options, "txid": 1}))
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
            "ATTACH ? AS older", (_uri(url, {**options, "txid": format_txid(old.txid)}) + f"&vfs={quote(vfs)}",)
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
    read in all). Without `integrity_check` the newest state is not read by SQLite. The report's `is_sound` says whether
    the replica is sound, `findings.problems` what is not. Raises StorageError and ReplicaURLError.
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
        return parse_txid(moment), None
    except OptionError:
        if not isinstance(moment, str):
            raise
    try:
        return None, parse_moment_ms(moment, now_ms=int(time.time() * 1000))
    except OptionError as error:
        hint = f"a TXID has 1 to 16 hex digits; as a time, {error.hint}"
        raise OptionError(f"neither a TXID nor a time: {shown(moment)}", hint=hint) from None


def _uri(replica_url: str | os.PathLike[str], options: dict[str, object]) -> str:
    url = parse_replica_url(replica_url)
    parameters = {"replica_url": url}
    parameters |= {name: to_uri_text(name, options[name]) for name in OPTION_NAMES if options.get(name) is not None}
    return f"file:{_label(url)}?{urlencode(parameters, quote_via=quote)}"


def _checked_uri(replica_url: str | os.PathLike[str], vfs: str, options: dict[str, object]) -> str:
    """The URI to open with the VFS, which is registered. Raises OptionError."""
    if "replica_url" in options:
        raise OptionError("replica_url is given twice")
    check_names(options, "option")
    register(vfs)
    return _uri(replica_url, options)


def _label(replica_url: str) -> str:
    """A file name for messages and `Connection.filename`: the last part of the URL's path, cut where it is long."""
    path = replica_url.partition("?")[0].rstrip("/")
    return quote(path.rpartition("/")[2][:_MOST_LABEL] or "replica", safe="")


def _set_log_level() -> None:
    level = os.environ.get("LITESTREAM_LOG_LEVEL", "").upper()
    if level in {"DEBUG", "INFO", "WARN", "WARNING", "ERROR"}:
        logging.getLogger("litevfs").setLevel("WARNING" if level == "WARN" else level)
