"""The capture part of a sync: one for all places of a database. Owns its lock, its turns and what they found.

A replica that cannot be reached, or takes long, never keeps this from its work (see `place.py` for uploads).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from litevfs.concurrency.condition import Condition
from litevfs.replicate import limits
from litevfs.replicate.attempts import LOCK_TIMEOUT_S, Said, attempt, holding
from litevfs.replicate.capture import Capture
from litevfs.replicate.content import Content
from litevfs.replicate.database import SourceDatabase
from litevfs.replicate.joining import ReplicaEnd
from litevfs.replicate.pace import Pace
from litevfs.replicate.state import State, StateFolder
from litevfs.replicate.status import ClockWatch
from litevfs.replicate.upload_queue import UploadQueue

T = TypeVar("T")

_SETTLE_INTERVAL_S = 0.1
"""How long a finished checkpoint of the application may have to wait for our read transaction to move on."""
_FIRST_LOOKS_S = 2.0
"""How long a first copy of the database waits for places that have not answered yet."""
_RETRY_S = 1.0
"""A failed capture is repeated so much later, or at the next sync, if that comes first."""


class FirstLooks:
    """Waits, once and for a moment, until each place was looked at: so all begin with one file if they have to."""

    def __init__(self) -> None:
        self._missing: set[str] = set()
        self._changed = Condition()
        self._until: float | None = None  # monotonic

    def expect(self, url: str) -> None:
        """Note a place whose first look has to come."""
        self._missing.add(url)

    def done(self, url: str) -> None:
        """Note that a place was looked at, or could not be."""
        if url in self._missing:
            with self._changed:
                self._missing.discard(url)
                self._changed.notify_all()

    def wait(self, deadline: float) -> None:
        """Return when all were looked at, at the `deadline` (monotonic), or a moment after the first call."""
        if not self._missing:
            return
        with self._changed:
            self._until = self._until or time.monotonic() + _FIRST_LOOKS_S
            seconds = min(deadline, self._until) - time.monotonic()
            self._changed.wait_for(lambda: not self._missing, max(0.0, seconds))


class Capturing:
    """Captures the database at `path` for threads and callers, one at a time. `closed` refuses all of them.

    `clock_ms` tells the Unix time in milliseconds.
    """

    def __init__(
        self,
        path: Path,
        capture: Capture,
        sync_interval_s: float,
        clock_ms: Callable[[], int],
        closed: threading.Event,
    ) -> None:
        self.path, self.capture, self.lock = path, capture, threading.Lock()
        self._sync_interval_s, self._clock_ms, self._closed = sync_interval_s, clock_ms, closed
        self._said = Said()
        self._clock_watch = ClockWatch(path)
        self._next_sync, self._captured_begun = time.monotonic(), 0  # when (monotonic); `begun` at the last capture
        self._captured_since = 0.0  # when the last capture that succeeded began; monotonic
        self.first_looks = FirstLooks()
        self.begun = 0
        """How often a history was begun with the whole database."""
        self.wanted_snapshot: str | None = None
        """Why the whole database is to be captured."""
        self.captured_ms: int | None = None
        """Unix time at which everything committed before was captured."""
        self.error: str | None = None
        """Of the last turn, None after a success."""
        self.pace = Pace()
        """Many databases in a process share its time, and this."""
        self.captured: Callable[[], object] = lambda: None
        """Called in a turn after each capture, also after one that failed."""

    @property
    def txid(self) -> int:
        """The newest TXID made, 0 before the first."""
        return self.capture.state.txid if self.capture.state else 0

    def step(self, deadline: float, since: float | None = None) -> int:
        """Capture what is new; returns the newest TXID. A capture that began after `since` (monotonic) will do."""
        if self.capture.reason is not None:  # the whole database: let all that need it have the same file
            self.first_looks.wait(deadline)
        with self.holding(deadline):
            is_due = self.capture.reason is not None or self.wanted_snapshot is not None
            if since is not None and not is_due and self._captured_since >= since:
                return self.txid
            began, captured_ms = time.monotonic(), self._clock_ms()
            reason, self.wanted_snapshot = self.wanted_snapshot, None
            if reason is not None:
                self.capture.want_whole_database(reason)
            state = self.capture.step()
            self.captured_ms, self._captured_since = captured_ms, began
            self._clock_watch.compare(state.timestamp_ms - captured_ms)
            return state.txid

    def read_captured(self, use: Callable[[Content], T]) -> tuple[int, T]:
        """Capture what is new; returns the TXID, and what `use` makes of the database in just that state."""
        with self.holding(time.monotonic() + LOCK_TIMEOUT_S):
            return self.capture.read_captured(use)

    def keeps_state(self, deadline: float) -> bool:
        """See `Capture.keeps_state`."""
        with self.holding(deadline):
            return self.capture.keeps_state()

    def begin(self, queue: UploadQueue, end: ReplicaEnd, reason: str, deadline: float) -> None:
        """See `Capture.begin`."""
        with self.holding(deadline):
            self.capture.begin(queue, end, reason)
            self.captured_ms = None
        self.begun += 1

    def go_on(
        self, begin: Callable[[StateFolder, State | None, SourceDatabase], State | None], deadline: float
    ) -> bool:
        """See `Capture.go_on`."""
        with self.holding(deadline):
            goes_on = self.capture.go_on(begin)
        self.begun += goes_on
        return goes_on

    def turn(self) -> float:
        """Capture if a sync is due, else make way for checkpoints; returns the seconds until the next turn."""
        now = time.monotonic()
        if now < self._next_sync and self._captured_begun == self.begun:
            attempt(self.settle, self.path, self._closed)
            return self.pause(self._next_sync)
        self._captured_begun = self.begun
        error = attempt(self.step_if_known, self.path, self._closed, self._said)
        if error is None:
            self._said.forget()
        interval_s = self._sync_interval_s * self.pace.stretch
        self._next_sync = now + (interval_s if error is None else min(interval_s, _RETRY_S))
        self.error = None if error is None else str(error)
        self.captured()
        return self.pause(self._next_sync)

    def step_if_known(self, deadline: float) -> None:
        """Capture what is new, if there is a state to continue."""
        if self.capture.state is not None:
            self.step(deadline)

    def step_deleted(self, deadline: float) -> None:
        """See `Capture.step_deleted`."""
        with self.holding(deadline):
            self.capture.step_deleted()

    def settle(self, deadline: float) -> None:
        """See `Capture.settle`."""
        with self.holding(deadline):
            self.capture.hold.patience_s = self.pace.patience_s
            self.capture.settle()

    def pause(self, next_sync: float) -> float:
        """Seconds until the next turn; the next sync is due at `next_sync` (monotonic)."""
        remaining = max(0.0, next_sync - time.monotonic())
        pause_s = limits.MOVE_UP_INTERVAL_S if self.capture.hold.is_in_the_way else _SETTLE_INTERVAL_S
        return min(remaining, max(pause_s, self.pace.shortest_pause_s))

    def holding(self, deadline: float) -> AbstractContextManager[None]:
        """Hold the lock; see `holding`."""
        return holding(self.lock, deadline, self.path, self._closed)
