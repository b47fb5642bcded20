"""Values of SQLite as columns of Arrow: the parts of a column, and the type that all of them have.

Knows values and pyarrow, no connection. SQLite gives each value a type, Arrow each column. A `Part` holds some values
of a column compactly, in the type that they have; `cast` turns it into the type that the whole column is found to have.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from litevfs.errors import ResultTypeError

INTEGER, REAL, TEXT, BLOB, NULL = "integer", "real", "text", "blob", "null"
"""SQLite's names of types."""
MIXED = "mixed"
"""Of a part whose values have several types."""
WIDE = "int54"
"""Beside SQLite's types: an integer that a real may not represent. By name it stands between BLOB and INTEGER, which
`_holders` relies on."""
_KINDS: dict[type, str] = {int: INTEGER, float: REAL, str: TEXT, bytes: BLOB, type(None): NULL}
_FORMATS = {INTEGER: "q", REAL: "d"}
"""`struct`'s for a number of `_NUMBER_BYTES`."""
_NUMBER_BYTES = 8
_EXACT = 2**53
"""Up to here a real represents every integer exactly."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a result."""

    name: str
    declared: str | None

    @property
    def kind(self) -> str | None:
        """The type to which affinity converts values; None if it does not tell (NUMERIC, and expressions).

        https://www.sqlite.org/datatype3.html#determination_of_column_affinity
        """
        declared = (self.declared or "").upper()
        if "INT" in declared:
            return INTEGER
        if any(part in declared for part in ("CHAR", "CLOB", "TEXT")):
            return TEXT
        if "BLOB" in declared:
            return BLOB
        return REAL if any(part in declared for part in ("REAL", "FLOA", "DOUB")) else None

    def place(self, row: int) -> str:
        """How an error names a value of this column."""
        return f"row {row}, column {self.name!r}" + (f", declared {self.declared}" if self.declared else "")


@dataclass(frozen=True, slots=True)
class Part:
    """Values of a column that follow each other. `first` is the number of its first row, from 1."""

    kind: str
    first: int
    count: int
    content: Any
    """Numbers without NULLs: the system's own, as bytes. ASCII texts or blobs without NULLs: `_Strings`. Mixed: a list.
    NULLs alone: None. Otherwise an array of pyarrow."""

    def kinds(self, *, wide: bool) -> set[str]:
        """The types of the values; with NULL only if no value has another, with WIDE only if asked for."""
        kinds = _kinds(self.content) if self.kind == MIXED else {self.kind}
        return kinds | {WIDE} if wide and INTEGER in kinds and self._has_wide() else kinds

    def _has_wide(self) -> bool:
        if self.kind == MIXED:
            return any(isinstance(value, int) and not _is_fit(value, REAL) for value in self.content)
        of_system = isinstance(self.content, bytes)
        integers = np.frombuffer(self.content, np.int64) if of_system else self.content.drop_null().to_numpy()
        return bool(integers.min() < -_EXACT or integers.max() > _EXACT)

    @property
    def nbytes(self) -> int:
        """Bytes that the values take."""
        if self.content is None:
            return 0
        if self.kind == MIXED:
            return sum(map(sys.getsizeof, self.content))
        return len(self.content) if isinstance(self.content, bytes) else int(self.content.nbytes)


@dataclass(frozen=True, slots=True)
class _Strings:
    together: bytes
    lengths: bytes
    """Of each text or blob, as a number of the system."""

    @property
    def nbytes(self) -> int:
        return len(self.together) + len(self.lengths)


# --- values to parts --------------------------------------------------------------------------------------------------


def part_of(values: list[Any], first: int, expected: str, *, widen: bool = False) -> Part:
    """The values as a part. It is found the fastest if all are of the `expected` type. `widen`: integers become reals
    where both stand together, otherwise they stay what they are."""
    if (content := _compact(values, expected, widen=widen)) is not None:
        return Part(expected, first, len(values), content)
    kinds = _kinds(values)
    kind = REAL if widen and kinds == {INTEGER, REAL} else kinds.pop() if len(kinds) == 1 else MIXED
    if kind == NULL:
        return Part(NULL, first, len(values), None)
    if kind != expected and (content := _compact(values, kind, widen=widen)) is not None:
        return Part(kind, first, len(values), content)
    if kind != MIXED:
        import pyarrow

        try:
            return Part(kind, first, len(values), pyarrow.array(values, arrow_type(kind)))
        except pyarrow.ArrowInvalid:  # an integer of 54 bits among reals
            pass
    return Part(MIXED, first, len(values), values)


