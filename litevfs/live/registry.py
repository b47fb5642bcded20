"""One `Replica` per replica and process, shared by every connection that opens it and dropped with the last one, or
`keep_open` after it.

The garbage collector may release a connection, in any thread and at any moment: also in a thread that runs this
package's code and holds its locks. So a release only takes a name off a list, under a reentrant lock; a separate thread
then closes the replica, and the release waits for that thread no longer than a close may take.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from litevfs.concurrency.scheduler import scheduler
from litevfs.errors import TransientStorageError
from litevfs.live.counts import ClosedCounts, Counts, counts_of
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.replica_clients.urls import absolute_url, canonical_url

logger = logging.getLogger("litevfs.live.registry")

CLOSE_TIMEOUT_S = 0.9
"""How long a release waits for the end of a replica, which goes on in the background."""

_KEPT = "keep_open"
"""The place of the scheduler's calls that let replicas go."""

_Key = tuple[object, ...]
"""See `Options.of_replica`."""


@dataclass(slots=True, eq=False)
class Lease:
    """A connection's hold on a shared replica, from `ReplicaRegistry.acquire` to `release`."""

    options: Options
    shared: Shared

    @property
    def replica(self) -> Replica:
        """The replica, not necessarily opened yet."""
        assert self.shared.replica is not None
        return self.shared.replica


@dataclass(slots=True, eq=False)
class Shared:
    """A replica and the leases on it."""

    key: _Key
    replica: Replica | None = None  # while the first connection makes it
    leases: set[Lease] = field(default_factory=set)
    making: threading.Lock = field(default_factory=threading.Lock)
    kept: Lease | None = None  # one of `leases`, of no connection: it keeps the replica open until `keep_until`
    keep_until: float = 0.0  # by time.monotonic
    is_watched: bool = False  # a call of the scheduler's ends it then

    def poll_interval_s(self) -> float:
        """The shortest interval that a connection asks for; 0: no connection polls."""
        leases = self.leases.copy()  # unlike `tuple`, this lets no finalizer, which may release one, run in between
        return min((lease.options.poll_interval_s for lease in leases if lease.options.is_polling), default=0)


@dataclass(frozen=True, slots=True)
class OpenReplica:
    """A replica that connections hold open."""

    replica: Replica
    connections: int
    polls: bool


