"""The page index of an LTX file: arrays to bytes and back, and what a sound index looks like. Does no I/O.

Source: superfly/ltx, `encoder.go` (encodePageIndex). For each page, ascending, three unsigned LEB128 varints: pgno,
absolute offset of its frame, size of the frame with its headers. A zero byte ends them; a u64 with their size in bytes,
that zero included, follows. Everything here works on whole arrays: a million entries take a fraction of a second.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from litevfs.errors import LTXFormatError, LTXMissingPagesError
from litevfs.ltx.format import (
    HEADER_SIZE,
    INDEX_SIZE_FIELD_SIZE,
    MAX_FRAME_SIZE,
    PAGE_HEADER_SIZE,
    TRAILER_SIZE,
    Header,
    lock_pgno,
)

_CHUNK_SIZE = 1 << 20
"""Bytes of varints decoded at a time: bounds the temporary arrays, and keeps them in the processor's cache."""
_CHUNK_ENTRIES = 1 << 16
_FEW_ENTRIES = 16
_FEW_BYTES = 128
_MAX_VARINT_SIZE = 10
"""Bytes of the longest varint, a number of 64 bits. Its last byte can only be 1."""
_MAX_ENTRY_SIZE = 5 + _MAX_VARINT_SIZE + 5
_UINT32_MAX = 2**32 - 1
_UINT64_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True, eq=False)
class PageIndex:
    """Where the frame of each page lies in a file; three read-only arrays of one length, ascending by page number."""

    pgnos: NDArray[np.uint32]
    offsets: NDArray[np.uint64]  # bytes from the start of the file
    sizes: NDArray[np.uint32]  # bytes, the frame's headers included

    def __post_init__(self) -> None:
        for column in (self.pgnos, self.offsets, self.sizes):
            column.setflags(write=False)

    def __len__(self) -> int:
        return len(self.pgnos)

    def find(self, pgno: int) -> int | None:
        """The position of page `pgno` in the arrays, or None when the file does not hold it."""
        i = int(np.searchsorted(self.pgnos, pgno))
        return i if i < len(self.pgnos) and self.pgnos[i] == pgno else None


def page_index_from_frames(pgnos: array[int], sizes: array[int], start: int = HEADER_SIZE) -> PageIndex:
    """The index of frames that have these page numbers and sizes, in this order (arrays of type "I").

    `start` is the offset of the first of them: that of a whole file's frames, or of a part of them.
    """
    frame_sizes = np.array(sizes, np.uint32)
    ends = np.cumsum(frame_sizes, dtype=np.uint64) + np.uint64(start)
    return PageIndex(np.array(pgnos, np.uint32), ends - frame_sizes, frame_sizes)


def decode_page_index(data: bytes | memoryview) -> PageIndex:
    """Parse an index: its varints, the zero byte and the u64 size field, exactly.

    Only the shortest form of each varint is accepted (no writer makes another), so an index has one encoding. Raises
    LTXFormatError. What the entries mean for a file is checked by `validate_page_index`.
    """
    if len(data) < INDEX_SIZE_FIELD_SIZE + 1:
        raise LTXFormatError(f"LTX page index needs 9 bytes or more, got {len(data)}")
    size = int.from_bytes(data[-INDEX_SIZE_FIELD_SIZE:], "big")
    if size != len(data) - INDEX_SIZE_FIELD_SIZE:
        raise LTXFormatError(f"LTX page index says it has {size} bytes, but has {len(data) - INDEX_SIZE_FIELD_SIZE}")
    raw = np.frombuffer(data, np.uint8, size)
    if raw[-1] != 0 or (size > 1 and raw[-2] & 0x80):
        raise LTXFormatError("LTX page index has no terminating zero byte")
    few = _decode_few(raw[:-1].tobytes()) if size <= _FEW_BYTES else None
    return _decode_entries(raw[:-1]) if few is None else few


def _decode_few(raw: bytes) -> PageIndex | None:
    """The entries, one by one: faster for a file of a small transaction. None: they are not sound, see
    `_decode_entries`.
    """
    values: list[int] = []
    value = shift = 0
    for byte in raw:
        value |= (byte & 0x7F) << shift
        if byte >= 0x80:
            shift += 7
        elif shift and not byte:  # longer than it needs to be
            return None
        else:
            values.append(value)
            value = shift = 0
    pgnos, offsets, sizes = values[::3], values[1::3], values[2::3]
    is_sound = len(pgnos) == len(sizes) and not shift and 0 not in pgnos
    if not is_sound or not values or max(*pgnos, *sizes) > _UINT32_MAX or max(offsets) > _UINT64_MAX:
        return None
    return PageIndex(np.array(pgnos, np.uint32), np.array(offsets, np.uint64), np.array(sizes, np.uint32))


def _decode_entries(raw: NDArray[np.uint8]) -> PageIndex:
    entries, rest = divmod(int(np.count_nonzero(raw < 0x80)), 3)
    if rest:
        raise LTXFormatError("LTX page index ends within an entry")
    pgnos = np.empty(entries, np.uint32)
    offsets = np.empty(entries, np.uint64)
    sizes = np.empty(entries, np.uint32)
    position = done = 0
    while position < len(raw):
        values, used = _decode_chunk(raw[position : position + _CHUNK_SIZE])
        columns = values.reshape(-1, 3)
        if columns[:, 0].min() == 0 or max(columns[:, 0].max(), columns[:, 2].max()) > _UINT32_MAX:
            raise LTXFormatError("LTX page index holds a page number or a frame size that is out of range")
        end = done + len(columns)
        pgnos[done:end], offsets[done:end], sizes[done:end] = columns.T
        done = end
        position += used
    return PageIndex(pgnos, offsets, sizes)


