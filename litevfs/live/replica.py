"""One replica in one process: the published snapshot, `refresh()` to newer ones, the status. Shared by connections.

Readers take the published snapshot by one attribute read and keep it as long as they like; a refresh builds a new one
and publishes it by one assignment. One refresh runs at a time.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

from litevfs.concurrency.calls import SharedCall, call_alone, call_within
from litevfs.concurrency.clock import now_s
from litevfs.concurrency.condition import Condition
from litevfs.concurrency.retry import is_transient
from litevfs.errors import (
    LitevfsError,
    LTXFormatError,
    ReplicaError,
    StorageClosedError,
    StorageError,
    StorageNotFoundError,
)
from litevfs.files.fetch import Fetcher
from litevfs.files.write_behind import disk_cache_for
from litevfs.live.freshness import MIN_REFRESH_S, may_pass, persistently, stale_error, wait_for_txid
from litevfs.live.health import Health, State
from litevfs.live.keeper import Keeper, first_state
from litevfs.live.opening import Opening, may_begin
from litevfs.live.poller import Poller
from litevfs.live.status import ReplicaStatus, collect_status
from litevfs.ltx.names import format_txid
from litevfs.options import Options
from litevfs.pages.source import PageSource
from litevfs.replica_clients.nearby import replicas_near
from litevfs.replica_clients.urls import open_replica_client
from litevfs.states.follower import Follower
from litevfs.states.snapshot import Snapshot
from litevfs.states.views import Moment, OtherStates, page_gone

logger = logging.getLogger("litevfs.live.replica")

T = TypeVar("T")

WAIT_BACKOFF_CAP_S = 1.0
"""Longest pause between refreshes for an awaited TXID, if no poller runs."""
BESIDE_S = 2.0
"""If there is a state to read, a refresh may keep a new connection waiting for so long."""
JUST_NOW_S = 1.0
"""A state that was the newest so shortly ago, or a poll interval before that, is new enough to open."""


class Replica:
    """A live replica. `open()` it, read `snapshot` and `pages`, `close()` it."""

    def __init__(self, options: Options, *, clock: Callable[[], float] = now_s) -> None:
        """`clock` gives the seconds that decide when all levels are listed, and when a replica counts as set back."""
        self.options = options
        self.snapshot: Snapshot | None = None  # the published state
        self._open_storage()
        self._follower = Follower(self.fetcher, self.pages.keep, clock)
        self._others = OtherStates(self._follower)
        self._poller: Poller | None = None
        self.interval_after_fork_s = 0.0
        self._listeners: list[Callable[[int], None]] = []
        self._closed = False
        self.health = Health(self.url)
        self._hydrate()  # last: if `__init__` fails later, no caller could close the thread

    def _open_storage(self, *, forked: bool = False) -> None:
        self._refresh_lock = threading.Lock()
        self._published = Condition()
        options = self.options
        client = open_replica_client(options.replica_url, read_timeout_s=options.read_timeout_s)
        disk_cache = disk_cache_for(client, options, prepare=not forked)
        self._keeper = Keeper(options.cache_dir, client.url, verify=options.verify) if disk_cache else None
        self.fetcher = Fetcher(
            client,
            read_timeout_s=options.read_timeout_s,
            disk_cache=disk_cache,
            verify=options.verify,
            max_requests_per_s=options.max_requests_per_s,
        )
        self._bounded_refresh = SharedCall(self.refresh, "litevfs-refresh", self.fetcher.troubles.too_late)
        self.pages = PageSource(
            self.fetcher,
            self._find_elsewhere,
            cache_size_bytes=options.cache_size_bytes,
            prefetch=options.prefetch,
            spill_size_bytes=options.spill_size_bytes,
        )

    def _hydrate(self, *, lazily: bool = False) -> None:
        if self.options.hydration_enabled:
            self.pages.hydrate(self.options.hydration_path or None, lazily=lazily)

    # --- life ---------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The replica's URL, without credentials."""
        return self.fetcher.client.url

    def open(self, timeout_s: float) -> Snapshot:
        """The newest state; waits up to `timeout_s` for a first complete one, then raises the last error.

        If other connections have the replica open, this refreshes it unless the poller has just done so; if that
        fails or takes long, it returns the published state.
        """
        if self.snapshot is None:
            opening = Opening(self.url, timeout_s, self._look_around, verifies=self.options.verify)
            try:
                persistently(self, self._first_refresh, timeout_s, may_begin, opening.note)
            except LitevfsError as error:
                raise opening.error(error) from error
        elif not self._was_just_refreshed() and self.health.refresh_s() <= BESIDE_S:
            try:
                self._bounded_refresh.result(min(max(timeout_s, MIN_REFRESH_S), BESIDE_S))
            except StorageClosedError:
                raise
            except LitevfsError as error:
                logger.info("%s is opened at its last state: %s", self.url, error)
        assert self.snapshot is not None
        return self.snapshot

    def _first_refresh(self, timeout_s: float) -> None:
        if self.snapshot is None:  # otherwise another thread was faster
            self._bounded_refresh.result(timeout_s)

    def _look_around(self) -> list[str]:
        return call_within(lambda: replicas_near(self.fetcher.client), MIN_REFRESH_S, "litevfs-look")

    def _was_just_refreshed(self) -> bool:
        """Whether a refresh has just succeeded, as all do while polls come in time: connections share these."""
        age_s, interval_s = self.health.lag_s(), self._poll_interval_s
        return bool(interval_s) and age_s is not None and age_s <= JUST_NOW_S + min(interval_s, JUST_NOW_S)

    def poll_every(self, interval_s: float) -> None:
        """Poll from now on, at the shortest interval that any connection asks for (0: this one does not ask)."""
        with self._published:  # connections may open at the same time
            if interval_s <= 0 or self._closed:
                return
            if self._poller is None:
                self._poller = Poller(_refresh_without_owning(weakref.ref(self)), interval_s, self.url)
            elif interval_s < self._poller.interval_s:
                self._poller.set_interval(interval_s)
            self.interval_after_fork_s = 0.0  # only once there is a poller

    def slow_down(self, wanted_s: Callable[[], float]) -> None:
        """Poll every `wanted_s()` seconds from now on if that is less often, as a connection was closed."""
        with self._published:  # a connection that opens after `wanted_s()` sets its shorter interval afterwards
            if self._poller is not None and (interval_s := wanted_s()) > self._poller.interval_s:
                self._poller.set_interval(interval_s)

    def detach_poller(self) -> Poller | None:
        """Give up the poller, as no connection polls any more; the caller closes it. None if there is none."""
        with self._published:
            poller, self._poller = self._poller, None
        return poller

    def close(self) -> None:
        """End the poller and every request, close sockets and descriptors. Within a second; idempotent."""
        self._closed = True
        self.fetcher.close()
        self.pages.close()
        if (poller := self.detach_poller()) is not None:
            poller.close()
        if self._keeper is not None:
            self._keeper.close()
        with self._published:
            self._published.notify_all()

    def restart_after_fork(self) -> None:
        """In a forked child: own client, locks and caches; the published state stays. Starts no thread yet.

        Threads do not survive a fork, sockets would be shared with the parent, and a lock may be held for ever.
        """
        poller, self._poller = self._poller, None
        if poller is not None:  # otherwise this may be the child of a child, which has noted the interval
            self.interval_after_fork_s = poller.interval_s
        hydrated = self.pages.leave_to_parent()
        self.health.forget_refresh()
        self._open_storage(forked=True)
        self._follower.use(self.fetcher, self.pages.keep)
        self._hydrate(lazily=True)
        if hydrated is not None:
            self.pages.follow(hydrated)

    def wake(self) -> None:
        """Start the poller that a fork has ended, if there was one. Cheap enough for every transaction."""
        if self.interval_after_fork_s:
            self.poll_every(self.interval_after_fork_s)

    # --- refresh ------------------------------------------------------------------------------------------------------

    def refresh(self, *, thorough: bool = True) -> bool:
        """List the new files and publish the newest complete state. True if the state changed.

        `thorough=False` (see `Follower.follow`) is for a caller that refreshes again by itself. Raises the error that
        kept it from the newest state, after publishing every complete state before that.
        """
        with self._refresh_lock:
            before = self.snapshot
            self._check_open()
            self.health.begin()
            try:
                try:
                    is_proof = self._refresh_once(thorough)
                except StorageNotFoundError as error:
                    # Retention deleted a file after the listing, or Litestream set the time of a new one.
                    logger.info("%s: refreshing again: %s", self.url, error)
                    is_proof = self._refresh_once(thorough)
            except Exception as error:
                self.health.fail(error, self.state)
                raise
            self.health.succeed(is_proof=is_proof)
            if self.snapshot is not before and self.snapshot is not None:
                self._note(self.snapshot)
            return self.snapshot is not before

    def _refresh_once(self, thorough: bool) -> bool:
        if self.snapshot is not None:
            return self._follower.follow(self.snapshot, self._publish, thorough=thorough)
        hydration = self.pages.hydration
        known = (hydration and hydration.known) or (self._keeper and self._keeper.load()) or None
        newest = first_state(self._follower, known)
        self._publish(newest, [newest.txid])
        return True

    def _note(self, snapshot: Snapshot) -> None:
        """Leave what is known now to a later process, where it may lie."""
        for place in (self._keeper, self.pages.hydration):
            if place is not None:
                place.note(self._follower.known(snapshot, is_verified=self.options.verify))

    def refresh_now(self) -> None:
        """One refresh that begins now. Raises the refresh's error, and StorageTimeoutError after the read timeout."""
        timeout_s = max(self.options.read_timeout_s, MIN_REFRESH_S)
        self._bounded_refresh.result(timeout_s, not_before=now_s())

    def _check_open(self) -> None:
        if self._closed:
            raise StorageClosedError("the replica is closed")

    def _publish(self, snapshot: Snapshot, txids: Sequence[int]) -> None:
        self._check_open()
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

        The thread that refreshes calls it: it must be quick and must not raise.
        """
        with self._published:
            self._listeners.append(listener)
            return self.snapshot.txid if self.snapshot else 0

    def remove_listener(self, listener: Callable[[int], None]) -> None:
        """Stop calling `listener`; one call may still be under way. Idempotent."""
        with self._published:
            if listener in self._listeners:
                self._listeners.remove(listener)

    def wait_for(self, txid: int, timeout_s: float) -> Snapshot:
        """The published state once it is at `txid` or later; refreshes at once, then waits for polls.

        Raises StaleReplicaError after `timeout_s` seconds.
        """
        return wait_for_txid(self, txid, timeout_s, self._poll_interval_s or WAIT_BACKOFF_CAP_S)

    def refresh_within(self, seconds: float) -> bool:
        """A refresh that callers share, for so many seconds or MIN_REFRESH_S. Raises StorageTimeoutError then."""
        return self._bounded_refresh.result(max(seconds, MIN_REFRESH_S))

    def wait_for_news(self, known: Snapshot | None, timeout_s: float) -> None:
        """Wait until another state than `known` is published, the replica is closed, or the time is over."""
        with self._published:
            self._published.wait_for(lambda: self._closed or self.snapshot is not known, timeout_s)

    def check_freshness(self, max_staleness_s: float) -> None:
        """Refresh unless a refresh that missed nothing began within `max_staleness_s`, or raise StaleReplicaError.

        The published state then contains everything that the storage held so long ago.
        """
        age_s = self.health.proof_age_s()
        if age_s is not None and age_s <= max_staleness_s:
            return
        not_before = now_s() - max_staleness_s
        try:
            self._bounded_refresh.result(max(max_staleness_s, MIN_REFRESH_S), not_before=not_before)
        except (ReplicaError, StorageError, LTXFormatError) as error:
            raise stale_error(
                self, f"the replica could not be refreshed within max_staleness ({max_staleness_s:g} s)", error
            ) from error

    # --- other states than the newest ---------------------------------------------------------------------------------

    def view(
        self, *, txid: int | None = None, timestamp_ms: int | None = None, timeout_s: float | None = None
    ) -> Snapshot:
        """The state after transaction `txid`, or as of a time (ms since the Unix epoch), or the newest; fixed.

        Raises TXIDNotFoundError when the replica does not hold it. Transient errors are retried for `timeout_s` (the
        read timeout unless given), which bounds all of it.
        """
        timeout_s = self.options.read_timeout_s if timeout_s is None else timeout_s
        view = self._persistently(self._alone(lambda: self._others.view(txid, timestamp_ms)), timeout_s, may_pass)
        if self.snapshot is None:
            self.pages.follow(view)
        return view

    def pair(self, old: Moment, new: Moment) -> tuple[Snapshot, Snapshot]:
        """Two fixed states to be compared, each by (TXID, time): see `view`, and `OtherStates.pair`."""
        make = self._alone(lambda: self._others.pair(old, new))
        return self._persistently(make, self.options.read_timeout_s, may_pass)

    def _find_elsewhere(self, snapshot: Snapshot, pgno: int, why: StorageNotFoundError, deadline: float) -> Snapshot:
        """A state that holds the same version of page `pgno` as `snapshot`, whose file is gone, in another file.

        Raises PageUnavailableError if no file holds that version any more, and the error that stops the search until
        the deadline; one listing may end later.
        """

        def find() -> Snapshot | None:
            return self._others.find(snapshot, pgno, lambda: self.snapshot, self._publish)

        found = self._others.find_known(snapshot, pgno, self.snapshot)
        if found is None:
            found = self._persistently(self._alone(find), deadline - time.monotonic(), is_transient)
        if found is None:
            raise page_gone(snapshot, pgno, self.snapshot, self.fetcher.client) from why
        return found

    def _alone(self, call: Callable[[], T]) -> Callable[[float], T]:
        """A function that makes `call` while no refresh runs, within so many seconds."""

        def unless_closed() -> T:
            self._check_open()
            return call()

        too_late = self.fetcher.troubles.too_late
        return lambda timeout_s: call_alone(unless_closed, self._refresh_lock, timeout_s, "litevfs-look", too_late)

    def _persistently(
        self, call: Callable[[float], T], timeout_s: float, may_pass: Callable[[LitevfsError], bool]
    ) -> T:
        """`call(seconds it may take)`, tried again after errors that may pass, until the time is over."""
        return persistently(self, call, timeout_s, may_pass)

    # --- status -------------------------------------------------------------------------------------------------------

    def lag_s(self) -> float | None:
        """Seconds since the last successful refresh began; None before the first."""
        return self.health.lag_s()

    @property
    def state(self) -> State:
        """The replica's state, see `State`."""
        if self._closed:
            return State.CLOSED
        return State.OPENING if self.snapshot is None else self.health.state(self._poll_interval_s)

    @property
    def _poll_interval_s(self) -> float:
        return self._poller.interval_s if self._poller else 0.0

    def status(self) -> ReplicaStatus:
        """All values worth monitoring, as of now; never a credential."""
        return collect_status(
            self.url, self.state, self.snapshot, self._poll_interval_s, self.health, self.fetcher, self.pages
        )


def _refresh_without_owning(reference: weakref.ref[Replica]) -> Callable[[], bool]:
    def refresh() -> bool:
        if (replica := reference()) is not None:
            replica.refresh(thorough=False)
        return replica is not None

    return refresh
