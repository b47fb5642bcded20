"""The last error of a callback of `sqlite3`'s library, for each thread: SQLite itself passes on only a code."""

from __future__ import annotations

import threading

_errors = threading.local()


def keep_error(error: BaseException, code: int) -> None:
    """Keep an error of which SQLite is told this code, without frames: these hold on to the caller's connection."""
    part: BaseException | None = error
    while part is not None and part.__traceback__ is not None:
        part.__traceback__ = None
        part = part.__cause__ or part.__context__
    _errors.last = error
    _errors.untold = (code, error)


def last_error() -> BaseException | None:
    """The error that a callback last ended with in this thread, or None."""
    return getattr(_errors, "last", None)


def forget_error() -> None:
    """Let `last_error` begin again."""
    _errors.last = _errors.untold = None


def untold_error(code: int) -> BaseException | None:
    """`last_error`, if SQLite was told this code, once: then None until the next error."""
    told, error = getattr(_errors, "untold", None) or (None, None)
    if told != code:
        return None
    _errors.untold = None
    return error
