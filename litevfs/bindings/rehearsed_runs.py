"""A run of a statement that is rehearsed: what was asked for, and what comes next, however long it goes on.

The query's own reads show where in its outermost loops it is; in a loop through the values of an IN, these reads are
passed over. A rehearsal that begins there, at each wait of the query,
finds the look-ups that come next, however far the query has come. It reads no further ahead than what the caches can
hold, and asks for no page a second time that the query may have left behind. A tree in which so many pages were looked
up as it would take to read it whole is read whole, if there is room for it: the next look-ups would cost as much once
more.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from litevfs.bindings.attempts import Task
from litevfs.bindings.programs import MANY_PAGES, Plan
from litevfs.bindings.rehearsal_session import RehearsalSession
from litevfs.live.session import Session

MOST_SEEN = 1024
"""Pages that a rehearsal reads at most from one place on; each costs the time of a look-up."""
NEIGHBOURS = 32
"""Leaves of a tree that is read whole that come together, where one of them is needed soon."""
LEAVES, LEAVES_SHARE = 16, 4
"""Of an outermost loop's tree that are asked for at once, where the query looks into the tree, too: so many at first,
and later a part of the pages that a rehearsal may read."""
WHOLE_SHARE, LEAST_SHARE = 0.75, 8
"""Of the room for pages, trees that are read whole may take the first part: the rest is for the look-ups in others. A
rehearsal reads as many pages as fill an eighth of it, whatever is held: such trees may have lost their place."""
MOST_TO_COME = 4
"""So often as many look-ups as before are taken to come, at most: the leaves of the loop to come say how many may."""
SQLITE_BYTES = 1_500_000
"""Of pages that a query has read last: SQLite has them in its own cache, if that is as large as usual."""
MOST_PASSED = 16 * MOST_SEEN
"""Pages remembered since the query has come to where it is."""
MANY = 8
"""A rehearsal that misses as many pages is worth another one at the next wait."""


@dataclass(frozen=True, slots=True)
class Step:
    """What to do after a rehearsal."""

    missing: Sequence[int] = ()  # pages to ask for
    whole: Sequence[int] = ()  # pages of trees to be read whole, in order of need: as many as there is room for
    waits: bool = False  # nothing, until the query has come further


class RehearsedRun:
    """What was fetched for one run of a statement. Used by one thread; `goes_on` may be read by another."""

    def __init__(self, task: Task, plan: Plan) -> None:
        self.run = task.run, task.begins
        self.is_long = False
        self.goes_on = False  # the next wait is worth a rehearsal
        loops = plan.outer_loops(task.statement.values)
        self._outer = tuple(outer for outer, _ in loops.values())
        self._begins = {root: rowid for root, (_, rowid) in loops.items()}
        self._is_followed = bool(self._outer) or plan.is_listed  # what the query has read shows where it is
        self._leaves = LEAVES  # that are asked for next
        self._held = 0  # pages of trees that are read whole
        self._most_seen = 0  # pages that a rehearsal may read; 0: any number
        self._ways: list[list[tuple[int, int]]] = []  # to where the outermost loops were
        self._passed: set[int] = set()  # pages that the query has read since it came there
        self._recent: OrderedDict[int, int] = OrderedDict()  # those that it has read last, and after how many others
        self._reads = 0  # of the query
        self._most_recent = 0  # pages that SQLite may still have
        self._asked: dict[int, None] = {}  # pages; in the middle of a query the last ones, as many as a rehearsal reads
        self._looked_up: Counter[int] = Counter()  # pages that were asked for, by the root of their tree

    def begin_task(self) -> None:
        """A further task for the run begins."""
        self.goes_on, self.is_long = False, True

    @property
    def takes_care_of_scans(self) -> bool:
        """Whether it asks for the leaves of an outermost loop, not the watcher."""
        return self.is_long or any(outer.is_shared for outer in self._outer)

    def begin_next(self, host: Session, guest: RehearsalSession) -> int:
        """Let the next rehearsal begin where the query is, if that is known; else it begins with the first row.

        Returns how many pages it may read; 0: any number.
        """
        if not self._is_followed:
            return 0
        ways = [host.way_to(outer.root) for outer in self._outer]
        if ways != self._ways or len(self._passed) > MOST_PASSED:
            self._ways, self._passed = ways, set()
        passed = host.take_passed()
        self._passed.update(passed)
        self._note_recent(passed, SQLITE_BYTES // max(1, guest.snapshot.page_size))
        guest.begin_after(self._passed)
        for outer, way in zip(self._outer, ways, strict=True):
            if outer.is_shared:
                guest.begin_beside(outer.root, way, self._begins[outer.root], is_descending=outer.is_descending)
            else:
                guest.begin_at(way, is_descending=outer.is_descending)
        ahead = host.replica.pages.ahead
        if ahead is not None:
            kept = ahead.pages_kept()
            self._most_seen = min(max((kept - self._held) // 2, kept // LEAST_SHARE, LEAVES), MOST_SEEN)
        return self._most_seen

    def _note_recent(self, pgnos: Iterable[int], most: int) -> None:
        for pgno in pgnos:
            self._reads += 1
            self._recent[pgno] = self._reads
            self._recent.move_to_end(pgno)
        self._most_recent = most
        while len(self._recent) > most:
            self._recent.popitem(last=False)

    def _is_asked(self, guest: RehearsalSession, pgno: int) -> bool:
        """Whether a missing page was asked for, and SQLite will have it when it is needed again, as far as is known."""
        if pgno not in self._asked or not self._is_followed:
            return pgno in self._asked
        read = self._recent.get(pgno)
        return read is not None and self._reads - read + guest.pages_before(pgno) < self._most_recent

    def _leaves_to_come(self, guest: RehearsalSession) -> list[int]:
        """Leaves of outermost loops at which the last rehearsal ended; at first the watcher takes care of others."""
        leaves: list[int] = []
        for outer in self._outer:
            if outer.is_shared or self.is_long:
                leaves += guest.leaves_to_come(outer.root, self._leaves, is_descending=outer.is_descending)
        if leaves:
            self._leaves = min(2 * self._leaves, max(self._most_seen // LEAVES_SHARE, LEAVES))
            self.goes_on = True
        return leaves

    def unasked(self, guest: RehearsalSession, missing: Iterable[int]) -> list[int]:
        """Those of the pages that were not asked for lately; noted as such that are asked for now."""
        new = [pgno for pgno in missing if not self._is_asked(guest, pgno)]
        self._asked.update(dict.fromkeys(new))
        for pgno in list(self._asked)[:-MOST_SEEN] if self._is_followed else ():
            del self._asked[pgno]
        self._looked_up.update(guest.roots_of(new))
        self.goes_on |= self._is_followed and len(new) >= MANY
        return new

    def refused(self, pgnos: Iterable[int]) -> None:
        """There was no room to read these ahead."""
        for pgno in pgnos:
            self._asked.pop(pgno, None)

    def step(self, host: Session, guest: RehearsalSession, missing: list[int]) -> Step:
        """What to do after a rehearsal that misses these pages."""
        new = [pgno for pgno in missing if not self._is_asked(guest, pgno)]
        if len(new) < MANY_PAGES and guest.is_far(new):
            self.goes_on = True
            return Step(waits=True)
        leaves = self._leaves_to_come(guest)
        whole, missing = in_order_of_need(self._whole_trees(host, guest, new), missing)
        missing = self.unasked(guest, missing)
        return Step([*missing, *(leaf for leaf in leaves if leaf not in missing)], whole)

    def _whole_trees(self, host: Session, guest: RehearsalSession, new: Iterable[int]) -> list[int]:
        """Pages to ask for of trees that are to be read whole, where `new` ones are looked up next."""
        ahead = host.replica.pages.ahead
        if ahead is None or not self._is_followed:
            return []
        to_come = min(guest.part_to_come(outer.root for outer in self._outer if not outer.is_descending), MOST_TO_COME)
        counts = self._looked_up + Counter(guest.roots_of(new))
        looked_up = {root: count * max(to_come, 1) for root, count in counts.items()}
        room = int(ahead.pages_kept() * WHOLE_SHARE)
        whole = guest.whole_trees(looked_up, ahead.pages_for_a_request, room)
        self._held = max(self._held, len(whole))
        return guest.to_be_asked_for(whole)


def in_order_of_need(whole: list[int], missing: list[int]) -> tuple[list[int], list[int]]:
    """The pages of whole trees, neighbours together, those first among which one is missing first; and what else is."""
    if not whole:
        return [], missing
    neighbours = {pgno: place // NEIGHBOURS for place, pgno in enumerate(whole)}
    groups = dict.fromkeys(neighbours[pgno] for pgno in missing if pgno in neighbours) | dict.fromkeys(
        neighbours.values()
    )
    ordered = [pgno for group in groups for pgno in whole[group * NEIGHBOURS : (group + 1) * NEIGHBOURS]]
    return ordered, [pgno for pgno in missing if pgno not in neighbours][:MANY_PAGES]
