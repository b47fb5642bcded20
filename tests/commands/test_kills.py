"""`litevfs replicate` as a container runs it, killed before each of its steps: the next start is always right.

A start that is killed leaves no half restored database that is taken for a whole one, no state that is not one, and no
way for a database that did not come from the replica to become its newest state.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import apsw
import pytest

from litevfs.maintenance.compaction import compact_level
from litevfs.operations.copy import copy_replica
from litevfs.operations.restore import restore
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from litevfs.replicate.slots import SlotFile
from litevfs.testing.s3_server import S3Server
from tests.servers import running_minio, use_bucket

ROOT = Path(__file__).parents[2]
KILLED = -9

APPLICATION = """
    import sqlite3, sys
    db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE IF NOT EXISTS t (a)")
    db.execute("INSERT INTO t VALUES ('started')")
"""


@dataclass(frozen=True, slots=True)
class World:
    """A machine with a database (or none), and the replica beside which it starts."""

    folder: Path
    command: subprocess.Popen[str]
    server: S3Server | None = None  # where the replica is instead, each time at another place

    @property
    def database(self) -> Path:
        return self.folder / "disk" / "app.db"

    @property
    def replica(self) -> Path:
        return self.folder / "replica"

    @property
    def url(self) -> str:
        """Where the replica is."""
        place = (self.folder / "place").read_text() if self.server else ""
        return self.server.url("kills", place) if self.server else str(self.replica)

    def start(self, *flags: object, kill_at: int = 0) -> int:
        """The exit code of one start of `litevfs replicate`."""
        arguments = ["replicate", self.database, self.url, "--no-compact", *flags]
        order = {"arguments": [str(part) for part in arguments], "kill_at": kill_at, "folder": str(self.folder)}
        assert self.command.stdin is not None
        assert self.command.stdout is not None
        order |= {"sends": self.server is not None, "log": str(self.folder.parent / "log")}
        self.command.stdin.write(json.dumps(order) + "\n")
        self.command.stdin.flush()
        return int(self.command.stdout.readline())

    def become(self, other: Path) -> None:
        """Take back everything that happened since `other` was copied."""
        shutil.rmtree(self.folder)
        shutil.copytree(other, self.folder)
        if self.server is not None:
            (self.folder / "place").write_text(uuid.uuid4().hex)
            if self.replica.exists():
                copy_replica(str(self.replica), self.url)

    def replicated(self) -> list[str]:
        """The rows of the newest state, whose file is sound."""
        target = self.folder / "check.db"
        restore(self.url, target, integrity_check=True)
        found = rows(target)
        for path in self.folder.glob(".check*"):
            path.unlink()
        target.unlink()
        return found


def rows(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [row[0] for row in db.execute("SELECT a FROM t WHERE length(a) < 20 ORDER BY rowid")]


def write(path: Path, *values: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with closing(apsw.Connection(str(path))) as db:
        db.execute("PRAGMA journal_mode=WAL").fetchall()
        db.execute("CREATE TABLE IF NOT EXISTS t (a)")
        for value in values:
            db.execute("INSERT INTO t VALUES (?)", (value,))


@contextmanager
def killed_commands() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.commands.killed_command"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as command:  # fmt: skip
        try:
            yield command
        finally:
            command.kill()
            command.communicate()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An empty disk, and a replica of three states, the first two compacted, of a database that is gone."""
    with killed_commands() as command:
        world = World(tmp_path / "world", command)
        (world.folder / "disk").mkdir(parents=True)
        client, before = FileReplicaClient(world.replica), tmp_path / "before" / "app.db"
        write(before, "one", "x" * 50_000)
        with closing(client), Replicator(before, client) as replicator:
            for value in ("two", "three"):
                replicator.sync()
                compact_level(client, 1)
                write(before, value, "y" * 20_000)
            replicator.sync()
        yield world


def nothing(world: World) -> None:
    pass


def restored_or_missing(world: World) -> None:
    """A database that is there is whole."""
    if world.database.exists() and world.database.stat().st_size:
        assert rows(world.database)[:3] == ["one", "two", "three"]


