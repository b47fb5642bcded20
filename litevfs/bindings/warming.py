"""Runs the queries of the option `warm` beside the connection that opens, so that their pages lie in the caches.

Owns the threads and the connections of these queries. They are APSW's, whatever library the opening connection has,
and share its replica: what they read is in the caches of all, and no bytes are requested twice. Opening waits until
SQLite has taken every query, not until one has run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import closing
from dataclasses import replace
from functools import partial

import apsw

from litevfs.bindings.apsw_errors import make_apsw_error
from litevfs.bindings.forks import gate
from litevfs.bindings.guests import connect_guest, end_at_exit
from litevfs.concurrency.futures import settle
from litevfs.concurrency.workers import start_thread
from litevfs.errors import LitevfsError, OptionError, TransientStorageError
from litevfs.live.session import Session

logger = logging.getLogger("litevfs.bindings.warming")

THREAD_NAME = "litevfs-warm"
AT_ONCE = 8
"""Queries of one connection that run at the same time."""
CHECKED_PAGES = 256
"""After so many pages a query looks whether the caches still hold the first of them."""
GRACE_S = 5.0
"""A query whose time is over ends within so long, unless it waits for the storage."""
STEPS_BETWEEN_CHECKS = 10_000
"""Of SQLite's machine, between two looks at the time."""
_WRONG_SQL = apsw.SQLError, apsw.BindingsError


def warm(session: Session) -> None:
    """Start the queries of a session that was opened. They end with it, and after `open_timeout` at the latest.

    Raises OptionError, which names the query, for one that SQLite refuses, and for a statement that is no query.
    """
    warming = Queries(session)
    session.warming = warming
    end_at_exit(warming)
    warming.start()


class _Ended(LitevfsError):
    """A query that need not go on."""

    extendedresult = apsw.SQLITE_INTERRUPT


class Queries:
    """The queries of one connection; see `Warming`. Holds no reference to its session, which ends it."""

    def __init__(self, session: Session) -> None:
        self._queries = split(session.options.warm)
        self._waiting: deque[str] = deque()
        self._stopped = threading.Event()
        self._limit_s = session.options.open_timeout_s
        self._deadline = time.monotonic() + self._limit_s
        self._guests = [_Guest(session, self) for _ in range(min(len(self._queries), AT_ONCE))]
        self._checked: Future[None] = Future()
        self._threads: list[threading.Thread] = []
        self._done = 0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start, and wait until SQLite has taken every query. Raises OptionError."""
        try:
            self._threads.append(start_thread(self._check_and_run, THREAD_NAME))
            self._checked.result(max(0.0, self._deadline - time.monotonic()))
        except (TransientStorageError, FutureTimeoutError) as error:
            logger.warning("warm: the queries are not checked yet: %s", error or f"no schema in {self._limit_s:g} s")

    def stop(self) -> None:
        """See `Warming`."""
        self._stopped.set()

    def wait(self) -> tuple[int, int]:
        """See `Warming`."""
        self.join(self._deadline + GRACE_S - time.monotonic())
        return self._done, len(self._queries)

    def join(self, timeout_s: float) -> None:
        """Wait for the end of all threads, so long at most."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:  # the first one starts the others before it ends
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def must_end(self) -> bool:
        """Whether no query may go on."""
        return self._stopped.is_set() or time.monotonic() > self._deadline

    # --- in the threads -----------------------------------------------------------------------------------------------

    def _check_and_run(self) -> None:
        try:
            with gate.inside(), closing(self._guests[0].connect()) as connection:
                self._queries = [sql for sql in self._queries if _is_query(connection, sql)]
                self._waiting.extend(self._queries)
                self._start_others()
                settle(self._checked, None)
                self._run_all(self._guests[0], connection)
        except OptionError as error:
            settle(self._checked, error)
        except (LitevfsError, apsw.Error) as error:  # of the storage: the connection's own queries will raise it
            self._log("the queries cannot be checked", error)
        finally:
            settle(self._checked, None)

    def _start_others(self) -> None:
        for guest in self._guests[1:]:
            try:
                self._threads.append(start_thread(partial(self._run, guest), THREAD_NAME))
            except TransientStorageError as error:
                logger.info("warm: fewer queries run at once: %s", error)
                return

    def _run(self, guest: _Guest) -> None:
        try:
            with gate.inside(), closing(guest.connect()) as connection:
                self._run_all(guest, connection)
        except (LitevfsError, apsw.Error) as error:
            self._log("a connection for the queries", error)

    def _run_all(self, guest: _Guest, connection: apsw.Connection) -> None:
        while not self.must_end:
            try:
                sql = self._waiting.popleft()
            except IndexError:
                return
            try:
                guest.touched.clear()
                for _ in connection.execute(sql):
                    pass
                guest.check_caches(always=True)
                with self._lock:
                    self._done += 1
            except (LitevfsError, apsw.Error) as error:
                self._log(sql, error)

    def _log(self, what: str, error: Exception) -> None:
        if self._stopped.is_set():
            return
        if isinstance(error, apsw.InterruptError) and time.monotonic() > self._deadline:
            logger.warning("warm: %s: not done within open_timeout (%g s); what was read stays", what, self._limit_s)
        else:
            logger.warning("warm: %s: %s", what, error)


