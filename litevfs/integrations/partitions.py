"""A table in pieces, for engines with several workers. Owns the places where a table is cut; `arrow` reads the rows.

The cuts are keys on the table's interior pages, at one level of its B-tree: each child has about as many pages
below it as any other. So a few pages show where to cut a table of any size, and no row is read or counted.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import apsw

from litevfs.api import connect, find_view
from litevfs.errors import OptionError, PageUnavailableError, ResultTypeError, TXIDNotFoundError, shown
from litevfs.files.stream import client_of
from litevfs.integrations.arrow import arrow
from litevfs.integrations.arrow_columns import Column
from litevfs.live.registry import registry
from litevfs.live.replica import Replica
from litevfs.ltx.file_info import SNAPSHOT_LEVEL
from litevfs.ltx.names import format_txid
from litevfs.maintenance.compaction import snapshot
from litevfs.operations.state_identity import is_proved, marks_of
from litevfs.operations.tables import no_table, quoted
from litevfs.operations.tree_pages import UnclearError, index_cells, is_leaf, page_children, record_value, rowid_cells
from litevfs.options import Options, check_names
from litevfs.states.snapshot import Snapshot
from litevfs.texts import names_of, parse_replica_url
from litevfs.units import parse_timestamp_ms

CHILDREN_A_PIECE = 4
"""With so many subtrees for each piece of the table, the pieces are about equal."""
MAX_LEVELS = 20

Key = None | int | float | str | bytes


@dataclass(frozen=True, slots=True)
class Partition:
    """Some rows of a table in one state of a replica. Picklable, without credentials: workers find their own."""

    url: str
    table: str
    txid: int
    columns: tuple[str, ...]
    where: str | None  # SQL
    parameters: tuple[Key, ...]  # of `where`
    key: str  # the key that orders the table, in SQL
    low: Key  # rows from here on; None: from the first one
    high: Key  # rows before this; None: to the last one
    as_text: tuple[str, ...] = ()  # columns that are read as text, whatever their values are
    options: tuple[tuple[str, Any], ...] = ()  # of `litevfs.connect`
    marks: tuple[
        int, ...
    ] = ()  # of the state's history, see `operations.state_identity`; none: of a piece of litevfs before

    def __setstate__(self, state: Sequence[Any]) -> None:
        """Of a pickle, also one without the last fields."""
        for place, value in zip(fields(self), state, strict=False):
            object.__setattr__(self, place.name, value)
        for place in fields(self)[len(state) :]:
            object.__setattr__(self, place.name, place.default)

    @property
    def sql(self) -> str:
        """The statement that reads the rows, with its parameters in the order of `bindings`."""
        names = ", ".join(
            f"CAST({quoted(name)} AS TEXT) AS {quoted(name)}" if name in self.as_text else quoted(name)
            for name in self.columns
        )
        conditions = [] if self.where is None else [f"({self.where}\n)"]  # it may end with a comment
        conditions += [] if self.low is None else [f"{self.key} >= ?"]
        conditions += [] if self.high is None else [f"{self.key} < ?"]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return f"SELECT {names} FROM {quoted(self.table)}{where}"

    @property
    def bindings(self) -> tuple[Key, ...]:
        """Values for the parameters of `sql`."""
        return (*self.parameters, *(bound for bound in (self.low, self.high) if bound is not None))

    def connect(self) -> apsw.Connection:
        """A connection at the state of this piece.

        Raises TXIDNotFoundError if retention has deleted the files of that state meanwhile, or if another replica has
        taken the place of the one that the table was cut up in.
        """
        try:
            connection = connect(self.url, txid=format_txid(self.txid), **dict(self.options))
        except TXIDNotFoundError as error:
            raise self._removed() from error
        try:
            if self.marks:
                self._check_history(connection)
        except BaseException:
            connection.close(True)
            raise
        return connection

    def _check_history(self, connection: apsw.Connection) -> None:
        lease = registry.acquire(Options.of(self.url, {**dict(self.options), "txid": 1}))
        try:
            time_ms = parse_timestamp_ms(connection.pragma("litestream_time"))
            if is_proved(self.marks, time_ms, self.txid, lease.replica.fetcher):
                return
        finally:
            registry.release(lease)
        raise TXIDNotFoundError(
            f"the replica is another one than that which table {self.table} was cut up in, or nothing on it proves "
            "that it is the same",
            min_txid=self.txid,
            key=self.url,
            hint="begin again: the pieces of one job have to be of one replica",
        )

    def _removed(self) -> TXIDNotFoundError:
        bounds = [] if self.low is None else [f"from {self.low!r} on"]
        bounds += [] if self.high is None else [f"before {self.high!r}"]
        rows = f", so its rows {' '.join(bounds)} cannot be read" if bounds else ""
        return _removed(f"that table {self.table} was cut up in", self.txid, self.url, rows)

    def read(self) -> Any:
        """The rows as a `pyarrow.Table`. Raises what `connect` raises, also where retention deletes files meanwhile."""
        connection = self.connect()
        try:
            return arrow(connection, self.sql, self.bindings).reader().read_all()
        except PageUnavailableError as error:
            raise self._removed() from error
        except ResultTypeError as error:
            hint = "name the column in as_text to have it as text, or leave it out by columns"
            raise ResultTypeError(error.message, hint=hint) from error
        finally:
            connection.close(True)


def partitions(
    replica_url: str | os.PathLike[str],
    table: str,
    count: int,
    *,
    txid: int | str | None = None,
    columns: Sequence[str] | None = None,
    where: str | None = None,
    parameters: Sequence[Key] = (),
    as_text: Sequence[str] = (),
    hold: bool = False,
    **options: Any,
) -> list[Partition]:
    """Up to `count` pieces of a table that together have all its rows, of about equal size, all in one state.

    The state is that after transaction `txid` (a number or hex digits), by default the newest. `columns` are those to
    read, `where` is a condition in SQL with `parameters` (a list of values), `options` are those of `connect`. Each
    piece has `.txid` and `.read()` -> `pyarrow.Table`. A column whose declared type does not say what it holds has in
    each piece the type of its values there; values of a column that `as_text` names are read as text, as SQLite writes
    them.

    `hold` stores the newest state as a snapshot file on the replica, which the primary's snapshot retention keeps (a
    day by default), though compaction and level-0 retention go on; it takes one reading and writing of the whole
    database, and the right to write. Raises OptionError for a table or column that does not exist, for views and
    virtual tables, APSW's error for a `where` that SQLite does not take, and what `connect` raises; with `hold` also
    what writing to the storage raises.
    """
    if not isinstance(count, int) or count < 1:
        raise OptionError(f"not a number of pieces: {shown(count)}", hint="1 or more")
    if isinstance(parameters, Mapping | str | bytes):
        hint = "for example where='a > ? AND b < ?', parameters=(1, 2)"
        raise OptionError(f"not a list of values: parameters={shown(parameters)}", hint=hint)
    url = parse_replica_url(replica_url)
    if hold and txid is not None:
        raise OptionError("only the newest state can be held", hint="leave out txid=")
    if hold:
        check_names(options, "option")
        txid = _hold(url)
    lease = registry.acquire(Options.of(url, {**options, "txid": 1}))
    try:
        replica = lease.replica
        view = _state(replica, table, txid)
        connection = connect(url, txid=format_txid(view.txid), **options)
        try:
            described = _Table(connection, table, columns)
            whole = Partition(
                replica.url,
                described.name,
                view.txid,
                described.columns,
                where,
                tuple(parameters),
                described.key,
                None,
                None,
                described.chosen(as_text, "as_text"),
                options=tuple(options.items()),
                marks=tuple(sorted(marks_of(view, replica.fetcher))),
            )
            connection.execute(f"EXPLAIN {whole.sql}", whole.bindings).close(True)  # an error here, not in each worker
        finally:
            connection.close(True)
        cuts = described.cuts(lambda pgno: replica.pages.read(view, pgno), view.commit, count)
        return [replace(whole, low=low, high=high) for low, high in pairwise([None, *cuts, None])]
    finally:
        registry.release(lease)


def _state(replica: Replica, table: str, txid: int | str | None) -> Snapshot:
    """The state to cut a table up in. Raises what `find_view` raises."""
    if txid is None:
        return find_view(replica, "latest")
    try:
        return find_view(replica, txid)
    except TXIDNotFoundError as error:
        if error.min_txid is None or error.min_txid > find_view(replica, "latest").txid:
            raise  # a time, or a transaction that is still to come
        raise _removed(f"to cut table {table} up in", error.min_txid, replica.url) from error


def _removed(state: str, txid: int, url: str, so: str = "") -> TXIDNotFoundError:
    return TXIDNotFoundError(
        f"the state {state} is not on the replica any more: retention removed it{so}",
        min_txid=txid,
        key=url,
        hint="begin again with a newer state; longer retention on the primary keeps the state of a job, and so does "
        "litevfs.partitions(..., hold=True), whose .txid Spark takes as an option",
    )


def _hold(url: str) -> int:
    """Store the newest state as a snapshot file, unless it is one; its TXID."""
    with client_of(url) as client:
        written = snapshot(client)
        files = [written] if written else client.list_files(SNAPSHOT_LEVEL)
        return max(file.max_txid for file in files)


def declared_columns(partition: Partition) -> list[Column]:
    """The columns of a piece with their declared types; those that are read as text have none."""
    info = _table_info(partition)
    declared = {str(column[1]): str(column[2]) for column in info}
    return [Column(name, None if name in partition.as_text else declared.get(name)) for name in partition.columns]


def stored_columns(partition: Partition) -> set[str]:
    """The names of the table's columns, but those of generated ones."""
    return {str(column[1]) for column in _table_info(partition) if column[6] == 0}


