"""Threads that thousands of tasks share (`turns.py`). Knows nothing of what a turn does.

A task that hangs must not delay others: one whose last turn was slow, or whose group has a turn that hangs now, may use
half of the threads of its kind only, and for each thread that hangs another is started, up to twice the number.

Turns of a primary keep a processor busy, which polls do not. Made by the threads of `scheduler.py`, with limits for
each kind and a look at the load, those of 400 databases began 33 ms late (median) instead of 7 on two busy cores.
"""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping

from litevfs.concurrency.condition import Condition
from litevfs.concurrency.turns import Task, Turn, take
from litevfs.concurrency.workers import start_thread
from litevfs.errors import TransientStorageError

logger = logging.getLogger("litevfs.concurrency")

SLOW_S = 1.0
"""A turn that takes longer makes its task a slow one, until a turn takes less."""
LATE_S = 0.005
"""How much too late a turn has to be for another thread to take it."""
BLOCKED_S = 0.1
"""A thread whose turn takes longer waits for something, and does not keep a processor busy."""
_HIGH_LOAD = 0.8
_TICK_S = 0.25


class _SharedTask:
    def __init__(self, threads: SharedThreads, turn: Turn, name: str, group: str, kind: _Kind) -> None:
        self._threads, self.turn, self.name, self.group, self.kind = threads, turn, name, group, kind
        self.is_stopped = self.is_waiting = self.is_woken = self.is_slow = False
        self.due = 0.0  # monotonic
        self.thread: int | None = None  # the thread of the turn under way
        self.began = 0.0  # monotonic; of that turn
        self.hangs = False  # that turn, for longer than SLOW_S

    def wake(self) -> None:
        self._threads.wake(self)

    def stop(self) -> None:
        self.is_stopped = True

    def join(self, timeout_s: float) -> bool:
        return self._threads.join(self, timeout_s)


