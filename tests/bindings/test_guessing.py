"""Queries whose next pages are guessed, on a line that carries much in a round trip: fewer trips, bounded bytes."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

import litevfs
from litevfs.bindings.rehearsal import Rehearsals
from litevfs.files.line import Line
from litevfs.pages.guesses import MAX_WRONG
from litevfs.states.snapshot import Snapshot
from tests.bindings import test_rehearsal
from tests.bindings.test_rehearsal import (
    COUNT,
    LIKED,
    MUTUAL,
    PAGE_SIZE,
    POST,
    VALUES,
    reads_of,
    shared_replica,
    snapshot_file,
    trips,
)
from tests.scripted import Script
from tests.support import leave_lines_unmeasured, wait_until

pytestmark = test_rehearsal.pytestmark
network = test_rehearsal.network
TRIP_BYTES = 1_000_000
GUESS_BYTES = TRIP_BYTES // 2


@pytest.fixture(autouse=True)
def fast_line(monkeypatch) -> None:
    """As measured in a data centre; what opening reads stays small."""
    leave_lines_unmeasured(monkeypatch)
    monkeypatch.setattr(Line, "trip_bytes", TRIP_BYTES)
    monkeypatch.setattr("litevfs.files.fetch.likely_head_bytes", lambda file, block_size, free_bytes: block_size)


@pytest.mark.parametrize(("sql", "most"), [(POST, 2), (COUNT, 2), (MUTUAL, 3), (LIKED, 4)])
def test_they_take_few_trips(network, sql, most):
    script, path = network
    assert trips(script, path, sql) <= most


@pytest.mark.parametrize("sql", ["SELECT * FROM posts WHERE id = 1234", COUNT])
def test_a_guess_costs_no_request_more_and_few_bytes(network, sql):
    script, _ = network
    values = VALUES if ":" in sql else ()
    requests, size = reads_of(script, sql, values)
    needed, needed_size = reads_of(script, sql, values, prefetch=False)
    assert requests <= needed
    assert size <= needed_size + GUESS_BYTES


def test_what_is_guessed_is_asked_for_before_a_rehearsal_begins(network, monkeypatch):
    script, _ = network
    asked: list[int] = []  # bytes, each time
    before_wait = Rehearsals.before_wait

    def noting(self: Rehearsals, snapshot: Snapshot, begins: int) -> None:
        asked.append(shared_replica(script.url).pages.blocks.governor.ahead)
        before_wait(self, snapshot, begins)

    monkeypatch.setattr(Rehearsals, "before_wait", noting)
    reads_of(script, "SELECT * FROM posts WHERE id = 1234")
    assert asked
    assert asked[0] > 0


@pytest.mark.parametrize("sql", ["SELECT * FROM posts WHERE id = 1234", COUNT, POST])
def test_nothing_is_guessed_on_a_line_that_carries_little_in_a_trip(network, monkeypatch, sql):
    script, _ = network
    monkeypatch.setattr(Line, "trip_bytes", 8000)
    values = VALUES if ":" in sql else ()
    assert reads_of(script, sql, values)[1] <= reads_of(script, sql, values, prefetch=False)[1] + 8000


def test_leaves_that_look_like_interior_pages_are_guessed_for_a_few_times_only(tmp_path):
    """Of a table with keys far apart, which grew beside another one: 25 pages lie between each two of its leaves."""
    path, leaves = tmp_path / "sparse.db", 80
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            f"PRAGMA page_size={PAGE_SIZE}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
            "CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB); CREATE TABLE other (id INTEGER PRIMARY KEY, b BLOB)"
        )
        with connection:
            for i in range(leaves):
                connection.execute("INSERT INTO t VALUES (?, randomblob(900))", (1_000_000 * i,))
                connection.executemany("INSERT INTO other VALUES (NULL, randomblob(900))", [()] * 25)

    def read(**options: object) -> int:
        script.clear()
        with closing(litevfs.connect(script.url, poll_interval=0, **options)) as connection:
            for i in range(0, leaves, 2):
                assert len(connection.execute("SELECT b FROM t WHERE id = ?", (1_000_000 * i,)).fetchall()) == 1
            blocks = shared_replica(script.url).pages.blocks
            wait_until(lambda: not blocks.under_way.requests, "what is under way")
        return sum(size for _, _, size in script.reads)

    with Script(block_size=test_rehearsal.BLOCK_SIZE) as script:
        script.writer.write(9, 1, 1, snapshot_file(path.read_bytes()), 1)
        needed = read(prefetch=False)
        assert needed < read() <= needed + MAX_WRONG * 40 * PAGE_SIZE
