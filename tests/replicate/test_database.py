"""The source through SQLite: which files it is, and what of others' locks it waits for."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import apsw
import pytest

from litevfs.errors import LTXFormatError, ReplicatorError
from litevfs.replicate import Replicator
from litevfs.replicate.database import SourceDatabase, WALState, translated
from litevfs.replicate.wal import WALReader
from tests.replicate.support import assert_replicated


def in_another_process(program: str, *arguments: object) -> str:
    """Run Python code as a process of its own: this one must not open a database in use by ordinary means."""
    command = [sys.executable, "-c", f"import os, pathlib, shutil, sqlite3, sys\n{program}", *map(str, arguments)]
    done = subprocess.run(
        command, check=True, timeout=60, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    return done.stdout


REMOVE_COMPANIONS = """
path = pathlib.Path(sys.argv[1])
for suffix in ("-wal", "-shm"):
    path.with_name(path.name + suffix).unlink()
"""
RESTORE_IN_PLACE = f"{REMOVE_COMPANIONS}\nshutil.copyfile(sys.argv[2], path)"
WRITE = """
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
for n in range(5):
    db.execute("INSERT INTO t (data) VALUES (randomblob(3000))")
os._exit(0)  # as an application that goes on: nothing is checkpointed
"""
REPLICATE_AS_NOBODY = """
from litevfs.replicate import Replicator
os.setuid(65534)
try:
    Replicator(sys.argv[1], "memory://replica")
except Exception as exc:
    print(type(exc).__name__, exc)
