"""A run of a statement whose outermost loops go on for longer than its first rehearsals reach.

The query's own reads show where in the loops it is. A rehearsal that begins there, at each wait of the query, finds the
look-ups that come next, however far the query has come. It reads no further ahead than what the caches can hold, and
asks for no page a second time that the query may have left behind. A tree in which so many pages were looked up as it
would take to read it whole is read whole, if there is room for it: the next look-ups would cost as much once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from litevfs.bindings.programs import Plan
from litevfs.bindings.rehearsal_session import RehearsalSession, Task
from litevfs.live.session import Session

MOST_SEEN = 1024
"""Pages that a rehearsal reads at most from one place on; each costs the time of a look-up."""
MANY = 8
"""A rehearsal that misses as many pages is worth another one at the next wait."""


class LongRun:
    """What was fetched for one run of a statement. Used by one thread; `goes_on` may be read by another."""

    def __init__(self, task: Task, plan: Plan) -> None:
        self.run = task.run, task.begins
        self.goes_on = False  # the next wait is worth a rehearsal
        self._outer = plan.outer
        self._asked: dict[int, None] = {}  # pages; in the middle of a query the last ones, as many as a rehearsal reads
        self._looked_up: Counter[int] = Counter()  # pages that were asked for, by the root of their tree

    def begin_task(self) -> None:
        """A further task for the run begins."""
        self.goes_on = False

    def begin_next(self, host: Session, guest: RehearsalSession) -> int:
        """Let the next rehearsal begin where the query is, if that is known; else it begins with the first row.

        Returns how many pages it may read; 0: any number.
        """
        if not self._outer:
            return 0
        for outer in self._outer:
            guest.begin_at(host.way_to(outer.root), is_descending=outer.is_descending)
        ahead = host.replica.pages.ahead
        return 0 if ahead is None else min(ahead.max_pages() // 2, MOST_SEEN)

    def unasked(self, guest: RehearsalSession, missing: Iterable[int]) -> list[int]:
        """Those of the pages that were not asked for lately; noted as such that are asked for now."""
        new = [pgno for pgno in missing if pgno not in self._asked]
        self._asked.update(dict.fromkeys(new))
        for pgno in list(self._asked)[:-MOST_SEEN] if self._outer else ():
            del self._asked[pgno]
        self._looked_up.update(guest.roots_of(new))
        self.goes_on |= bool(self._outer) and len(new) >= MANY
        return new

    def refused(self, pgnos: Iterable[int]) -> None:
        """There was no room to read these ahead."""
        for pgno in pgnos:
            self._asked.pop(pgno, None)

    def whole_trees(self, host: Session, guest: RehearsalSession) -> list[int]:
        """Pages to ask for of trees that are to be read whole."""
        ahead = host.replica.pages.ahead
        if ahead is None or not self._outer:
            return []
        return guest.whole_trees(self._looked_up, ahead.pages_for_a_request, ahead.max_pages())
