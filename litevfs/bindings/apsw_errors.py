"""Gives our errors their APSW parent when they reach the user of an APSW connection.

`litevfs.errors` knows no SQLite library. An error that carries a SQLite code becomes an instance of a subclass of its
own class and of APSW's class for that code, and stays the same object: cause, traceback and notes are kept. So
`except litevfs.TXIDGapError` and `except apsw.IOError` both catch it, and APSW tells SQLite its `extendedresult`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

import apsw

from litevfs.errors import LitevfsError


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
