"""A followed file that becomes another database, while readers in other processes hold it open.

The replica is replaced, shrinks, changes its page size, or retention removes the file's state. Each reader adds up a
ledger and checks the whole file in a loop, by plain `sqlite3`; the follower is left alone, or killed at each step.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from litevfs.replica_clients.file import FileReplicaClient
from tests.primary import Primary
from tests.support import wait_until

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60.0

_READER = """
import json, sqlite3, sys, time
from pathlib import Path
path, control = sys.argv[1:]
reader = sqlite3.connect(path, timeout=60)
sql = "SELECT sum(cents), count(DISTINCT version), max(version) FROM account"
looks, newest, wrong = 0, 0, []
while True:
    is_last = Path(control).exists()
    try:
        total, versions, version = reader.execute(sql).fetchone()
        check = reader.execute("PRAGMA integrity_check").fetchall()
        if (total, versions, check) != (0, 1, [("ok",)]) or version < newest:
            wrong.append([total, versions, version, newest, check])
        newest = max(newest, version)
    except sqlite3.Error as error:
        wrong.append(repr(error))
    looks += 1
    if looks == 1:
        print("reads", flush=True)
    if is_last:
        break
    time.sleep(0.005)
print(json.dumps({"looks": looks, "newest": newest, "wrong": wrong}))
"""

_FOLLOWER = "import sys, litevfs; f = litevfs.follow(sys.argv[1], sys.argv[2], poll_interval='5ms'); sys.stdin.read()"

_KILLED_FOLLOWER = """
import os, sys
import numpy as np
import litevfs, litevfs.operations.follow
from litevfs.testing.kills import kill_at
url, path, stride = sys.argv[1], sys.argv[2], int(sys.argv[3])
np.unique(np.zeros(1))
step, kills = 1, 0
while True:
    child = os.fork()
    if child == 0:
        try:
            kill_at(step, os.path.dirname(path))
            litevfs.follow(url, path).close()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        break
    kills += 1
    step += stride
print(kills)
sys.exit(os.WEXITSTATUS(status))
"""


class World:
    """A replica in a folder that different primaries write, a followed file, and two processes that read it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder / "followed"
        self.folder.mkdir()
        self.path = self.folder / "app.db"
        self.client = FileReplicaClient(str(folder / "replica"))
        self.url = str(folder / "replica")
        self.control = folder / "stop"
        self.version = 0
        self._stack = stack
        self._readers: list[subprocess.Popen[str]] = []
        self.primary = self._new_primary(4096, 60)

    def _new_primary(self, page_size: int, rows: int) -> Primary:
        primary = self._stack.enter_context(Primary(self.client, page_size=page_size))
        primary.start_ms += self.version * 86_400_000
        self.version += 1
        primary.commit(
            "CREATE TABLE account (id INTEGER PRIMARY KEY, cents, version, filler); "
            "WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s LIMIT ?1) "
            "INSERT INTO account SELECT n, CASE n % 2 WHEN 0 THEN n - 1 ELSE -n END, ?2, randomblob(700) FROM s",
            (rows, self.version),
        )
        return primary

    def move(self) -> None:
        """A transaction that touches each row."""
        self.version += 1
        self.primary.commit(
            "UPDATE account SET version = ?, cents = cents + CASE id % 2 WHEN 0 THEN 5 ELSE -5 END", (self.version,)
        )

    def replace(self, page_size: int, rows: int) -> None:
        """Another database in the replica's place."""
        self.primary.delete_all()
        self.primary = self._new_primary(page_size, rows)

    def shrink(self) -> None:
        """Most rows deleted, and the pages given back."""
        self.version += 1
        self.primary.commit(f"DELETE FROM account WHERE id > 20; UPDATE account SET version = {self.version}; VACUUM")

    def outrun(self) -> None:
        """Retention leaves one snapshot file, of a later state."""
        self.move()
        self.move()
        self.primary.compact(9, 1, self.primary.txid)
        self.primary.delete(0)
        self.move()

    def start_readers(self) -> None:
        for _ in range(2):
            reader = subprocess.Popen(
                [sys.executable, "-c", _READER, str(self.path), str(self.control)], stdout=subprocess.PIPE, text=True
            )
            self._stack.callback(end, reader)
            self._readers.append(reader)
        for reader in self._readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reads\n"

    def answers(self) -> list[dict[str, Any]]:
        """End the readers; what each saw."""
        self.control.touch()
        return [json.loads(reader.communicate(timeout=TIMEOUT_S)[0]) for reader in self._readers]

    def file_version(self) -> int:
        with closing(sqlite3.connect(self.path, timeout=TIMEOUT_S)) as connection:
            return int(connection.execute("SELECT max(version) FROM account").fetchone()[0])

    def assert_file_is_newest(self) -> None:
        sql = "SELECT * FROM account ORDER BY id"
        with closing(sqlite3.connect(self.path, timeout=TIMEOUT_S)) as connection:
            assert connection.execute(sql).fetchall() == self.primary.rows(sql)
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert self.path.stat().st_size == len(self.primary.images[self.primary.txid])


REWRITES: list[Callable[[World], None]] = [
    lambda world: world.replace(4096, 90),
    World.shrink,
    lambda world: world.replace(512, 40),
    World.outrun,
    lambda world: world.replace(16384, 130),
]


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


@contextmanager
def follower(world: World) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _FOLLOWER, world.url, str(world.path)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        end(process)


def assert_saw_states_only(world: World) -> None:
    for answer in world.answers():
        assert answer["wrong"] == []
        assert answer["newest"] == world.version
        assert answer["looks"] > 1


def test_readers_of_other_processes_see_whole_states_of_each_database_it_becomes(world):
    with follower(world) as process:
        wait_until(world.path.exists, "the file", TIMEOUT_S)
        inode = world.path.stat().st_ino
        world.start_readers()
        for rewrite in REWRITES:
            process.send_signal(signal.SIGSTOP)  # so that retention can outrun it
            try:
                rewrite(world)
            finally:
                process.send_signal(signal.SIGCONT)
            wait_until(lambda: world.file_version() == world.version, "the newest state", TIMEOUT_S)
            world.assert_file_is_newest()
        assert_saw_states_only(world)
        assert world.path.stat().st_ino == inode  # what the readers hold open


@pytest.mark.parametrize("stride", [10, pytest.param(1, marks=pytest.mark.soak)])
def test_the_same_while_the_follower_is_killed_at_its_steps(world, stride):
    follow_killed(world, stride)
    world.start_readers()
    for rewrite in REWRITES:
        rewrite(world)
        assert follow_killed(world, stride) >= 3
        world.assert_file_is_newest()
    assert_saw_states_only(world)
    assert {path.name for path in world.folder.iterdir()} == {"app.db", "app.db-follow"}


def follow_killed(world: World, stride: int) -> int:
    """Followers one after the other, each killed `stride` steps later than the one before; how many were."""
    command = [sys.executable, "-c", _KILLED_FOLLOWER, world.url, str(world.path), str(stride)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S * 5, check=True)
    return int(done.stdout)
