"""Entries of a page index from bytes out of its middle: told apart by what they say of each other. Does no I/O.

An index has no marks between its entries, but each begins where the one before it ends: in the file too. In a snapshot
the page numbers follow one another without a gap, so one division of the bytes into entries can be right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litevfs.errors import LTXFormatError
from litevfs.ltx.format import MAX_FRAME_SIZE, PAGE_HEADER_SIZE, Header, lock_pgno
from litevfs.ltx.page_index import PageIndex, decode_entries_at

MIN_ENTRIES = 3
"""Fewer could be divided in more than one way."""


@dataclass(frozen=True, slots=True)
class IndexPart:
    """Whole entries, and where they begin and end within the bytes they were read from."""

    index: PageIndex
    start: int  # bytes
    end: int


def decode_index_part(data: bytes, header: Header, *, begins: bool = False) -> IndexPart:
    """The whole entries within `data`, which come from the index of a snapshot file with `header`.

    `begins`: an entry begins with the first byte. Raises LTXFormatError if no, or no single, division is sound.
    """
    raw = np.frombuffer(data, np.uint8)
    starts = [0] if begins else (np.flatnonzero(raw < 0x80)[:MIN_ENTRIES] + 1).tolist()
    found = []
    for start in starts:
        try:
            index, end = decode_entries_at(raw[start:])
        except LTXFormatError:
            continue
        if len(index) >= (1 if begins else MIN_ENTRIES) and _are_entries(index, header):
            found.append(IndexPart(index, start, start + end))
    if len(found) != 1:
        raise LTXFormatError(
            "a part of an LTX page index cannot be divided into entries",
            min_txid=header.min_txid,
            max_txid=header.max_txid,
        )
    return found[0]


def entry_numbers(pgnos: NDArray[np.int64], page_size: int) -> NDArray[np.int64]:
    """Which entry of a snapshot's index, from 0 on, is that of each page."""
    return pgnos - 1 - (pgnos > lock_pgno(page_size))


def _are_entries(index: PageIndex, header: Header) -> bool:
    pgnos = index.pgnos.astype(np.int64)
    if pgnos[0] < 1 or pgnos[-1] > header.commit or lock_pgno(header.page_size) in (pgnos[0], pgnos[-1]):
        return False
    numbers = entry_numbers(pgnos, header.page_size)
    ends = index.offsets + index.sizes
    return (
        bool(np.all(np.diff(numbers) == 1))
        and np.array_equal(index.offsets[1:], ends[:-1])
        and int(index.sizes.min()) > PAGE_HEADER_SIZE
        and int(index.sizes.max()) <= MAX_FRAME_SIZE
    )
