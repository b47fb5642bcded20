"""Opening again: what an earlier process knew is checked and followed, not found a second time."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from litevfs.live.registry import registry
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.states.record import pack, unpack
from tests.primary import Primary
from tests.scripted import ALL_LEVELS, Script
from tests.states.support import pages_are_right
from tests.support import connected, one, rows, wait_until

pytestmark = pytest.mark.slow

FILL = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
    INSERT INTO t SELECT randomblob(3000) FROM n
"""


@pytest.fixture
def world() -> Iterator[tuple[Primary, Script]]:
    """A remote replica of a snapshot of 1.2 MB and some small files."""
    with Script(block_size=1 << 16, lists_levels=True) as script, Primary(script.writer) as primary:
        primary.run("CREATE TABLE t(x)")
        primary.commit(FILL)
        primary.compact(9, 1, 2)
        for _ in range(3):
            primary.commit("INSERT INTO t VALUES('small')")
        yield primary, script


def opened(script: Script, folder: Path, **options: Any) -> Replica:
    replica = Replica(Options(replica_url=script.url, cache_dir=str(folder), **options))
    replica.open(20)
    return replica


def record(folder: Path) -> Path:
    return next(folder.glob("*.state"))


def is_idle(folder: Path) -> bool:
    return not list(folder.rglob("*.tmp"))


@pytest.mark.plan("L12")
def test_a_known_replica_opens_and_answers_with_one_listing_and_no_read(world, tmp_path):
    _, script = world
    query = "SELECT count(*) FROM t WHERE x = 'small'"
    with connected(script.url, cache_dir=tmp_path, poll_interval=0) as connection:
        assert one(connection, query) == 3
        wait_until(lambda: not any(shared.replica.fetcher.disk_cache._waiting for shared in registry.shared.values()))
    wait_until(lambda: is_idle(tmp_path), "the last block")
    script.clear()
    with connected(script.url, cache_dir=tmp_path, poll_interval=0) as connection:
        assert one(connection, query) == 3
    assert dict(script.lists) == {ALL_LEVELS: 1}
    assert script.reads == []


@pytest.mark.plan("L12")
def test_what_is_new_costs_a_read_each(world, tmp_path):
    primary, script = world
    opened(script, tmp_path).close()
    for _ in range(2):
        primary.commit("INSERT INTO t VALUES('new')")
    script.clear()
    replica = opened(script, tmp_path)
    assert dict(script.lists) == {ALL_LEVELS: 1}
    assert len(script.reads) == 2
    assert replica.snapshot.txid == 7
    assert pages_are_right(primary, replica)
    replica.close()


def test_a_replica_that_was_compacted_meanwhile_is_followed(world, tmp_path):
    primary, script = world
    opened(script, tmp_path).close()
    primary.commit("INSERT INTO t VALUES('new')")
    primary.compact(1, 3, 6)
    script.writer.delete(script.writer.list_files(0))
    replica = opened(script, tmp_path)
    assert replica.snapshot.txid == 6
    assert pages_are_right(primary, replica)
    replica.close()


def test_a_replaced_replica_is_read_anew(world, tmp_path):
    _, script = world
    opened(script, tmp_path).close()
    for level in (0, 9):
        script.writer.delete(script.writer.list_files(level))
    with Primary(script.writer) as other:
        other.start_ms += 12_345
        other.commit("CREATE TABLE other(y)")
        for _ in range(6):
            other.commit("INSERT INTO other VALUES(randomblob(2000))")
        replica = opened(script, tmp_path)
        assert pages_are_right(other, replica)
        replica.close()


def test_a_replica_that_was_set_back_opens_at_what_it_holds(world, tmp_path):
    primary, script = world
    opened(script, tmp_path).close()
    script.writer.delete([file for file in script.writer.list_files(0) if file.max_txid > 3])
    replica = opened(script, tmp_path)
    assert replica.snapshot.txid == 3
    assert pages_are_right(primary, replica)
    replica.close()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other replica", "older version"])
