"""`litevfs replicate` as a container runs it: restores first, runs the application, ends in time with its exit code."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from tests.support import wait_until

ROOT = Path(__file__).parents[2]

APPLICATION = """
    import signal, sqlite3, sys, threading
    db = sqlite3.connect(sys.argv[1], isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE IF NOT EXISTS t (a)")
    db.execute("INSERT INTO t VALUES ('started')")
    ended = threading.Event()
    def end(number, frame):
        db.execute("INSERT INTO t VALUES (?)", (signal.Signals(number).name,))
        ended.set()
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGUSR1, lambda number, frame: db.execute("INSERT INTO t VALUES ('SIGUSR1')"))
    print("up", flush=True)
    code = int(sys.argv[2])
    while code != 1 and not ended.wait(0.05):
        pass
    sys.exit(code)
"""


@pytest.fixture
def application(tmp_path: Path) -> Callable[[int], str]:
    """The command line of an application that ends with this code: at once with 1, else when told to."""
    program = tmp_path / "app.py"
    program.write_text(textwrap.dedent(APPLICATION))
    return lambda code: f"{sys.executable} '{program}' '{tmp_path / 'app.db'}' {code}"


@contextmanager
def replicating(tmp_path: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "litevfs", "replicate", tmp_path / "app.db", tmp_path / "replica", *arguments]
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def rows(run: Callable[..., Any], tmp_path: Path) -> list[str]:
    return run("query", tmp_path / "replica", "SELECT a FROM t").out.split()


def fill(tmp_path: Path) -> None:
    """A replica of a database that is gone afterwards, as with a container's disk."""
    path = tmp_path / "before.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t (a)")
        db.execute("INSERT INTO t VALUES ('before')")
        db.commit()
    client = FileReplicaClient(tmp_path / "replica")
    with closing(client), Replicator(path, client) as replicator:
        replicator.sync()


@pytest.mark.plan("K08", "K03")
def test_an_application_gets_its_signals_and_its_last_transaction_is_replicated(run, application, tmp_path: Path):
    with replicating(tmp_path, "--exec", application(7)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        wait_until(lambda: (tmp_path / "replica" / "ltx" / "0").exists())
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: rows(run, tmp_path) == ["started", "SIGUSR1"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 7
    assert rows(run, tmp_path) == ["started", "SIGUSR1", "SIGTERM"]


def test_an_application_that_ends_by_itself_ends_all_with_its_code(run, application, tmp_path: Path):
    with replicating(tmp_path, "--exec", application(1)) as process:
        assert process.wait(30) == 1
    assert rows(run, tmp_path) == ["started"]


def test_a_container_with_an_empty_disk_goes_on_where_the_last_one_ended(run, application, tmp_path: Path):
    fill(tmp_path)
    (tmp_path / "app.db").touch()  # a placeholder, as a mount makes it
    with replicating(tmp_path, "--restore-if-missing", "--exec", application(0)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        wait_until(lambda: rows(run, tmp_path) == ["before", "started"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert rows(run, tmp_path) == ["before", "started", "SIGTERM"]


def test_an_application_whose_new_database_is_refused_is_ended(run, application, tmp_path: Path):
    fill(tmp_path)
    with replicating(tmp_path, "--exec", application(0)) as process:
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1
    assert "nothing shows that it came from it" in err
    assert rows(run, tmp_path) == ["before"]


def test_an_application_that_does_not_end_is_killed_in_time(tmp_path: Path):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    with replicating(tmp_path, "--exec", f'{sys.executable} -c "{code}"', "--shutdown-timeout", "1s") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGKILL


def test_a_new_database_is_refused_with_exit_code_1_and_the_ways_out(run, tmp_path: Path):
    fill(tmp_path)
    with closing(sqlite3.connect(tmp_path / "app.db")) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t (a)")
    for more in ((), ("--once",)):
        with replicating(tmp_path, *more) as process:
            _, err = process.communicate(timeout=30)
            assert process.returncode == 1
            assert "--restore-if-missing" in err.splitlines()[-1]
    assert run("replicate", tmp_path / "app.db", tmp_path / "replica", "--once", "--new-history").code == 0


@pytest.mark.parametrize("there", ["nothing", "a placeholder", "a database"])
def test_restore_if_missing_restores_only_what_is_missing(run, tmp_path: Path, there: str):
    fill(tmp_path)
    path = tmp_path / "restored.db"
    if there != "nothing":
        path.write_bytes(b"" if there == "a placeholder" else b"of another program")
    done = run("restore", tmp_path / "replica", "-o", path, "--if-missing")
    assert done.code == 0
    if there == "a database":
        assert (done.out, path.read_bytes()) == ("", b"of another program")
    else:
        assert "TXID 0000000000000001" in done.out
        assert sqlite_rows(path) == [("before",)]


def test_restore_if_missing_of_an_empty_replica_is_no_error(run, tmp_path: Path):
    (tmp_path / "replica").mkdir()
    assert run("restore", tmp_path / "replica", "-o", tmp_path / "new.db", "--if-missing").code == 0
    assert run("restore", tmp_path / "replica", "-o", tmp_path / "new.db").code == 1
    assert not (tmp_path / "new.db").exists()


def test_a_forced_restore_replaces_a_database_with_its_wal_unless_it_is_in_use(run, tmp_path: Path):
    fill(tmp_path)
    path = tmp_path / "old.db"
    user = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA journal_mode=WAL');"
    user += "db.execute('CREATE TABLE t (a)'); print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", user, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        done = run("restore", tmp_path / "replica", "-o", path, "--force")
        process.communicate()
    assert (done.code, "in use" in done.err) == (1, True)
    assert sqlite_rows(path) == []
    path.with_name("old.db-journal").write_bytes(b"of the old one")
    assert run("restore", tmp_path / "replica", "-o", path, "--force").code == 0
    assert sqlite_rows(path) == [("before",)]


def test_the_flags_of_a_container_that_make_no_sense_are_refused(run, tmp_path: Path):
    for arguments in (["--once", "--exec", "true"], ["--exec", "'"], ["--exec", ""], ["--lease-ttl", "soon"]):
        assert run("replicate", tmp_path / "app.db", tmp_path / "replica", *arguments).code == 2
    assert run("replicate", tmp_path / "app.db", tmp_path / "replica", "--exec", "/no/such/program").code == 1


def sqlite_rows(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT a FROM t").fetchall()
