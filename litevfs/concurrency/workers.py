"""Threads that make calls for others. Owns the threads; does not know what the calls do.

Unlike those of `concurrent.futures`, they never keep a process from ending: the interpreter waits for a pool of the
standard library at exit, even for a request that hangs, and before any handler that could end it is run.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

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


class WorkerPool:
    """Up to `max_threads` daemon threads, which may be changed, as they are needed. Safe to use from many threads."""

    def __init__(self, max_threads: int, name: str) -> None:
        self.max_threads = max_threads
        self._name = name
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads = 0
        self._idle = 0
        self._closed = False
        self._changed = Condition()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Make the call in one of the threads, after those submitted before it.

        Raises RuntimeError when the pool is shut down, or when there is no thread and none can be started.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool is shut down")
            if self._idle <= len(self._waiting) and self._threads < self.max_threads:
                self._start_thread()
            self._waiting.append((future, call))
            self._changed.notify()
        return future

    @property
    def has_room(self) -> bool:
        """Whether a call that is submitted now is made at once."""
        with self._changed:
            return not self._closed and len(self._waiting) < self._idle + self.max_threads - self._threads

    def shutdown(self) -> None:
        """Cancel the calls that wait, and end the threads, each after the call it is making. Waits for none of them."""
        with self._changed:
            self._closed = True
            cancelled = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for future, _ in cancelled:
            future.cancel()

    def _start_thread(self) -> None:
        self._threads += 1
        try:
            _start(threading.Thread(target=self._run, name=f"{self._name}_{self._threads}", daemon=True))
        except RuntimeError:  # no further thread can start: the running ones make the call, if there are any
            self._threads -= 1
            if not self._threads:
                raise

    def _run(self) -> None:
        while (next_call := self._next_call()) is not None:
            _make(*next_call)
            del next_call  # an idle thread keeps no result alive

    def _next_call(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """The call that waits longest; None when the pool is shut down."""
        with self._changed:
            self._idle += 1
            try:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                return self._waiting.popleft() if self._waiting else None
            finally:
                self._idle -= 1


def _make(future: Future[T], call: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 (handed to the waiting thread)
        future.set_exception(error)
        del future  # its error refers to this frame: avoid a reference cycle
    else:
        future.set_result(result)
