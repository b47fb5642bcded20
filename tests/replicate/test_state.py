"""The folder beside the database: who may read it, who holds it, what happens when it goes away under a replicator."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from litevfs import local_files
from litevfs.errors import ReplicatorError, ReplicatorLockedError
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replicate import Replicator
from litevfs.replicate.state import StateFolder
from tests.replicate.support import LARGE, assert_replicated, fail_writes, failing_client, state_folder
from tests.support import wait_until


def modes(folder: Path) -> dict[str, int]:
    """Permissions of the folder and of all in it, by kind."""
    found = {"folder": 0, "file": 0}
    for path in [folder, *folder.rglob("*")]:
        status = path.stat()
        found["folder" if path.is_dir() else "file"] |= stat.S_IMODE(status.st_mode)
    return found


# --- who may read it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
@pytest.mark.parametrize("was_open_to_all", [False, True])
def test_no_user_can_read_the_state_who_cannot_read_the_database(app, tmp_path: Path, mode: int, was_open_to_all: bool):
    client, folder = failing_client(tmp_path / "replica"), state_folder(app)
    app.path.chmod(mode)
    if was_open_to_all:
        (folder / "pending").mkdir(0o755, parents=True)
    umask = os.umask(0)
    try:
        with Replicator(app.path, client) as replicator:
            replicator.sync()
            app.insert(size=LARGE)
            fail_writes(client)
            with pytest.raises(Exception, match="injected fault"):
                replicator.sync(timeout_s=0)
            assert len(list(folder.rglob("*.ltx"))) == 1
            assert modes(folder) == {"folder": 0o700, "file": mode}
    finally:
        os.umask(umask)
    client.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_writes_belongs_to_the_owner_of_the_database(app, client):
    os.chown(app.path, 12345, 23456)
    with Replicator(app.path, client) as replicator:
        replicator.sync()
    folder = state_folder(app)
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in [folder, *folder.rglob("*")]}
    assert owners == {(12345, 23456)}


# --- who holds it -----------------------------------------------------------------------------------------------------


def run(program: str, *arguments: object) -> tuple[str, str]:
    """What a program prints to stdout, and to stderr."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    return done.stdout, done.stderr


@pytest.mark.slow
def test_a_forked_process_does_not_keep_others_out(app, client, tmp_path: Path):
    program = """if True:
        import os, sys
        from litevfs.replicate import Replicator
        path, url = sys.argv[1:]
        replicator = Replicator(path, url)
        to_child, from_parent = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(from_parent)
            os.read(to_child, 1)  # ends with the parent
            os._exit(0)
        replicator.close()
        Replicator(path, url).close()
        print("in again")
    """
    assert run(program, app.path, tmp_path / "replica") == ("in again\n", "")


@pytest.mark.slow
def test_a_forked_process_that_closes_its_copy_lets_no_other_in(app, tmp_path: Path):
    program = """if True:
        import os, sys
        from litevfs.errors import ReplicatorLockedError
        from litevfs.replicate import Replicator
        path, url = sys.argv[1:]
        replicator = Replicator(path, url)
        child = os.fork()
        if child == 0:
            replicator.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        try:
            Replicator(path, url)
        except ReplicatorLockedError:
            print("kept out")
    """
    assert run(program, app.path, tmp_path / "replica") == ("kept out\n", "")


