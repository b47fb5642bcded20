"""The replicator: keeps a replica of a live database. Owns the threads, the order of uploads and the status.

One sync is two parts. *Capture* (`capture.py`) turns the commits since the last capture into an LTX file on local
disk. *Upload* sends the files in TXID order. A replica that cannot be reached, or takes long, stops uploads, never
captures: each has a thread of its own, so the WAL does not grow, no checkpoint of the application waits for storage,
and files wait beside the database.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from types import TracebackType
from typing import TypeVar
from urllib.parse import urlsplit

from litevfs.concurrency.retry import Backoff
from litevfs.concurrency.turns import OwnThreads, Task, Threads, Turn
from litevfs.errors import OptionError, ReplicatorError, ReplicatorRefusedError
from litevfs.maintenance.schedule import MaintenanceConfig
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.urls import open_replica_client
from litevfs.replicate.attempts import LOCK_TIMEOUT_S, attempt, holding
from litevfs.replicate.begin import refuse_unrelated
from litevfs.replicate.capture import MOVE_UP_INTERVAL_S, Capture
from litevfs.replicate.content import Content
from litevfs.replicate.database import SourceDatabase, database_path
from litevfs.replicate.guard import open_guard
from litevfs.replicate.lease import DEFAULT_TTL_S, keep
from litevfs.replicate.limits import WALLimits
from litevfs.replicate.state import PendingLimitError, StateFolder
from litevfs.replicate.status import CheckResult, ClockWatch, ReplicatorStatus, unix_time_ms
from litevfs.replicate.upkeep import Upkeep
from litevfs.replicate.uploads import ReplicaPosition, Uploads, next_to, retry_transient

T = TypeVar("T")

logger = logging.getLogger("litevfs.replicate")

_SETTLE_INTERVAL_S = 0.1
"""How long a finished checkpoint of the application may have to wait for our read transaction to move on."""
_RETRY_S = 1.0
"""A failed capture is repeated so much later, or at the next sync, if that comes first."""
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
        self._look_interval_s = look_interval_s
        self._clock_ms = clock_ms
        self._is_new_history_allowed = new_history
        self._closed, self._has_failed = threading.Event(), threading.Event()
        self._refusal: ReplicatorRefusedError | None = None  # why the threads have ended
        self._tasks: dict[str, Task] = {}  # by name
        self._next_sync, self._captured_begun = time.monotonic(), 0  # when (monotonic); `_begun` at the last capture
        self._upload_backoff = Backoff()
        self.last_check: CheckResult | None = None  # see `operations.checkup`
        self.shortest_pause_s = 0.0  # between two turns of the capture: many databases in a process share its time
        self._is_maintained = maintenance is not None
        self._upload_lock, self._capture_lock = threading.Lock(), threading.Lock()  # taken in this order
        self._is_replica_known = False
        self._looked_at = 0.0  # the last listing of the replica; monotonic
        self._begun = 0  # how often a history was begun with the whole database
        self._wanted_snapshot: str | None = None  # why the whole database is to be captured
        self._clock_watch = ClockWatch(self.path)
        self._capture_error: str | None = None
        self._upload_error: str | None = None
        self._captured_ms: int | None = None  # Unix time at which everything committed before was captured
        self._last_sync_ms: int | None = None
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
            self._guard = open_guard(self.client, self._folder.id, self._closed, lease_ttl_s, unix_time_ms)
            self._upkeep = Upkeep(self.client, maintenance, self.request_snapshot, self._may_maintain, sync_interval_s)
            self._uploads = Uploads(self.client, self._folder, self._guard)
            undo.pop_all()

    def __enter__(self) -> Replicator:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Replicator {self.path} to {self.client.url}>"

    @property
    def status(self) -> ReplicatorStatus:
        """The replicator's status now."""
        state = self._capture.state
        return ReplicatorStatus(
            txid=state.txid if state else 0,
            uploaded_txid=self._uploads.txid,
            pending_files=len(self._folder.pending()),
            files_uploaded=self._uploads.files,
            bytes_uploaded=self._uploads.bytes,
            snapshots=self._capture.snapshots,
            last_snapshot_reason=self._capture.last_snapshot_reason,
            last_error=self._upload_error or self._capture_error,
            last_maintenance_error=self._upkeep.error,
            last_sync_ms=self._last_sync_ms,
            wal_frames=self._capture.wal_frames,
            has_lease=self._guard.lease is not None and self._guard.lease.is_held,
            lease_protocol=self._guard.protocol,
        )

    def start(self, threads: Threads | None = None) -> None:
        """Sync from threads from now on, the first time at once: threads of its own, or such that others use too.

        Failures are logged (see `status`) and tried again, long before the next sync if the interval is long. Raises
        TransientStorageError if a thread cannot start; another call starts the missing ones.
        """
        self._check_open()
        threads = threads or OwnThreads()
        turns: dict[str, Turn] = {"litevfs-upload": self._upload_turn, "litevfs-replicate": self._capture_turn}
        if self._guard.lease is not None:
            turns["litevfs-lease"] = partial(keep, self._guard.lease, self._closed, self.path)
        if self._is_maintained:
            turns["litevfs-maintain"] = self._upkeep.turn
        for name, turn in turns.items():
            if name not in self._tasks:
                self._tasks[name] = threads.start(turn, name, self._group(name))
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
        deadline = time.monotonic() + timeout_s
        retry_transient(lambda: self._check_uploads(deadline), deadline, self._closed)
        while True:
            retry_transient(lambda: self._look_at_replica(deadline), deadline, self._closed)
            begun = self._begun
            try:
                txid = self._capture_step(deadline)
            except PendingLimitError:
                txid = 0
            retry_transient(lambda: self._upload_pending(deadline), deadline, self._closed)
            if txid and self._uploads.lost is None and self._begun == begun:
                return txid
            if time.monotonic() > deadline:
                raise ReplicatorError("no time was left to begin again", key=str(self.path))

    def upload(self, timeout_s: float = 30.0) -> None:
        """Upload what was captured, capturing nothing more: the end for a database that is gone. Raises as `sync`."""
        deadline = time.monotonic() + timeout_s
        if self._is_replica_known:
            retry_transient(lambda: self._upload_pending(deadline), deadline, self._closed)

    def read_captured(self, use: Callable[[Content], T]) -> tuple[int, T]:
        """Capture what is new; returns the TXID, and what `use` makes of the database in just that state."""
        with self._holding(self._capture_lock, time.monotonic() + LOCK_TIMEOUT_S):
            return self._capture.read_captured(use)

    def request_snapshot(self, reason: str = "a snapshot was asked for") -> None:
        """The next sync takes the whole database, and stores it as a snapshot on level 9 too.

        That mends a replica with lost or damaged files: states from then on need none of them.
        """
        self._uploads.is_snapshot_due, self._wanted_snapshot = True, reason

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
        self._guard.release(self._upload_lock, timeout_s / 3)
        self._close_client()
        for task in list(self._tasks.values()):
            task.join(max(0.0, deadline - time.monotonic()))
        with holding(self._capture_lock, deadline + _CLOSE_GRACE_S, self.path, None):
            self._capture.close()
            self._folder.close()

    # --- the two parts of a sync --------------------------------------------------------------------------------------

    def _look_at_replica(self, deadline: float) -> None:
        """Every `look_interval_s`: check that the replica is what the local state says, and begin again if not."""
        with self._holding(self._upload_lock, deadline):
            with self._holding(self._capture_lock, deadline):
                self._is_replica_known &= self._capture.keeps_state()
            is_new_holder = self._guard.hold()
            is_first = not self._is_replica_known
            now = time.monotonic()
            is_due = is_first or is_new_holder or now >= self._looked_at + self._look_interval_s
            if not is_due and self._uploads.lost is None:
                return
            self._guard.check_format()
            there, reason = self._uploads.look(self._capture.state, is_first=is_first)
            if there.problem is not None:
                logger.warning("%s: the replica has no complete state: %s", self.path, there.problem)
                self.request_snapshot(f"the replica has no complete state: {there.problem}")
            if reason is not None:
                if not (reason.is_ours or self._is_new_history_allowed):
                    self._refuse_unrelated(there, reason.text, deadline)
                self._begin(there, reason.text, deadline)
            self._is_replica_known, self._looked_at, self._is_new_history_allowed = True, now, False

    def _refuse_unrelated(self, there: ReplicaPosition, reason: str, deadline: float) -> None:
        next_to(there, self.client)  # the greatest TXID there is ends every history
        with self._holding(self._capture_lock, deadline):
            refuse_unrelated(self.client, self.path, self._capture, there, reason)

    def _begin(self, there: ReplicaPosition, reason: str, deadline: float) -> None:
        """Begin a new history, after the replica's newest TXID, with the whole database."""
        page_size = there.header.page_size if there.header else self._capture.page_size
        timestamp_ms = there.header.timestamp_ms if there.header else 0
        txid = next_to(there, self.client)
        if txid:
            logger.warning("%s: beginning again after TXID %016x of the replica: %s", self.path, txid, reason)
        with self._holding(self._capture_lock, deadline):
            self._capture.begin(self.client.url, txid, timestamp_ms, page_size, reason)
            self._captured_ms = None
        self._uploads.begin(txid)
        self._begun += 1

    def _capture_step(self, deadline: float) -> int:
        with self._holding(self._capture_lock, deadline):
            captured_ms = self._clock_ms()
            reason, self._wanted_snapshot = self._wanted_snapshot, None
            self._capture.reason = self._capture.reason or reason
            state = self._capture.step()
            self._captured_ms = captured_ms
            self._clock_watch.compare(state.timestamp_ms - captured_ms)
            return state.txid

    def _upload_pending(self, deadline: float) -> None:
        with self._holding(self._upload_lock, deadline):
            captured_ms = self._captured_ms  # first: a capture may end meanwhile
            newest = self._capture.state.txid if self._capture.state else 0
            self._uploads.run(newest, self._check_open)
            if self._uploads.lost is None:
                self._last_sync_ms = captured_ms or self._last_sync_ms
            else:
                logger.warning("%s: %s", self.path, self._uploads.lost)

    def _check_uploads(self, deadline: float) -> None:
        with self._holding(self._upload_lock, deadline):
            self._uploads.check()

    # --- the threads --------------------------------------------------------------------------------------------------

    def _capture_turn(self) -> float:
        """Capture if a sync is due, else make way for checkpoints; returns the seconds until the next turn."""
        now = time.monotonic()
        if now < self._next_sync and self._captured_begun == self._begun:
            self._attempt(self._settle)
            return self._pause(self._next_sync)
        self._captured_begun = self._begun
        error = self._attempt(self._capture_if_known)
        self._next_sync = now + (self.sync_interval_s if error is None else min(self.sync_interval_s, _RETRY_S))
        self._capture_error = None if error is None else str(error)
        if uploads := self._tasks.get("litevfs-upload"):
            uploads.wake()  # also after a capture that failed
        return self._pause(self._next_sync)

    def _upload_turn(self) -> float | None:
        """Upload what waits; returns the seconds until the next turn, None if that is due after the next capture."""
        error = self._attempt(self._look_at_replica)
        if error is None:
            error = self._attempt(self._upload_pending)
        if error is None:
            self._upload_error = None
            self._upload_backoff.reset()
            # Uploads that were lost: the next listing of the replica begins a new history.
            return None if self._uploads.lost is None else 0.0
        self._upload_error = str(error)
        if isinstance(error, ReplicatorRefusedError):
            self._refusal = error
            self._has_failed.set()
            self._stop()
            return None
        return self._upload_backoff.after(error)

    def _group(self, task: str) -> str:
        """What a task depends on: its database, or its storage's server."""
        parts = urlsplit(self.client.url)
        return str(self.path) if task == "litevfs-replicate" or not parts.netloc else f"{parts.scheme}://{parts.netloc}"

    def _stop(self) -> None:
        for task in list(self._tasks.values()):
            task.stop()

    def _may_maintain(self) -> bool:
        return self._uploads.txid > 0 and (self._guard.lease is None or self._guard.lease.is_held)

    def _pause(self, next_sync: float) -> float:
        remaining = max(0.0, next_sync - time.monotonic())
        pause_s = MOVE_UP_INTERVAL_S if self._capture.is_in_the_way else _SETTLE_INTERVAL_S
        return min(remaining, max(pause_s, self.shortest_pause_s))

    def _settle(self, deadline: float) -> None:
        with self._holding(self._capture_lock, deadline):
            self._capture.settle()

    def _capture_if_known(self, deadline: float) -> None:
        if self._capture.state is not None:
            self._capture_step(deadline)

    def _attempt(self, action: Callable[[float], object]) -> Exception | None:
        return attempt(action, self.path, self._closed)

    # --- shared -------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ReplicatorError("the replicator is closed", key=str(self.path))

    def _close_client(self) -> None:
        if self._owns_client:
            self.client.close()

    def _holding(self, lock: threading.Lock, deadline: float) -> AbstractContextManager[None]:
        return holding(lock, deadline, self.path, self._closed)
