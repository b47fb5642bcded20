"""The row changes of a replica's table as a source for Spark's streams: the reader behind `spark.readStream`.

Offsets are TXIDs, and what tells their states from another replica's in the same place. A batch is the difference
between the states of two TXIDs, so the same offsets give the same rows, also when Spark reads a batch again after a
crash. Owns offsets and the conversion of values, not how rows are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import apsw
from pyspark.sql.datasource import DataSourceStreamReader, InputPartition
from pyspark.sql.types import BinaryType, DoubleType, LongType, StringType, StructField, StructType

from litevfs.api import connect, diff, find_view
from litevfs.errors import OptionError, ResultTypeError, TXIDNotFoundError
from litevfs.live.registry import registry
from litevfs.live.replica import Replica
from litevfs.ltx.names import format_txid, parse_txid
from litevfs.operations.diff import Change
from litevfs.operations.state_identity import is_proved, marks_of
from litevfs.options import Options
from litevfs.states.snapshot import Snapshot

OP, TXID, MARKS = "op", "txid", "marks"
NEWEST = "latest"
"""The value of `from` that begins with the next transaction."""

Offset = dict[str, Any]
"""{"txid": 16 hex digits, "marks": see `operations.state_identity`}: the state up to which rows were read.

Checkpoints of earlier versions have no marks.
"""


@dataclass(frozen=True)
class Changed(InputPartition):
    """The changes of one batch, which one task reads."""

    after: int  # TXID of the older state
    to: int  # TXID of the newer state
    marks: tuple[tuple[int, ...], tuple[int, ...]]  # of the two; none, if they are not known


class LitevfsStreamReader(DataSourceStreamReader):
    """Reads the changes of `table` as tuples in the order of `schema`."""

    def __init__(self, url: str, table: str, begin: str, schema: StructType, options: dict[str, str]) -> None:
        names = [field.name for field in schema.fields]
        if OP not in names:
            raise OptionError(
                f"a stream of row changes has the column {OP}, and this one does not",
                hint=f'begin it with .option("from", TXID or "{NEWEST}")',
            )
        for field in schema.fields:
            if not isinstance(field.dataType, LongType | DoubleType | StringType | BinaryType):
                raise OptionError(
                    f"column {field.name} cannot be of type {field.dataType.simpleString()}",
                    hint="use bigint, double, string or binary, and cast",
                )
        self._url, self._table, self._begin, self._options = url, table, begin, options
        self._fields = [(field.name, field.dataType) for field in schema.fields]
        self._connection: apsw.Connection | None = None  # in the one process that asks for offsets
        self._latest: Offset = {TXID: ""}

    def initialOffset(self) -> Offset:
        """The state to begin after. Raises TXIDNotFoundError if the replica does not hold it."""
        with self._replica(txid=1) as replica:
            return _offset(find_view(replica, self._begin), replica)

    @contextmanager
    def _replica(self, **options: object) -> Iterator[Replica]:
        lease = registry.acquire(Options.collect({}, {**self._options, "replica_url": self._url, **options}))
        try:
            yield lease.replica
        finally:
            registry.release(lease)

    def latestOffset(self) -> Offset:
        """The newest state, as of the last poll."""
        if self._connection is None:
            self._connection = connect(self._url, **self._options)
        with self._replica() as replica:  # the connection's
            newest = replica.snapshot
            assert newest is not None
            if format_txid(newest.txid) != self._latest[TXID]:
                self._latest = _offset(newest, replica)
        return self._latest

    def partitions(self, start: Offset, end: Offset) -> list[InputPartition]:
        """One task for a batch, none for an empty one."""
        after, to = parse_txid(start[TXID]), parse_txid(end[TXID])
        if after > to:
            raise TXIDNotFoundError(
                f"the newest TXID is {end[TXID]}",
                min_txid=after,
                key=self._url,
                hint="was the replica replaced or set back since? a new checkpoint begins again",
            )
        marks = tuple(start.get(MARKS, ())), tuple(end.get(MARKS, ()))
        return [Changed(after, to, marks)] if after < to else []

    def read(self, partition: InputPartition) -> Iterator[tuple[Any, ...]]:
        """The changes of one batch, in the order of their keys."""
        assert isinstance(partition, Changed)
        try:
            changes = diff(self._url, partition.after, partition.to, [self._table], **self._options)
        except TXIDNotFoundError as error:
            raise TXIDNotFoundError(
                f"the changes of table {self._table} after TXID {format_txid(partition.after)} up to "
                f"{format_txid(partition.to)} need both states, and retention removed one",
                min_txid=error.min_txid,
                key=self._url,
                hint="read the table whole and begin with a new checkpoint; the primary's retention says how long a "
                "stream may stand still",
            ) from error
        with changes:
            self._check_history(partition, (changes.old.snapshot, changes.new.snapshot))
            txid = format_txid(partition.to)
            for change in changes:
                yield tuple(self._value(change, txid, name, type_) for name, type_ in self._fields)

    def _check_history(self, partition: Changed, states: Sequence[Snapshot]) -> None:
        with self._replica(txid=1) as replica:
            for marks, state in zip(partition.marks, states, strict=True):
                if marks and not is_proved(marks, state.timestamp_ms, state.txid, replica.fetcher):
                    raise TXIDNotFoundError(
                        "the replica is another one than that of the stream's checkpoint, or nothing on it proves "
                        "that it is the same",
                        min_txid=state.txid,
                        key=self._url,
                        hint="read the table whole and begin with a new checkpoint",
                    )

    def stop(self) -> None:
        """Close the connection that polls. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(True)

    def _value(self, change: Change, txid: str, name: str, type_: Any) -> Any:
        if name == OP:
            return change.op
        if name == TXID:
            return txid
        row = change.old if change.new is None else change.new
        assert row is not None
        if name not in row:
            if change.new is None:
                return None  # the column was added when this row was gone
            raise OptionError(
                f"table {self._table} has no column {name} in the state {txid}",
                hint="start the query again: it reads the table's columns again",
            )
        try:
            return _converted(row[name], type_)
        except ValueError:
            raise ResultTypeError(
                f"row {change.key}, column {name!r}: a value of type {type(row[name]).__name__} does not fit in "
                f"{type_.simpleString()}",
                hint='leave the column out by .option("columns", ...), or give its type by .schema(...)',
            ) from None


