"""A database without local state: followed when it is, or came from, the replica's newest state, else refused."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import apsw
import pytest

from litevfs.errors import ReplicaFormatError, TransientStorageError, UnrelatedDatabaseError
from litevfs.operations.restore import restore
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from tests.replicate.support import assert_replicated, rebuilt, refuse_writes
from tests.support import wait_until


@pytest.fixture
def primary(app, client):
    """A replica at TXID 3 whose primary has ended; its database."""
    with Replicator(app.path, client) as replicator:
        for _ in range(3):
            app.insert(20)
            replicator.sync()
    return app


def restored(client, path: Path, **options: object) -> Path:
    restore(client, path, **options)
    return path


def write(path: Path, *statements: str) -> None:
    """As an application does, which ends: the WAL is gone after it."""
    db = sqlite3.connect(path, isolation_level=None)
    for sql in statements:
        db.execute(sql)
    db.close()


def files(client: FileReplicaClient) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in client.root.rglob("*.ltx")}


def test_a_new_database_never_becomes_the_newest_state_of_a_replica_that_has_one(primary, make_app, client):
    """A container that comes back with an empty disk, where the application has made its tables."""
    before, state = files(client), rebuilt(client)
    new = make_app("new.db")
    with Replicator(new.path, client) as replicator, pytest.raises(UnrelatedDatabaseError) as caught:
        replicator.sync()
    assert files(client) == before
    said = str(caught.value)
    for part in ("TXID 0000000000000003 of 20", f"{len(state):,} bytes", "no TXID, last written 20", "8,192 bytes"):
        assert part in said
    for way_out in ("`litevfs restore`", "--restore-if-missing", "--new-history"):
        assert way_out in (caught.value.hint or "")


@pytest.mark.parametrize("leaves_wal", [False, True])
def test_a_database_that_is_replaced_before_the_first_sync_is_the_one_that_is_compared(
    primary, make_app, client, leaves_wal: bool
):
    before, new = files(client), make_app("new.db")
    shutil.rmtree(primary.path.with_name(".app.db-litevfs"))
    with Replicator(primary.path, client) as replicator:
        if leaves_wal:
            new.insert(5)
        else:
            new.close()
        for suffix in ("-wal", "-shm"):
            primary.path.with_name(f"app.db{suffix}").unlink(missing_ok=True)
        for suffix in ("", "-wal", "-shm"):
            source = new.path.with_name(f"new.db{suffix}")
            if source.exists():
                source.replace(primary.path.with_name(f"app.db{suffix}"))
        with pytest.raises(UnrelatedDatabaseError):
            replicator.sync()
    assert files(client) == before


def test_the_threads_of_a_replicator_that_is_refused_end_and_say_why(primary, make_app, client):
    before = files(client)
    with Replicator(make_app("new.db").path, client) as replicator:
        replicator.start()
        with pytest.raises(UnrelatedDatabaseError):
            replicator.wait(20)
        assert "nothing shows that it came from it" in replicator.status.last_error
    assert files(client) == before


def test_told_to_a_new_history_begins_with_any_database_once(primary, make_app, client, replicate):
    new = make_app("new.db")
    replicator = replicate(new, new_history=True)
    assert replicator.sync() == 4
    assert_replicated(client, new.path)


@pytest.mark.parametrize("is_written_to", [False, True])
def test_a_restored_database_goes_on_whatever_was_written_since(primary, client, tmp_path: Path, is_written_to: bool):
    path = restored(client, tmp_path / "restored.db")
    if is_written_to:
        write(path, "DELETE FROM t WHERE id < 10", "CREATE TABLE more (a)", "VACUUM")
    with Replicator(path, client) as replicator:
        assert replicator.sync() == 4
    assert_replicated(client, path)


def test_an_older_state_that_was_restored_is_a_fork_and_refused(primary, client, tmp_path: Path):
    path = restored(client, tmp_path / "restored.db", txid=2)
    with (
        Replicator(path, client) as replicator,
        pytest.raises(UnrelatedDatabaseError, match=r"TXID 0000000000000003 of .*restored from TXID 0000000000000002"),
    ):
        replicator.sync()
    assert len(client.list_files(0)) == 3


def test_a_restored_database_is_refused_when_the_replica_has_gone_on(primary, client, tmp_path: Path):
    path = restored(client, tmp_path / "restored.db")
    with Replicator(primary.path, client) as replicator:
        primary.insert()
        assert replicator.sync() == 4
    with Replicator(path, client) as replicator, pytest.raises(UnrelatedDatabaseError):
        replicator.sync()


def test_a_mark_is_about_one_file_and_one_replica(primary, make_app, client, tmp_path: Path):
    path = restored(client, tmp_path / "restored.db")
    mark = path.with_name(".restored.db-litevfs-restored")
    other = make_app("other.db")
    shutil.copy(mark, other.path.with_name(".other.db-litevfs-restored"))
    elsewhere = FileReplicaClient(tmp_path / "elsewhere")
    shutil.copytree(client.root / "ltx", elsewhere.root / "ltx")
    write(path, "CREATE TABLE more (a)")
    for database, to in ((other.path, client), (path, elsewhere)):
        with Replicator(database, to) as replicator, pytest.raises(UnrelatedDatabaseError):
            replicator.sync()
    elsewhere.close()


@pytest.mark.parametrize("mode", ["as it is", "switched to WAL"])
def test_the_same_pages_without_any_mark_go_on(make_app, client, tmp_path: Path, mode: str):
    """As `litestream restore` makes them. A switch to WAL mode changes a few bytes of page 1."""
    app = make_app()
    app.insert(30, 3000)
    with Replicator(app.path, client) as replicator:
        replicator.sync()
    path = restored(client, tmp_path / "restored.db")
    path.with_name(".restored.db-litevfs-restored").unlink()
    if mode != "as it is":
        write(path, "PRAGMA journal_mode=DELETE", "PRAGMA journal_mode=WAL")
        assert path.read_bytes() != rebuilt(client)
    with Replicator(path, client) as replicator:
        assert replicator.sync() == 2
    assert_replicated(client, path)


@pytest.mark.parametrize("statement", ["UPDATE t SET data = x'00' WHERE id = 1", "INSERT INTO t (data) VALUES (1)"])
def test_other_pages_without_any_mark_are_refused(primary, client, tmp_path: Path, statement: str):
    """A state that was restored by others and written to since: that it came from here cannot be shown."""
    path = restored(client, tmp_path / "restored.db")
    path.with_name(".restored.db-litevfs-restored").unlink()
    write(path, statement)
    with Replicator(path, client) as replicator, pytest.raises(UnrelatedDatabaseError, match="their pages differ"):
        replicator.sync()


def test_the_same_pages_in_the_wal_count_too(primary, client):
    """Local state that is lost while the database stays as it was."""
    assert primary.path.with_name("app.db-wal").stat().st_size > 0
    shutil.rmtree(primary.path.with_name(".app.db-litevfs"))
    with Replicator(primary.path, client) as replicator:
        assert replicator.sync() == 4
    assert_replicated(client, primary.path)


@pytest.mark.parametrize("times", [1, 5])
def test_a_database_whose_wal_goes_on_after_the_newest_file_goes_on(primary, client, times: int):
    """Local state that is lost while the application writes on; or that another program had."""
    shutil.rmtree(primary.path.with_name(".app.db-litevfs"))
    primary.insert(times, 3000)
    primary.execute("UPDATE t SET data = x'01'")
    with Replicator(primary.path, client) as replicator:
        assert replicator.sync() == 4
    assert_replicated(client, primary.path)


def test_a_copy_with_its_wal_that_went_another_way_is_refused(primary, client, tmp_path: Path):
    for suffix in ("", "-wal"):
        shutil.copy(primary.path.with_name(f"app.db{suffix}"), tmp_path / f"copy.db{suffix}")
    with Replicator(primary.path, client) as replicator:
        primary.execute("INSERT INTO t (data) VALUES ('one way')")
        replicator.sync()
    db = apsw.Connection(str(tmp_path / "copy.db"))
    db.execute("INSERT INTO t (data) VALUES ('another')")
    db.execute("INSERT INTO t (data) VALUES ('way')")
    with Replicator(tmp_path / "copy.db", client) as replicator, pytest.raises(UnrelatedDatabaseError):
        replicator.sync()
    db.close()


def test_local_state_of_another_url_does_not_make_a_database_that_replica_s(primary, make_app, client, tmp_path: Path):
    elsewhere = FileReplicaClient(tmp_path / "elsewhere")
    other = make_app("other.db")
    with Replicator(other.path, elsewhere) as replicator:
        replicator.sync()
    with Replicator(other.path, client) as replicator, pytest.raises(UnrelatedDatabaseError, match="elsewhere before"):
        replicator.sync()
    elsewhere.close()


def test_a_replica_that_another_began_again_with_fewer_txids_is_not_taken_for_ours(primary, make_app, client):
    """Emptied by hand, and begun by another primary since this one was stopped."""
    shutil.rmtree(client.root)
    other = make_app("other.db")
    with Replicator(other.path, client) as replicator:
        assert replicator.sync() == 1
    with Replicator(primary.path, client) as replicator, pytest.raises(UnrelatedDatabaseError, match="ends at TXID"):
        replicator.sync()
    assert_replicated(client, other.path)


def test_a_running_replicator_whose_local_state_is_removed_goes_on(app, client, replicate):
    replicator = replicate(app, look_interval_s=0)
    replicator.sync()
    app.insert(5)
    shutil.rmtree(app.path.with_name(".app.db-litevfs"))
    assert replicator.sync() == 2
    assert_replicated(client, app.path)


def test_nothing_is_written_beside_the_manifest_of_a_newer_litestream(app, client, replicate):
    client.put_object("manifest.json", b'{"version": 1, "levels": {}}')
    replicator = replicate(app)
    with pytest.raises(ReplicaFormatError, match=r"manifest\.json.*hint: "):
        replicator.sync()
    assert client.list_files(0) == []
    replicator.start()
    with pytest.raises(ReplicaFormatError):
        replicator.wait(20)
    wait_until(lambda: "manifest.json" in (replicator.status.last_error or ""))


def test_more_than_may_wait_is_captured_later_as_the_whole_database(app, failing, replicate):
    app.execute("PRAGMA wal_autocheckpoint=0")
    replicator = replicate(app, failing, max_pending_bytes=5_000, checkpoint_pages=10)
    replicator.sync()
    refuse_writes(failing, 2)
    for _ in range(10):
        app.insert(1, 5_000)
        with pytest.raises(TransientStorageError):
            replicator.sync(timeout_s=0)
    assert replicator.status.pending_files == 1
    failing.faults.clear()
    assert replicator.sync() == 3
    assert replicator.status.snapshots == 1
    assert_replicated(failing, app.path)
