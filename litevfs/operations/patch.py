"""A difference as SQL statements, which turn the older state into the newer one. Knows how to write SQL."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from fractions import Fraction

from litevfs.errors import OptionError
from litevfs.operations.diff import Change, Diff, SchemaChange, same_value
from litevfs.operations.tables import Key, Row, Table, Value, quoted

_DROP_ORDER = ("trigger", "view", "index", "table")
_CHARACTERS = re.compile("([\0\r])")
"""A literal ends at a NUL, and the sqlite3 shell drops a CR at the end of a line."""
_MARGIN = 1 / 64
"""Before 3.43, SQLite reads decimals by up to some thirty steps of 64 bits: so near to the middle between two numbers
(part of their distance) it may take the wrong one.
"""
_USUAL = 1e-250, 1e250
"""Outside, its steps add up to more."""


def patch_statements(diff: Diff) -> Iterator[str]:
    """SQL statements, one at a time without their semicolons, in one transaction.

    Rows keep their rowids. Deletes come before everything else, and rows of tables with unique indexes are replaced
    rather than updated, so that no order of statements violates a constraint; triggers are dropped meanwhile. Raises
    OptionError if a virtual table was made, changed or dropped: only its module knows what that does.
    """
    schema = [change for change in diff.schema if not change.name.startswith("sqlite_")]
    _refuse_virtual(schema)
    rebuilt = {change.name for change in schema if change.type == "table"}
    kept = [name for name in diff.tables if name not in rebuilt and name != "sqlite_sequence"]
    yield "PRAGMA foreign_keys = OFF"
    yield "BEGIN IMMEDIATE"
    triggers = [name for kind, name in diff.old.objects if kind == "trigger"]
    yield from (f"DROP TRIGGER {quoted(name)}" for name in triggers)
    for kind in _DROP_ORDER[1:]:
        gone = [change.name for change in schema if change.type == kind and change.op != "create"]
        yield from (f"DROP {kind.upper()} IF EXISTS {quoted(name)}" for name in gone)
    for name in kept:
        yield from _removals(diff, name)
    for name in kept:
        yield from _additions(diff, name)
    for change in schema:
        if change.type == "table" and change.new_sql is not None:
            yield change.new_sql
    for name in rebuilt & set(diff.tables):
        yield from _all_rows(diff, name)
    changed = {(change.type, change.name) for change in schema}
    for (kind, name), sql in diff.new.objects.items():
        if kind in ("index", "view") and ((kind, name) in changed or diff.new.table_of[name] in rebuilt):
            yield sql
    yield from (sql for (kind, _), sql in diff.new.objects.items() if kind == "trigger")
    yield from _sequence(diff)
    yield from _numbers(diff)
    yield "COMMIT"


def _refuse_virtual(schema: list[SchemaChange]) -> None:
    for change in schema:
        if any((sql or "").upper().startswith("CREATE VIRTUAL") for sql in (change.old_sql, change.new_sql)):
            raise OptionError(
                f"the virtual table {change.name} was made, changed or dropped: no patch can do that",
                hint="leave it out with tables=, or restore the newer state",
            )


def _removals(diff: Diff, name: str) -> Iterator[str]:
    table = diff.old.table(name)
    assert table is not None
    replaces = diff.new.has_unique_index(name)
    for change in diff.changes(name):
        if change.op == "delete" or (change.op == "update" and replaces):
            yield f"DELETE FROM {quoted(name)} WHERE {_matches(table, change.key)}"


def _additions(diff: Diff, name: str) -> Iterator[str]:
    table = diff.new.table(name)
    assert table is not None
    replaces = diff.new.has_unique_index(name)
    for change in diff.changes(name):
        if change.new is not None and (change.op == "insert" or replaces):
            yield _insert(table, change.key, change.new)
        elif change.new is not None:
            yield f"UPDATE {quoted(name)} SET {_assignments(change)} WHERE {_matches(table, change.key)}"


def _all_rows(diff: Diff, name: str) -> Iterator[str]:
    table = diff.new.table(name)
    if table is not None:
        yield from (_insert(table, key, row) for key, row in diff.new.rows(table))


def _sequence(diff: Diff) -> Iterator[str]:
    """Statements that give AUTOINCREMENT's table, which inserts change, its content in the newer state."""
    table = diff.new.table("sqlite_sequence")
    if table is not None and "sqlite_sequence" in diff.tables:
        yield "DELETE FROM sqlite_sequence"
        yield from (_insert(table, key, row) for key, row in diff.new.rows(table))


def _numbers(diff: Diff) -> Iterator[str]:
    for name, number in diff.new.numbers.items():
        if number != diff.old.numbers[name]:
            yield f"PRAGMA {name} = {number}"


def _insert(table: Table, key: Key, row: Row) -> str:
    names, values = list(row), list(row.values())
    if table.has_rowid and not table.rowid_is_column:
        names, values = [table.key[0], *names], [*key, *values]
    columns = ", ".join(map(quoted, names))
    return f"INSERT INTO {quoted(table.name)} ({columns}) VALUES ({', '.join(map(literal, values))})"


def _assignments(change: Change) -> str:
    assert change.old is not None
    assert change.new is not None
    different = {name: value for name, value in change.new.items() if not same_value(value, change.old[name])}
    return ", ".join(f"{quoted(name)} = {literal(value)}" for name, value in different.items())


def _matches(table: Table, key: Key) -> str:
    parts = zip(table.key, key, table.collates, strict=True)
    return " AND ".join(f"{quoted(name)} = {literal(value)}{collate}" for name, value, collate in parts)


def literal(value: Value) -> str:
    """A value as SQL writes it: reading it gives the same value of the same type."""
    match value:
        case None:
            return "NULL"
        case bytes():
            return f"X'{value.hex().upper()}'"
        case str() if _CHARACTERS.search(value):  # in any encoding of the database
            return _joined([_text(part) for part in _CHARACTERS.split(value) if part])
        case str():
            return _text(value)
        case float() if not math.isfinite(value):
            return "9e999" if value > 0 else "-9e999"
        case float() if not _is_read_alike(value):
            return _product(value)
        case _:
            return repr(value)


def _text(text: str) -> str:
    return f"char({ord(text)})" if _CHARACTERS.match(text) else "'" + text.replace("'", "''") + "'"


def _joined(parts: list[str]) -> str:
    """Texts one after the other: a balanced expression, since SQLite limits how deep one is."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return f"({_joined(parts[:middle])} || {_joined(parts[middle:])})"


def _is_read_alike(value: float) -> bool:
    """Whether every SQLite reads the shortest decimal of a number as that number."""
    if value and not _USUAL[0] < abs(value) < _USUAL[1]:
        return False
    distance = math.ulp(math.nextafter(abs(value), 0.0))
    return abs(Fraction(repr(value)) - Fraction(value)) < Fraction(0.5 - _MARGIN) * Fraction(distance)


def _product(value: float) -> str:
    """A number as a whole one, multiplied or divided by powers of two, so that each step is exact."""
    mantissa, exponent = math.frexp(value)
    mantissa, exponent = int(mantissa * 2**53), exponent - 53
    parts = [f"{mantissa}.0"]
    while exponent:
        step = min(abs(exponent), 52)
        parts.append(f"{'*' if exponent > 0 else '/'} {2**step}.0")
        exponent -= step if exponent > 0 else -step
    return f"({' '.join(parts)})"
