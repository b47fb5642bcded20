"""Where a scan is in a tree that the same query looks into, too. Knows pages and trees, no statements.

A page does not say which cursor reads it, but a scan skips no leaf: it reads the one after the last, unless SQLite has
that in its own cache, because the query has read it before. So the scan is at a leaf if the query has read all those
between, but for a few.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from litevfs.pages.trees import MAX_DEPTH, KnownTrees

SKIPPED = 1
"""Leaves between that the query need not have read: reads may have come before they were followed."""
LOOK_AHEAD = 64
"""Leaves that a scan may have passed unseen."""
REMEMBERED = 1024
"""Leaves that SQLite may still have."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Where a scan begins, and which way it goes."""

    is_descending: bool
    rowid: int | None = None  # it begins where this one lies in the table; None: with the first entry, or the last one


class SharedScan:
    """A scan of a tree to one of its ends."""

    def __init__(self, root: int, trees: KnownTrees, begin: Begin) -> None:
        self._root = root
        self._trees = trees
        self._begin = begin
        self._is_descending = begin.is_descending
        self._leaf = 0  # that it has come to; 0: not known yet
        self._read: OrderedDict[int, None] = OrderedDict()  # leaves that the query has read

    def note(self, leaf: int) -> None:
        """The query reads a leaf of the tree."""
        missed = 0
        for following in self.leaves_after(LOOK_AHEAD):
            if following == leaf:
                self._leaf = leaf
                break
            missed += following not in self._read
            if missed > SKIPPED:
                break
        self._read[leaf] = None
        self._read.move_to_end(leaf)
        if len(self._read) > REMEMBERED:
            self._read.popitem(last=False)

    def way(self) -> list[tuple[int, int]]:
        """See `Watcher.way_to`."""
        return self._trees.way(self._current(), self._root) or []

    def leaves_after(self, count: int) -> list[int]:
        """The leaves that it comes to next, as far as they are known."""
        leaf = self._current()
        return self._trees.leaves_after(leaf, count, backwards=self._is_descending) if leaf else []

    def _current(self) -> int:
        """The leaf that it has come to; 0 if that is not known."""
        pgno = self._leaf or self._root
        for _ in range(MAX_DEPTH):
            interior = self._trees.interior.get(pgno)
            if interior is None:
                break
            if self._begin.rowid is not None and interior.is_table:
                pgno = interior.child_for(self._begin.rowid)
            else:
                pgno = interior.children[-1 if self._is_descending else 0]
        self._leaf = 0 if pgno == self._root else pgno
        return self._leaf


class SharedScans:
    """Those of one query, by the roots of their trees. The caller has the watcher's lock."""

    def __init__(self, trees: KnownTrees) -> None:
        self._trees = trees
        self._scans: dict[int, SharedScan] = {}
        self._roots: dict[int, int] = {}  # of the trees that interior pages belong to

    def __bool__(self) -> bool:
        return bool(self._scans)

    def begin(self) -> None:
        """Another query begins."""
        self._scans = {}
        self._roots.clear()

    def follow(self, trees: Mapping[int, Begin]) -> None:
        """Follow the scans of these trees, by root, from here on or still."""
        self._roots.clear()
        self._scans = {
            root: self._scans.get(root) or SharedScan(root, self._trees, begin) for root, begin in trees.items()
        }

    def note(self, pgno: int, parent: int) -> bool:
        """The query reads a page below an interior one. Whether it is a leaf of such a tree."""
        if pgno in self._trees.interior:
            return False
        root = self._roots.get(parent)
        if root is None:
            root = self._roots[parent] = self._trees.root(parent)
        if (scan := self._scans.get(root)) is None:
            return False
        scan.note(pgno)
        return True

    def get(self, root: int) -> SharedScan | None:
        """That of a tree."""
        return self._scans.get(root)