def test_a_record_that_is_of_no_use_costs_only_what_opening_costs(world, tmp_path, damage):
    primary, script = world
    opened(script, tmp_path).close()
    path = record(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "empty":
        data = bytearray()
    elif damage == "other replica":
        known = unpack(bytes(data), script.url)
        assert known is not None
        data = bytearray(pack(known, "scripted://another"))
    else:
        data[7] ^= 1
    path.write_bytes(data)
    replica = opened(script, tmp_path)
    assert pages_are_right(primary, replica)
    replica.close()


def test_files_that_were_not_verified_are_not_trusted_where_all_have_to_be(world, tmp_path):
    _, script = world
    opened(script, tmp_path).close()
    script.clear()
    replica = opened(script, tmp_path, verify=True)
    assert len(script.reads) > 4 or replica.status().disk_cache_hits > 0
    assert replica.snapshot.chunks[0].checks[0]
    replica.close()


def test_a_record_says_again_what_it_was_told(world, tmp_path):
    _, script = world
    replica = opened(script, tmp_path)
    known = replica._follower.known(replica.snapshot, is_verified=False)
    again = unpack(pack(known, script.url), script.url)
    assert again is not None
    assert (again.anchor, again.seen, again.times) == (known.anchor, known.seen, known.times)
    old, new = known.snapshot, again.snapshot
    assert (new.txid, new.commit, new.files, dict(new.uses)) == (old.txid, old.commit, old.files, dict(old.uses))
    assert [new.place(pgno) for pgno in range(1, new.commit + 1)] == [
        old.place(pgno) for pgno in range(1, old.commit + 1)
    ]
    assert [new.version(pgno) for pgno in range(1, 9)] == [old.version(pgno) for pgno in range(1, 9)]
    replica.close()


# --- the hydrated file ------------------------------------------------------------------------------------------------


def hydrated(script: Script, path: Path, **options: Any) -> apsw.Connection:
    return connected(script.url, hydration_enabled=True, hydration_path=path, poll_interval=0, cache_size=0, **options)


def hydrate(script: Script, path: Path) -> None:
    with hydrated(script, path) as connection:
        wait_until(lambda: one(connection, "PRAGMA litestream_hydration_progress") == "100.0", "hydration", 30)


def read_bytes(script: Script) -> int:
    return sum(size or 0 for _, _, size in script.reads)


@pytest.mark.plan("L12")
def test_the_next_process_uses_the_hydrated_file_and_fetches_what_changed(world, tmp_path):
    primary, script = world
    path = tmp_path / "app.db"
    hydrate(script, path)
    primary.commit("UPDATE t SET x = randomblob(3000) WHERE rowid = 200")
    script.clear()
    with hydrated(script, path) as connection:
        wait_until(lambda: one(connection, "PRAGMA litestream_hydration_progress") == "100.0", "hydration", 30)
        assert rows(connection, "SELECT count(*), sum(length(x)) FROM t") == primary.rows(
            "SELECT count(*), sum(length(x)) FROM t"
        )
    assert dict(script.lists) == {ALL_LEVELS: 1}
    assert read_bytes(script) < 100_000  # of 1.2 MB


@pytest.mark.parametrize("damage", ["a page", "cut", "gone", "record"])
def test_a_hydrated_file_is_verified_before_it_is_trusted(world, tmp_path, damage):
    primary, script = world
    path = tmp_path / "app.db"
    hydrate(script, path)
    if damage == "a page":
        with path.open("r+b") as file:
            file.seek(50 * 4096 + 100)
            file.write(b"damaged")
    elif damage == "cut":
        with path.open("r+b") as file:
            file.truncate(100_000)
    elif damage == "gone":
        path.unlink()
    else:
        Path(f"{path}-litevfs").write_bytes(b"of no use")
    with hydrated(script, path) as connection:
        wait_until(lambda: one(connection, "PRAGMA litestream_hydration_progress") == "100.0", "hydration", 30)
        wanted = primary.rows("SELECT rowid, x FROM t")
        assert rows(connection, "SELECT rowid, x FROM t") == wanted


def test_the_file_of_a_replaced_replica_is_filled_anew(world, tmp_path):
    _, script = world
    path = tmp_path / "app.db"
    hydrate(script, path)
    for level in (0, 9):
        script.writer.delete(script.writer.list_files(level))
    with Primary(script.writer) as other:
        other.start_ms += 12_345
        other.commit("CREATE TABLE t(x)")
        other.commit(FILL)
        for _ in range(6):
            other.commit("INSERT INTO t VALUES(randomblob(2000))")
        with hydrated(script, path) as connection:
            wait_until(lambda: one(connection, "PRAGMA litestream_hydration_progress") == "100.0", "hydration", 30)
            assert rows(connection, "SELECT rowid, x FROM t") == other.rows("SELECT rowid, x FROM t")


KILLED = """
import sys, time, litevfs
from litevfs.pages import hydration
hydration.SAVE_PAUSE_S = 0.0
connection = litevfs.connect(sys.argv[1], hydration_enabled=True, hydration_path=sys.argv[2], poll_interval="5ms")
print("open", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.plan("L12")
def test_a_process_killed_while_it_hydrates_leaves_a_file_that_is_not_trusted_too_far(tmp_path):
    path = tmp_path / "app.db"
    with Primary(FileReplicaClient(tmp_path / "r")) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.commit(FILL)
        for kill in range(3):
            command = [sys.executable, "-c", KILLED, f"file://{tmp_path}/r", str(path)]
            child = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert child.stdout is not None
            assert child.stdout.readline() == b"open\n"
            for _ in range(5):
                primary.commit("UPDATE t SET x = randomblob(3000) WHERE abs(random()) % 10 = 0")
            threading.Event().wait(0.03 * kill)
            child.kill()
            child.wait()
            child.stdout.close()
        with connected(
            f"file://{tmp_path}/r", hydration_enabled=True, hydration_path=path, poll_interval=0, cache_size=0
        ) as connection:
            wanted = primary.rows("SELECT rowid, x FROM t")
            assert rows(connection, "SELECT rowid, x FROM t") == wanted
            wait_until(lambda: one(connection, "PRAGMA litestream_hydration_progress") == "100.0", "hydration", 30)
            assert rows(connection, "SELECT rowid, x FROM t") == wanted
        primary.client.close()
    assert path.stat().st_size == len(primary.images[primary.txid])
    assert path.read_bytes()[4096:] == primary.images[primary.txid][4096:]
