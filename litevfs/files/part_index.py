"""The page index of a large snapshot file, read only around the pages that are asked for. Owns the bytes read of it.

A snapshot holds every page, so the number of a page's entry is known, and its place in the index nearly: entries take
about equally many bytes, and each part that was read shows exactly where some of them lie. Where much of the index is
wanted, all of it is read at once.
"""

from __future__ import annotations

import threading
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from litevfs.errors import LTXFormatError
from litevfs.files.fetch import Fetcher
from litevfs.files.fetched import check_name
from litevfs.files.ranges import Range, likely_head_bytes, pieces
from litevfs.ltx.decoder import tail_size_needed
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.ltx.format import END_OF_PAGES, HEADER_SIZE, INDEX_SIZE_FIELD_SIZE, TRAILER_SIZE, Header, Trailer
from litevfs.ltx.index_part import IndexPart, decode_index_part, entry_numbers
from litevfs.ltx.page_index import PageIndex, encode_entries
from litevfs.ltx.page_rules import snapshot_page_count

COSTLY_FILE_BYTES = 1 << 25
"""The index of a smaller file takes no longer than the requests for its parts."""
WINDOW_BYTES = 512
"""Read around the estimated place of an entry; an entry takes about 10 bytes."""
SINGLE_SHARE = 0.25
"""An entry that is wanted alone brings this part of what such ones have brought so far: more of them will be wanted."""
GAP_BYTES = 4096
"""Windows so near to each other are read in one request."""
PART_BYTES = 1 << 19
"""Of a request, where all of an index is read."""
MAX_ROUNDS = 6
"""After so many estimates, or when a quarter of the index is wanted, all of it is read."""
ALL_SHARE = 0.25

Read = Callable[[Sequence[Range]], list[bytes]]
"""Reads ranges of the file, in parallel where that pays."""


class Anchor(NamedTuple):
    """An entry whose place is known."""

    entry: int
    position: int  # in the index, bytes
    offset: int  # of its frame in the file


