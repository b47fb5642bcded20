"""The commands that write: restore, copy, replicate, compact, demo. Oracle: SQLite on the files themselves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from litevfs.commands import replicate
from litevfs.errors import ReplicatorError, TransientStorageError
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from litevfs.testing.faulty import Fault, Faults, FaultyReplicaClient
from tests.support import wait_until

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def query(path: Path, sql: str) -> Any:
    with closing(apsw.Connection(str(path))) as connection:
        return connection.execute(sql).fetchall()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "app.db"
    query(path, "PRAGMA journal_mode = wal; CREATE TABLE t(a); INSERT INTO t VALUES (1)")
    return path


def test_restore_makes_the_database_of_any_txid(run: Callable[..., Any], orders: str, expected: Any, tmp_path: Path):
    for txid, answers in expected["expected_by_txid"].items():
        path = tmp_path / f"{txid}.db"
        result = run("restore", orders, "-o", path, "--txid", txid, "--integrity-check")
        assert (result.code, result.err) == (0, "")
        assert f"TXID {txid}" in result.out
        assert query(path, expected["queries"]["total"]) == [(answers["total"],)]
    assert run("restore", orders, "-o", tmp_path / "newest.db", "--json").json["txid"] == "000000000000000c"


def test_the_environment_names_a_state_for_restore_and_none_for_a_watch(
    run: Callable[..., Any], orders: str, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LITEVFS_TXID", "5")
    assert run("restore", orders, "-o", tmp_path / "5.db", "--json").json["txid"] == "0000000000000005"
    assert run("query", orders, "SELECT 1", "--watch").code == 2


def test_a_time_that_is_none_comes_with_the_forms_that_are(run: Callable[..., Any], orders: str):
    refused = run("query", orders, "SELECT 1", "--timestamp", "soon")
    assert refused.code == 2
    assert "2026-01-31T12:00:00Z" in refused.err
    assert "5 minutes ago" in refused.err


def test_restore_never_replaces_a_file(run: Callable[..., Any], orders: str, tmp_path: Path):
    path = tmp_path / "precious.db"
    path.write_text("precious")
    result = run("restore", orders, "-o", path)
    assert (result.code, result.out) == (1, "")
    assert path.read_text() == "precious"


def test_copy_makes_equal_files_and_goes_on_where_it_was(run: Callable[..., Any], orders: str, tmp_path: Path):
    copy = tmp_path / "copy"
    first = run("copy", orders, copy, "--json").json
    assert (first["files"], first["skipped"], first["txid"]) == (12, 0, "000000000000000c")
    names = sorted(path.relative_to(orders) for path in Path(orders).rglob("*.ltx"))
    assert sorted(path.relative_to(copy) for path in copy.rglob("*.ltx")) == names
    assert all((copy / name).read_bytes() == Path(orders, name).read_bytes() for name in names)
    (copy / names[-1]).unlink()
    again = run("copy", orders, copy)
    assert "1 file copied" in again.out
    assert "11 were there" in again.out


def test_copy_of_a_damaged_replica_fails(run: Callable[..., Any], orders_copy: Path, tmp_path: Path):
    path = next(orders_copy.rglob(f"{9:016x}-*.ltx"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    result = run("copy", orders_copy, tmp_path / "copy")
    assert (result.code, result.out) == (1, "")
    assert str(path) in result.err


def test_replicate_once_replicates_what_is_there(run: Callable[..., Any], database: Path, tmp_path: Path):
    replica = tmp_path / "replica"
    assert run("replicate", database, replica, "--once").out == "0000000000000001\n"
    query(database, "INSERT INTO t VALUES (2)")
    assert run("replicate", database, replica, "--once").code == 0
    assert run("query", replica, "SELECT a FROM t").out == "1\n2\n"


def test_replicate_holds_writers_off_unless_it_is_told_not_to(
    run: Callable[..., Any], database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limits = []

    class Looked(Replicator):
        def sync(self, timeout_s: float = 30.0) -> int:
            limits.append(self.capturing.capture.limits.truncate_pages)
            return super().sync(timeout_s)

    monkeypatch.setattr(replicate, "Replicator", Looked)
    for flags in ((), ("--hold-writers",), ("--no-hold-writers",)):
        assert run("replicate", database, tmp_path / "replica", "--once", *flags).code == 0
    assert limits == [50_000, 50_000, None]


def test_replicate_refuses_a_rollback_database_and_can_switch_it(run: Callable[..., Any], tmp_path: Path):
    path = tmp_path / "old.db"
    query(path, "CREATE TABLE t(a)")
    refused = run("replicate", path, tmp_path / "replica", "--once")
    assert (refused.code, refused.out) == (1, "")
    assert "--wal" in refused.err
    assert run("replicate", path, tmp_path / "replica", "--once", "--wal").code == 0
    assert query(path, "PRAGMA journal_mode") == [("wal",)]


def test_replicate_of_no_database_fails(run: Callable[..., Any], tmp_path: Path):
    result = run("replicate", tmp_path / "none.db", tmp_path / "replica", "--once")
    assert result.code == 1
    assert not (tmp_path / "none.db").exists()


def test_replicate_compacts_too(run: Callable[..., Any], database: Path, tmp_path: Path):
    replica = tmp_path / "replica"
    command = [sys.executable, "-m", "litevfs", "replicate", str(database), str(replica), "--sync-interval", "10ms"]
    command += ["--level-intervals", "1s,2s"]
    run("replicate", database, replica, "--once")
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        killer = threading.Timer(30, process.kill)
        killer.start()
        try:
            wait_until(lambda: all(any(replica.glob(f"ltx/{level}/*.ltx")) for level in (1, 2, 9)))
        finally:
            process.terminate()
            process.wait()
            killer.cancel()
    assert process.returncode == 0
    assert {path.name for path in replica.glob("ltx/*")} == {"0", "1", "2", "9"}, "as many levels as intervals"
    assert run("verify", replica).code == 0


@pytest.mark.parametrize(
    ("flag", "hint"), [("--sync-interval", "for example 1s"), ("--lease-ttl", "without a lease: --no-lease")]
)
def test_replicate_says_which_of_its_times_is_0(run: Callable[..., Any], database: Path, flag: str, hint: str):
    result = run("replicate", database, "replica", "--once", flag, "0")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert hint in result.err


@pytest.mark.parametrize("intervals", ["1s,soon", "", "1m,1s", "0", ",".join(["1m"] * 9)])
def test_replicate_refuses_level_intervals_that_make_no_sense(
    run: Callable[..., Any], database: Path, tmp_path: Path, intervals: str
):
    result = run("replicate", database, tmp_path / "replica", "--once", "--level-intervals", intervals)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "replica").exists()


@pytest.mark.slow
@pytest.mark.plan("K08")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_replicate_sends_the_last_transactions_when_told_to_stop(
    run: Callable[..., Any], database: Path, tmp_path: Path, number: int, code: int
):
    replica = tmp_path / "replica"
    command = [sys.executable, "-m", "litevfs", "replicate", str(database), str(replica), "--sync-interval", "1h"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        killer = threading.Timer(30, process.kill)
        killer.start()
        try:
            assert process.stderr
            assert process.stderr.readline().startswith("litevfs: replicating ")
            wait_until(lambda: any(replica.glob("ltx/0/*.ltx")))
            query(database, "INSERT INTO t VALUES (2)")
            process.send_signal(number)
            out, err = process.communicate()
        finally:
            killer.cancel()
    assert (process.returncode, out, err) == (code, "", "")
    assert run("query", replica, "SELECT a FROM t").out == "1\n2\n"


def test_compact_does_all_the_upkeep_at_once(run: Callable[..., Any], orders_copy: Path):
    before = run("query", orders_copy, "SELECT sum(total_cents) FROM orders").out
    done = run("compact", orders_copy, "--level-0-retention", "0", "--json")
    assert (done.code, done.json["errors"]) == (0, [])
    assert sorted(one["level"] for one in done.json["written"]) == [1, 2, 3, 9]
    assert all(Path(one["key"]).exists() for one in done.json["written"])
    assert done.json["deleted"]
    assert not any(Path(one["key"]).exists() for one in done.json["deleted"])
    assert run("query", orders_copy, "SELECT sum(total_cents) FROM orders").out == before
    assert run("verify", orders_copy).code == 0
    assert run("compact", orders_copy).out.startswith("deleted ")


@pytest.mark.plan("K08")
@pytest.mark.parametrize(("place", "message"), [("", "no LTX files"), ("nowhere", "no such replica folder")])
def test_compact_of_no_replica_is_one_error(run: Callable[..., Any], tmp_path: Path, place: str, message: str):
    result = run("compact", tmp_path / place)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert message in result.err
    assert "; hint: " in result.err


def test_compact_refuses_a_retention_that_makes_no_sense(run: Callable[..., Any], orders_copy: Path):
    result = run("compact", orders_copy, "--snapshot-retention", "1m", "--level-0-retention", "1h")
    assert result.code == 2
    assert sum(1 for _ in orders_copy.rglob("*.ltx")) == 12


def test_demo_shows_everything_ends_by_itself_and_leaves_nothing(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = run("demo")
    assert (result.code, result.err) == (0, "")
    assert not list(tmp_path.iterdir())
    lags = re.findall(r"^   ([0-9a-f]{16}) +(\d+) ms +(\d+)  ", result.out, re.MULTILINE)
    assert [int(orders) for _, _, orders in lags] == [1, 3, 6, 10, 15, 21]
    assert [int(txid, 16) for txid, _, _ in lags] == list(range(2, 8))
    assert "orders at BEGIN 21, after 10 more were committed 21, after COMMIT 31" in result.out
    assert "update orders 1: {'id': 1," in result.out
    assert "copy.db: 31 orders, and 34 after 3 more were committed" in result.out
    assert "34 orders equal those of the database" in result.out
    assert "integrity check of its 12.3 kB: ok" in result.out


def test_demo_keeps_its_files_when_asked_to(run: Callable[..., Any], tmp_path: Path):
    folder = tmp_path / "kept"
    assert run("demo", "--keep", folder).code == 0
    assert query(folder / "shop.db", "SELECT count(*) FROM orders") == [(34,)]
    assert run("verify", folder / "replica").code == 0
    assert run("query", folder / "replica", "SELECT count(*) FROM orders").out == "34\n"
    again = run("demo", "--keep", folder)
    assert (again.code, again.out) == (1, "")
    assert "not empty" in again.err


def test_replicate_with_a_snapshot_mends_a_damaged_replica(run: Callable[..., Any], database: Path, tmp_path: Path):
    replica = tmp_path / "replica"
    for n in range(3):
        query(database, f"INSERT INTO t VALUES ({n})")
        assert run("replicate", database, replica, "--once").code == 0
    path = replica / "ltx" / "0" / f"{2:016x}-{2:016x}.ltx"
    data = path.read_bytes()
    path.write_bytes(data[:150] + bytes([data[150] ^ 1]) + data[151:])
    refused = run("restore", replica, "-o", tmp_path / "restored.db")
    assert refused.code == 1
    assert "litevfs replicate --snapshot" in refused.err
    done = run("replicate", database, replica, "--once", "--snapshot")
    assert (done.code, done.out, done.err) == (0, "0000000000000004\n", "")
    assert run("restore", replica, "-o", tmp_path / "restored.db").code == 0
    assert query(tmp_path / "restored.db", "SELECT * FROM t") == query(database, "SELECT * FROM t")


@pytest.mark.parametrize("uploaded", [0, 1])
def test_replicate_that_ends_before_its_time_says_what_is_not_there(database: Path, tmp_path: Path, uploaded: int):
    inner = FileReplicaClient(tmp_path / "replica")
    faults = Faults(inner.url)
    client = FaultyReplicaClient(inner, faults)
    with closing(client), Replicator(database, client, sync_interval_s=0.01) as replicator:
        if uploaded:
            replicator.sync()
            query(database, "INSERT INTO t VALUES (2)")
        faults.add(Fault("hang", operations=("write",)))
        replicator.start()
        try:
            faults.wait_until_waiting()
            with pytest.raises(ReplicatorError, match="before all that was committed is on the replica") as caught:
                replicate._finish(replicator, 0.05)
        finally:
            faults.clear()
    there = "TXID 0000000000000001 is there" if uploaded else "nothing was uploaded"
    assert f"{there}, 1 file to be uploaded" in str(caught.value)
    assert "the next start goes on from there" in caught.value.hint


def test_replicate_that_ends_before_its_first_copy_says_so(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with Replicator(database, "s3://bucket/db?endpoint=http://127.0.0.1:1") as replicator:
        with pytest.raises(ReplicatorError, match="the first copy of the whole database was not finished") as caught:
            replicate._finish(replicator, 0.0)
        assert isinstance(caught.value.__cause__, TransientStorageError)


@pytest.mark.parametrize("output", ["", ".", "/"])
def test_restore_to_what_is_no_file_name_is_refused(run: Callable[..., Any], orders: str, output: str):
    result = run("restore", orders, "-o", output)
    assert (result.code, result.out) == (1, "")
    assert "not the name of a file" in result.err


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_a_name_that_is_not_utf_8_can_be_restored_to_but_not_replicated(
    run: Callable[..., Any], orders: str, tmp_path: Path
):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.db"))
    assert run("restore", orders, "-o", path, "--integrity-check").code == 0
    assert path.stat().st_size
    result = run("replicate", path, tmp_path / "replica", "--once")
    assert (result.code, result.out) == (1, "")
    assert "not a file name that SQLite takes" in result.err


@pytest.mark.parametrize("what", ["/", "", "folder"])
def test_replicate_of_what_is_no_file_is_refused(run: Callable[..., Any], tmp_path: Path, what: str, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    result = run("replicate", what, tmp_path / "replica", "--once")
    assert (result.code, result.out) == (1, "")
    assert "no database to replicate: this is not a file" in result.err
    assert list((tmp_path / "folder").iterdir()) == []