def _kinds(values: list[Any]) -> set[str]:
    return {_KINDS[type_] for type_ in set(map(type, values))} - {NULL} or {NULL}


def _compact(values: list[Any], kind: str, *, widen: bool) -> Any:
    """The values, none of them NULL, without work on each of them in Python; None if that is not possible."""
    if kind in _FORMATS:
        return _numbers(values, kind, widen=widen)
    return _texts(values) if kind == TEXT else _blobs(values) if kind == BLOB else None


def _numbers(values: list[Any], kind: str, *, widen: bool) -> bytes | None:
    """The values as the system's numbers, which takes a quarter of the time that Arrow needs; None if one does not fit.

    `struct` refuses reals among integers, but takes integers among reals, and rounds those of 54 bits.
    """
    try:
        numbers = struct.pack(f"{len(values)}{_FORMATS[kind]}", *values)
    except struct.error:
        return None
    if kind == REAL:
        reals = np.frombuffer(numbers)
        suspects = np.flatnonzero(np.abs(reals) >= _EXACT if widen else np.rint(reals) == reals)
        if int in map(type, [values[i] for i in suspects.tolist()]):
            return None
    return numbers


def _texts(values: list[Any]) -> _Strings | None:
    """The texts end to end, in two thirds of the time that Arrow needs; None if one is not ASCII, or no text."""
    try:
        together = "".join(values)
    except TypeError:
        return None
    if not together.isascii():  # a character may take several bytes
        return None
    return _Strings(together.encode(), struct.pack(f"{len(values)}q", *map(len, values)))


def _blobs(values: list[Any]) -> _Strings | None:
    """The blobs end to end; None if one is no blob. Of large ones, Arrow's builder takes ten times as long."""
    try:
        return _Strings(b"".join(values), struct.pack(f"{len(values)}q", *map(len, values)))
    except TypeError:
        return None


# --- types ------------------------------------------------------------------------------------------------------------


def type_in_sql(value: str, *, wide: bool) -> str:
    """An SQL expression: the type of a value, as `Part.kinds` names it."""
    if not wide:
        return f"typeof({value})"
    of_integer = f"CASE WHEN +{value} BETWEEN {-_EXACT} AND {_EXACT} THEN '{INTEGER}' ELSE '{WIDE}' END"
    of_others = " ".join(f"WHEN '{kind}' THEN '{kind}'" for kind in (REAL, TEXT, BLOB))  # the value is computed once
    return f"CASE typeof({value}) WHEN '{INTEGER}' THEN {of_integer} {of_others} ELSE '{NULL}' END"


def column_kind(declared: str | None, found: set[str]) -> str:
    """The type of a column whose values have the types `found`; TEXT for values to be converted to text."""
    return TEXT if has_misfit(declared, found) else declared or _holders(found)[0]


def has_misfit(declared: str | None, found: set[str]) -> bool:
    """Whether values of the types `found` have none in common, or one that is not the declared type."""
    holders = _holders(found)
    return not holders if declared is None else declared not in holders


_HOLDERS = {
    (NULL, NULL): (NULL, INTEGER, REAL, TEXT, BLOB),
    (INTEGER, INTEGER): (INTEGER, REAL),
    (WIDE, WIDE): (INTEGER,),
    (WIDE, INTEGER): (INTEGER,),
    (INTEGER, REAL): (REAL,),
    (REAL, REAL): (REAL,),
    (TEXT, TEXT): (TEXT,),
    (BLOB, BLOB): (BLOB,),
}
"""The types that hold values of two types and of those between them by name, the closest first."""


def _holders(found: set[str]) -> tuple[str, ...]:
    """The types that hold all values. Of several types between two by name, `found` may lack some."""
    found = found - {NULL} or {NULL}
    return _HOLDERS.get((min(found), max(found)), ())


