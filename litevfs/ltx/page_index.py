"""The page index of an LTX file: arrays to bytes and back. Does no I/O; `page_rules.py` says what a sound one is.

Source: superfly/ltx, `encoder.go` (encodePageIndex). For each page, ascending, three unsigned LEB128 varints: pgno,
absolute offset of its frame, size of the frame with its headers. A zero byte ends them; a u64 with their size in bytes,
that zero included, follows. Everything here works on whole arrays: a million entries take a fraction of a second.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from litevfs.errors import LTXFormatError
from litevfs.ltx.format import HEADER_SIZE, INDEX_SIZE_FIELD_SIZE, TRAILER_SIZE, Header

_CHUNK_SIZE = 1 << 15
"""Bytes of varints decoded at a time: bounds the temporary arrays, and keeps them in the processor's cache."""
_CHUNK_ENTRIES = 1 << 16
_FEW_ENTRIES = 16
_FEW_BYTES = 128
_MAX_VARINT_SIZE = 10
"""Bytes of the longest varint, a number of 64 bits. Its last byte can only be 1."""
_WORD_SIZE = 8
"""Bytes of the longest varint that is decoded as one word: a number of 56 bits."""
_LAST_BYTES = 0x8080808080808080
"""A bit that is 0 in each byte of a varint but its last one."""
_GAPS = (0x7F007F007F007F00, 1), (0x3FFF00003FFF0000, 2), (0x0FFFFFFF00000000, 4)
"""Seven bits of each byte count: (the upper half of each pair of groups, bits between them and the lower one)."""
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
        _check_range(columns)
        end = done + len(columns)
        pgnos[done:end], offsets[done:end], sizes[done:end] = columns.T
        done = end
        position += used
    return PageIndex(pgnos, offsets, sizes)


def decode_entries_at(raw: NDArray[np.uint8]) -> tuple[PageIndex, int]:
    """The whole entries that `raw` starts with, and their size in bytes; not checked. Raises LTXFormatError."""
    values, used = _decode_chunk(raw)
    columns = values.reshape(-1, 3)
    _check_range(columns)
    return PageIndex(
        columns[:, 0].astype(np.uint32), columns[:, 1].astype(np.uint64), columns[:, 2].astype(np.uint32)
    ), used


def _check_range(columns: NDArray[Any]) -> None:
    fits = columns.itemsize <= _WORD_SIZE // 2 or max(columns[:, 0].max(), columns[:, 2].max()) <= _UINT32_MAX
    if not fits or columns[:, 0].min() == 0:
        raise LTXFormatError("LTX page index holds a page number or a frame size that is out of range")


def _decode_chunk(raw: NDArray[np.uint8]) -> tuple[NDArray[Any], int]:
    """The varints of the whole entries that `raw` starts with, and their size in bytes."""
    ends = np.flatnonzero(raw < 0x80)
    ends = ends[: len(ends) // 3 * 3]
    if len(ends) == 0:
        raise LTXFormatError("LTX page index holds an over-long varint")
    used = int(ends[-1]) + 1
    starts = np.empty_like(ends)
    starts[0] = 0
    np.add(ends[:-1], 1, out=starts[1:])
    extra = ends - starts  # bytes after the first one
    longest = int(extra.max()) + 1
    if longest > _MAX_VARINT_SIZE or (longest == _MAX_VARINT_SIZE and np.any(raw[ends[extra == longest - 1]] > 1)):
        raise LTXFormatError("LTX page index holds a varint of more than 64 bits")
    if np.any((raw[1:used] == 0) & (raw[: used - 1] >= 0x80)):
        raise LTXFormatError("LTX page index holds a varint that is longer than it needs to be")
    if longest <= _WORD_SIZE:
        return _decode_words(raw[:used], starts, longest), used
    values = (raw[starts] & 0x7F).astype(np.uint64)
    for i in range(1, longest):
        which = np.flatnonzero(extra >= i)
        values[which] |= (raw[starts[which] + i] & 0x7F).astype(np.uint64) << np.uint64(7 * i)
    return values, used


def _decode_words(raw: NDArray[np.uint8], starts: NDArray[np.intp], longest: int) -> NDArray[Any]:
    """The varints, none of more than 8 bytes, at `starts`: each is taken as one word, whose bits are then closed up."""
    size = _WORD_SIZE // 2 if longest <= _WORD_SIZE // 2 else _WORD_SIZE
    word = np.dtype(f"<u{size}")
    padded = np.zeros(len(raw) + size, np.uint8)
    padded[: len(raw)] = raw
    at_each_byte: NDArray[Any] = np.ndarray((len(raw),), word, padded, strides=(1,))
    values = at_each_byte.take(starts)
    most = (1 << 8 * size) - 1
    last = ~values & word.type(_LAST_BYTES & most)
    last &= -last  # the first of them; what comes after it is of the next varints
    values &= (last << word.type(1)) - word.type(1)
    for high, gap in _GAPS:
        if longest > gap:
            upper = values & word.type(high & most)
            upper >>= word.type(gap)
            values &= word.type(high >> 8 * gap & most)
            values |= upper
    return values


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
