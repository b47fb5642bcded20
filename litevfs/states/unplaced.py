"""States that begin with a snapshot file whose page index is read in parts, as its pages are needed.

Owns how such a state begins, and which places are found together; `Snapshot.place` finds those of single pages.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from litevfs.errors import LitevfsError, LTXFormatError
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.ltx.format import Header, lock_pgno
from litevfs.states.chunks import CHUNK_BITS, CHUNK_MASK, CHUNK_PAGES, MAX_FRAME_OFFSET, empty_chunk, slots_of
from litevfs.states.snapshot import Places, Snapshot

logger = logging.getLogger("litevfs.states.unplaced")


def begin_unplaced(start: Snapshot, number: int, info: LTXFileInfo, header: Header, places: Places) -> Snapshot:
    """The state after a snapshot file, which is first in its history; `places` finds its frames when they are wanted.

    `start` is an empty state. Raises LTXFormatError for a file that is too large.
    """
    if info.size >= MAX_FRAME_OFFSET:
        raise LTXFormatError("an LTX file is larger than 128 TiB", min_txid=header.min_txid)
    commit = header.commit
    code = start.versions.code(header.max_txid)
    chunks = [empty_chunk(slots_of(commit, i)) for i in range((commit + CHUNK_PAGES - 1) >> CHUNK_BITS)]
    for i, chunk in enumerate(chunks):
        held = slice(0, min(CHUNK_PAGES, commit - (i << CHUNK_BITS)))
        chunk.version_array[held], chunk.file_array[held] = code, number
    lock = lock_pgno(header.page_size)
    if lock <= commit:
        chunk = chunks[(lock - 1) >> CHUNK_BITS]
        chunk.versions[(lock - 1) & CHUNK_MASK] = chunk.files[(lock - 1) & CHUNK_MASK] = 0
    return replace(
        start,
        page_size=header.page_size,
        commit=commit,
        txid=header.max_txid,
        whole_txid=header.max_txid,
        timestamp_ms=header.timestamp_ms,
        change_counter=(start.change_counter + 1) & 0xFFFFFFFF,
        chunks=tuple(chunks),
        files={number: info},
        uses=Counter({number: commit - (lock <= commit)}),
        unplaced={number: places},
    )


def locate(snapshot: Snapshot, pgnos: Sequence[int]) -> None:
    """Find the places of pages that are read next, in few requests. An error comes again with the read of its page."""
    try:
        snapshot.locate(pgnos)
    except LitevfsError as error:
        logger.info("looking for the places of %d pages: %s", len(pgnos), error)
