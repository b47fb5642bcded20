"""The restore before replication: if there is no database, the newest state of the replica, or of several."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from litevfs.errors import ReplicaConflictError, ReplicaEmptyError, TransientStorageError
from litevfs.ltx.names import format_txid
from litevfs.operations.restore import restore_if_missing
from litevfs.operations.target import is_missing
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replicate.guard import WriterGuard, open_guard
from litevfs.replicate.lease import RESTORING
from litevfs.replicate.replica_position import replica_position
from litevfs.replicate.source_file import database_path
from litevfs.replicate.state import StateFolder
from litevfs.replicate.status import unix_time_ms

_WAIT_FOR_LEASE_S = 1.0


def newest_of(clients: Sequence[ReplicaClient]) -> ReplicaClient:
    """The replica with the newest TXID, the first of several that have it.

    Each has to answer: that of an older state would be a fork of what the others hold. Raises StorageError.
    """
    if len(clients) == 1:
        return clients[0]
    return max(clients, key=lambda client: replica_position(client, 0).txid)


def restore_with_leases(
    path: Path, clients: Sequence[ReplicaClient], lease_ttl_s: float | None, *, waits: bool = True
) -> None:
    """Restore the newest state once no other primary has the lease: it would lack that primary's later writes.

    Holds the state folder meanwhile: of two on this machine one restores, and the lease of one that is killed is taken
    over at once. Raises ReplicatorLockedError, StorageError, and, unless it `waits`, ReplicaConflictError.
    """
    if not is_missing(path):
        return
    with closing(StateFolder(database_path(path))) as folder:
        if is_missing(path):
            _restore(path, clients, folder, lease_ttl_s, waits=waits)


def _restore(
    path: Path, clients: Sequence[ReplicaClient], folder: StateFolder, lease_ttl_s: float | None, *, waits: bool
) -> None:
    closed = threading.Event()
    guards = [open_guard(client, RESTORING + folder.id, closed, lease_ttl_s, unix_time_ms) for client in clients]
    result = None
    try:
        newest = _wait_for(clients, guards, closed) if waits else _hold(clients, guards)
        with suppress(ReplicaEmptyError):
            result = restore_if_missing(newest, path)
    finally:
        for guard in guards:
            guard.release(threading.Lock(), 5.0)
    if result is not None:
        print(f"litevfs: restored {path} to TXID {format_txid(result.txid)}", file=sys.stderr)


def _hold(clients: Sequence[ReplicaClient], guards: Sequence[WriterGuard]) -> ReplicaClient:
    """Hold all leases; returns the newest replica. Raises ReplicaConflictError, StorageError."""
    for guard in guards:
        guard.hold()
    return newest_of(clients)


def _wait_for(
    clients: Sequence[ReplicaClient], guards: Sequence[WriterGuard], closed: threading.Event
) -> ReplicaClient:
    """See `_hold`; waits until they can be had."""
    is_told = False
    while True:
        try:
            return _hold(clients, guards)
        except ReplicaConflictError as error:
            if not is_told:
                print(f"litevfs: waiting to restore: {error}", file=sys.stderr)
            is_told = True
        except TransientStorageError as error:
            print(f"litevfs: waiting to restore: {error}", file=sys.stderr)
        closed.wait(_WAIT_FOR_LEASE_S)
