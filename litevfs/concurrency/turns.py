"""Recurring work in threads: each task takes a turn, and says when the next one is due.

A task has a thread of its own (`OwnThreads`), or shares a few with thousands of others (`shared_turns.py`). Knows
nothing of what a turn does. Calls that only repeat, and may be given up when they hang, are for `scheduler.py`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from litevfs.concurrency.workers import start_thread

logger = logging.getLogger("litevfs.concurrency")

Turn = Callable[[], float | None]
"""One turn of a task; returns the seconds until the next, None if that is due when the task is woken."""

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
            pause_s = take(self._turn, self._name)
            if pause_s is None:
                self._woken.wait()
            else:
                self._stopped.wait(pause_s)


def take(turn: Turn, name: str) -> float | None:
    """Take a turn, and log what it raises; returns the seconds until the next."""
    try:
        return turn()
    except Exception:  # a turn reports its errors by itself: this is a mistake of ours, and others go on
        logger.exception("%s: unexpected error", name)
        return _FAILED_PAUSE_S
