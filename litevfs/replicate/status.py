"""A replicator's status, and the clock that it stamps with. Plain values."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("litevfs.replicate")

_LATE_S = 60.0
"""A replicator is not healthy when no sync has succeeded for so long, and for three sync intervals."""

_LARGE_CLOCK_STEP_MS = 60_000
"""A warning says that the clock is wrong when it is so far behind the newest file's time."""


@dataclass(frozen=True, slots=True)
class PlaceStatus:
    """Where one place stands that a database is replicated to."""

    replica: str  # URL
    uploaded_txid: int  # newest TXID known to be there, 0 while nothing is known
    pending_files: int  # made, not yet known to be there
    files_uploaded: int
    bytes_uploaded: int
    last_error: str | None  # of its thread's last attempt, None after a success
    last_maintenance_error: str | None  # of a task that will be tried again, None when there is none
    last_sync_ms: int | None  # Unix time at which everything committed before was there
    has_lease: bool
    lease_protocol: str | None  # as in `ReplicatorStatus`
    waits_to_begin: str | None  # why nothing is captured for it until it begins again; None when it goes on


@dataclass(frozen=True, slots=True)
class ReplicatorStatus:
    """Where a replicator stands. Of several places, what is true of all of them: the oldest TXID, the sum of files."""

    txid: int  # newest TXID made, 0 before the first
    uploaded_txid: int  # newest TXID known to be on the replica, 0 while nothing is known
    pending_files: int  # made, not yet known to be on the replica
    files_uploaded: int
    bytes_uploaded: int
    snapshots: int  # files that hold the whole database
    last_snapshot_reason: str | None
    comparisons: int  # reads of the whole database to find what differs from the newest TXID
    last_comparison_reason: str | None
    last_error: str | None  # of the threads' last attempt, None after a success
    last_maintenance_error: str | None  # of a task that will be tried again, None when there is none
    last_sync_ms: int | None  # Unix time at which everything committed before was on the replica
    wal_frames: int  # in the WAL at the last sync
    has_lease: bool = False  # as far as is known here; False too where there is no lease
    lease_protocol: str | None = (
        None  # "conditions" or "read-back" (the storage keeps none); None: none, or not tried yet
    )
    places: tuple[PlaceStatus, ...] = ()


def combined_error(places: Sequence[PlaceStatus]) -> str | None:
    """The first error of a place, with its name where there are several."""
    for place in places:
        if place.last_error is not None:
            return place.last_error if len(places) == 1 else f"to {place.replica}: {place.last_error}"
    return None


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a comparison of the replica with the database showed."""

    txid: int  # the state that was compared
    time_ms: int  # when it had ended; Unix milliseconds
    problem: str | None  # what differs; None when all pages are the same


def why_unhealthy(status: ReplicatorStatus, sync_interval_s: float) -> str | None:
    """Why commits do not reach the replica in time; None while they do."""
    if status.last_error is not None:
        return status.last_error
    late_s = (unix_time_ms() - (status.last_sync_ms or 0)) / 1000
    if late_s > max(_LATE_S, 3 * sync_interval_s):
        return (
            f"nothing has reached the replica for {late_s:.0f} s" if status.last_sync_ms else "nothing was synced yet"
        )
    return None


def unix_time_ms() -> int:
    """The system's clock: milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


class ClockWatch:
    """Warns, once, that the clock was set back far."""

    def __init__(self, path: Path) -> None:
        self._path, self._is_behind = path, False

    def compare(self, behind_ms: int) -> None:
        """Note that the clock is `behind_ms` behind the time of the newest file."""
        was_behind, self._is_behind = self._is_behind, behind_ms > _LARGE_CLOCK_STEP_MS
        if self._is_behind and not was_behind:
            logger.warning(
                "%s: the clock is %d s behind the newest file's time: all files get that time until it is there again, "
                "so no time tells one of these states from another",
                self._path,
                behind_ms // 1000,
            )
