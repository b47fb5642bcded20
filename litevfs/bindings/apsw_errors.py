"""Gives our errors their APSW parent when they reach the user of an APSW connection.

`litevfs.errors` knows no SQLite library. An error that carries a SQLite code becomes an instance of a subclass of its
own class and of APSW's class for that code, and stays the same object: cause, traceback and notes are kept. So
`except litevfs.TXIDGapError` and `except apsw.IOError` both catch it, and APSW tells SQLite its `extendedresult`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import apsw

from litevfs.errors import HINT_READ_ONLY, LitevfsError


def make_apsw_error(error: LitevfsError) -> None:
    """Make `error` an `apsw.Error` too, in place, if it carries a SQLite code; harmless where it is one already."""
    if error.extendedresult is not None and not isinstance(error, apsw.Error):
        error.__class__ = _apsw_kind(type(error))  # type: ignore[arg-type]  # mypy doubts that classes are hashable


def plain_class(error: LitevfsError) -> type[LitevfsError]:
    """The public class of an error, without the APSW parent it may have been given."""
    return getattr(type(error), "_plain", type(error))


@contextmanager
def apsw_errors() -> Generator[None]:
    """Let every LitevfsError that leaves the block be an `apsw.Error` too."""
    try:
        yield
    except LitevfsError as error:
        make_apsw_error(error)
        raise


class HintingCursor(apsw.Cursor):
    """A cursor of APSW's async mode whose ReadOnlyError says where to write, in a note.

    Only for that mode: one more call of Python code is a tenth of a hot query of an ordinary connection.
    """

    __slots__ = ()

    def execute(self, *arguments: Any, **keywords: Any) -> Any:
        """Like that of APSW: in the event loop an awaitable, in the connection's own thread the cursor."""
        started: Any = super().execute(*arguments, **keywords)
        return started if started is self else _hinting(started)

    def executemany(self, *arguments: Any, **keywords: Any) -> Any:
        """Like `execute`."""
        started: Any = super().executemany(*arguments, **keywords)
        return started if started is self else _hinting(started)


async def _hinting(started: Awaitable[Any]) -> Any:
    try:
        return await started
    except apsw.ReadOnlyError as error:
        error.add_note(HINT_READ_ONLY)
        raise


@cache
def _apsw_kind(kind: type[LitevfsError]) -> type[LitevfsError]:
    """A class of both kinds, under the name of ours. Its parents are APSW's classes for the code and for ours above."""
    codes = [code for base in kind.__mro__ if (code := vars(base).get("extendedresult")) is not None]
    parents = dict.fromkeys(type(apsw.exception_for(code)) for code in codes)
    names = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__reduce__": _reduce,
        "result": codes[0] & 0xFF,
        "_plain": kind,
    }
    return type(kind.__name__, (kind, *parents), names)


def _reduce(error: LitevfsError) -> tuple[object, ...]:
    return _rebuild, (plain_class(error), error.args, error.__dict__)


def _rebuild(kind: type[LitevfsError], arguments: tuple[str], attributes: dict[str, object]) -> LitevfsError:
    error = kind(*arguments)
    error.__dict__.update(attributes)
    make_apsw_error(error)
    return error
