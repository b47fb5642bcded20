"""Predicts from a connection's reads what it will read next: pure plans, no I/O. Only this module guesses.

The watcher recognizes three patterns, each with a window that starts small and grows, so point look-ups cost nothing:

- A scan: two children of one interior page, read in order, mean that the leaves after them come next.
- Look-ups through an index: two table leaves read in the order of an index leaf's rowids, or against it, mean that the
  table leaves of its other rowids come next. The leaf may be one that an earlier query read (`recall`).
- A run: overflow pages that follow each other, as the rest of a large row lies, or a reader of all pages.

Invariants:

1. A pattern belongs to the query that showed it: `begin` ends all patterns and keeps what is known of B-trees.
2. A plan that proves wrong ends: look-ups go on in the next index leaf only if they went to the end of the one before;
   a scan is planned no further than its window, which moves with the reads.
3. A plan that may not be fetched (`hold_back`) starts again with the smallest window.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace

from litevfs.pages.btree import INTERIOR_INDEX, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE, kind, parse_index_entries
from litevfs.pages.patterns import IndexLeaf, Run, Scan
from litevfs.pages.recall import LOOK_AROUND, Recall
from litevfs.pages.trees import KnownTrees

FIRST_WINDOW = 8
FIRST_SHARE = 2
"""Part of a full request that a scan may begin with, if that is larger: on a line that carries much in a round trip."""
GROWTH = 8
"""Factor by which a scan's window grows: cold pages come as fast as it grows, with a round trip for each step."""
LOOKUP_GROWTH = 8
"""Look-ups are scattered: the more of them are planned at once, the more fall into one request."""
MAX_SCANS = 8
RESTS = 512
"""At least so often, in leaves, a scan's place is noted."""
MAX_PLANNED = 1 << 15
"""Pages remembered of a scan's plan."""
GUESS_PAGES = 2048
"""Leaves below one interior page that are planned before it is known, together with what lies between them."""


