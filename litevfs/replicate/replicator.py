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
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import TypeVar

from litevfs.concurrency.turns import OwnThreads, Task, Threads
from litevfs.errors import LitevfsError, OptionError, ReplicatorError, ReplicatorRefusedError
from litevfs.maintenance.schedule import MaintenanceConfig
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.urls import is_client, open_replica_client
from litevfs.replicate.attempts import attempt, holding
from litevfs.replicate.capture import Capture
from litevfs.replicate.capturing import Capturing
from litevfs.replicate.content import Content
from litevfs.replicate.database import SourceDatabase
from litevfs.replicate.guard import open_guard
from litevfs.replicate.lease import DEFAULT_TTL_S
from litevfs.replicate.limits import WALLimits
from litevfs.replicate.pace import Pace
from litevfs.replicate.place import Place, for_all
from litevfs.replicate.source_file import database_path
from litevfs.replicate.state import StateFolder
from litevfs.replicate.status import CheckResult, ReplicatorStatus, combined_error, unix_time_ms
from litevfs.units import parse_duration_s

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
    nothing is captured, later what has changed by then. `own_process`: no SQLite but APSW's is in this process.

    `places` are further replicas, each a URL or a client: the database is captured once, and uploaded to each at its
    own pace. A place that fails keeps only itself waiting, is named in `status` and makes `sync` raise. All have the
    same TXIDs; one that comes later, or for which more than `max_pending_bytes` waited while others went on, begins
    with the whole database. What is said above of the replica holds for each.

    `clock_ms` tells the Unix time, in milliseconds, that each TXID is stamped with. Times never go back: when it does,
    the time of the TXID before is used.

    Raises ReplicatorLockedError when another replicator has the database, ReplicatorError when it cannot be replicated,
    OptionError for a bad option.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        replica: str | os.PathLike[str] | ReplicaClient,
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
        places: Sequence[str | os.PathLike[str] | ReplicaClient] = (),
        clock_ms: Callable[[], int] = unix_time_ms,
    ) -> None:
        sync_interval_s = parse_duration_s(sync_interval_s)
        lease_ttl_s = None if lease_ttl_s is None else parse_duration_s(lease_ttl_s)
        if sync_interval_s == 0:
            raise OptionError("a sync interval of 0", hint="for example 1s")
        if lease_ttl_s == 0:
            raise OptionError(
                "a lease of 0 seconds", hint="for example 30s; without a lease: --no-lease, None in Python"
            )
        limits = WALLimits(checkpoint_pages, truncate_pages, max_pending_bytes)
        self.path = database_path(path)
        self.sync_interval_s = sync_interval_s
        self._closed, self._has_failed = threading.Event(), threading.Event()
        self._refusals: dict[str, ReplicatorRefusedError] = {}  # why the threads of a place have ended, by URL
        self.tasks: dict[tuple[str, int], Task] = {}
        """What runs since `start`, by name, and number of the place."""
        self._owned: list[ReplicaClient] = []  # clients that were opened here
        with ExitStack() as undo:
            clients = [self._opened(one, undo) for one in (replica, *places)]
            urls = _different([client.url for client in clients])
            self.client = clients[0]
            database = SourceDatabase(
                self.path, switch_to_wal=switch_to_wal, own_process=own_process
            )  # before its folder
            undo.callback(database.close)
            self._folder = StateFolder(self.path)
            undo.callback(self._folder.close)
            queues = self._folder.open_queues(urls)
            capture = Capture(database, self._folder, limits, self._closed.is_set, clock_ms)
            self.capturing = Capturing(self.path, capture, sync_interval_s, clock_ms, self._closed)
            self.capturing.captured = self._wake_uploads
            for url in urls[1:] and urls:
                self.capturing.first_looks.expect(url)
            self.places = tuple(
                Place(
                    client,
                    queue,
                    open_guard(client, self._folder.id, self._closed, lease_ttl_s, unix_time_ms),
                    self.capturing,
                    maintenance,
                    folder_id=lambda: self._folder.id,
                    sync_interval_s=sync_interval_s,
                    look_interval_s=look_interval_s,
                    new_history=new_history,
                    closed=self._closed,
                    urls=urls,
                    refused=partial(self._refuse, client.url),
                )
                for client, queue in zip(clients, queues, strict=True)
            )
            undo.pop_all()

    def __enter__(self) -> Replicator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Replicator {self.path} to {', '.join(place.client.url for place in self.places)}>"

    def share_pace(self, pace: Pace) -> None:
        """Capture at the pace of the other databases of the process, and compact when they do not. Before `start`."""
        self.capturing.pace = pace
        if pace.databases > 1:
            for place in self.places:
                place.upkeep.spread()

    @property
    def status(self) -> ReplicatorStatus:
        """The replicator's status now."""
        places = tuple(place.status for place in self.places)
        syncs = [place.last_sync_ms for place in places]
        return ReplicatorStatus(
            txid=self.capturing.txid,
            uploaded_txid=min(place.uploaded_txid for place in places),
            pending_files=sum(place.pending_files for place in places),
            files_uploaded=sum(place.files_uploaded for place in places),
            bytes_uploaded=sum(place.bytes_uploaded for place in places),
            snapshots=self.capturing.capture.snapshots,
            last_snapshot_reason=self.capturing.capture.last_snapshot_reason,
            comparisons=self.capturing.capture.comparisons,
            last_comparison_reason=self.capturing.capture.last_comparison_reason,
            last_error=combined_error(places) or self.capturing.error,
            last_maintenance_error=next(
                (one.last_maintenance_error for one in places if one.last_maintenance_error), None
            ),
            last_sync_ms=None if None in syncs else min(ms for ms in syncs if ms is not None),
            wal_frames=self.capturing.capture.hold.state.frames,
            has_lease=all(place.has_lease for place in places),
            lease_protocol=places[0].lease_protocol,
            places=places,
        )

    @property
    def last_check(self) -> CheckResult | None:
        """The last comparison of a replica with the database: the first that differs (see `operations.checkup`)."""
        checks = [place.last_check for place in self.places if place.last_check is not None]
        return next((check for check in checks if check.problem is not None), checks[-1] if checks else None)

    def start(self, threads: Threads | None = None) -> None:
        """Sync from threads from now on, the first time at once: threads of its own, or such that others use too.

        Failures are logged (see `status`) and tried again, long before the next sync if the interval is long. Raises
        TransientStorageError if a thread cannot start; another call starts the missing ones.
        """
        if self._closed.is_set():
            raise ReplicatorError("the replicator is closed", key=str(self.path))
        threads = threads or OwnThreads()
        name = "litevfs-replicate"
        if (name, 0) not in self.tasks:
            self.tasks[name, 0] = threads.start(self.capturing.turn, name, str(self.path))
        for number, place in enumerate(self.places):
            for name, turn in place.turns().items():
                if (name, number) not in self.tasks:
                    self.tasks[name, number] = threads.start(turn, name, place.group)
        if self._closed.is_set():  # by a turn, or by another thread: it has not stopped those that came after
            self._stop()

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when it is closed, or after `timeout_s`. Raises the ReplicatorRefusedError that ended the threads.

        Of several places, all have to be refused for that.
        """
        self._has_failed.wait(timeout_s)
        if len(self._refusals) == len(self.places):
            raise next(iter(self._refusals.values()))

    def sync(self, timeout_s: float = 30.0) -> int:
        """Upload everything committed before the call; returns the newest TXID on the replica.

        Transient storage errors are tried again for `timeout_s` seconds. Raises StorageError, ReplicatorError, and
        ReplicaConflictError when another primary has the lease, or the replica holds files that another wrote since
        this replicator began. Where the storage lets writers replace each other's files, that may be what an earlier
        call had uploaded. Of several places, the newest TXID on all of them is returned; what each can get, it has got
        when the error of another is raised, which names that place.
        """
        now = time.monotonic()
        since = now if len(self.places) > 1 else None  # one capture is for all places
        txids = for_all(self.places, lambda place: place.sync(now + timeout_s, since), now + timeout_s)
        for _ in self.places:  # each may join with a new TXID once, which another has not got then
            if min(txids) == max(txids):
                break
            txids = for_all(self.places, lambda place: place.sync(now + timeout_s, since), now + timeout_s)
        return min(txids)

    def upload(self, timeout_s: float = 30.0) -> None:
        """The end for a database whose file was deleted: capture what can be had, and upload. Raises as `sync`.

        The files are still open here, so that is all that was committed before, unless a capture failed then.
        """
        deadline = time.monotonic() + timeout_s
        attempt(self.capturing.step_deleted, self.path, self._closed)
        for_all(self.places, lambda place: place.upload_captured(deadline), deadline)

    def read_captured(self, use: Callable[[Content], T]) -> tuple[int, T]:
        """Capture what is new; returns the TXID, and what `use` makes of the database in just that state."""
        return self.capturing.read_captured(use)

    def request_snapshot(self, reason: str = "a snapshot was asked for") -> None:
        """The next sync takes the whole database, and stores it as a snapshot on level 9 too.

        That mends a replica with lost or damaged files: states from then on need none of them.
        """
        for place in self.places:
            place.request_snapshot(reason)

    def close(self, timeout_s: float = 1.0) -> None:
        """End the threads and close the database. Idempotent.

        Does not sync: call `sync` first if the last commits must be on the replica. The next replicator continues from
        here either way. A call that hangs in a client that was passed in is left to that client. The lease is given
        back, unless an upload is under way: it expires then.
        """
        self._closed.set()
        self._has_failed.set()
        deadline = time.monotonic() + timeout_s
        self._stop()
        with suppress(LitevfsError):  # what takes too long is left to its thread, and the lease expires
            for_all(self.places, lambda place: place.guard.release(place.upload_lock, timeout_s / 3), deadline)
        self._close_clients()
        for task in list(self.tasks.values()):
            task.join(max(0.0, deadline - time.monotonic()))
        with holding(self.capturing.lock, deadline + _CLOSE_GRACE_S, self.path, None):
            self.capturing.capture.close()
            self._folder.close()

    def _wake_uploads(self) -> None:
        for (name, _), task in list(self.tasks.items()):
            if name == "litevfs-upload":
                task.wake()

    def _refuse(self, url: str, error: ReplicatorRefusedError) -> None:
        self._refusals[url] = error
        if len(self._refusals) == len(self.places):
            self._has_failed.set()
            self._stop()
            return
        for (name, number), task in list(self.tasks.items()):
            if name != "litevfs-replicate" and self.places[number].client.url == url:
                task.stop()

    def _stop(self) -> None:
        for task in list(self.tasks.values()):
            task.stop()

    def _opened(self, replica: str | os.PathLike[str] | ReplicaClient, undo: ExitStack) -> ReplicaClient:
        if is_client(replica):
            return replica
        client = open_replica_client(replica)
        undo.callback(client.close)
        self._owned.append(client)
        return client

    def _close_clients(self) -> None:
        for client in self._owned:
            client.close()


def _different(urls: list[str]) -> list[str]:
    if len(set(urls)) < len(urls):
        twice = next(url for url in urls if urls.count(url) > 1)
        raise OptionError(f"{twice} is given twice", hint="each place has a URL of its own")
    return urls
