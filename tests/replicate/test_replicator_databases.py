"""Which databases a replicator takes, and that one has only one at a time."""

from __future__ import annotations

import json
import shlex
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from litevfs.errors import ReplicatorError, ReplicatorLockedError
from litevfs.replicate import Replicator
from litevfs.replicate.state import StateFolder
from tests.replicate.support import assert_replicated, replicated, source_bytes, state_folder

FIXTURE = Path(__file__).parents[1] / "fixtures" / "orders" / "replica"


# --- one at a time, and which databases -------------------------------------------------------------------------------


def test_two_replicators_of_one_database_exclude_each_other(app, client, tmp_path: Path):
    program = "import sys; from litevfs.replicate import Replicator; Replicator(sys.argv[1], sys.argv[2]); print('in', "
    program += "flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, app.path, f"file://{tmp_path}/replica"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(ReplicatorLockedError, match=f"process {other.pid} replicates this database already"):
            Replicator(app.path, client)
        other.kill()
        other.wait()
        with Replicator(app.path, client) as replicator:
            with pytest.raises(ReplicatorLockedError):
                Replicator(app.path, client)
            replicator.sync()
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 1


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_replicator_that_is_refused_leaves_nothing_open(make_app, client, mode: str):
    app = make_app(mode=mode)
    folder = StateFolder(app.path)

    def count_open() -> int:
        return sum(connection.filename == str(app.path) for connection in apsw.connections() if is_open(connection))

    def is_open(connection: apsw.Connection) -> bool:
        try:
            return bool(connection.db_names())
        except apsw.ConnectionClosedError:
            return False

    before = count_open()
    with pytest.raises(ReplicatorError) as caught:
        Replicator(app.path, client)
    assert isinstance(caught.value, ReplicatorLockedError) is (mode == "WAL")
    assert count_open() == before == 1
    folder.close()


@pytest.mark.parametrize("name", ["app.db", "it's a ?%20#$x.db"])
def test_a_database_in_rollback_mode_is_refused_with_the_command_that_helps(make_app, client, name: str):
    app = make_app(name, mode="DELETE")
    with pytest.raises(ReplicatorError, match="journal mode 'delete'") as caught:
        Replicator(app.path, client)
    program, database, command = shlex.split(caught.value.hint.removeprefix("run: ").split(", or ")[0])
    assert program == "sqlite3"
    assert app.execute("PRAGMA journal_mode") == [("delete",)]
    with closing(sqlite3.connect(database)) as db:
        db.execute(command)
    with Replicator(app.path, client) as replicator:
        replicator.sync()
    assert_replicated(client, app.path)


def test_a_database_in_rollback_mode_is_switched_when_asked(make_app, client):
    app = make_app(mode="DELETE")
    with Replicator(app.path, client, switch_to_wal=True) as replicator:
        replicator.sync()
        assert app.connect().execute("PRAGMA journal_mode").get == "wal"
    assert_replicated(client, app.path)


def test_a_missing_database_is_refused_and_nothing_is_made(tmp_path: Path, client):
    with pytest.raises(ReplicatorError, match=r"no such file.*hint: the database comes first"):
        Replicator("s3://bucket/app", tmp_path / "app.db")
    with pytest.raises(ReplicatorError, match="no such file"):
        Replicator(tmp_path / "none.db", client)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_another_sqlite_in_this_process_has_open_is_refused(app, client):
    app.close()
    db = sqlite3.connect(app.path)
    db.execute("SELECT * FROM t")
    with pytest.raises(ReplicatorError, match=r"two copies of SQLite.*hint: run `litevfs replicate`"):
        Replicator(app.path, client)
    db.close()
    Replicator(app.path, client).close()


def test_an_sqlite_that_checkpoints_unsafely_is_refused(app, client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("apsw.sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(ReplicatorError, match=r"SQLite 3\.51\.2, the replicator needs 3\.51\.3 .*hint: pip install"):
        Replicator(app.path, client)
    for version in ("3.51.3", "3.52"):
        monkeypatch.setattr("apsw.sqlite_lib_version", lambda version=version: version)
        Replicator(app.path, client).close()


def test_a_link_to_the_database_is_the_database(app, client, tmp_path: Path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "app.db"
    link.symlink_to(app.path)
    with Replicator(link, client) as replicator:
        replicator.sync()
        with pytest.raises(ReplicatorLockedError):
            Replicator(app.path, client)
        app.insert()
        assert replicator.sync() == 2
    assert source_bytes(app.path) == source_bytes(link)
    assert state_folder(app).exists()


def test_the_state_names_no_credentials_and_can_be_read(app, client):
    start_ms = time.time() * 1000
    replicated(app, client)
    state = json.loads((state_folder(app) / "state.json").read_bytes())
    assert state["replica_url"] == client.url
    assert state["txid"] == 1
    assert state["timestamp_ms"] >= int(start_ms)
