"""Writes result sets as text, row by row: one writer for each output format. Knows neither replicas nor arguments.

In every format a blob is written as SQL writes it, X'00FF', and NULL cannot be taken for an empty text wherever the
format can tell them apart: JSON has null, CSV leaves a field empty and writes an empty text as "".
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Protocol, TextIO

import apsw

from litevfs.commands.terminal import draw_table, null, number
from litevfs.commands.text import clean, cut, pad, width

if TYPE_CHECKING:
    from rich.text import Text

Value = None | int | float | str | bytes
Row = Sequence[Value]

SAMPLE_ROWS = 1000
"""A table's columns are as wide as this many rows need, so that a result of any size takes little memory."""
MAX_CELL_COLUMNS = 100
"""Longer values are cut in tables; other formats write all values in full."""
_LEAST_WIDTH = 6
"""Columns of the terminal; in less than that, a cell's text is folded into too many lines."""
_FRAME = 3
"""Columns of the terminal for the line and the blanks beside a cell."""
_MOST_SHOWN = 10 * MAX_CELL_COLUMNS
"""Characters or bytes: some characters take no column."""


class ResultWriter(Protocol):
    """Takes any number of result sets: `begin`, each `row`, `end`."""

    def begin(self, columns: Sequence[str]) -> None:
        """Begin the next result set, which has these columns."""
        ...

    def row(self, row: Row) -> None:
        """Write one row of the result set."""
        ...

    def end(self) -> None:
        """End the result set."""
        ...


def value_text(value: Value, null: str = "") -> str:
    """A value as text; a number is written so that reading it gives the same number."""
    if value is None:
        return null
    if isinstance(value, bytes):
        return f"X'{value.hex().upper()}'"
    if isinstance(value, float) and not math.isfinite(value):
        return "9e999" if value > 0 else "-9e999"  # what SQLite reads as infinity
    return str(value)


class TerminalTableWriter:
    """Tables on a terminal, of SAMPLE_ROWS rows each; control characters are escaped and long values cut.

    Of a result with more columns than the terminal can show, each value is a line.
    """

    def __init__(self, out: TextIO, *, header: bool = True) -> None:
        self._out = out
        self._header = header

    def begin(self, columns: Sequence[str]) -> None:
        """See `ResultWriter`."""
        self._columns = [clean(name) for name in columns]
        self._rows: list[Row] = []
        self._is_first = True
        self._lines: LinesWriter | None = None

    def row(self, row: Row) -> None:
        """See `ResultWriter`."""
        self._rows.append([_start(value) for value in row])
        if len(self._rows) == SAMPLE_ROWS:
            self._draw()

    def end(self) -> None:
        """See `ResultWriter`."""
        if self._rows or self._is_first:
            self._draw()

    def _draw(self) -> None:
        rows = [[self._cell(value) for value in row] for row in self._rows]
        if self._is_first and rows and not _fits(self._columns, rows):
            self._lines = LinesWriter(self._out)
            self._lines.begin(self._columns)
        if self._lines is None:
            self._out.write(draw_table(self._columns, rows, header=self._header) + "\n")
        else:
            for row in rows:
                self._lines.row([str(cell) for cell in row])
        self._rows, self._is_first = [], False

    @staticmethod
    def _cell(value: Value) -> Text | str:
        if value is None:
            return null()
        return number(_cell(value)) if _is_number(value) else _cell(value)


def _fits(columns: Sequence[str], rows: Sequence[Sequence[Text | str]]) -> bool:
    """Whether a table can be read on the terminal: its columns are as wide as they need, or not very narrow."""
    widest = [max(width(str(cell)) for cell in column) for column in zip(columns, *rows, strict=True)]
    return sum(min(each, _LEAST_WIDTH) + _FRAME for each in widest) < get_terminal_size().columns


class TableWriter:
    """Aligned columns in plain text; control characters are escaped and long values cut."""

    def __init__(self, out: TextIO, *, header: bool = True) -> None:
        self._out = out
        self._header = header
        self._tables = 0

    def begin(self, columns: Sequence[str]) -> None:
        """See `ResultWriter`."""
        self._columns = [clean(name) for name in columns]
        self._sample: list[Row] = []
        self._widths: list[int] = []

    def row(self, row: Row) -> None:
        """See `ResultWriter`."""
        row = [_start(value) for value in row]
        if self._widths:
            self._write(row)
            return
        self._sample.append(row)
        if len(self._sample) == SAMPLE_ROWS:
            self._write_sample()

    def end(self) -> None:
        """See `ResultWriter`."""
        if not self._widths:
            self._write_sample()

    def _write_sample(self) -> None:
        cells = [[_cell(value) for value in row] for row in self._sample]
        heads = self._columns if self._header else [""] * len(self._columns)
        self._widths = [max(map(width, [head, *column])) for head, *column in zip(heads, *cells, strict=True)]
        numeric = [any(_is_number(v) for v in column) for column in zip(*self._sample, strict=True)]
        if self._tables:
            self._out.write("\n")
        self._tables += 1
        if self._header:
            self._write_line(heads, numeric or [False] * len(heads))
            self._write_line(["-" * columns for columns in self._widths], [False] * len(heads))
        for row in self._sample:
            self._write(row)
        self._sample = []

    def _write(self, row: Row) -> None:
        self._write_line([_cell(value) for value in row], [_is_number(value) for value in row])

    def _write_line(self, cells: Sequence[str], right: Sequence[bool]) -> None:
        line = "  ".join(pad(c, w, right=r) for c, w, r in zip(cells, self._widths, right, strict=True))
        self._out.write(line.rstrip() + "\n")


