"""The real commands, ended in the middle: compact and copy by SIGKILL, the integrity check of a restore by Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from litevfs.files.plan import newest_state
from litevfs.ltx.decoder import decode_file
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from tests.histories import History, content, image_after
from tests.support import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
KILLED_AFTER = """
import os, signal, sys, threading
from litevfs.cli import main
threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGKILL)).start()
code = main(sys.argv[2:])
os._exit(code)
"""
"""A command that is killed when it has done something for so many seconds, unless it has ended."""

KILLS = [3, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(600)])]


def run_to_the_end(*arguments: object) -> float:
    """Seconds that the command takes, after it was loaded."""
    start = time.monotonic()
    assert subprocess.run(command(0, "--version"), env=ENVIRONMENT, capture_output=True).returncode == -signal.SIGKILL
    loaded = time.monotonic()
    assert subprocess.run(command(60, *arguments), env=ENVIRONMENT, stdout=subprocess.DEVNULL).returncode == 0
    return max(0.01, time.monotonic() - loaded - (loaded - start))


def command(killed_after_s: float, *arguments: object) -> list[str]:
    return [sys.executable, "-c", KILLED_AFTER, str(killed_after_s), *map(str, arguments)]


def is_killed(killed_after_s: float, *arguments: object, **environment: str) -> bool:
    """Whether the command was killed; otherwise it was done before."""
    done = subprocess.run(
        command(killed_after_s, *arguments), env=ENVIRONMENT | environment, stdout=subprocess.DEVNULL, timeout=60
    )
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[FileReplicaClient]:
    with closing(FileReplicaClient(tmp_path / "replica")) as client:
        yield client


def assert_newest_state(client: FileReplicaClient, history: History, txid: int) -> None:
    """Every file is whole, and those that make the newest state make the one after `txid`."""
    files = content(client)
    for (_, *txids), data in files.items():
        header = decode_file(data).header
        assert [header.min_txid, header.max_txid] == txids
    chain = newest_state(file for level in range(10) for file in client.list_files(level))
    assert chain.txid == txid
    parts = [files[file.level, file.min_txid, file.max_txid] for file in chain.files]
    assert image_after(b"", *parts) == history.images[txid]


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".ltx"]


@pytest.mark.plan("D15")
@pytest.mark.parametrize("kills", KILLS)
def test_killed_compactions_lose_nothing_and_the_next_one_goes_on(
    tmp_path: Path, replica: FileReplicaClient, kills: int
) -> None:
    history = History(seed=1, page_size=4096, start_pages=150, most_pages=150)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    compact = ["compact", tmp_path / "replica", "--level-0-retention", "0", "--snapshot-retention", "0"]

    def write() -> None:
        for _ in range(4):
            history.upload(replica, history.step())

    write()
    seconds = run_to_the_end(*compact)
    was_killed = 0
    for n in range(kills):
        write()
        was_killed += is_killed(seconds * n / kills, *compact, TMPDIR=str(temporary))
        assert_newest_state(replica, history, history.txid)
        assert list(temporary.glob("litevfs-*")) == []
    assert was_killed
    write()
    run_to_the_end(*compact)
    assert_newest_state(replica, history, history.txid)
    assert temporary_files(tmp_path / "replica") == []
    assert [len(replica.list_files(level)) for level in (0, 1, 2, 3, 9)] == [1, 1, 1, 1, 1]


@pytest.mark.plan("D11", "D15")
@pytest.mark.parametrize("kills", KILLS)
def test_killed_copies_leave_a_replica_without_gaps_and_the_next_one_goes_on(
    tmp_path: Path, replica: FileReplicaClient, kills: int
) -> None:
    history = History(seed=2, page_size=4096, start_pages=150, most_pages=150).run(24)
    history.upload_all(replica)
    copied = tmp_path / "copied"
    copy = ["copy", tmp_path / "replica", copied]
    seconds = run_to_the_end("copy", tmp_path / "replica", tmp_path / "measured")
    was_killed = before = 0
    with closing(FileReplicaClient(copied)) as client:
        for n in range(kills):
            was_killed += is_killed(seconds * n / kills, *copy)
            there = len(client.list_files(0)) if copied.exists() else 0
            assert there >= before
            before = there
            if there:
                assert_newest_state(client, history, there)
            if there == len(history.files):  # done: again from the start
                client.delete(client.list_files(0))
                before = 0
        assert was_killed
        run_to_the_end(*copy)
        assert content(client) == content(replica)
    assert temporary_files(copied) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system shows no descriptors")
@pytest.mark.plan("K08")
def test_ctrl_c_ends_an_integrity_check_and_nothing_is_left(tmp_path: Path) -> None:
    """The check would take minutes, as it computes the columns of every row."""
    with closing(apsw.Connection(str(tmp_path / "app.db"))) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (v INTEGER)")
        count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500000) SELECT 0 FROM n"
        database.execute(f"INSERT INTO t {count}")
        columns = ", ".join(f"g{n} AS (v{' + v' * 900}) NOT NULL" for n in range(50))
        database.execute("PRAGMA writable_schema=1")  # to compute none of them here
        database.execute("UPDATE sqlite_schema SET sql = ?", (f"CREATE TABLE t (v INTEGER, {columns})",))
        with Replicator(tmp_path / "app.db", str(tmp_path / "replica")) as replicator:
            replicator.sync()
    target = tmp_path / "restored" / "app.db"
    target.parent.mkdir()
    restore = ["restore", tmp_path / "replica", "-o", target, "--integrity-check"]
    with subprocess.Popen(
        [sys.executable, "-m", "litevfs", *map(str, restore)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        try:
            wait_until(lambda: descriptors(process.pid, target) == 2, "SQLite opening it, too", 30)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "")
    assert list(target.parent.iterdir()) == []


def descriptors(pid: int, path: Path) -> int:
    """How often a process has the temporary file of a restore to `path` open."""
    temporary = f"{path}.tmp"
    return sum(is_on(entry, temporary) for entry in Path(f"/proc/{pid}/fd").iterdir())


def is_on(entry: Path, path: str) -> bool:
    try:
        return str(entry.readlink()) == path
    except FileNotFoundError:  # closed meanwhile
        return False
