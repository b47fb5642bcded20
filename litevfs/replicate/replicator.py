"""The replicator: keeps a replica of a live database. Owns the threads, the order of uploads and the status.

One sync is two parts. *Capture* (`capture.py`) turns the commits since the last capture into an LTX file on local
disk. *Upload* sends the files in TXID order. A replica that cannot be reached, or takes long, stops uploads, never
captures: each has a thread of its own, so the WAL does not grow, no checkpoint of the application waits for storage,
and files wait beside the database.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TypeVar

from litevfs.concurrency.turns import OwnThreads, Task, Threads
from litevfs.errors import OptionError, ReplicatorError, ReplicatorRefusedError
from litevfs.maintenance.schedule import MaintenanceConfig
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.urls import open_replica_client
from litevfs.replicate.attempts import holding
from litevfs.replicate.capture import Capture
from litevfs.replicate.capturing import Capturing
from litevfs.replicate.content import Content
from litevfs.replicate.database import SourceDatabase, database_path
from litevfs.replicate.guard import open_guard
from litevfs.replicate.lease import DEFAULT_TTL_S
from litevfs.replicate.limits import WALLimits
from litevfs.replicate.place import Place
from litevfs.replicate.state import StateFolder
from litevfs.replicate.status import CheckResult, ReplicatorStatus, unix_time_ms

T = TypeVar("T")

_CLOSE_GRACE_S = 10.0
"""How much longer than asked `close` may wait for the file system to finish a write."""


class Replicator:
    """Keeps a replica of the database at `path`, which applications go on using as they like, in WAL mode.

    `replica` is a URL, whose client is opened and closed here, or a client. Either call `sync` now and then, or `start`
    threads that do so every `sync_interval_s` seconds. In the application's own process only when that uses the
    database through APSW: two copies of SQLite in one process, such as APSW's and the module `sqlite3`, break each
    other's locks. Otherwise run `litevfs replicate`. A replicator does not survive `fork`.

    `switch_to_wal`: switch a database in rollback mode to WAL mode instead of refusing it. The WAL is checkpointed from
    `checkpoint_pages` frames on without waiting for anyone; from `truncate_pages` on, if writers never pause, with the
    write lock held for a moment, for which an application has to wait (`PRAGMA busy_timeout`). A larger file
    is shortened once there was no write for ten seconds. With None, writers are never held off: the WAL grows
    for as long as they never pause. Local state lies beside the database, in the folder `.<name>-litevfs`.

    With `maintenance`, a started replicator also compacts the replica, takes snapshots and deletes old files. Every
    `look_interval_s` seconds, at a sync, it lists the replica. If another program removed files, it begins again with
    the whole database; if another wrote files, it raises ReplicaConflictError until that program stops. It never
    replaces a file of another program.

    Without local state, a database continues a replica only if it is the replica's newest state or came from it
    (`begin.py`); otherwise `sync` raises UnrelatedDatabaseError. `new_history` lets any database do so. One primary has
    the lease of a replica (`lease.py`) for `lease_ttl_s` seconds after it last renewed it; others get
    ReplicaConflictError. Without a lease (None, or a client that keeps no objects besides), two primaries notice each
    other when one meets a file of the other. `max_pending_bytes` bounds the files that wait for their upload: beyond it
    nothing is captured, later the whole database. `own_process`: no SQLite but APSW's is in this process.

    `clock_ms` tells the Unix time, in milliseconds, that each TXID is stamped with. Times never go back: when it does,
    the time of the TXID before is used.

    Raises ReplicatorLockedError when another replicator has the database, ReplicatorError when it cannot be replicated,
    OptionError for a bad option.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        replica: str | ReplicaClient,
        *,
        sync_interval_s: float = 1.0,
        switch_to_wal: bool = False,
        checkpoint_pages: int = 1000,
        truncate_pages: int | None = 50_000,
        maintenance: MaintenanceConfig | None = None,
        look_interval_s: float = 300.0,
        new_history: bool = False,
        lease_ttl_s: float | None = DEFAULT_TTL_S,
        max_pending_bytes: int | None = None,
        own_process: bool = False,
        clock_ms: Callable[[], int] = unix_time_ms,
    ) -> None:
        if sync_interval_s <= 0 or (lease_ttl_s is not None and lease_ttl_s <= 0):
            raise OptionError(
                f"sync interval {sync_interval_s} or lease {lease_ttl_s} is not a positive number of seconds"
            )
        limits = WALLimits(checkpoint_pages, truncate_pages, max_pending_bytes)
        self.path = database_path(path)
        self.sync_interval_s = sync_interval_s
        self._closed, self._has_failed = threading.Event(), threading.Event()
        self._refusal: ReplicatorRefusedError | None = None  # why the threads have ended
        self._tasks: dict[str, Task] = {}  # by name
        self.last_check: CheckResult | None = None  # see `operations.checkup`
        self._owns_client = isinstance(replica, str)
        self.client = open_replica_client(replica) if isinstance(replica, str) else replica
        with ExitStack() as undo:
            undo.callback(self._close_client)
            database = SourceDatabase(
                self.path, switch_to_wal=switch_to_wal, own_process=own_process
            )  # before its folder
            undo.callback(database.close)
            self._folder = StateFolder(self.path)
            undo.callback(self._folder.close)
            self._capture = Capture(database, self._folder, limits, self._closed.is_set, clock_ms)
            self._capturing = Capturing(self.path, self._capture, sync_interval_s, clock_ms, self._closed)
            self._capturing.captured = self._wake_uploads
            self._place = Place(
                self.client,
                self._folder,
                open_guard(self.client, self._folder.id, self._closed, lease_ttl_s, unix_time_ms),
                self._capturing,
                maintenance,
                sync_interval_s=sync_interval_s,
                look_interval_s=look_interval_s,
                new_history=new_history,
                closed=self._closed,
                refused=self._refuse,
            )
            undo.pop_all()

    def __enter__(self) -> Replicator:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Replicator {self.path} to {self.client.url}>"

    @property
    def shortest_pause_s(self) -> float:
        """Seconds between two turns of the capture at least: many databases in a process share its time."""
        return self._capturing.shortest_pause_s

    @shortest_pause_s.setter
    def shortest_pause_s(self, seconds: float) -> None:
        self._capturing.shortest_pause_s = seconds

    @property
    def status(self) -> ReplicatorStatus:
        """The replicator's status now."""
        place, guard = self._place, self._place.guard
        return ReplicatorStatus(
            txid=self._capturing.txid,
            uploaded_txid=place.uploads.txid,
            pending_files=len(self._folder.pending()),
            files_uploaded=place.uploads.files,
            bytes_uploaded=place.uploads.bytes,
            snapshots=self._capture.snapshots,
            last_snapshot_reason=self._capture.last_snapshot_reason,
            last_error=place.error or self._capturing.error,
            last_maintenance_error=place.upkeep.error,
            last_sync_ms=place.last_sync_ms,
            wal_frames=self._capture.wal_frames,
            has_lease=guard.lease is not None and guard.lease.is_held,
            lease_protocol=guard.protocol,
        )

    def start(self, threads: Threads | None = None) -> None:
        """Sync from threads from now on, the first time at once: threads of its own, or such that others use too.

        Failures are logged (see `status`) and tried again, long before the next sync if the interval is long. Raises
        TransientStorageError if a thread cannot start; another call starts the missing ones.
        """
        if self._closed.is_set():
            raise ReplicatorError("the replicator is closed", key=str(self.path))
        threads = threads or OwnThreads()
        if "litevfs-replicate" not in self._tasks:
            self._tasks["litevfs-replicate"] = threads.start(self._capturing.turn, "litevfs-replicate", str(self.path))
        for name, turn in self._place.turns().items():
            if name not in self._tasks:
                self._tasks[name] = threads.start(turn, name, self._place.group)
        if self._closed.is_set():  # by a turn, or by another thread: it has not stopped those that came after
            self._stop()

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when it is closed, or after `timeout_s`. Raises the ReplicatorRefusedError that ended the threads."""
        self._has_failed.wait(timeout_s)
        if self._refusal is not None:
            raise self._refusal

    def sync(self, timeout_s: float = 30.0) -> int:
        """Upload everything committed before the call; returns the newest TXID on the replica.

        Transient storage errors are tried again for `timeout_s` seconds. Raises StorageError, ReplicatorError, and
        ReplicaConflictError when another primary has the lease, or the replica holds files that another wrote since
        this replicator began. Where the storage lets writers replace each other's files, that may be what an earlier
        call had uploaded.
        """
        return self._place.sync(time.monotonic() + timeout_s)

    def upload(self, timeout_s: float = 30.0) -> None:
        """Upload what was captured, capturing nothing more: the end for a database that is gone. Raises as `sync`."""
        self._place.upload_captured(time.monotonic() + timeout_s)

    def read_captured(self, use: Callable[[Content], T]) -> tuple[int, T]:
        """Capture what is new; returns the TXID, and what `use` makes of the database in just that state."""
        return self._capturing.read_captured(use)

    def request_snapshot(self, reason: str = "a snapshot was asked for") -> None:
        """The next sync takes the whole database, and stores it as a snapshot on level 9 too.

        That mends a replica with lost or damaged files: states from then on need none of them.
        """
        self._place.request_snapshot(reason)

    def close(self, timeout_s: float = 1.0) -> None:
        """End the threads and close the database. Idempotent.

        Does not sync: call `sync` first if the last commits must be on the replica. The next replicator continues from
        here either way. A call that hangs in a client that was passed in is left to that client. The lease is given
        back, unless an upload is under way: it expires then.
        """
        self._closed.set()
        self._has_failed.set()
        self._stop()
        deadline = time.monotonic() + timeout_s
        self._place.guard.release(self._place.upload_lock, timeout_s / 3)
        self._close_client()
        for task in list(self._tasks.values()):
            task.join(max(0.0, deadline - time.monotonic()))
        with holding(self._capturing.lock, deadline + _CLOSE_GRACE_S, self.path, None):
            self._capture.close()
            self._folder.close()

    def _wake_uploads(self) -> None:
        if uploads := self._tasks.get("litevfs-upload"):
            uploads.wake()

    def _refuse(self, error: ReplicatorRefusedError) -> None:
        self._refusal = error
        self._has_failed.set()
        self._stop()

    def _stop(self) -> None:
        for task in list(self._tasks.values()):
            task.stop()

    def _close_client(self) -> None:
        if self._owns_client:
            self.client.close()
