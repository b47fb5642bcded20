"""Random courses of a database between runs of `litevfs replicate`: after each run, the replica is the database.

Programs write, shrink, change schema and page size, checkpoint, lose the WAL and put older or new files in the place of
the database; runs are killed, the state folder is lost or comes back damaged, or from an earlier time, as the replica
does. Earlier TXIDs stay what they were.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from litevfs.operations.restore import restore
from litevfs.replica_clients.base import LEVELS
from litevfs.replica_clients.file import FileReplicaClient
from tests.commands.test_kills import killed_commands
from tests.peer import litestream_binary
from tests.replicate.support import opened

PAGE_SIZE = 1024


class Course:
    """A database, its replica, and what happens to them."""

    def __init__(self, folder: Path, seed: int, command: subprocess.Popen[str]) -> None:
        self.folder, self.rng, self._command = folder, random.Random(seed), command
        self.database, self.replica = folder / "disk" / "app.db", folder / "replica"
        self.state = folder / "disk" / ".app.db-litevfs"
        self.did: list[str] = []
        self.database.parent.mkdir()
        with closing(self._connect()) as db:
            db.execute(f"PRAGMA page_size={PAGE_SIZE}")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a BLOB)")
            for _ in range(150):
                db.execute("INSERT INTO t (a) VALUES (randomblob(700))")
        self._open: sqlite3.Connection | None = None
        self._images: dict[int, bytes] = {}  # the database at TXIDs
        self._kept_images: dict[int, bytes] = {}  # those of the kept replica

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    # --- what happens ------------------------------------------------------------------------------------------------

    def happen(self) -> None:
        """One thing, of those that are possible now."""
        acts: list[Callable[[], object]] = [
            self.write, self.write, self.write, self.write_much, self.shrink, self.checkpoint, self.open_or_close,
            self.lose_wal, self.keep_files, self.bring_back_files, self.leave_wal_mode_for_a_while, self.kill,
            self.kill_service, self.damage_sums, self.keep_state, self.bring_back_sums, self.bring_back_state,
            self.lose_disk, self.lose_state, self.alter, self.change_page_size, self.roll_back, self.limit_wal,
            self.put_new_database, self.copy_over_beside_wal, self.bring_back_with_wal, self.keep_replica,
            self.set_back_replica,
        ]  # fmt: skip
        act = self.rng.choice(acts)
        self.did.append(act.__name__)
        act()

    def write(self) -> None:
        with self._used() as db:
            for _ in range(self.rng.randrange(1, 4)):
                self._statement(db)

    def write_much(self) -> None:
        with self._used() as db:
            db.execute("UPDATE t SET a = randomblob(700) WHERE id % 3 = ?", (self.rng.randrange(3),))

    def shrink(self) -> None:
        with self._used() as db:
            db.execute("DELETE FROM t WHERE id % 7 = ?", (self.rng.randrange(7),))
            db.execute("VACUUM")

    def checkpoint(self) -> None:
        with self._used() as db:
            db.execute(f"PRAGMA wal_checkpoint({self.rng.choice(['PASSIVE', 'RESTART', 'TRUNCATE'])})").fetchall()

    def open_or_close(self) -> None:
        """An application that stays, or one that ends, and takes the WAL along."""
        if self._open is None:
            self._open = self._connect()
            self._open.execute("SELECT count(*) FROM t").fetchall()
        else:
            self.close()

    def lose_wal(self) -> None:
        """As after a power failure without `synchronous=FULL`: commits are gone, replicated ones, too."""
        copy = self._copy(self.folder / "copy") / "app.db"
        copy.with_name("app.db-wal").unlink(missing_ok=True)
        with closing(sqlite3.connect(copy)) as db:
            is_sound = db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]  # no checkpoint was half done
        if is_sound:
            self._put(copy)

    def keep_files(self) -> None:
        self._copy(self.folder / "kept")

    def bring_back_files(self) -> None:
        """An older backup takes the place of the database, as a new file or in the same one."""
        if (kept := self._kept_whole()) is not None:
            self._put(kept)

    def leave_wal_mode_for_a_while(self) -> None:
        self.close()
        with closing(self._connect()) as db:
            db.execute("PRAGMA journal_mode=DELETE")
            self._statement(db)
            db.execute("PRAGMA journal_mode=WAL")

    def alter(self) -> None:
        index = len(self.did)
        with self._used() as db:
            db.execute(
                self.rng.choice(
                    [
                        f"ALTER TABLE t ADD COLUMN c{index} DEFAULT 7",
                        f"CREATE TABLE x{index} (a PRIMARY KEY, b) WITHOUT ROWID",
                        "CREATE INDEX IF NOT EXISTS i ON t (a)",
                        "DROP INDEX IF EXISTS i",
                        "REINDEX",
                    ]
                )
            )

    def change_page_size(self) -> None:
        self.close()
        with closing(self._connect()) as db:
            db.execute("PRAGMA journal_mode=DELETE")
            db.execute(f"PRAGMA page_size={self.rng.choice([512, PAGE_SIZE, 4096])}")
            db.execute(f"PRAGMA auto_vacuum={self.rng.randrange(3)}")
            db.execute("VACUUM")
            db.execute("PRAGMA journal_mode=WAL")

    def roll_back(self) -> None:
        """Leave frames in the WAL that count for nothing."""
        with self._used() as db:
            db.execute("PRAGMA cache_spill=2")
            db.execute("PRAGMA cache_size=5")
            db.execute("BEGIN")
            db.execute("UPDATE t SET a = randomblob(800)")
            db.execute("ROLLBACK")

    def limit_wal(self) -> None:
        with self._used() as db:
            db.execute(f"PRAGMA journal_size_limit={self.rng.choice([0, 5000, 40000])}")
            self._statement(db)
            db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            self._statement(db)

    def put_new_database(self) -> None:
        """Delete the database, or cut it off to nothing, maybe beside its WAL, and begin another one."""
        self.close()
        if self.rng.random() < 0.5:
            for suffix in ("", "-wal", "-shm"):
                self.database.with_name(f"app.db{suffix}").unlink(missing_ok=True)
        else:
            os.truncate(self.database, 0)
        with closing(self._connect()) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a BLOB)")
            for _ in range(self.rng.randrange(1, 150)):
                db.execute("INSERT INTO t (a) VALUES (randomblob(700))")

    def copy_over_beside_wal(self) -> None:
        """As `cp` of a backup does where a replicator has left the WAL; unless that breaks the database."""
        if (kept := self._kept_whole()) is not None:
            self.close()
            self.database.write_bytes(kept.read_bytes())
            self._remove_wal_unless_sound()

    def bring_back_with_wal(self) -> None:
        """An older copy of both files, as new ones or each in its place."""
        if (self.folder / "kept").exists():
            self.close()
            as_new = self.rng.random() < 0.5
            for name in ("app.db", "app.db-wal", "app.db-shm"):
                source, target = self.folder / "kept" / name, self.database.with_name(name)
                if as_new or not source.exists():
                    target.unlink(missing_ok=True)
                if source.exists():
                    target.write_bytes(source.read_bytes())
            self._remove_wal_unless_sound()

    def keep_replica(self) -> None:
        if self.replica.exists():
            shutil.rmtree(self.folder / "kept-replica", ignore_errors=True)
            shutil.copytree(self.replica, self.folder / "kept-replica")
            self._kept_images = dict(self._images)

    def set_back_replica(self) -> None:
        if (self.folder / "kept-replica").exists():
            shutil.rmtree(self.replica)
            shutil.copytree(self.folder / "kept-replica", self.replica)
            self._images = dict(self._kept_images)

    def lose_state(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)

    def kill(self) -> None:
        self._run("--once", kill_at=self.rng.randrange(1, 45))

    def kill_service(self) -> None:
        """A run that stays, beside an application that writes; both are killed."""
        arguments = ["replicate", self.database, self.replica, "--no-compact", "--no-lease", "--sync-interval", "10ms"]
        with subprocess.Popen([sys.executable, "-m", "litevfs", *arguments], stderr=subprocess.PIPE) as service:
            assert service.stderr is not None
            service.stderr.readline()  # it has begun, or was refused
            for _ in range(self.rng.randrange(1, 12)):
                self.rng.choice([self.write, self.write, self.write_much, self.checkpoint])()
            service.kill()

    def damage_sums(self) -> None:
        for name in ("pages.log", "pages.sums"):
            path = self.state / name
            if path.exists() and path.stat().st_size and self.rng.random() < 0.5:
                data = bytearray(path.read_bytes())
                at = self.rng.randrange(len(data))
                if self.rng.random() < 0.5:
                    data[at:] = bytes(len(data) - at)
                else:
                    data[at] ^= 1 << self.rng.randrange(8)
                path.write_bytes(data)

    def keep_state(self) -> None:
        shutil.rmtree(self.folder / "state", ignore_errors=True)
        if self.state.exists():
            shutil.copytree(self.state, self.folder / "state")

    def bring_back_sums(self) -> None:
        """The sums of an earlier time, beside the state of now: one of their files, or both."""
        for name in ("pages.log", "pages.sums"):
            path = self.folder / "state" / name
            if path.exists() and self.state.exists() and self.rng.random() < 0.7:
                shutil.copy(path, self.state / name)

    def bring_back_state(self) -> None:
        if (self.folder / "state").exists():
            self.lose_state()
            shutil.copytree(self.folder / "state", self.state)

    def lose_disk(self) -> None:
        """As a container that starts on an empty one; the first start may be killed."""
        if self.replica.exists():
            self.close()
            shutil.rmtree(self.database.parent)
            self.database.parent.mkdir()
            if self.rng.random() < 0.5:
                self._run("--once", "--restore-if-missing", kill_at=self.rng.randrange(1, 70))
            assert self._run("--once", "--restore-if-missing") == 0, self.log

    # --- runs ---------------------------------------------------------------------------------------------------------

    def replicate(self) -> None:
        """One run; a state folder that is older than the replica may be refused."""
        if self._run("--once") != 0:
            assert self._run("--once", "--new-history") == 0, self.log

    def _run(self, *flags: str, kill_at: int = 0) -> int:
        arguments = ["replicate", str(self.database), str(self.replica), "--no-compact", "--no-lease", *flags]
        order = {"arguments": arguments, "kill_at": kill_at, "folder": str(self.folder), "sends": False}
        assert self._command.stdin is not None
        assert self._command.stdout is not None
        self._command.stdin.write(json.dumps(order | {"log": str(self.folder / "log")}) + "\n")
        self._command.stdin.flush()
        code = int(self._command.stdout.readline())
        assert code in (0, 1) or kill_at, self.log
        return code

    @property
    def log(self) -> str:
        return f"{self.did[-20:]}\n{(self.folder / 'log').read_text()[-3000:]}"

    # --- what there is ------------------------------------------------------------------------------------------------

    def content(self) -> bytes:
        """The database as a reader sees it now."""
        copy = self._copy(self.folder / "seen")
        with closing(sqlite3.connect(copy / "app.db")) as db:
            return db.serialize()

    def assert_replicated(self, *, by_litestream: bool) -> None:
        expected, target = self.content(), self.folder / "restored.db"
        restore(str(self.replica), target)
        assert target.read_bytes() == expected, self.log
        db = opened(expected)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], self.log
        db.close()
        target.unlink()
        if by_litestream:
            litestream_binary.restore(f"file://{self.replica}", target)
            assert target.read_bytes() == expected, self.log
            target.unlink()
        files = [file for level in LEVELS for file in FileReplicaClient(self.replica).list_files(level)]
        newest = max(file.max_txid for file in files)
        txids = [file.max_txid for file in files if file.level == 0]
        assert txids == list(range(txids[0], newest + 1)), self.log
        self._images = {txid: image for txid, image in self._images.items() if newest - 10 < txid <= newest}
        self._images[newest] = expected
        txid = self.rng.choice(list(self._images))
        restore(str(self.replica), target, txid=txid)
        assert target.read_bytes() == self._images[txid], (txid, self.log)
        target.unlink()

    def _kept_whole(self) -> Path | None:
        """The kept database, without a WAL."""
        kept = self.folder / "kept" / "app.db"
        if not kept.exists():
            return None
        with closing(sqlite3.connect(kept)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return kept

    def _put(self, other: Path) -> None:
        """Put another file in the place of the database, or its content into it. The WAL is gone."""
        self.close()
        with closing(self._connect()) as db:  # after a killed process, too
            db.execute("SELECT count(*) FROM t").fetchall()
        if self.rng.random() < 0.5:
            shutil.copy(other, self.folder / "disk" / "new.db")
            (self.folder / "disk" / "new.db").replace(self.database)
        else:
            self.database.write_bytes(other.read_bytes())

    def _copy(self, target: Path) -> Path:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for suffix in ("", "-wal"):
            path = self.database.with_name(f"app.db{suffix}")
            if path.exists():
                shutil.copy(path, target / path.name)
        return target

    def _remove_wal_unless_sound(self) -> None:
        try:
            copy = (
                self._copy(self.folder / "copy") / "app.db"
            )  # the last program to close it would copy the WAL over it
            with closing(sqlite3.connect(copy)) as db:
                is_sound = db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        except sqlite3.DatabaseError:
            is_sound = False
        if not is_sound:
            for suffix in ("-wal", "-shm"):
                self.database.with_name(f"app.db{suffix}").unlink(missing_ok=True)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.database, isolation_level=None, timeout=20)

    def _statement(self, db: sqlite3.Connection) -> None:
        some = self.rng.randrange(200)
        db.execute(
            *self.rng.choice(
                [
                    ("INSERT INTO t (a) VALUES (randomblob(?))", (some * 10,)),
                    ("UPDATE t SET a = randomblob(600) WHERE id = ?", (some,)),
                    ("DELETE FROM t WHERE id = ?", (some,)),
                ]
            )
        )

    def _used(self) -> closing[sqlite3.Connection]:
        """The application's connection, or one of a program that ends after it."""
        return closing(self._connect())


@pytest.fixture
def command() -> Iterator[subprocess.Popen[str]]:
    with killed_commands() as command:
        yield command


@pytest.mark.slow
@pytest.mark.plan("D15")
@pytest.mark.parametrize("seed", range(2))
def test_after_each_run_the_replica_is_the_database(tmp_path: Path, command, seed: int):
    play(Course(tmp_path, seed, command), runs=15, by_litestream=False)


@pytest.mark.chaos
@pytest.mark.plan("D15")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(100, 106))
def test_after_each_of_many_runs_the_replica_is_the_database(tmp_path: Path, command, seed: int):
    play(Course(tmp_path, seed, command), runs=100, by_litestream=True)


def play(course: Course, runs: int, *, by_litestream: bool) -> None:
    try:
        for run in range(runs):
            for _ in range(course.rng.randrange(4)):
                course.happen()
            course.did.append("replicate")
            course.replicate()
            course.assert_replicated(by_litestream=by_litestream and run % 10 == 9)
    finally:
        course.close()
