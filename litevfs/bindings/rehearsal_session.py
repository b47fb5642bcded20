"""The session that a rehearsal reads by: it gives SQLite what lies in memory, stand-ins for the rest, and waits never.

Owns one connection. `rehearsal` decides what is rehearsed when; `programs` says what SQLite is going to do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

import apsw

from litevfs.bindings.apsw_errors import make_apsw_error
from litevfs.bindings.forks import gate
from litevfs.bindings.guests import connect_guest
from litevfs.bindings.programs import Plan, plan_of
from litevfs.bindings.statements import Statement
from litevfs.errors import LitevfsError
from litevfs.live.session import Session
from litevfs.pages.btree import parse_interior
from litevfs.pages.guesses import leaves_of_small_tree
from litevfs.pages.stand_ins import StandIns, Tree, from_child_on, up_to_child
from litevfs.states.snapshot import Snapshot

logger = logging.getLogger("litevfs.bindings.rehearsal")

STEPS_BETWEEN_CHECKS, MAX_CHECKS = 1000, 100
"""Steps of SQLite's machine, and after how many of them, in checks, a rehearsal ends."""
MAX_SIBLINGS = {True: 1, False: 8}
"""Leaves in a row that a scan of a table, or of an index, may miss in one rehearsal: the watcher knows scans better."""
MAX_REPEATS = 1000
"""So often a rehearsal reads pages again that are missing: as the parts of a large row, which lead to themselves."""
KEPT_BYTES = 8_000_000
"""Of decoded pages that are kept from one rehearsal of a statement to the next."""
REMEMBERED = 64
"""Plans, by their SQL."""
_SCHEMA_VERSION = slice(40, 44)
"""Where it lies on page 1 (https://www.sqlite.org/fileformat2.html#the_database_header)."""


class Ended(LitevfsError):
    """A rehearsal that need not go on."""

    extendedresult = apsw.SQLITE_INTERRUPT


@dataclass(frozen=True, slots=True)
class Task:
    """A statement to rehearse, and what its query sees."""

    statement: Statement
    snapshot: Snapshot
    first_page: bytes
    run: object  # of the statement, see `Running`
    begins: int  # read transactions of the session so far


