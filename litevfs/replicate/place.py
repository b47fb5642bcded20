"""One place that a database is replicated to: its client, guard, uploads, maintenance and lease. Captures nothing.

Uploads send the files of its queue in TXID order, at their own pace: a place that cannot be reached, or takes long,
delays no capture and no other place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

from litevfs.concurrency.retry import Backoff
from litevfs.concurrency.turns import Turn
from litevfs.concurrency.workers import WorkerPool
from litevfs.errors import LitevfsError, ReplicatorError, ReplicatorRefusedError, TransientStorageError
from litevfs.maintenance.schedule import MaintenanceConfig
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replicate.attempts import Said, attempt, holding
from litevfs.replicate.begin import is_restored, refuse_unrelated
from litevfs.replicate.capturing import Capturing
from litevfs.replicate.guard import WriterGuard
from litevfs.replicate.joining import ReplicaEnd, Tip, go_on_as_it_is
from litevfs.replicate.lease import keep
from litevfs.replicate.marks import read_restored
from litevfs.replicate.replica_position import ReplicaPosition, key_of_newest, newest_time, next_to
from litevfs.replicate.state import PendingLimitError
from litevfs.replicate.status import CheckResult, PlaceStatus
from litevfs.replicate.upkeep import Upkeep
from litevfs.replicate.upload_queue import UploadQueue
from litevfs.replicate.uploads import BeginReason, Uploads, retry_transient

T = TypeVar("T")

logger = logging.getLogger("litevfs.replicate")

_AS_WELL = "; so it is with"
_GRACE_S = 1.0
"""How long after its time a place may take to give up."""


class Place:
    """A replica of what `capturing` captures. Safe to use from several threads; `closed` refuses all of them.

    `refused` is called with the error that ends its turns. Every `look_interval_s` seconds, at a sync, it lists the
    replica. `urls` are those of all places: a database that was restored from one of them may continue this one, if
    that has the same newest TXID.
    """

    def __init__(
        self,
        client: ReplicaClient,
        queue: UploadQueue,
        guard: WriterGuard,
        capturing: Capturing,
        maintenance: MaintenanceConfig | None,
        *,
        folder_id: Callable[[], str],
        sync_interval_s: float,
        look_interval_s: float,
        new_history: bool,
        closed: threading.Event,
        urls: Sequence[str],
        refused: Callable[[ReplicatorRefusedError], None],
    ) -> None:
        self.client, self.queue, self.guard, self._capturing = client, queue, guard, capturing
        self._path = capturing.path
        self._look_interval_s, self._is_new_history_allowed = look_interval_s, new_history
        self._closed, self._urls, self._refused = closed, urls, refused
        self._is_maintained = maintenance is not None
        self.upload_lock = threading.Lock()  # taken before that of `capturing`
        self._is_known = False
        self._looked_at = 0.0  # the last listing of the replica; monotonic
        self._refusal: ReplicatorRefusedError | None = None  # found at that time, while other places go on
        self._begun = 0  # how often a history was begun
        self._backoff, self._said = Backoff(), Said()
        self.uploads = Uploads(client, queue, guard, folder_id)
        self.upkeep = Upkeep(client, maintenance, self.request_snapshot, self._may_maintain, sync_interval_s)
        self.error: str | None = None
        """Of the last turn, None after a success."""
        self.last_sync_ms: int | None = None
        """Unix time at which everything committed before was on the replica."""
        self.last_check: CheckResult | None = None
        """See `operations.checkup`."""

    @property
    def status(self) -> PlaceStatus:
        """The place's status now."""
        lease = self.guard.lease
        return PlaceStatus(
            replica=self.client.url,
            uploaded_txid=self.uploads.txid,
            pending_files=len(self.queue.pending()),
            files_uploaded=self.uploads.files,
            bytes_uploaded=self.uploads.bytes,
            last_error=self.error,
            last_maintenance_error=self.upkeep.error,
            last_sync_ms=self.last_sync_ms,
            has_lease=lease is not None and lease.is_held,
            lease_protocol=self.guard.protocol,
            waits_to_begin=None if self.queue.is_joined or not self._is_known else self.queue.why_not_joined,
        )

    @property
    def group(self) -> str:
        """What its turns depend on: its storage's server, or its database."""
        parts = urlsplit(self.client.url)
        return f"{parts.scheme}://{parts.netloc}" if parts.netloc else str(self._path)

    def turns(self) -> dict[str, Turn]:
        """What threads are to do for it, by name."""
        turns: dict[str, Turn] = {"litevfs-upload": self.turn}
        if self.guard.lease is not None:
            turns["litevfs-lease"] = partial(keep, self.guard.lease, self._closed, self._path)
        if self._is_maintained:
            turns["litevfs-maintain"] = self.upkeep.turn
        return turns

    def turn(self) -> float | None:
        """Upload what waits; returns the seconds until the next turn, None if that is due after the next capture."""
        error = attempt(self.look, self._path, self._closed, self._said) or attempt(
            self.upload, self._path, self._closed, self._said
        )
        if error is None:
            self.error = None
            self._said.forget()
            self._backoff.reset()
            # Uploads that were lost, or a place to join: the next listing of the replica begins a new history.
            return None if self.uploads.lost is None and self.queue.is_joined else 0.0
        self.error = str(error)
        if isinstance(error, ReplicatorRefusedError):
            self._refused(error)
            return None
        return self._backoff.after(error)

    def sync(self, deadline: float, since: float | None = None) -> int:
        """See `Replicator.sync`; until `deadline` (monotonic). `since`: see `Capturing.step`."""
        retry_transient(lambda: self.check(deadline), deadline, self._closed)
        while True:
            retry_transient(lambda: self.look(deadline), deadline, self._closed)
            begun = self._begun
            try:
                txid = self._capturing.step(deadline) if since is None else self._capturing.step(deadline, since)
            except PendingLimitError:
                txid = 0
            retry_transient(lambda: self.upload(deadline), deadline, self._closed)
            if txid and self.uploads.has_all(txid) and self._begun == begun:
                return txid
            if time.monotonic() > deadline:
                raise ReplicatorError("no time was left to begin again", key=str(self._path))

    def upload_captured(self, deadline: float) -> None:
        """Upload what was captured, if the replica was looked at before; until `deadline` (monotonic)."""
        if self._is_known:
            retry_transient(lambda: self.upload(deadline), deadline, self._closed)

    def has_state(self, txid: int) -> bool:
        """Whether the state of just that TXID was uploaded here: not before the TXID that the place began with."""
        return self.uploads.has_all(txid) and self.queue.record.first <= txid

    def request_snapshot(self, reason: str) -> None:
        """The next sync takes the whole database, and stores it as a snapshot on level 9 too."""
        self.uploads.is_snapshot_due, self._capturing.wanted_snapshot = True, reason

    # --- the parts of a sync ------------------------------------------------------------------------------------------

    def look(self, deadline: float) -> None:
        """When it is time: check that the replica is what the local state says, and begin again if not."""
        if self._refusal is not None and time.monotonic() < self._looked_at + self._look_interval_s:
            raise self._refusal  # to find it out costs as much as the whole database
        try:
            self._look(deadline)
            self._refusal = None
        except ReplicatorRefusedError as exc:
            if len(self._urls) > 1:
                self._refusal, self._looked_at = exc, time.monotonic()
            raise
        finally:
            self._capturing.first_looks.done(self.client.url)

    def _look(self, deadline: float) -> None:
        with self._holding(deadline):
            self._is_known &= self._capturing.keeps_state(deadline)
            is_new_holder = self.guard.hold()
            is_first = not self._is_known
            now = time.monotonic()
            is_due = is_first or is_new_holder or now >= self._looked_at + self._look_interval_s
            is_to_join = not (self.queue.is_joined or self.queue.pending())
            if not is_due and self.uploads.lost is None and not is_to_join:
                return
            self.guard.check_format()
            there, reason = self.uploads.look(self._capturing.capture.state, is_first=is_first)
            if there.problem is not None:
                logger.warning("%s: the replica has no complete state: %s", self._path, there.problem)
                self.request_snapshot(f"the replica has no complete state: {there.problem}")
            if reason is not None and not self._goes_on(there, reason, deadline):
                if not (reason.is_ours or self._is_new_history_allowed):
                    self._refuse_unrelated(there, reason.text, deadline)
                self.begin(there, reason.text, deadline)
            self._is_known, self._looked_at, self._is_new_history_allowed = True, now, False

    def _refuse_unrelated(self, there: ReplicaPosition, reason: str, deadline: float) -> None:
        next_to(there, self.client)  # the greatest TXID there is ends every history
        with self._capturing.holding(deadline):
            refuse_unrelated(self.client, self._path, self._capturing.capture, there, reason, self._urls)

    def _goes_on(self, there: ReplicaPosition, reason: BeginReason, deadline: float) -> bool:
        """Go on where the replica ends, without the whole database, where it ends with just what is known here."""
        if self._is_new_history_allowed or (reason.is_ours and self.queue.is_joined):
            return False
        mark = None if reason.is_ours else read_restored(self._path)
        mark = mark if is_restored(self.client, mark, self._urls, there) else None
        if mark is None and self._capturing.txid != there.txid:
            return False
        key = key_of_newest(self.client, there)
        begin = None if key is None else partial(go_on_as_it_is, queue=self.queue, tip=Tip(key, mark))
        if begin is None or not self._capturing.go_on(begin, deadline):
            return False
        logger.info("%s: goes on after TXID %016x of %s", self._path, there.txid, self.client.url)
        self.uploads.go_on(there.txid)
        self._begun += 1
        return True

    def begin(self, there: ReplicaPosition, reason: str, deadline: float) -> None:
        """Begin a new history, after the replica's newest TXID, with the whole database."""
        end = ReplicaEnd(next_to(there, self.client), newest_time(self.client, there))
        if end.txid:
            logger.warning("%s: beginning again after TXID %016x of the replica: %s", self._path, end.txid, reason)
        self._capturing.begin(self.queue, end, reason, deadline)
        self.uploads.begin(end.txid)
        self._begun += 1

    def upload(self, deadline: float) -> None:
        """Upload the files of the queue."""
        with self._holding(deadline):
            captured_ms = self._capturing.captured_ms  # first: a capture may end meanwhile
            newest = self._capturing.txid
            self.uploads.run(newest, self._check_open)
            if self.uploads.has_all(newest):
                self.last_sync_ms = captured_ms or self.last_sync_ms
            elif self.uploads.lost is not None:
                logger.warning("%s: %s", self._path, self.uploads.lost)

    def check(self, deadline: float) -> None:
        """See `Uploads.check`."""
        with self._holding(deadline):
            self.uploads.check()

    # --- shared -------------------------------------------------------------------------------------------------------

    def _may_maintain(self) -> bool:
        return self.uploads.txid > 0 and (self.guard.lease is None or self.guard.lease.is_held)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ReplicatorError("the replicator is closed", key=str(self._path))

    def _holding(self, deadline: float) -> AbstractContextManager[None]:
        return holding(self.upload_lock, deadline, self._path, self._closed)


