"""The session that a rehearsal reads by: it gives SQLite pages in memory, stand-ins for all others, and never waits.

Owns one connection. `rehearsal` decides what is rehearsed when; `programs` says what SQLite is going to do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

import apsw

from litevfs.bindings.apsw_errors import make_apsw_error
from litevfs.bindings.attempts import Attempt, Ended, Task
from litevfs.bindings.forks import gate
from litevfs.bindings.guests import connect_guest
from litevfs.bindings.modules import authorizer, read_by
from litevfs.bindings.programs import Plan, has_modules, plan_of
from litevfs.live.session import Session
from litevfs.ltx.format import lock_pgno
from litevfs.pages.btree import INTERIOR_KINDS, Interior, parse_interior
from litevfs.pages.guesses import few_children, leaves_of_small_tree
from litevfs.pages.made_pages import from_child_on, two_ways, up_to_child
from litevfs.pages.stand_ins import StandIns, Tree
from litevfs.pages.trees import MAX_DEPTH

logger = logging.getLogger("litevfs.bindings.rehearsal")

STEPS_BETWEEN_CHECKS, MAX_CHECKS = 1000, 100
"""Steps of SQLite's machine, and after how many of them, in checks, a rehearsal ends."""
MAX_SIBLINGS = {True: 1, False: 8}
"""Leaves in a row that a scan of a table, or of an index, may miss in one rehearsal: the watcher knows scans better."""
MAX_REPEATS = 1000
"""So often a rehearsal reads pages again that are missing: as the parts of a large row, which lead to themselves."""
KEPT_BYTES, INTERIOR_BYTES = 7_000_000, 1_000_000
"""Of decoded leaves that are kept from one rehearsal of a statement to the next, and of interior pages."""
ALIASES, MADE = MAX_DEPTH + 4, 1 << 20
"""Numbers beyond those of true pages: of pages that stand beside true ones, and after them of those below stand-ins."""
REMEMBERED = 64
"""Plans, by their SQL."""
_SCHEMA_VERSION = slice(40, 44)
"""Where it lies on page 1 (https://www.sqlite.org/fileformat2.html#the_database_header)."""


