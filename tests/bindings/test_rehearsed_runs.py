"""Joins that go on for long, with caches that hold a part of what they read: few round trips, few bytes, right rows."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import apsw
import pytest

import litevfs
from litevfs.pages.reads import CALM, WatchedReads
from litevfs.pages.watcher import Watcher
from tests.bindings.test_rehearsal import BLOCK_SIZE, PAGE_SIZE, Tides, answer, reads_of, snapshot_file
from tests.scripted import Script

T = TypeVar("T")

pytestmark = pytest.mark.usefixtures("followed")

ORDERS, USERS = 1500, 6000
JOINS = {
    "by rowid": "SELECT count(*), sum(length(bio)) FROM orders o JOIN users u ON u.id = o.user_id",
    "from the end on": "SELECT o.id, length(u.bio) FROM orders o JOIN users u ON u.id = o.user_id ORDER BY o.id DESC",
    "by an index": "SELECT count(*), sum(length(bio)) FROM orders o JOIN users u ON u.name = o.user_name",
    "from an index on": (
        "SELECT count(*), sum(length(u.bio)) FROM orders o INDEXED BY by_amount JOIN users u ON u.id = o.user_id "
        "WHERE amount BETWEEN 10 AND 980"
    ),
    "by two": (
        "SELECT sum(length(bio)) FROM (SELECT user_id AS id FROM orders WHERE id % 2 UNION ALL "
        "SELECT user_id FROM returns) JOIN users USING (id)"
    ),
    "itself": "SELECT count(*), sum(length(b.bio)) FROM users a JOIN users b ON b.id = a.boss WHERE a.id < 1500",
    "itself from the end on": (
        "SELECT a.id, length(b.bio) FROM users a JOIN users b ON b.id = a.boss WHERE a.id > 4500 ORDER BY a.id DESC"
    ),
    "far from leaf to leaf": (
        "SELECT count(*), sum(length(e.bio)) FROM orders o INDEXED BY by_amount JOIN users u ON u.id = o.user_id "
        "CROSS JOIN users b ON b.id = u.boss CROSS JOIN users c ON c.id = b.boss CROSS JOIN users d ON d.id = c.boss "
        "CROSS JOIN users e ON e.id = d.boss WHERE amount BETWEEN 100 AND 300"
    ),
    "itself from the middle on": (
        "SELECT a.id, length(b.bio) FROM users a JOIN users b ON b.id = a.boss WHERE a.id > 3000 AND a.id < 4500"
    ),
    "itself from the middle back": (
        "SELECT a.id, length(b.bio) FROM users a JOIN users b ON b.id = a.boss WHERE a.id <= 4500 AND a.id > 3000 "
        "ORDER BY a.id DESC"
    ),
    "optional": "SELECT count(*), sum(length(bio)) FROM orders o LEFT JOIN users u ON u.id = o.user_id AND u.id > 9",
}
SOAKED = {"from the end on", "itself from the end on", "itself from the middle back", "by two", "optional"}
"""Joins that take the steps of others, in another order."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Iterator[tuple[Script, Path]]:
    """A remote replica whose users take more room than the smallest cache has, and its database."""
    path = tmp_path_factory.mktemp("shop") / "shop.db"
    rng = random.Random(1)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(f"PRAGMA page_size={PAGE_SIZE}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
        connection.execute(
            "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT, bio BLOB, boss INTEGER);"
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, user_id INTEGER, user_name TEXT, amount INTEGER, note TEXT);"
            "CREATE TABLE returns (id INTEGER PRIMARY KEY, user_id INTEGER);"
        )
        with connection:
            bios = ((i, f"user{i}", rng.randbytes(800), i * 7919 % USERS) for i in range(USERS))
            connection.executemany("INSERT INTO users VALUES (?, ?, ?, ?)", bios)
            for i, user in enumerate(rng.randrange(USERS) for _ in range(ORDERS)):
                row = i, user, f"user{user}", i * 7919 % 1000, rng.randbytes(20).hex()
                connection.execute("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", row)
            connection.execute("INSERT INTO returns SELECT id, user_id FROM orders WHERE id % 3 = 0")
            connection.execute(
                "CREATE INDEX by_name ON users (name); CREATE INDEX by_amount ON orders (amount, user_id)"
            )
        connection.execute("VACUUM")
    with Script(block_size=BLOCK_SIZE) as script:
        script.writer.write(9, 1, 1, snapshot_file(path.read_bytes()), 1)
        yield script, path


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.soak if n in SOAKED else ()) for n in JOINS])
@pytest.mark.slow
def test_the_look_ups_of_a_long_join_go_side_by_side_to_its_end(shop, name):
    script, path = shop
    with closing(litevfs.connect(script.url, poll_interval=0, cache_size="1MB")) as connection:
        list(connection.execute("SELECT count(*) FROM sqlite_schema"))
        with Tides(script, script.url) as tides:
            rows = list(connection.execute(JOINS[name]))
    assert rows == answer(path, JOINS[name])
    assert tides.count < ORDERS / 12


@pytest.mark.parametrize(("cache", "share"), [("1MB", 2.5), ("64MB", 1.5)])
@pytest.mark.slow
def test_a_long_join_reads_few_bytes_twice(shop, cache, share):
    script, path = shop
    size = path.stat().st_size
    _, came = reads_of(script, JOINS["by rowid"], cache_size=cache)
    assert came < share * size


def test_rows_below_an_interior_page_that_is_missing_are_found(shop, caplog):
    script, path = shop
    sql = (
        "SELECT count(*), sum(r.user_id) FROM users u JOIN returns r ON r.id = u.boss WHERE u.name BETWEEN 'u' AND 'v'"
    )
    with (
        caplog.at_level(logging.DEBUG, "litevfs.bindings.rehearsal"),
        closing(litevfs.connect(script.url, poll_interval=0)) as connection,
    ):
        rows = list(connection.execute(sql.replace("users u", "users u INDEXED BY by_name")))
    assert rows == answer(path, sql)
    assert "misses" in caplog.text
    assert "malformed" not in caplog.text


def test_look_ups_of_what_is_in_memory_are_not_followed(shop, monkeypatch):
    script, path = shop
    read, followed, counts = WatchedReads.read, Watcher.before_read, Counter[str]()

    def counted(name: str, method: Callable[..., T]) -> Callable[..., T]:
        def call(*args: object) -> T:
            counts[name] += 1
            return method(*args)

        return call

    monkeypatch.setattr(WatchedReads, "read", counted("read", read))
    monkeypatch.setattr(Watcher, "before_read", counted("followed", followed))
    with closing(litevfs.connect(script.url, poll_interval=0, cache_size="64MB")) as connection:
        connection.execute("PRAGMA cache_size=50")
        for _ in range(2):
            counts.clear()
            assert list(connection.execute(JOINS["by rowid"])) == answer(path, JOINS["by rowid"])
    assert counts["read"] > 1200
    assert counts["followed"] < 2 * CALM
