"""Threads that make calls for others. Owns the threads; does not know what the calls do.

Unlike those of `concurrent.futures`, they never keep a process from ending: the interpreter waits for a pool of the
standard library at exit, even for a request that hangs, and before any handler that could end it is run.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Protocol, TypeVar

from litevfs.concurrency.condition import Condition
from litevfs.errors import TransientStorageError

T = TypeVar("T")

SPARE_S = 0.01
"""How long a thread waits for its next call: to start one takes as long as to open a small replica."""


def start_thread(run: Callable[[], object], name: str) -> threading.Thread:
    """A daemon thread that makes the call. Raises TransientStorageError when no thread can start."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    try:
        _start(thread)
    except RuntimeError as error:
        raise TransientStorageError(
            f"no thread for {name.partition(' ')[0]} now: {error}", hint="check the limits on processes and memory"
        ) from error
    return thread


def _start(thread: threading.Thread) -> None:
    """Start the thread. Raises RuntimeError when the system cannot start one, also when memory is short."""
    try:
        thread.start()
    except MemoryError as error:
        raise RuntimeError("can't start new thread: out of memory") from error


class SpareThreads:
    """Threads for single calls, one after the other: one that has made its call waits a moment for the next."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every thread: in a forked child, which has none of them."""
        self._changed = Condition(threading.Lock())
        self._calls: deque[tuple[Callable[[], object], str]] = deque()
        self._idle = 0

    def run(self, call: Callable[[], object], name: str) -> None:
        """Make the call, which must not raise, in a thread of that name.

        Raises TransientStorageError when no thread can start.
        """
        with self._changed:
            if self._idle > len(self._calls):
                self._calls.append((call, name))  # from here on it is made, even if Ctrl-C comes before the next line
                self._changed.notify()
                return
        start_thread(partial(self._work, [call], self._changed), name)

    def _work(self, first: list[Callable[[], object]], changed: threading.Condition) -> None:
        me = threading.current_thread()
        call = first.pop()
        while True:
            call()
            del call  # an idle thread keeps nothing alive
            with changed:
                if changed is not self._changed:  # the call has forked, and this is the child
                    return
                self._idle += 1
                changed.wait_for(self._calls.__len__, SPARE_S)
                self._idle -= 1
                if not self._calls:
                    return
                call, me.name = self._calls.popleft()


spare_threads = SpareThreads()
"""Those of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=spare_threads.reset)


class Job(Protocol):
    """What a pool makes. One of the two is called, once."""

    def run(self) -> object:
        """Do it; must not raise."""
        ...

    def drop(self) -> object:
        """Do without: the pool is shut down."""
        ...


class WorkerPool:
    """Up to `max_threads` daemon threads, which may be changed, as they are needed. Safe to use from many threads."""

    def __init__(self, max_threads: int, name: str) -> None:
        self.max_threads = max_threads
        self._name = name
        self._waiting: deque[Job] = deque()  # empty while a thread is idle
        self._idle: list[SimpleQueue[Job | None]] = []  # of each idle thread, where it waits for its next job
        self._threads = 0
        self._fresh = 0  # of them, those that are about to take their first job
        self._closed = False
        self._lock = threading.RLock()  # a signal's handler may submit, too

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Make the call in one of the threads, after those submitted before it.

        Raises RuntimeError when the pool is shut down, or when there is no thread and none can be started.
        """
        job = _Call(call)
        self.start([job])
        return job

    def start(self, jobs: Sequence[Job]) -> None:
        """Run jobs as `submit` makes calls, for little more than the price of one. Raises what that raises."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is shut down")
            lacking = len(self._waiting) + len(jobs) - len(self._idle)
            if lacking > self._fresh and self._threads < self.max_threads:
                self._start_thread()  # which starts the next one
            for job in jobs:
                if self._idle:
                    self._idle[-1].put(job)  # from here on it is run, even if Ctrl-C comes before the next line
                    self._idle.pop()
                else:
                    self._waiting.append(job)

    @property
    def has_room(self) -> bool:
        """Whether a call that is submitted now is made at once."""
        with self._lock:
            return not self._closed and (bool(self._idle) or self._threads < self.max_threads)

    def shutdown(self) -> None:
        """Cancel the calls that wait, and end the threads, each after the call it is making. Waits for none of them."""
        with self._lock:
            self._closed = True
            jobs = list(self._waiting)
            self._waiting.clear()
            while self._idle:
                self._idle[-1].put(None)  # first: after Ctrl-C between the two lines the thread ends all the same
                self._idle.pop()
        for job in jobs:
            job.drop()

    def _start_thread(self) -> None:
        with self._lock:
            if self._threads >= self.max_threads:  # another thread has started the last one meanwhile
                return
            self._threads += 1
            self._fresh += 1
            name = f"{self._name}_{self._threads}"
        try:
            _start(threading.Thread(target=self._run, name=name, daemon=True))
        except BaseException as error:  # after Ctrl-C it may run all the same: then there is one more than is counted
            with self._lock:
                self._threads -= 1
                self._fresh -= 1
                # If no further thread can start, the running ones make the call, if there are any.
                if not self._threads or not isinstance(error, RuntimeError):
                    raise

    def _run(self) -> None:
        box: SimpleQueue[Job | None] = SimpleQueue()
        with self._lock:
            self._fresh -= 1
            lacks_more = len(self._waiting) - 1 > self._fresh and self._threads < self.max_threads
        if lacks_more:
            self._start_thread()
        while (job := self._next(box)) is not None:
            job.run()
            del job  # an idle thread keeps no result alive

    def _next(self, box: SimpleQueue[Job | None]) -> Job | None:
        """The job that waits longest; None when the pool is shut down."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            if self._closed:
                return None
            self._idle.append(box)
        return box.get()


class _Call(Future[T]):
    """A call whose result is this future's."""

    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__()
        self._call: Callable[[], T] | None = call

    def run(self) -> None:
        """See `Job`."""
        call, self._call = self._call, None
        if call is None or not self.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 (handed to the waiting thread)
            self.set_exception(error)
            del self  # its error refers to this frame: avoid a reference cycle
        else:
            self.set_result(result)

    def drop(self) -> None:
        """See `Job`."""
        self.cancel()
