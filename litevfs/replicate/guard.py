"""Stands between a replicator and a replica that another one may write to: the lease, and what goes with it.

With conditional writes the storage itself lets nobody replace a file, and the lease only says who is to write. Without
them, what was uploaded is looked at again: at the next upload, and at the next `sync`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from litevfs.concurrency.workers import start_thread
from litevfs.errors import LitevfsError, ReplicaConflictError, ReplicaFormatError, TransientStorageError
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient, SideObjects
from litevfs.replicate.lease import Lease

logger = logging.getLogger("litevfs.replicate")

MANIFEST_NAME = "manifest.json"
"""Newer versions of Litestream list a replica's files there, and believe the list rather than the folder."""

_REMEMBERED = 32
"""Uploads that are looked at again; a request of those before has long ended."""


class WriterGuard:
    """What a replicator asks before it writes, and after. `lease` is None where there is none to be had, or wanted."""

    def __init__(self, client: ReplicaClient, lease: Lease | None) -> None:
        self._client, self.lease = client, lease
        self._written: deque[LTXFileInfo] = deque(maxlen=_REMEMBERED)

    def hold(self) -> bool:
        """Take or renew the lease; whether it was taken. Raises ReplicaConflictError, StorageError."""
        return self.lease is not None and self.lease.hold()

    def wrote_last(self, folder: str) -> bool:
        """Whether the last primary that had the lease is the one of this state folder, as far as there is a lease."""
        return self.lease is None or self.lease.last_folder == folder

    @property
    def is_needed(self) -> bool:
        """Whether `check` has anything to do: the storage keeps no conditions."""
        return self.lease is not None and self.lease.is_held and self.lease.is_strict is False

    def check_format(self) -> None:
        """Raises ReplicaFormatError for a replica that must not be written to, StorageError."""
        if isinstance(self._client, SideObjects) and self._client.read_object(MANIFEST_NAME) is not None:
            raise ReplicaFormatError(
                f"beside the replica lies {MANIFEST_NAME}, a list of its files that a newer Litestream keeps, "
                "and goes by: what is written here would be missing there",
                key=self._client.url,
                hint="replicate to another URL; or let Litestream go on alone with this one",
            )

    def check(self, txid: int, is_ours: Callable[[LTXFileInfo], bool]) -> None:
        """Where the storage keeps no conditions: see whether all uploads are there, and nothing of others after them.

        `txid` is the newest known to be there, `is_ours` knows a file that is there although the answer was lost.
        Raises ReplicaConflictError, StorageError.
        """
        if not self.is_needed or self.lease is None:
            return
        self.lease.check()
        first = self._written[0].min_txid if self._written else txid + 1
        there = {file.name: file for file in self._client.list_files(0, max(1, first))}
        for file in self._written:
            now = there.get(file.name)
            if now is not None and (now.size, now.etag) != (file.size, file.etag):
                raise self._conflict(f"another replaced TXID {file.max_txid:016x}", file)
        newer = next((file for file in there.values() if file.max_txid > txid and not is_ours(file)), None)
        if newer is not None:
            raise self._conflict(f"another wrote TXID {newer.max_txid:016x}", newer)

    def uploaded(self, file: LTXFileInfo) -> None:
        """Right after an upload: it counts only if the lease is still ours. Raises as `check` does."""
        if self.lease is not None:
            self._written.append(file)
            self.lease.check()

    def forget(self) -> None:
        """A new history begins: what was uploaded before does not matter any more."""
        self._written.clear()

    def release(self, writing: threading.Lock, timeout_s: float) -> None:
        """Give the lease back, unless somebody holds `writing` or the storage does not answer: it expires by itself."""
        if self.lease is None or not self.lease.is_held or not writing.acquire(timeout=timeout_s):
            return
        try:
            releasing = start_thread(partial(_quietly, self.lease.release), "litevfs-release")
        except TransientStorageError:  # the system has no thread to give
            return
        finally:
            writing.release()
        releasing.join(timeout_s)

    def _conflict(self, what: str, file: LTXFileInfo) -> ReplicaConflictError:
        return ReplicaConflictError(
            f"another writer uses this replica: {what}",
            key=self._client.key(file),
            hint="let one of them replicate to another URL: this storage lets two writers replace each other's files",
        )


def open_guard(
    client: ReplicaClient, folder: str, closed: threading.Event, ttl_s: float | None, clock_ms: Callable[[], int]
) -> WriterGuard:
    """The guard of a replicator with this state folder; without a lease for None, or where the client has none."""
    if ttl_s is None or not isinstance(client, SideObjects):
        return WriterGuard(client, None)
    return WriterGuard(client, Lease(client, client.url, folder, closed, clock_ms, ttl_s=ttl_s))


def _quietly(action: Callable[[], None]) -> None:
    try:
        action()
    except LitevfsError as error:
        logger.info("the lease is not given back: %s", error)
