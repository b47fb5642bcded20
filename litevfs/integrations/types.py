"""The Arrow types of a table's columns for engines that want them before the first row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from litevfs.errors import OptionError
from litevfs.integrations.arrow_columns import Column
from litevfs.integrations.partitions import Partition, declared_columns


def typed(pieces: Sequence[Partition]) -> tuple[list[Partition], Any]:
    """The pieces of a table, read with the same types everywhere, and the `pyarrow.Schema` of these."""
    columns = declared_columns(pieces[0])
    return [replace(piece, as_text=undeclared(columns)) for piece in pieces], schema_of(columns)


def schema_of(columns: Sequence[Column]) -> Any:
    """The `pyarrow.Schema` of these columns; those whose declared type does not tell their values are text."""
    try:
        import pyarrow
    except ImportError as error:
        raise OptionError("this needs pyarrow", hint="pip install 'litevfs[engines]'") from error
    types = {
        "integer": pyarrow.int64(),
        "real": pyarrow.float64(),
        "text": pyarrow.large_string(),
        "blob": pyarrow.large_binary(),
    }
    return pyarrow.schema([(column.name, types[column.kind or "text"]) for column in columns])


def undeclared(columns: Sequence[Column]) -> tuple[str, ...]:
    """The columns that have to be read as text, since their declared type does not tell their values."""
    return tuple(column.name for column in columns if column.kind is None)
