"""Pages that are decoded at once, because reads follow each other in the order of their numbers. Does no I/O.

A scan reads most leaves of a tree in that order, and in storage frames lie in it. What is decoded ahead costs processor
time and no bytes: a run is at most twice as long as the one before it, and only goes on where that one was read to its
end, so at most half of the work is for nothing.

A scan longer than a cache would find nothing of itself there when it comes again, and would drive out all else: so the
page cache takes only the first part of it (`Runs.length_from`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from typing import NamedTuple

from litevfs.files.frame_checks import frame_check
from litevfs.ltx.frame import decode_usual
from litevfs.states.chunks import CHUNK_BITS, CHUNK_MASK, CHUNK_PAGES, FRAME_SIZE_BITS, FRAME_SIZE_MASK
from litevfs.states.snapshot import EPOCH_SHIFT, PGNO_BITS, Snapshot

MAX_RUN_BYTES = 1 << 18
"""Bytes of pages that are decoded at once."""
MAX_GAP_BYTES = 1 << 14
"""A run ends where so many bytes of other frames lie between two of its pages."""
MAX_SCANS = 8
"""Scans that may take turns."""
FORGOTTEN_AFTER = 64
"""After so many pages that were read alone, what came before says nothing about the reads that come."""


class _Scan(NamedTuple):
    """Runs of which each goes on where the one before it ended; no more than the last of them."""

    next_pages: range  # a read of one of these goes on with it
    length: int  # pages
    scanned: int  # pages of all its runs


_NO_SCAN = _Scan(range(0), 1, 1)


class Runs:
    """How many pages a read that missed the page cache is worth. Threads may share it: it holds hints only."""

    def __init__(self) -> None:
        self._after_one: set[int] = set()  # the page after each that was read alone
        self._scans: list[_Scan] = []  # the last one first

    def is_alone(self, pgno: int) -> bool:
        """Whether page `pgno` goes on with no run, so that it is worth no other one. Quick: most misses end here."""
        if pgno in self._after_one or (self._scans and self._scan_before(pgno) is not _NO_SCAN):
            return False
        if len(self._after_one) >= FORGOTTEN_AFTER:
            self._after_one.clear()
            self._scans = []
        self._after_one.add(pgno + 1)
        return True

    def length_from(self, pgno: int, most: int) -> tuple[int, int]:
        """Pages to decode, from `pgno` on: 1, or twice as many as in the run that ended before it, but not over `most`.

        Fewer where a chunk of the page map ends (see `run_from`), which makes the next run no shorter. The second
        number is how many pages the scan has decoded with them. Reads may leave out pages after a run, up to half its
        length: those of other trees lie between.
        """
        if self.is_alone(pgno):
            return 1, 1
        self._after_one.discard(pgno)
        before = self._scan_before(pgno)
        length = max(1, min(2 * before.length, most))
        count = min(length, CHUNK_PAGES - ((pgno - 1) & CHUNK_MASK))
        end = pgno + count
        scan = _Scan(range(end, end + (length >> 1) + 1), length, before.scanned + count)
        self._scans = [scan, *(other for other in self._scans if other is not before)][:MAX_SCANS]
        return count, scan.scanned

    def _scan_before(self, pgno: int) -> _Scan:
        for scan in self._scans:
            if pgno in scan.next_pages:
                return scan
        return _NO_SCAN


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive pages of one file, in the order of their frames."""

    pgnos: Sequence[int]
    versions: Sequence[int]
    checks: Sequence[int]
    starts: Sequence[int]  # of the frames, after the start of the first one, bytes
    sizes: Sequence[int]

    @property
    def size(self) -> int:
        """Bytes from the start of the first frame to the end of the last one."""
        return self.starts[-1] + self.sizes[-1]

    def decode(self, snapshot: Snapshot, data: bytes) -> list[bytes]:
        """The pages, from `data`, which begins with the first frame: as far as it has sound frames.

        What is damaged is for the read of that page to tell.
        """
        sizes = self.sizes
        if any(self.checks):
            for i, (check, at, size) in enumerate(zip(self.checks, self.starts, sizes, strict=True)):
                if check and check != frame_check(data[at : at + size]):
                    sizes = sizes[:i]
                    break
        return decode_usual(data, self.starts, sizes, self.pgnos, snapshot.page_size)

    def by_key(self, snapshot: Snapshot, pages: list[bytes]) -> dict[int, bytes]:
        """The pages that `decode` gave, by their keys in a page cache."""
        epoch = snapshot.epoch << EPOCH_SHIFT
        keys = [epoch | version << PGNO_BITS | pgno for version, pgno in zip(self.versions, self.pgnos, strict=True)]
        return dict(zip(keys, pages, strict=False))

    def places(self, page_size: int) -> Sequence[int]:
        """Where the pages lie in the database, bytes."""
        first, end = self.pgnos[0] - 1, self.pgnos[-1]
        if end - first == len(self.pgnos):
            return range(first * page_size, end * page_size, page_size)
        return [(pgno - 1) * page_size for pgno in self.pgnos]


def run_from(snapshot: Snapshot, pgno: int, count: int) -> Run:
    """Up to `count` pages from `pgno` on that the snapshot has in one file, not far from each other; `pgno` is one.

    The run ends with the chunk of the page map.
    """
    chunk = snapshot.chunks[(pgno - 1) >> CHUNK_BITS]
    first = (pgno - 1) & CHUNK_MASK
    end = min(first + count, CHUNK_PAGES)
    files = chunk.files[first:end]
    frames = chunk.frames[first:end].tolist()
    pgnos: Sequence[int] = range(pgno, pgno + len(frames))
    versions, checks = chunk.versions[first:end].tolist(), chunk.checks[first:end].tolist()
    if files.count(files[0]) != len(files):
        same = [file == files[0] for file in files]
        pgnos, versions, checks, frames = (list(compress(each, same)) for each in (pgnos, versions, checks, frames))
    sizes = [frame & FRAME_SIZE_MASK for frame in frames]
    starts = list(accumulate(sizes[:-1], initial=0))
    if (frames[-1] >> FRAME_SIZE_BITS) - (frames[0] >> FRAME_SIZE_BITS) == starts[-1]:
        return Run(pgnos, versions, checks, starts, sizes)  # back to back, as a snapshot has them
    starts = [(frame >> FRAME_SIZE_BITS) - (frames[0] >> FRAME_SIZE_BITS) for frame in frames]
    near = _near(starts, sizes)
    return Run(pgnos[:near], versions[:near], checks[:near], starts[:near], sizes[:near])


def _near(starts: list[int], sizes: list[int]) -> int:
    """How many of these frames follow each other without a large gap."""
    end = 0
    for i, start in enumerate(starts):
        if not 0 <= start - end <= MAX_GAP_BYTES:
            return i
        end = start + sizes[i]
    return len(starts)
