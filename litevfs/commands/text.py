"""Numbers and tables for people. Knows nothing of replicas."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress

import apsw.unicode

from litevfs.commands.terminal import draw_table, number

_UNITS = ("B", "kB", "MB", "GB", "TB")
"""As in `litevfs.units.format_bytes`."""


def format_age(seconds: float) -> str:
    """How long ago, in the largest unit that fits: `3 minutes ago`."""
    if seconds < 0:
        return "in the future"
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {name}{'s' if number > 1 else ''} ago"
    return "just now"


def count(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def clean(text: str) -> str:
    """The text in one line, control characters as escapes: a value cannot move the cursor or break the table."""
    if text.isprintable():
        return text
    return "".join(
        c if unicodedata.category(c) not in {"Cc", "Zl", "Zp"} else c.encode("unicode_escape").decode() for c in text
    )


def width(text: str) -> int:
    """Columns that a terminal uses for the text: wide characters take two, combining ones none."""
    return len(text) if text.isascii() else max(0, apsw.unicode.text_width(text))


def cut(text: str, columns: int) -> str:
    """The text in at most `columns` columns, an ellipsis at its end when some of it is left out."""
    if len(text) * 2 <= columns or width(text) <= columns:
        return text
    _, start = apsw.unicode.text_width_substr(text, columns - 1)
    return start + "…"


def pad(text: str, columns: int, *, right: bool) -> str:
    """The text filled up with blanks; `right` puts them in front."""
    blanks = " " * (columns - width(text))
    return blanks + text if right else text + blanks


def format_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A small table; numbers, and text that starts with a digit and ends with a unit, to the right.

    Where standard output is a terminal, the table is drawn for it.
    """
    cells = [[clean(str(value)) for value in row] for row in rows]
    right = [all(_is_number(row[i]) for row in cells) if cells else False for i in range(len(columns))]
    if sys.stdout.isatty():
        drawn = ([number(c) if r else c for c, r in zip(row, right, strict=True)] for row in cells)
        return draw_table(columns, drawn)
    widths = [max(map(width, [name, *(row[i] for row in cells)])) for i, name in enumerate(columns)]
    lines = [columns, ["-" * w for w in widths], *cells]
    return "\n".join(
        "  ".join(pad(cell, w, right=r) for cell, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def _is_number(text: str) -> bool:
    number, _, unit = text.partition(" ")
    return number.replace(",", "").replace(".", "", 1).isdecimal() and unit in ("", *_UNITS) and len(text) < 16


def format_fields(fields: Iterable[tuple[str, object]]) -> str:
    """Names and values, one pair a line, aligned."""
    pairs = [(name, clean(str(value))) for name, value in fields]
    longest = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name:<{longest}}  {value}" for name, value in pairs)


def write_utf_8() -> None:
    """Make standard output UTF-8 whatever the terminal's encoding is: for SQL and JSON, which other programs read."""
    with suppress(AttributeError):  # not the real stream
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # of a text file
