"""One `Replica` per replica and process, shared by every connection that opens it and dropped with the last one."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from litevfs.options import Options
from litevfs.replica import Replica
from litevfs.replica_clients.urls import canonical_url

_Key = tuple[str, bool, bool]
"""The replica's place, whether it may move on, whether every file of it is verified."""


@dataclass(slots=True)
class _Shared:
    replica: Replica
    connections: int = 0
    polling: int = 0  # connections among them that want news


class ReplicaRegistry:
    """Hands out shared replicas. Safe to use from many threads, and after a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shared: dict[_Key, _Shared] = {}
        os.register_at_fork(after_in_child=self._after_fork_in_child)

    def acquire(self, options: Options) -> Replica:
        """The replica at `options.replica_url`, not necessarily opened yet. Pair with `release`.

        The first connection's options set it up; later ones can only shorten the poll interval and enlarge the cache.
        Connections that do not poll have a replica of their own, so that nobody else moves it on; and so have those
        that want every file verified, so that they get no page of one that was not.
        """
        key = _key(options)
        with self._lock:
            shared = self._shared.get(key)
            if shared is None:
                shared = self._shared[key] = _Shared(Replica(options))
            else:
                shared.replica.pages.enlarge(options.cache_size_bytes)
            shared.connections += 1
            shared.polling += options.is_polling
            return shared.replica

    def release(self, options: Options) -> None:
        """Let go of what `acquire` with equal options handed out; the last one closes it."""
        key = _key(options)
        with self._lock:
            shared = self._shared[key]
            shared.connections -= 1
            shared.polling -= options.is_polling
            is_last = shared.connections == 0
            if is_last:
                del self._shared[key]
            poller = shared.replica.detach_poller() if options.is_polling and not shared.polling else None
        # Not under the lock: ending threads can take a moment, and others may be opening.
        if poller is not None:
            poller.close()
        if is_last:
            shared.replica.close()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        for shared in self._shared.values():
            shared.replica.restart_after_fork()


def _key(options: Options) -> _Key:
    return canonical_url(options.replica_url), options.is_polling or options.is_fixed, options.verify


registry = ReplicaRegistry()
"""Every replica that something in this process has open."""
