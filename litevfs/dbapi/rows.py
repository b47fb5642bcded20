"""`Row`, in the shape of `sqlite3.Row`, and text factories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import lru_cache
from typing import Any, Protocol


class Described(Protocol):
    """The part of a cursor that a row needs."""

    @property
    def description(self) -> tuple[tuple[Any, ...], ...] | None:
        """The columns, by PEP 249."""


class Row:
    """A row by position and, whatever the case, by column name: `connection.row_factory = litevfs.dbapi.Row`."""

    __slots__ = ("_names", "_values")

    def __init__(self, cursor: Described, values: tuple[Any, ...]) -> None:
        self._names = tuple(column[0] for column in cursor.description or ())
        self._values = values

    def keys(self) -> list[str]:
        """The column names."""
        return list(self._names)

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self._values[key]
        if key in self._names:
            return self._values[self._names.index(key)]
        for name, value in zip(self._names, self._values, strict=False):
            if name.lower() == key.lower():
                return value
        raise IndexError(f"no column {key!r}: the row has {', '.join(self._names)}")

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return NotImplemented
        return self._names == other._names and self._values == other._values

    def __hash__(self) -> int:
        return hash((self._names, self._values))

    def __repr__(self) -> str:
        columns = ", ".join(f"{n}={v!r}" for n, v in zip(self._names, self._values, strict=False))
        return f"<litevfs.dbapi.Row {columns}>"


def own_row_factory(factory: Callable[[Any, Any], Any] | None) -> Callable[[Any, Any], Any] | None:
    """The factory to use: `sqlite3.Row` takes only a cursor of `sqlite3`, so it gets one with the same columns."""
    if not (isinstance(factory, type) and factory.__module__ == "sqlite3" and factory.__name__ == "Row"):
        return factory
    described: tuple[object, Any] = None, None  # a description, and the cursor for it

    def row(cursor: Described, values: tuple[Any, ...]) -> Any:
        nonlocal described
        description = cursor.description
        if described[0] is not description:
            described = description, _cursor_of_sqlite3(tuple(column[0] for column in description or ()))
        return factory(described[1], values)

    return row


@lru_cache(maxsize=256)
def _cursor_of_sqlite3(names: tuple[str, ...]) -> Any:
    """A cursor that describes these columns; its connection is closed."""
    import sqlite3

    columns = ", ".join('NULL AS "{}"'.format(name.replace('"', '""')) for name in names)
    with closing(sqlite3.connect(":memory:")) as connection:
        return connection.execute(f"SELECT {columns}")


def with_text(row: tuple[Any, ...], text_factory: Callable[[bytes], Any]) -> tuple[Any, ...]:
    """The row with each text replaced by `text_factory(its UTF-8 bytes)`."""
    return tuple(text_factory(value.encode()) if isinstance(value, str) else value for value in row)
