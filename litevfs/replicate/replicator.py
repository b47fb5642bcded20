"""The replicator: keeps a replica of a live database. Owns the thread, the order of uploads and the status.

One sync is two parts. *Capture* (`capture.py`) turns what was committed since the last one into an LTX file on local
disk. *Upload* sends the files in TXID order. A replica that cannot be reached stops uploads, never captures: the WAL
does not grow, files wait beside the database.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from litevfs.backoff import Backoff
from litevfs.errors import LitevfsError, OptionError, ReplicatorError, StorageClosedError
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.urls import open_replica_client
from litevfs.replicate.capture import Capture, WALLimits
from litevfs.replicate.schedule import Maintenance, MaintenanceConfig
from litevfs.replicate.state import StateFolder
from litevfs.replicate.uploads import replica_position, retry_transient, upload, why_not_ours

logger = logging.getLogger("litevfs.replicate")

_MOVE_UP_INTERVAL_S = 0.02
"""How long the application's own checkpoints may be kept from anything after a pause: a few hundred transactions."""
_SETTLE_INTERVAL_S = 0.1
"""How long a finished checkpoint of somebody else may have to wait for our read transaction to move on."""

_LOCK_TIMEOUT_S = 60.0
"""How long the thread waits for a `sync` in another thread."""
_CLOSE_GRACE_S = 10.0
"""How much longer than asked `close` may wait for the file system to take what is being written."""


