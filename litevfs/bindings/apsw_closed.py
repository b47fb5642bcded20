"""Lets a closed connection say what to do, at some 20 ns a query while it is open.

Closing gives the object another class, whose methods only raise; an open connection runs APSW's own methods.
"""

from __future__ import annotations

from typing import Any

import apsw


class ReplicaConnection(apsw.Connection):
    """What `litevfs.connect` returns."""

    __slots__ = ()

    def close(self, force: bool = False) -> None:
        """Like that of APSW."""
        super().close(force)
        self.__class__ = _Closed  # type: ignore[assignment]  # of the same layout; what it had is no longer of use


class AsyncReplicaConnection(apsw.Connection):
    """What `litevfs.connect_async` returns."""

    __slots__ = ()

    def close(self, force: bool = False) -> None:
        """Like that of APSW."""
        super().close(force)
        self.__class__ = _AsyncClosed  # type: ignore[assignment]  # as above

    async def aclose(self) -> None:
        """Like that of APSW."""
        base: Any = super()  # typed as if APSW had no async mode
        await base.aclose()
        self.__class__ = _AsyncClosed  # type: ignore[assignment]  # as above


class _Closed(apsw.Connection):
    __slots__ = ()

    _OPENED_BY = "litevfs.connect"

    def _refuse(self, *_: object, **__: object) -> Any:
        raise apsw.ConnectionClosedError(f"The connection has been closed; open another one with {self._OPENED_BY}")

    execute: Any = _refuse
    executemany: Any = _refuse
    cursor: Any = _refuse
    pragma: Any = _refuse
    __enter__: Any = _refuse
    __aenter__: Any = _refuse


class _AsyncClosed(_Closed):
    __slots__ = ()

    _OPENED_BY = "litevfs.connect_async"
