"""The patterns that a query's reads have shown so far, and how far each is planned. State alone; `watcher` decides."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from litevfs.pages.btree import NO_ENTRIES, IndexEntries, IndexEntry, Int64s, Key
from litevfs.pages.recall import LOOK_AROUND
from litevfs.pages.trees import KnownTrees


@dataclass(slots=True)
class Scan:
    """Leaves read in order, and how far the plan is ahead of them."""

    position: int  # of the child read last, in its interior page
    end_in: int  # interior page of the first leaf that is not planned yet; it may have to come first
    end: int  # position of that leaf there
    left: int = 0  # leaves planned and not read yet
    window: int = 0  # 0: not known to be a pattern
    is_whole: bool = False  # known to go through its whole tree, and to read no other between
    wanted: int = 0  # pages that the next guess has to have room for
    last: int = 0  # leaf planned last
    rested: int = 0  # of the leaves whose reads change no plan, the one read last
    guessed: dict[int, int] = field(default_factory=dict)  # interior page not known yet -> pages planned with it
    planned: set[int] = field(default_factory=set)  # pages planned and not read yet, for all that is known

    @property
    def is_active(self) -> bool:
        """Whether pages are planned and not read yet."""
        return bool(self.window and (self.guessed or self.left))

    @property
    def short(self) -> int:
        """By how many pages the plan falls short of its window."""
        return self.window - self.left - sum(self.guessed.values())

    def start_again(self, parent: int, window: int) -> None:
        """Plan from the leaf read last on, below interior page `parent`, with a window of at most that."""
        self.end_in, self.end, self.left = parent, self.position + 1, 0
        self.guessed.clear()
        self.planned.clear()
        self.window = min(self.window, window)

    def add(self, pages: Iterable[int]) -> list[int]:
        """Add pages to the plan; returns those that were not planned yet."""
        new = [page for page in pages if page not in self.planned]
        self.planned.update(new)
        return new


@dataclass(slots=True)
class Run:
    """Pages read in the order of their numbers."""

    last: int = 0
    end: int = 0  # first page not planned yet
    window: int = 0

    def follow(self, pgno: int, least: int, growth: int, most: int) -> list[int]:
        """Page `pgno` is read; the pages of a window that is `growth` times the one before, if it is time for that."""
        self.last = pgno
        if self.end - pgno - 1 > self.window // 2:
            return []
        self.window = min((self.window or least) * growth, most)
        start, self.end = self.end, pgno + 1 + self.window
        return list(range(start, self.end))


@dataclass(slots=True)
class IndexLeaf:
    """An index leaf whose entries may be looked up in their table."""

    pgno: int
    page: bytes
    first: int = 0  # the first table leaf read since
    entries: IndexEntries = NO_ENTRIES  # as looked up; empty until a second table leaf was read
    is_descending: bool = False  # looked up from the last entry on
    root: int = 0  # topmost known page of the table
    depth: int = 0  # pages that lead from there to a leaf
    began: int = 0  # entry looked up first
    position: int = 0  # entry looked up last
    end: int = 0  # first entry not planned yet
    window: int = 0  # 0: not known to be a pattern
    key: Key | None = None  # of all entries looked up so far, if they share one: plan no further than it goes
    key_end: int = 0  # first entry after those of that key; 0: not known yet
    waiting: dict[int, list[int]] = field(default_factory=dict)  # interior page not known yet -> entries below it
    first_for: dict[int, int] = field(default_factory=dict)  # page planned -> the first entry that it is planned for
    known: int = -1  # `KnownTrees.changes` for which the two below are right
    ends: list[int] = field(default_factory=list)  # of each entry: its table leaf, or the first page that is not known
    depths: list[int] | None = None  # pages that lead there, where not all have come to the table leaf

    @property
    def rows(self) -> int:
        """How many entries were looked up."""
        return self.position + 1 - self.began if self.window else 0

    @property
    def planned(self) -> int:
        """How many entries are planned and not looked up."""
        return self.end - self.position - 1

    def start_again(self, window: int) -> None:
        """Plan from the entry looked up last on, with a window of at most that."""
        self.end = max(self.position, 0) + 1
        self.window = min(self.window, window)

    def lead_on(self, pgno: int, trees: KnownTrees) -> None:
        """Page `pgno` has become known, and nothing else: from there on look for where its entries lead to."""
        if self.known != trees.changes - 1:
            return
        below = [i for i, end in enumerate(self.ends) if end == pgno]
        ends, depths = trees.ends(pgno, self.entries.rowids[below])
        for i, end, depth in zip(below, ends.tolist(), depths.tolist(), strict=True):
            self.ends[i] = end
            if self.depths is not None:
                self.depths[i] += depth
        if self.depths is not None and min(self.depths) >= self.depth:
            self.depths = None
        self.known = trees.changes

    def led_along(self, targets: Int64s, second: int) -> IndexEntry | None:
        """The entry of the first table leaf, if the entries, with rows in `targets`, lead from it to page `second`.

        Forwards or, as for ORDER BY ... DESC, backwards; then the leaf knows which, and the entry looked up last. Of
        several such pairs of entries the nearest one: rows of other keys may lie on these pages, too.
        """
        pairs = [
            (pair[1] - pair[0], is_descending, *pair)
            for is_descending, order in ((False, targets), (True, targets[::-1]))
            if (pair := _nearest(order, self.first, second)) is not None
        ]
        if not pairs:
            return None
        _, self.is_descending, self.began, self.position = min(pairs)
        self.entries = self.entries[::-1] if self.is_descending else self.entries
        self.end = self.position + 1
        entry = self.entries[self.began]
        self.key = entry.key if entry.key == self.entries[self.position].key else None
        return entry

    def come_to(self, position: int) -> None:
        """The entry at `position`, further on, is looked up."""
        self.position = position
        self.end = max(self.end, position + 1)
        if self.key is not None and position >= self._end_of_key():
            self.key = None

    def within_key(self, end: int) -> int:
        """`end`, or the end of the entries that are going to be looked up for all that is known."""
        end = min(end, len(self.entries))
        return min(end, max(self.end, self._end_of_key())) if self.key is not None else end

    def _end_of_key(self) -> int:
        if not self.key_end:  # each look at a key decodes an entry
            key, first = self.key, max(self.position, 0)
            self.key_end = bisect_left(self.entries, True, first, key=lambda entry: entry.key != key)
        return self.key_end


def _nearest(targets: Int64s, first: int, second: int) -> tuple[int, int] | None:
    """Positions of `first` and, at most LOOK_AROUND later, of `second` in `targets`: of the pair with least between."""
    of_first, of_second = np.flatnonzero(targets == first), np.flatnonzero(targets == second)
    if not (len(of_first) and len(of_second)):
        return None
    following = np.minimum(np.searchsorted(of_second, of_first), len(of_second) - 1)
    distances = of_second[following] - of_first
    near = np.flatnonzero((distances > 0) & (distances <= LOOK_AROUND))
    if not len(near):
        return None
    nearest = near[distances[near].argmin()]
    return int(of_first[nearest]), int(of_second[following[nearest]])
