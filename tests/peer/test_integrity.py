"""`PRAGMA integrity_check`, rows and size after every kind of event that a replica goes through."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import apsw
import pytest

from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, one, rows, txid_of

QUERY = "SELECT id, v, pad FROM t ORDER BY v, id"
NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) "
INSERT = NUMBERS + "INSERT INTO t (v, pad) SELECT abs(random()) % 1000, hex(randomblob(60)) FROM n"


class World:
    """A primary and its storage, to which events happen."""

    def __init__(self, script: Script, primary: Primary) -> None:
        self.script = script
        self.primary = primary
        self.others: list[Primary] = []
        self.compacted = 0  # level 1 holds TXIDs 1 to this

    def create(self, rows: int = 400) -> None:
        self.primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER, pad TEXT); CREATE INDEX i ON t (v)")
        self.primary.commit(INSERT.format(rows))

    def grow(self) -> None:
        self.primary.commit(INSERT.format(300))

    def update(self) -> None:
        self.primary.commit("UPDATE t SET v = v + 1, pad = hex(randomblob(60)) WHERE id % 3 = 0")

    def shrink(self) -> None:
        """Most rows go; with auto_vacuum=1 their pages do, too."""
        self.primary.commit("DELETE FROM t WHERE id % 4 > 0", may_change_nothing=True)

    def incremental_vacuum(self) -> None:
        self.primary.commit("PRAGMA incremental_vacuum(7)", may_change_nothing=True)

    def vacuum(self) -> None:
        self.primary.commit("VACUUM")

    def compaction(self) -> None:
        """Everything that level 1 does not have yet becomes one file of it, but for the newest transaction."""
        if self.primary.txid > self.compacted + 1:
            self.primary.compact(1, self.compacted + 1, self.primary.txid - 1)
            self.compacted = self.primary.txid - 1

    def retention(self) -> None:
        """Level 0 loses what level 1 has."""
        self.compaction()
        self.primary.delete(0, range(1, self.compacted + 1))

    def snapshot(self) -> None:
        """A full snapshot; what it covers goes from all other levels, older snapshots too."""
        self.primary.compact(9, 1, self.primary.txid)
        for level in (1, 2, 3):
            self.primary.delete(level)
        self.primary.delete(9, range(1, self.primary.txid))
        self.primary.delete(0, range(1, self.primary.txid))
        self.compacted = self.primary.txid

    def replacement(self) -> None:
        """Another database in the same place, whose TXIDs begin again."""
        self.primary.delete_all()
        other = Primary(self.script.writer, page_size=self.primary.page_size, auto_vacuum=2)
        other.start_ms = self.primary.start_ms + 3_600_000
        self.others.append(other)
        self.primary, self.compacted = other, 0
        self.create(150)


EVENTS: dict[str, Callable[[World], None]] = {
    event.__name__: event
    for event in (
        World.grow,
        World.update,
        World.shrink,
        World.incremental_vacuum,
        World.vacuum,
        World.compaction,
        World.retention,
        World.snapshot,
        World.replacement,
    )
}


def assert_sound(connection: apsw.Connection, primary: Primary) -> None:
    one(connection, "PRAGMA litestream_poll")
    assert txid_of(connection) == primary.txid
    assert rows(connection, "PRAGMA integrity_check") == [("ok",)]
    assert rows(connection, QUERY) == primary.rows(QUERY)
    assert one(connection, "PRAGMA page_count") * primary.page_size == len(primary.images[primary.txid])


@pytest.fixture(params=[0, 1 << 16], ids=["local", "remote"])
def script(request: pytest.FixtureRequest) -> Iterator[Script]:
    with Script(block_size=request.param) as script:
        yield script


@pytest.fixture(params=[0, 1, 2], ids=["no vacuum", "auto_vacuum", "incremental"])
def world(request: pytest.FixtureRequest, script: Script) -> Iterator[World]:
    with Primary(script.writer, page_size=1024, auto_vacuum=request.param) as primary:
        world = World(script, primary)
        world.create()
        yield world
        for other in world.others:
            other.close()


@pytest.mark.plan("L21", "L22")
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("hydrated", [False, True], ids=["", "hydrated"])
def test_integrity_holds_after(world: World, event: str, hydrated: bool) -> None:
    world.shrink()  # so that there is something to vacuum
    with connected(world.script.url, poll_interval=0, hydration_enabled=hydrated) as connection:
        assert_sound(connection, world.primary)
        for _ in range(2):
            EVENTS[event](world)
            assert_sound(connection, world.primary)
        with connected(world.script.url, txid=f"{world.primary.txid:x}") as fixed:  # nothing is cached there
            assert rows(fixed, "PRAGMA integrity_check") == [("ok",)]
            assert rows(fixed, QUERY) == world.primary.rows(QUERY)


@pytest.mark.plan("L21")
@pytest.mark.parametrize("seed", range(3))
def test_integrity_holds_after_any_sequence_of_events(world: World, seed: int) -> None:
    """The reader looks only now and then: for it, several events are one."""
    rng = random.Random(seed)
    with connected(world.script.url, poll_interval=0) as connection:
        for _ in range(25):
            name = rng.choices(list(EVENTS), [5, 5, 3, 3, 2, 4, 4, 2, 0.5])[0]
            EVENTS[name](world)
            if rng.random() < 0.6:
                assert_sound(connection, world.primary)
        assert_sound(connection, world.primary)


@pytest.mark.plan("E03")
@pytest.mark.parametrize("way", ["poll", "time travel"])
def test_a_replacement_with_the_same_schema_version_is_not_read_with_the_old_schema(script: Script, way: str) -> None:
    """SQLite keeps a schema as long as its version number (bytes 40-43 of page 1) is the same, which tells nothing."""
    with Primary(script.writer) as old, Primary(script.writer) as new:
        old.commit("CREATE TABLE t (a, b, c)")
        old.commit("INSERT INTO t VALUES ('old a', 'old b', 'old c')")
        with connected(script.url, poll_interval=0) as connection:
            version = one(connection, "PRAGMA schema_version")
            assert rows(connection, "SELECT a FROM t") == [("old a",)]
            assert version == one(old.con, "PRAGMA schema_version")
            old.delete_all()
            new.start_ms = old.start_ms + 3_600_000
            new.commit("CREATE TABLE t (c, b, a)")
            new.commit("INSERT INTO t VALUES ('new c', 'new b', 'new a')")
            assert one(new.con, "PRAGMA schema_version") == version
            if way == "poll":
                one(connection, "PRAGMA litestream_poll")
            else:
                one(connection, "PRAGMA litestream_time = '2026-01-01T01:00:02.5Z'")
            assert rows(connection, "SELECT a FROM t") == [("new a",)]
            assert rows(connection, "SELECT * FROM t") == new.rows("SELECT * FROM t")
            assert rows(connection, "PRAGMA integrity_check") == [("ok",)]
        with connected(script.url, poll_interval=0) as connection:
            assert one(connection, "PRAGMA schema_version") == version
