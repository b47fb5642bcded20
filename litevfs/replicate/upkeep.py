"""Runs maintenance beside a replicator. Owns no thread and no schedule (`maintenance.schedule`)."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from litevfs.errors import LTXFormatError, StorageClosedError, TXIDGapError
from litevfs.maintenance.schedule import Maintenance, MaintenanceConfig
from litevfs.replica_clients.base import ReplicaClient

_LATEST = 0.9
"""Of a window: work that waits for a while is still done in it, and what is made counts for no other."""


class Upkeep:
    """Maintenance, for one thread at a time; asks for a snapshot when it finds files lost or damaged."""

    def __init__(
        self,
        client: ReplicaClient,
        config: MaintenanceConfig | None,
        request_snapshot: Callable[[str], None],
        may_begin: Callable[[], bool],
        pause_s: float,
    ) -> None:
        self._client, self._config, self._request_snapshot = client, config, request_snapshot
        self._may_begin, self._pause_s = may_begin, pause_s
        self._maintenance: Maintenance | None = None
        self.late = 0.0
        """See `Maintenance`; for before the first turn."""
        self._mended: set[tuple[int | None, int | None, int | None]] = set()  # places that a snapshot was taken for
        self.error: str | None = None
        """Error of a task that will be tried again, None when there is none."""

    def spread(self) -> None:
        """Begin late in each window, by a time of its own: for one of many replicas in a process."""
        self.late = _LATEST * zlib.crc32(self._client.url.encode(errors="surrogatepass")) / 2**32

    def turn(self) -> float | None:
        """Run the tasks that are due; returns the seconds until the next one is, None when the client is closed.

        While they may not begin, it is to be asked again every `pause_s` seconds.
        """
        if not self._may_begin():
            return self._pause_s
        if self._maintenance is None:
            self._maintenance = Maintenance(self._client, self._config, late=self.late)
        try:
            report = self._maintenance.run_due()  # logs failures, and tries them again
        except StorageClosedError:
            return None
        self.error = self._maintenance.last_error
        for error in report.errors:
            self.mend(error)
        return self._maintenance.next_due_in_s()

    def mend(self, error: Exception) -> None:
        """Ask for a snapshot when files are lost or damaged; once for each place, in case it does not help."""
        if isinstance(error, TXIDGapError | LTXFormatError):
            place = (error.level, error.min_txid, error.max_txid)
            if place not in self._mended:
                self._mended.add(place)
                self._request_snapshot(f"the replica cannot be compacted: {error}")