def split(text: str) -> list[str]:
    """The statements of an SQL text, and what is left of one at its end; some may be blank."""
    queries, query = [], ""
    for part in text.split(";"):
        query += f"{part};"
        if apsw.complete(query):
            queries.append(query)
            query = ""
    return [query[:-1].strip() for query in (*queries, query) if query.strip("; \n")]


def _is_query(connection: apsw.Connection, sql: str) -> bool:
    """Let SQLite read the schema and prepare the query. False if there is none. Raises OptionError."""
    is_query: bool | None = None

    def before_it_runs(cursor: apsw.Cursor, _: str, __: apsw.Bindings | None) -> bool:
        nonlocal is_query
        if cursor.has_vdbe:  # else there are comments only
            is_query = cursor.is_readonly and bool(cursor.get_description())
        return False

    cursor = connection.cursor()
    cursor.exec_trace = before_it_runs
    try:
        cursor.execute(sql)
    except apsw.ExecTraceAbort:
        pass
    except _WRONG_SQL as error:
        if isinstance(error, LitevfsError):
            raise
        hint = "a query there takes no parameters" if isinstance(error, apsw.BindingsError) else None
        raise OptionError(f"option warm: {error}: {sql}", hint=hint) from error
    if is_query is False:
        raise OptionError(f"option warm: no query: {sql}", hint="a SELECT")
    return is_query is not None


# --- connections ------------------------------------------------------------------------------------------------------


class _Guest(Session):
    """A session beside the one that opens, for one thread."""

    def __init__(self, host: Session, queries: Queries) -> None:
        self._queries = queries
        self.touched: dict[int, None] = {}  # pages that the query has read, in order
        self._tell = host.on_warm_read
        super().__init__(replace(host.options, warm="", max_staleness_s=None), make_apsw_error, beside=host)

    def read(self, amount: int, offset: int) -> bytes:
        """See `Session.read`. Ends the query when it must end, or when it drives its own pages out of the caches."""
        if self._queries.must_end:
            error = _Ended("the query has no time left, or its connection is closed")
            make_apsw_error(error)
            raise error
        with gate.outside():  # it may wait for the storage
            data = super().read(amount, offset)
        snapshot = self.snapshot
        if snapshot.page_size:
            pgno = offset // snapshot.page_size + 1
            self.touched[pgno] = None
            if self._tell is not None:
                self._tell(snapshot, pgno)
            self.check_caches()
        return data

    def check_caches(self, *, always: bool = False) -> None:
        """End the query if the pages that it has read do not fit the caches."""
        touched = len(self.touched)
        if not touched or not (always or touched % CHECKED_PAGES == 0):
            return
        pages, snapshot = self.replica.pages, self.snapshot
        looked_at = list(self.touched) if always else [next(iter(self.touched))]
        gone = [n for n in looked_at if n <= snapshot.commit and pages.needs_request(snapshot, n)]
        if gone:
            error = _Ended(
                f"its pages do not fit the caches: of {touched} pages read, {len(gone)} or more are gone again",
                hint="a larger cache_size or spill_size, or a cache_dir",
            )
            make_apsw_error(error)
            raise error

    def connect(self) -> apsw.Connection:
        """A connection that reads by this session. Raises what APSW raises."""
        connection = connect_guest(self)
        connection.set_progress_handler(self._is_over, STEPS_BETWEEN_CHECKS)
        return connection

    def _is_over(self) -> bool:
        gate.rest()
        return self._queries.must_end
