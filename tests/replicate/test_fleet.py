"""Many databases in one process: all are replicated in a few threads, come and go, and none delays another."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate.config.model import DatabaseEntry, Place
from litevfs.replicate.fleet import Fleet
from litevfs.replicate.marks import state_folder
from litevfs.replicate.upkeep import Upkeep
from tests.replicate.support import rebuilt
from tests.support import wait_until

pytestmark = pytest.mark.slow

QUICK: dict[str, Any] = {"sync_interval_s": 0.05, "lease_ttl_s": None}


def make(path: Path, rows: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (a)")
    db.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(rows)])
    db.commit()
    db.close()
    return path


def rows_of(replica: Path) -> int:
    """The rows of t in a replica; -1 while there is none."""
    client = FileReplicaClient(replica)
    if not (replica / "ltx" / "0").exists() or not client.list_files(0):
        return -1
    db = sqlite3.connect(":memory:")
    data = rebuilt(client)
    db.deserialize(data[:18] + b"\1\1" + data[20:])
    (count,) = db.execute("SELECT count(*) FROM t").fetchone()
    db.close()
    return int(count)


def insert(path: Path, rows: int = 1) -> None:
    db = sqlite3.connect(path, timeout=30)
    db.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(rows)])
    db.commit()
    db.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tenants").mkdir()
    return tmp_path / "tenants"


@pytest.fixture
def fleet_of(folder: Path, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Makes fleets of the folder's databases; they are closed at the end."""
    fleets: list[Fleet] = []

    def make_fleet(*, watch: bool = False, **options: Any) -> Fleet:
        place = Place(str(tmp_path / "replicas"))
        entry = DatabaseEntry(folder, (place,), "*.db", recursive=True, watch=watch, options=QUICK | options)
        fleets.append(Fleet([entry], watch_interval_s=0.05))
        return fleets[-1]

    yield make_fleet
    for fleet in fleets:
        fleet.close(20)


@pytest.fixture
def watched(fleet_of) -> Fleet:
    return fleet_of(watch=True)


def test_databases_of_a_folder_share_a_few_threads(watched: Fleet, folder: Path, tmp_path: Path):
    before = threading.active_count()
    paths = [make(folder / f"{n % 3}" / f"{n}.db") for n in range(60)]
    (folder / "notes.txt").write_text("not a database")
    watched.start()
    replicas = [tmp_path / "replicas" / path.relative_to(folder) for path in paths]
    wait_until(lambda: all(one.replicator and one.replicator.status.uploaded_txid for one in watched.members.values()))
    assert sorted(watched.members) == sorted(paths)
    assert threading.active_count() - before <= 45
    for path in paths[::7]:
        insert(path)
    for replica in replicas[::7]:
        wait_until(lambda replica=replica: rows_of(replica) == 2)


def test_databases_come_and_go(watched: Fleet, folder: Path, tmp_path: Path):
    watched.start()
    path = make(folder / "new.db", rows=3)
    wait_until(lambda: rows_of(tmp_path / "replicas" / "new.db") == 3)
    insert(path, rows=2)
    wait_until(lambda: rows_of(tmp_path / "replicas" / "new.db") == 5)
    member = watched.members[path]
    replicator = member.replicator
    assert replicator is not None
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    wait_until(lambda: path not in watched.members and member.replicator is None)
    wait_until(lambda: all(task.join(0) for task in replicator.tasks.values()))
    assert rows_of(tmp_path / "replicas" / "new.db") == 5
    make(folder / "other.db")
    wait_until(lambda: rows_of(tmp_path / "replicas" / "other.db") == 1)


def test_a_thousand_databases_are_compacted_one_after_the_other_and_one_alone_by_the_clock(fleet_of, folder: Path):
    def late(number: int) -> float:
        client = FileReplicaClient(Path(f"/replicas/{number:04}.db"))  # nothing is read
        upkeep = Upkeep(client, None, lambda reason: None, lambda: True, 1.0)
        assert upkeep.late == 0.0
        upkeep.spread()
        return upkeep.late

    shares = [late(number) for number in range(1000)]
    assert all(0.0 <= share < 0.9 for share in shares)
    assert (
        max(Counter(int(30 * share) for share in shares).values()) <= 1.5 * 1000 / 30
    )  # of a second of the half minute
    assert late(7) == shares[7]

    def open_ones(fleet: Fleet) -> list[float]:
        fleet.start()
        wait_until(lambda: all(one.replicator is not None for one in fleet.members.values()))
        shares = [one.replicator.places[0].upkeep.late for one in fleet.members.values() if one.replicator is not None]
        assert fleet.close(20) == []
        return shares

    make(folder / "0.db")
    assert open_ones(fleet_of()) == [0.0]
    make(folder / "1.db")
    first, second = open_ones(fleet_of())
    assert 0.0 != first != second != 0.0


WRITES_AND_DELETES = """
import os, sqlite3, sys
path, ends_first = sys.argv[1], sys.argv[2] == "True"
db = sqlite3.connect(path)
for n in range(4):
    db.execute("INSERT INTO t VALUES (?)", (n,))
    db.commit()
if ends_first:
    db.close()
for suffix in ("", "-wal", "-shm"):
    os.unlink(path + suffix)
if not ends_first:
    db.execute("INSERT INTO t VALUES ('into a file without a name')")
    db.commit()
"""


