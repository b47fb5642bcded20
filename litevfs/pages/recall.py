"""Index leaves that earlier queries of a connection read: SQLite may have one cached, and look up rows by it unseen.

Pure; the caller supplies pages. Only reads of this query are evidence: three table leaves, each different from the one
before, to which rowids of an index leaf lead in that order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from litevfs.pages.btree import LEAF_INDEX, Int64s, parse_index_entries
from litevfs.pages.trees import KnownTrees

REMEMBERED = 512
"""Index leaves; SQLite's own page cache has room for about so many pages of 4 KiB."""
JUMPS = 3
"""Table leaves that show look-ups."""
PATIENCE = 8
"""A search that found nothing is repeated after so many times as many jumps."""
LOOK_AROUND = 32
"""SQLite skips entries whose table leaf it still has: so many entries further on still count as in order."""


@dataclass(frozen=True, slots=True)
class Found:
    """An index leaf, and two table leaves that its entries lead to one after the other, read last."""

    pgno: int
    page: bytes
    first: int
    second: int


class Recall:
    """Counts look-ups that no index leaf explains, and finds the leaf among those read earlier."""

    def __init__(self) -> None:
        self._leaves: dict[int, None] = {}  # the one read last is the last
        self._jumps: deque[int] = deque(maxlen=JUMPS)
        self._count = 0
        self._due_at = JUMPS
        self.is_due = False  # time to search
        self.next_leaf = 0  # follows the leaf whose entries are all looked up: the first to look at, or 0

    def begin(self) -> None:
        """Another query begins, or its look-ups are explained."""
        self._jumps.clear()
        self._count, self._due_at, self.is_due, self.next_leaf = 0, JUMPS, False, 0

    def note_leaf(self, pgno: int) -> None:
        """An index leaf is read."""
        self._jumps.clear()
        self._leaves.pop(pgno, None)
        self._leaves[pgno] = None
        if len(self._leaves) > REMEMBERED:
            del self._leaves[next(iter(self._leaves))]

    def note_jump(self, pgno: int) -> None:
        """A table leaf is read that no pattern leads to."""
        if self._leaves and not (self._jumps and self._jumps[-1] == pgno):
            self._jumps.append(pgno)
            self._count += 1
            self.is_due = self._count >= self._due_at and len(self._jumps) == JUMPS

    def expect(self, pgno: int) -> None:
        """All entries of an index leaf are looked up, and leaf `pgno` comes next, or none (0)."""
        self.next_leaf = pgno if pgno in self._leaves else 0
        self.is_due |= self.next_leaf > 0

    def find(self, trees: KnownTrees, peek: Callable[[int], bytes | None], most: int) -> Found | None:
        """The leaf that explains the jumps, among the `most` leaves read last.

        `peek` gives a page's bytes if they are in memory.
        """
        self.is_due = False
        if len(self._jumps) < JUMPS:
            return None
        self._due_at = self._count * PATIENCE
        rowids = [trees.rowids_of(pgno) for pgno in self._jumps]
        for pgno in list(self._leaves)[: -most - 1 : -1]:
            page = peek(pgno)
            if not page or page[0] != LEAF_INDEX:
                continue
            entries = parse_index_entries(page).rowids
            if _lead_to(entries, rowids) or _lead_to(entries[::-1], rowids):
                return Found(pgno, page, *list(self._jumps)[-2:])
        return None


def _lead_to(entries: Int64s, leaves: list[range]) -> bool:
    """Whether entries lead to these table leaves in this order, with few entries between them."""
    positions, *others = (np.flatnonzero((entries >= leaf.start) & (entries <= leaf.stop - 1)) for leaf in leaves)
    for following in others:
        if not len(positions) or not len(following):
            return False
        place = np.searchsorted(following, positions, "right")
        positions, place = positions[place < len(following)], place[place < len(following)]
        positions = following[place][following[place] - positions <= LOOK_AROUND]
    return len(positions) > 0
