"""Guards a replica that two replicators may write to: the lease, and the checks that go with it.

With conditional writes the storage itself refuses to replace a file, and the lease only says which replicator writes.
But a program that asks for no lease may write without conditions, as Litestream does: so the guard looks now and then
whether the uploads of the last time still are what they were. Without conditional writes, it does so at each upload and
at each `sync`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from litevfs.concurrency.workers import start_thread
from litevfs.errors import LitevfsError, ReplicaConflictError, ReplicaFormatError, TransientStorageError
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient, SideObjects
from litevfs.replicate.lease import Lease
from litevfs.replicate.replica_position import is_same_file

logger = logging.getLogger("litevfs.replicate")

MANIFEST_NAME = "manifest.json"
"""Newer versions of Litestream list a replica's files there, and trust the list more than the folder."""

_REMEMBERED = 32
"""Of the latest uploads, so many are checked each time where conditions are ignored; requests for earlier ones ended
long ago."""
_REMEMBERED_FOR_LONG = 1000
"""Uploads that are checked now and then: another program may be behind. As many as one listing shows."""
_FIRST_PAUSE_S = 1.0
"""Before the first check of a history; each pause is twice as long as the last, up to the half of a lease's life."""

Fingerprint = tuple[int, str]
"""See `is_same_file`."""


class WriterGuard:
    """What a replicator asks before and after it writes. `lease` is None if impossible or not wanted."""

    def __init__(self, client: ReplicaClient, lease: Lease | None) -> None:
        self._client, self.lease = client, lease
        self._ours: deque[tuple[LTXFileInfo, Fingerprint]] = deque(maxlen=_REMEMBERED_FOR_LONG)
        self._pause_s = _FIRST_PAUSE_S
        self._check_at = 0.0  # monotonic

    def hold(self) -> bool:
        """Take or renew the lease; returns whether it was taken. Raises ReplicaConflictError, StorageError."""
        return self.lease is not None and self.lease.hold()

    def wrote_last(self, folder: str) -> bool:
        """Whether the last primary that had the lease is that of this state folder; True without a lease."""
        return self.lease is None or self.lease.last_folder == folder

    @property
    def protocol(self) -> str | None:
        """How the lease is kept: by "conditions" of the storage or by "read-back"; None: no lease, or not tried yet."""
        if self.lease is None or self.lease.is_strict is None:
            return None
        return "conditions" if self.lease.is_strict else "read-back"

    @property
    def is_needed(self) -> bool:
        """Whether `check` has anything to do: the storage ignores conditions, or the last check was a while ago."""
        if self.lease is None or not self.lease.is_held:
            return False
        return self.lease.is_strict is False or (bool(self._ours) and time.monotonic() >= self._check_at)

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
        """If it is time: check that no upload was replaced and, if the storage ignores conditions, that there is no
        later file of another primary.

        `txid` is the newest TXID known to be there; `is_ours` recognizes an upload whose answer was lost.
        Raises ReplicaConflictError, StorageError.
        """
        if not self.is_needed or self.lease is None:
            return
        if self.lease.is_strict:
            self._check_ours(self.lease.ttl_s / 2)
            return
        self.lease.check()
        latest = [file for file, _ in self._ours][-_REMEMBERED:]
        first = latest[0].min_txid if latest else txid + 1
        there = {file.name: file for file in self._client.list_files(0, max(1, first))}
        for file in latest:
            now = there.get(file.name)
            if now is not None and (now.size, now.etag) != (file.size, file.etag):
                raise self._conflict(f"another replaced TXID {file.max_txid:016x}", file)
        newer = next((file for file in there.values() if file.max_txid > txid and not is_ours(file)), None)
        if newer is not None:
            raise self._conflict(f"another wrote TXID {newer.max_txid:016x}", newer)

    def _check_ours(self, longest_pause_s: float) -> None:
        there = {file.name: file for file in self._client.list_files(0, self._ours[0][0].min_txid)}
        for place, (file, fingerprint) in enumerate(self._ours):
            now = there.get(file.name, file)  # compaction or retention may have deleted it
            if now == file or (now.etag and (now.size, now.etag) == (file.size, file.etag)):
                continue  # as by its etag: listings show other times than writes
            if not is_same_file(self._client, now, fingerprint):
                raise self._conflict(f"another replaced TXID {file.max_txid:016x}", file)
            self._ours[place] = now, fingerprint
        self._check_at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, longest_pause_s)

    def uploaded(self, file: LTXFileInfo, fingerprint: Fingerprint) -> None:
        """Note an upload right after it: it counts only if the lease is still ours. Raises as `check` does."""
        if self.lease is not None:
            self._check_at = self._check_at if self._ours else time.monotonic() + self._pause_s
            self._ours.append((file, fingerprint))
            self.lease.check()

    def forget(self) -> None:
        """Forget earlier uploads: a new history begins."""
        self._ours.clear()
        self._pause_s = _FIRST_PAUSE_S

    def release(self, writing: threading.Lock, timeout_s: float) -> None:
        """Give the lease back, unless a thread holds `writing` or the storage does not answer: it expires by itself."""
        if self.lease is None or not self.lease.is_held or not writing.acquire(timeout=timeout_s):
            return
        try:
            releasing = start_thread(partial(_quietly, self.lease.release), "litevfs-release")
        except TransientStorageError:  # no thread can start
            return
        finally:
            writing.release()
        releasing.join(timeout_s)

    def _conflict(self, what: str, file: LTXFileInfo) -> ReplicaConflictError:
        return ReplicaConflictError(
            f"another writer uses this replica: {what}",
            key=self._client.key(file),
            hint="let one of them replicate to another URL: here two writers can replace each other's files; started "
            "again, this one goes on with the whole database",
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
