"""What a connection will probably read next, from what it reads: pure plans, no I/O.

Two patterns are followed, each with a window that starts small and grows, so that point look-ups pay nothing:

- A scan: two children of one interior page, read in order, mean that its other children come next.
- Look-ups through an index: two table leaves read in the order of an index leaf's rowids mean that the table leaves of
  its other rowids come next.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from litevfs.pages.btree import (
    INTERIOR_INDEX,
    INTERIOR_TABLE,
    LEAF_INDEX,
    LEAF_TABLE,
    IndexEntry,
    Interior,
    kind,
    parse_index_entries,
    parse_interior,
)

FIRST_WINDOW = 8
GROWTH = 4
"""Of a scan's window: cold pages come as fast as it grows, a round trip for each step."""
LOOKUP_GROWTH = 8
"""Look-ups are scattered: the more of them are planned at once, the more fall into one request."""
MAX_INTERIOR_PAGES = 512
"""Interior pages remembered; each knows a few hundred children."""
MAX_SCANS = 8
MAX_DEPTH = 20
"""No B-tree is deeper; what is known of parents and children are hints, and could form a circle."""
LOOK_AROUND = 32
"""SQLite skips entries whose table leaf it still has: so many entries further on still count as in order."""


@dataclass(slots=True)
class _Scan:
    """Children of one interior page, read in order."""

    position: int  # of the child read last
    end: int  # first child not planned yet; after all of them comes the next interior page
    window: int = 0


@dataclass(slots=True)
class _IndexLeaf:
    """An index leaf whose entries may be looked up in their table."""

    page: bytes
    first: int = 0  # the first table leaf read since
    entries: list[IndexEntry] = field(default_factory=list)  # empty until a second table leaf was read
    root: int = 0  # topmost known page of the table
    depth: int = 0  # pages that lead from there to a leaf
    position: int = 0  # entry looked up last
    end: int = 0  # first entry not planned yet
    window: int = 0  # 0: not known to be a pattern
    is_equality: bool = False  # so far all entries have the same key: plan no further than that key goes
    waiting: dict[int, list[int]] = field(default_factory=dict)  # interior page not known yet -> entries below it

    @property
    def key(self) -> tuple[int, bytes]:
        """Of the entry looked up last, or of the first one."""
        return self.entries[max(self.position, 0)].key


