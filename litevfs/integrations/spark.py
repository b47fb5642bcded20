"""A table of a replica as a Spark data source: `spark.read.format("litevfs")`, for PySpark 4.

    from litevfs.integrations.spark import register
    register(spark)
    frame = spark.read.format("litevfs").option("url", "s3://bucket/app").option("table", "orders").load()

The driver fixes the TXID when the frame is planned; every task reads that state. Filters that SQLite can apply are
passed to it. `spark.readStream` gives the row changes after the TXID `from` (see `spark_changes`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.datasource import DataSource, DataSourceReader, DataSourceStreamReader, InputPartition
from pyspark.sql.types import BinaryType, DoubleType, LongType, StringType, StructField, StructType

from litevfs.errors import OptionError, shown
from litevfs.integrations.arrow_columns import Column
from litevfs.integrations.partitions import Partition, declared_columns, partitions, stored_columns
from litevfs.integrations.spark_changes import NEWEST, LitevfsStreamReader, change_schema
from litevfs.integrations.types import undeclared
from litevfs.operations.tables import quoted

NAME = "litevfs"
_OWN_OPTIONS = ("url", "table", "txid", "numpartitions", "where", "columns", "as_text", "from")
_OF_ONE_STATE = ("txid", "numpartitions", "where")
_TYPES = {"integer": LongType, "real": DoubleType, "text": StringType, "blob": BinaryType}
_OPERATORS = {
    "EqualTo": "=",
    "GreaterThan": ">",
    "GreaterThanOrEqual": ">=",
    "LessThan": "<",
    "LessThanOrEqual": "<=",
}


def register(spark: SparkSession) -> None:
    """Make the format known to a session, and let Spark pass filters to it."""
    spark.conf.set("spark.sql.python.filterPushdown.enabled", "true")
    spark.dataSource.register(LitevfsDataSource)


class LitevfsDataSource(DataSource):
    """Options: `url`, `table`, `txid`, `numPartitions` (8), `where`, `columns`, `as_text` (with commas), `connect`'s.

    With `from` (a TXID in hex digits, or "latest") it is a stream of the changes after that state.
    """

    @classmethod
    def name(cls) -> str:
        """The name for `format(...)`."""
        return NAME

    def schema(self) -> StructType:
        """The schema by the declared types; a column whose declared type does not tell its values is a string."""
        piece = self._pieces(1)[0]
        columns = declared_columns(piece)
        fields = [StructField(column.name, _TYPES[column.kind or "text"](), True) for column in columns]
        if "from" not in self.options:
            return StructType(fields)
        stored = stored_columns(piece)
        return change_schema(piece.table, [field for field in fields if field.name in stored])

    def reader(self, schema: StructType) -> DataSourceReader:
        """See `DataSource.reader`."""
        if "from" in self.options:
            raise OptionError("from is an option of spark.readStream", hint="txid names the state that read shows")
        written = self.options.get("numPartitions", "8")
        if not written.isdecimal():
            raise OptionError(f"not a number of pieces: {shown(written)}", hint='.option("numPartitions", "8")')
        count = int(written)
        pieces = self._pieces(count, [field.name for field in schema.fields])
        return LitevfsReader(pieces, declared_columns(pieces[0]))

    def streamReader(self, schema: StructType) -> DataSourceStreamReader:
        """See `DataSource.streamReader`."""
        given = self._given()
        if unfit := [name for name in given if name.lower() in _OF_ONE_STATE]:
            raise OptionError(f"{unfit[0]} is no option of a stream", hint="filter the stream's rows by Spark")
        return LitevfsStreamReader(
            given["url"], given["table"], given.get("from", NEWEST), schema, self._connect_options(given)
        )

    def _given(self) -> dict[str, str]:
        given = dict(self.options)
        for needed in ("url", "table"):
            if needed not in given:
                raise OptionError(f"the option {needed!r} is missing", hint=f'.option("{needed}", ...)')
        return given

    def _connect_options(self, given: dict[str, str]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name.lower() not in _OWN_OPTIONS}

    def _pieces(self, count: int, columns: Sequence[str] | None = None) -> list[Partition]:
        given = self._given()
        if columns is None and "columns" in given:
            columns = _names(given["columns"])
        return partitions(
            given["url"],
            given["table"],
            count,
            txid=given.get("txid"),
            columns=columns,
            where=given.get("where"),
            as_text=_names(given.get("as_text", "")),
            **self._connect_options(given),
        )


def _names(written: str) -> list[str]:
    return [name.strip() for name in written.split(",")] if written else []


@dataclass
class Piece(InputPartition):
    """The rows that one task reads."""

    partition: Partition


class LitevfsReader(DataSourceReader):
    """Reads the pieces as Arrow batches."""

    def __init__(self, pieces: list[Partition], columns: list[Column]) -> None:
        self._pieces = [replace(piece, as_text=undeclared(columns)) for piece in pieces]
        self._kinds = {column.name: column.kind for column in columns}

    def pushFilters(self, filters: list[Any]) -> Iterator[Any]:
        """Take the comparisons of columns whose type SQLite enforces; return the others to Spark."""
        for filter_ in filters:
            condition = self._condition(filter_)
            if condition is None:
                yield filter_
                continue
            sql, value = condition
            self._pieces = [
                replace(
                    piece,
                    where=sql if piece.where is None else f"({piece.where}) AND {sql}",
                    parameters=(*piece.parameters, value),
                )
                for piece in self._pieces
            ]

    def _condition(self, filter_: Any) -> tuple[str, Any] | None:
        operator = _OPERATORS.get(type(filter_).__name__)
        attribute: Sequence[str] = getattr(filter_, "attribute", ())
        value: Any = getattr(filter_, "value", None)
        if operator is None or len(attribute) != 1:
            return None
        kind = self._kinds.get(attribute[0])
        is_number = kind in ("integer", "real") and type(value) in (int, float)
        # Spark compares text byte by byte, and so does this statement, whatever the column's collation.
        is_text = kind == "text" and type(value) is str
        if is_number or is_text:
            return f"{quoted(attribute[0])} {operator} ?{' COLLATE BINARY' if is_text else ''}", value
        return None

    def partitions(self) -> list[InputPartition]:
        """One task for each piece."""
        return [Piece(piece) for piece in self._pieces]

    def read(self, partition: InputPartition) -> Iterator[Any]:
        """The record batches of a piece."""
        assert isinstance(partition, Piece)
        table = partition.partition.read()
        yield from table.cast(_with_small_offsets(table.schema)).to_batches()


def _with_small_offsets(schema: Any) -> Any:
    """The same columns with the types of text and blobs that Spark takes."""
    import pyarrow

    small = {pyarrow.large_string(): pyarrow.string(), pyarrow.large_binary(): pyarrow.binary()}
    return pyarrow.schema([(field.name, small.get(field.type, field.type)) for field in schema])