def a_new_database(world: World) -> None:
    write(world.database, "unrelated")


def no_replica(world: World) -> None:
    shutil.rmtree(world.replica)
    write(world.database, "one", "two", "three")


def a_replicated_database(world: World) -> None:
    """With the local state of its last run, and a transaction since."""
    assert world.start("--once", "--restore-if-missing") == 0
    write(world.database, "since")


def a_small_file_that_waits(world: World) -> None:
    """Captured into the record of the position, and not uploaded, by a run that was killed.

    Without a lease: that of the killed run is not known again beside a copy of the folder.
    """
    assert world.start("--once", "--restore-if-missing") == 0
    for value in ("since", "after"):
        with closing(apsw.Connection(str(world.database))) as db:
            db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # the WAL is kept, and read on
            db.execute("INSERT INTO t VALUES (?)", (value,))
        if value == "since":
            assert world.start("--once") == 0
    record = SlotFile(world.database.with_name(".app.db-litevfs") / "state.json")
    step = 1
    while "file" not in (record.read() or {}):
        assert world.start("--once", "--no-lease", kill_at=step) == KILLED
        step += 1


COURSES: dict[str, tuple[tuple[str, ...], Callable[[World], None], list[str]]] = {
    "restore": (("--once", "--restore-if-missing"), nothing, ["one", "two", "three"]),
    "first": (("--once",), no_replica, ["one", "two", "three"]),
    "next": (("--once", "--restore-if-missing"), a_replicated_database, ["one", "two", "three", "since"]),
    "waits": (("--once", "--no-lease"), a_small_file_that_waits, ["one", "two", "three", "since", "after"]),
    "refused": (("--once", "--restore-if-missing"), a_new_database, ["one", "two", "three"]),
    "exec": (("--restore-if-missing", "--exec"), nothing, ["one", "two", "three"]),
}


def run(world: World, name: str, every: int) -> int:
    """Kill one start of a course before every so many steps; returns how many steps it has."""
    flags, prepare, expected = COURSES[name]
    if name == "exec":
        program = world.folder.parent / "app.py"
        program.write_text(textwrap.dedent(APPLICATION))
        flags = (*flags, f"{sys.executable} '{program}' '{world.database}'")
    prepare(world)
    kept = world.folder.parent / "kept"
    shutil.copytree(world.folder, kept)
    right = 1 if name == "refused" else 0
    step = 1
    while True:
        world.become(kept)
        code = world.start(*flags, kill_at=step)
        if code != KILLED:
            assert code == right
            return step - 1
        if name != "refused":
            restored_or_missing(world)
        again = world.start(*flags)
        assert again == right, f"after a kill before step {step}: {(world.folder.parent / 'log').read_text()[-2000:]}"
        found = world.replicated()
        assert found[: len(expected)] == expected, f"after a kill before step {step}"
        if name == "refused":
            assert found == expected
        else:
            assert set(found[len(expected) :]) <= {"started"}
            assert rows(world.database) == found
        step += every


@pytest.mark.slow
def test_a_restore_that_is_killed_leaves_nothing_half(world: World):
    assert run(world, "restore", every=33) > 33


@pytest.fixture
def on_minio(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The same world; what the replica is, lies in MinIO."""
    (tmp_path / "minio").mkdir()
    with running_minio(tmp_path / "minio") as server:
        use_bucket(server, "kills", monkeypatch)
        with killed_commands() as command:  # with this environment
            yield replace(world, command=command, server=server)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "every"), [("restore", 1), ("first", 3), ("refused", 5), ("exec", 5)])
def test_no_upload_that_is_cut_off_leads_to_a_wrong_next_start(on_minio: World, name: str, every: int):
    steps = run(on_minio, name, every=every)
    print(f"{name} with MinIO: {steps} steps, killed before every {every}")
    assert steps > 10


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", COURSES)
def test_a_start_that_is_killed_before_any_step_leads_to_a_right_next_start(world: World, name: str):
    steps = run(world, name, every=1)
    print(f"{name}: killed before each of {steps} steps")
    assert steps > 10