class Watcher:
    """Follows the page reads of one connection. Answers are page numbers worth reading ahead, in order of need."""

    def __init__(self, max_window: int) -> None:
        self.max_window = max_window  # pages of one plan that are ahead of their reads at once
        self.credit = max_window  # pages that a plan may grow by
        self.step = max_window  # pages that fill a request
        self._trees = self.trees = KnownTrees()
        self._interior = self._trees.interior
        self._parents = self._trees.parents
        self._scans: OrderedDict[int, Scan] = OrderedDict()  # by interior page
        self._index_leaf: IndexLeaf | None = None
        self._run = Run()
        self.resting: dict[int, Scan] = {}  # leaves whose reads change no plan; most reads of a scan are such
        self.recall = Recall()
        self._descends = False  # this query has read an interior page of a table
        self._awaited: set[int] = set()  # interior pages without which a plan cannot go on
        self._lock = threading.Lock()  # another thread calls `learn` with pages that were read ahead

    def begin(self) -> None:
        """Another query begins: the reads of the query before are no evidence."""
        with self._lock:
            self._scans.clear()
            self.resting = {}
            self._awaited.clear()
            self._index_leaf = None
            self._run = Run()
            self.recall.begin()
            self._descends = False

    def hold_back(self) -> None:
        """Note that the pages planned last are not fetched."""
        with self._lock:
            self._look_at_rests()
            self.resting = {}
            for parent, scan in self._scans.items():
                scan.start_again(parent, FIRST_WINDOW // GROWTH)
            self._run.end, self._run.window = self._run.last + 1, 0
            if self._index_leaf is not None:
                self._index_leaf.start_again(FIRST_WINDOW // LOOKUP_GROWTH)
            self._awaited.clear()

    def awaited(self, pgnos: list[int]) -> list[int]:
        """Those pages with which a plan goes on as soon as they are shown to `learn`."""
        awaited = self._awaited
        return [pgno for pgno in pgnos if pgno in awaited] if awaited else []

    def before_read(self, pgno: int) -> list[int]:
        """The connection is about to read page `pgno`."""
        if (scan := self.resting.get(pgno)) is not None:
            scan.rested = pgno
            return []
        if pgno not in self._parents:
            return []
        with self._lock:
            parent = self._trees.place(pgno)  # `learn` may have dropped it
            return self._follow_scan(*parent) + self._follow_lookups(pgno) if parent else []

    def wants(self, page: bytes) -> bool:
        """Whether `after_read` has a use for a page; it has none for most table leaves, and most pages are those."""
        return page[0] != LEAF_TABLE or self._index_leaf is not None

    def after_read(self, pgno: int, page: bytes) -> list[int]:
        """The connection has read page `pgno`."""
        found = kind(pgno, page)
        if found in {INTERIOR_TABLE, INTERIOR_INDEX}:
            self._descends |= found == INTERIOR_TABLE and pgno in self._parents
            return self.learn(pgno, page)
        if found == LEAF_INDEX:
            with self._lock:
                return self._enter_index_leaf(pgno, page)
        elif found == LEAF_TABLE and self._index_leaf is not None:
            with self._lock:
                return self._recognize_lookups(self._index_leaf, pgno)
        elif found != LEAF_TABLE and int.from_bytes(page[:4]) == pgno + 1:
            return self.follow_run(pgno)
        return []

    def learn(self, pgno: int, page: bytes) -> list[int]:
        """Page `pgno` is known now: plans that waited for it can go on."""
        if kind(pgno, page) not in {INTERIOR_TABLE, INTERIOR_INDEX}:
            return []
        with self._lock:
            self._awaited.discard(pgno)
            for forgotten in self._trees.learn(pgno, page):
                self._scans.pop(forgotten, None)
                self.resting = {}
            if pgno not in self._interior:
                return []
            leaf = self._index_leaf  # what its look-ups that waited for the page need next
            plan = [] if leaf is None else self._targets(leaf, leaf.waiting.pop(pgno, ()))
            for scan in self._scans.values():
                if scan.end_in == pgno:
                    plan += self._extend(scan, at_once=True)
            return plan

    # --- scans and runs -----------------------------------------------------------------------------------------------

    def _follow_scan(self, parent: int, position: int) -> list[int]:
        children = self._interior[parent].children
        known = self._scans.pop(parent, None)
        scan = known or self._continued_scan(parent, position)
        if children[scan.position if scan and scan.position >= 0 else position] in self._interior:
            return []  # one level above the leaves; there, the end of each page leads on to the next
        if scan is None or not scan.position <= position <= self._reach(scan, parent):
            scan = Scan(position, parent, position + 1)
            if self._index_leaf is None and self._interior[parent].is_table:
                self.recall.note_jump(children[position])
        elif position > scan.position:
            self._advance(scan, parent, position)
            scan.window = scan.window or self._first_window() // GROWTH
        if len(scan.planned) > MAX_PLANNED:  # wrong guesses: pages that the scan does not reach
            scan.planned.clear()
        if scan is not known:
            self.resting = {}
        self._scans[parent] = scan
        while len(self._scans) > MAX_SCANS:
            self._scans.popitem(last=False)
        plan = self._extend(scan, at_once=parent in scan.guessed)
        missing = self._due(scan) - scan.short  # if none, the plan ends here or waits for an interior page
        rests = 0 if parent in scan.guessed or not scan.window else min(RESTS, missing) if missing > 0 else RESTS
        scan.rested = 0
        may_rest = self._index_leaf is None or not self._interior[parent].is_table  # else it may follow look-ups, too
        end = min(position + rests, self._reach(scan, parent)) if may_rest else 0
        self._rest(scan, children[position + 1 : end])
        return plan

    def _rest(self, scan: Scan, leaves: list[int]) -> None:
        """Reads of these leaves change no plan from now on; of this scan's leaves no others are such."""
        others = {} if len(self._scans) == 1 else {leaf: of for leaf, of in self.resting.items() if of is not scan}
        self.resting = others | dict.fromkeys(leaves, scan)

    def _advance(self, scan: Scan, parent: int, position: int) -> None:
        """The scan has come to the leaf at `position`, further on."""
        scan.left = max(0, scan.left - (position - scan.position))
        scan.planned.difference_update(self._interior[parent].children[scan.position + 1 : position + 1])
        scan.position = position
        if scan.end_in == parent and scan.end <= position:
            scan.end, scan.left = position + 1, 0

    def _look_at_rests(self) -> None:
        """Catch up with the scans whose leaves rested."""
        for parent, scan in self._scans.items():
            position = self._trees.position(scan.rested, parent)
            if position > scan.position:
                self._advance(scan, parent, position)

    def _first_window(self) -> int:
        """How many leaves a scan begins with: as many as one that this query has brought to the end of its tree.

        That one is forgotten: a query may go on with ranges that end soon.
        """
        self._look_at_rests()
        for parent, scan in self._scans.items():
            interior = self._interior.get(scan.end_in)
            if scan.window and not scan.is_active and interior and scan.end >= len(interior.children):
                del self._scans[parent]
                self.resting = {}
                return max(scan.window, FIRST_WINDOW)
        return max(FIRST_WINDOW, self.step // FIRST_SHARE)

    def _due(self, scan: Scan) -> int:
        """By how many pages a plan has to fall short of its window until it is extended."""
        return min(max(self.step, scan.wanted), scan.window - scan.window // 2)

    def _reach(self, scan: Scan, parent: int) -> int:
        """How far in its interior page a scan may skip to: to the end of what is planned, or to the next leaf."""
        planned = scan.end if scan.end_in == parent else len(self._interior[parent].children)
        return max(planned, scan.position + 1)

    def _extend(self, scan: Scan, *, at_once: bool) -> list[int]:
        """The leaves of one more window, if it is time for that, or the interior page that leads to them.

        `at_once`: guesses have become known, so it is time however much is planned.
        """
        if not scan.window or (not at_once and scan.short < self._due(scan)):
            return []
        scan.wanted = 0
        self._look_at_rests()
        active = sum(other.is_active for other in self._scans.values()) or 1
        most = min(self.max_window // active, scan.left + sum(scan.guessed.values()) + self.credit)
        scan.window = min(scan.window * GROWTH, max(FIRST_WINDOW, most))
        plan: list[int] = []
        while scan.left < scan.window and (interior := self._interior.get(scan.end_in)) is not None:
            leaves = interior.children[scan.end : scan.end + scan.window - scan.left]
            scan.guessed.pop(scan.end_in, None)
            plan += scan.add(leaves)
            scan.last = leaves[-1] if leaves else scan.last
            scan.end += len(leaves)
            scan.left += len(leaves)
            if scan.end >= len(interior.children):
                if not (following := self._trees.next_interior(scan.end_in)):
                    break
                scan.end_in, scan.end = following, 0
        return plan + self._guess(scan)

    def _guess(self, scan: Scan) -> list[int]:
        """The pages that a plan needs beyond the known interior pages.

        The leaves below an interior page often lie between it and the next one. Where the two are not further apart
        than a page has children, all between them is planned, as far as the window goes, or each interior page would
        cost a round trip. After the last one as many are planned as lie between it and the one before.
        """
        plan: list[int] = []
        pgno = start = scan.end_in
        if not scan.guessed and scan.last < pgno <= scan.last + GUESS_PAGES:
            start = scan.last + 1  # as if it was added when some of its leaves existed already
        guessed = sum(scan.guessed.values())
        while pgno not in self._interior:
            following = self._trees.next_interior(pgno)
            until = following or pgno + self._trees.stride(pgno)
            is_near = pgno < until <= pgno + GUESS_PAGES
            between = range(start, until) if is_near else range(pgno, pgno + 1)
            if pgno not in scan.guessed:
                room = scan.window - scan.left - guessed
                if room < len(between) and (guessed or scan.left > scan.window // 2):
                    scan.wanted = len(between)
                    break
                between = between[: max(room, 1)]  # the others follow once the page is known
                plan += scan.add(dict.fromkeys([pgno, *between]))
                guessed += len(between)
                scan.guessed[pgno] = len(between)
                self._awaited.add(pgno)
            if not is_near or not following:
                break
            pgno = start = following
        return plan

    def _continued_scan(self, parent: int, position: int) -> Scan | None:
        """A scan that comes from the end of the interior page before goes on at full width."""
        for before, scan in self._scans.items():
            if scan.window and position == 0 and self._trees.next_interior(before) == parent:
                del self._scans[before]
                end_in, end = (parent, 0) if scan.end_in == before else (scan.end_in, scan.end)
                left = scan.left - (len(self._interior[before].children) - 1 - scan.position)
                return replace(scan, position=-1, rested=0, end_in=end_in, end=end, left=max(0, left))
        return None

    def follow_run(self, pgno: int) -> list[int]:
        """Page `pgno` is read, or is about to be, and the one after it comes next."""
        with self._lock:
            if not self._run.last < pgno < self._run.end:
                self._run = Run(pgno, pgno + 1)
            return self._run.follow(pgno, FIRST_WINDOW // GROWTH, GROWTH, max(FIRST_WINDOW, self.max_window))

    # --- look-ups through an index ------------------------------------------------------------------------------------

    def recalled(self, peek: Callable[[int], bytes | None], most: int) -> list[int]:
        """What look-ups need next whose index leaf this query has not read, if it is among the `most` read last.

        `peek` gives a page's bytes if they are in memory. To be asked when `recall.is_due`.
        """
        with self._lock:
            next_leaf, self.recall.next_leaf = self.recall.next_leaf, 0
            if next_leaf and (page := peek(next_leaf)):
                self.recall.is_due = False
                return self._enter_index_leaf(next_leaf, page)
            found = self.recall.find(self._trees, peek, most)
            if found is None:
                return []
            self._index_leaf = leaf = IndexLeaf(found.pgno, found.page, found.first)
            self.resting = {}
            plan = self._recognize_lookups(leaf, found.second)
            if leaf.window:
                self.recall.begin()
            return plan

    def _enter_index_leaf(self, pgno: int, page: bytes) -> list[int]:
        self.recall.note_leaf(pgno)
        before, leaf = self._index_leaf, IndexLeaf(pgno, page)
        self._index_leaf = leaf
        if before is None:
            self.resting = {}
        if before is None or not before.window or not self._is_continued(before, pgno):
            return []
        entries = parse_index_entries(page)[:: -1 if before.is_descending else 1]
        if before.is_equality and not (entries and entries[0].key == before.key):
            return []
        leaf.root, leaf.depth, leaf.entries, leaf.position = before.root, before.depth, entries, -1
        leaf.window, leaf.is_equality, leaf.is_descending = before.window, before.is_equality, before.is_descending
        return self._plan_lookups(leaf)

    def _is_continued(self, before: IndexLeaf, pgno: int) -> bool:
        """Whether the rows of an index leaf were looked up to its end, and leaf `pgno` comes next."""
        if before.position < max(0, len(before.entries) - LOOK_AROUND):
            return False
        first, second = (pgno, before.pgno) if before.is_descending else (before.pgno, pgno)
        return before.pgno not in self._parents or self._trees.next_leaf(first) == second

    def _recognize_lookups(self, leaf: IndexLeaf, pgno: int, *, is_read: bool = True) -> list[int]:
        """Whether two table leaves, read one after the other, are those of two entries of the index leaf.

        If not `is_read`, page `pgno` is about to be read, and may be an interior page above the second one.
        """
        if not leaf.first and is_read and pgno in self._parents:
            leaf.first = pgno
        if leaf.window or leaf.first in {0, pgno} or pgno not in self._parents:
            return []
        leaf.entries = leaf.entries or parse_index_entries(leaf.page)
        leaf.root = self._trees.topmost(pgno)
        targets = self._trees.ends(leaf.root, leaf.entries.rowids)
        if (entry := leaf.led_along(targets, pgno)) is not None:
            leaf.window = FIRST_WINDOW // LOOKUP_GROWTH
            leaf.depth = len(self._trees.path(leaf.root, entry.rowid))
            return self._plan_lookups(leaf)
        if is_read:
            self._index_leaf = None
        return []

    def _follow_lookups(self, pgno: int) -> list[int]:
        """Where in the index leaf the look-ups are, and whether it is time to plan further ones."""
        leaf = self._index_leaf
        if leaf is None:
            return []
        if not leaf.window:
            return self._recognize_lookups(leaf, pgno, is_read=False)
        for i in range(max(leaf.position, 0), min(leaf.position + LOOK_AROUND, len(leaf.entries))):
            if pgno in self._trees.path(leaf.root, leaf.entries.rowid(i)):
                leaf.is_equality &= leaf.entries[i].key == leaf.key
                leaf.position = i
                leaf.end = max(leaf.end, i + 1)
                return self._plan_lookups(leaf) if leaf.end - leaf.position <= leaf.window // 2 + 1 else []
        self.recall.note_jump(pgno)
        if leaf.position >= len(leaf.entries) - LOOK_AROUND and not leaf.is_descending:
            self.recall.expect(self._trees.next_leaf(leaf.pgno))
        return []

    def _plan_lookups(self, leaf: IndexLeaf) -> list[int]:
        """The pages that one more window of look-ups needs, and the interior pages of the window after it."""
        leaf.window = min(leaf.window * LOOKUP_GROWTH, max(FIRST_WINDOW, self.max_window))
        start, leaf.end = leaf.end, leaf.within_key(leaf.end + leaf.window)
        return self._targets(leaf, range(start, leaf.within_key(leaf.end + leaf.window * LOOKUP_GROWTH)))

    def _targets(self, leaf: IndexLeaf, entries: Iterable[int]) -> list[int]:
        """The pages that each of these entries needs next: of those beyond the window, only interior ones.

        Known interior pages are among them if SQLite reads such pages in this query: it has none of its own then.
        """
        targets: dict[int, None] = {}
        for i in entries:
            path = self._trees.path(leaf.root, leaf.entries.rowid(i))
            if len(path) < leaf.depth:
                leaf.waiting.setdefault(path[-1], []).append(i)
                self._awaited.add(path[-1])
            elif i >= leaf.end:
                continue
            if self._descends:
                targets.update(dict.fromkeys(path))
            targets[path[-1]] = None
        return list(targets)