def decode_entries_at(raw: NDArray[np.uint8]) -> tuple[PageIndex, int]:
    """The whole entries that `raw` starts with, and their size in bytes; not checked. Raises LTXFormatError."""
    values, used = _decode_chunk(raw)
    columns = values.reshape(-1, 3)
    if columns[:, 0].min() == 0 or max(columns[:, 0].max(), columns[:, 2].max()) > _UINT32_MAX:
        raise LTXFormatError("LTX page index holds a page number or a frame size that is out of range")
    return PageIndex(columns[:, 0].astype(np.uint32), columns[:, 1].copy(), columns[:, 2].astype(np.uint32)), used


def _decode_chunk(raw: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], int]:
    """The varints of the whole entries that `raw` starts with, and their size in bytes."""
    ends = np.flatnonzero(raw < 0x80).astype(np.int32)
    ends = ends[: len(ends) // 3 * 3]
    if len(ends) == 0:
        raise LTXFormatError("LTX page index holds an over-long varint")
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    extra = ends - starts  # bytes after the first one
    last = raw[ends]
    longest = int(extra.max()) + 1
    if longest > _MAX_VARINT_SIZE or bool(np.any(last[extra == _MAX_VARINT_SIZE - 1] > 1)):
        raise LTXFormatError("LTX page index holds a varint of more than 64 bits")
    if bool(np.any((last == 0) & (extra > 0))):
        raise LTXFormatError("LTX page index holds a varint that is longer than it needs to be")
    values = (raw[starts] & 0x7F).astype(np.uint64)
    for i in range(1, longest):
        which = np.flatnonzero(extra >= i)
        values[which] |= (raw[starts[which] + i] & 0x7F).astype(np.uint64) << np.uint64(7 * i)
    return values, int(ends[-1]) + 1


def encode_page_index(index: PageIndex) -> bytes:
    """The index as a file holds it: varints, zero byte, u64 size field."""
    entries = encode_entries(index) + b"\0"
    return entries + len(entries).to_bytes(INDEX_SIZE_FIELD_SIZE, "big")


def encode_entries(index: PageIndex) -> bytes:
    """The varints of an index alone."""
    if len(index) <= _FEW_ENTRIES:
        return _encode_few(zip(index.pgnos.tolist(), index.offsets.tolist(), index.sizes.tolist(), strict=True))
    return b"".join(_encode_chunk(index, start) for start in range(0, len(index), _CHUNK_ENTRIES))


def encode_entries_of_frames(pgnos: array[int], sizes: array[int], start: int = HEADER_SIZE) -> bytes:
    """The varints of the index that `page_index_from_frames` makes; made without arrays where there are few."""
    if len(pgnos) <= _FEW_ENTRIES:
        return _encode_few(zip(pgnos, accumulate(sizes, initial=start), sizes, strict=False))  # one offset is too many
    return encode_entries(page_index_from_frames(pgnos, sizes, start))


def _encode_few(entries: Iterable[tuple[int, int, int]]) -> bytes:
    """The same, one by one: faster for a file of a small transaction, and most files are."""
    encoded = bytearray()
    for entry in entries:
        for value in entry:
            while value >= 0x80:
                encoded.append(value & 0x7F | 0x80)
                value >>= 7
            encoded.append(value)
    return bytes(encoded)


def _encode_chunk(index: PageIndex, start: int) -> bytes:
    chunk = slice(start, start + _CHUNK_ENTRIES)
    columns = index.pgnos[chunk], index.offsets[chunk], index.sizes[chunk]
    values = np.stack([column.astype(np.uint64) for column in columns], axis=1).ravel()
    extra = np.zeros(len(values), np.int64)
    for bits in range(7, 64, 7):
        extra += values >= np.uint64(1 << bits)
    ends = np.cumsum(extra + 1) - 1
    starts = ends - extra
    raw = np.empty(int(ends[-1]) + 1, np.uint8)
    for i in range(int(extra.max()) + 1):
        which = np.flatnonzero(extra >= i)
        digits = ((values[which] >> np.uint64(7 * i)) & np.uint64(0x7F)).astype(np.uint8)
        raw[starts[which] + i] = digits | np.where(extra[which] > i, 0x80, 0).astype(np.uint8)
    return raw.tobytes()


def index_size_from_tail(tail: bytes | memoryview) -> int:
    """Bytes of the page index, its size field included, as the last 24 (or more) bytes of a file say.

    The number is the file's claim, up to 2**64 + 7; compare it with the file's size before believing it. Raises
    LTXFormatError when `tail` is shorter.
    """
    if len(tail) < INDEX_SIZE_FIELD_SIZE + TRAILER_SIZE:
        raise LTXFormatError("not an LTX file: it ends before its page index", hint="the file is truncated")
    field = tail[-(INDEX_SIZE_FIELD_SIZE + TRAILER_SIZE) : -TRAILER_SIZE]
    return int.from_bytes(field, "big") + INDEX_SIZE_FIELD_SIZE


def max_index_size(header: Header) -> int:
    """Bytes of the largest page index, its size field included, that a file with `header` can have."""
    return header.commit * _MAX_ENTRY_SIZE + 1 + INDEX_SIZE_FIELD_SIZE


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