class Watcher:
    """Follows the page reads of one connection. Answers are page numbers worth reading ahead, in order of need."""

    def __init__(self, max_window: int) -> None:
        self._max_window = max(FIRST_WINDOW, max_window)
        self._interior: OrderedDict[int, Interior] = OrderedDict()
        self._parents: dict[int, tuple[int, int]] = {}  # child -> (interior page, position in it)
        self._scans: OrderedDict[int, _Scan] = OrderedDict()  # by interior page
        self._index_leaf: _IndexLeaf | None = None
        self._lock = threading.Lock()  # what was read ahead is learnt from another thread

    def before_read(self, pgno: int) -> list[int]:
        """The connection is about to read page `pgno`."""
        if pgno not in self._parents:
            return []
        with self._lock:
            parent = self._parents.get(pgno)  # it may have been forgotten since
            return self._follow_scan(*parent) + self._follow_lookups(pgno) if parent else []

    def wants(self, page: bytes) -> bool:
        """Whether `after_read` has a use for a page; it has none for most table leaves, and most pages are those."""
        return page[0] != LEAF_TABLE or self._index_leaf is not None

    def after_read(self, pgno: int, page: bytes) -> list[int]:
        """The connection has read page `pgno`."""
        found = kind(pgno, page)
        if found in {INTERIOR_TABLE, INTERIOR_INDEX}:
            with self._lock:
                self._learn(pgno, page)
                return self._go_on(pgno)
        elif found == LEAF_INDEX:
            with self._lock:
                return self._enter_index_leaf(page)
        elif found == LEAF_TABLE and self._index_leaf is not None:
            with self._lock:
                return self._recognize_lookups(self._index_leaf, pgno)
        return []

    def learn(self, pgno: int, page: bytes) -> list[int]:
        """Page `pgno` was read ahead: look-ups that waited for an interior page can go on."""
        if kind(pgno, page) not in {INTERIOR_TABLE, INTERIOR_INDEX}:
            return []
        with self._lock:
            self._learn(pgno, page)
            return self._go_on(pgno)

    def _learn(self, pgno: int, page: bytes) -> None:
        interior = parse_interior(pgno, page)
        old = self._interior.get(pgno)
        if old is not None and (interior is None or old.children != interior.children):
            self._forget(pgno, old)  # the page has changed, positions in it mean nothing any more
        if interior is None:
            return
        self._interior[pgno] = interior
        self._interior.move_to_end(pgno)
        self._parents.update((child, (pgno, i)) for i, child in enumerate(interior.children))
        while len(self._interior) > MAX_INTERIOR_PAGES:
            self._forget(*next(iter(self._interior.items())))

    def _forget(self, pgno: int, interior: Interior) -> None:
        self._scans.pop(pgno, None)
        for child in interior.children:
            if self._parents.get(child, (0, 0))[0] == pgno:
                del self._parents[child]
        del self._interior[pgno]  # last, so that Ctrl-C leaves no parent that is not known

    # --- scans --------------------------------------------------------------------------------------------------------

    def _follow_scan(self, parent: int, position: int) -> list[int]:
        scan = self._scans.pop(parent, None)
        if scan is not None and self._interior[parent].children[scan.position] in self._interior:
            return []  # one level above the leaves; there, the end of each page leads on to the next
        if scan is None:
            scan = self._continued_scan(parent, position) or _Scan(position, position + 1)
        elif scan.position < position <= max(scan.end, scan.position + 1):
            scan.position, scan.end = position, max(scan.end, position + 1)
            scan.window = scan.window or FIRST_WINDOW // GROWTH
        elif position != scan.position:
            scan = _Scan(position, position + 1)
        self._scans[parent] = scan
        while len(self._scans) > MAX_SCANS:
            self._scans.popitem(last=False)
        children = self._interior[parent].children
        if not scan.window or scan.end > len(children) or scan.end - scan.position > scan.window // 2 + 1:
            return []
        scan.window = min(scan.window * GROWTH, self._max_window)
        start, scan.end = scan.end, min(scan.end + scan.window, len(children) + 1)
        ahead = children[start : scan.end]
        if scan.end > len(children) and (sibling := self._next_sibling(parent)):
            ahead.append(sibling)
        return ahead

    def _next_sibling(self, pgno: int) -> int:
        grandparent = self._parents.get(pgno)
        if grandparent is None:
            return 0
        siblings = self._interior[grandparent[0]].children
        return siblings[grandparent[1] + 1] if grandparent[1] + 1 < len(siblings) else 0

    def _continued_scan(self, parent: int, position: int) -> _Scan | None:
        """A scan that comes from the end of the interior page before goes on at full width."""
        for before, scan in self._scans.items():
            if scan.window and position == 0 and self._next_sibling(before) == parent:
                return _Scan(0, 1, scan.window)
        return None

    # --- look-ups through an index ------------------------------------------------------------------------------------

    def _enter_index_leaf(self, page: bytes) -> list[int]:
        before, leaf = self._index_leaf, _IndexLeaf(page)
        self._index_leaf = leaf
        if before is None or not before.window:
            return []
        entries = parse_index_entries(page)
        if before.is_equality and not (entries and entries[0].key == before.key):
            return []
        leaf.root, leaf.depth, leaf.entries, leaf.position = before.root, before.depth, entries, -1
        leaf.window, leaf.is_equality = before.window, before.is_equality
        return self._plan_lookups(leaf)

    def _recognize_lookups(self, leaf: _IndexLeaf, pgno: int) -> list[int]:
        """Whether two table leaves, just read one after the other, are those of two entries of the index leaf."""
        if leaf.window or pgno == leaf.first or pgno not in self._parents:
            return []
        if not leaf.first:
            leaf.first = pgno
            return []
        leaf.entries = parse_index_entries(leaf.page)
        leaf.root = self._topmost(pgno)
        targets = [self._path(leaf.root, entry.rowid)[-1] for entry in leaf.entries]
        for i, (entry, target) in enumerate(zip(leaf.entries, targets, strict=True)):
            if target == leaf.first and pgno in targets[i + 1 : i + 1 + LOOK_AROUND]:
                leaf.position = targets.index(pgno, i + 1)
                leaf.is_equality = leaf.entries[i].key == leaf.entries[leaf.position].key
                leaf.end = leaf.position + 1
                leaf.window = FIRST_WINDOW // LOOKUP_GROWTH
                leaf.depth = len(self._path(leaf.root, entry.rowid))
                return self._plan_lookups(leaf)
        self._index_leaf = None
        return []

    def _follow_lookups(self, pgno: int) -> list[int]:
        """Where in the index leaf the look-ups are, and whether it is time to plan further ones."""
        leaf = self._index_leaf
        if leaf is None or not leaf.window:
            return []
        for i in range(max(leaf.position, 0), min(leaf.position + LOOK_AROUND, len(leaf.entries))):
            if pgno in self._path(leaf.root, leaf.entries[i].rowid):
                leaf.is_equality &= leaf.entries[i].key == leaf.key
                leaf.position = i
                leaf.end = max(leaf.end, i + 1)
                return self._plan_lookups(leaf) if leaf.end - leaf.position <= leaf.window // 2 + 1 else []
        return []

    def _plan_lookups(self, leaf: _IndexLeaf) -> list[int]:
        """What the look-ups of one more window need, and the interior pages of the window after it, to start that."""
        leaf.window = min(leaf.window * LOOKUP_GROWTH, self._max_window)
        start, leaf.end = leaf.end, self._within_key(leaf, leaf.end + leaf.window)
        return self._targets(leaf, range(start, self._within_key(leaf, leaf.end + leaf.window * LOOKUP_GROWTH)))

    def _within_key(self, leaf: _IndexLeaf, end: int) -> int:
        """`end`, or the end of the entries that are going to be looked up for all that is known."""
        end = min(end, len(leaf.entries))
        if leaf.is_equality:
            while end > leaf.end and leaf.entries[end - 1].key != leaf.key:
                end -= 1
        return end

    def _go_on(self, pgno: int) -> list[int]:
        """Interior page `pgno` is known now: what the look-ups that waited for it need next."""
        leaf = self._index_leaf
        return [] if leaf is None else self._targets(leaf, leaf.waiting.pop(pgno, ()))

    def _targets(self, leaf: _IndexLeaf, entries: Iterable[int]) -> list[int]:
        """The page that each of these entries needs next: of those beyond the window, only interior ones."""
        targets: dict[int, None] = {}
        for i in entries:
            path = self._path(leaf.root, leaf.entries[i].rowid)
            if len(path) < leaf.depth:
                leaf.waiting.setdefault(path[-1], []).append(i)
            elif i >= leaf.end:
                continue
            targets[path[-1]] = None
        return list(targets)

    def _topmost(self, pgno: int) -> int:
        for _ in range(MAX_DEPTH):
            parent = self._parents.get(pgno)
            if parent is None or not self._interior[parent[0]].is_table:
                break
            pgno = parent[0]
        return pgno

    def _path(self, pgno: int, rowid: int) -> list[int]:
        """Pages from `pgno` down to the leaf that holds a rowid, or to the first one on the way that is not known."""
        path = [pgno]
        while len(path) < MAX_DEPTH and (interior := self._interior.get(pgno)) is not None and interior.is_table:
            pgno = interior.child_for(rowid)
            path.append(pgno)
        return path[1:] or path