def _offset(state: Snapshot, replica: Replica) -> Offset:
    return {TXID: format_txid(state.txid), MARKS: sorted(marks_of(state, replica.fetcher))}


def change_schema(table: str, fields: list[Any]) -> StructType:
    """The columns of a stream: what happened, the batch's TXID, and the table's. Raises OptionError if these clash."""
    for field in fields:
        if field.name.lower() in (OP, TXID):
            raise OptionError(
                f"table {table} has a column {field.name}, which a stream has too", hint="name the others by columns"
            )
    return StructType([StructField(OP, StringType(), False), StructField(TXID, StringType(), False), *fields])


@cache
def _converter() -> apsw.Connection:
    """A connection that makes texts of numbers as SQLite does."""
    return apsw.Connection(":memory:")


def _converted(value: Any, type_: Any) -> Any:
    """A value of SQLite as Spark's type has it. Raises ValueError for one that does not fit."""
    if value is None:
        return None
    if isinstance(type_, StringType) and isinstance(value, int | float):
        return str(_converter().execute("SELECT CAST(? AS TEXT)", (value,)).fetchall()[0][0])
    if isinstance(type_, DoubleType) and isinstance(value, int) and float(value) == value:
        return float(value)
    wanted = {LongType: int, DoubleType: float, StringType: str, BinaryType: bytes}[type(type_)]
    if not isinstance(value, wanted):
        raise ValueError
    return value
