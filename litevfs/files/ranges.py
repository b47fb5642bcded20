"""Which requests fetch the wanted ranges of a file: pure plans, no I/O.

Ranges that lie close together share a request. Where they fill a good part of their blocks, the plan asks for whole
blocks, which also serve readers of neighbouring pages; where they lie scattered, it asks for the ranges alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from litevfs.ltx.file_info import LTXFileInfo
from litevfs.ltx.format import HEADER_SIZE

DENSE = 0.25
"""From this share of wanted bytes on, whole blocks are worth keeping, if gaps of that size are worth reading over."""
DENSER = 0.6
"""The same share, if such gaps are not worth reading over."""

SPREAD = 2
"""Bytes read for each wanted byte, at most, of plans that have to be sparing."""
DENSE_RANGES = 4
"""Fewer neighbours may be chance."""

TAIL_BYTES_PER_FILE_BYTE = 1 / 100
"""First guess of where a page index starts: entries are about 9 bytes, frames about 2 kB."""
MIN_TAIL_BYTES, MAX_TAIL_BYTES = 1 << 14, 1 << 20
"""The end of a file says how large its index is: for a large one, reading exactly the rest beats a generous guess."""

HEAD_BYTES_PER_FILE_BYTE = 1 / 100
"""Tables and indexes are made before they grow, so most of their roots lie at the start of a snapshot file."""

Range = tuple[int, int]
"""(offset, size), bytes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a request, bytes."""

    block: int
    gap: int  # reading over a gap of this size costs less than another request
    request: int  # a larger one is split
    is_sparing: bool = False  # no more bytes are read over than wanted, so that these pay for them when they are used


def block_runs(blocks: Iterable[int], most: int) -> list[range]:
    """Consecutive block numbers, ascending, in runs of at most `most`."""
    runs: list[range] = []
    for block in blocks:
        if runs and runs[-1].stop == block and len(runs[-1]) < most:
            runs[-1] = range(runs[-1].start, block + 1)
        else:
            runs.append(range(block, block + 1))
    return runs


def blocks_of(ranges: Iterable[Range], size_of_block: int) -> list[int]:
    """The numbers of the blocks that ascending ranges lie in, ascending."""
    blocks: list[int] = []
    last = -1
    for offset, size in ranges:
        end = (offset + size - 1) // size_of_block
        if end > last:
            blocks += range(max(offset // size_of_block, last + 1), end + 1)
            last = end
    return blocks


def clusters(ranges: Iterable[Range], limits: Limits) -> list[tuple[list[Range], bool]]:
    """Ascending ranges in groups, and whether each group lies dense enough for whole blocks; the others are neighbours.

    Ranges that lie within a block of each other are dense together or not at all; one that overlaps the one before it,
    as no sound file has them, is left out.
    """
    near: list[list[Range]] = []
    end = -limits.block - 1
    for wanted in ranges:
        offset, size = wanted
        if offset - end > limits.block:
            near.append([wanted])
        elif offset >= end:
            near[-1].append(wanted)
        else:
            continue
        end = offset + size
    groups: list[tuple[list[Range], bool]] = []
    for group in near:
        is_dense = _is_dense(group, limits)
        if groups and not is_dense and not groups[-1][1]:
            groups[-1][0].extend(group)
        else:
            groups.append((group, is_dense))
    return groups


def _is_dense(group: list[Range], limits: Limits) -> bool:
    share = DENSE if limits.gap >= DENSE * limits.block else DENSER
    if limits.is_sparing:
        share = max(share, 1 / SPREAD)
    return len(group) >= DENSE_RANGES and sum(size for _, size in group) >= share * (sum(group[-1]) - group[0][0])


def scattered_runs(ranges: Iterable[Range], limits: Limits) -> list[list[Range]]:
    """Ascending ranges in runs of one request each: over gaps that are worth it, up to the largest request."""
    runs: list[list[Range]] = []
    for offset, size in ranges:
        if runs and offset - sum(runs[-1][-1]) <= limits.gap and offset + size - runs[-1][0][0] <= limits.request:
            runs[-1].append((offset, size))
        else:
            runs.append([(offset, size)])
    return runs


def affordable_runs(ranges: list[Range], limits: Limits, has_room: Callable[[int], bool]) -> list[list[Range]]:
    """`scattered_runs` over gaps that are small enough for there to be room for all bytes of the requests.

    Without room, each range would come by a request of its own, one after the other.
    """
    wanted = total = sum(size for _, size in ranges)
    most = SPREAD * wanted if limits.is_sparing else float("inf")
    runs = scattered_runs(ranges, limits)
    if (of_all := sum(sum(run[-1]) - run[0][0] for run in runs)) <= most and has_room(of_all):
        return runs
    gaps = Counter(after[0] - sum(before) for before, after in pairwise(ranges))
    affordable = 0
    for gap in sorted(gap for gap in gaps if 0 < gap <= limits.gap):
        total += gap * gaps[gap]
        if total > most or not has_room(total):
            break
        affordable = gap
    return scattered_runs(ranges, replace(limits, gap=affordable))


def likely_tail_bytes(file: LTXFileInfo) -> int:
    """How many bytes of the end of a file to read first: all of the page index, unless that is large."""
    return min(max(MIN_TAIL_BYTES, int(file.size * TAIL_BYTES_PER_FILE_BYTE)), MAX_TAIL_BYTES)


def likely_head_bytes(file: LTXFileInfo, block_size: int, free_bytes: int) -> int:
    """How many bytes of the start of a file to read first: a block, and more of them as far as `free_bytes` goes.

    So much comes while the reader waits for the end of the file anyway.
    """
    more = min(int(file.size * HEAD_BYTES_PER_FILE_BYTE), free_bytes)
    blocks = -(-more // block_size) if block_size else 0
    return min(file.size, max(HEADER_SIZE, block_size, blocks * block_size))


def pieces(start: int, end: int, most: int) -> list[Range]:
    """Ranges of at most so many bytes, which together are the bytes from `start` to `end`."""
    return [(offset, min(most, end - offset)) for offset in range(start, end, most)]
