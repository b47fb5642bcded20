"""Repeats thousands of calls, each at its own pace, with a bounded number of threads. Does not know what they do.

One thread makes call after call. It stands alone as long as the calls are quick: a second thread watches, and takes
the next call only when that is late. A call that hangs is given up: its thread no longer counts, and another one takes
its place. Calls of one place (a storage) have a share of the threads, so that a place that hangs leaves threads to the
others. With the last call the threads end. Work that may be woken, and that nothing gives up, takes turns (`turns.py`).
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from litevfs.concurrency.condition import Condition
from litevfs.concurrency.workers import start_thread
from litevfs.errors import TransientStorageError

logger = logging.getLogger("litevfs.concurrency.scheduler")

MAX_THREADS = 24
"""Calls under way at once, those that were given up not counted."""
PLACE_THREADS = 16
"""Calls of one place under way at once."""
GIVEN_UP_S = 2.0
"""A call that takes longer hangs: it no longer counts."""
MAX_HANGING = 4
"""Calls of one place that may hang at once; its other calls then wait for one of them to end."""
MAX_ALL_HANGING = 128
"""Calls that may hang at once, of all places."""
LATE_S = 0.01
"""The watching thread takes a call that is so late, if no call has begun meanwhile."""
TOO_LATE_S = 0.1
"""It takes a call that is so late in any case."""
MANY, REST_S = 100, 0.005
"""Of so many calls or more, those that are due within such a time are made together: falling asleep costs as much as
a quick call."""
LINGER_S = 5.0
"""How long a thread without work stays."""


@dataclass(slots=True, eq=False)
class _Place:
    """The storage that calls go to."""

    key: Hashable
    calls: int = 0
    running: int = 0  # without those that hang
    hanging: int = 0
    parked: deque[Repeated] = field(default_factory=deque)  # due, and the place has no room for them


@dataclass(slots=True, eq=False)
class Repeated:
    """A call that the scheduler repeats. `call` returns after how many seconds from its begin it is due again; None:
    never. It must not raise.
    """

    call: Callable[[], float | None]
    place: _Place
    due: float  # by the scheduler's clock
    began: float | None = None  # while it runs
    last: float = -math.inf  # when it began last
    hangs: bool = False
    is_over: bool = False
    is_awaited: bool = False


class Scheduler:
    """Makes repeated calls. Safe to use from many threads; a forked child begins with none (see `reset`)."""

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`name` is that of the threads."""
        self._name = name
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forget every call and thread: in a forked child, which has none of the threads."""
        lock = threading.Lock()
        self._changed = Condition(lock)  # of the threads that watch
        self._spare = Condition(lock)  # of threads that wait to be needed
        self._ended = Condition(lock)  # of callers that wait for a call's end
        self._heap: list[tuple[float, int, Repeated]] = []
        self._order = itertools.count()
        self._live: set[Repeated] = set()
        self._threads: set[threading.Thread] = set()
        self._places: dict[Hashable, _Place] = {}
        self._running: dict[Repeated, None] = {}  # those that count, by their begin
        self._hanging = 0
        self._last_begin = -math.inf
        self._watching = self._sparing = self._called = 0
        self._front: object = None  # the thread that takes the next call on time

    @property
    def threads(self) -> int:
        """Threads that run or wait now."""
        return self._watching + self._sparing + len(self._running) + self._hanging

    def add(self, call: Callable[[], float | None], first_s: float, place: Hashable) -> Repeated:
        """Make the call in `first_s` seconds and then again and again. Raises TransientStorageError: no thread."""
        with self._changed:
            began = self._clock()
            where = self._places.setdefault(place, _Place(place))
            repeated = Repeated(call, where, began + first_s, last=began)
            return self._admit(repeated)

    def pace(self, repeated: Repeated, pause_s: float) -> None:
        """The call is due so many seconds after its last begin. Without effect while it is being made."""
        with self._changed:
            if repeated in self._live and repeated.began is None:
                repeated.due = repeated.last + pause_s
                self._push(repeated)

    def remove(self, repeated: Repeated, timeout_s: float, *, waits: bool = True) -> None:
        """Make the call no more; waits up to `timeout_s` for one under way, and for the threads if it was the last.

        Idempotent.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._drop(repeated)
            repeated.is_awaited = True
            while waits and repeated.began is not None and (left_s := deadline - time.monotonic()) > 0:
                self._ended.wait(left_s)
            is_last = waits and not (self._live or self._running or self._hanging)
            ending = list(self._threads) if is_last else []
        for thread in ending:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    # --- what is due (all with the lock) ------------------------------------------------------------------------------

    def _admit(self, repeated: Repeated) -> Repeated:
        try:
            self._live.add(repeated)
            repeated.place.calls += 1
            self._push(repeated)
            self._ensure_watch()
            return repeated
        except BaseException as error:  # also Ctrl-C
            if not isinstance(error, TransientStorageError) or not self.threads:
                self._drop(repeated)
                raise
            return repeated  # other threads make it

    def _push(self, repeated: Repeated, *, notifies: bool = True) -> None:
        if len(self._heap) > 64 + 2 * len(self._live):  # mostly entries of calls that are over or have another pace
            self._heap = [entry for entry in self._heap if entry[0] == entry[2].due and entry[2] in self._live]
            heapq.heapify(self._heap)
        is_first = not self._heap or repeated.due < self._heap[0][0]
        heapq.heappush(self._heap, (repeated.due, next(self._order), repeated))
        if notifies and is_first and self._watching:
            self._changed.notify_all()

    def _drop(self, repeated: Repeated) -> None:
        repeated.is_over = True
        if repeated not in self._live:
            return
        self._live.discard(repeated)
        place = repeated.place
        place.calls -= 1
        if place.calls <= 0 and self._places.get(place.key) is place:
            del self._places[place.key]
        if not self._live:
            self._heap.clear()
            self._changed.notify_all()
            self._spare.notify_all()

    def _first(self) -> Repeated | None:
        """The call that is due first and may be made; calls whose place has no room are parked there."""
        while self._heap:
            due, _, repeated = self._heap[0]
            if repeated.is_over or repeated.began is not None or repeated.due != due:
                heapq.heappop(self._heap)
            elif self._has_room(repeated.place) or due > self._clock():
                return repeated
            else:
                heapq.heappop(self._heap)
                repeated.place.parked.append(repeated)
        return None

    def _has_room(self, place: _Place) -> bool:
        most = MAX_HANGING if self._hanging < MAX_ALL_HANGING else 1
        return place.running < PLACE_THREADS and place.hanging < most

    def _give_up(self, now: float) -> float:
        """Count calls that hang no longer. Returns when the next one will hang."""
        while self._running:
            repeated = next(iter(self._running))
            assert repeated.began is not None
            if now < repeated.began + GIVEN_UP_S:
                return repeated.began + GIVEN_UP_S
            del self._running[repeated]
            repeated.hangs = True
            repeated.place.running -= 1
            repeated.place.hanging += 1
            self._hanging += 1
            self._unpark(repeated.place)
        return math.inf

    def _unpark(self, place: _Place) -> None:
        room = PLACE_THREADS - place.running
        while place.parked and room > 0:
            repeated = place.parked.popleft()
            if not repeated.is_over:
                self._push(repeated, notifies=False)
                room -= 1

    def _begin(self, repeated: Repeated, now: float) -> None:
        heapq.heappop(self._heap)
        repeated.began = repeated.last = self._last_begin = now
        repeated.place.running += 1
        self._running[repeated] = None

    def _end(self, repeated: Repeated, pause_s: float | None) -> None:
        if repeated.hangs:
            repeated.hangs = False
            repeated.place.hanging -= 1
            self._hanging -= 1
        elif repeated in self._running:
            del self._running[repeated]
            repeated.place.running -= 1
        repeated.began = None
        if repeated.is_awaited:
            self._ended.notify_all()
        self._unpark(repeated.place)
        if pause_s is None:
            self._drop(repeated)
        elif not repeated.is_over:
            repeated.due = repeated.last + pause_s
            self._push(repeated, notifies=False)

    # --- the threads --------------------------------------------------------------------------------------------------

    def _ensure_watch(self) -> None:
        """A thread watches while calls are waiting. Raises TransientStorageError when none can start."""
        if self._watching or self._called or not self._live:
            return
        if self._sparing:
            self._spare.notify()
        else:
            generation = self._live
            start_thread(lambda: self._work(generation), self._name)
        self._called = 1  # last: Ctrl-C before this costs a thread too many, not one too few

    def _work(self, generation: set[Repeated]) -> None:
        self._threads.add(threading.current_thread())
        done: tuple[Repeated, float | None] | None = None
        while (repeated := self._next(generation, done)) is not None:
            pause_s = None
            try:
                repeated.last = self._clock()  # this thread may have waited since
                pause_s = repeated.call()
            except BaseException:  # a thread that ended here would be counted for ever
                logger.exception("a repeated call failed, and is not made again")
            done = repeated, pause_s
            del repeated

    def _next(self, generation: set[Repeated], done: tuple[Repeated, float | None] | None) -> Repeated | None:
        """The call to make now, after the one that is `done`; waits for it. None: the thread is needed no more.

        Between two calls a thread is either counted as running or as waiting: else another one would be started.
        """
        with self._changed:
            if done is not None and self._live is generation:  # else this process was forked meanwhile
                self._end(*done)
            is_warm = done is not None
            del done
            while self._live:
                if not is_warm:  # a new thread, or one that was spare: the one called for, which may come late
                    self._called = 0
                if self._watching < 2:
                    repeated = self._watch(is_warm)
                    if repeated is not None:
                        return repeated
                elif not self._stay():
                    break
                is_warm = False
            self._called = 0
            self._threads.discard(threading.current_thread())
            return None

    def _stay(self) -> bool:
        """Wait to be needed; False if that takes too long."""
        self._changed.notify_all()  # what is due first may have changed
        self._sparing += 1
        try:
            return self._spare.wait(LINGER_S) or self._watching < 2
        finally:
            self._sparing -= 1

    def _watch(self, is_warm: bool) -> Repeated | None:
        """Wait for the next call that is due; None if all calls are over meanwhile.

        A thread that is warm, as it has just made a call, takes over from the one that would make the next one.
        """
        self._watching += 1
        me = object()
        if is_warm:
            self._front = me
        try:
            while self._live:
                self._front = self._front or me
                now = self._clock()
                wake = self._give_up(now)
                first = self._first()
                if first is not None and len(self._running) < MAX_THREADS:
                    is_free = is_warm or (self._front is me and not self._running)
                    begin = first.due if is_free else self._late(first.due)
                    if begin <= now:
                        self._begin(first, now)
                        return first
                    rest_s = REST_S if len(self._live) >= MANY else 0.0
                    wake = min(wake, max(begin, now + rest_s))
                self._changed.wait(None if wake == math.inf else max(0.0, wake - now))
                is_warm = False
            return None
        finally:
            self._watching -= 1
            if self._front is me:
                self._front = None
            if not self._watching and len(self._live) > 1:
                self._try_to_ensure_watch()

    def _late(self, due: float) -> float:
        """When a thread beside others that make calls may make the one that is due at `due`."""
        return max(due + LATE_S, min(self._last_begin + LATE_S, due + TOO_LATE_S))

    def _try_to_ensure_watch(self) -> None:
        try:
            self._ensure_watch()
        except TransientStorageError as error:
            logger.info("polling with the threads that there are: %s", error)


scheduler = Scheduler("litevfs-poll")
"""The polls of every replica in this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=scheduler.reset)