def _start(value: Value) -> Value:
    """As much of a value as a cell can show; a sample holds many."""
    return value[:_MOST_SHOWN] if isinstance(value, str | bytes) else value


def _cell(value: Value) -> str:
    return cut(clean(value_text(value, "NULL")), MAX_CELL_COLUMNS)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float)


class ListWriter:
    """The sqlite3 shell's format for pipes: values with | between them."""

    def __init__(self, out: TextIO, *, header: bool = False) -> None:
        self._out = out
        self._header = header

    def begin(self, columns: Sequence[str]) -> None:
        """See `ResultWriter`."""
        if self._header:
            self._out.write("|".join(columns) + "\n")

    def row(self, row: Row) -> None:
        """See `ResultWriter`."""
        self._out.write("|".join(map(value_text, row)) + "\n")

    def end(self) -> None:
        """See `ResultWriter`."""


class CSVWriter:
    """RFC 4180, with plain newlines."""

    def __init__(self, out: TextIO, *, header: bool = True) -> None:
        self._out = out
        self._header = header

    def begin(self, columns: Sequence[str]) -> None:
        """See `ResultWriter`."""
        if self._header:
            self.row(columns)

    def row(self, row: Row) -> None:
        """See `ResultWriter`."""
        self._out.write(",".join(map(_csv_field, row)) + "\n")

    def end(self) -> None:
        """See `ResultWriter`."""


def _csv_field(value: Value) -> str:
    text = value_text(value)
    if value == "" or any(c in text for c in ',"\r\n') or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


class LinesWriter:
    """One `column = value` per line, a blank line between rows."""

    def __init__(self, out: TextIO, *, header: bool = True) -> None:
        self._out = out
        self._rows = 0

    def begin(self, columns: Sequence[str]) -> None:
        """See `ResultWriter`."""
        longest = max(map(width, columns))
        self._labels = [pad(name, longest, right=True) for name in columns]

    def row(self, row: Row) -> None:
        """See `ResultWriter`."""
        if self._rows:
            self._out.write("\n")
        self._rows += 1
        for label, value in zip(self._labels, row, strict=True):
            self._out.write(f"{label} = {value_text(value)}\n")

    def end(self) -> None:
        """See `ResultWriter`."""


class JSONLinesWriter:
    """One JSON object per row. Infinity is 9e999, which is JSON; columns of the same name are repeated."""

    def __init__(self, out: TextIO, *, header: bool = True) -> None:
        self._out = out

    def begin(self, columns: Sequence[str]) -> None:
        """See `ResultWriter`."""
        self._keys = [json.dumps(name, ensure_ascii=False) for name in columns]

    def row(self, row: Row) -> None:
        """See `ResultWriter`."""
        self._out.write(self._object(row) + "\n")

    def end(self) -> None:
        """See `ResultWriter`."""

    def _object(self, row: Row) -> str:
        return "{" + ", ".join(f"{k}: {_json_value(v)}" for k, v in zip(self._keys, row, strict=True)) + "}"


class JSONWriter(JSONLinesWriter):
    """One JSON array of objects for each result set."""

    def begin(self, columns: Sequence[str]) -> None:
        """See `ResultWriter`."""
        super().begin(columns)
        self._separator = "["

    def row(self, row: Row) -> None:
        """See `ResultWriter`."""
        self._out.write(f"{self._separator}{self._object(row)}")
        self._separator = ",\n "

    def end(self) -> None:
        """See `ResultWriter`."""
        self._out.write("[]\n" if self._separator == "[" else "]\n")


def _json_value(value: Value) -> str:
    if value is None:
        return "null"
    return value_text(value) if isinstance(value, int | float) else json.dumps(value_text(value), ensure_ascii=False)


class _Factory(Protocol):
    def __call__(self, out: TextIO, *, header: bool = ...) -> ResultWriter: ...


FORMATS: dict[str, _Factory] = {
    "table": TableWriter,
    "list": ListWriter,
    "csv": CSVWriter,
    "json": JSONWriter,
    "jsonl": JSONLinesWriter,
    "lines": LinesWriter,
}
"""Writers by name."""


def make_writer(name: str, out: TextIO, header: bool | None) -> ResultWriter:
    """The writer of a format; with `header` None it chooses itself. A table on a terminal is drawn."""
    factory = TerminalTableWriter if name == "table" and out.isatty() else FORMATS[name]
    return factory(out) if header is None else factory(out, header=header)


def write_results(connection: apsw.Connection, sql: str, writer: ResultWriter) -> None:
    """Run all statements of `sql`; the results of those that return columns go to `writer` as they come."""
    cursor = connection.cursor()
    of_connection = connection.exec_trace
    is_open = False

    def begin(cursor: apsw.Cursor, statement: str, bindings: apsw.Bindings | None) -> bool:
        nonlocal is_open
        end()
        columns = [column[0] for column in cursor.get_description()]
        if columns:
            writer.begin(columns)
            is_open = True
        return of_connection is None or of_connection(cursor, statement, bindings)

    def end() -> None:
        nonlocal is_open
        if is_open:
            is_open = False
            writer.end()

    cursor.exec_trace = begin
    for row in cursor.execute(sql):
        writer.row(row)
    end()