class ReplicaRegistry:
    """Hands out shared replicas. Safe to use from many threads, from finalizers, and after a fork."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may need it while this thread holds it
        self.shared: dict[_Key, Shared] = {}
        """What is open. For others to look at only."""
        self._closed = ClosedCounts()
        os.register_at_fork(after_in_child=self._after_fork_in_child)

    def acquire(self, options: Options) -> Lease:
        """A hold on the replica at `options.replica_url`; `release` it.

        Connections share a replica when the options that it depends on are equal (`Options.of_replica`). Of the others,
        the shortest poll interval and the largest cache apply. Connections that do not poll share a separate replica,
        which no poller refreshes. The URL keeps its present meaning when the current folder changes.
        """
        options = replace(options, replica_url=absolute_url(options.replica_url))
        lease = Lease(options, Shared(_key(options)))
        try:
            shared = self._join(lease)
            with shared.making:
                if shared.replica is None:
                    shared.replica = Replica(options)
                else:
                    shared.replica.pages.enlarge(options.cache_size_bytes)
            return lease
        except BaseException:
            self.release(lease)
            raise

    def _join(self, lease: Lease) -> Shared:
        """Add the lease to the holders of its replica."""
        new = lease.shared
        with self._lock:
            while True:
                lease.shared = self.shared.setdefault(new.key, new)
                lease.shared.leases.add(lease)
                if self.shared.get(new.key) is lease.shared:
                    return lease.shared
                # A finalizer has just released the last lease before this one, and the replica is being closed.

    def release(self, lease: Lease) -> None:
        """Release a lease; the last release closes the replica, after `keep_open`. Idempotent, within a second."""
        shared = lease.shared
        with self._lock:
            if lease not in shared.leases:
                return
            begins_to_keep = self._keep(lease)
            shared.leases.discard(lease)
            is_last = not shared.leases
            if is_last and self.shared.get(shared.key) is shared:
                del self.shared[shared.key]
            if is_last and shared.replica is not None:
                self._closed.add(shared.replica)
        if shared.replica is None:
            return
        if is_last:
            _in_background(shared.replica.close)
        elif begins_to_keep:
            _in_background(partial(self._watch_kept, shared))
        elif lease.options.is_polling and not 0 < shared.poll_interval_s() <= lease.options.poll_interval_s:
            _in_background(partial(_slow_down, shared, shared.replica))

    def _keep(self, lease: Lease) -> bool:
        """Keep the replica for as long as the lease asks for; with the lock. Whether the end is to be watched."""
        shared, keep_s = lease.shared, lease.options.keep_open_s
        if keep_s <= 0 or shared.replica is None:
            return False
        shared.keep_until = max(shared.keep_until, time.monotonic() + keep_s)
        kept = Lease(replace(lease.options, keep_open_s=0.0), shared)
        if shared.kept is None:
            shared.kept = kept
            shared.leases.add(kept)
        return not shared.is_watched

    def _watch_kept(self, shared: Shared) -> None:
        with self._lock:
            if shared.is_watched:
                return
            shared.is_watched = True
        try:
            scheduler.add(partial(self._end_kept, shared), shared.keep_until - time.monotonic(), _KEPT)
        except TransientStorageError:  # no thread can start
            shared.keep_until = 0.0
            self._end_kept(shared)

    def _end_kept(self, shared: Shared) -> float | None:
        """Let the replica go if its time is over. Else the seconds that are left; connections were closed meanwhile."""
        with self._lock:
            if shared.kept is not None and (left_s := shared.keep_until - time.monotonic()) > 0:
                return left_s
            kept, shared.kept, shared.is_watched = shared.kept, None, False
        if kept is not None:
            self.release(kept)
        return None

    def forget(self, lease: Lease) -> None:
        """In a forked child: like `release`, but without waiting, as the replica has no thread or request there yet."""
        with self._lock:
            lease.shared.leases.discard(lease)
            if not lease.shared.leases:
                self.shared.pop(lease.shared.key, None)

    def survey(self) -> tuple[dict[str, list[OpenReplica]], dict[str, Counts]]:
        """The open replicas by URL, and counts by URL, of those that were closed too."""
        opened: dict[str, list[OpenReplica]] = {}
        with self._lock:
            counts = dict(self._closed.items())
            for shared in self.shared.values():
                if (replica := shared.replica) is not None:
                    one = OpenReplica(replica, len(shared.leases - {shared.kept}), shared.poll_interval_s() > 0)
                    opened.setdefault(replica.url, []).append(one)
                    counts[replica.url] = counts.get(replica.url, Counts()) + counts_of(replica)
        return opened, counts

    def _after_fork_in_child(self) -> None:
        self._lock, self._closed = threading.RLock(), ClosedCounts()
        for key, shared in list(self.shared.items()):
            if shared.replica is None:  # the thread that was making it runs in the parent only
                del self.shared[key]
                continue
            shared.making = threading.Lock()
            try:
                shared.replica.restart_after_fork()
            except Exception:  # must not keep the other replicas from restarting
                logger.exception("%s cannot be read after the fork", shared.replica.url)
            if shared.kept is not None:  # what would end it ran in the parent only
                kept, shared.kept, shared.is_watched = shared.kept, None, False
                self.forget(kept)


def _key(options: Options) -> _Key:
    return replace(options, replica_url=canonical_url(options.replica_url)).of_replica()


def _slow_down(shared: Shared, replica: Replica) -> None:
    """Poll only as often as a connection still wants; end the poller if no connection polls."""
    replica.slow_down(shared.poll_interval_s)
    while not shared.poll_interval_s():
        if (poller := replica.detach_poller()) is not None:
            poller.close()
        if not (interval_s := shared.poll_interval_s()):
            return
        replica.poll_every(interval_s)


def _in_background(work: Callable[[], object]) -> None:
    """Run `work` in its own thread, and wait for a bounded time: it may need a lock that this thread holds."""
    if sys.is_finalizing():  # no thread runs any more; open replicas end with the process
        return

    done = threading.Event()

    def run() -> None:
        try:
            work()
        except Exception:
            logger.exception("letting go of a replica failed")
        finally:
            done.set()

    thread = threading.Thread(target=run, name="litevfs-close", daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError):  # no thread can start
        run()
    else:
        # A thread that ends drops its own variables when it is none of `threading`'s any more. `join` would make a
        # stand-in for it there, of which Python 3.13.0 complains at exit.
        if done.wait(CLOSE_TIMEOUT_S) and threading.get_ident() in {known.ident for known in threading.enumerate()}:
            thread.join()


registry = ReplicaRegistry()
"""Every replica that something in this process has open."""
