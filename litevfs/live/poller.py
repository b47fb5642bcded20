"""The thread that asks a replica to refresh. Owns its pace, its end and its log; not what a refresh does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from litevfs.concurrency.retry import Backoff
from litevfs.concurrency.workers import start_thread
from litevfs.errors import LitevfsError, StorageClosedError, StorageError

logger = logging.getLogger("litevfs.live.poller")


LONGEST_PAUSE_S = 10.0
"""Longest pause between refreshes while the storage answers but has no complete newer state: one may come any time."""


class Poller:
    """Calls `refresh` every `interval_s` seconds until closed; after failures less often, never more often.

    The callback returns False when its owner is gone, which ends the thread. Raises TransientStorageError when no
    thread can start.
    """

    close_timeout_s = 0.8

    def __init__(self, refresh: Callable[[], bool], interval_s: float, name: str) -> None:
        self.interval_s = interval_s
        self._refresh = refresh
        self._wake = threading.Event()
        self._closed = False
        self._thread = start_thread(self._run, f"litevfs-poll {name}")

    def set_interval(self, interval_s: float) -> None:
        """Change the pace, from now on."""
        self.interval_s = interval_s
        self._wake.set()

    def close(self) -> None:
        """End the thread; waits a bounded time for a refresh under way. Idempotent."""
        self._closed = True
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(self.close_timeout_s)

    def _run(self) -> None:
        backoff = Backoff()
        last = time.monotonic()
        pause = self.interval_s
        while self._wait_until(last, pause):
            last = time.monotonic()
            try:
                if not self._refresh():
                    return
                backoff.reset()
                pause = self.interval_s
            except StorageClosedError:
                return
            except LitevfsError as error:
                logger.debug("refresh failed: %s", error)
                pause = backoff.after(error)
                if not isinstance(error, StorageError):  # the storage answers, and may have the missing files later
                    pause = min(pause, LONGEST_PAUSE_S)
                pause = max(self.interval_s, pause)
            except Exception:
                # A defect must not end the thread silently: readers would see an old state for ever.
                logger.exception("refresh failed unexpectedly")
                pause = max(self.interval_s, backoff.next_s())

    def _wait_until(self, last: float, pause: float) -> bool:
        """Wait until `pause` seconds after `last` (a monotonic time); False when closed meanwhile."""
        while not self._closed:
            remaining = pause - (time.monotonic() - last)
            if remaining <= 0:
                return True
            if self._wake.wait(remaining):
                self._wake.clear()
                pause = self.interval_s
        return False
