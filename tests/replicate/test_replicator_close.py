"""The end of a replicator: how long its close takes, and what it leaves to the next one; and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from litevfs.concurrency.turns import OwnThreads, Task, Turn
from litevfs.errors import (
    LitevfsError,
    OptionError,
    ReplicatorError,
    ReplicatorLockedError,
    StorageClosedError,
    TransientStorageError,
)
from litevfs.maintenance.schedule import MaintenanceConfig
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replicate import Replicator
from tests.replicate.support import (
    assert_replicated,
    files_of,
    refuse_writes,
)
from tests.support import wait_until


def test_close_returns_in_its_time_while_an_upload_hangs(app, hanging):
    replicator = Replicator(app.path, hanging, sync_interval_s=0.01)
    replicator.start()
    hanging.faults.wait_until_waiting()
    replicator.close(timeout_s=0.3)
    assert any(t.name == "litevfs-upload" for t in threading.enumerate())  # it hangs still
    hanging.faults.clear()
    wait_until(lambda: not any(t.name == "litevfs-upload" for t in threading.enumerate()))
    with Replicator(app.path, hanging) as replicator:
        assert replicator.sync() == 1
        assert replicator.status.snapshots == 0
    assert_replicated(hanging, app.path)


def test_closing_between_two_uploads_leaves_the_rest_to_the_next_replicator(app, failing, replicate, monkeypatch):
    """Which may run already: nothing keeps it out any more."""
    replicator = replicate(app, failing)
    replicator.sync()
    refuse_writes(failing, 2)
    for _ in range(3):
        app.insert()
        with pytest.raises(TransientStorageError):
            replicator.sync(timeout_s=0)
    failing.faults.clear()
    write = failing.write

    def write_and_close(*args: Any, **options: Any) -> LTXFileInfo:
        replicator.close()
        return write(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(failing, "write", write_and_close)
        with pytest.raises(ReplicatorError, match="closed"):
            replicator.places[0].upload(time.monotonic() + 10)
    assert len(files_of(failing)) == 2
    assert replicate(app, failing).sync() == 4
    assert_replicated(failing, app.path)


def test_closing_waits_for_its_threads_and_wakes_those_that_wait(app, replicate):
    replicator = replicate(app, sync_interval_s=3600, maintenance=MaintenanceConfig())
    replicator.start()
    wait_until(lambda: replicator.status.uploaded_txid == 1 and replicator.status.pending_files == 0)
    replicator.close(timeout_s=60)
    assert all(task.join(0) for task in replicator.tasks.values())


def test_closing_takes_no_longer_where_several_threads_hang(app, replicate, monkeypatch):
    now_s, joins = 0.0, []

    def hang(timeout: float) -> None:
        nonlocal now_s
        joins.append(timeout)
        now_s += timeout

    replicator = replicate(app)
    replicator.start()
    with monkeypatch.context() as patch:
        clock = SimpleNamespace(monotonic=lambda: now_s, time_ns=time.time_ns)
        patch.setattr("litevfs.replicate.replicator.time", clock)
        patch.setattr("litevfs.replicate.attempts.time", clock)  # closing waits for a capture under way
        for task in replicator.tasks.values():
            patch.setattr(task, "join", hang)
        replicator.close(timeout_s=1.0)
        assert joins == [1.0, 0.0, 0.0]
    wait_until(lambda: all(task.join(0) for task in replicator.tasks.values()))


def test_closing_waits_for_an_upload_under_way(app, hanging, replicate):
    replicator = replicate(app, hanging)
    replicator.start()
    hanging.faults.wait_until_waiting()
    closing = threading.Thread(target=replicator.close, args=(60.0,))
    closing.start()
    wait_until(replicator._closed.is_set)
    closing.join(0.1)
    assert closing.is_alive()
    hanging.faults.clear()
    closing.join(60)
    assert all(task.join(0) for task in replicator.tasks.values())


def test_a_replicator_may_be_closed_by_its_own_thread(app, failing, replicate, monkeypatch, caplog):
    monkeypatch.setattr("litevfs.replicate.replicator._CLOSE_GRACE_S", 60.0)
    replicator, write, closed = replicate(app, failing), failing.write, threading.Event()

    def write_and_close(*args: Any, **options: Any) -> LTXFileInfo:
        replicator.close()
        closed.set()
        return write(*args, **options)

    monkeypatch.setattr(failing, "write", write_and_close)
    replicator.start()
    assert closed.wait(60)
    wait_until(lambda: all(task.join(0) for task in replicator.tasks.values()))
    assert "unexpected" not in caplog.text


def test_threads_that_start_while_another_closes_the_replicator_end(app, replicate):
    class ClosedMeanwhile(OwnThreads):
        def start(self, turn: Turn, name: str, group: str = "") -> Task:
            task = super().start(turn, name, group)
            replicator.close()
            return task

    replicator = replicate(app, maintenance=MaintenanceConfig())
    replicator.start(ClosedMeanwhile())
    assert len(replicator.tasks) == 4
    wait_until(lambda: all(task.join(0) for task in replicator.tasks.values()))


@pytest.mark.slow
def test_a_process_ends_without_closing_its_replicator(tmp_path: Path):
    program = """
        import sys, threading, apsw, litevfs
        app = apsw.Connection(sys.argv[1] + "/app.db")
        app.execute("PRAGMA journal_mode=WAL; CREATE TABLE t (a)")
        maintenance = litevfs.MaintenanceConfig()
        replicator = litevfs.Replicator(sys.argv[1] + "/app.db", sys.argv[1] + "/replica", maintenance=maintenance)
        replicator.start()
        print(replicator.sync(), len([thread for thread in threading.enumerate() if thread.name.startswith("litevfs")]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 4\n", "")


def test_a_look_that_ends_after_the_close_leaves_the_local_state_to_the_next_replicator(
    app, failing, replicate, monkeypatch, caplog
):
    """It found nothing to continue from, and would begin again."""
    is_asked, may_answer = threading.Event(), threading.Event()
    answer = failing.list_files

    def answer_late(level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        is_asked.set()
        assert may_answer.wait(60)
        return answer(level, min_txid)

    late = replicate(app, failing)
    with monkeypatch.context() as patch:
        patch.setattr(failing, "list_files", answer_late)
        late.start()
        assert is_asked.wait(20)
    late.close(timeout_s=0)
    replicator = replicate(app, failing)
    refuse_writes(failing)
    with pytest.raises(TransientStorageError):
        replicator.sync(timeout_s=0)
    assert replicator.status.pending_files == 1
    may_answer.set()
    wait_until(lambda: all(task.join(0) for task in late.tasks.values()))
    assert "closed" not in caplog.text  # which is no news
    assert replicator.status.pending_files == 1
    failing.faults.clear()
    assert replicator.sync() == 1
    assert_replicated(failing, app.path)


def test_an_upload_that_ends_after_the_close_leaves_the_file_to_the_next_replicator(app, hanging, failing, replicate):
    """Which may be about to upload it, and would have to begin again without it."""
    late = replicate(app, hanging)
    late.start()
    hanging.faults.wait_until_waiting()
    late.close(timeout_s=0)
    replicator = replicate(app, failing)
    refuse_writes(failing)
    with pytest.raises(TransientStorageError):
        replicator.sync(timeout_s=0)
    hanging.faults.clear()
    wait_until(lambda: all(task.join(0) for task in late.tasks.values()))
    assert replicator.status.pending_files == 1
    failing.faults.clear()
    assert replicator.sync() == 1
    assert replicator.status.snapshots == 0
    assert_replicated(failing, app.path)


def test_closing_waits_for_a_capture_before_it_lets_another_replicator_in(app, replicate, monkeypatch):
    monkeypatch.setattr("litevfs.replicate.replicator._CLOSE_GRACE_S", 60.0)
    is_asked, may_answer = threading.Event(), threading.Event()

    def tell_late() -> int:
        is_asked.set()
        assert may_answer.wait(60)
        return 0

    replicator = replicate(app, clock_ms=tell_late)
    replicator.start()
    assert is_asked.wait(20)
    closing = threading.Thread(target=replicator.close, args=(0.0,))
    closing.start()
    wait_until(replicator._closed.is_set)
    closing.join(0.1)
    assert closing.is_alive()
    with pytest.raises(ReplicatorLockedError):
        replicate(app)
    may_answer.set()
    closing.join(60)
    replicate(app).sync()


def test_a_closed_replicator_does_nothing_and_closing_again_is_fine(app, client, replicate):
    replicator = replicate(app)
    replicator.close()
    replicator.close()
    deadline = time.monotonic() + 20
    for action in (
        replicator.sync,
        replicator.start,
        lambda: replicator.places[0].look(deadline),
        lambda: replicator.capturing.step(deadline),
        lambda: replicator.places[0].upload(deadline),
        lambda: replicator.capturing.settle(deadline),
    ):
        with pytest.raises(ReplicatorError, match="closed"):
            action()
    assert not client.root.exists()
    assert replicate(app).sync() == 1


@pytest.mark.slow
def test_closing_in_the_middle_of_a_large_snapshot_does_not_wait_for_its_end(app, tmp_path: Path):
    app.execute("BEGIN")
    app.insert(20_000, 4000)
    app.execute("COMMIT")
    client = FileReplicaClient(tmp_path / "replica")
    replicator = Replicator(app.path, client)
    replicator.start()
    pending = app.path.with_name(".app.db-litevfs") / "pending"
    wait_until(lambda: any(path.stat().st_size for path in pending.glob("*.tmp")))
    replicator.close()
    assert list(pending.iterdir()) == []
    assert not list((tmp_path / "replica").rglob("*.ltx"))  # it did not come to its end
    client.close()


def test_a_url_opens_a_client_of_its_own_that_is_closed_with_the_replicator(app, tmp_path: Path):
    with Replicator(app.path, f"file://{tmp_path}/replica") as replicator:
        assert replicator.sync() == 1
        assert replicator.client.url == f"file://{tmp_path}/replica"
        assert repr(replicator) == f"<Replicator {app.path} to file://{tmp_path}/replica>"
    with pytest.raises(LitevfsError):
        replicator.client.list_files(0)


def test_a_client_of_its_own_is_closed_when_the_database_is_refused(app, client, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("litevfs.replicate.replicator.open_replica_client", lambda url: client)
    with pytest.raises(ReplicatorError, match="no such file"):
        Replicator(tmp_path / "none.db", client.url)
    with pytest.raises(StorageClosedError):
        client.list_files(0)


def test_a_replicator_that_cannot_read_its_state_lets_go_of_it(app, replicate):
    replicate(app).close()
    in_the_way = app.path.with_name(".app.db-litevfs") / "pending" / f"{1:016x}-{1:016x}.ltx"
    in_the_way.mkdir()
    with pytest.raises(ReplicatorError, match="local state cannot be kept"):
        replicate(app)
    in_the_way.rmdir()
    assert replicate(app).sync() == 1


@pytest.mark.parametrize(
    "options", [{"sync_interval_s": 0}, {"sync_interval_s": -1}, {"checkpoint_pages": 0}, {"truncate_pages": 10}]
)
def test_options_out_of_range_are_refused(app, client, options: dict[str, float]):
    with pytest.raises(OptionError):
        Replicator(app.path, client, **options)
    Replicator(app.path, client, checkpoint_pages=10, truncate_pages=10).close()