def _table_info(partition: Partition) -> list[tuple[Any, ...]]:
    connection = partition.connect()
    try:
        return connection.execute(f"PRAGMA table_xinfo({quoted(partition.table)})").fetchall()
    finally:
        connection.close(True)


class _Table:
    """A table as its schema describes it."""

    def __init__(self, connection: apsw.Connection, name: str, columns: Sequence[str] | None) -> None:
        found = connection.execute(
            "SELECT l.name, l.type, l.wr, s.rootpage FROM pragma_table_list AS l JOIN sqlite_schema AS s "
            "ON s.name = l.name WHERE l.schema = 'main' AND lower(l.name) = lower(?) AND s.type IN ('table', 'view')",
            (name,),
        ).fetchall()
        if not found:
            names = [str(row[0]) for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
            raise no_table(name, names)
        self.name, kind, without_rowid, root = str(found[0][0]), found[0][1], found[0][2], found[0][3]
        if kind not in ("table", "shadow"):
            what = "virtual table" if kind == "virtual" else kind
            raise OptionError(f"{name} is a {what}, which has no pages of its own", hint="name an ordinary table")
        self.root = int(str(root))
        info = connection.execute(f"PRAGMA table_xinfo({quoted(self.name)})").fetchall()
        known = [str(column[1]) for column in info if column[6] != 1]
        self._known = known
        self.columns = self.chosen(known if columns is None else columns, "columns")
        if not self.columns:
            raise OptionError("no columns to read", hint="columns: " + ", ".join(known))
        self.has_rowid = not without_rowid
        self.is_utf_8 = connection.pragma("encoding") == "UTF-8"
        self.is_descending = False
        if self.has_rowid:
            free = [alias for alias in ("rowid", "_rowid_", "oid") if alias not in {k.lower() for k in known}]
            primary = [str(column[1]) for column in info if column[5] and str(column[2]).upper() == "INTEGER"]
            self.key = free[0] if free else quoted(primary[0]) if primary else ""
        else:
            self.key = quoted(next(str(column[1]) for column in info if column[5] == 1))
            index = next(
                row[1] for row in connection.execute(f"PRAGMA index_list({quoted(self.name)})") if row[3] == "pk"
            )
            self.is_descending = bool(connection.execute(f"PRAGMA index_xinfo({quoted(str(index))})").fetchall()[0][3])

    def chosen(self, names: Sequence[str], what: str) -> tuple[str, ...]:
        """These columns. Raises OptionError for one that the table does not have."""
        chosen = tuple(names_of(names, what))
        if missing := set(chosen) - set(self._known):
            hint = "columns: " + ", ".join(self._known)
            raise OptionError(f"table {self.name} has no column {min(missing)}", hint=hint)
        return chosen

    def cuts(self, read: Callable[[int], bytes], commit: int, count: int) -> list[Key]:
        """Keys, ascending, at which a new piece begins."""
        if count == 1 or not self.key:
            return []
        try:
            keys = self._keys(read, commit, count * CHILDREN_A_PIECE)
        except UnclearError:
            return []
        count = min(count, len(keys) + 1)
        size = (len(keys) + 1) / count
        chosen = [keys[int(size * piece) - 1] for piece in range(1, count) if int(size * piece) >= 1]
        return [key for key, before in zip(chosen, [None, *chosen], strict=False) if key != before]

    def _keys(self, read: Callable[[int], bytes], commit: int, wanted: int) -> list[Key]:
        """The keys between the pages of the first level of the tree that has enough of them."""
        level, keys = [self.root], list[Key]()
        for _ in range(MAX_LEVELS):
            pages = [(pgno, read(pgno)) for pgno in level if 1 <= pgno <= commit]
            if len(level) >= wanted or any(is_leaf(pgno, page) for pgno, page in pages):
                break
            below: list[int] = []
            inner: list[Key] = []
            for number, (pgno, page) in enumerate(pages):
                inner += self._keys_of(pgno, page) + ([keys[number]] if number < len(keys) else [])
                below += page_children(pgno, page)
            level, keys = below, inner
        known: list[Key] = [key for key in keys if key is not None]
        return known[::-1] if self.is_descending else known

    def _keys_of(self, pgno: int, page: bytes) -> list[Key]:
        """The keys between the children of an interior page; None for one that is not known."""
        if self.has_rowid:
            return [rowid + 1 if rowid < 2**63 - 1 else None for rowid in rowid_cells(pgno, page)]
        return [_first_column(cell) if self.is_utf_8 else None for cell in index_cells(pgno, page)]


def _first_column(payload: bytes) -> Key:
    """The first value of a record; None for NULL and for one that is not whole, or no text, and so no cut."""
    kind, content = record_value(payload)
    if kind == 7:
        return float(struct.unpack(">d", content)[0])
    if kind in (8, 9):
        return kind - 8
    if 1 <= kind <= 6:
        return int.from_bytes(content, "big", signed=True)
    if kind >= 12 and content:
        return content if kind % 2 == 0 else _text(content)
    return None


def _text(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
