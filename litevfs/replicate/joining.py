"""How a place begins: with the whole database, as a TXID that comes after its replica's, or as it is. Owns no state.

It begins as it is where it ends with the newest TXID made here, or with the one that a restore made the database of.

All places have the same TXIDs. So a place begins with the TXID after the newest one made, or after its own newest one,
if that is greater: then all other places go on with that TXID, too, over a gap that the whole database makes up for.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from litevfs.replicate.content import EMPTY_WAL
from litevfs.replicate.database import SourceDatabase
from litevfs.replicate.known_pages import FileKey
from litevfs.replicate.marks import RestoredMark, write_restored
from litevfs.replicate.restored import read_restored_state
from litevfs.replicate.state import State, StateFolder
from litevfs.replicate.upload_queue import UploadQueue


@dataclass(frozen=True, slots=True)
class ReplicaEnd:
    """The newest TXID of a replica that is about to be continued."""

    txid: int  # 0 for an empty replica
    timestamp_ms: int  # of that TXID


@dataclass(frozen=True, slots=True)
class Tip:
    """The file of level 0 that a replica ends with."""

    key: FileKey
    mark: RestoredMark | None  # of the restore that made the database of it; None if there was none


def begin_place(
    folder: StateFolder, queue: UploadQueue, state: State | None, end: ReplicaEnd, database: SourceDatabase
) -> State:
    """Let the place of `queue` begin, or begin again, after `end`; returns the state before its first file.

    The caller takes the whole database next. Where no other place goes on, TXIDs go on from `end` alone.
    """
    others = [other for other in folder.queues if other is not queue and other.is_joined]
    if state is None or not others or state.page_size != database.page_size:
        for other in others:
            other.leave(other.confirmed(state.txid if state else 0), "the pages of the database have another size")
        if state is not None:
            folder.remember_plain(state)
        return _begin_alone(folder, queue, end, database)
    before = max(state.txid, end.txid)
    queue.join(end.txid, before + 1)
    if before > state.txid:
        for other in others:
            other.jump(state.txid, before + 1)
    return replace(state, txid=before, timestamp_ms=max(state.timestamp_ms, end.timestamp_ms))


def _begin_alone(folder: StateFolder, queue: UploadQueue, end: ReplicaEnd, database: SourceDatabase) -> State:
    folder.reset()
    if len(folder.queues) == 1 and queue.is_plain:
        queue.join_alone()
    else:
        for other in folder.queues:
            if other is not queue:
                other.leave(other.record.after, other.why_not_joined)  # on disk, too
        queue.join(end.txid, end.txid + 1)
    url = next((one.url for one in folder.queues if one.is_plain), "")
    return State(url, database.inode, database.page_size, end.txid, end.timestamp_ms, 0, "", EMPTY_WAL)


def go_on_as_it_is(
    folder: StateFolder, state: State | None, database: SourceDatabase, *, queue: UploadQueue, tip: Tip
) -> State | None:
    """Let the place of `queue` go on after the tip of its replica; returns the state then.

    None, and nothing is done, where the tip is neither the newest TXID made here nor the one that a restore made the
    database of; where that restore left no sums of the pages; and where another place goes on with other TXIDs,
    as the local state of just this file says.
    """
    txid = tip.key.txid
    if state is not None and not queue.is_joined and (state.key, queue.pending()) == (tip.key, []):
        queue.go_on_after(txid)
        return state
    restored = None if tip.mark is None else read_restored_state(database.path)
    others = [other for other in folder.queues if other is not queue]
    if tip.mark is None or restored is None or restored.page_size != database.page_size:
        return None
    is_of_this_file = state is not None and state.inode == database.inode
    if is_of_this_file and any(other.is_joined for other in others):
        return None
    before = _begin_alone(folder, queue, ReplicaEnd(txid, tip.mark.timestamp_ms), database)
    if others:
        queue.go_on_after(txid)
    state = replace(
        before,
        inode=tip.mark.inode,
        file_size=tip.key.size,
        file_trailer=tip.key.trailer,
        schema_version=restored.schema_version,
        schema_read_at=restored.schema_version,
        schema_sum=restored.schema_sum,
    )
    folder.known_pages.prepare(state.key, state.page_size, restored.sums)
    folder.save(state)
    folder.known_pages.confirm()
    with suppress(OSError):  # it is right as it is, and large
        write_restored(database.path, tip.mark)
    return state
