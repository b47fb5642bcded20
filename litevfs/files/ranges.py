"""Which requests bring the ranges of a file that are wanted: pure plans, no I/O.

Ranges that lie close together come in one request. Where they fill a good part of the blocks they lie in, whole blocks
are asked for, which readers of their neighbours find; where they lie scattered, the ranges alone are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

DENSE = 0.25
"""From this part of wanted bytes on, blocks are worth keeping."""

Range = tuple[int, int]
"""(offset, size), bytes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may be, bytes."""

    block: int
    gap: int  # of this size, reading over it costs less than another request
    request: int  # a larger one is split


def block_runs(blocks: Iterable[int], most: int) -> list[range]:
    """Consecutive block numbers, ascending, in runs of at most `most`."""
    runs: list[range] = []
    for block in blocks:
        if runs and runs[-1].stop == block and len(runs[-1]) < most:
            runs[-1] = range(runs[-1].start, block + 1)
        else:
            runs.append(range(block, block + 1))
    return runs


def clusters(ranges: Iterable[Range], limits: Limits) -> list[tuple[list[Range], bool]]:
    """Ascending ranges in groups that lie close together, and whether each group is dense enough for whole blocks."""
    groups: list[list[Range]] = []
    for offset, size in ranges:
        if groups and offset - sum(groups[-1][-1]) <= limits.block:
            groups[-1].append((offset, size))
        else:
            groups.append([(offset, size)])
    return [(group, _is_dense(group, limits.block)) for group in groups]


def _is_dense(group: list[Range], block: int) -> bool:
    first, last = group[0][0] // block, (sum(group[-1]) - 1) // block
    return len(group) > 1 and sum(size for _, size in group) >= DENSE * block * (last - first + 1)


def scattered_runs(ranges: Iterable[Range], limits: Limits) -> list[list[Range]]:
    """Ascending ranges in runs of one request each: over gaps that are worth it, up to the largest request."""
    runs: list[list[Range]] = []
    for offset, size in ranges:
        if runs and offset - sum(runs[-1][-1]) <= limits.gap and offset + size - runs[-1][0][0] <= limits.request:
            runs[-1].append((offset, size))
        else:
            runs.append([(offset, size)])
    return runs