class _Kind:
    """Tasks that may take up to `max_threads` threads, twice as many while turns of theirs hang."""

    def __init__(self, max_threads: int) -> None:
        self.max_threads = max_threads
        self.ready: deque[_SharedTask] = deque()
        self.ready_slow: deque[_SharedTask] = deque()
        self.running = self.slow_running = 0
        self.hanging: Counter[str] = Counter()  # turns that hang, by group

    @property
    def most(self) -> int:
        """How many turns there may be at once."""
        return min(self.max_threads + self.hanging.total(), 2 * self.max_threads)

    def is_slow(self, task: _SharedTask) -> bool:
        return task.is_slow or (task.group in self.hanging)

    def add(self, task: _SharedTask) -> None:
        (self.ready_slow if self.is_slow(task) else self.ready).append(task)

    def first(self) -> _SharedTask | None:
        """The task whose turn comes next, if one may begin."""
        if self.running >= self.most:
            return None
        if self.ready_slow and self.slow_running < max(1, self.max_threads // 2):
            return self.ready_slow[0]
        while self.ready:
            if not self.is_slow(self.ready[0]):
                return self.ready[0]
            self.ready_slow.append(self.ready.popleft())
        return None

    def take(self, task: _SharedTask) -> None:
        """Begin the turn of the `first` task."""
        task.is_slow = bool(self.ready_slow) and self.ready_slow[0] is task
        (self.ready_slow if task.is_slow else self.ready).popleft()
        self.running += 1
        self.slow_running += task.is_slow

    def note_hanging(self, task: _SharedTask) -> None:
        task.hangs = True
        self.hanging[task.group] += 1
        self.slow_running += not task.is_slow
        task.is_slow = True

    def end(self, task: _SharedTask) -> None:
        if task.hangs:
            self.hanging[task.group] -= 1
            if not self.hanging[task.group]:
                del self.hanging[task.group]
        self.running -= 1
        self.slow_running -= task.is_slow


class SharedThreads:
    """Up to `max_threads` daemon threads, twice as many while turns hang, for any number of tasks; one more watches.

    `max_threads` holds for each kind of task, by name: a mapping has a number for each. Turns that are due begin in the
    order in which they became due. Those of slow tasks use half of the threads of their kind at most. `group` names
    what a task depends on, such as a storage: while a turn hangs, all tasks of its kind and group count as slow.

    To hand a turn to another thread costs more than most turns. So the thread that has just ended one takes the next.
    One other thread stands by: it takes a turn that comes LATE_S too late, if the threads that have one wait for
    something else than a processor, and leaves the next thread to stand by.
    """

    def __init__(self, max_threads: int | Mapping[str, int], name: str) -> None:
        self._name = name
        numbers = {"": max_threads} if isinstance(max_threads, int) else max_threads
        self._kinds = {kind: _Kind(number) for kind, number in numbers.items()}
        self._lock = threading.Lock()
        self._idle_changed = Condition(self._lock)  # threads wait here, but for the one
        self._lead_changed = Condition(self._lock)  # that waits here, until the next task becomes due, and the one
        self._standby_changed = Condition(self._lock)  # that waits here, until a task is late
        self._ended = Condition(self._lock)  # a turn or a thread
        self._due: list[tuple[float, int, _SharedTask]] = []  # heap: when (monotonic), in which order
        self._running: set[_SharedTask] = set()
        self._order = 0
        self._threads = self._idle = self._joining = 0
        self._lead_until: float | None = None  # monotonic; None while no thread leads
        self._standby_until: float | None = None
        self._load = _Load()
        self._closed = False
        self._closing = threading.Event()
        self._watch: threading.Thread | None = None
        self.peak_threads = 0
        """The most threads that there were at once."""

    def start(self, turn: Turn, name: str, group: str = "") -> Task:
        """See `Threads`. Raises RuntimeError once closed."""
        task = _SharedTask(self, turn, name, group, self._kinds[name if name in self._kinds else ""])
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads are closed")
            if self._watch is None:
                self._watch = start_thread(self._watch_turns, f"{self._name}-watch")
            self._push(task, time.monotonic())
            if self._lead_until is None and self._standby_until is None:
                self._call()
            if not self._threads:
                raise TransientStorageError("no thread can start", hint="check the limits on processes and memory")
        return task

    def close(self, timeout_s: float = 1.0) -> None:
        """Begin no turn any more, and end the threads; waits so long for turns that are under way."""
        deadline = time.monotonic() + timeout_s
        self._closing.set()
        with self._lock:
            self._closed = True
            for changed in (self._idle_changed, self._lead_changed, self._standby_changed):
                changed.notify_all()
            while self._threads and (left_s := deadline - time.monotonic()) > 0:
                self._joining += 1
                self._ended.wait(left_s)
                self._joining -= 1
        if self._watch is not None:
            self._watch.join(max(0.0, deadline - time.monotonic()))

    def wake(self, task: _SharedTask) -> None:
        """See `Task`."""
        with self._lock:
            if task.is_waiting and not self._closed:
                task.is_waiting = False
                self._push(task, time.monotonic())
            else:
                task.is_woken = True

    def join(self, task: _SharedTask, timeout_s: float) -> bool:
        """See `Task`."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            while task in self._running and task.thread != threading.get_ident():
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._joining += 1
                self._ended.wait(left_s)
                self._joining -= 1
        return True

    # --- the caller of what follows has the lock, but for the threads' functions --------------------------------------

    def _push(self, task: _SharedTask, when: float) -> None:
        self._order += 1
        task.due = when
        heapq.heappush(self._due, (when, self._order, task))
        if self._lead_until is not None:
            if when < self._lead_until:
                self._lead_until = when
                self._lead_changed.notify()
        elif not self._running and self._standby_until is not None and when < self._standby_until:
            self._standby_until = when
            self._standby_changed.notify()

    def _call(self) -> None:
        """Have an idle thread stand by, or start one."""
        if self._idle:
            self._idle_changed.notify()
        elif self._threads < self._most_threads():
            self._threads += 1
            self.peak_threads = max(self.peak_threads, self._threads)
            try:
                start_thread(self._work, f"{self._name}_{self._threads}")
            except TransientStorageError as error:
                self._threads -= 1
                logger.warning("%s", error)

    def _most_threads(self) -> int:
        return sum(kind.most for kind in self._kinds.values())

    def _first(self, now: float) -> _SharedTask | None:
        """The task whose turn comes next, if one is due and may begin."""
        while self._due and self._due[0][0] <= now:
            task = heapq.heappop(self._due)[2]
            task.kind.add(task)
        found: _SharedTask | None = None
        for kind in self._kinds.values():
            first = kind.first()
            if first is not None and (found is None or first.due < found.due):
                found = first
        return found

    def _begin(self, task: _SharedTask, now: float) -> None:
        task.kind.take(task)
        task.began, task.hangs, task.is_woken = now, False, False
        task.thread = threading.get_ident()
        self._running.add(task)
        if self._standby_until is None:
            if self._lead_until is None:
                self._call()
        elif self._standby_until > now + 2 * LATE_S:
            self._standby_until = now + LATE_S
            self._standby_changed.notify()

    def _end(self, task: _SharedTask, pause_s: float | None) -> None:
        now = time.monotonic()
        self._running.discard(task)
        task.kind.end(task)
        task.is_slow, task.hangs, task.thread = now - task.began > SLOW_S, False, None
        if self._joining:
            self._ended.notify_all()
        if task.is_stopped:
            return
        if pause_s is not None:
            self._push(task, now + pause_s)
        elif task.is_woken:
            self._push(task, now)
        else:
            task.is_waiting = True

    def _work(self) -> None:
        is_warm = False
        while (task := self._wait(is_warm=is_warm)) is not None:
            pause_s = None if task.is_stopped else take(task.turn, task.name)
            with self._lock:
                self._end(task, pause_s)
            is_warm = True
            del task

    def _wait(self, *, is_warm: bool) -> _SharedTask | None:
        """Wait for a turn; None when this thread is to end."""
        with self._lock:
            while not self._closed and self._threads <= self._most_threads():
                now = time.monotonic()
                task = self._first(now)
                if task is not None and (is_warm or self._may_help(task, now)):
                    self._begin(task, now)
                    return task
                if is_warm and self._lead_until is None:
                    self._lead(now)
                elif self._standby_until is None:
                    is_warm = False
                    self._stand_by(now)
                else:
                    is_warm = False
                    self._idle += 1
                    self._idle_changed.wait()
                    self._idle -= 1
            self._threads -= 1
            self._ended.notify_all()
            if not self._closed:
                self._call()  # this one may have been called
            return None

    def _lead(self, now: float) -> None:
        """Wait until the next task becomes due."""
        self._lead_until = self._due[0][0] if self._due else math.inf
        self._lead_changed.wait(None if self._lead_until == math.inf else max(0.0, self._lead_until - now))
        self._lead_until = None

    def _stand_by(self, now: float) -> None:
        """Wait until a task may be late."""
        if self._running:
            until = now + LATE_S
        else:
            until = self._due[0][0] if self._due else math.inf
            until += LATE_S if self._lead_until is not None else 0.0
        self._standby_until = until
        self._standby_changed.wait(None if until == math.inf else max(0.0, until - now))
        self._standby_until = None

    def _may_help(self, task: _SharedTask, now: float) -> bool:
        """Whether a thread that stands by may take this turn."""
        if self._lead_until is not None:
            return False
        if not self._running:
            return True
        if now < task.due + LATE_S:
            return False
        are_blocked = all(other.began < now - BLOCKED_S for other in self._running)
        return are_blocked or not self._load.is_high(now)

    def _watch_turns(self) -> None:
        """Note turns that hang, so that others get another thread."""
        while not self._closing.wait(_TICK_S):
            with self._lock:
                oldest = time.monotonic() - SLOW_S
                for task in self._running:
                    if not task.hangs and task.began < oldest:
                        task.kind.note_hanging(task)
                if self._standby_until is None and self._lead_until is None:
                    self._call()


class _Load:
    """How much of a processor this process uses. Asked now and then."""

    def __init__(self) -> None:
        self._at, self._used = time.monotonic(), time.process_time()

    def is_high(self, now: float) -> bool:
        """Whether it has used most of one since the last call."""
        used = time.process_time()
        passed, share = now - self._at, used - self._used
        self._at, self._used = now, used
        return share > _HIGH_LOAD * passed
