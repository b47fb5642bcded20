"""PEP 249's exceptions, and the translation of errors of APSW and the VFS into them.

The classes are those of `sqlite3`, where Python has that module. A `LitevfsError` keeps its own class beside the one of
PEP 249: a raised error is both, so `except litevfs.StaleReplicaError` and `except sqlite3.OperationalError` catch it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import apsw

from litevfs.bindings.apsw_errors import plain_class
from litevfs.errors import HINT_FULL, HINT_OTHER_THREAD, HINT_READ_ONLY, LitevfsError, LTXFormatError, OptionError

if TYPE_CHECKING:
    from sqlite3 import (
        DatabaseError,
        DataError,
        Error,
        IntegrityError,
        InterfaceError,
        InternalError,
        NotSupportedError,
        OperationalError,
        ProgrammingError,
        Warning,  # noqa: A004 - PEP 249's name
    )
else:
    try:
        from sqlite3 import (
            DatabaseError,
            DataError,
            Error,
            IntegrityError,
            InterfaceError,
            InternalError,
            NotSupportedError,
            OperationalError,
            ProgrammingError,
            Warning,  # noqa: A004 - PEP 249's name
        )
    except ImportError:  # a Python that was built without SQLite
        Warning = type("Warning", (Exception,), {"__module__": __name__})  # noqa: A001
        Error = type("Error", (Exception,), {"__module__": __name__})
        InterfaceError = type("InterfaceError", (Error,), {"__module__": __name__})
        DatabaseError = type("DatabaseError", (Error,), {"__module__": __name__})
        DataError, OperationalError, IntegrityError, InternalError, ProgrammingError, NotSupportedError = (
            type(name, (DatabaseError,), {"__module__": __name__})
            for name in (
                "DataError",
                "OperationalError",
                "IntegrityError",
                "InternalError",
                "ProgrammingError",
                "NotSupportedError",
            )
        )

__all__ = [
    "DataError",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Warning",
    "translated",
]

_PROGRAMMING = (
    apsw.ConnectionClosedError,
    apsw.CursorClosedError,
    apsw.ThreadingViolationError,
    apsw.BindingsError,
    apsw.IncompleteExecutionError,
    apsw.ExecutionCompleteError,
)


def _by_code(names: str, parent: type[Exception]) -> dict[int, type[Exception]]:
    return {getattr(apsw, f"SQLITE_{name}"): parent for name in names.split()}


_PARENT_OF_CODE = (
    _by_code("INTERNAL NOTFOUND", InternalError)
    | _by_code(
        "ERROR PERM ABORT BUSY LOCKED READONLY INTERRUPT IOERR FULL CANTOPEN PROTOCOL EMPTY SCHEMA",
        OperationalError,
    )
    | _by_code("TOOBIG", DataError)
    | _by_code("CONSTRAINT MISMATCH", IntegrityError)
    | _by_code("MISUSE RANGE", InterfaceError)
)
"""The error of `sqlite3` for each primary result code; DatabaseError for those not listed."""

_NAME_OF_CODE = {
    code: name
    for mapping in (apsw.mapping_result_codes, apsw.mapping_extended_result_codes)
    for name, code in mapping.items()
    if isinstance(name, str) and isinstance(code, int)
}

_HINTS = {
    apsw.ReadOnlyError: HINT_READ_ONLY,
    apsw.ConnectionClosedError: "open another one with litevfs.dbapi.connect",
    apsw.ThreadingViolationError: HINT_OTHER_THREAD,
    apsw.FullError: HINT_FULL,
}


def translated(error: Exception) -> Exception:
    """The PEP 249 exception for `error`, an exception of APSW or of this package; to be raised from it."""
    parent = _parent_of(error)
    if isinstance(error, LitevfsError):
        result = _rebuilt(plain_class(error), parent, error.args, error.__dict__)
    else:
        hints = [hint for kind, hint in _HINTS.items() if isinstance(error, kind) and hint not in str(error)]
        result = parent("; ".join([str(error), *hints]))
    code = getattr(error, "extendedresult", None)
    if isinstance(code, int):
        result.sqlite_errorcode = code  # type: ignore[attr-defined]  # as in sqlite3
        result.sqlite_errorname = _NAME_OF_CODE.get(code, "")  # type: ignore[attr-defined]
    return result


def _parent_of(error: Exception) -> type[Exception]:
    if isinstance(error, (OptionError, *_PROGRAMMING)):
        return ProgrammingError
    if isinstance(error, LTXFormatError):
        return DatabaseError
    if isinstance(error, apsw.NoMemError):
        return MemoryError
    code = getattr(error, "result", None)
    if isinstance(code, int) and not isinstance(error, LitevfsError):
        return _PARENT_OF_CODE.get(code, DatabaseError)
    return OperationalError if isinstance(error, LitevfsError) else InterfaceError


_kin_of: dict[tuple[type[Exception], type[Exception]], type[Exception]] = {}


def _kin(own: type[Exception], parent: type[Exception]) -> type[Exception]:
    """A class that is both; pickled by its parts, as no module holds it."""

    def reduce(self: Exception) -> tuple[Any, ...]:
        return _rebuilt, (own, parent, self.args, self.__dict__)

    if (own, parent) not in _kin_of:
        attributes = {"__module__": own.__module__, "__reduce__": reduce}
        _kin_of[own, parent] = type(own.__name__, (own, parent), attributes)
    return _kin_of[own, parent]


def _rebuilt(
    own: type[Exception], parent: type[Exception], args: tuple[object, ...], attributes: dict[str, object]
) -> Exception:
    kin = _kin(own, parent)
    error = kin.__new__(kin)
    error.args = args
    error.__dict__.update(attributes)
    return error
