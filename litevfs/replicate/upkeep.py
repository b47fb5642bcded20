"""Runs maintenance beside a replicator. Owns no thread and no schedule (`maintenance.schedule`)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from litevfs.errors import LTXFormatError, StorageClosedError, TXIDGapError
from litevfs.maintenance.schedule import Maintenance, MaintenanceConfig
from litevfs.replica_clients.base import ReplicaClient


class Upkeep:
    """Maintenance, for one thread; asks `request_snapshot` for a snapshot when it finds files lost or damaged."""

    def __init__(self, client: ReplicaClient, request_snapshot: Callable[[str], None]) -> None:
        self._client, self._request_snapshot = client, request_snapshot
        self._mended: set[tuple[int | None, int | None, int | None]] = set()  # places that a snapshot was taken for
        self.error: str | None = None
        """Error of a task that will be tried again, None when there is none."""

    def run(
        self, config: MaintenanceConfig, closed: threading.Event, may_begin: Callable[[], bool], pause_s: float
    ) -> None:
        """Run the tasks that are due, until `closed`; while they may not begin, check again every `pause_s` seconds."""
        maintenance = Maintenance(self._client, config)
        wait_s = 0.0
        while not closed.wait(wait_s):
            if not may_begin():
                wait_s = pause_s
                continue
            try:
                report = maintenance.run_due()  # logs failures, and tries them again
            except StorageClosedError:
                return
            self.error = maintenance.last_error
            for error in report.errors:
                self.mend(error)
            wait_s = maintenance.next_due_in_s()

    def mend(self, error: Exception) -> None:
        """Ask for a snapshot when files are lost or damaged; once for each place, in case it does not help."""
        if isinstance(error, TXIDGapError | LTXFormatError):
            place = (error.level, error.min_txid, error.max_txid)
            if place not in self._mended:
                self._mended.add(place)
                self._request_snapshot(f"the replica cannot be compacted: {error}")
