"""What is known of a database's B-trees from the interior pages that were read. Pure; only hints."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import count

import numpy as np

from litevfs.pages.btree import Int64s, Interior, parse_interior

MAX_INTERIOR_PAGES = 512
"""Interior pages remembered; each knows a few hundred children."""
MAX_DEPTH = 20
"""No B-tree is deeper. A bound is needed because parents and children are hints, which could form a circle."""

PLACE_BITS = 16
"""Bits of a position: a page of 64 KiB has fewer cells."""
MAX_POSITION = 1 << PLACE_BITS

MIN_ROWID, MAX_ROWID = -(1 << 63), 1 << 63


class KnownTrees:
    """Interior pages by number, and the place of each of their children."""

    def __init__(self) -> None:
        self.interior: OrderedDict[int, Interior] = OrderedDict()
        # child -> its `place` as one number: hundreds of tuples a page keep the garbage collector busy
        self.parents: dict[int, int] = {}
        self.changes = 0  # grows whenever an interior page becomes known, or is forgotten

    def learn(self, pgno: int, page: bytes, before_forgetting: Callable[[int], object] = id) -> None:
        """Note that `pgno` is this interior page now, or none.

        `before_forgetting` is called with each page whose children mean nothing any more, while they are still known:
        so what is built on them goes first, also where Ctrl-C comes between.
        """
        old = self.interior.get(pgno)
        if old is not None and old.page == page and self.place(old.children[-1]) == (pgno, len(old.children) - 1):
            self.interior.move_to_end(pgno)
            return
        interior = parse_interior(pgno, page)
        if old is not None and (interior is None or old.children != interior.children):
            before_forgetting(pgno)
            self._forget(pgno, old)  # the page has changed, positions in it mean nothing any more
        if interior is None:
            return
        self.changes += 1
        self.interior[pgno] = interior
        self.interior.move_to_end(pgno)
        self.parents.update(zip(interior.children, count(pgno << PLACE_BITS), strict=False))
        while len(self.interior) > MAX_INTERIOR_PAGES:
            oldest, content = next(iter(self.interior.items()))
            before_forgetting(oldest)
            self._forget(oldest, content)

    def _forget(self, pgno: int, interior: Interior) -> None:
        self.changes += 1
        for child in interior.children:
            if self.parents.get(child, 0) >> PLACE_BITS == pgno:
                del self.parents[child]
        del self.interior[pgno]  # last, so that Ctrl-C leaves no parent that is not known

    def place(self, pgno: int) -> tuple[int, int] | None:
        """(the interior page above a page, the page's position in it); None if that is not known."""
        place = self.parents.get(pgno)
        return None if place is None else (place >> PLACE_BITS, place & (1 << PLACE_BITS) - 1)

    def position(self, pgno: int, parent: int) -> int:
        """The place of a page among the children of an interior one; -1 if it is none of them, or not known."""
        place = self.place(pgno)
        return place[1] if place is not None and place[0] == parent else -1

    def next_interior(self, pgno: int, *, backwards: bool = False) -> int:
        """The page after an interior one, on its level of the B-tree; 0 if there is none, or it is not known."""
        climbed, step = 0, -1 if backwards else 1
        while climbed < MAX_DEPTH and (parent := self.place(pgno)) is not None:
            siblings = self.interior[parent[0]].children
            if 0 <= parent[1] + step < len(siblings):
                pgno = siblings[parent[1] + step]
                break
            pgno = parent[0]
            climbed += 1
        else:
            return 0
        for _ in range(climbed):
            interior = self.interior.get(pgno)
            if interior is None:
                return 0
            pgno = interior.children[-1 if backwards else 0]
        return pgno

    def leaves_after(self, pgno: int, count: int, *, backwards: bool = False) -> list[int]:
        """The leaves after a leaf, or before it, so many at most, as far as they are known."""
        parent, position = self.place(pgno) or (0, 0)
        leaves: list[int] = []
        while (interior := self.interior.get(parent)) is not None and interior.children[0] not in self.interior:
            following = interior.children[:position][::-1] if backwards else interior.children[position + 1 :]
            leaves += following[: count - len(leaves)]
            parent = self.next_interior(parent, backwards=backwards) if len(leaves) < count else 0
            position = MAX_POSITION if backwards else -1
        return leaves

    def stride(self, pgno: int) -> int:
        """How many pages an interior page lies after its sibling before it; 0 if it lies before it, or has none."""
        parent, position = self.place(pgno) or (0, 0)
        return max(0, pgno - self.interior[parent].children[position - 1]) if position else 0

    def rowids_of(self, pgno: int) -> range:
        """The rowids that a leaf of a table may hold, by the interior page above it; empty if that is not known."""
        parent, position = self.place(pgno) or (0, 0)
        interior = self.interior.get(parent)
        if interior is None or not interior.is_table:
            return range(0)
        keys = interior.keys
        return range(
            keys[position - 1] + 1 if position else MIN_ROWID, keys[position] + 1 if position < len(keys) else MAX_ROWID
        )

    def bounds(self, pgno: int) -> tuple[int | None, int | None]:
        """The first rowid that a page of a table may hold, and the one after the last; None where that is not known."""
        lower = upper = None
        for _ in range(MAX_DEPTH):
            place = self.place(pgno)
            if place is None or (lower is not None and upper is not None):
                break
            pgno, position = place
            keys = self.interior[pgno].keys
            if lower is None and position:
                lower = keys[position - 1] + 1
            if upper is None and position < len(keys):
                upper = keys[position] + 1
        return lower, upper

    def next_leaf(self, pgno: int) -> int:
        """The page after a leaf; 0 if there is none, or it is not known."""
        parent = self.place(pgno)
        if parent is None:
            return 0
        siblings = self.interior[parent[0]].children
        if parent[1] + 1 < len(siblings):
            return siblings[parent[1] + 1]
        following = self.interior.get(self.next_interior(parent[0]))
        return following.children[0] if following else 0

    def root(self, pgno: int) -> int:
        """The topmost known page above a page, or the page itself."""
        for _ in range(MAX_DEPTH):
            above = self.place(pgno)
            if above is None:
                break
            pgno = above[0]
        return pgno

    def way(self, pgno: int, root: int) -> list[tuple[int, int]] | None:
        """From `root` down to a page: interior pages, and the place of the next one. None if it is not known below."""
        way: list[tuple[int, int]] = []
        while pgno != root and len(way) < MAX_DEPTH and (place := self.place(pgno)) is not None:
            way.append(place)
            pgno = place[0]
        return way[::-1] if pgno == root else None

    def topmost(self, pgno: int) -> int:
        """The topmost known page of the table that a page belongs to."""
        for _ in range(MAX_DEPTH):
            parent = self.place(pgno)
            if parent is None or not self.interior[parent[0]].is_table:
                break
            pgno = parent[0]
        return pgno

    def path(self, pgno: int, rowid: int) -> list[int]:
        """Pages from `pgno` down to the leaf that holds a rowid, or to the first one on the way that is not known."""
        path = [pgno]
        while len(path) < MAX_DEPTH and (interior := self.interior.get(pgno)) is not None and interior.is_table:
            pgno = interior.child_for(rowid)
            path.append(pgno)
        return path[1:] or path

    def ends(self, pgno: int, rowids: Int64s) -> tuple[Int64s, Int64s]:
        """The last page of the `path` from `pgno` down of each rowid, and how many pages that path has."""
        ends, depths = np.full(len(rowids), pgno), np.ones(len(rowids), np.int64)
        below = [(pgno, np.arange(len(rowids)))]  # pages, and which of the rowids lie below them
        for depth in range(1, MAX_DEPTH):
            level, below = below, []
            for page, which in level:
                interior = self.interior.get(page)
                if interior is None or not interior.is_table:
                    continue
                keys, children = interior.arrays
                positions = np.searchsorted(keys, rowids[which])
                ends[which], depths[which] = children[positions], depth
                below += [
                    (child, which[positions == position])
                    for position in set(positions.tolist())  # np.unique would import numpy.ma, for 15 ms
                    if (child := interior.children[position]) in self.interior
                ]
            if not below:
                break
        return ends, depths
