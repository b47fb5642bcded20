"""A limit on calls a second that many owners share fairly. Does not know what the calls do.

In no second are more calls let through than the limit allows. While calls wait, owners take turns: one that has many
waiting does not hold up another that has one.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary, WeakValueDictionary

from litevfs.concurrency.condition import Condition

SECOND_S = 1.0


class RateLimit:
    """Lets `per_s` calls a second through. Safe to use from many threads."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Below one call a second, calls are as far apart as `per_s` says."""
        self._most = max(1, int(per_s))
        self._window_s = SECOND_S * self._most / per_s
        self._clock = clock
        self._changed = Condition()
        self._passed: deque[float] = deque(maxlen=self._most)  # when the last calls were let through
        self._waiting: list[tuple[int, int, Hashable]] = []  # (turn, order, owner), a heap
        self._order = itertools.count()
        self._turn = 0  # of the call that was let through last
        self._turns: WeakKeyDictionary[Hashable, int] = WeakKeyDictionary()  # of each owner's last call

    def take(self, owner: Hashable, timeout_s: float, is_over: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the owner's turn; False if it does not come in time, or `is_over()` meanwhile (see `wake`)."""
        deadline = self._clock() + timeout_s
        with self._changed:
            turn = max(self._turn, self._turns.get(owner, 0)) + 1
            mine = (turn, next(self._order), owner)
            self._turns[owner] = turn
            heapq.heappush(self._waiting, mine)
            return self._wait(mine, deadline, is_over)

    def _wait(self, mine: tuple[int, int, Hashable], deadline: float, is_over: Callable[[], bool]) -> bool:
        try:
            while not is_over():
                now = self._clock()
                free = self._passed[0] + self._window_s if len(self._passed) == self._most else now
                is_first = self._waiting[0] is mine
                if is_first and free <= now:
                    self._passed.append(now)
                    self._turn = mine[0]
                    return True
                if now >= deadline:
                    return False
                self._changed.wait((min(free, deadline) if is_first else deadline) - now)
            return False
        finally:
            self._waiting.remove(mine)
            heapq.heapify(self._waiting)
            self._changed.notify_all()

    def wake(self) -> None:
        """Let calls that wait ask whether they are over."""
        with self._changed:
            self._changed.notify_all()


_limits: WeakValueDictionary[float, RateLimit] = WeakValueDictionary()
_lock = threading.Lock()


def rate_limit_of(per_s: float) -> RateLimit:
    """The limit of this process for those that ask for so many calls a second."""
    with _lock:
        limit = _limits.get(per_s)
        if limit is None:
            limit = _limits[per_s] = RateLimit(per_s)
        return limit


def _forget_in_child() -> None:
    """Threads of the parent may have held the locks."""
    global _lock
    _lock = threading.Lock()
    _limits.clear()


os.register_at_fork(after_in_child=_forget_in_child)