class RehearsalSession(Session):
    """Reads beside another session, for one thread at a time."""

    def __init__(self, host: Session, must_end: Callable[[Task], bool], task: Task) -> None:
        self._must_end = must_end
        self._connection: apsw.Connection | None = None
        self._plans: dict[str, Plan] = {}
        self._task = task
        self._counter = 0  # of rehearsals: SQLite's page cache must keep nothing from the one before
        self._checks = 0
        self._decoded: dict[int, bytes] = {}  # true pages of this task
        self._missing: dict[int, None] = {}
        self._stand_ins: StandIns | None = None  # if None, a page that is missing ends the call
        self._most = self._last = self._siblings = 0  # pages that may be missing; the last one; leaves in a row
        self._repeats = 0
        self._cut_down: dict[int, bytes] = {}  # interior pages, without what the query has gone through
        self._seen: set[int] = set()  # pages that the rehearsal has read, and that were in memory
        self._most_seen = 0
        self._is_cut_short = False  # the rehearsal has ended at a bound, where there is more to be read
        self.rows: int | None = None  # of the last rehearsal, if it came to its end
        self._scanned: Tree | None = None  # whose leaves ended the rehearsal
        super().__init__(replace(host.options, warm="", max_staleness_s=None), make_apsw_error, beside=host)
        self._view = task.snapshot

    def plan(self, task: Task) -> Plan:
        """What SQLite is going to do; from here on, serve this task. Raises what APSW raises."""
        if task.first_page[_SCHEMA_VERSION] != self._task.first_page[_SCHEMA_VERSION]:
            self._plans.clear()
        self._view, self._task = task.snapshot, task
        self._decoded.clear()
        self._stand_ins = None
        sql, values = task.statement.sql, task.statement.values
        if (plan := self._plans.get(sql)) is None:
            with gate.inside():
                if self._connection is None:
                    self._connection = self._connected()
                self._begin()
                plan = plan_of(self._connection.execute(f"EXPLAIN {sql}", values).fetchall())
            while len(self._plans) >= REMEMBERED:
                del self._plans[next(iter(self._plans))]
            self._plans[sql] = plan
        self._stand_ins = StandIns(task.snapshot.page_size, plan.trees, self._in_memory)
        return plan

    def _connected(self) -> apsw.Connection:
        """A connection whose authorizer is set: what fails before leaves none behind that would do without."""
        connection = connect_guest(self)
        try:
            connection.authorizer = _only_functions_of_sqlite(connection)
        except BaseException:
            connection.close()
            raise
        connection.set_progress_handler(self._is_over, STEPS_BETWEEN_CHECKS)
        return connection

    def missing_of(self, pgnos: Iterable[int]) -> list[int]:
        """Those of these pages that are not in memory."""
        return [pgno for pgno in pgnos if pgno > 1 and self._in_memory(pgno) is None]

    def guess_small_trees(self, roots: Iterable[int]) -> None:
        """Fetch the trees whole, as far as that costs less than a round trip, that are small by what is in memory."""
        pages = ((root, self._in_memory(root)) for root in roots if root > 1)
        known = [interior for root, page in pages if page and (interior := parse_interior(root, page))]
        if known and (ahead := self.replica.pages.ahead) is not None:
            ahead.guess_trees(self.snapshot, filter(None, map(leaves_of_small_tree, known)))

    def begin_at(self, way: Iterable[tuple[int, int]], *, is_descending: bool) -> None:
        """In the next rehearsal, begin in this place of a tree; see `Watcher.way_to`."""
        cut_down = up_to_child if is_descending else from_child_on
        for pgno, position in way:
            if pgno > 1 and (page := self._in_memory(pgno)) is not None and parse_interior(pgno, page) is not None:
                self._cut_down[pgno] = cut_down(page, position)

    def rehearse(self, most: int, most_seen: int = 0) -> list[int]:
        """Run the statement of the task, and return the pages that it misses, up to so many.

        It ends as well when it has read `most_seen` pages; 0: however many.
        """
        assert self._connection is not None
        self._missing.clear()
        self._most, self._siblings, self._last, self._scanned, self._repeats = (
            min(most, most_seen or most),
            0,
            0,
            None,
            0,
        )
        self._most_seen, self._is_cut_short = most_seen, False
        self._seen.clear()
        self._begin()
        self.rows, rows = None, 0
        try:
            with gate.inside():
                for _ in self._connection.execute(self._task.statement.sql, self._task.statement.values):
                    rows += 1
            self.rows = rows
        except (apsw.InterruptError, apsw.CorruptError, Ended) as error:
            logger.debug("a rehearsal ended: %s", error)
        self._cut_down.clear()
        return list(self._missing)

    def roots_of(self, pgnos: Iterable[int]) -> Iterator[int]:
        """The roots of the trees that these pages belong to, as far as that is known."""
        return (tree.root for pgno in pgnos if (tree := self._tree_of(pgno)) is not None)

    def whole_trees(self, looked_up: Mapping[int, int], pages_for_a_request: float, room: int) -> list[int]:
        """Missing pages of trees that cost no more to read whole than what was `looked_up` so far: pages, by root.

        `pages_for_a_request` take the time of a request; a tree has to fit in the room for so many pages. Where not
        all interior pages of such a tree are known, the others come first.
        """
        if self._stand_ins is None or not self._is_cut_short:
            return []
        found: list[int] = []
        for root, count in looked_up.items():
            pages = self._stand_ins.leaves_of(root)
            if len(pages) <= min(room - len(found), count * pages_for_a_request):
                found += pages
        return self.to_be_asked_for(found)

    def to_be_asked_for(self, pgnos: Iterable[int]) -> list[int]:
        """Those of these pages that are neither near nor under way."""
        pages, snapshot = self.replica.pages, self.snapshot
        return [pgno for pgno in pgnos if pages.needs_request(snapshot, pgno)]

    @property
    def is_exhausted(self) -> bool:
        """Whether the last rehearsal took all the steps that it may: the next one would not come further."""
        return self._checks > MAX_CHECKS

    @property
    def has_met_a_scan_alone(self) -> bool:
        """Whether the last rehearsal ended in a scan, and missed nothing else: the watcher knows those better."""
        return self._scanned is not None and all(self._tree_of(pgno) == self._scanned for pgno in self._missing)

    def rest(self) -> None:
        """Free the memory that only the task needed."""
        self._decoded.clear()
        self._missing.clear()
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

    def _begin(self) -> None:
        self._counter += 1
        self._checks = 0

    def _is_over(self) -> bool:
        gate.rest()
        self._checks += 1
        return self._checks > MAX_CHECKS or self._must_end(self._task)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, amount: int, offset: int) -> bytes:
        """See `Session.read`; waits for nothing."""
        number, start = divmod(offset, self.snapshot.page_size)
        return self._page(number + 1)[start : start + amount]

    def _page(self, pgno: int) -> bytes:
        if pgno == 1:
            page, counter = self._task.first_page, self._counter.to_bytes(4)
            return page[:24] + counter + page[28:92] + counter + page[96:]
        page_or_none = self._in_memory(pgno)
        if page_or_none is None:
            return self._stand_in(pgno)
        if self._stand_ins is not None:
            self._stand_ins.learn(pgno, page_or_none)
            self._seen.add(pgno)
            if 0 < self._most_seen < len(self._seen):
                self._is_cut_short = True
                raise self._ended(f"it is {len(self._seen)} pages ahead")
        return self._cut_down.get(pgno, page_or_none)

    def _in_memory(self, pgno: int) -> bytes | None:
        page = self._decoded.get(pgno)
        if page is None and (ahead := self.replica.pages.ahead) is not None:
            page = ahead.peek(self.snapshot, pgno)
            if page is not None and len(self._decoded) * len(page) < KEPT_BYTES:
                self._decoded[pgno] = page
        return page

    def _stand_in(self, pgno: int) -> bytes:
        if self._stand_ins is None:
            raise self._ended("the schema is not in memory")
        if pgno not in self._missing:
            self._is_cut_short = len(self._missing) >= self._most
            if self._is_cut_short or self._is_scan(pgno):
                raise self._ended(f"{len(self._missing)} pages are missing")
            self._missing[pgno] = None
        elif (repeats := self._repeats) > MAX_REPEATS:
            raise self._ended(f"{repeats} reads of pages that are missing")
        else:
            self._repeats = repeats + 1
        return self._stand_ins.make(pgno)

    def _is_scan(self, pgno: int) -> bool:
        assert self._stand_ins is not None
        tree = self._tree_of(pgno)
        self._siblings = self._siblings + 1 if self._stand_ins.is_next_to(pgno, self._last) else 0
        self._last = pgno
        if tree is not None and tree.is_scanned and self._siblings >= MAX_SIBLINGS[tree.is_table]:
            self._scanned = tree
        return self._scanned is not None

    def _tree_of(self, pgno: int) -> Tree | None:
        return None if self._stand_ins is None else self._stand_ins.tree_of(pgno)

    @staticmethod
    def _ended(why: str) -> Ended:
        error = Ended(why)
        make_apsw_error(error)
        return error


def _only_functions_of_sqlite(connection: apsw.Connection) -> Callable[..., int]:
    """An authorizer: a rehearsal calls no function of an application, which `apsw.connection_hooks` may have added."""
    functions = connection.execute("SELECT name, builtin FROM pragma_function_list").fetchall()
    known = {name for name, is_builtin in functions if is_builtin} - {
        name for name, builtin in functions if not builtin
    }

    def authorize(action: int, _: str | None, name: str | None, *__: str | None) -> int:
        is_foreign = action == apsw.SQLITE_FUNCTION and str(name).lower() not in known
        return apsw.SQLITE_DENY if is_foreign else apsw.SQLITE_OK

    return authorize
