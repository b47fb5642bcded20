"""The replica as the primary sees it: where it stands, whether that is our work, and uploads. Owns no thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

from litevfs.backoff import Backoff
from litevfs.errors import ReplicatorError, StorageNotFoundError, TransientStorageError
from litevfs.ltx.format import HEADER_SIZE, TRAILER_SIZE, Header
from litevfs.replica_clients.base import LEVELS, LTXFileInfo, ReplicaClient
from litevfs.replicate.state import PendingFile, State, fingerprint


@dataclass(frozen=True, slots=True)
class ReplicaPosition:
    """What a replica holds."""

    files: tuple[LTXFileInfo, ...]  # of level 0, from the asked TXID on
    newest: LTXFileInfo | None  # the file with the greatest TXID on any level; None for an empty replica
    header: Header | None  # of that file

    @property
    def txid(self) -> int:
        """The newest TXID, 0 for an empty replica."""
        return 0 if self.newest is None else self.newest.max_txid


def replica_position(client: ReplicaClient, from_txid: int) -> ReplicaPosition:
    """Ask the replica. Lists level 0 from `from_txid` on, in full only when there is nothing. Raises StorageError."""
    files = _list(client, 0, max(1, from_txid))
    listed = files or _list(client, 0)
    for level in LEVELS[1:]:
        listed = listed + _list(client, level)
    newest = max(listed, key=lambda file: file.max_txid, default=None)
    header = None if newest is None else Header.unpack(client.read(newest, 0, HEADER_SIZE))
    return ReplicaPosition(tuple(files), newest, header)


def _list(client: ReplicaClient, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
    try:
        return client.list_files(level, min_txid)
    except StorageNotFoundError:  # a folder that the first upload makes, or a bucket, which that upload then misses
        return []


def why_not_ours(client: ReplicaClient, there: ReplicaPosition, state: State, pending: list[PendingFile]) -> str | None:
    """Why the replica cannot be continued from `state` and `pending`; None when it can.

    Between the last upload that was confirmed and the newest TXID made here, the replica may hold any number of files:
    the confirmation of an upload can get lost.
    """
    confirmed = pending[0].txid - 1 if pending else state.txid
    if there.txid > state.txid:
        return f"the replica holds TXID {there.txid:016x}, newer than {state.txid:016x} of the local state"
    if there.txid < confirmed:
        return f"the replica ends at TXID {there.txid:016x}, but {confirmed:016x} was uploaded"
    known = {file.txid: fingerprint(file.path) for file in pending}
    if confirmed == state.txid:
        known[state.txid] = (state.file_size, state.file_trailer)
    for file in there.files:
        expected = known.get(file.max_txid)
        if expected is not None and (file.size, _trailer(client, file)) != expected:
            return f"the replica holds another file of TXID {file.max_txid:016x} than the one uploaded from here"
    return None


def _trailer(client: ReplicaClient, file: LTXFileInfo) -> str:
    try:
        return client.read(file, max(0, file.size - TRAILER_SIZE), TRAILER_SIZE).hex()
    except StorageNotFoundError as exc:  # compaction and retention took it just now
        raise ReplicatorError("the replica changed while it was looked at", key=client.key(file)) from exc


def upload(client: ReplicaClient, file: PendingFile) -> int:
    """Upload one file; its size in bytes. Raises StorageError."""
    with file.path.open("rb") as data:
        header = Header.unpack(data.read(HEADER_SIZE))
        data.seek(0)
        return client.write(0, file.txid, file.txid, data, header.timestamp_ms).size


def retry_transient(attempt: Callable[[], None], deadline: float, closed: Event) -> None:
    """Call `attempt` until it succeeds; again only after a TransientStorageError and before `deadline` (monotonic)."""
    backoff = Backoff()
    while True:
        try:
            return attempt()
        except TransientStorageError as exc:
            pause = backoff.after(exc)
            if time.monotonic() + pause > deadline or closed.wait(pause):
                raise
