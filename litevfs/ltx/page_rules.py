"""Which pages an LTX file may hold, by its header, and by the state that it follows on. Does no I/O.

Source: superfly/ltx, `encoder.go` (EncodePage): page numbers ascend, none is that of the lock page or above the commit,
and a snapshot holds all others.
"""

from __future__ import annotations

import numpy as np

from litevfs.errors import LTXFormatError, LTXMissingPagesError
from litevfs.ltx.format import HEADER_SIZE, MAX_FRAME_SIZE, PAGE_HEADER_SIZE, Header, lock_pgno
from litevfs.ltx.page_index import PageIndex


def whole_from(index: PageIndex, header: Header) -> int:
    """The page from which on a file with a sound index holds every page up to its commit; commit + 1 if none."""
    lock = lock_pgno(header.page_size)
    top = header.commit - (header.commit == lock)
    if len(index) == 0 or index.pgnos[-1] != top:
        return header.commit + 1
    pgnos = index.pgnos.astype(np.int64)
    pgnos -= pgnos > lock  # as if there were no lock page
    breaks = np.flatnonzero(np.diff(pgnos) != 1)
    return int(index.pgnos[breaks[-1] + 1 if len(breaks) else 0])


def check_growth(header: Header, first_whole: int, commit_before: int) -> None:
    """Check that a file may follow on a state of `commit_before` pages: it holds every page that the state has not.

    `first_whole` is what `whole_from` says of the file. This comes before anything is allocated for the pages that a
    header claims. Raises LTXMissingPagesError.
    """
    lock = lock_pgno(header.page_size)
    first_new = commit_before + 1 + (commit_before + 1 == lock)
    if header.commit < first_new or first_whole <= first_new:
        return
    missing = first_whole - 1 - (first_whole - 1 == lock)
    raise LTXMissingPagesError(
        f"the database grows from {commit_before} to {header.commit} pages, but the file does not hold all new ones: "
        f"page {missing} is in no file",
        min_txid=header.min_txid,
        max_txid=header.max_txid,
        hint="the primary lost pages when it wrote this file, or the file is damaged; an earlier state (txid, "
        "timestamp) may be whole",
    )


def check_size_change(header: Header, first_whole: int, page_size: int) -> None:
    """Check that a file may follow on a state with pages of another size, `page_size`: it holds the whole database.

    Raises LTXFormatError.
    """
    if first_whole > 1:
        raise LTXFormatError(
            f"page size changes from {page_size} to {header.page_size} within one replica, in a file that does not "
            "hold all pages",
            min_txid=header.min_txid,
            max_txid=header.max_txid,
            hint="two databases seem to write to one replica path; give each its own",
        )


def validate_page_index(index: PageIndex, header: Header, pages_end: int) -> None:
    """Check that `index` is one that a file with `header` can have.

    Frames lie back to back from byte 100 to `pages_end`, the offset of the six zero bytes; page numbers ascend from 1
    up to `commit` without the lock page, and in a snapshot none is missing. Raises LTXFormatError.
    """
    _validate_places(index, header, pages_end)
    _validate_pgnos(index, header)


def _validate_places(index: PageIndex, header: Header, pages_end: int) -> None:
    if len(index) == 0:
        if pages_end != HEADER_SIZE:
            raise _unsound(header, f"it is empty, but frames end at byte {pages_end}")
        return
    if index.offsets[0] != HEADER_SIZE:
        raise _unsound(header, f"its first frame starts at byte {index.offsets[0]}, not at {HEADER_SIZE}")
    smallest, largest = int(index.sizes.min()), int(index.sizes.max())
    if smallest <= PAGE_HEADER_SIZE or largest > MAX_FRAME_SIZE:
        raise _unsound(header, f"it has frames of {smallest} to {largest} bytes")
    ends = index.offsets + index.sizes
    if not np.array_equal(index.offsets[1:], ends[:-1]):
        raise _unsound(header, "its frames do not lie back to back")
    if int(ends[-1]) != pages_end:
        raise _unsound(header, f"its last frame ends at byte {ends[-1]}, not at {pages_end}")


def _validate_pgnos(index: PageIndex, header: Header) -> None:
    lock = lock_pgno(header.page_size)
    if len(index):
        if index.pgnos[0] < 1 or not bool(np.all(index.pgnos[1:] > index.pgnos[:-1])):
            raise _unsound(header, "its page numbers do not ascend from 1")
        if index.pgnos[-1] > header.commit:
            raise _unsound(header, f"it holds page {index.pgnos[-1]}, above commit {header.commit}")
        if index.find(lock) is not None:
            raise _unsound(header, f"it holds the lock page {lock}")
    if header.is_snapshot and len(index) != snapshot_page_count(header):
        raise _unsound(header, f"it holds {len(index)} of the {snapshot_page_count(header)} pages of a snapshot")


def snapshot_page_count(header: Header) -> int:
    """How many pages a snapshot with `header` holds: 1 to commit without the lock page."""
    return header.commit - (header.commit >= lock_pgno(header.page_size))


class PageOrder:
    """Which page may come next in a file with `header`: the same rules as `validate_page_index`, page by page."""

    __slots__ = ("_commit", "_lock_pgno", "_previous_pgno", "_run_start", "header")

    def __init__(self, header: Header) -> None:
        self.header = header
        self._commit = header.commit
        self._lock_pgno = lock_pgno(header.page_size)
        self._previous_pgno = 0
        self._run_start = 1  # all pages from here to the previous one came

    def add(self, pgno: int) -> None:
        """Take `pgno` as the next page. Raises LTXFormatError when it may not come now."""
        if pgno == self._previous_pgno + 1 and pgno <= self._commit and pgno != self._lock_pgno:  # the usual case
            self._previous_pgno = pgno
            return
        if pgno == self._lock_pgno:
            raise self._invalid(f"page {pgno} is the lock page")
        if not 1 <= pgno <= self.header.commit:
            raise self._invalid(f"page {pgno} is not within 1 and commit {self.header.commit}")
        if pgno <= self._previous_pgno:
            raise self._invalid(f"page {pgno} comes after page {self._previous_pgno}")
        if self.header.is_snapshot and pgno != self._next_of_snapshot():
            raise self._invalid(f"page {pgno} of a snapshot comes where page {self._next_of_snapshot()} should")
        if pgno != self._next_of_snapshot():
            self._run_start = pgno
        self._previous_pgno = pgno

    @property
    def whole_from(self) -> int:
        """The page from which on every page up to the commit came; commit + 1 if the last one did not."""
        return self._run_start if self._next_of_snapshot() > self._commit else self._commit + 1

    def end(self) -> None:
        """Take the page block as ended. Raises LTXFormatError when pages of a snapshot are missing."""
        if self.header.is_snapshot and self._next_of_snapshot() <= self.header.commit:
            raise self._invalid(
                f"snapshot ends before page {self._next_of_snapshot()}, its commit is {self.header.commit}"
            )

    def _next_of_snapshot(self) -> int:
        pgno = self._previous_pgno + 1
        return pgno + 1 if pgno == self._lock_pgno else pgno

    def _invalid(self, what: str) -> LTXFormatError:
        return LTXFormatError(
            f"invalid LTX page order: {what}", min_txid=self.header.min_txid, max_txid=self.header.max_txid
        )


def _unsound(header: Header, what: str) -> LTXFormatError:
    return LTXFormatError(f"unsound LTX page index: {what}", min_txid=header.min_txid, max_txid=header.max_txid)
