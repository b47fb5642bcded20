"""Which pages differ between two states, by the page map alone. Pure: reads no page, so it may name equal pages too.

A page whose version is not newer than the older state's TXID has not changed since. A compacted file gives all its
pages the TXID that it ends at, so fewer compactions in between give a narrower answer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from litevfs.ltx.format import lock_pgno
from litevfs.states.chunks import CHUNK_BITS, Chunk
from litevfs.states.snapshot import Snapshot


def changed_pgnos(old: Snapshot, new: Snapshot) -> NDArray[np.int64]:
    """Pages of `new`, ascending, whose content may not be that of the same page of `old`; the lock page never is.

    Both are of one history (`epoch`), `old` not the newer one; else every page is named. Pages of `old` past the end of
    `new` are not: they are gone.
    """
    if old.epoch != new.epoch or old.txid > new.txid:
        return all_pgnos(new)
    found = []
    for number, chunk in enumerate(new.chunks):
        before = old.chunks[number] if number < len(old.chunks) else None
        if chunk is not before:
            slots = _changed_slots(before, chunk)
            found.append((number << CHUNK_BITS) + slots + 1)
    return _in_database(found, new)


def _changed_slots(before: Chunk | None, chunk: Chunk) -> NDArray[np.int64]:
    versions = chunk.version_array
    known = np.zeros_like(versions)
    if before is not None:
        both = min(len(known), len(before.versions))  # a last chunk may have grown
        known[:both] = before.version_array[:both]
    return np.flatnonzero(versions != known)


def pgnos_changed_since(new: Snapshot, txid: int) -> NDArray[np.int64]:
    """Pages of `new`, ascending, that may have changed after transaction `txid` of the same history."""
    found = [
        (number << CHUNK_BITS) + np.flatnonzero(~new.versions.are_at_most(chunk.version_array, txid)) + 1
        for number, chunk in enumerate(new.chunks)
    ]
    return _in_database(found, new)


def pgnos_differing(old: Snapshot, new: Snapshot) -> set[int]:
    """Pages whose content may differ between two states of one history, and those that only one of them has.

    Unlike `changed_pgnos` also for fixed views, which do not share their versions: equal places are equal bytes too.
    """
    if old.epoch == new.epoch:
        differing = set(changed_pgnos(old, new).tolist())
    else:
        suspects = pgnos_changed_since(new, old.txid).tolist()
        old.locate(suspects)
        new.locate(suspects)
        differing = {pgno for pgno in suspects if not _same_place(old, new, pgno)}
    return differing | set(range(new.commit + 1, old.commit + 1)) - {lock_pgno(old.page_size)}


def _same_place(old: Snapshot, new: Snapshot, pgno: int) -> bool:
    if pgno > old.commit:
        return False
    (a, *old_frame), (b, *new_frame) = old.place(pgno), new.place(pgno)
    return old_frame == new_frame and old.files[a] == new.files[b]


def all_pgnos(snapshot: Snapshot) -> NDArray[np.int64]:
    """Every page of the database but the lock page, which no LTX file holds."""
    return _in_database([np.arange(1, snapshot.commit + 1, dtype=np.int64)], snapshot)


def in_storage_order(snapshot: Snapshot, pgnos: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same pages, given in any order, in that in which they lie in the LTX files: for read-ahead, a scan."""
    if not len(pgnos):
        return pgnos
    pgnos = np.sort(pgnos)  # so that those of one chunk follow one another
    files = np.empty(len(pgnos), np.uint32)
    frames = np.empty(len(pgnos), np.uint64)
    slots = pgnos - 1
    numbers, starts = np.unique(slots >> CHUNK_BITS, return_index=True)
    bounds = [*starts.tolist(), len(pgnos)]
    for i, number in enumerate(numbers.tolist()):
        part = slice(bounds[i], bounds[i + 1])
        within = slots[part] & ((1 << CHUNK_BITS) - 1)
        files[part] = snapshot.chunks[number].file_array[within]
        frames[part] = snapshot.chunks[number].frame_array[within]
    return pgnos[np.lexsort((frames, files))]


def _in_database(found: list[NDArray[np.int64]], snapshot: Snapshot) -> NDArray[np.int64]:
    pgnos = np.concatenate(found) if found else np.zeros(0, np.int64)
    pgnos = pgnos[pgnos <= snapshot.commit]
    return pgnos[pgnos != lock_pgno(snapshot.page_size)] if snapshot.page_size else pgnos
