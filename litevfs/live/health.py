"""Notes when refreshes ran and with what result, and derives a replica's state from that. Knows no storage."""

from __future__ import annotations

import enum
import logging

from litevfs.concurrency.clock import now_s

logger = logging.getLogger("litevfs.live.replica")

LATE_AFTER_S = 5.0
"""A refresh that takes so long, or is overdue for so long, puts the replica behind."""
STALLED_AFTER_S = 30.0
"""A replica that could not be brought up to date for so long (and ten polls) is stalled."""


class State(enum.StrEnum):
    """The state of a replica."""

    OPENING = "opening"  # no complete state yet
    CURRENT = "current"  # the last refresh succeeded, and the next one is not late
    BEHIND = "behind"  # the last refresh failed or found unusable files, or the next takes long or is overdue
    STALLED = "stalled"  # behind for long: needs an operator
    CLOSED = "closed"
    FIXED = "fixed"  # for a connection that stays at one state: txid, timestamp, time travel


class Health:
    """The health of one replica. Notes one refresh at a time; any thread may ask. Times are those of `now_s`."""

    def __init__(self, url: str) -> None:
        self.refreshes = 0  # that began
        self.errors = 0  # refreshes that failed
        self.last_error: str | None = None  # of the last refresh, if it failed; its words: it has frames of a caller
        self._url = url
        self._began: float | None = None  # the start of the refresh under way
        self._last_success: float | None = None  # when the last successful refresh began
        self._last_proof: float | None = None  # when the last refresh began that cannot have missed a state
        self._failing_since: float | None = None
        self._said_stalled = False

    def begin(self) -> None:
        """A refresh begins."""
        self.refreshes += 1
        self._began = now_s()

    def succeed(self, *, is_proof: bool) -> None:
        """The refresh succeeded; `is_proof`: it has seen everything that the storage held when it began."""
        if self._failing_since is not None and self._last_success is not None:
            logger.info("%s is up to date again", self._url)
        self.last_error = self._failing_since = None
        self._said_stalled = False
        self._last_success, self._began = self._began, None
        if is_proof:
            self._last_proof = self._last_success

    def fail(self, error: Exception, state: State) -> None:
        """The refresh failed. Logs the first failure, and once more when it lasts; status and lag always show it."""
        self.errors += 1
        self.last_error = str(error)
        self._began = None
        if state is State.CLOSED:
            return
        if self._failing_since is None:
            self._failing_since = now_s()
            if state is not State.OPENING:
                logger.warning("%s stays at its last state: %s", self._url, self.last_error)
        if state is State.STALLED and not self._said_stalled:
            self._said_stalled = True
            logger.error("%s is stalled: %s", self._url, self.last_error)

    def forget_refresh(self) -> None:
        """Forget the refresh under way: its thread runs in the parent process only."""
        self._began = None

    def lag_s(self) -> float | None:
        """Seconds since the last successful refresh began; None before the first."""
        return _since(self._last_success)

    def proof_age_s(self) -> float | None:
        """Seconds since the last refresh began that cannot have missed a state; None before the first."""
        return _since(self._last_proof)

    def refresh_s(self) -> float:
        """Seconds that the refresh under way has taken so far; 0 if there is none."""
        return _since(self._began) or 0.0

    def state(self, poll_interval_s: float) -> State:
        """CURRENT, BEHIND or STALLED; `poll_interval_s` is 0 if no poller runs."""
        failing_s = _since(self._failing_since)
        overdue_s = max(0.0, (self.lag_s() or 0.0) - poll_interval_s) if poll_interval_s else 0.0
        trouble_s = max(failing_s or 0.0, overdue_s, self.refresh_s())
        if trouble_s > max(STALLED_AFTER_S, 10 * poll_interval_s):
            return State.STALLED
        return State.BEHIND if failing_s is not None or trouble_s > LATE_AFTER_S else State.CURRENT


def _since(moment: float | None) -> float | None:
    return None if moment is None else now_s() - moment
