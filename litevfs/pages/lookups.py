"""Recognizes a query's look-ups through an index, and plans what they read next. State and plans; no I/O.

Two table leaves read in the order of an index leaf's rowids, or against it, mean that the table leaves of its other
rowids come next. The leaf may be one that an earlier query read (`recall`).

Look-ups go on in the next index leaf only if they went to the end of the one before. Where it is known how many rows
the query looks up, no more are planned until these are; it is known too late or wrong where the query rejects rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from litevfs.pages.btree import IndexEntry, parse_index_entries
from litevfs.pages.patterns import IndexLeaf
from litevfs.pages.recall import LOOK_AROUND, Recall
from litevfs.pages.trees import KnownTrees

FIRST_WINDOW = 8
LOOKUP_GROWTH = 8
"""Look-ups are scattered: the more of them are planned at once, the more fall into one request."""
EXPECTED_WINDOW = 64
"""So many rows may be planned at once if the query is known to look up as many."""
ALL_WINDOW = 256
"""The same if it is known to look up all that share a key."""
ALL_ROWS = 1 << 60
"""More than there are: a query that looks up all that its index names."""


class LookUps:
    """Those of one connection's query. The caller has the watcher's lock."""

    def __init__(self, trees: KnownTrees, awaited: set[int], max_window: int) -> None:
        """`awaited` gets the interior pages without which a plan cannot go on."""
        self.max_window = max_window  # pages of one plan that are ahead of their reads at once
        self.expected = 0  # rows that the query looks up; 0: not known; ALL_ROWS: all of them
        self.leaf: IndexLeaf | None = None
        self.recall = Recall()
        self.descends = False  # this query has read an interior page of a table
        self._trees = trees
        self._parents = trees.parents
        self._awaited = awaited
        self._rows_before = 0  # looked up by index leaves before this one

    @property
    def are_recognized(self) -> bool:
        """Whether the look-ups of this query are planned as far as they are known."""
        return self.leaf is not None and self.leaf.window > 0

    def begin(self) -> None:
        """Another query begins."""
        self.leaf = None
        self.recall.begin()
        self.descends = False
        self.expected = self._rows_before = 0

    def hold_back(self) -> None:
        """The pages planned last are not fetched."""
        if self.leaf is not None:
            self.leaf.start_again(FIRST_WINDOW // LOOKUP_GROWTH)

    def come(self, pgno: int) -> list[int]:
        """Interior page `pgno` is known: what look-ups that waited for it need next."""
        if self.leaf is not None:
            self.leaf.lead_on(pgno, self._trees)
        waiting = None if self.leaf is None else self.leaf.waiting.pop(pgno, None)
        return self._targets(self.leaf, waiting) if self.leaf and waiting else []

    def recalled(self, peek: Callable[[int], bytes | None], most: int) -> list[int]:
        """See `Watcher.recalled`."""
        next_leaf, self.recall.next_leaf = self.recall.next_leaf, 0
        if next_leaf and (page := peek(next_leaf)):
            self.recall.is_due = False
            return self.enter(next_leaf, page)
        found = self.recall.find(self._trees, peek, most)
        if found is None:
            return []
        self.leaf = leaf = IndexLeaf(found.pgno, found.page, found.first)
        plan = self.recognize(leaf, found.second)
        if leaf.window:
            self.recall.begin()
        return plan

    def enter(self, pgno: int, page: bytes) -> list[int]:
        """Index leaf `pgno` is read."""
        self.recall.note_leaf(pgno)
        before, leaf = self.leaf, IndexLeaf(pgno, page)
        self.leaf = leaf
        if before is None or not before.window:
            return []
        self._rows_before += before.rows
        if not self._is_continued(before, pgno):
            return []
        entries = parse_index_entries(page)[:: -1 if before.is_descending else 1]
        if before.key is not None and not (entries and entries[0].key == before.key):
            return []
        leaf.root, leaf.depth, leaf.entries, leaf.position = before.root, before.depth, entries, -1
        leaf.window, leaf.key, leaf.is_descending = before.window, before.key, before.is_descending
        return self._plan(leaf)

    def _is_continued(self, before: IndexLeaf, pgno: int) -> bool:
        """Whether the rows of an index leaf were looked up to its end, and leaf `pgno` comes next."""
        if before.position < max(0, len(before.entries) - LOOK_AROUND):
            return False
        first, second = (pgno, before.pgno) if before.is_descending else (before.pgno, pgno)
        return before.pgno not in self._parents or self._trees.next_leaf(first) == second

    def recognize(self, leaf: IndexLeaf, pgno: int, *, is_read: bool = True) -> list[int]:
        """Whether two table leaves, read one after the other, are those of two entries of the index leaf.

        If not `is_read`, page `pgno` is about to be read, and may be an interior page above the second one.
        """
        if not leaf.first and is_read and pgno in self._parents:
            leaf.first = pgno
        if leaf.window or leaf.first in {0, pgno} or pgno not in self._parents:
            return []
        leaf.entries = leaf.entries or parse_index_entries(leaf.page)
        if self._may_lead_to(leaf, pgno) and (entry := self._led_along(leaf, pgno)) is not None:
            leaf.window = FIRST_WINDOW // LOOKUP_GROWTH
            leaf.depth = len(self._trees.path(leaf.root, entry.rowid))
            return self._plan(leaf) if self._is_due(leaf) else []
        if is_read:
            self.leaf = None
        return []

    def _may_lead_to(self, leaf: IndexLeaf, pgno: int) -> bool:
        """Whether an entry of the index leaf names a row that a page may hold; takes little where none does."""
        rowids, within = leaf.entries.rowids, self._trees.rowids_of(pgno)
        return bool(within) and bool(((rowids >= within.start) & (rowids <= within.stop - 1)).any())

    def _led_along(self, leaf: IndexLeaf, pgno: int) -> IndexEntry | None:
        leaf.root = self._trees.topmost(pgno)
        return leaf.led_along(self._trees.ends(leaf.root, leaf.entries.rowids)[0], pgno)

    def follow(self, pgno: int) -> list[int] | None:
        """Where in the index leaf the look-ups are, and whether it is time to plan further ones; None: not at a page.

        The pages of look-ups may follow each other now and then, which shows no scan.
        """
        leaf = self.leaf
        if leaf is None:
            return None
        if not leaf.window:
            plan = self.recognize(leaf, pgno, is_read=False)
            return plan if leaf.window else None
        if (position := self._position(leaf, pgno)) is not None:
            leaf.come_to(position)
            return self._plan(leaf) if self._is_due(leaf) else []
        self.recall.note_jump(pgno)
        if leaf.position >= len(leaf.entries) - LOOK_AROUND and not leaf.is_descending:
            self.recall.expect(self._trees.next_leaf(leaf.pgno))
        return None

    def _position(self, leaf: IndexLeaf, pgno: int) -> int | None:
        """The next entry whose look-up reads a page; None if it is none of the next ones."""
        next_ones = range(max(leaf.position, 0), min(leaf.position + LOOK_AROUND, len(leaf.entries)))
        if (planned := leaf.first_for.get(pgno)) in next_ones:
            return planned
        if pgno in self._trees.interior:
            return next((i for i in next_ones if pgno in self._trees.path(leaf.root, leaf.entries.rowid(i))), None)
        self._look_up_ends(leaf)
        try:
            return leaf.ends.index(pgno, next_ones.start, next_ones.stop)
        except ValueError:
            return None

    def _look_up_ends(self, leaf: IndexLeaf) -> None:
        """Where all entries lead to, by what is known now: a path for each would take many times as long."""
        if leaf.known == self._trees.changes:
            return
        leaf.known = self._trees.changes
        ends, depths = self._trees.ends(leaf.root, leaf.entries.rowids)
        leaf.ends = ends.tolist()
        leaf.depths = depths.tolist() if len(depths) and depths.min() < leaf.depth else None

    def _plan(self, leaf: IndexLeaf) -> list[int]:
        """The pages that one more window of look-ups needs, and the interior pages of the window after it."""
        most = max(FIRST_WINDOW, self.max_window)
        window = min(leaf.window * LOOKUP_GROWTH, most)
        after = window * LOOKUP_GROWTH
        if self.expected == ALL_ROWS:
            if leaf.key is not None:  # which says where they end
                window = min(max(window, ALL_WINDOW), most)
        elif self.expected:
            looked_up = self._rows_before + leaf.rows
            left = self.expected - looked_up - leaf.planned
            if left > 0:
                window = min(max(window, EXPECTED_WINDOW), left, most)
                after = left - window
            else:  # the query rejects rows: perhaps as large a part of those to come
                window = after = min(max(looked_up, FIRST_WINDOW), most)
        leaf.window = window
        start, leaf.end = leaf.end, leaf.within_key(leaf.end + window)
        return self._targets(leaf, range(start, leaf.within_key(leaf.end + after)))

    def _is_due(self, leaf: IndexLeaf) -> bool:
        """Whether it is time to plan further look-ups."""
        if self.expected and 0 <= self.expected - self._rows_before - leaf.rows <= leaf.planned:
            return False
        return leaf.planned <= leaf.window // 2 and leaf.end < leaf.within_key(leaf.end + 1)

    def _targets(self, leaf: IndexLeaf, entries: Iterable[int]) -> list[int]:
        """The pages that each of these entries needs next: of those beyond the window, only interior ones.

        Known interior pages are among them if SQLite reads such pages in this query: it has none of its own then.
        """
        self._look_up_ends(leaf)
        targets: dict[int, None] = {}
        for i in entries:
            end = leaf.ends[i]
            if leaf.depths is not None and leaf.depths[i] < leaf.depth:
                leaf.waiting.setdefault(end, []).append(i)
                self._awaited.add(end)
            elif i >= leaf.end:
                if leaf.depths is None and isinstance(entries, range):
                    break  # no entry beyond waits for an interior page
                continue
            leaf.first_for.setdefault(end, i)
            if self.descends:
                targets.update(dict.fromkeys(self._trees.path(leaf.root, leaf.entries.rowid(i))))
            targets[end] = None
        return list(targets)
