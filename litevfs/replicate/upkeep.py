"""What keeps a replica tidy beside a replicator. Owns no thread and no schedule (`maintenance.schedule`)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from litevfs.errors import LTXFormatError, StorageClosedError, TXIDGapError
from litevfs.maintenance.schedule import Maintenance, MaintenanceConfig
from litevfs.replica_clients.base import ReplicaClient


class Upkeep:
    """Maintenance, for one thread; what files it finds lost or damaged leads to a snapshot, by `request_snapshot`."""

    def __init__(self, client: ReplicaClient, request_snapshot: Callable[[str], None]) -> None:
        self._client, self._request_snapshot = client, request_snapshot
        self._mended: set[tuple[int | None, int | None, int | None]] = set()  # places that a snapshot was taken for
        self.error: str | None = None
        """Of a task that is to be tried again, None when there is none."""

    def run(
        self, config: MaintenanceConfig, closed: threading.Event, may_begin: Callable[[], bool], pause_s: float
    ) -> None:
        """Do what is due, until `closed`; while it may not begin, ask again every `pause_s` seconds."""
        maintenance = Maintenance(self._client, config)
        wait_s = 0.0
        while not closed.wait(wait_s):
            if not may_begin():
                wait_s = pause_s
                continue
            try:
                report = maintenance.run_due()  # logs what fails, and tries it again
            except StorageClosedError:
                return
            self.error = maintenance.last_error
            for error in report.errors:
                self.mend(error)
            wait_s = maintenance.next_due_in_s()

    def mend(self, error: Exception) -> None:
        """Ask for a snapshot when files are lost or damaged; once for each place, lest it does not help."""
        if isinstance(error, TXIDGapError | LTXFormatError):
            place = (error.level, error.min_txid, error.max_txid)
            if place not in self._mended:
                self._mended.add(place)
                self._request_snapshot(f"the replica cannot be compacted: {error}")