def arrow_type(kind: str) -> Any:
    """The type of Arrow."""
    import pyarrow

    types = {
        INTEGER: pyarrow.int64,
        REAL: pyarrow.float64,
        TEXT: pyarrow.large_string,
        BLOB: pyarrow.large_binary,
        NULL: pyarrow.null,
    }
    return types[kind]()


# --- parts to columns -------------------------------------------------------------------------------------------------


def cast(part: Part, kind: str, column: Column, *, strict: bool) -> Part:
    """The part as one of this type. With `strict=False`, any value becomes text where that is the type.

    Raises ResultTypeError, which names the first value that does not fit.
    """
    if part.kind in (kind, NULL):
        return part
    if part.kind == INTEGER and kind == REAL and (reals := _as_reals(part.content)) is not None:
        return Part(REAL, part.first, part.count, reals)
    values = _values(part)
    if kind == TEXT and not strict:
        values = [_as_text(value) for value in values]
    if kind == REAL:  # a part may hold integers and NULLs alone
        values = [float(value) if isinstance(value, int) and _is_fit(value, REAL) else value for value in values]
    if (found := part_of(values, part.first, kind, widen=kind == REAL)).kind == kind:
        return found
    row, value = next((row, value) for row, value in enumerate(values, part.first) if not _is_fit(value, kind))
    raise ResultTypeError(
        f"{column.place(row)}: {_KINDS[type(value)]} does not fit in {arrow_type(kind)}",
        hint="CAST it in the statement" + (", or pass strict=False to have the column as text" * strict),
    )


def _values(part: Part) -> list[Any]:
    if part.kind == MIXED:
        return list(part.content)
    return list(_array(part, arrow_type(part.kind)).to_pylist())


def _as_reals(content: Any) -> bytes | None:
    """Integers without NULLs as reals; None if there are NULLs, or an integer of 54 bits."""
    if not isinstance(content, bytes):
        return None
    integers = np.frombuffer(content, np.int64)
    return integers.astype(np.float64).tobytes() if (abs(integers.clip(-_EXACT - 1)) <= _EXACT).all() else None


def _as_text(value: Any) -> Any:
    """The value as text, a number as Python writes it; a blob that is not UTF-8 stays a blob."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value if value is None or isinstance(value, str) else str(value)


def _is_fit(value: object, kind: str) -> bool:
    """Whether the value is one of that type, or NULL; an integer of 54 bits is no real."""
    if isinstance(value, int) and kind == REAL:
        return abs(value) <= _EXACT
    return _KINDS[type(value)] in (kind, NULL)


def joined(parts: Sequence[Part], kind: str) -> Any:
    """The array of pyarrow with all values of parts that `cast` made, of this type or with only NULLs."""
    import pyarrow

    type_ = arrow_type(kind)
    if kind in _FORMATS and all(isinstance(part.content, bytes) for part in parts):
        return _array_of_numbers(b"".join(part.content for part in parts), type_)
    if all(isinstance(part.content, _Strings) for part in parts):
        strings = _Strings(
            b"".join(part.content.together for part in parts), b"".join(part.content.lengths for part in parts)
        )
        return _array_of_strings(strings, type_)
    return pyarrow.concat_arrays([_array(part, type_) for part in parts])


def _array(part: Part, type_: Any) -> Any:
    import pyarrow

    if part.content is None:
        return pyarrow.nulls(part.count, type_)
    if isinstance(part.content, bytes):
        return _array_of_numbers(part.content, type_)
    if isinstance(part.content, _Strings):
        return _array_of_strings(part.content, type_)
    return part.content


def _array_of_numbers(numbers: bytes, type_: Any) -> Any:
    import pyarrow

    return pyarrow.Array.from_buffers(type_, len(numbers) // _NUMBER_BYTES, [None, pyarrow.py_buffer(numbers)])


def _array_of_strings(strings: _Strings, type_: Any) -> Any:
    import pyarrow

    count = len(strings.lengths) // _NUMBER_BYTES
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.frombuffer(strings.lengths, np.int64), out=offsets[1:])
    buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(strings.together)]
    return pyarrow.Array.from_buffers(type_, count, buffers)
