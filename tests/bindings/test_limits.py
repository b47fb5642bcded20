"""Look-ups of a query that a LIMIT ends: requests for about as many rows as it lets through, at each door."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

import litevfs
from litevfs.files import line
from litevfs.live.session import SHARED, UNLOCKED, Session
from litevfs.options import Options
from tests.bindings.test_rehearsal import BLOCK_SIZE, PAGE_SIZE, Tides, rehearsing, shared_replica, snapshot_file
from tests.scripted import Script
from tests.support import wait_until

pytestmark = pytest.mark.usefixtures("followed")

BATCHES, ROWS_PER_BATCH = 100, 200
BY_BATCH = "SELECT id, note FROM orders WHERE batch = 41"
LIMITED = {
    "literal": (f"{BY_BATCH} LIMIT 20", ()),
    "parameter": (f"{BY_BATCH} LIMIT ?", (20,)),
    "named": (f"{BY_BATCH} LIMIT :most", {"most": 20}),
    "descending": (f"{BY_BATCH} ORDER BY id DESC LIMIT 20", ()),
    "offset": (f"{BY_BATCH} LIMIT 20 OFFSET 40", ()),
    "range": (f"{BY_BATCH} AND id BETWEEN 8000 AND 9999", ()),
    "range descending": (f"{BY_BATCH} AND id BETWEEN ? AND ? ORDER BY id DESC", (8000, 9999)),
    "subquery": (f"SELECT count(*), max(note) FROM ({BY_BATCH} LIMIT 20)", ()),
}
MOST = 35
"""Requests for 20 rows: a leaf for each, and the pages above them."""


@pytest.fixture(scope="module")
def orders(tmp_path_factory) -> Iterator[tuple[Script, Path]]:
    """A remote replica in which the rows of each batch lie scattered, each on a leaf of its own, and its database."""
    path = tmp_path_factory.mktemp("orders") / "orders.db"
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(f"PRAGMA page_size={PAGE_SIZE}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, batch INTEGER, note TEXT)")
        rng = random.Random(1)
        rows = ((i, i % BATCHES, rng.randbytes(60).hex()) for i in range(BATCHES * ROWS_PER_BATCH))
        with connection:
            connection.executemany("INSERT INTO orders VALUES (?, ?, ?)", rows)
            connection.execute("CREATE INDEX orders_by_batch ON orders (batch)")
    with Script(block_size=BLOCK_SIZE) as script:
        script.writer.write(9, 1, 1, snapshot_file(path.read_bytes()), 1)
        yield script, path


@pytest.fixture
def no_gaps(monkeypatch) -> None:
    """No request reads over a gap, so that each page that lies alone takes one."""
    monkeypatch.setattr(line, "MIN_GAP_BYTES", 0)
    monkeypatch.setattr(line, "MAX_GAP_BYTES", 0)


def _requests(script: Script, path: Path, connect: Callable[..., Any], sql: str, values: object) -> tuple[int, int]:
    """(requests, round trips that follow each other) of a query on a fresh connection, until all have come."""
    with closing(connect(script.url, poll_interval=0)) as connection:
        list(connection.execute("SELECT count(*) FROM sqlite_schema"))
        script.clear()
        with Tides(script, script.url) as tides:
            rows = [tuple(row) for row in connection.execute(sql, values)]
        blocks = shared_replica(script.url).pages.blocks
        wait_until(lambda: not rehearsing() and not blocks.under_way.requests, "what is under way")
        with closing(sqlite3.connect(path)) as local:
            assert rows == local.execute(sql, values).fetchall()
        return len(script.reads), tides.count


@pytest.mark.parametrize("connect", [litevfs.connect, litevfs.connect_stdlib], ids=["apsw", "sqlite3"])
@pytest.mark.parametrize("form", LIMITED)
@pytest.mark.usefixtures("no_gaps")
def test_a_limit_costs_requests_for_its_rows_alone(orders, connect, form):
    requests, trips = _requests(*orders, connect, *LIMITED[form])
    assert 10 <= requests <= MOST
    assert trips <= 7


@pytest.mark.usefixtures("no_gaps")
def test_rows_that_a_query_rejects_are_made_up_for(orders):
    few, trips = _requests(*orders, litevfs.connect, f"{BY_BATCH} AND id % 1000 < 500 LIMIT 20", ())
    assert trips <= 10
    assert few <= 3 * MOST


@pytest.mark.usefixtures("no_gaps")
def test_what_is_planned_and_has_not_been_asked_for_ends_with_its_query(orders, monkeypatch):
    script, path = orders
    monkeypatch.setattr(line, "MIN_AT_ONCE", 8)
    monkeypatch.setattr(line, "MAX_AT_ONCE", 8)
    gate = threading.Event()
    with closing(Session(Options(replica_url=script.url, poll_interval_s=0))) as session:
        script.clear()
        script.on_read = lambda _file, _offset, data: (gate.wait(30), data)[1]
        blocks, snapshot = session.replica.pages.blocks, session.snapshot
        try:
            session.lock(SHARED)
            waited = threading.Event()
            session.replica.pages.ahead.fetch(snapshot, list(range(100, 900, 16)), session.planner, waited.set)
            wait_until(lambda: len(script.reads) == 8, "requests")
            assert len(blocks.under_way.requests) > 40
            session.unlock(UNLOCKED)
            assert len(blocks.under_way.requests) == 8
        finally:
            gate.set()
            script.on_read = None
        assert waited.wait(30)
        session.lock(SHARED)
        assert session.read(PAGE_SIZE, 899 * PAGE_SIZE) == path.read_bytes()[899 * PAGE_SIZE : 900 * PAGE_SIZE]
        session.unlock(UNLOCKED)
        wait_until(lambda: not blocks.under_way.requests, "what is under way")
    assert len(script.reads) <= 8 + 1
