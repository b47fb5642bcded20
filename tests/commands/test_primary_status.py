"""`litevfs replicate --status`: what a running replicator, in a process of its own, says by its socket."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import apsw
import pytest

from litevfs.commands.primary_status import describe
from litevfs.commands.status_socket import StatusServer, ask, socket_path
from litevfs.errors import ReplicatorError
from litevfs.replicate import Replicator
from tests.support import wait_until

ROOT = Path(__file__).parents[2]


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(apsw.Connection(str(path))) as db:
        db.execute("PRAGMA journal_mode=WAL").fetchall()
        db.execute("CREATE TABLE t (a)")
    return path


@contextmanager
def replicating(path: Path, replica: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A replicator that has told that it runs."""
    command = [sys.executable, "-m", "litevfs", "replicate", path, replica, "--sync-interval", "50ms", *arguments]
    process = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, env=os.environ, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        assert "replicating" in process.stderr.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_running_replicator_tells_its_status_and_one_that_was_killed_does_not(run, tmp_path: Path):
    path, replica = make(tmp_path / "app.db"), tmp_path / "replica"
    before = run("replicate", "--status", path)
    assert (before.code, "no replicator of this database runs" in before.err) == (1, True)
    with replicating(path, replica) as process:
        wait_until(lambda: ask(path)["healthy"])
        (status,) = run("replicate", "--status", path, "--json").json
        assert (
            status.items()
            >= {
                "database": str(path),
                "replica": replica.as_uri(),
                "pid": process.pid,
                "healthy": True,
                "reason": None,
                "txid": "0000000000000001",
                "uploaded_txid": "0000000000000001",
                "pending_files": 0,
                "has_lease": True,
                "lease_protocol": "conditions",
            }.items()
        )
        assert status["lag_s"] < 60
        text = run("replicate", "--status", path)
        assert (text.code, "healthy" in text.out, f"{process.pid}, litevfs " in text.out) == (0, True, True)
        mode = socket_path(path).stat().st_mode
        assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
        process.kill()
        process.wait()
    assert socket_path(path).is_socket()  # it had no time to remove it
    killed = run("replicate", "--status", path, "--json")
    assert killed.code == 1
    assert killed.json == [{"database": str(path), "error": "no replicator of this database runs on this machine"}]
    with replicating(path, replica) as process:
        assert ask(path)["pid"] == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not socket_path(path).exists()


def test_several_databases_are_asked_at_once_and_what_fails_is_told(run, tmp_path: Path):
    paths = [make(tmp_path / f"{name}.db") for name in "abc"]
    with StatusServer() as server, ExitStack() as stack:
        for path in paths[:2]:
            replicator = stack.enter_context(Replicator(path, str(tmp_path / f"to {path.name}"), sync_interval_s=0.05))
            replicator.start()
            server.add(path, partial(describe, replicator, 0))
        wait_until(lambda: all(ask(path)["healthy"] for path in paths[:2]))
        found = run("replicate", "--json", "--status", *paths)
        assert found.code == 1
        assert [(one["database"], one.get("healthy")) for one in found.json] == [
            (str(paths[0]), True),
            (str(paths[1]), True),
            (str(paths[2]), None),
        ]
        assert found.err.count("no replicator of this database runs") == 1
        lost = tmp_path / "to a.db"
        lost.rename(tmp_path / "away")
        lost.write_text("in the way")
        with closing(apsw.Connection(str(paths[0]))) as db:
            db.execute("INSERT INTO t VALUES (1)")
        wait_until(lambda: not ask(paths[0])["healthy"])
        assert "failing: " in run("replicate", "--status", paths[0]).out


def test_replicating_still_needs_a_database_and_a_replica(run, tmp_path: Path):
    assert run("replicate", tmp_path / "app.db").code == 2
    assert run("replicate").code == 2
    path = make(tmp_path / "app.db")
    assert run("replicate", path, "--once", tmp_path / "replica").code == 0  # flags may stand between


# --- the socket itself ------------------------------------------------------------------------------------------------


def test_a_path_that_is_too_long_for_a_socket_is_no_obstacle(tmp_path: Path):
    folder = tmp_path.joinpath(*["a folder whose name has 40 characters ---"] * 4)
    path = make(folder / "app.db")
    with StatusServer() as server:
        server.add(path, lambda: {"n": 1})
        if Path("/proc/self/fd").is_dir():
            assert ask(path) == {"n": 1}
        else:
            with pytest.raises(ReplicatorError):
                ask(path)


def test_one_thread_answers_for_many_databases_and_outlives_clients_and_mistakes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    paths = [tmp_path / f"{number}.db" for number in range(50)]
    with StatusServer() as server:
        before = threading.active_count()
        for number, path in enumerate(paths):
            server.add(path, lambda number=number: {"n": number, "text": "x" * 300_000})
        assert threading.active_count() == before
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(socket_path(paths[0])))  # and reads nothing
            assert [ask(path)["n"] for path in paths] == list(range(50))
        server.add(tmp_path / "wrong.db", lambda: {"n": 1 // 0})
        with pytest.raises(ReplicatorError, match="does not tell"):
            ask(tmp_path / "wrong.db")
        server.remove(paths[0])
        with pytest.raises(ReplicatorError, match="no replicator"):
            ask(paths[0])
        assert ask(paths[1])["n"] == 1
    assert list(tmp_path.iterdir()) == []
    assert "ZeroDivisionError" in caplog.text


def test_where_no_socket_can_be_made_replication_goes_on_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with StatusServer() as server:
        server.add(tmp_path / "no folder" / "app.db", dict)
    assert "no status can be asked for" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to ask as another user")
def test_another_user_is_refused(tmp_path: Path):
    path = make(tmp_path / "app.db")
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o755)
    with StatusServer() as server:
        server.add(path, dict)
        nobody = pwd.getpwnam("nobody").pw_uid
        program = (
            "import os, sys\nfrom litevfs.commands.status_socket import ask\n"
            f"os.setuid({nobody})\ntry: ask(sys.argv[1])\nexcept Exception as error: print(error)"
        )
        command = [sys.executable, "-c", program, str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "may not be asked for" in done.stdout, done.stderr


def test_the_answer_is_json(tmp_path: Path):
    with StatusServer() as server:
        server.add(tmp_path / "app.db", lambda: {"text": "ä\n"})
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(socket_path(tmp_path / "app.db")))
            assert json.loads(connection.makefile().read()) == {"text": "ä\n"}
