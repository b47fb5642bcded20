"""Predicts from a connection's reads what it will read next: pure plans, no I/O.

The watcher recognizes three patterns, each with a window that starts small and grows, so point look-ups cost nothing:

- A scan: two children of one interior page, read in order, mean that the leaves after them come next.
- Look-ups through an index (`lookups`).
- A run: overflow pages that follow each other, as the rest of a large row lies, or a reader of all pages.

Invariants:

1. A pattern belongs to the query that showed it: `begin` ends all patterns and keeps what is known of B-trees.
2. A plan that proves wrong ends: a scan is planned no further than its window, which moves with the reads.
3. A plan that may not be fetched (`hold_back`) starts again with the smallest window.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from litevfs.pages.btree import INTERIOR_KINDS, INTERIOR_TABLE, LEAF_INDEX, LEAF_TABLE, kind
from litevfs.pages.expected_scans import Beginning, Expected
from litevfs.pages.guesses import guess_leaves
from litevfs.pages.lookups import FIRST_WINDOW, LookUps
from litevfs.pages.outer_trees import OuterTrees
from litevfs.pages.patterns import Run, Scan
from litevfs.pages.shared_scans import Begin, SharedScans
from litevfs.pages.trees import MAX_POSITION, PLACE_BITS, KnownTrees

FIRST_SHARE = 2
"""Part of a full request that a scan may begin with, if that is larger: on a line that carries much in a round trip."""
GROWTH = 8
"""Factor by which a scan's window grows: cold pages come as fast as it grows, with a round trip for each step."""
MAX_SCANS = 8
RESTS = 512
"""At least so often, in leaves, a scan's place is noted."""
MAX_PLANNED = 1 << 15
"""Pages remembered of a scan's plan."""


