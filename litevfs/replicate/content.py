"""What goes into an LTX file: the changes since a position in the WAL, or the whole database. Owns no position.

Both are read under a read transaction that keeps the WAL (`database.py`), and both are one state that readers of the
database could see: the one after the last frame that SQLite had published when it was asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO

from litevfs.errors import WALError
from litevfs.ltx.format import lock_pgno
from litevfs.replicate.database import ReadTransaction, WALState
from litevfs.replicate.wal import HEADER_SIZE, WALChanges, WALHeader, WALPosition, WALReader

_READ_SIZE = 1 << 20
"""Bytes of the database file to read at once."""

EMPTY_WAL = WALPosition(0, 0, 0, 0, 0)
"""The position when the WAL file is empty: its next header is not known yet."""


@dataclass(frozen=True, slots=True)
class Content:
    """The pages of one LTX file. `pages` can be read once, while the read transaction is open."""

    pages: Iterator[tuple[int, bytes]]  # (pgno, content), ascending
    commit: int  # size of the database, pages
    page_size: int  # bytes
    end: WALPosition  # where the next changes begin
    wal_offset: int  # bytes; where the frames that it holds begin in the WAL (Litestream goes on from their end)
    wal_size: int  # bytes; all of the WAL's frames for a whole database


def start_of_changes(
    wal: WALReader, state: WALState, position: WALPosition, *, may_start_over: bool, is_doubted: bool
) -> WALPosition | None:
    """Where the frames after `position` begin; None if there are none. Raises WALError if the WAL cannot tell.

    `may_start_over`: the WAL may have been started over, once, since that position. `is_doubted`: more than the WAL may
    have been written since.
    """
    start = _start_of_changes(wal, state, position, may_start_over=may_start_over)
    if is_doubted:
        raise WALError("the database file was written since the last sync, not the WAL alone")
    return start


def _start_of_changes(
    wal: WALReader, state: WALState, position: WALPosition, *, may_start_over: bool
) -> WALPosition | None:
    header = state.header
    if header is None or not position.is_in(header):
        if may_start_over or (header and wal.run_before_ended_at(header, state.frames, position)):
            return header.start if header and state.frames else None
        raise WALError("the WAL was started over since the last sync, changes may have been missed")
    if may_start_over and state.frames <= position.frame:
        return None  # started over in memory, now or later; the next commit writes the file
    if state.frames < position.frame:
        raise WALError("the WAL ends before what was replicated, as after a power failure")
    if not wal.holds(header, position):
        raise WALError("frames that were replicated have been overwritten in the WAL")
    return position if state.frames > position.frame else None


def read_changes(wal: WALReader, state: WALState, start: WALPosition) -> Content:
    """Everything committed after `start`. Raises WALError when the WAL disagrees with what SQLite says of it."""
    header = _header(state)
    changes = wal.changes(header, start, state.frames)
    if changes is None or changes.end.frame != state.frames:
        last = start.frame if changes is None else changes.end.frame
        raise WALError(f"the WAL is damaged: of its {state.frames} frames only {last} are valid")
    return Content(
        pages=_pages_of_wal(wal, header, changes),
        commit=changes.commit,
        page_size=header.page_size,
        end=changes.end,
        wal_offset=HEADER_SIZE + start.frame * header.frame_size,
        wal_size=(state.frames - start.frame) * header.frame_size,
    )


def read_database(wal: WALReader, state: WALState, transaction: ReadTransaction, page_size: int) -> Content:
    """The whole database: its file, and over it what the WAL has that the file may lack.

    With everything in the file, only the file counts: the next writer may then start the WAL over while we read.
    Otherwise it cannot, and pages that a checkpoint writes meanwhile are all among those taken from the WAL.
    """
    if not state.is_backfilled:
        changes = read_changes(wal, state, _header(state).start)
        return replace(changes, pages=_overlaid(transaction, changes), page_size=page_size)
    commit = transaction.page_count()
    end = _position(wal, state)
    frame_size = 0 if state.header is None else state.header.frame_size
    pages = _pages_of_file(transaction, page_size, commit)
    return Content(pages, commit, page_size, end, HEADER_SIZE, end.frame * frame_size)


def detached(content: Content, spool: IO[bytes]) -> Content:
    """The same content with its pages in `spool`, so that it outlives the read transaction."""
    pgnos = []
    for pgno, page in content.pages:
        pgnos.append(pgno)
        spool.write(page)
    spool.seek(0)
    return replace(content, pages=((pgno, spool.read(content.page_size)) for pgno in pgnos))


def _position(wal: WALReader, state: WALState) -> WALPosition:
    if state.header is None:
        if state.frames:
            raise WALError(f"the WAL has {state.frames} frames but no valid header")
        return EMPTY_WAL
    position = wal.position(state.header, state.frames)
    return EMPTY_WAL if position is None else position  # None: the WAL was just started over


def _header(state: WALState) -> WALHeader:
    if state.header is None:
        raise WALError(f"the WAL has {state.frames} frames but no valid header")
    return state.header


def _pages_of_wal(wal: WALReader, header: WALHeader, changes: WALChanges) -> Iterator[tuple[int, bytes]]:
    for pgno, frame in zip(map(int, changes.pgnos), map(int, changes.frames), strict=True):
        yield pgno, wal.page(header, frame)
    if wal.header() != header:
        raise WALError("the WAL was started over while it was read, past a read transaction that forbids it")


def _pages_of_file(transaction: ReadTransaction, page_size: int, commit: int) -> Iterator[tuple[int, bytes]]:
    left_out = lock_pgno(page_size)
    at_once = _READ_SIZE // page_size
    for first in range(1, commit + 1, at_once):
        count = min(at_once, commit + 1 - first)
        data = transaction.read_file((first - 1) * page_size, count * page_size)
        for i in range(count):
            if first + i != left_out:
                yield first + i, data[i * page_size : (i + 1) * page_size]


def _overlaid(transaction: ReadTransaction, changes: Content) -> Iterator[tuple[int, bytes]]:
    newer = next(changes.pages, None)
    for pgno, page in _pages_of_file(transaction, changes.page_size, changes.commit):
        if newer is not None and newer[0] == pgno:
            yield newer
            newer = next(changes.pages, None)
        else:
            yield pgno, page
