"""Whatever a connection is asked between and during its statements, each statement sees one state.

SQLite keeps pages from one transaction to the next, and locking modes, shared caches, backups and open cursors say when
it asks whether these are still good. Random courses, at both doors that SQLite has.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from random import Random
from typing import Any
from urllib.parse import quote

import apsw
import pytest

import litevfs
from litevfs.errors import LitevfsError
from tests.primary import Primary
from tests.scripted import Script
from tests.support import numbers

ROWS = 1500
STEPS = 80
ERRORS = (apsw.Error, sqlite3.Error, LitevfsError)
PARAMETERS = ("", "", "&cache=shared", "&nolock=1", "&cache_size=100KB", "&prefetch=false")


class Course:
    """A connection to a replica of which every row has the same number in each state, and what it is asked."""

    def __init__(self, door: str, random: Random, script: Script, primary: Primary) -> None:
        self._random, self._primary, self._door = random, primary, door
        self._uri = f"file:x.db?vfs=litestream&replica_url={quote(script.url)}&poll_interval=0"
        self._uri += random.choice(PARAMETERS)
        is_attached = random.random() < 0.4
        self._schema = "r." if is_attached else "main."
        self.connection = self._opened("file::memory:" if is_attached else self._uri)
        if is_attached:
            self.connection.execute("ATTACH ? AS r", (self._uri,))
        self.connection.execute(f"PRAGMA {self._schema}cache_size = {random.choice((10, 10, 2000))}")  # pages
        self._begun: tuple[list[int], Iterator[Any]] | None = None
        self.done = 0

    def _opened(self, uri: str) -> Any:
        if self._door == "apsw":
            flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
            return apsw.Connection(uri, flags=flags)
        return sqlite3.connect(uri, uri=True, isolation_level=None)

    def step(self) -> None:
        """One question, or a commit of the primary; errors are answers, too."""
        steps: tuple[Callable[[], None], ...] = (
            self.commit, self.ask, self.ask, self.travel, self.switch_lock, self.switch_lock, self.bound, self.scan,
            self.scan, self.begin_scan, self.end_scan, self.back_up, self.connect_another,
        )  # fmt: skip
        with suppress(*ERRORS):
            self._random.choice(steps)()
            self.done += 1

    def commit(self) -> None:
        self._primary.commit("UPDATE t SET n = n + 1")

    def ask(self) -> None:
        self._run(f"PRAGMA {self._schema}litestream_{self._random.choice(('txid', 'poll', 'status'))}")

    def travel(self) -> None:
        txid = self._random.randrange(2, self._primary.txid + 1)
        when = self._random.choice((f"2026-01-01T00:{txid // 60:02d}:{txid % 60:02d}Z", "latest"))
        self._run(f"PRAGMA {self._schema}litestream_time = '{when}'")

    def switch_lock(self) -> None:
        mode = self._random.choice(("EXCLUSIVE", "NORMAL"))
        self._run(f"PRAGMA {self._random.choice(('', self._schema))}locking_mode = {mode}")

    def bound(self) -> None:
        self._run(self._random.choice(("BEGIN", "COMMIT")))

    def scan(self) -> None:
        self._check(self.connection, self._schema, self._random.choice(("", " INDEXED BY tn WHERE n > 0")))

    def begin_scan(self) -> None:
        cursor = iter(self.connection.execute(f"SELECT n FROM {self._schema}t"))
        self._begun = [next(cursor)[0] for _ in range(self._random.randrange(1, 900))], cursor

    def end_scan(self) -> None:
        if self._begun is not None:
            (seen, cursor), self._begun = self._begun, None
            assert len({*seen, *(row[0] for row in cursor)}) == 1

    def back_up(self) -> None:
        count = self._random.randrange(3, 60)
        if self._door == "apsw":
            with closing(apsw.Connection(":memory:")) as copy:
                with copy.backup("main", self.connection, self._schema[:-1]) as backup:
                    while not backup.done:
                        backup.step(count)
                        self._between()
                self._check(copy)
        else:
            with closing(sqlite3.connect(":memory:")) as copy:
                self.connection.backup(
                    copy, pages=count, name=self._schema[:-1], sleep=0, progress=lambda *_: self._between()
                )
                self._check(copy)

    def connect_another(self) -> None:
        with closing(self._opened(self._uri)) as another:
            self._check(another)

    def _between(self) -> None:
        if self._random.random() < 0.3:
            with suppress(*ERRORS):
                self._random.choice((self.ask, self.travel, self.commit))()

    def _check(self, connection: Any, schema: str = "", where: str = "") -> None:
        found = [row[0] for row in connection.execute(f"SELECT n FROM {schema}t{where}").fetchall()]
        assert len(found) == ROWS
        assert len(set(found)) == 1, sorted(set(found))

    def _run(self, sql: str) -> None:
        self.connection.execute(sql).fetchall()


@pytest.mark.plan("L01")
@pytest.mark.parametrize("door", ["sqlite3", "apsw"])
@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.soak) for n in range(3, 200))])
def test_a_statement_sees_one_state_whatever_is_asked_meanwhile(door, seed):
    litevfs.register()
    litevfs.register_stdlib()
    random = Random(seed)
    with Script(block_size=random.choice((0, 4096))) as script, Primary(script.writer, page_size=1024) as primary:
        primary.commit("CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, pad); CREATE INDEX tn ON t(n)")
        primary.commit(f"INSERT INTO t SELECT value, 2, hex(zeroblob(20)) FROM {numbers(ROWS)}")
        course = Course(door, random, script, primary)
        with closing(course.connection):
            for _ in range(STEPS):
                course.step()
            course._begun = None
        assert course.done > STEPS / 2