# --- what is on disk --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, LARGE])
def test_every_file_is_on_disk_before_anything_counts_on_it(app, client, monkeypatch: pytest.MonkeyPatch, size: int):
    """Whole before it gets its name, the name before `state.json` counts the file, and that before it is uploaded.

    A small one is on disk with the record in `state.json` that counts it.
    """
    folder, events = state_folder(app), []
    fsync, sync_data, replace, write = os.fsync, local_files.sync_data, os.replace, client.write

    def name(path: str | os.PathLike[str]) -> str:
        return Path(path).relative_to(folder).as_posix()

    def note(fd: int) -> None:
        status = os.fstat(fd)
        size = status.st_size if stat.S_ISREG(status.st_mode) else None
        found = [path for path in (folder, *folder.rglob("*")) if os.path.samestat(path.stat(), status)]
        events.extend(("sync", name(path), size) for path in found)

    def noted_fsync(fd: int) -> None:
        note(fd)
        fsync(fd)

    def noted_sync_data(fd: int) -> None:
        note(fd)
        sync_data(fd)

    def noted_replace(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        if folder in Path(source).parents:
            events.append(("name", name(source), name(target), Path(source).stat().st_size))
        replace(source, target)

    def noted_write(*args: Any, **options: Any) -> LTXFileInfo:
        events.append(("upload",))
        return write(*args, **options)

    with Replicator(app.path, client) as replicator:
        replicator.sync()
        app.insert(size=size)
        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(local_files, "sync_data", noted_sync_data)
        monkeypatch.setattr(os, "replace", noted_replace)
        monkeypatch.setattr(client, "write", noted_write)
        replicator.sync()
        monkeypatch.undo()
    file_size, state_size = client.list_files(0)[-1].size, (folder / "state.json").stat().st_size
    stem = f"pending/{2:016x}-{2:016x}"
    before = [
        ("sync", f"{stem}.tmp", file_size),
        ("name", f"{stem}.tmp", f"{stem}.ltx", file_size),
        ("sync", "pending", None),
    ]
    assert events == [*(before if size == LARGE else []), ("sync", "state.json", state_size), ("upload",)]


def test_nothing_is_left_of_a_state_that_was_forgotten(app, tmp_path: Path):
    client = failing_client(tmp_path / "replica")
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        app.insert()
        fail_writes(client)
        with pytest.raises(Exception, match="injected fault"):
            replicator.sync(timeout_s=0)
    state = StateFolder(app.path)
    assert state.load() is not None
    assert len(state.queues[0].pending()) == 1
    state.reset()
    assert (state.queues[0].pending(), state.load()) == ([], None)
    state.close()
    client.close()


# --- it goes away -----------------------------------------------------------------------------------------------------


def test_a_folder_that_was_removed_is_made_again_and_nothing_is_lost(app, client):
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        for txid in (2, 4):
            shutil.rmtree(state_folder(app))
            app.insert()
            assert replicator.status.pending_files == 0
            assert replicator.sync() == txid
            assert replicator.status.last_snapshot_reason == "there is no local state to continue from"
            with pytest.raises(ReplicatorLockedError):
                Replicator(app.path, client)
            app.insert()
            assert replicator.sync() == txid + 1
            assert_replicated(client, app.path)
        assert replicator.status.snapshots == 3


def test_files_that_waited_in_a_folder_that_was_removed_leave_no_gap(app, tmp_path: Path):
    client = failing_client(tmp_path / "replica")
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        for _ in range(3):
            app.insert()
            fail_writes(client)
            with pytest.raises(Exception, match="injected fault"):
                replicator.sync(timeout_s=0)
        shutil.rmtree(state_folder(app))
        app.insert()
        assert replicator.sync() == 2
        assert_replicated(client, app.path)
    client.close()


def test_a_thread_goes_on_after_the_folder_was_removed(app, client, replicate, tmp_path: Path):
    replicator = replicate(app, sync_interval_s=0.01)
    replicator.start()
    wait_until(lambda: replicator.status.uploaded_txid == 1)
    state_folder(app).rename(tmp_path / "removed")  # at once: the thread may be making files in it
    app.insert()
    wait_until(lambda: replicator.status.uploaded_txid == 2)
    assert_replicated(client, app.path)


def test_only_one_goes_on_when_another_took_the_place_of_a_folder_that_was_removed(app, client):
    app.db.set_busy_timeout(0)
    with Replicator(app.path, client, lease_ttl_s=None) as first:
        first.sync()
        shutil.rmtree(state_folder(app))
        with Replicator(app.path, client, lease_ttl_s=None) as second:
            assert second.sync() == 2
            for _ in range(3):
                app.insert()
                with pytest.raises(ReplicatorLockedError, match=f"process {os.getpid()} replicates this database"):
                    first.sync()
                second.sync()
            assert second.status.snapshots == 1
            assert_replicated(client, app.path)
        app.insert()
        assert app.checkpoint("TRUNCATE") == (0, 0, 0)  # the first holds nothing
        app.insert()
        first.sync()  # in the place of the second
        app.insert()
        first.sync()
    assert_replicated(client, app.path)


def test_a_capture_that_finds_its_folder_gone_keeps_no_wal_and_says_so_even_when_nothing_is_new(app, client):
    """As while an upload hangs, when no thread looks whether the folder can be made again."""
    app.db.set_busy_timeout(0)
    app.execute("PRAGMA wal_autocheckpoint=0")
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        app.insert()
        replicator.sync()
        shutil.rmtree(state_folder(app))
        with pytest.raises(ReplicatorError, match="the replicator's local state was removed"):
            replicator.capturing.capture.step()
        assert app.checkpoint("TRUNCATE") == (0, 0, 0)


@pytest.mark.parametrize("written", ["pending/0000000000000002-0000000000000002.tmp", "state.json"])
def test_a_folder_that_another_made_during_a_step_gets_no_file_and_no_state(
    app, client, monkeypatch: pytest.MonkeyPatch, written: str
):
    folder, open_ = state_folder(app), os.open

    def make_anew_then_open(path: Any, *arguments: Any, **options: Any) -> int:
        if path == os.fspath(folder / written):
            shutil.rmtree(folder)
            (folder / "pending").mkdir(parents=True)
        return open_(path, *arguments, **options)

    with Replicator(app.path, client) as replicator:
        replicator.sync()
        app.insert(size=LARGE)
        monkeypatch.setattr(os, "open", make_anew_then_open)
        with pytest.raises(ReplicatorError, match="the replicator's local state was removed"):
            replicator.capturing.capture.step()
        monkeypatch.undo()
    assert not [path for path in folder.rglob("*") if path.suffix in (".ltx", ".json")]


def test_a_folder_that_cannot_be_made_again_does_not_keep_the_wal(app, client):
    app.db.set_busy_timeout(0)
    app.execute("PRAGMA wal_autocheckpoint=0")
    folder = state_folder(app)
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        shutil.rmtree(folder)
        folder.write_bytes(b"a file in its place")
        app.insert()
        with pytest.raises(ReplicatorError, match="local state cannot be kept"):
            replicator.sync()
        assert app.checkpoint("TRUNCATE") == (0, 0, 0)
        app.insert()
        folder.unlink()
        assert replicator.sync() == 2
        assert_replicated(client, app.path)


# --- it is not made ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["", "folder", "text.db", "rollback.db"])
def test_no_folder_is_made_for_what_is_no_database_or_cannot_be_replicated(
    make_app, client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
):
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    (inside / "text.db").write_text("This is no database.\n" * 100)
    make_app("inside/rollback.db", mode="DELETE")
    monkeypatch.chdir(inside)
    with pytest.raises(ReplicatorError):
        Replicator(target, client)
    assert sorted(path.name for path in inside.iterdir()) == ["folder", "rollback.db", "text.db"]
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
