"""Whether a database without local state came from a replica's newest state. Owns the comparison; decides nothing else.

Three things show it. A restore leaves a mark beside the database (`state.py`): which TXID of which replica it made, and
in which file; when the replica still ends there, all later writes to that file come after that TXID. Or the WAL of
the database holds the very frames that the newest file was made of, and goes on after them: local state was lost, or
another program, such as Litestream, has replicated it so far. Or the database has the same pages as the replica's
newest state, whichever program copied them. A database that another program restored and that was then written to shows
nothing.

This module compares checksums of pages. On page 1 it ignores the fields that change without any content: the file
format versions (a switch to WAL mode), the change counter, and the version-valid-for number with the version of SQLite.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import fastcrc

from litevfs.concurrency.retry import Backoff, LookAgain, retry
from litevfs.errors import TransientStorageError
from litevfs.files.plan import newest_state
from litevfs.files.stream import FileStreamer, VerifiedStream
from litevfs.ltx.format import Header, lock_pgno
from litevfs.replica_clients.base import LEVELS, LTXFileInfo, ReplicaClient
from litevfs.replicate.content import Content
from litevfs.replicate.database import WALState
from litevfs.replicate.wal import HEADER_SIZE, WALReader

_UNSEEN, _EQUAL, _DIFFERENT = 0, 1, 2


class PageSums:
    """A checksum for each page of a database, 8 bytes a page."""

    def __init__(self, content: Content) -> None:
        self.commit, self.page_size = content.commit, content.page_size
        self._sums = array("Q", bytes(8 * content.commit))
        for pgno, page in content.pages:
            self._sums[pgno - 1] = _checksum(pgno, page)

    def agrees(self, pgno: int, page: bytes) -> bool:
        """Whether the database has this page."""
        return self._sums[pgno - 1] == _checksum(pgno, page)


def continues_in_wal(client: ReplicaClient, newest: LTXFileInfo, wal: WALReader, state: WALState) -> bool:
    """Whether `wal` holds the frames that the replica's newest file, one of level 0, was made of.

    The salts of a run of the WAL are random, and the frames are compared with the file's pages. Raises StorageError,
    LTXFormatError.
    """
    frames: dict[int, int] | None = None
    compared = 0
    with FileStreamer(client) as streamer:
        for stream in streamer.stream([newest]):
            for _, pages in stream:
                if frames is None:
                    frames = _frames_until(stream.header, wal, state)
                for pgno, page in pages:
                    frame = frames.get(pgno)
                    if frame is not None and state.header is not None:
                        compared += 1
                        if wal.page(state.header, frame) != page:
                            return False
    return compared > 0


def _frames_until(file: Header, wal: WALReader, state: WALState) -> dict[int, int]:
    """The newest frame of each page where the file ends in the WAL, by pgno; empty when it does not end in this run."""
    header = state.header
    if header is None or (file.wal_salt1, file.wal_salt2) != (header.salt1, header.salt2):
        return {}
    last, rest = divmod(file.wal_offset + file.wal_size - HEADER_SIZE, header.frame_size)
    if rest or not 0 < last <= state.frames:
        return {}
    changes = wal.changes(header, header.start, last)
    if changes is None or changes.end.frame != last:
        return {}
    return dict(zip(map(int, changes.pgnos), map(int, changes.frames), strict=True))


def is_newest_state(client: ReplicaClient, txid: int, sums: PageSums) -> bool:
    """Whether a database is the replica's newest state, which is that of `txid`. Reads all the files that make it.

    Raises StorageError, and LTXFormatError or TXIDGapError for a replica that has no whole newest state.
    """
    with FileStreamer(client) as streamer:

        def compare() -> bool:
            chain = newest_state(streamer.list_levels(LEVELS))
            return chain.txid == txid and _agree(streamer.stream(chain.files[::-1]), sums)

        return retry(compare, Backoff(), may_pass=LookAgain(TransientStorageError))


def _agree(streams: Iterable[VerifiedStream], sums: PageSums) -> bool:
    """Compare from the newest file to the oldest: of each page, only the first version found counts."""
    seen = bytearray(sums.commit)
    is_newest = True
    for stream in streams:
        for _, pages in stream:
            if is_newest and (stream.header.commit, stream.header.page_size) != (sums.commit, sums.page_size):
                return False
            is_newest = False
            for pgno, page in pages:
                if pgno <= sums.commit and seen[pgno - 1] == _UNSEEN:
                    seen[pgno - 1] = _EQUAL if sums.agrees(pgno, page) else _DIFFERENT
        if _DIFFERENT in seen:  # the file is sound: `streams` verifies it at its end
            return False
    left_out = lock_pgno(sums.page_size)
    if left_out <= sums.commit:
        seen[left_out - 1] = _EQUAL
    return _UNSEEN not in seen


def _checksum(pgno: int, page: bytes) -> int:
    if pgno == 1:  # offsets: SQLite's file format, "The Database Header"
        page = page[:18] + bytes(2) + page[20:24] + bytes(4) + page[28:92] + bytes(8) + page[100:]
    return int(fastcrc.crc64.go_iso(page))
