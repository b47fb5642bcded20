"""Which statement runs on a connection, asked when it has to wait: from SQLite, or from APSW's execution tracer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

Value: TypeAlias = str | int | float | bytes | None
Values: TypeAlias = tuple[Value, ...] | dict[str, Value]

_PLAIN = (str, int, float, bool, bytes, type(None))
_BLANK = re.compile(r"(?:\s|;|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$))*", re.DOTALL)
_QUERY = re.compile(r"(?:SELECT|WITH|VALUES)\b", re.IGNORECASE)

_BLOB_OR_QUOTED = re.compile(
    r"""[xX]'((?:[0-9A-Fa-f]{2})*)'|'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|$)""",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Statement:
    """A single query with the values of its parameters."""

    sql: str
    values: Values


@dataclass(frozen=True, slots=True)
class Running:
    """A statement that runs."""

    run: object  # equal for the same run of the same statement alone
    find: Callable[[], Statement | None]  # None for what is no query; may take long where values are large


FindRunning: TypeAlias = Callable[[int], Running | None]
"""What runs, if it is known, in the read transaction of this number; called while SQLite reads a page."""


class Noted:
    """The statement that a connection of APSW has begun last, if its `exec_trace` is `note`."""

    def __init__(self) -> None:
        self._begun: tuple[str, object] | None = None  # SQL and values
        self._reads_in: int | None = None  # the transaction in which it has waited first
        self._running: Running | None = None

    def note(self, _: object, sql: str, values: object) -> bool:
        """A statement begins. True: it may."""
        self._begun, self._reads_in = (sql, values), None
        return True

    def find(self, transaction: int) -> Running | None:
        """See `FindRunning`. In another transaction it has ended: the schema is read for the next one, perhaps."""
        if self._reads_in is None:
            self._reads_in = transaction
            self._running = Running(object(), partial(as_statement, *self._begun)) if self._begun else None
        return self._running if self._reads_in == transaction else None


def blank_until(sql: str, start: int = 0) -> int:
    """Where the white space, comments and semicolons from `start` on end."""
    match = _BLANK.match(sql, start)
    return match.end() if match else start


def _with_blobs_bound(sql: str) -> tuple[str, tuple[bytes, ...]]:
    """A statement without parameters, with one in place of each blob, and their values.

    EXPLAIN shows a blob of the statement itself as text, which it seldom is.
    """
    values: list[bytes] = []

    def bound(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        values.append(bytes.fromhex(match[1]))
        return "?"

    return (_BLOB_OR_QUOTED.sub(bound, sql) if "'" in sql else sql), tuple(values)


def as_statement(sql: str, values: object) -> Statement | None:
    """A query, with values that have one meaning on any connection; None for other statements."""
    if not _QUERY.match(sql, blank_until(sql)):
        return None
    if isinstance(values, Mapping):
        named = dict(values)
        return Statement(sql, named) if all(type(value) in _PLAIN for value in named.values()) else None
    if values is None or values == ():
        return Statement(*_with_blobs_bound(sql))
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        return None
    listed = tuple(values)
    return Statement(sql, listed) if all(type(value) in _PLAIN for value in listed) else None
