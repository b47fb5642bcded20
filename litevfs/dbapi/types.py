"""PEP 249's type objects and constructors. SQLite has no type of its own for dates: they are text, as in `sqlite3`."""

from __future__ import annotations

import time
from datetime import date, datetime

Date = date
Timestamp = datetime
Binary = memoryview


def Time(hour: int, minute: int, second: int) -> str:
    """The text SQLite's date functions take for a time of day."""
    return f"{hour:02d}:{minute:02d}:{second:02d}"


def DateFromTicks(ticks: float) -> date:
    """The local date at `ticks` seconds since the Unix epoch."""
    return date(*time.localtime(ticks)[:3])


def TimeFromTicks(ticks: float) -> str:
    """The local time of day at `ticks` seconds since the Unix epoch."""
    return Time(*time.localtime(ticks)[3:6])


def TimestampFromTicks(ticks: float) -> datetime:
    """The local time at `ticks` seconds since the Unix epoch."""
    return datetime(*time.localtime(ticks)[:6])


class _TypeObject:
    """Equal to the type codes that it stands for. `Cursor.description` has none: a column of SQLite holds any type."""

    def __init__(self, name: str, *codes: object) -> None:
        self.name = name
        self.codes = codes

    def __eq__(self, other: object) -> bool:
        return other is self or other in self.codes

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return self.name


STRING = _TypeObject("STRING", str)
BINARY = _TypeObject("BINARY", bytes)
NUMBER = _TypeObject("NUMBER", int, float)
DATETIME = _TypeObject("DATETIME", date, datetime)
ROWID = _TypeObject("ROWID", int)