"""


@pytest.fixture
def backup(app, tmp_path: Path) -> Path:
    """A copy of the database as it was when there were two rows in it."""
    app.insert(2, 3000)
    app.execute("VACUUM INTO ?", str(tmp_path / "backup.db"))
    with closing(apsw.Connection(str(tmp_path / "backup.db"))) as db:
        db.execute("PRAGMA journal_mode=WAL")
    return tmp_path / "backup.db"


# --- which files it is ------------------------------------------------------------------------------------------------


def test_a_database_that_was_restored_into_the_same_file_is_replicated_again(app, client, backup: Path):
    app.execute("PRAGMA wal_autocheckpoint=0")
    with Replicator(app.path, client, checkpoint_pages=5) as replicator:
        replicator.sync()
        app.insert(20, 3000)
        replicator.sync()
        inode = app.path.stat().st_ino
        app.close()
        in_another_process(RESTORE_IN_PLACE, app.path, backup)
        in_another_process(WRITE, app.path)
        assert app.path.stat().st_ino == inode
        replicator.sync()
        assert replicator.status.last_comparison_reason == "the database file was replaced by another"
        assert_replicated(client, app.path)
        in_another_process(WRITE, app.path)
        replicator.sync()
        assert_replicated(client, app.path)
        assert replicator.status.comparisons == 1
    with closing(apsw.Connection(str(app.path))) as db:
        assert db.execute("SELECT count(*) FROM t").get == 12
        assert db.execute("PRAGMA integrity_check").get == "ok"


def test_nothing_is_checkpointed_into_a_database_that_was_restored_into_the_same_file(app, backup: Path):
    app.execute("PRAGMA wal_autocheckpoint=0")
    source = SourceDatabase(app.path)
    app.insert(20, 3000)
    app.close()
    assert not source.was_replaced()
    in_another_process(RESTORE_IN_PLACE, app.path, backup)
    with pytest.raises(ReplicatorError, match="the database was replaced"):
        source.checkpoint()
    with pytest.raises(ReplicatorError, match="the database was replaced"):
        source.is_kept_from_writing()
    source.close()
    assert app.path.read_bytes()[96:] == backup.read_bytes()[96:]  # before: the number of SQLite's version


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_either_file_beside_the_database_counts(app, suffix: str):
    source = SourceDatabase(app.path)
    app.path.with_name(app.path.name + suffix).unlink()
    assert source.was_replaced()
    source.close()
    assert source.was_replaced()


def test_a_database_with_another_name_is_replicated_with_a_warning(app, client, caplog, tmp_path: Path):
    with Replicator(app.path, client) as replicator:
        replicator.sync()
    assert caplog.text == ""
    (tmp_path / "backup.db").hardlink_to(app.path)
    app.insert()
    with Replicator(app.path, client) as replicator:
        assert replicator.sync() == 2
    assert "has 2 names (hard links)" in caplog.text
    assert_replicated(client, app.path)


def test_the_files_stay_the_same_whatever_the_application_does(app):
    app.close()  # SQLite removes both files
    source = SourceDatabase(app.path)
    app.db = app.connect()
    app.insert(10, 3000)
    app.checkpoint("TRUNCATE")
    app.execute("VACUUM")
    with pytest.raises(apsw.BusyError):
        app.execute("PRAGMA journal_mode=DELETE")
    app.close()
    assert not source.was_replaced()
    source.close()
    assert source.was_replaced()  # nothing is open on it any more


def test_a_database_that_goes_away_while_it_is_opened_is_not_made_again(app, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("litevfs.replicate.database.refuse_other_sqlite", lambda path, file: path.unlink())
    with pytest.raises(ReplicatorError, match="unable to open database file"):
        SourceDatabase(app.path)
    assert not app.path.exists()


def test_why_there_is_no_database_is_told(app):
    for path, reason in ((app.path / "app.db", "Not a directory"), (app.path.with_name("none.db"), "no such file")):
        with pytest.raises(ReplicatorError, match=f"no database to replicate: {reason}"):
            SourceDatabase(path)


def test_where_descriptors_are_not_shown_nothing_is_refused_for_them(app, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("litevfs.replicate.source_file._FD_FOLDER", Path("/none"))
    app.close()
    db = sqlite3.connect(app.path)
    db.execute("SELECT * FROM t").fetchall()
    db.close()
    SourceDatabase(app.path).close()


def test_a_connection_that_does_not_say_what_it_is_on_may_be_on_this(app, monkeypatch: pytest.MonkeyPatch):
    """As one that another thread uses just now."""

    class Busy:
        def db_names(self) -> list[str]:
            raise apsw.ThreadingViolationError("in use in another thread")

    monkeypatch.setattr("apsw.connections", list)
    with pytest.raises(ReplicatorError, match="two copies of SQLite"):
        SourceDatabase(app.path)
    monkeypatch.setattr("apsw.connections", lambda: [Busy()])
    SourceDatabase(app.path).close()


def test_what_is_no_database_is_refused_without_a_hint_at_locks(app):
    path = app.path.with_name("text.db")
    path.write_text("no database" * 1000)
    with pytest.raises(ReplicatorError, match="SQLite: file is not a database") as caught:
        SourceDatabase(path)
    assert caught.value.hint is None


def test_what_the_system_refuses_is_told_in_its_words(tmp_path: Path):
    for error, words in ((OSError(errno.EIO, "Input/output error"), "Input/output error"), (OSError("none"), "none")):
        with pytest.raises(ReplicatorError) as caught, translated(tmp_path):
            raise error
        assert (caught.value.message, caught.value.key) == (words, str(tmp_path))
    own = LTXFormatError("damaged")
    with pytest.raises(LTXFormatError) as caught, translated(tmp_path):
        raise own
    assert caught.value is own


def test_links_in_a_circle_lead_to_no_database(client, tmp_path: Path):
    (tmp_path / "one.db").symlink_to(tmp_path / "other.db")
    (tmp_path / "other.db").symlink_to(tmp_path / "one.db")
    with pytest.raises(ReplicatorError, match="no database to replicate"):
        Replicator(tmp_path / "one.db", client)


def test_a_link_leads_to_the_files_that_sqlite_uses(app, tmp_path: Path):
    (tmp_path / "link.db").symlink_to(app.path)
    with closing(SourceDatabase(tmp_path / "link.db")) as source:
        assert (source.path, source.wal_path) == (app.path, app.path.with_name("app.db-wal"))


def test_a_database_that_is_made_again_in_rollback_mode_is_replicated_once_it_is_in_wal_mode(make_app, client):
    app = make_app()
    app.insert()
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        app.close()
        app.path.unlink()
        in_another_process(REMOVE_COMPANIONS, app.path)
        app = make_app(mode="DELETE")
        for _ in range(2):
            with pytest.raises(ReplicatorError, match="journal mode 'delete'"):
                replicator.sync()
            replicator.capturing.capture.settle()  # holds nothing, so it has nothing to complain of ten times a second
        app.execute("PRAGMA journal_mode=WAL")
        app.insert(3)
        assert replicator.sync() == 2
        app.insert()
        assert replicator.sync() == 3
        assert_replicated(client, app.path)


def test_a_database_that_is_made_again_in_rollback_mode_is_switched_when_that_was_asked_for(make_app, client):
    app = make_app(mode="DELETE")
    app.insert()
    with Replicator(app.path, client, switch_to_wal=True) as replicator:
        replicator.sync()
        app.close()
        app.path.unlink()
        in_another_process(REMOVE_COMPANIONS, app.path)
        app = make_app(mode="DELETE")
        app.insert(3)
        assert replicator.sync() == 2
        assert app.connect().execute("PRAGMA journal_mode").get == "wal"
        assert_replicated(client, app.path)


def test_the_wal_of_a_database_that_took_the_place_of_another_is_let_go_of_too(app, client, backup: Path):
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        app.close()
        in_another_process(RESTORE_IN_PLACE, app.path, backup)
        app.db = app.connect()
        app.db.set_busy_timeout(0)
        app.execute("PRAGMA wal_autocheckpoint=0")
        app.insert()
        replicator.sync()
        app.insert()
        replicator.sync()
        assert app.checkpoint("TRUNCATE")[0] == 1
        shutil.rmtree(app.path.with_name(f".{app.path.name}-litevfs"))
        with pytest.raises(ReplicatorError, match="local state was removed"):
            replicator.capturing.capture.step()
        assert app.checkpoint("TRUNCATE") == (0, 0, 0)


# --- how far the WAL goes ---------------------------------------------------------------------------------------------


def test_counts_of_a_wal_that_was_started_over_meanwhile_are_not_believed(app, monkeypatch: pytest.MonkeyPatch):
    """SQLite reads one after the other: of (50, 50) before and (3, 0) after, it can say (50, 0)."""
    with closing(SourceDatabase(app.path)) as source, WALReader(source.wal_path) as wal:
        app.insert()
        counts = iter([(50, 0), (3, 0), (3, 1), (4, 2)])
        monkeypatch.setattr(source, "wal_counts", counts.__next__)
        assert source.wal_state(wal) == WALState(wal.header(), 3, 0)
        assert next(counts) == (4, 2)


def test_counts_go_with_the_header_they_were_read_with(app, monkeypatch: pytest.MonkeyPatch):
    with closing(SourceDatabase(app.path)) as source, WALReader(source.wal_path) as wal:
        app.insert()
        header = wal.header()
        before = replace(header, salt1=header.salt1 - 1)
        monkeypatch.setattr(wal, "header", iter([before, header, header]).__next__)
        assert source.wal_state(wal).header == header


def test_no_caller_waits_for_ever_for_what_sqlite_says(app, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("litevfs.replicate.database._BUSY_TIMEOUT_MS", 10)
    with closing(SourceDatabase(app.path)) as source:
        monkeypatch.setattr(source, "_checkpoint", lambda mode: None)
        source.checkpoint(wait=True)
        with pytest.raises(ReplicatorError, match="does not say how far the WAL goes"):
            source.wal_counts()


# --- the locks of others ----------------------------------------------------------------------------------------------


def test_a_database_that_its_application_does_not_share_is_refused_with_a_hint(app, client, sleeps: list[int]):
    app.execute("PRAGMA locking_mode=EXCLUSIVE")
    app.insert()
    with pytest.raises(ReplicatorError, match=r"database is locked .*hint: .*locking_mode=EXCLUSIVE"):
        Replicator(app.path, client)
    assert 0 < sum(sleeps) <= 1_000_000  # it may be locked for a moment only


def test_a_checkpoint_can_wait_for_one_that_is_under_way(app, stuck_in_checkpoint):
    app.execute("PRAGMA wal_autocheckpoint=0")
    source = SourceDatabase(app.path)
    app.insert(10, 3000)
    with stuck_in_checkpoint(until=source):
        app.insert(10, 3000)
        source.checkpoint()
        assert app.checkpoint("NOOP")[2] == 0
        source.checkpoint(wait=True)
        _, frames, backfilled = app.checkpoint("NOOP")
        assert backfilled == frames
    source.close()


@pytest.fixture
def sleeps():
    """Microseconds that connections opened from here on sleep for locks, each time."""
    slept: list[int] = []

    class VFS(apsw.VFS):
        def __init__(self) -> None:
            super().__init__("counts-sleeps", "", makedefault=True)

        def xSleep(self, microseconds: int) -> int:
            slept.append(microseconds)
            return super().xSleep(microseconds)

    vfs = VFS()
    yield slept
    vfs.unregister()


def test_no_checkpoint_of_ours_waits_for_a_reader_while_it_holds_off_writers(app, sleeps: list[int]):
    with closing(SourceDatabase(app.path)) as source:
        app.insert()
        reader = app.connect()
        reader.execute("BEGIN; SELECT * FROM t").fetchall()
        app.insert()
        source.checkpoint(truncate=True)
        assert sleeps == []
        assert app.checkpoint("NOOP")[1] > 0
        reader.execute("COMMIT")
        source.checkpoint(truncate=True)
        assert app.checkpoint("NOOP")[1] == 0


def test_the_write_lock_is_waited_for_a_moment_only_and_not_at_all_to_see_who_has_it(
    app, stuck_in_checkpoint, sleeps: list[int]
):
    """The connection that has it may be waiting for the transaction that is held here."""
    with closing(SourceDatabase(app.path)) as source:
        app.insert()
        with source.hand_over():
            pass
        with stuck_in_checkpoint(until=source):
            assert not source.is_kept_from_writing()
            app.execute("BEGIN IMMEDIATE")
            assert source.is_kept_from_writing()
            assert sleeps == []
        with pytest.raises(ReplicatorError, match="locked"), source.hand_over(writer=True):
            pass
        assert 0 < sum(sleeps) <= 50_000
        app.execute("COMMIT")
        with source.hand_over(writer=True):
            pass
        app.db.set_busy_timeout(0)
        with pytest.raises(apsw.BusyError):
            app.insert()
        source.release()
        app.insert()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("unwritable", [[""], ["-wal", "-shm"]])
def test_a_database_that_may_only_be_read_is_refused_with_a_hint_and_nothing_is_made(unwritable: list[str]):
    """Checkpoints write the database, and what they lock lies in the other two."""
    with TemporaryDirectory() as folder, closing(apsw.Connection(f"{folder}/app.db")) as db:
        Path(folder).chmod(0o777)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t (x)")
        files = sorted(Path(folder).iterdir())
        assert [file.name for file in files] == ["app.db", "app.db-shm", "app.db-wal"]
        for file in files:
            file.chmod(0o644 if file.name.removeprefix("app.db") in unwritable else 0o666)
        refused = in_another_process(REPLICATE_AS_NOBODY, files[0])
        assert refused.startswith("ReplicatorError SQLite: attempt to write a readonly database")
        assert "hint: the replicator needs permission to write the database" in refused
        assert sorted(Path(folder).iterdir()) == files