@pytest.mark.parametrize("ends_first", [True, False])
def test_what_was_committed_before_a_database_was_deleted_is_on_its_replica(
    fleet_of, folder: Path, tmp_path: Path, ends_first: bool
):
    path, replica = make(folder / "a.db"), tmp_path / "replicas" / "a.db"
    fleet = fleet_of(sync_interval_s=3600.0, watch=True)
    fleet.start()
    wait_until(lambda: rows_of(replica) == 1)
    subprocess.run([sys.executable, "-c", WRITES_AND_DELETES, str(path), str(ends_first)], check=True, timeout=60)
    wait_until(lambda: path not in fleet.members)
    wait_until(lambda: rows_of(replica) >= 5)
    assert rows_of(replica) in ((5,) if ends_first else (5, 6))  # 6 if the last commit came before the capture


@pytest.mark.parametrize("what", ["state", "whole folder"])
def test_a_database_that_is_deleted_with_its_state_is_let_go_of(fleet_of, folder: Path, tmp_path: Path, what: str):
    path = make(folder / "tenant" / "a.db")
    fleet = fleet_of(sync_interval_s=3600.0, watch=True)
    fleet.start()
    wait_until(lambda: rows_of(tmp_path / "replicas" / "tenant" / "a.db") == 1)
    member = fleet.members[path]
    if what == "state":
        shutil.rmtree(state_folder(path))
        path.unlink()
    else:
        shutil.rmtree(path.parent)
    wait_until(lambda: path not in fleet.members and member.replicator is None)
    assert fleet.close(20) == []
    assert rows_of(tmp_path / "replicas" / "tenant" / "a.db") == 1


def test_the_end_makes_a_last_sync_of_every_database(fleet_of, folder: Path, tmp_path: Path):
    paths = [make(folder / f"{n}.db") for n in range(20)]
    fleet = fleet_of(sync_interval_s=3600.0)
    fleet.start()
    wait_until(lambda: all(rows_of(tmp_path / "replicas" / path.name) == 1 for path in paths))
    for path in paths:
        insert(path)
    assert fleet.close(30) == []
    assert [rows_of(tmp_path / "replicas" / path.name) for path in paths] == [2] * 20


@pytest.mark.parametrize("threads", [0, 2])
def test_the_last_sync_needs_no_thread_for_each_database(
    fleet_of, folder: Path, tmp_path: Path, monkeypatch, threads: int
):
    paths = [make(folder / f"{n}.db") for n in range(5)]
    fleet = fleet_of(sync_interval_s=60.0)
    fleet.start()
    fleet.wait_until_open(20)
    for path in paths:
        insert(path)
    start, left = threading.Thread.start, iter(range(threads))

    def start_few(thread: threading.Thread) -> None:
        if thread.name == "litevfs-last-sync" and next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_few)
    assert fleet.close(20) == []
    assert [rows_of(tmp_path / "replicas" / path.name) for path in paths] == [2] * 5


def test_a_database_that_cannot_be_replicated_is_named_and_delays_no_other(
    fleet_of, folder: Path, tmp_path: Path, caplog
):
    make(folder / "good.db")
    sqlite3.connect(folder / "rollback.db").execute("CREATE TABLE t (a)").connection.close()
    (folder / "garbage.db").write_bytes(b"no database at all, but long enough")
    fleet = fleet_of(watch=True)
    fleet.start()
    wait_until(lambda: rows_of(tmp_path / "replicas" / "good.db") == 1)
    wait_until(lambda: fleet.members[folder / "rollback.db"].error and fleet.members[folder / "garbage.db"].error)
    errors = fleet.close(20)
    assert len(errors) == 2
    text = "; ".join(errors) + caplog.text
    assert "journal mode 'delete'" in text
    assert "not a database" in text


@pytest.mark.slow
def test_a_storage_that_hangs_delays_no_other_database(fleet_of, folder: Path, tmp_path: Path, monkeypatch):
    released, hanging = threading.Event(), []
    write = FileReplicaClient.write

    def slow(client: FileReplicaClient, *arguments: Any, **options: Any) -> LTXFileInfo:
        if "/hang" in client.url:
            hanging.append(client.url)
            released.wait(60)
        return write(client, *arguments, **options)

    monkeypatch.setattr(FileReplicaClient, "write", slow)
    for n in range(30):
        make(folder / f"hang{n}.db")
        make(folder / f"well{n}.db")
    fleet = fleet_of()
    fleet.start()
    try:
        wait_until(lambda: all(rows_of(tmp_path / "replicas" / f"well{n}.db") == 1 for n in range(30)), timeout_s=60)
        insert(folder / "well7.db")
        wait_until(lambda: rows_of(tmp_path / "replicas" / "well7.db") == 2)
        assert hanging
        assert not any(rows_of(tmp_path / "replicas" / f"hang{n}.db") == 1 for n in range(30))
    finally:
        released.set()
        errors = fleet.close(30)
    assert errors == []


@pytest.mark.slow
def test_an_unrelated_database_is_refused_alone(fleet_of, folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("litevfs.replicate.fleet._LOOK_AFTER_S", 0.05)
    make(folder / "a.db", rows=5)
    make(folder / "b.db")
    first = fleet_of()
    first.start()
    wait_until(lambda: rows_of(tmp_path / "replicas" / "a.db") == 5 and rows_of(tmp_path / "replicas" / "b.db") == 1)
    assert first.close(20) == []
    for name in ("a.db", "a.db-wal", "a.db-shm"):
        (folder / name).unlink(missing_ok=True)
    state = folder / ".a.db-litevfs"
    state.rename(tmp_path / "away")
    make(folder / "a.db", rows=1)
    second = fleet_of()
    second.start()
    insert(folder / "b.db")
    wait_until(lambda: rows_of(tmp_path / "replicas" / "b.db") == 2)
    wait_until(lambda: (second.members[folder / "a.db"].error or "").startswith("the database is not the replica's"))
    errors = second.close(20)
    assert len(errors) == 1
    assert "--new-history" in errors[0]
    assert rows_of(tmp_path / "replicas" / "a.db") == 5
