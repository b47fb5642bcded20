"""Which statement runs: found only when it has to wait, so that a statement which need not wait pays nothing.

The functions that hand a statement to SQLite are marked; while SQLite runs it and reads a page, the innermost Python
frame outside the VFS is such a function's, with the statement in its local variables. Any other frame there, such as
that of a caller who uses a cursor of APSW itself, says nothing: APSW's tracer does so then (`Rehearsals.note`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
Value = str | int | float | bytes | None

_PLAIN = (str, int, float, bool, bytes, type(None))
_OF_THE_VFS = ("litevfs.pages.", "litevfs.live.", "litevfs.bindings.", "litevfs.explain")
_QUERY = re.compile(r"\s*(SELECT|WITH)\b", re.IGNORECASE)
_doors: dict[CodeType, tuple[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Statement:
    """A single query with the values of its parameters."""

    sql: str
    values: tuple[Value, ...] | dict[str, Value]


def runs_statement(sql: str, values: str) -> Callable[[F], F]:
    """Mark a function that hands a statement to SQLite: its local variables of these names are text and values."""

    def mark(function: F) -> F:
        _doors[cast("FunctionType", function).__code__] = (sql, values)
        return function

    return mark


def running_statement() -> Statement | None:
    """The query for which SQLite reads a page in this thread, if it is known; called from within that read."""
    frame = sys._getframe(1) if hasattr(sys, "_getframe") else None
    while frame is not None:
        names = _doors.get(frame.f_code)
        if names is not None:
            return as_statement(frame.f_locals.get(names[0]), frame.f_locals.get(names[1]))
        if not frame.f_globals.get("__name__", "").startswith(_OF_THE_VFS):
            return None
        frame = frame.f_back
    return None


def as_statement(sql: object, values: object) -> Statement | None:
    """A query alone, no script, with values that have one meaning on any connection."""
    if not isinstance(sql, str) or ";" in sql.rstrip("; \n\t") or not _QUERY.match(sql):
        return None
    if isinstance(values, Mapping):
        named = dict(values)
        return Statement(sql, named) if all(type(value) in _PLAIN for value in named.values()) else None
    if values is None:
        return Statement(sql, ())
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        return None
    listed = tuple(values)
    return Statement(sql, listed) if all(type(value) in _PLAIN for value in listed) else None