class PartIndex:
    """Finds frames in one file, which is a snapshot. Safe to use from many threads.

    `start` and `end` are where the entries of the index lie in the file, `pages_end` is where its frames end.
    """

    def __init__(
        self,
        header: Header,
        start: int,
        end: int,
        pages_end: int,
        read: Read,
        located: Callable[[LTXFormatError], LTXFormatError] = lambda error: error,
    ) -> None:
        """`located` names the file in an error."""
        self.header = header
        self._start = start
        self._size = end - start
        self._read = read
        self._located = located
        self._count = snapshot_page_count(header)
        self._offsets = np.zeros(self._count, np.uint64)
        self._sizes = np.zeros(self._count, np.uint32)  # 0: not known
        self._anchors = [Anchor(0, 0, HEADER_SIZE), Anchor(self._count, self._size, pages_end)]
        self._bytes_read = self._single_bytes = 0
        self._lock = threading.Lock()  # never held while bytes are read

    def find(self, pgnos: Iterable[int]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        """(offset, size) of the frame of each of these pages, which the file has: bytes.

        Raises LTXFormatError for an index that is not sound there, and what reading raises.
        """
        numbers = entry_numbers(np.fromiter(pgnos, np.int64), self.header.page_size)
        try:
            self._find(numbers)
        except LTXFormatError as error:
            raise self._located(error) from error
        return self._offsets[numbers], self._sizes[numbers]

    def _find(self, numbers: NDArray[np.int64]) -> None:
        for _ in range(MAX_ROUNDS):
            missing = sorted(set(numbers[self._sizes[numbers] == 0].tolist()))
            if not missing:
                return
            with self._lock:
                windows = self._windows(missing)
            if self._bytes_read + sum(size for _, size in windows) > ALL_SHARE * self._size:
                break
            self._read_windows(windows)
        if not bool(np.all(self._sizes[numbers])):
            self._read_all()

    def _windows(self, entries: Sequence[int]) -> list[Range]:
        """Ranges of the index, ascending, that probably hold these entries."""
        windows: list[Range] = []
        window_bytes = min(WINDOW_BYTES, self._size)
        if len(entries) == 1:
            window_bytes = min(max(window_bytes, int(self._single_bytes * SINGLE_SHARE)), self._size)
            self._single_bytes += window_bytes
        for entry in entries:
            position = self._estimate(entry)
            start = max(0, min(position - window_bytes // 2, self._size - window_bytes))
            end = start + window_bytes
            if windows and start <= windows[-1][0] + windows[-1][1] + GAP_BYTES:
                start = windows.pop()[0]
            windows.append((start, end - start))
        return windows

    def _estimate(self, entry: int) -> int:
        """About where an entry begins in the index: between its known neighbours, as its numbers grow."""
        place = bisect_right(self._anchors, entry, key=lambda anchor: anchor.entry)
        low, high = self._anchors[place - 1], self._anchors[min(place, len(self._anchors) - 1)]
        whole = self._usual_bytes(low, high, high.entry)
        share = self._usual_bytes(low, high, entry) / whole if whole else 0.0
        return low.position + int((high.position - low.position) * share)

    def _usual_bytes(self, low: Anchor, high: Anchor, entry: int) -> float:
        """Bytes that the entries from `low` up to this one would take if frames had equal sizes."""
        count = entry - low.entry
        total = 4.0 * count  # one byte of each number at least; the size of a frame usually takes two
        step = (high.offset - low.offset) / max(1, high.entry - low.entry)
        for bits in range(7, 64, 7):
            limit = 1 << bits
            total += min(count, max(0, entry - max(low.entry, limit - 1)))  # the entry's number is about its page's
            total += min(count, max(0.0, count - max(0.0, (limit - low.offset) / step)))
        return total

    def _read_windows(self, windows: Sequence[Range]) -> None:
        for (start, size), data in zip(windows, self._read_index(windows), strict=True):
            try:
                self._learn(start, data)
            except LTXFormatError:  # perhaps damaged on its way
                self._learn(start, self._read_index([(start, size)])[0])
            self._bytes_read += size

    def _read_all(self) -> None:
        self._learn(0, b"".join(self._read_index(pieces(0, self._size, PART_BYTES))))
        if not bool(np.all(self._sizes)):
            raise self._unsound("it does not hold every page")

    def _read_index(self, ranges: Sequence[Range]) -> list[bytes]:
        return self._read([(self._start + start, size) for start, size in ranges])

    def _learn(self, start: int, data: bytes) -> None:
        """Note the entries in these bytes, which lie at `start` of the index."""
        part = decode_index_part(data, self.header, begins=start == 0)
        with self._lock:
            self._note(part, start)

    def _note(self, part: IndexPart, start: int) -> None:
        """Note entries, each of which the next one confirms; so not the last, unless the index ends there."""
        index = part.index
        first = int(entry_numbers(index.pgnos[:1].astype(np.int64), self.header.page_size)[0])
        self._add(Anchor(first, start + part.start, int(index.offsets[0])))
        count = len(index)
        if first + count == self._count:
            self._add(Anchor(self._count, start + part.end, int(index.offsets[-1]) + int(index.sizes[-1])))
        else:
            count -= 1
            last = PageIndex(index.pgnos[count:], index.offsets[count:], index.sizes[count:])
            position = start + part.end - len(encode_entries(last))
            self._add(Anchor(first + count, position, int(index.offsets[count])))
        self._offsets[first : first + count] = index.offsets[:count]
        self._sizes[first : first + count] = index.sizes[:count]

    def _add(self, anchor: Anchor) -> None:
        """Note where an entry lies. Raises LTXFormatError if that contradicts what is known."""
        place = bisect_right(self._anchors, anchor.entry, key=lambda known: known.entry)
        before = self._anchors[place - 1]
        if before.entry == anchor.entry:
            if before != anchor:
                raise self._unsound("its parts contradict each other")
            return
        after = self._anchors[place] if place < len(self._anchors) else anchor
        is_between = before.position < anchor.position and before.offset < anchor.offset
        if not is_between or after.position < anchor.position or after.offset < anchor.offset:
            raise self._unsound("its parts contradict each other")
        insort(self._anchors, anchor)

    def _unsound(self, what: str) -> LTXFormatError:
        header = self.header
        return LTXFormatError(
            f"LTX page index is not sound: {what}", min_txid=header.min_txid, max_txid=header.max_txid
        )


def is_costly(fetcher: Fetcher, file: LTXFileInfo) -> bool:
    """Whether it pays to read the page index of a file only in part where few of its pages are wanted.

    Not where a folder keeps it for the next time, and not where whole files are verified.
    """
    is_whole = fetcher.verifies or fetcher.disk_cache is not None
    return fetcher.is_remote and not is_whole and file.min_txid == 1 and file.size >= COSTLY_FILE_BYTES


def open_part(current: Callable[[], Fetcher], file: LTXFileInfo) -> tuple[Header, bytes, PartIndex]:
    """Header, first bytes and page index of a snapshot file; of the index, only its size is read. Not for the pool.

    The header is read twice, at once: here nothing else tells how many pages there are.

    `current` gives the replica's fetcher: after a fork it is another one.

    Raises LTXFormatError, located, for a file that is damaged there, and what reading raises.
    """
    fetcher = current()
    tail_size = min(file.size, INDEX_SIZE_FIELD_SIZE + TRAILER_SIZE)
    head_size = likely_head_bytes(file, fetcher.client.block_size, fetcher.line.trip_bytes)
    ranges = ((0, head_size), (file.size - tail_size, tail_size), (0, HEADER_SIZE))
    head, tail, again = fetcher.threads.parallel([partial(fetcher.read, file, *wanted) for wanted in ranges])
    try:
        header = Header.unpack(head)
        if again != head[:HEADER_SIZE]:
            raise LTXFormatError("each request brings another header")
        check_name(file, header)
        Trailer.unpack(tail[-TRAILER_SIZE:]).validate(header)
        pages_end = file.size - tail_size_needed(tail, file.size, header)
    except LTXFormatError as error:
        raise fetcher.located(error, file) from error

    def read(ranges: Sequence[Range]) -> list[bytes]:
        fetcher = current()
        return fetcher.threads.parallel([partial(fetcher.read, file, *wanted) for wanted in ranges])

    start, end = pages_end + len(END_OF_PAGES), file.size - tail_size - len(b"\0")
    return header, head, PartIndex(header, start, end, pages_end, read, lambda error: current().located(error, file))
