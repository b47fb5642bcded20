"""One replica in one process: the published snapshot, `refresh()` that moves it on, the status. Shared by connections.

Readers take the published snapshot by one attribute read and keep it as long as they like; a refresh builds a new one
and publishes it by one assignment. One refresh runs at a time.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence

from litevfs.backoff import Backoff
from litevfs.bounded import SharedCall
from litevfs.disk_cache import DiskCounters
from litevfs.errors import (
    LitevfsError,
    LTXFormatError,
    PageUnavailableError,
    ReplicaEmptyError,
    ReplicaError,
    StaleReplicaError,
    StorageClosedError,
    StorageError,
    StorageNotFoundError,
    StorageTimeoutError,
    TransientStorageError,
    TXIDGapError,
)
from litevfs.fetch import Fetcher
from litevfs.follower import Follower
from litevfs.ltx.names import format_txid
from litevfs.options import Options, format_timestamp
from litevfs.pages import PageSource
from litevfs.poller import Poller
from litevfs.replica_clients.urls import open_replica_client
from litevfs.snapshot import Snapshot
from litevfs.status import ReplicaStatus, State
from litevfs.views import OtherStates
from litevfs.write_behind import disk_cache_for

logger = logging.getLogger("litevfs.replica")

STALLED_AFTER_S = 30.0
"""A replica that could not be brought up to date for so long (and ten polls) is stalled."""
WAIT_BACKOFF_CAP_S = 1.0
"""Longest pause between looks for an awaited TXID, where nothing polls."""
OPEN_BACKOFF_CAP_S = 0.5
"""Longest pause between looks for a first state."""
MIN_REFRESH_S = 1.0
"""However soon somebody wants an answer, a storage gets this long to give one."""
JUST_NOW_S = 1.0
"""A state that was the newest so shortly ago is new enough to open."""


class Replica:
    """A live replica. `open()` it, read `snapshot` and `pages`, `close()` it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.snapshot: Snapshot | None = None  # the published state
        self._open_storage()
        self._follower = Follower(self.fetcher, self.pages.keep)
        self._others = OtherStates(self._follower)
        self._poller: Poller | None = None
        self._interval_after_fork_s = 0.0
        self._listeners: list[Callable[[int], None]] = []
        self._closed = False
        self._error: Exception | None = None
        self._errors = 0
        self._said_stalled = False
        self._last_success: float | None = None  # monotonic, seconds
        self._failing_since: float | None = None  # monotonic, seconds

    def _open_storage(self, *, forked: bool = False) -> None:
        self._refresh_lock = threading.Lock()
        self._published = threading.Condition()
        self._bounded_refresh = SharedCall(self.refresh, "litevfs-refresh")
        options = self.options
        client = open_replica_client(options.replica_url, read_timeout_s=options.read_timeout_s)
        disk_cache = disk_cache_for(client, options.cache_dir, options.cache_dir_size_bytes, prepare=not forked)
        self.fetcher = Fetcher(
            client, read_timeout_s=options.read_timeout_s, disk_cache=disk_cache, verify=options.verify
        )
        self.pages = PageSource(
            self.fetcher, self._find_elsewhere, cache_size_bytes=options.cache_size_bytes, prefetch=options.prefetch
        )
        if options.hydration_enabled:
            self.pages.hydrate(options.hydration_path or None, lazily=forked)

    # --- life ---------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The replica's URL, without credentials."""
        return self.fetcher.client.url

    def open(self, timeout_s: float) -> Snapshot:
        """The newest state; waits up to `timeout_s` for a first complete one, then raises what was in the way.

        Where others have the replica open, it is looked at again unless somebody polls; if that fails, theirs will do.
        """
        deadline = time.monotonic() + timeout_s
        backoff = Backoff(cap_s=OPEN_BACKOFF_CAP_S)
        while self.snapshot is None or not self._was_just_refreshed():
            try:
                self._bounded_refresh.result(max(deadline - time.monotonic(), MIN_REFRESH_S))
                break
            except (ReplicaEmptyError, TXIDGapError, TransientStorageError) as error:
                if self.snapshot is not None:
                    break
                pause = backoff.after(error)
                if time.monotonic() + pause >= deadline:
                    raise self._open_error(error, timeout_s) from error
                with self._published:
                    self._published.wait(pause)
        assert self.snapshot is not None
        return self.snapshot

    def _was_just_refreshed(self) -> bool:
        """Whether somebody polls, and has looked a moment ago: connections that open together share one look."""
        lag_s = self.lag_s()
        return self._poller is not None and lag_s is not None and lag_s <= JUST_NOW_S

    def _open_error(self, error: LitevfsError, timeout_s: float) -> LitevfsError:
        if isinstance(error, StorageTimeoutError) and self.options.verify:
            hint = "verify reads every LTX file whole: open_timeout has to leave time for that"
            return StorageTimeoutError(error.message, key=self.url, hint=hint)
        if not isinstance(error, ReplicaEmptyError):
            return error
        return ReplicaEmptyError(
            f"no LTX files on any level after waiting {timeout_s:g} s",
            key=self.url,
            hint="check the path, and that the primary replicates to it; open_timeout sets the wait",
        )

    def poll_every(self, interval_s: float) -> None:
        """Poll from now on, at the shortest interval that any connection asked for (0: this one does not ask)."""
        with self._published:  # connections may open at the same time
            if interval_s <= 0 or self._closed:
                return
            self._interval_after_fork_s = 0.0
            if self._poller is None:
                self._poller = Poller(_refresh_without_owning(weakref.ref(self)), interval_s, self.url)
            elif interval_s < self._poller.interval_s:
                self._poller.set_interval(interval_s)

    def detach_poller(self) -> Poller | None:
        """Nobody wants news any more: the poller, to be closed by the caller, or None."""
        with self._published:
            poller, self._poller = self._poller, None
        return poller

    def close(self) -> None:
        """End the poller and every request, let go of sockets and descriptors. Within a second; idempotent."""
        self._closed = True
        self.fetcher.close()
        self.pages.close()
        if (poller := self.detach_poller()) is not None:
            poller.close()
        with self._published:
            self._published.notify_all()

    def restart_after_fork(self) -> None:
        """In a forked child: own client, locks and caches; the published state stays. Starts no thread yet.

        Threads do not survive a fork, sockets would be shared with the parent, and a lock may be held for ever.
        """
        poller, self._poller = self._poller, None
        if poller is not None:  # else this may be the child of a child, and the interval is known
            self._interval_after_fork_s = poller.interval_s
        hydrated = self.pages.hydration.leave_to_parent() if self.pages.hydration is not None else None
        self._open_storage(forked=True)
        self._follower.use(self.fetcher, self.pages.keep)
        if hydrated is not None:
            self.pages.follow(hydrated)

    def wake(self) -> None:
        """Start the poller that a fork has ended, if there was one. Cheap enough for every transaction."""
        if self._interval_after_fork_s:
            interval_s, self._interval_after_fork_s = self._interval_after_fork_s, 0.0
            self.poll_every(interval_s)

    # --- refresh ------------------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Look for new transactions and publish the newest complete state. True if the state changed.

        Raises what kept it from getting there; whatever was complete before the trouble is published all the same.
        """
        with self._refresh_lock:
            before = self.snapshot
            if self._closed:
                raise _closed_error()
            try:
                try:
                    self._look()
                except StorageNotFoundError as error:
                    # Retention took a file between the listing and the read, or Litestream set the time of a new one.
                    logger.info("%s: looking again: %s", self.url, error)
                    self._look()
            except Exception as error:
                self._note_failure(error)
                raise
            self._note_success()
            return self.snapshot is not before

    def _look(self) -> None:
        if self.snapshot is None:
            newest = self._follower.open_newest()
            self._publish(newest, [newest.txid])
        else:
            self._follower.follow(self.snapshot, self._publish)

    def _note_failure(self, error: Exception) -> None:
        """Say it once when it begins and once when it has lasted; status and lag show it all the while."""
        state = self.state
        self._errors += 1
        self._error = error
        if self._closed:
            return
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            if self.snapshot is not None:
                logger.warning("%s stays at its last state: %s", self.url, error)
        if state is State.STALLED and not self._said_stalled:
            self._said_stalled = True
            logger.error("%s is stalled: %s", self.url, error)

    def _note_success(self) -> None:
        if self._failing_since is not None and self.snapshot is not None:
            logger.info("%s is up to date again", self.url)
        self._error = self._failing_since = None
        self._said_stalled = False
        self._last_success = time.monotonic()

    def _publish(self, snapshot: Snapshot, txids: Sequence[int]) -> None:
        if self._closed:
            raise _closed_error()
        with self._published:
            self.snapshot = snapshot
            self._published.notify_all()
            listeners = tuple(self._listeners)
        self.pages.follow(snapshot)
        for txid in txids:
            logger.debug("%s is at TXID %s", self.url, format_txid(txid))
            for listener in listeners:
                listener(txid)

    # --- freshness ----------------------------------------------------------------------------------------------------

    def add_listener(self, listener: Callable[[int], None]) -> int:
        """Call `listener(txid)` for each TXID published from now on, in order. Returns the one published last.

        It is called by whoever refreshes: it must be quick and must not raise.
        """
        with self._published:
            self._listeners.append(listener)
            return self.snapshot.txid if self.snapshot else 0

    def remove_listener(self, listener: Callable[[int], None]) -> None:
        """No more calls, but for one that may be under way."""
        with self._published:
            self._listeners.remove(listener)

    def wait_for(self, txid: int, timeout_s: float) -> Snapshot:
        """The published state once it is at `txid` or later; looks for it at once, then with every poll.

        Raises StaleReplicaError after `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        backoff = Backoff(cap_s=self._poll_interval_s or WAIT_BACKOFF_CAP_S)
        while True:
            snapshot = self.snapshot
            if snapshot is not None and snapshot.txid >= txid:
                return snapshot
            remaining = deadline - time.monotonic()
            try:
                if self._bounded_refresh.result(max(remaining, MIN_REFRESH_S)):
                    continue
                pause = backoff.next_s()
            except (TransientStorageError, ReplicaError, LTXFormatError) as error:  # a file half uploaded, for example
                logger.info("while waiting for TXID %s: %s", format_txid(txid), error)
                pause = backoff.after(error)
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise self._stale(f"TXID {format_txid(txid)} has not arrived within {timeout_s:g} s")
            with self._published:
                if self.snapshot is snapshot and not self._closed:
                    self._published.wait(min(remaining, pause))

    def check_freshness(self, max_staleness_s: float) -> None:
        """Refresh now if the last success is older than `max_staleness_s`. Raises StaleReplicaError if that fails."""
        lag_s = self.lag_s()
        if lag_s is not None and lag_s <= max_staleness_s:
            return
        try:
            self._bounded_refresh.result(max(max_staleness_s, MIN_REFRESH_S))
        except (ReplicaError, StorageError, LTXFormatError) as error:
            raise self._stale(
                f"the replica could not be refreshed within max_staleness ({max_staleness_s:g} s)"
            ) from error

    def _stale(self, what: str) -> StaleReplicaError:
        error = f"; the last look failed: {getattr(self._error, 'message', self._error)}" if self._error else ""
        txid = self.snapshot.txid if self.snapshot else None
        return StaleReplicaError(
            what + error, min_txid=txid, key=self.url, hint="check that the primary is running and replicating"
        )

    # --- other states than the newest ---------------------------------------------------------------------------------

    def view(self, *, txid: int | None = None, timestamp_ms: int | None = None) -> Snapshot:
        """The state after transaction `txid`, or as of a time (milliseconds since the Unix epoch); fixed.

        Raises TXIDNotFoundError when the replica does not hold it.
        """
        with self._refresh_lock:
            if self._closed:
                raise _closed_error()
            view = self._others.view(txid, timestamp_ms)
            if self.snapshot is None:
                self.pages.follow(view)
            return view

    def _find_elsewhere(self, snapshot: Snapshot, pgno: int, why: StorageNotFoundError) -> Snapshot:
        """A state that holds the same version of page `pgno` as `snapshot`, whose file is gone, in another file.

        Raises PageUnavailableError when nothing holds that version any more.
        """
        missing = snapshot.files[snapshot.file_number(pgno)]
        with self._refresh_lock:
            found = (
                self._others.find_known(snapshot, pgno, self.snapshot)
                or self._others.find_again(snapshot, self.snapshot, self._publish)
                or self._others.find_known(snapshot, pgno, self.snapshot)  # which has moved on meanwhile
            )
        if found is not None:
            return found
        raise PageUnavailableError(
            f"page {pgno} of the state that this transaction reads is gone: its LTX file was deleted or replaced",
            level=missing.level,
            min_txid=missing.min_txid,
            max_txid=missing.max_txid,
            key=self.fetcher.client.key(missing),
            hint="begin a new transaction, it reads a newer state; or lengthen the retention on the primary",
        ) from why

    # --- status -------------------------------------------------------------------------------------------------------

    def lag_s(self) -> float | None:
        """Seconds since the last successful look for new transactions; None before the first."""
        return None if self._last_success is None else time.monotonic() - self._last_success

    @property
    def state(self) -> State:
        """Where the replica is in its life."""
        if self._closed:
            return State.CLOSED
        if self.snapshot is None:
            return State.OPENING
        if self._failing_since is None:
            return State.CURRENT
        patience_s = max(STALLED_AFTER_S, 10 * self._poll_interval_s)
        return State.STALLED if time.monotonic() - self._failing_since > patience_s else State.BEHIND

    @property
    def _poll_interval_s(self) -> float:
        return self._poller.interval_s if self._poller else 0.0

    def status(self) -> ReplicaStatus:
        """Everything worth watching, as of now; never a credential."""
        snapshot, requests, pages = self.snapshot, self.fetcher.counters, self.pages.counters
        disk_cache = self.fetcher.disk_cache
        disk = disk_cache.counters if disk_cache else DiskCounters()
        return ReplicaStatus(
            url=self.url,
            state=self.state,
            txid=format_txid(snapshot.txid if snapshot else 0),
            time=format_timestamp(snapshot.timestamp_ms) if snapshot else None,
            epoch=snapshot.epoch if snapshot else 0,
            page_size=snapshot.page_size if snapshot else 0,
            commit=snapshot.commit if snapshot else 0,
            lag_s=self.lag_s(),
            poll_interval_s=self._poll_interval_s,
            errors=self._errors,
            last_error=str(self._error) if self._error else None,
            cache_hits=pages.hits,
            cache_misses=pages.misses,
            cache_hydrated=pages.hydrated,
            cache_bytes=self.pages.memory_bytes,
            disk_cache_hits=disk.hits,
            disk_cache_misses=disk.misses,
            disk_cache_damaged=disk.damaged,
            disk_cache_writing=disk_cache is not None and disk_cache.is_writing,
            index_bytes=snapshot.index_bytes() if snapshot else 0,
            list_requests=requests.list,
            get_requests=requests.get,
            bytes_read=requests.bytes_read,
            retries=requests.retries,
        )


def _closed_error() -> StorageClosedError:
    return StorageClosedError("the replica is closed")


def _refresh_without_owning(reference: weakref.ref[Replica]) -> Callable[[], bool]:
    def refresh() -> bool:
        if (replica := reference()) is not None:
            replica.refresh()
        return replica is not None

    return refresh
