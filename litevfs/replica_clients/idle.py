"""When a connection was last used, and how long it may rest. Knows no connection.

Routers and load balancers forget a connection after about a minute without a byte, and tell neither side: a request on
it gets neither answer nor error until its time limit. The same happens when a process or its machine is frozen.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from litevfs.concurrency.clock import now_s

MAX_IDLE_S = 50.0
"""A connection that was not used for so long is not used again."""


class LastUse:
    """When something was used last, by the wall clock too: no other one is sure to count the time for which a virtual
    machine, or a function in the cloud, is paused. A wall clock that is put forward makes it seem older.
    """

    __slots__ = ("_clocks", "_then")

    def __init__(self, clocks: tuple[Callable[[], float], ...] = (now_s, time.time)) -> None:
        self._clocks = clocks
        self.note()

    def note(self) -> None:
        """It is used now."""
        self._then = [clock() for clock in self._clocks]

    @property
    def is_long_ago(self) -> bool:
        """Whether it has rested for `MAX_IDLE_S` or longer."""
        return any(clock() - then >= MAX_IDLE_S for clock, then in zip(self._clocks, self._then, strict=True))
