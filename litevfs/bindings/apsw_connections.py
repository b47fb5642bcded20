"""Connections of APSW whose errors say what to do: the message of SQLite or APSW, then a hint.

This makes a hot query about 5 % slower. Errors of rows after the first keep SQLite's message: a call for each row would
cost much more. Closing gives a connection another class, whose methods only raise.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import apsw

from litevfs.errors import HINT_FULL, HINT_OTHER_THREAD, HINT_READ_ONLY

_HINTS: dict[type[BaseException], str] = {
    apsw.ReadOnlyError: HINT_READ_ONLY,
    apsw.ThreadingViolationError: HINT_OTHER_THREAD,
    apsw.FullError: HINT_FULL,
}


def add_hint(error: apsw.Error) -> None:
    """Append to the message of an error what to do, where that is known. Errors of litevfs have a hint of their own."""
    hint, message = _HINTS.get(type(error)), str(error)
    if hint is not None and hint not in message:
        error.args = (f"{message}; hint: {hint}", *error.args[1:])


@contextmanager
def _hints() -> Generator[None]:
    try:
        yield
    except apsw.Error as error:
        add_hint(error)
        raise


_execute, _executemany = apsw.Connection.execute, apsw.Connection.executemany
# Called by these names, with arguments by position: super(), or keywords that are always there, would take as long
# again.


class ReplicaConnection(apsw.Connection):
    """What `litevfs.connect` returns.

    Its cursors are APSW's own. Of a cursor with methods in Python, the traceback of an error may leave the last
    reference to the garbage collector; where that frees it in another thread while the connection is busy, APSW 3.54
    loses count of its references, and the process crashes.
    """

    __slots__ = ()

    def execute(self, statements: Any, bindings: Any = None, **keywords: Any) -> Any:
        """Like that of APSW."""
        try:
            if keywords:
                return _execute(self, statements, bindings, **keywords)
            return _execute(self, statements, bindings)
        except apsw.Error as error:
            del self  # or whatever keeps the error would keep the connection
            add_hint(error)
            raise

    def executemany(self, *arguments: Any, **keywords: Any) -> Any:
        """Like that of APSW."""
        try:
            return _executemany(self, *arguments, **keywords)
        except apsw.Error as error:
            del self  # as above
            add_hint(error)
            raise

    def pragma(self, *arguments: Any, **keywords: Any) -> Any:
        """Like that of APSW."""
        with _hints():
            return super().pragma(*arguments, **keywords)

    def blob_open(self, *arguments: Any, **keywords: Any) -> Any:
        """Like that of APSW. The errors of the blob say what to do, too."""
        with _hints():
            return _blobs()(super().blob_open(*arguments, **keywords))

    def close(self, force: bool = False) -> None:
        """Like that of APSW."""
        with _hints():
            super().close(force)
        self.__class__ = _Closed  # type: ignore[assignment]  # of the same layout; what it had is no longer of use


@cache
def _blobs() -> type:
    from litevfs.bindings.blobs import hinting_blobs  # few programs open blobs

    return hinting_blobs(apsw.Blob, apsw.Error, add_hint)


class AsyncReplicaConnection(apsw.Connection):
    """What `litevfs.connect_async` returns."""

    __slots__ = ()

    def execute(self, *arguments: Any, **keywords: Any) -> Any:
        """Like that of APSW: in the event loop an awaitable, in the connection's own thread a cursor."""
        with _hints():
            started: Any = _execute(self, *arguments, **keywords)
        return started if isinstance(started, apsw.Cursor) else _hinting(started)

    def executemany(self, *arguments: Any, **keywords: Any) -> Any:
        """Like `execute`."""
        with _hints():
            started: Any = _executemany(self, *arguments, **keywords)
        return started if isinstance(started, apsw.Cursor) else _hinting(started)

    def close(self, force: bool = False) -> None:
        """Like that of APSW."""
        super().close(force)
        self.__class__ = _AsyncClosed  # type: ignore[assignment]  # as above

    async def aclose(self) -> None:
        """Like that of APSW."""
        base: Any = super()  # typed as if APSW had no async mode
        await base.aclose()
        self.__class__ = _AsyncClosed  # type: ignore[assignment]  # as above


async def _hinting(started: Awaitable[Any]) -> Any:
    try:
        with _hints():
            return await started
    except RuntimeError as error:
        if "attached to a different loop" in str(error):  # asyncio's words
            message = "the connection belongs to another event loop; hint: open one in each with litevfs.connect_async"
            raise RuntimeError(message) from error
        raise


class _Closed(apsw.Connection):
    __slots__ = ()

    _OPENED_BY = "litevfs.connect"

    def _refuse(self, *_: object, **__: object) -> Any:
        raise apsw.ConnectionClosedError(f"The connection has been closed; open another one with {self._OPENED_BY}")

    execute: Any = _refuse
    executemany: Any = _refuse
    cursor: Any = _refuse
    pragma: Any = _refuse
    blob_open: Any = _refuse
    __enter__: Any = _refuse
    __aenter__: Any = _refuse


class _AsyncClosed(_Closed):
    __slots__ = ()

    _OPENED_BY = "litevfs.connect_async"