class RehearsalSession(Session):
    """Reads beside another session, for one thread at a time."""

    def __init__(self, host: Session, must_end: Callable[[Task], bool], task: Task) -> None:
        self._must_end = must_end
        self._connection: apsw.Connection | None = None
        self._plans: dict[str, Plan] = {}
        self._tables: set[str] = set()  # that the statement compiled last reads
        self._functions: set[str] = set()  # that it calls, of those that modules overload
        self._task = task
        self._counter = 0  # of rehearsals: SQLite's page cache must keep nothing from the one before
        self._decoded: dict[int, bytes] = {}  # true pages of this task, but for interior ones
        self._interior: dict[int, bytes] = {}  # true interior pages of this run of its statement
        self._stand_ins: StandIns | None = None  # if None, a page that is missing ends the call
        self._reads_other_trees = False  # pages of these have no stand-ins
        self._attempt, self._next = Attempt(), Attempt()
        super().__init__(replace(host.options, warm="", max_staleness_s=None), make_apsw_error, beside=host)
        self._view = task.snapshot

    def plan(self, task: Task) -> Plan:
        """What SQLite is going to do; from here on, serve this task. Raises what APSW raises."""
        if task.first_page[_SCHEMA_VERSION] != self._task.first_page[_SCHEMA_VERSION]:
            self._plans.clear()
        if (task.run, task.begins) != (self._task.run, self._task.begins):
            self._interior.clear()
        self._view, self._task, self._stand_ins = task.snapshot, task, None
        self._decoded.clear()
        sql, values = task.statement.sql, task.statement.values
        if (plan := self._plans.get(sql)) is None:
            with gate.inside():
                connection = self._connection = self._connection or self._connected()
                self._begin(Attempt())
                self._tables.clear()
                self._functions.clear()
                cursor = connection.execute(f"EXPLAIN {sql}", values)
                names = cursor.bindings_names
                program = cursor.fetchall()
                found = read_by(connection, self._tables, self._functions) if has_modules(program) else (None, ())
                plan = plan_of(program, found[0], names, found[1])
            while len(self._plans) >= REMEMBERED:
                del self._plans[next(iter(self._plans))]
            if not (values and plan.has_numbers):  # they may be values of parameters
                self._plans[sql] = plan
        numbers = range(first := self._alias_numbers().stop, first + MADE)
        self._stand_ins = StandIns(task.snapshot.page_size, plan.trees, self._seen_or_in_memory, numbers)
        self._reads_other_trees = plan.reads_other_trees
        return plan

    def _connected(self) -> apsw.Connection:
        """A connection whose authorizer is set: what fails before leaves none behind that would do without."""
        connection = connect_guest(self)
        try:
            connection.authorizer = authorizer(connection, self._tables, self._functions)
        except BaseException:
            connection.close()
            raise
        connection.set_progress_handler(self._is_over, STEPS_BETWEEN_CHECKS)
        return connection

    def missing_of(self, pgnos: Iterable[int]) -> list[int]:
        """Those of these pages that are not in memory."""
        return [pgno for pgno in pgnos if pgno > 1 and self._in_memory(pgno) is None]

    def below(self, roots: Iterable[int]) -> list[int]:
        """The pages of the level below these root pages, where they are few."""
        return [child for interior in self._known(roots) for child in few_children(interior)]

    def guess_small_trees(self, roots: Iterable[int]) -> None:
        """Fetch the trees whole, as far as that costs less than a round trip, that are small by what is in memory."""
        known = self._known(root for root in roots if root > 1)
        if known and (ahead := self.replica.pages.ahead) is not None:
            ahead.guess_trees(self.snapshot, filter(None, map(leaves_of_small_tree, known)))

    def _known(self, pgnos: Iterable[int]) -> list[Interior]:
        pages = ((pgno, self._in_memory(pgno)) for pgno in pgnos)
        return [interior for pgno, page in pages if page and (interior := parse_interior(pgno, page))]

    def begin_after(self, passed: Iterable[int]) -> None:
        """In the next rehearsal, neither count nor miss these pages, which the query has read, unless others follow."""
        self._next.passed = frozenset(passed)

    def begin_at(self, way: Iterable[tuple[int, int]], *, is_descending: bool) -> None:
        """In the next rehearsal, begin in this place of a tree; see `Watcher.way_to`."""
        cut_down = up_to_child if is_descending else from_child_on
        for pgno, position in way:
            if pgno > 1 and (page := self._in_memory(pgno)) is not None and parse_interior(pgno, page) is not None:
                self._next.cut_down[pgno] = cut_down(page, position)

    def begin_beside(
        self, root: int, way: Sequence[tuple[int, int]], rowid: int | None, *, is_descending: bool
    ) -> None:
        """Like `begin_at`, where the statement looks into the tree, too: those look-ups see all of it.

        The root leads the scan, which begins with the first or last key, or a rowid, to pages that are cut down, and
        beyond their end to one that ends the rehearsal; it leads each look-up to a page like the true root.
        """
        numbers = [number for number in self._alias_numbers() if number not in self._next.aliases][: len(way) + 2]
        pages = {pgno: self._in_memory(pgno) for pgno, _ in way}
        if root == 1 or not way or len(numbers) < len(way) + 2:
            return
        self._next.unknown += [pgno for pgno, page in pages.items() if page is None]
        parts = [
            (page, position)
            for pgno, position in way
            if (page := pages[pgno]) and parse_interior(pgno, page) is not None
        ]
        if len(parts) < len(way):
            return
        if self._stand_ins is not None:
            for (pgno, _), (page, _) in zip(way, parts, strict=True):
                self._stand_ins.learn(pgno, page)
        self._next.cut_down[root], aliases = two_ways(parts, numbers, rowid, is_descending=is_descending)
        self._next.aliases |= {numbers[0]: b""} | aliases

    def _alias_numbers(self) -> range:
        """Numbers of no page of the database."""
        first, lock = self.snapshot.commit + 1, lock_pgno(self.snapshot.page_size)
        if first <= lock < first + ALIASES:
            first = lock + 1
        return range(first, first + ALIASES)

    def size(self) -> int:
        """See `Session.size`; with the pages that are beside the true ones."""
        return self._last_number() * self.snapshot.page_size

    def _last_number(self) -> int:
        return self._alias_numbers().stop - 1 + MADE

    def rehearse(self, most: int, most_seen: int = 0) -> list[int]:
        """Run the statement of the task, and return the pages that it misses, up to so many.

        It ends as well when it has read `most_seen` pages; 0: however many.
        """
        assert self._connection is not None
        attempt, self._next = self._next, Attempt()
        self._begin(attempt)
        if self._stand_ins is not None:
            self._stand_ins.begin()
        if attempt.unknown:
            return attempt.unknown
        attempt.most, attempt.most_seen, rows = min(most, most_seen or most), most_seen, 0
        try:
            with gate.inside():
                for _ in self._connection.execute(self._task.statement.sql, self._task.statement.values):
                    rows += 1
            attempt.rows = rows
        except (apsw.InterruptError, apsw.CorruptError, Ended) as error:
            logger.debug("a rehearsal ended: %s", error)
        except apsw.Error as error:
            if not self._reads_other_trees:
                raise
            logger.debug("a rehearsal ended in a virtual table: %s", error)
        if most_seen and (ahead := self.replica.pages.ahead) is not None:
            ahead.hold(self.snapshot, reversed(attempt.seen), attempt.again)
        return list(attempt.missing)

    def roots_of(self, pgnos: Iterable[int]) -> Iterator[int]:
        """The roots of the trees that these pages belong to, as far as that is known."""
        return (tree.root for pgno in pgnos if (tree := self._tree_of(pgno)) is not None)

    def part_to_come(self, roots: Iterable[int]) -> float:
        """How often as many leaves of these trees are still to come as the last rehearsal has read of them."""
        if self._stand_ins is None:
            return 0.0
        shares = [0.0]
        for root in roots:
            leaves = self._stand_ins.leaves_of(root)
            if seen := sum(leaf in self._attempt.seen for leaf in leaves):
                last = max(place for place, leaf in enumerate(leaves) if leaf in self._attempt.seen)
                shares.append((len(leaves) - 1 - last) / seen)
        return max(shares)

    def whole_trees(self, looked_up: Mapping[int, float], pages_for_a_request: float, room: int) -> list[int]:
        """Pages of trees that cost no more to read whole than what is `looked_up`: pages, by root.

        `pages_for_a_request` take the time of a request; all trees have to fit in the room for so many pages, or these
        in half of it. Where not all interior pages of such a tree are known, the others come first.
        """
        if self._stand_ins is None or not self._attempt.is_cut_short:
            return []
        trees = {root: self._stand_ins.leaves_of(root) for root in looked_up}
        if sum(map(len, trees.values())) > room:
            room //= 2
        found: list[int] = []
        for root, pages in trees.items():
            if len(pages) <= min(room - len(found), looked_up[root] * pages_for_a_request):
                found += pages
        return found

    def to_be_asked_for(self, pgnos: Iterable[int]) -> list[int]:
        """Those of these pages that are neither near nor under way."""
        pages, snapshot = self.replica.pages, self.snapshot
        return [pgno for pgno in pgnos if pages.needs_request(snapshot, pgno)]

    @property
    def rows(self) -> int | None:
        """Of the last rehearsal, if it came to its end."""
        return self._attempt.rows

    @property
    def is_exhausted(self) -> bool:
        """Whether the last rehearsal took all the steps that it may: the next one would not come further."""
        return self._attempt.checks > MAX_CHECKS

    def is_far(self, missing: Sequence[int]) -> bool:
        """Whether the last rehearsal has read all that it may, and half of that before the first of these pages."""
        attempt = self._attempt
        is_at_bound = 0 < attempt.most_seen < len(attempt.seen)
        return is_at_bound and (not missing or attempt.missing.get(missing[0], 0) > attempt.most_seen // 2)

    def pages_before(self, pgno: int) -> int:
        """How many pages the last rehearsal has read before it missed this one."""
        return self._attempt.missing.get(pgno, 0)

    def leaves_to_come(self, root: int, count: int, *, is_descending: bool) -> list[int]:
        """The leaves after those at which the last rehearsal ended, if they were missing for a scan of this tree."""
        attempt = self._attempt
        if self._stand_ins is None or attempt.scanned is None or attempt.scanned.root != root:
            return []
        following = self._stand_ins.leaves_after(attempt.last, count, backwards=is_descending)
        return self.to_be_asked_for([attempt.last, *following])

    @property
    def has_met_a_scan_alone(self) -> bool:
        """Whether the last rehearsal ended in a scan, and missed nothing else: the watcher knows those better."""
        scanned = self._attempt.scanned
        return scanned is not None and all(self._tree_of(pgno) == scanned for pgno in self._attempt.missing)

    def rest(self, *, goes_on: bool = False) -> None:
        """Free the memory that only the task needed, or its run, if that does not go on."""
        self._decoded.clear()
        if not goes_on:
            self._interior.clear()
        self._attempt = Attempt()
        self._stand_ins = None
        if self._connection is not None:
            with gate.inside():
                self._connection.release_memory()

    def close_connection(self) -> None:
        """Close the connection, and with it this session."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with gate.inside(), closing(connection):
                connection.set_progress_handler(None)

    def _begin(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._counter += 1

    def _is_over(self) -> bool:
        gate.rest()
        self._attempt.checks += 1
        return self._attempt.checks > MAX_CHECKS or self._must_end(self._task)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, amount: int, offset: int) -> bytes:
        """See `Session.read`; waits for nothing."""
        number, start = divmod(offset, self.snapshot.page_size)
        return self._page(number + 1)[start : start + amount]

    def _page(self, pgno: int) -> bytes:
        if pgno == 1:
            page, counter = self._task.first_page, self._counter.to_bytes(4)
            count = self._last_number().to_bytes(4)
            return page[:24] + counter + count + page[32:92] + counter + page[96:]
        attempt = self._attempt
        if (alias := attempt.aliases.get(pgno)) is not None:
            if not alias:
                raise self._ended("it is at the end of a tree")
            return alias
        if pgno > self.snapshot.commit:
            return self._made(pgno)
        page_or_none = self._in_memory(pgno)
        if page_or_none is None:
            return self._stand_in(pgno)
        if self._stand_ins is not None:
            self._stand_ins.learn(pgno, page_or_none)
            if pgno in attempt.seen:
                attempt.again.add(pgno)
            elif pgno not in attempt.passed:
                attempt.seen[pgno] = None
            if 0 < attempt.most_seen < len(attempt.seen):
                attempt.is_cut_short = True
                raise self._ended(f"it is {len(attempt.seen)} pages ahead")
        return attempt.cut_down.get(pgno, page_or_none)

    def _in_memory(self, pgno: int) -> bytes | None:
        page = self._interior.get(pgno) or self._decoded.get(pgno)
        if page is not None:
            is_there = page[0] in INTERIOR_KINDS or not self.replica.pages.needs_request(self.snapshot, pgno)
            return page if is_there else None  # interior pages are what SQLite keeps longest itself
        if (ahead := self.replica.pages.ahead) is not None:
            page = ahead.peek(self.snapshot, pgno)
            if page is not None and page[0] in INTERIOR_KINDS and len(self._interior) * len(page) < INTERIOR_BYTES:
                self._interior[pgno] = page
            elif page is not None and len(self._decoded) * len(page) < KEPT_BYTES:
                self._decoded[pgno] = page
        return page

    def _seen_or_in_memory(self, pgno: int) -> bytes | None:
        """Also a page that has left memory since it was read: rows that it names have to be found."""
        return self._decoded.get(pgno) or self._in_memory(pgno)

    def _stand_in(self, pgno: int) -> bytes:
        if self._stand_ins is None:
            raise self._ended("the schema is not in memory")
        attempt = self._attempt
        if pgno in attempt.passed and self._tree_of(pgno) is not None:
            return self._stand_ins.make(pgno)
        if pgno not in attempt.missing:
            attempt.is_cut_short = len(attempt.missing) >= attempt.most
            if attempt.is_cut_short or self._is_scan(pgno):
                raise self._ended(f"{len(attempt.missing)} pages are missing")
            attempt.missing[pgno] = len(attempt.seen)
        elif attempt.repeats > MAX_REPEATS:
            raise self._ended(f"{attempt.repeats} reads of pages that are missing")
        else:
            attempt.repeats += 1
        if self._reads_other_trees and self._tree_of(pgno) is None:
            raise self._ended("a page of a virtual table is missing")
        return self._stand_ins.make(pgno)

    def _made(self, pgno: int) -> bytes:
        """A page below a stand-in; a scan ends here, as it does at pages that are missing."""
        made, attempt = None if self._stand_ins is None else self._stand_ins.made(pgno), self._attempt
        if made is None:
            raise self._ended("it is beyond the last page")
        tree, page = made
        attempt.made_siblings = attempt.made_siblings + 1 if abs(pgno - attempt.last_made) == 1 else 0
        attempt.last_made = pgno
        if tree.is_scanned and attempt.made_siblings >= MAX_SIBLINGS[tree.is_table]:
            attempt.scanned = tree
            raise self._ended("a scan goes through pages below one that is missing")
        return page

    def _is_scan(self, pgno: int) -> bool:
        assert self._stand_ins is not None
        tree, attempt = self._tree_of(pgno), self._attempt
        attempt.siblings = attempt.siblings + 1 if self._stand_ins.is_next_to(pgno, attempt.last) else 0
        attempt.last = pgno
        if tree is not None and tree.is_scanned and attempt.siblings >= MAX_SIBLINGS[tree.is_table]:
            attempt.scanned = tree
        return attempt.scanned is not None

    def _tree_of(self, pgno: int) -> Tree | None:
        return None if self._stand_ins is None else self._stand_ins.tree_of(pgno)

    @staticmethod
    def _ended(why: str) -> Ended:
        error = Ended(why)
        make_apsw_error(error)
        return error