class Watcher:
    """Follows the page reads of one connection. Answers are page numbers worth reading ahead, in order of need."""

    def __init__(self, max_window: int) -> None:
        self.credit = max_window  # pages that a plan may grow by
        self.step = max_window  # pages that fill a request
        self._trees = self.trees = KnownTrees()
        self._interior = self._trees.interior
        self._parents = self._trees.parents
        self._scans: OrderedDict[int, Scan] = OrderedDict()  # by interior page
        self._run = Run()
        self.resting: dict[int, Scan] = {}  # leaves whose reads change no plan; most reads of a scan are such
        self._awaited: set[int] = set()  # interior pages without which a plan cannot go on
        self._lookups = LookUps(self._trees, self._awaited, max_window)
        self.recall = self._lookups.recall
        self._outer = OuterTrees(self._trees)
        self._shared = SharedScans(self._trees)  # of trees that such a loop goes through and others look into
        self._expected = Expected()
        self._reads_whole = False  # this query, the trees that it has come to
        self.is_on_its_way = False  # and it has come to the second leaf of one
        self._lock = threading.Lock()  # another thread calls `learn` with pages that were read ahead

    @property
    def max_window(self) -> int:
        """Pages of one plan that are ahead of their reads at once."""
        return self._lookups.max_window

    @max_window.setter
    def max_window(self, pages: int) -> None:
        self._lookups.max_window = pages

    def begin(self) -> None:
        """Another query begins: the reads of the query before are no evidence."""
        with self._lock:
            self._scans.clear()
            self.resting = {}
            self._awaited.clear()
            self._expected.begin([])
            self._reads_whole = self.is_on_its_way = False
            self._outer.begin()
            self._shared.begin()
            self._run = Run()
            self._lookups.begin()

    def expect(self, rows: int) -> None:
        """This query looks up about so many rows, or ALL_ROWS; 0: not known. Safe to call from another thread."""
        self._lookups.expected = rows

    @property
    def looks_up(self) -> bool:
        """Whether it is known which rows this query looks up next."""
        return self._lookups.are_recognized

    def hold_back(self) -> None:
        """Note that the pages planned last are not fetched."""
        with self._lock:
            self._look_at_rests()
            self.resting = {}
            for parent, scan in self._scans.items():
                scan.start_again(parent, FIRST_WINDOW // GROWTH)
            self._run.end, self._run.window = self._run.last + 1, 0
            self._lookups.hold_back()
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
        self._outer.note(pgno)
        with self._lock:
            parent = self._trees.place(pgno)  # `learn` may have dropped it
            if not parent:
                return []
            plan = self._lookups.follow(pgno)
            if self._shared and self._shared.note(pgno, parent[0]):  # a rehearsal asks for what comes next
                return plan or []
            return self._follow_scan(*parent) if plan is None else plan

    def passes(self, pgno: int) -> bool:
        """Whether a read of a page in memory neither goes on with a scan nor shows where an outermost loop is."""
        if (place := self._parents.get(pgno)) is None:
            return True
        parent, position = place >> PLACE_BITS, place & MAX_POSITION - 1
        if (scan := self._scans.get(parent)) is not None and position == scan.position + 1:
            return False
        if self._outer:
            with self._lock:
                if self._outer.has(parent):
                    return False
            self._outer.note(pgno)
        return True

    def wants(self, page: bytes) -> bool:
        """Whether `after_read` has a use for a page; it has none for most table leaves, and most pages are those."""
        return page[0] != LEAF_TABLE or self._lookups.leaf is not None

    def rests_whole(self, pgno: int) -> bool:
        """Whether a leaf rests that nothing is looked up from: its tree is read whole, and no other between."""
        scan = self.resting.get(pgno)
        return scan is not None and scan.is_whole

    def after_read(self, pgno: int, page: bytes) -> list[int]:
        """The connection has read page `pgno`."""
        found = kind(pgno, page)
        if found in INTERIOR_KINDS:
            self._lookups.descends |= found == INTERIOR_TABLE and pgno in self._parents
            return self.learn(pgno, page)
        if found == LEAF_INDEX:
            with self._lock:
                if self._lookups.leaf is None:
                    self.resting = {}
                return self._lookups.enter(pgno, page)
        elif found == LEAF_TABLE and (leaf := self._lookups.leaf) is not None:
            with self._lock:
                return self._lookups.recognize(leaf, pgno)
        elif found != LEAF_TABLE and int.from_bytes(page[:4]) == pgno + 1:
            return self.follow_run(pgno)
        return []

    def learn(self, pgno: int, page: bytes) -> list[int]:
        """Page `pgno` is known now: plans that waited for it can go on."""
        if kind(pgno, page) not in INTERIOR_KINDS:
            self._awaited.discard(pgno)
            return self._begin_at_leaf(pgno) if self._expected.waits_for(pgno) else []
        with self._lock:
            self._awaited.discard(pgno)
            self._trees.learn(pgno, page, self._drop_scan)
            if pgno not in self._interior:
                return []
            plan = self._lookups.come(pgno)
            for scan in list(self._scans.values()):
                if scan.end_in == pgno:
                    plan += self._extend(scan, at_once=True)
            if self._expected.waits_for(pgno):
                plan += self._begin_expected()
            elif self._expected.has(pgno):  # a later tree, whose first pages should not wait for the way down to them
                plan += self._await(self._interior[pgno].children[0])
            return plan

    def _await(self, pgno: int) -> list[int]:
        """An interior page that is not known yet is to be shown to `learn`."""
        if pgno in self._interior or pgno in self._awaited:
            return []
        self._awaited.add(pgno)
        return [pgno]

    def _drop_scan(self, pgno: int) -> None:
        self._scans.pop(pgno, None)
        self.resting = {}

    def expect_scans(self, roots: list[int]) -> list[int]:
        """The query that has begun is going to read these trees whole, one after the other."""
        with self._lock:
            self._expected.begin(roots)
            self._reads_whole = bool(roots)
            unknown = [root for root in roots if root not in self._interior]
            self._awaited.update(unknown)
            return unknown + self._begin_expected()

    def _begin_expected(self) -> list[int]:
        """The first pages of the next tree that is expected, as many as the line carries."""
        return self._begin_scan(self._expected.take(self._trees))

    def _begin_at_leaf(self, pgno: int) -> list[int]:
        with self._lock:
            return self._begin_scan(self._expected.take_leaf(self._trees)) or self._begin_expected()

    def _begin_scan(self, beginning: Beginning | None) -> list[int]:
        if beginning is None:
            return []
        if beginning.awaited:
            return self._await(beginning.awaited)
        if beginning.parent in self._scans:  # SQLite was faster
            return []
        is_guess = beginning.before and not beginning.is_dense  # takes half of it
        most = min(self.credit // 2 if is_guess else self.credit, self.max_window)
        scan, plan = beginning.scan(most, max(1, most // GROWTH))
        self._scans[beginning.parent] = scan
        self._awaited.update(scan.guessed)
        return plan + self._extend(scan, at_once=True)

    def hold(self, roots: Iterable[int], shared: Mapping[int, Begin] | None = None) -> None:
        """Keep in mind where the reads in these trees are, however many pages of others come between.

        Page 0 stands for what is no tree: only `take_passed` tells of it. In those that are `shared`, by root, the
        query looks up rows, too. Safe to call from another thread.
        """
        with self._lock:
            self._outer.hold(roots)
            self._shared.follow(shared or {})
            if self._shared:
                self.resting = {}  # their reads are followed one by one

    def take_passed(self) -> dict[int, None]:
        """The pages that this query has read since the last call, in their order. Safe to call from another thread."""
        return self._outer.take_passed()

    def way_to(self, root: int) -> list[tuple[int, int]]:
        """Where in the tree below `root` the reads are: from there down, interior pages and the place of the next one.

        Ends above a leaf. Empty if that is not known. Safe to call from another thread.
        """
        with self._lock:
            if (shared := self._shared.get(root)) is not None:
                return shared.way()
            for parent, scan in reversed(self._scans.items()):
                if (above := self._trees.way(parent, root)) is not None:
                    return [*above, (parent, max(scan.position, self._trees.position(scan.rested, parent)))]
        return []

    # --- scans and runs -----------------------------------------------------------------------------------------------

    def _follow_scan(self, parent: int, position: int) -> list[int]:
        children = self._interior[parent].children
        known = self._scans.pop(parent, None)
        scan = known or self._continued_scan(parent, position)
        if children[scan.position if scan and scan.position >= 0 else position] in self._interior:
            return []  # one level above the leaves; there, the end of each page leads on to the next
        if scan is None or not scan.position <= position <= self._reach(scan, parent):
            scan = Scan(position, parent, position + 1)
            if self._lookups.leaf is None and self._interior[parent].is_table:
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
            del self._scans[next((old for old in self._scans if not self._outer.has(old)), parent)]
        plan = self._extend(scan, at_once=parent in scan.guessed)
        missing = self._due(scan) - scan.short  # if none, the plan ends here or waits for an interior page
        rests = 0 if parent in scan.guessed or not scan.window else min(RESTS, missing) if missing > 0 else RESTS
        scan.rested = 0
        may_rest = self._lookups.leaf is None or not self._interior[parent].is_table  # else it may follow look-ups, too
        end = min(position + rests, self._reach(scan, parent)) if may_rest else 0
        self._rest(scan, children[position + 1 : end])
        return plan

    def _rest(self, scan: Scan, leaves: list[int]) -> None:
        """Reads of these leaves change no plan from now on; of this scan's leaves no others are such."""
        if self._shared:
            self.resting = {}
            return
        others = {} if len(self._scans) == 1 else {leaf: of for leaf, of in self.resting.items() if of is not scan}
        self.resting = others | dict.fromkeys(leaves, scan)

    def _advance(self, scan: Scan, parent: int, position: int) -> None:
        """The scan has come to the leaf at `position`, further on."""
        self.is_on_its_way = self._reads_whole
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
        """How many leaves a scan begins with: as many as one that this query has brought to the end of its tree, or no
        more than it is known to have rows.

        That one is forgotten: a query may go on with ranges that end soon.
        """
        self._look_at_rests()
        for parent, scan in self._scans.items():
            interior = self._interior.get(scan.end_in)
            if not scan.window or scan.is_active or self._outer.has(parent):
                continue
            if interior and scan.end >= len(interior.children):
                del self._scans[parent]
                self.resting = {}
                return max(scan.window, FIRST_WINDOW)
        most = self.step // FIRST_SHARE
        return max(FIRST_WINDOW, min(most, self._lookups.expected) if self._lookups.expected else most)

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
        active = sum(other.is_active or other is scan for other in self._scans.values()) or 1
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
                    return plan + self._begin_expected()
                scan.end_in, scan.end = following, 0
        if not scan.guessed or scan.short >= self._due(scan):  # else a request would bring few of them
            plan += guess_leaves(scan, self._trees, self._awaited)
        if scan.guessed and not self._trees.next_interior(next(reversed(scan.guessed))):
            plan += self._begin_expected()  # all of this tree is planned
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

    def recalled(self, peek: Callable[[int], bytes | None], most: int) -> list[int]:
        """What look-ups need next whose index leaf this query has not read, if it is among the `most` read last.

        `peek` gives a page's bytes if they are in memory. To be asked when `recall.is_due`.
        """
        with self._lock:
            leaf = self._lookups.leaf
            plan = self._lookups.recalled(peek, most)
            if self._lookups.leaf is not leaf:
                self.resting = {}
            return plan
