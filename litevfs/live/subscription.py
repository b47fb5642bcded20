"""Callbacks for new transactions of a replica. Owns a thread, so that a slow callback delays no reads."""

from __future__ import annotations

import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable

from litevfs.concurrency.workers import start_thread
from litevfs.files.fetch import Fetcher
from litevfs.live.registry import registry
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.states.snapshot import Snapshot

logger = logging.getLogger("litevfs.live.subscription")


IsOfInterest = Callable[[Replica, Snapshot, Snapshot], bool]
"""(replica, an older state, a newer one) -> whether to call back; must not raise."""

_open: weakref.WeakSet[Subscription] = weakref.WeakSet()


class Subscription:
    """Calls `callback(txid)` for each TXID published after this object was made, in order, once each.

    An exception of the callback is logged, and the next transaction is reported anyway. A subscription belongs to
    the process that made it: in a forked child it is closed.
    """

    close_timeout_s = 0.8

    def __init__(
        self, options: Options, callback: Callable[[int], object], is_of_interest: IsOfInterest | None = None
    ) -> None:
        self._callback = callback
        self._is_of_interest = is_of_interest
        self._seen: Snapshot | None = None  # the state that was compared last
        self.first: Snapshot | None = None  # the state at the start, or a later one
        self._txids: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._closed = False
        self._lease = registry.acquire(options)
        self._replica = self._lease.replica
        self._thread: threading.Thread | None = None
        try:
            self._replica.open(options.open_timeout_s)
            self.txid = self._replica.add_listener(self._txids.put)  # of the last call, or the state at the start
            self._seen = self.first = self._replica.snapshot
            self._replica.poll_every(options.poll_interval_s)
            self._thread = start_thread(self._run, f"litevfs-subscribe {self._replica.url}")
        except BaseException:
            self.close()
            raise
        _open.add(self)

    @property
    def replica(self) -> Replica:
        """The replica that is listened to."""
        return self._replica

    @property
    def fetcher(self) -> Fetcher:
        """What reads the replica's files."""
        return self._replica.fetcher

    def _run(self) -> None:
        while (txid := self._txids.get()) is not None and not self._closed:
            if self._is_of_interest is not None and not self._differs(self._is_of_interest):
                continue
            self.txid = txid if self._is_of_interest is None or self._seen is None else self._seen.txid
            try:
                self._callback(self.txid)
            except Exception:
                logger.exception("the callback of a subscription failed")

    def _differs(self, is_of_interest: IsOfInterest) -> bool:
        """Whether the callback wants the newest state, compared with the state of the last comparison."""
        old, new = self._seen, self._replica.snapshot
        self._seen = new
        if old is None or new is None:
            return True
        if (old.epoch, old.txid) == (new.epoch, new.txid):
            return False
        try:
            return is_of_interest(self._replica, old, new)
        except Exception:  # a defect, or want of memory, must not end the calls silently
            logger.exception("whether a transaction is of interest is not known: it is reported")
            return True

    def close(self) -> None:
        """End the calls; waits a bounded time for one under way. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            self._replica.remove_listener(self._txids.put)
            self._txids.put(None)
            if self._thread is not None and self._thread is not threading.current_thread():
                self._thread.join(self.close_timeout_s)
        finally:  # also when Ctrl-C ends the wait
            registry.release(self._lease)

    def _end_in_child(self) -> None:
        """Stop listening in a forked child: the thread is the parent's, and TXIDs would pile up without it."""
        self._closed = True
        self._replica.remove_listener(self._txids.put)
        registry.forget(self._lease)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _after_fork_in_child() -> None:
    for subscription in list(_open):
        if not subscription._closed:
            subscription._end_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)  # after the registry's handler, which renews locks