def for_all(places: Sequence[Place], act: Callable[[Place], T], deadline: float) -> list[T]:
    """Do this for each place, in a thread each; returns the results in their order. One place: in this thread.

    Raises the error of a place, which it names; also when one is not done a moment after `deadline` (monotonic).
    """
    if len(places) == 1:
        return [act(places[0])]
    pool = WorkerPool(len(places), "litevfs-place")
    try:
        calls = {place.client.url: _submitted(pool, partial(act, place)) for place in places}
        wait(calls.values(), timeout=max(0.0, deadline + _GRACE_S - time.monotonic()))
    finally:
        pool.shutdown()
    failed = {url: _error(call, url) for url, call in calls.items() if not call.done() or call.exception() is not None}
    if failed:
        raise _first(failed)
    return [call.result() for call in calls.values()]


def _submitted(pool: WorkerPool, call: Callable[[], T]) -> Future[T]:
    try:
        return pool.submit(call)
    except RuntimeError as exc:
        raise TransientStorageError(f"no thread can start: {exc}", hint="check the limits on processes") from exc


def _error(call: Future[T], url: str) -> BaseException:
    error = call.exception() if call.done() else None
    return error or ReplicatorError("not done in time", key=url)


def _first(failed: dict[str, BaseException]) -> BaseException:
    """The error that tells most: one that no later try mends, if there is one."""
    url, error = min(failed.items(), key=lambda item: isinstance(item[1], TransientStorageError))
    if isinstance(error, LitevfsError):
        others = ", ".join(other for other in failed if other != url)
        told = error.message.partition(_AS_WELL)[0].removeprefix(f"to {url}: ")  # it may be raised again
        error.message = f"to {url}: {told}" + (f"{_AS_WELL} {others}" if others else "")
    return error
