"""Recurring work in threads: each task takes a turn, and says when the next one is due.

A task has a thread of its own (`OwnThreads`), or shares a few with thousands of others (`SharedThreads`). Knows nothing
of what a turn does. In shared threads a task that hangs must not delay others: one whose last turn was slow, or whose
group has a turn that hangs now, may use half of the threads only, and for each thread that hangs another is started,
up to twice the number.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from litevfs.concurrency.condition import Condition
from litevfs.concurrency.workers import start_thread
from litevfs.errors import TransientStorageError

logger = logging.getLogger("litevfs.concurrency")

Turn = Callable[[], float | None]
"""One turn of a task; returns the seconds until the next, None if that is due when the task is woken."""

SLOW_S = 1.0
"""A turn that takes longer makes its task a slow one, until a turn takes less."""
_TICK_S = 0.25
_FAILED_PAUSE_S = 1.0


class Task(Protocol):
    """A task that runs."""

    def wake(self) -> None:
        """Let the next turn begin now if it waits for this; a pause that a turn asked for is not shortened."""
        ...

    def stop(self) -> None:
        """Begin no turn any more. Waits for nothing."""
        ...

    def join(self, timeout_s: float) -> bool:
        """After `stop`: wait until no turn is under way; returns whether that is so. Returns at once in a turn."""
        ...


class Threads(Protocol):
    """Where tasks run."""

    def start(self, turn: Turn, name: str, group: str = "") -> Task:
        """Take turns from now on, the first at once. Raises TransientStorageError if no thread can start."""
        ...


# --- a thread for each task -------------------------------------------------------------------------------------------


class OwnThreads:
    """Starts a thread for each task."""

    def start(self, turn: Turn, name: str, group: str = "") -> Task:
        """See `Threads`; the thread has the name of the task."""
        return _OwnThread(turn, name)


class _OwnThread:
    def __init__(self, turn: Turn, name: str) -> None:
        self._turn, self._name = turn, name
        self._woken, self._stopped = threading.Event(), threading.Event()
        self._thread = start_thread(self._run, name)

    def wake(self) -> None:
        self._woken.set()

    def stop(self) -> None:
        self._stopped.set()
        self._woken.set()

    def join(self, timeout_s: float) -> bool:
        if self._thread is threading.current_thread():
            return True
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._woken.clear()  # first: what happens from now on is for the next turn
            if self._stopped.is_set():
                return
            pause_s = _take(self._turn, self._name)
            if pause_s is None:
                self._woken.wait()
            else:
                self._stopped.wait(pause_s)


# --- a few threads for all --------------------------------------------------------------------------------------------


class _SharedTask:
    def __init__(self, threads: SharedThreads, turn: Turn, name: str, group: str) -> None:
        self._threads, self.turn, self.name, self.group = threads, turn, name, group
        self.is_stopped = self.is_waiting = self.is_woken = self.is_slow = False
        self.thread: int | None = None  # the thread of the turn under way
        self.began = 0.0  # monotonic; of that turn
        self.hangs = False  # that turn, for longer than SLOW_S

    def wake(self) -> None:
        self._threads.wake(self)

    def stop(self) -> None:
        self.is_stopped = True

    def join(self, timeout_s: float) -> bool:
        return self._threads.join(self, timeout_s)


class SharedThreads:
    """Up to `max_threads` daemon threads, twice as many while turns hang, for any number of tasks; one more watches.

    Turns that are due begin in the order in which they became due. Those of slow tasks use half of the threads at most.
    `group` names what a task depends on, such as a storage: while a turn hangs, all tasks of its group count as slow.
    """

    def __init__(self, max_threads: int, name: str) -> None:
        self._max_threads, self._name = max_threads, name
        self._lock = threading.Lock()
        self._called = Condition(self._lock)  # idle threads wait here, but for the one
        self._timer = Condition(self._lock)  # that waits here, until the next task becomes due
        self._ended = Condition(self._lock)  # a turn or a thread
        self._due: list[tuple[float, int, _SharedTask]] = []  # heap: when (monotonic), in which order
        self._ready: deque[_SharedTask] = deque()
        self._ready_slow: deque[_SharedTask] = deque()
        self._running: set[_SharedTask] = set()
        self._hanging: Counter[str] = Counter()  # turns that hang, by group
        self._slow_running = 0
        self._order = 0
        self._threads = self._idle = 0
        self._timer_until: float | None = None  # monotonic; None while no thread waits for the time
        self._closed = False
        self._closing = threading.Event()
        self._watch: threading.Thread | None = None
        self.peak_threads = 0
        """The most threads that there were at once."""

    def start(self, turn: Turn, name: str, group: str = "") -> Task:
        """See `Threads`. Raises RuntimeError once closed."""
        task = _SharedTask(self, turn, name, group)
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads are closed")
            if self._watch is None:
                self._watch = start_thread(self._watch_turns, f"{self._name}-watch")
            self._push(task, time.monotonic())
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
            self._called.notify_all()
            self._timer.notify_all()
            while self._threads and (left_s := deadline - time.monotonic()) > 0:
                self._ended.wait(left_s)
        if self._watch is not None:
            self._watch.join(max(0.0, deadline - time.monotonic()))

    def wake(self, task: _SharedTask) -> None:
        """See `Task`."""
        with self._lock:
            if task.is_waiting and not self._closed:
                task.is_waiting = False
                self._push(task, time.monotonic())
                self._call()
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
                self._ended.wait(left_s)
        return True

    # --- the caller of what follows has the lock, but for the threads' functions --------------------------------------

    def _push(self, task: _SharedTask, when: float) -> None:
        self._order += 1
        heapq.heappush(self._due, (when, self._order, task))
        if self._timer_until is not None and when < self._timer_until:
            self._timer.notify()

    def _call(self) -> None:
        """Have an idle thread look again, or start one."""
        if self._idle:
            self._called.notify()
        elif self._timer_until is not None:
            self._timer.notify()
        elif self._threads < min(self._max_threads + self._hanging.total(), 2 * self._max_threads):
            self._threads += 1
            self.peak_threads = max(self.peak_threads, self._threads)
            try:
                start_thread(self._work, f"{self._name}_{self._threads}")
            except TransientStorageError as error:
                self._threads -= 1
                logger.warning("%s", error)

    def _next(self) -> _SharedTask | None:
        """The task whose turn begins now; None if there is none."""
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            task = heapq.heappop(self._due)[2]
            (self._ready_slow if self._is_slow(task) else self._ready).append(task)
        if self._ready_slow and self._slow_running < max(1, self._max_threads // 2):
            return self._begin(self._ready_slow.popleft(), now, is_slow=True)
        while self._ready:
            task = self._ready.popleft()
            if not self._is_slow(task):
                return self._begin(task, now, is_slow=False)
            self._ready_slow.append(task)
        return None

    def _is_slow(self, task: _SharedTask) -> bool:
        return task.is_slow or (task.group in self._hanging)

    def _begin(self, task: _SharedTask, now: float, *, is_slow: bool) -> _SharedTask:
        task.began, task.is_slow, task.hangs = now, is_slow, False
        task.thread = threading.get_ident()
        task.is_woken = False
        self._slow_running += is_slow
        self._running.add(task)
        if self._ready or (self._due and self._timer_until is None):
            self._call()  # another thread goes on, or waits for the time
        return task

    def _end(self, task: _SharedTask, pause_s: float | None) -> None:
        now = time.monotonic()
        self._running.discard(task)
        if task.hangs:
            self._forget_hanging(task)
        self._slow_running -= task.is_slow
        task.is_slow, task.hangs, task.thread = now - task.began > SLOW_S, False, None
        self._ended.notify_all()
        if task.is_stopped:
            return
        if pause_s is not None:
            self._push(task, now + pause_s)
        elif task.is_woken:
            self._push(task, now)
        else:
            task.is_waiting = True

    def _forget_hanging(self, task: _SharedTask) -> None:
        self._hanging[task.group] -= 1
        if not self._hanging[task.group]:
            del self._hanging[task.group]

    def _work(self) -> None:
        while (task := self._wait()) is not None:
            pause_s = None if task.is_stopped else _take(task.turn, task.name)
            with self._lock:
                self._end(task, pause_s)
            del task

    def _wait(self) -> _SharedTask | None:
        """Wait for a turn; None when this thread is to end."""
        with self._lock:
            while not self._closed and self._threads <= self._max_threads + self._hanging.total():
                task = self._next()
                if task is not None:
                    return task
                if self._due and self._timer_until is None:
                    self._timer_until = self._due[0][0]
                    self._timer.wait(max(0.0, self._timer_until - time.monotonic()))
                    self._timer_until = None
                else:
                    self._idle += 1
                    self._called.wait()
                    self._idle -= 1
            self._threads -= 1
            self._ended.notify_all()
            if not self._closed:
                self._call()  # this one may have been called
            return None

    def _watch_turns(self) -> None:
        """Note turns that hang, so that others get another thread."""
        while not self._closing.wait(_TICK_S):
            with self._lock:
                oldest = time.monotonic() - SLOW_S
                for task in self._running:
                    if not task.hangs and task.began < oldest:
                        task.hangs = True
                        self._hanging[task.group] += 1
                        self._slow_running += not task.is_slow
                        task.is_slow = True
                if self._hanging and (self._ready or self._due):
                    self._call()


def _take(turn: Turn, name: str) -> float | None:
    try:
        return turn()
    except Exception:  # a turn reports its errors by itself: this is a mistake of ours, and others go on
        logger.exception("%s: unexpected error", name)
        return _FAILED_PAUSE_S
