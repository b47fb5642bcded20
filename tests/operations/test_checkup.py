"""The check that what lies on a replica is the database."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import apsw
import pytest

from litevfs.errors import StoragePermissionError
from litevfs.operations.checkup import Checkup, check_replica
from litevfs.replicate import Replicator
from litevfs.testing.faulty import Fault
from tests.replicate.support import failing_client
from tests.support import wait_until


def make(path: Path, text: str) -> apsw.Connection:
    db = apsw.Connection(str(path))
    db.pragma("journal_mode", "wal")
    db.execute("CREATE TABLE t (a)")
    db.executemany("INSERT INTO t VALUES (?)", [(text * 50,)] * 200)
    return db


@pytest.fixture
def app(tmp_path: Path):
    db = make(tmp_path / "app.db", "x")
    yield db
    db.close()


@pytest.fixture
def replicator(app, tmp_path: Path):
    with Replicator(tmp_path / "app.db", str(tmp_path / "replica")) as replicator:
        replicator.sync()
        yield replicator


def test_a_replica_that_is_the_database_passes_and_the_newest_commits_are_in_it(replicator, app, tmp_path, caplog):
    caplog.set_level(logging.INFO, "litevfs")
    for number in range(3):
        app.execute("INSERT INTO t VALUES (?)", (number,))
        result = check_replica(replicator, str(tmp_path))
        assert (result.txid, result.problem) == (2 + number, None)
        assert replicator.last_check == result
    assert caplog.text.count("restored from the replica is the database") == 3
    assert not list(tmp_path.glob("litevfs-check-*"))
    app.execute("INSERT INTO t VALUES (4)")
    assert replicator.sync() == 5  # captures go on from there
    assert replicator.status.snapshots == 1


def test_it_passes_beside_a_writer_that_never_pauses(replicator, tmp_path):
    ended, db = threading.Event(), apsw.Connection(str(tmp_path / "app.db"))
    db.set_busy_timeout(10_000)

    def write() -> None:
        while not ended.is_set():
            db.execute("INSERT INTO t VALUES (randomblob(900))")
            db.execute("DELETE FROM t WHERE rowid % 7 = 3")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            assert check_replica(replicator).problem is None
    finally:
        ended.set()
        writer.join()
        db.close()


def test_a_replica_with_another_database_s_pages_fails_by_name(replicator, tmp_path, caplog):
    other = make(tmp_path / "other.db", "y")
    with Replicator(tmp_path / "other.db", str(tmp_path / "other")) as second:
        second.sync()
    other.close()
    for file in (tmp_path / "other" / "ltx" / "0").iterdir():
        shutil.copy(file, tmp_path / "replica" / "ltx" / "0" / file.name)
    result = check_replica(replicator)
    assert "pages differ" in (result.problem or "")
    assert "is not the database" in caplog.text


def test_a_replica_with_a_lost_file_fails_by_name(replicator, app, tmp_path):
    app.execute("INSERT INTO t VALUES (1)")
    replicator.sync()
    (tmp_path / "replica" / "ltx" / "0" / f"{1:016x}-{1:016x}.ltx").unlink()
    assert "cannot be restored" in (check_replica(replicator).problem or "")


def test_each_of_several_places_is_checked_also_when_one_is_down(app, tmp_path, caplog):
    down = failing_client(tmp_path / "down")
    places = [str(tmp_path / "second"), down]
    with Replicator(tmp_path / "app.db", str(tmp_path / "replica"), places=places) as replicator:
        replicator.sync()
        assert check_replica(replicator).problem is None
        assert [place.last_check.problem for place in replicator.places] == [None] * 3
        down.faults.add(Fault("permission", operations=("write",)))
        app.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(StoragePermissionError):
            check_replica(replicator)
        assert [place.last_check.txid for place in replicator.places] == [2, 2, 1]
        down.faults.clear()
        replicator.sync()
        (tmp_path / "second" / "ltx" / "0" / f"{2:016x}-{2:016x}.ltx").unlink()
        problem = check_replica(replicator).problem or ""
        assert problem.startswith(f"at {(tmp_path / 'second').as_uri()}: it cannot be restored")
        assert replicator.last_check is replicator.places[1].last_check
        assert replicator.places[2].last_check.problem is None
    down.close()


def test_turns_come_once_an_interval_and_outlive_a_storage_that_fails(replicator, tmp_path, caplog):
    checkup = Checkup(replicator, 100.0)
    assert 0.0 <= checkup.turn() <= 100.0
    assert replicator.last_check is None
    assert checkup.turn() == 100.0
    assert replicator.last_check is not None
    replicator.close()
    assert checkup.turn() == 100.0
    assert "could not be checked" in caplog.text


def test_metrics_say_when_and_whether_it_was_the_database(replicator):
    pytest.importorskip("prometheus_client", reason="needs the extra `metrics` (pip install 'litevfs[metrics]')")
    from litevfs.commands.metrics import _Collector

    def values() -> dict[str, float]:
        return {m.name: m.samples[0].value for m in _Collector(lambda: [replicator]).collect()}

    assert "litevfs_verify_failing" not in values()
    result = check_replica(replicator)
    found = values()
    assert (found["litevfs_verify_failing"], found["litevfs_verify_txid"]) == (0.0, 1.0)
    assert found["litevfs_verify_timestamp_seconds"] == result.time_ms / 1000


@pytest.mark.slow
@pytest.mark.servers  # processes: too long for every run
@pytest.mark.parametrize("many", [False, True])
def test_the_command_checks_now_and_then(tmp_path: Path, many: bool):
    (tmp_path / "dbs").mkdir()
    db = sqlite3.connect(tmp_path / "dbs" / "app.db")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (a)")
    db.close()
    names = ["--dir", "dbs", "replica"] if many else ["dbs/app.db", "replica/app.db"]
    command = [sys.executable, "-m", "litevfs", "--debug", "replicate", "--verify-interval", "200ms", *names]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=log)
    try:
        said = "restored from the replica is the database"
        wait_until(lambda: (tmp_path / "log").read_text().count(said) >= 2, 60)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