def unix_time_ms() -> int:
    """The system's clock: milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class ReplicatorStatus:
    """Where a replicator stands."""

    txid: int  # newest TXID made, 0 before the first
    uploaded_txid: int  # newest TXID known to be on the replica, 0 while nothing is known
    pending_files: int  # made, not yet known to be on the replica
    files_uploaded: int
    bytes_uploaded: int
    snapshots: int  # files that hold the whole database
    last_snapshot_reason: str | None
    last_error: str | None  # of the last attempt, None after a success
    last_sync_ms: int | None  # Unix time at which everything committed before was on the replica
    wal_frames: int  # in the WAL at the last sync


class Replicator:
    """Keeps a replica of the database at `path`, which others go on using as they like, in WAL mode.

    `replica` is a URL, whose client is opened and closed here, or a client. Either call `sync` now and then, or `start`
    a thread that does so every `sync_interval_s` seconds. In the application's own process only when that uses the
    database through APSW: two copies of SQLite in one process, such as APSW's and the module `sqlite3`, break each
    other's locks. Otherwise run `litevfs replicate`. A replicator does not survive `fork`.

    `switch_to_wal`: switch a database in rollback mode to WAL mode instead of refusing it. The WAL is checkpointed from
    `checkpoint_pages` frames on without waiting for anyone; from `truncate_pages` on, if writers never pause, with the
    write lock held for that moment, and the file is shortened. Local state lies beside the database, in the folder
    `.<name>-litevfs`.

    With `maintenance`, a started replicator also compacts the replica, takes snapshots and deletes old files, in a
    thread of its own (see `MaintenanceConfig`).

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
        truncate_pages: int = 50_000,
        maintenance: MaintenanceConfig | None = None,
        clock_ms: Callable[[], int] = unix_time_ms,
    ) -> None:
        if sync_interval_s <= 0:
            raise OptionError(f"sync interval {sync_interval_s} is not a positive number of seconds")
        if not 0 < checkpoint_pages <= truncate_pages:
            raise OptionError(f"checkpoint_pages {checkpoint_pages} is not from 1 to truncate_pages {truncate_pages}")
        self.path = Path(path).resolve()
        self._sync_interval_s = sync_interval_s
        self._clock_ms = clock_ms
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._maintenance = maintenance
        self._maintenance_thread: threading.Thread | None = None
        self._capture_lock, self._upload_lock = threading.Lock(), threading.Lock()  # taken in this order
        self._is_replica_known = False
        self._uploaded_txid = self._files_uploaded = self._bytes_uploaded = 0
        self._last_error: str | None = None
        self._captured_ms: int | None = None
        self._last_sync_ms: int | None = None
        self._owns_client = isinstance(replica, str)
        self.client = open_replica_client(replica) if isinstance(replica, str) else replica
        try:
            if not self.path.exists():  # before a folder for it is made
                raise ReplicatorError("no database to replicate: no such file", key=str(self.path))
            self._folder = StateFolder(self.path)
            try:
                limits = WALLimits(checkpoint_pages, truncate_pages)
                self._capture = Capture(
                    self.path, self._folder, limits, self._closed.is_set, clock_ms, switch_to_wal=switch_to_wal
                )
            except BaseException:
                self._folder.close()
                raise
        except BaseException:
            self._close_client()
            raise

    def __enter__(self) -> Replicator:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Replicator {self.path} to {self.client.url}>"

    @property
    def status(self) -> ReplicatorStatus:
        """Where it stands now."""
        state = self._capture.state
        return ReplicatorStatus(
            txid=state.txid if state else 0,
            uploaded_txid=self._uploaded_txid,
            pending_files=len(self._folder.pending()),
            files_uploaded=self._files_uploaded,
            bytes_uploaded=self._bytes_uploaded,
            snapshots=self._capture.snapshots,
            last_snapshot_reason=self._capture.last_snapshot_reason,
            last_error=self._last_error,
            last_sync_ms=self._last_sync_ms,
            wal_frames=self._capture.wal_frames,
        )

    def start(self) -> None:
        """Sync from a thread from now on, the first time at once. Errors are logged and tried again; see `status`."""
        self._check_open()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="litevfs-replicate", daemon=True)
            self._thread.start()
            if self._maintenance is not None:
                self._maintenance_thread = threading.Thread(
                    target=self._maintain, args=(self._maintenance,), name="litevfs-maintain", daemon=True
                )
                self._maintenance_thread.start()

    def sync(self, timeout_s: float = 30.0) -> int:
        """Everything committed before the call is on the replica when this returns; the newest TXID there.

        Transient storage errors are tried again for `timeout_s` seconds. Raises StorageError, ReplicatorError.
        """
        deadline = time.monotonic() + timeout_s
        retry_transient(lambda: self._look_at_replica(deadline), deadline, self._closed)
        txid = self._capture_step(deadline)
        retry_transient(lambda: self._upload_pending(deadline), deadline, self._closed)
        return txid

    def close(self, timeout_s: float = 1.0) -> None:
        """End the thread and let go of the database. Idempotent.

        Does not sync: call `sync` first when the last moments must be on the replica. The next replicator goes on from
        here either way. A call that hangs in a client which was passed in is left to that client.
        """
        self._closed.set()
        self._close_client()
        deadline = time.monotonic() + timeout_s
        for thread in (self._thread, self._maintenance_thread):
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        with self._holding(self._capture_lock, deadline + _CLOSE_GRACE_S):
            self._capture.close()
        self._folder.close()

    # --- the two parts of a sync --------------------------------------------------------------------------------------

    def _look_at_replica(self, deadline: float) -> None:
        """Once: find out whether the replica is what the local state says, and start anew when it is not."""
        with self._holding(self._capture_lock, deadline), self._holding(self._upload_lock, deadline):
            self._check_open()
            if self._is_replica_known:
                return
            state, pending = self._capture.state, self._folder.pending()
            confirmed = 0 if state is None else pending[0].txid - 1 if pending else state.txid
            there = replica_position(self.client, confirmed)
            if state is None:
                reason: str | None = "there is no local state to continue from" if there.newest else "the first sync"
            elif state.replica_url != self.client.url:
                reason = f"the database was replicated to {state.replica_url} before"
            else:
                reason = why_not_ours(self.client, there, state, pending)
            if reason is None:
                self._uploaded_txid = confirmed
            else:
                page_size = there.header.page_size if there.header else self._capture.page_size
                timestamp_ms = there.header.timestamp_ms if there.header else 0
                self._capture.begin(self.client.url, there.txid, timestamp_ms, page_size, reason)
                self._uploaded_txid = there.txid
            self._is_replica_known = True

    def _capture_step(self, deadline: float) -> int:
        with self._holding(self._capture_lock, deadline):
            self._check_open()
            self._captured_ms = self._clock_ms()
            self._capture.step()
            return 0 if self._capture.state is None else self._capture.state.txid

    def _upload_pending(self, deadline: float) -> None:
        with self._holding(self._upload_lock, deadline):
            newest = self._capture.state.txid if self._capture.state else 0
            captured_ms = self._captured_ms
            for file in self._folder.pending():
                self._check_open()
                if file.txid > newest:  # a capture is under way in another thread
                    break
                self._bytes_uploaded += upload(self.client, file)
                self._files_uploaded += 1
                self._uploaded_txid = file.txid
                self._folder.discard([file])
            self._last_sync_ms = captured_ms

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff()
        next_sync = next_try = time.monotonic()
        while not self._closed.wait(self._pause(next_sync)):
            now = time.monotonic()
            if now < next_sync:
                self._attempt(self._settle)
                continue
            next_sync = now + self._sync_interval_s
            is_due = now >= next_try
            error = self._attempt(self._look_at_replica) if is_due else None
            capture_error = self._attempt(self._capture_if_known)
            if is_due and error is None:
                error = self._attempt(self._upload_pending)
            if is_due and error is not None:
                next_try = time.monotonic() + backoff.after(error)
            elif is_due:
                backoff.reset()
            if is_due or capture_error:
                self._last_error = str(error or capture_error) if error or capture_error else None

    def _maintain(self, config: MaintenanceConfig) -> None:
        """Keep the replica tidy, from its first file on."""
        maintenance = Maintenance(self.client, config)
        pause_s = 0.0
        while not self._closed.wait(pause_s):
            if self._uploaded_txid == 0:
                pause_s = self._sync_interval_s
                continue
            try:
                maintenance.run_due()  # logs what fails, and tries it again
            except StorageClosedError:
                return
            pause_s = maintenance.next_due_in_s()

    def _pause(self, next_sync: float) -> float:
        remaining = max(0.0, next_sync - time.monotonic())
        return min(remaining, _MOVE_UP_INTERVAL_S if self._capture.is_at_mark_zero else _SETTLE_INTERVAL_S)

    def _settle(self, deadline: float) -> None:
        with self._holding(self._capture_lock, deadline):
            self._capture.settle()

    def _capture_if_known(self, deadline: float) -> None:
        if self._capture.state is not None:
            self._capture_step(deadline)

    def _attempt(self, action: Callable[[float], object]) -> Exception | None:
        """Do it; log what fails and return it. The thread outlives every error."""
        try:
            action(time.monotonic() + _LOCK_TIMEOUT_S)
        except LitevfsError as exc:
            if not self._closed.is_set():
                logger.warning("%s: %s", self.path, exc)
            return exc
        except Exception as exc:  # a mistake of ours or of a client; replication goes on when it passes
            logger.exception("%s: unexpected error", self.path)
            return exc
        return None

    # --- shared -------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ReplicatorError("the replicator is closed", key=str(self.path))

    def _close_client(self) -> None:
        if self._owns_client:
            self.client.close()

    @contextmanager
    def _holding(self, lock: threading.Lock, deadline: float) -> Generator[None]:
        if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise ReplicatorError("another thread is still busy with this replicator", key=str(self.path))
        try:
            yield
        finally:
            lock.release()
