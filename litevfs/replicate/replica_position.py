"""What a replica holds, as the primary sees it: its position, and whether our files made it. Writes nothing."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass

from litevfs.errors import (
    LTXFormatError,
    ReplicaConflictError,
    ReplicaEmptyError,
    ReplicatorError,
    StorageNotFoundError,
    StoragePermissionError,
    TransientStorageError,
    TXIDGapError,
)
from litevfs.files.plan import newest_state
from litevfs.files.stream import FileStreamer
from litevfs.ltx.format import HEADER_SIZE, TRAILER_SIZE, Header
from litevfs.ltx.names import MAX_TXID
from litevfs.replica_clients.base import LEVELS, ListsLevels, LTXFileInfo, ReplicaClient
from litevfs.replicate.known_pages import FileKey
from litevfs.replicate.state import State
from litevfs.replicate.upload_queue import PendingFile

logger = logging.getLogger("litevfs.replicate")


@dataclass(frozen=True, slots=True)
class ReplicaPosition:
    """What a replica holds."""

    files: tuple[LTXFileInfo, ...]  # of level 0, from the asked TXID on
    newest: LTXFileInfo | None  # the file with the greatest TXID on any level; None for an empty replica
    header: Header | None  # of that file; None too when it is damaged
    problem: str | None  # why its files make no newest state; None if, by the listing, they do

    @property
    def txid(self) -> int:
        """The newest TXID, 0 for an empty replica."""
        return 0 if self.newest is None else self.newest.max_txid


def replica_position(client: ReplicaClient, from_txid: int) -> ReplicaPosition:
    """Ask the replica; a second time before reporting a problem. Lists every level. Raises StorageError."""
    position = _look(client, from_txid)
    return position if position.problem is None else _look(client, from_txid)


def _look(client: ReplicaClient, from_txid: int) -> ReplicaPosition:
    listed = _list_all(client)
    newest = max(listed, key=lambda file: file.max_txid, default=None)
    header, problem = None, _why_incomplete(listed)
    if newest is not None:
        try:
            header = Header.unpack(_read(client, newest, 0, HEADER_SIZE))
        except LTXFormatError as exc:
            problem = f"its newest file is damaged: {exc.message} ({client.key(newest)})"
    files = tuple(file for file in listed if file.level == 0 and file.min_txid >= max(1, from_txid))
    return ReplicaPosition(files, newest, header, problem)


def _list_all(client: ReplicaClient) -> list[LTXFileInfo]:
    """The files of all levels, in one request if that can show them all."""
    if isinstance(client, ListsLevels):
        with suppress(StorageNotFoundError, StoragePermissionError):  # as below; only the wider prefix is forbidden
            files, are_all = client.list_from(0)
            if are_all:
                return files
    # From level 0 up: compaction moves transactions the same way, so a later listing shows what moves meanwhile.
    return [file for level in LEVELS for file in _list(client, level)]


def _list(client: ReplicaClient, level: int) -> list[LTXFileInfo]:
    try:
        return client.list_files(level)
    except StorageNotFoundError:  # a folder that the first upload makes, or a bucket, which that upload then misses
        return []


def _why_incomplete(files: list[LTXFileInfo]) -> str | None:
    try:
        newest_state(files)
    except ReplicaEmptyError:
        pass
    except TXIDGapError as exc:
        return f"no files for TXIDs {exc.min_txid:016x}-{exc.max_txid:016x}"
    return None


def key_of_newest(client: ReplicaClient, there: ReplicaPosition) -> FileKey | None:
    """The key of the file of level 0 that holds just the newest TXID; None if there is none, or files are missing."""
    file = next((file for file in there.files if (file.min_txid, file.max_txid) == (there.txid, there.txid)), None)
    if file is None or there.problem is not None:
        return None
    trailers = {_read(client, file, max(0, file.size - TRAILER_SIZE), TRAILER_SIZE).hex() for _ in range(2)}
    return FileKey(there.txid, file.size, trailers.pop()) if len(trailers) == 1 else None


def next_to(there: ReplicaPosition, client: ReplicaClient) -> int:
    """The TXID that a new history begins after. Raises ReplicatorError when none can follow."""
    if there.newest is not None and there.txid == MAX_TXID:
        raise ReplicatorError(
            "the replica holds the greatest TXID there is, so none can follow",
            key=client.key(there.newest),
            hint="replicate to another URL, or empty the replica",
        )
    return there.txid


def written_by_others(
    client: ReplicaClient, there: ReplicaPosition, state: State, pending: list[PendingFile]
) -> str | None:
    """The replica's files that were not made here, for an error; None if there are none.

    Between the last upload that was confirmed and the newest TXID made here, the replica may hold any number of files:
    the confirmation of an upload can get lost.
    """
    if there.txid > state.txid:
        return f"the replica holds TXID {there.txid:016x}, newer than {state.txid:016x} of the local state"
    return _other_file(client, there, fingerprints(pending))


def lost_uploads(client: ReplicaClient, there: ReplicaPosition, state: State, confirmed: int) -> str | None:
    """The files up to TXID `confirmed` that were uploaded and that the replica lacks; None if there are none."""
    if there.txid < confirmed:
        if confirmed == state.txid and _is_there(client, state):
            raise TransientStorageError("a listing does not show what was uploaded before", key=client.url)
        return f"the replica ends at TXID {there.txid:016x}, but {confirmed:016x} was uploaded"
    if confirmed < state.txid:
        return None
    return _other_file(client, there, {state.txid: (state.file_size, state.file_trailer)})


def _is_there(client: ReplicaClient, state: State) -> bool:
    """Whether the newest file can be read, whatever a listing says; retention never deletes it."""
    file = LTXFileInfo(0, state.txid, state.txid, state.file_size, 0)
    try:
        return client.read(file, state.file_size - TRAILER_SIZE, TRAILER_SIZE).hex() == state.file_trailer
    except StorageNotFoundError:
        return False


def _other_file(client: ReplicaClient, there: ReplicaPosition, known: dict[int, tuple[int, str]]) -> str | None:
    for file in there.files:
        expected = known.get(file.max_txid)
        if expected is not None and not is_same_file(client, file, expected):
            return f"the replica holds another file of TXID {file.max_txid:016x} than the one uploaded from here"
    return None


def fingerprints(pending: list[PendingFile]) -> dict[int, tuple[int, str]]:
    """Size and trailer of each of these files that is still there, by TXID."""
    found = {}
    for file in pending:
        with suppress(FileNotFoundError):  # uploaded, or given up, meanwhile
            found[file.txid] = file.fingerprint
    return found


def is_same_file(client: ReplicaClient, file: LTXFileInfo, expected: tuple[int, str] | None) -> bool:
    """Whether a file of the replica has this size and trailer.

    No checksum covers a trailer that is read alone, so it is read again before another writer is thought to have made
    the file, which ends the replication.
    """
    if expected is None or file.size != expected[0]:
        return False
    offset = max(0, file.size - TRAILER_SIZE)
    return any(_read(client, file, offset, TRAILER_SIZE).hex() == expected[1] for _ in range(2))


def newest_time(client: ReplicaClient, there: ReplicaPosition) -> int:
    """The time of the newest file, Unix milliseconds; 0 if there is none, or it is damaged.

    All later files get this time at least, so a header that was read alone does not decide it.
    """
    file = there.newest
    if file is None or there.header is None:
        return 0
    try:
        with FileStreamer(client) as streamer:
            return streamer.fetcher.confirm_times([(file, there.header.timestamp_ms)])[0]
    except LTXFormatError as exc:
        logger.warning("the time of the newest file counts for nothing, as it cannot be read: %s", exc)
        return 0


def _read(client: ReplicaClient, file: LTXFileInfo, offset: int, size: int) -> bytes:
    try:
        return client.read(file, offset, size)
    except StorageNotFoundError as exc:  # compaction and retention just deleted it
        raise changed(client.key(file)) from exc


def changed(key: str) -> TransientStorageError:
    """The error for what was there a moment before."""
    return TransientStorageError("the replica changed while it was looked at", key=key)


def conflict(what: str, *, key: str) -> ReplicaConflictError:
    """The error for a replica that another primary writes to."""
    return ReplicaConflictError(
        f"another writer uses this replica: {what}",
        key=key,
        hint="let one of them replicate to another URL; started again, this one goes on with the whole database",
    )
