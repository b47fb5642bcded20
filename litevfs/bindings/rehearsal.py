"""Rehearses a query that waits for the storage, to know which pages it needs next: they are then fetched together.

A session beside the query's runs the same statement on the pages in memory. For a page that is missing it gives SQLite
one that stands in for it, and SQLite goes on: with the next row of the outer table of a join, the next value of an IN,
the next subquery. What was missing is fetched, and the query is rehearsed again with it, which comes one level of
look-ups further; so the levels cost a round trip each, however many rows there are.

The rows of a rehearsal go nowhere: it only hints, and an error in it costs the hints of one statement. It waits for no
read, and ends with the query.

Bounds: the pages of one rehearsal (`Plan.pages`), which grow while what they brought leads on; SQLite's steps; two
leaves in a row of a table that is scanned, which the watcher reads ahead; and the governor's bound on all read-ahead.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence

import apsw

from litevfs.bindings.attempts import Task
from litevfs.bindings.guests import end_at_exit
from litevfs.bindings.programs import MANY_PAGES, Plan
from litevfs.bindings.rehearsal_session import RehearsalSession
from litevfs.bindings.rehearsed_runs import RehearsedRun
from litevfs.bindings.statements import FindRunning
from litevfs.concurrency.workers import start_thread
from litevfs.errors import LitevfsError, TransientStorageError
from litevfs.live.session import Session
from litevfs.pages.lookups import ALL_ROWS
from litevfs.pages.shared_scans import Begin
from litevfs.states.snapshot import Snapshot

logger = logging.getLogger("litevfs.bindings.rehearsal")

THREAD_NAME = "litevfs-rehearsal"
GROWTH, MOST_PAGES = 4, 1024
"""How the number of pages grows that a rehearsal may miss, and its end."""
LEVELS = 4
"""Where a LIMIT says how many rows there are, so many rehearsals in a row may miss no more pages than the first one."""
MAX_REHEARSALS = 24
"""Of one statement in a row; each needs what the one before has missed."""
PATIENCE_S = 10.0
"""A rehearsal waits no longer than this for pages, or for the query to use those that have come."""
FIRST_S = 0.003
"""It lets its query ask first for so long: more than the query takes to use what came, less than a round trip."""
LOOK_S = 0.05
"""So often a rehearsal that waits looks whether its query is over."""


class Rehearsals:
    """Those of one session's statements, one at a time, in a thread that lives as long as there is one. See `Waits`."""

    def __init__(self, host: Session, find: FindRunning) -> None:
        self._host = weakref.ref(host)
        self._find = find
        self._guest: RehearsalSession | None = None
        self._last: tuple[object, int] | None = None  # the run that waited last, in which transaction
        self._waits = 0  # of that run; its statement is rehearsed at the first, second, fourth, ... of them
        self._given_up: tuple[object, int] | None = None  # one that is rehearsed no more
        self._rehearsed: RehearsedRun | None = None  # the last one
        self._query_waits = threading.Event()  # set when it waits again
        self._next: Task | None = None
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        self._is_lookup = False  # the statement that is rehearsed
        self._lock = threading.RLock()  # the collector may end the session under this lock
        self._pid = os.getpid()
        end_at_exit(self)

    def before_wait(self, snapshot: Snapshot, begins: int) -> None:
        """The session is about to wait for the storage in its read transaction number `begins`."""
        running, host = self._find(begins), self._host()
        if running is None or host is None:
            return
        if (run := (running.run, begins)) != self._last:
            self._last, self._waits = run, 0
        self._waits += 1
        self._query_waits.set()
        first_page = host.page_one(snapshot)
        if run == self._given_up or (self._waits & (self._waits - 1) and not self._goes_on(run)):
            return
        if not first_page or host.replica.pages.hydration is not None:
            return
        statement = running.find()
        if statement is None:
            self._given_up = run
            return
        if os.getpid() != self._pid:
            self._forget()
        with self._lock:
            if not self._is_stopped and (self._thread is None or self._waits == 1):
                self._next = Task(statement, snapshot, first_page, *run)
                try:
                    self._thread = self._thread or start_thread(self._run, THREAD_NAME)
                except TransientStorageError as error:
                    self._next = None
                    logger.info("no rehearsal: %s", error)

    def _goes_on(self, run: tuple[object, int]) -> bool:
        """Whether a run is rehearsed at each of its waits."""
        known = self._rehearsed
        return known is not None and known.run == run and known.goes_on

    def stop(self) -> None:
        """End them. Waits for nothing; idempotent."""
        if os.getpid() != self._pid:
            self._forget()
        guest = None
        with self._lock:
            self._is_stopped, self._next = True, None
            if self._thread is None:  # else the thread closes it
                guest, self._guest = self._guest, None
        if guest is not None:
            guest.close_connection()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread, if there is one."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, timeout_s))

    def must_end(self, task: Task) -> bool:
        """Whether the query of a task is over, another one waits, or the query shows by itself what it reads next."""
        if self._is_stopped or self._next is not None:
            return True
        host = self._host()
        return host is None or not host.is_reading(task.snapshot) or (self._is_lookup and host.looks_up)

    def _forget(self) -> None:
        """Begin again in a forked child: the thread is gone, and its connection may be in the middle of a call."""
        _left_behind.append(self._guest)
        self._guest = self._thread = self._next = None
        self._lock, self._pid = threading.RLock(), os.getpid()

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        guest = None
        while True:
            with self._lock:
                task, self._next = self._next, None
                if task is None:
                    self._thread = None
                    if self._is_stopped:
                        guest, self._guest = self._guest, None
                    break
            try:
                self._rehearse(task)
                if self._guest is not None and self._next is None:
                    self._guest.rest(goes_on=self._goes_on((task.run, task.begins)))
            except (LitevfsError, apsw.Error, TypeError, UnicodeError) as error:  # that only its own connection knows
                logger.debug("no rehearsal of %s: %s", task.statement.sql, error)
            except Exception:  # a mistake of ours: it must not cost the query a row
                logger.exception("rehearsing failed; this connection goes on without")
                self._is_stopped = True
        if guest is not None:
            guest.close_connection()

    def _rehearse(self, task: Task) -> None:
        guest = self._guest_for(task)
        if guest is None:
            return
        plan = guest.plan(task)
        self._is_lookup = plan.is_lookup
        if (run := self._rehearsed) is not None and self._goes_on((task.run, task.begins)):
            run.begin_task()
            self._rehearse_levels(task, guest, plan, run)
            return
        if (rows := plan.rows(task.statement.values)) is not None:
            self._expect_rows(task, rows)
        elif plan.looks_up_all(task.statement.values):
            self._expect_rows(task, ALL_ROWS)
        self._expect_scans(task, plan)
        self._fetch_upper_levels(task, guest, plan.beside)
        if not plan.is_worth_it:
            self._given_up = task.run, task.begins
            return
        outer = plan.outer_loops(task.statement.values)
        if (outer or plan.is_listed) and (host := self._host()) is not None:
            shared = {root: Begin(loop.is_descending, rowid) for root, (loop, rowid) in outer.items() if loop.is_shared}
            host.hold(list(outer) or [0], shared, task.begins)
        run = self._rehearsed = RehearsedRun(task, plan)
        if len(plan.trees) > 1:
            guest.guess_small_trees(plan.trees)  # the query will look into them
        logger.debug("rehearsing %s", task.statement.sql)
        if roots := guest.missing_of(plan.trees):
            self._fetch(task, run.unasked(guest, roots))
        self._rehearse_levels(task, guest, plan, run)

    def _fetch_upper_levels(self, task: Task, guest: RehearsalSession, roots: Sequence[int]) -> None:
        """Fetch the root pages of trees, and what lies below them, that SQLite would come to one after the other.

        The leaves below come with them as far as that costs less than a round trip.
        """
        if pgnos := guest.missing_of(roots):
            self._fetch(task, pgnos)
        if pgnos := guest.missing_of(guest.below(roots)):
            self._fetch(task, pgnos)
        if below := guest.below(roots):
            guest.guess_small_trees([*roots, *below])

    def _rehearse_levels(self, task: Task, guest: RehearsalSession, plan: Plan, run: RehearsedRun) -> None:
        """Fetch what each rehearsal misses, until it is nothing."""
        most = plan.pages(task.statement.values)
        is_limited = plan.ends_soon(task.statement.values)
        for number in range(MAX_REHEARSALS):
            host = self._host()
            if host is None or self.must_end(task):
                return
            most_seen = run.begin_next(host, guest)
            step = run.step(host, guest, guest.rehearse(most, most_seen))
            del host  # the session may close meanwhile
            if step.waits:
                if not self._wait_until_used(task, guest, most_seen // 4):
                    return
                continue
            missing, whole = list(step.missing), list(step.whole)
            logger.debug("a rehearsal misses %d pages, and %d of trees to be read whole", len(missing), len(whole))
            self._note(task, guest, plan, has_bound=most_seen > 0)
            if missing:
                is_sparing = most_seen > 0 and (run.is_long or len(missing) >= MANY_PAGES)
                self._fetch(task, missing, is_sparing=is_sparing)
                run.refused(guest.to_be_asked_for(missing))
            if whole:
                if not self._fetch_slowly(task, guest, whole):
                    return
            elif not missing or (guest.has_met_a_scan_alone and not run.takes_care_of_scans):
                return
            if not is_limited or number >= LEVELS:
                most = min(most * GROWTH, MOST_PAGES)

    def _note(self, task: Task, guest: RehearsalSession, plan: Plan, *, has_bound: bool) -> None:
        """Note what the last rehearsal shows of the query, beside the pages that it misses."""
        values = task.statement.values
        if plan.shows_rows and plan.rows(values) is None:
            self._expect_rows(task, guest.rows or (ALL_ROWS if plan.looks_up_all(values) else 0))
        if guest.is_exhausted and not has_bound:
            self._given_up = task.run, task.begins

    def _fetch_slowly(self, task: Task, guest: RehearsalSession, pgnos: list[int]) -> bool:
        """Fetch the first of these pages, as many as there is room for once the query has used others.

        False if it does not go on.
        """
        ahead, deadline = guest.replica.pages.ahead, time.monotonic() + PATIENCE_S
        while ahead is not None and not self.must_end(task) and time.monotonic() < deadline:
            room, least = ahead.room()
            if room >= min(least, len(pgnos)):
                self._fetch(task, pgnos[:room], is_sparing=True)
                return True
            self._wait_for_query(LOOK_S)  # it may read more of what came
        return False

    def _wait_until_used(self, task: Task, guest: RehearsalSession, pages: int) -> bool:
        """Wait until the query has used so many of the pages that came, or waits; False if it does not go on."""
        ahead, deadline = guest.replica.pages.ahead, time.monotonic() + PATIENCE_S
        if ahead is None:
            return False
        until = ahead.used_pages + pages
        self._query_waits.clear()
        while not self._query_waits.wait(LOOK_S) and ahead.used_pages < until:
            if self.must_end(task) or time.monotonic() > deadline:
                return False
        return True

    def _expect_rows(self, task: Task, rows: int) -> None:
        host = self._host()
        if host is not None:
            host.expect_rows(task.begins, rows)

    def _expect_scans(self, task: Task, plan: Plan) -> None:
        host = self._host()
        if plan.scans and host is not None and not self.must_end(task):
            host.expect_scans(task.snapshot, plan.scans, task.begins)

    def _guest_for(self, task: Task) -> RehearsalSession | None:
        if self._guest is None and (host := self._host()) is not None:
            self._guest = RehearsalSession(host, self.must_end, task)
        return self._guest

    def _fetch(self, task: Task, pgnos: list[int], *, is_sparing: bool = False) -> None:
        """Fetch these pages, and wait until their requests have ended, or the rehearsal has to."""
        host = self._host()
        if host is None:
            return
        there = threading.Event()
        ahead, planner = host.replica.pages.ahead, host.planner
        del host  # the session may close meanwhile
        if ahead is None:
            return
        self._wait_for_query(FIRST_S)  # it asks for the page that it needs: with that comes the block around it
        if self.must_end(task):  # the session has taken back what it planned: this would stay
            return
        ahead.fetch(task.snapshot, pgnos, planner, there.set, is_sparing=is_sparing)
        deadline = time.monotonic() + PATIENCE_S
        while not there.wait(LOOK_S) and time.monotonic() < deadline and not self.must_end(task):
            pass

    def _wait_for_query(self, seconds: float) -> None:
        """Wait until the query waits for the storage again, for so many seconds at most."""
        self._query_waits.wait(seconds)
        self._query_waits.clear()


_left_behind: list[RehearsalSession | None] = []  # of the process that this one was forked from: never closed


def _is_of_no_rehearsal(record: logging.LogRecord) -> bool:
    """Whether it is not what SQLite says of a rehearsal's statement, which ends early.

    `apsw.ext.log_sqlite` logs that by the root logger with the level ERROR.
    """
    return record.threadName != THREAD_NAME or not hasattr(record, "sqlite_code")


def rehearse(session: Session, find: FindRunning) -> None:
    """Rehearse the statements of a session from here on, which reads ahead."""
    logging.getLogger().addFilter(_is_of_no_rehearsal)
    session.listen(Rehearsals(session, find))
