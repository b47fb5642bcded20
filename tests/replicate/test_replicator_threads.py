"""The threads that capture and upload: what they do when, and when something fails or hangs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from tempfile import SpooledTemporaryFile

import apsw
import pytest

from litevfs.concurrency.retry import Backoff
from litevfs.errors import (
    LitevfsError,
    ReplicatorError,
    TransientStorageError,
)
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replicate import Replicator
from litevfs.replicate.database import ReadTransaction
from litevfs.replicate.replica_position import ReplicaPosition
from litevfs.replicate.state import StateFolder
from litevfs.testing.faulty import Fault
from tests.replicate.support import (
    LARGE,
    assert_replicated,
    fail_writes,
    files_of,
    opened,
    rebuilt,
    refuse_writes,
    source_bytes,
    states,
    written,
)
from tests.support import wait_until


def test_the_threads_upload_what_is_committed_within_its_interval(app, client, replicate):
    replicator = replicate(app, sync_interval_s=0.05)
    replicator.start()
    replicator.start()  # once is enough
    names = [t.name for t in threading.enumerate() if t.name.startswith("litevfs")]
    assert sorted(names) == ["litevfs-lease", "litevfs-replicate", "litevfs-upload"]
    wait_until(lambda: replicator.status.uploaded_txid == 1)
    for _ in range(5):
        app.insert()
        expected = source_bytes(app.path)
        wait_until(lambda expected=expected: rebuilt(client) == expected)
    wait_until(lambda: replicator.status.pending_files == 0 and replicator.status.uploaded_txid > 1)
    status = replicator.status
    assert status.files_uploaded == status.txid == status.uploaded_txid == len(client.list_files(0))
    assert status.bytes_uploaded == sum(info.size for info in client.list_files(0))
    assert (status.last_error, status.pending_files, status.snapshots) == (None, 0, 1)


def test_idle_threads_write_nothing(app, client, replicate):
    replicator = replicate(app, sync_interval_s=0.01)
    replicator.start()
    wait_until(lambda: replicator.status.last_sync_ms is not None)
    first = replicator.status.last_sync_ms
    wait_until(lambda: replicator.status.last_sync_ms > first + 200)
    assert len(client.list_files(0)) == 1


def test_the_threads_outlive_failures_and_says_what_they_were(app, failing, replicate, caplog):
    caplog.set_level(logging.WARNING, "litevfs")
    replicator = replicate(app, failing, sync_interval_s=0.01)
    refuse_writes(failing)
    replicator.start()
    wait_until(lambda: len(written(failing)) >= 3)
    app.insert()
    wait_until(lambda: replicator.status.txid == 2)
    assert "injected fault" in replicator.status.last_error
    assert "injected fault" in caplog.text
    failing.faults.clear()
    wait_until(lambda: replicator.status.uploaded_txid == 2 and replicator.status.last_error is None)
    assert_replicated(failing, app.path)


@pytest.mark.parametrize("what", ["listing", "upload"])
def test_an_upload_that_failed_is_tried_again_long_before_the_next_sync(app, failing, replicate, caplog, what: str):
    caplog.set_level(logging.WARNING, "litevfs")
    replicator = replicate(app, failing, sync_interval_s=3600)
    if what == "listing":
        failing.faults.add(Fault("transient", operations=("list",)))
    else:
        refuse_writes(failing)
    replicator.start()
    wait_until(lambda: "injected fault" in (replicator.status.last_error or ""))
    assert "not known" not in caplog.text  # where the replica stands: no capture is tried before
    failing.faults.clear()
    wait_until(lambda: replicator.status.uploaded_txid == 1 and replicator.status.last_error is None)
    assert_replicated(failing, app.path)


def test_a_capture_that_failed_is_tried_again_long_before_the_next_sync(app, client, replicate):
    with Replicator(app.path, client) as first:
        first.sync()
    replicator = replicate(app, sync_interval_s=3600)
    pending = app.path.with_name(".app.db-litevfs") / "pending"
    pending.rename(pending.with_name("away"))
    app.insert(size=LARGE)
    replicator.start()
    wait_until(lambda: replicator.status.last_error)
    pending.with_name("away").rename(pending)
    wait_until(lambda: replicator.status.uploaded_txid == 2 and replicator.status.last_error is None)
    assert_replicated(client, app.path)


def test_a_capture_that_failed_keeps_no_temporary_file_open(app, replicate, monkeypatch):
    replicator = replicate(app)
    replicator.sync()
    spools: list[SpooledTemporaryFile[bytes]] = []
    make_spool = StateFolder.spool

    def spool(folder: StateFolder) -> SpooledTemporaryFile[bytes]:
        spools.append(make_spool(folder))
        return spools[-1]

    monkeypatch.setattr(StateFolder, "spool", spool)
    pending = app.path.with_name(".app.db-litevfs") / "pending"
    pending.rename(pending.with_name("away"))
    app.insert(100, 3000)
    with pytest.raises(LitevfsError) as failed:  # its traceback keeps the frames
        replicator.sync()
    assert spools
    assert all(spool.closed for spool in spools), failed.value
    pending.with_name("away").rename(pending)
    replicator.sync()


def test_pauses_between_uploads_are_as_the_storage_asks_and_begin_again_after_a_success(
    app, failing, replicate, monkeypatch
):
    asked: list[tuple[int, float | None]] = []

    def next_s(backoff: Backoff, retry_after_s: float | None = None) -> float:
        backoff._tries += 1
        asked.append((backoff._tries, retry_after_s))
        return 0.01

    monkeypatch.setattr(Backoff, "next_s", next_s)
    replicator = replicate(app, failing, sync_interval_s=0.01)
    failing.faults.add(Fault("transient", operations=("write",), count=2, retry_after_s=7.0))
    replicator.start()
    wait_until(lambda: replicator.status.uploaded_txid == 1 and replicator.status.last_error is None)
    fail_writes(failing)
    app.insert()
    wait_until(lambda: replicator.status.uploaded_txid == 2)
    assert asked == [(1, 7.0), (2, 7.0), (1, None)]


def test_captures_go_on_in_a_pause_between_uploads_and_do_not_shorten_it(app, failing, replicate, monkeypatch):
    monkeypatch.setattr(Backoff, "next_s", lambda self, retry_after_s=None: 3600.0)
    replicator = replicate(app, failing, sync_interval_s=0.01)
    refuse_writes(failing)
    replicator.start()
    wait_until(lambda: written(failing))
    for txid in range(2, 6):
        app.insert()
        wait_until(lambda txid=txid: replicator.status.txid == txid)
    assert written(failing) == [1]


def test_an_error_of_any_kind_is_told_with_its_traceback_and_outlived(app, failing, replicate, monkeypatch, caplog):
    def fail(*arguments: object, **options: object) -> LTXFileInfo:
        raise ZeroDivisionError("a mistake")

    replicator = replicate(app, failing, sync_interval_s=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(failing, "write", fail)
        replicator.start()
        wait_until(lambda: replicator.status.last_error == "a mistake")
    assert "ZeroDivisionError: a mistake" in caplog.text
    wait_until(lambda: replicator.status.uploaded_txid == 1 and replicator.status.last_error is None)
    assert_replicated(failing, app.path)


def test_it_looks_more_often_while_it_is_in_the_way_and_never_misses_a_sync(app, replicate):
    replicator = replicate(app)
    now = time.monotonic()
    for is_in_the_way, pause_s in ((False, 0.1), (True, 0.02)):
        replicator.capturing.capture.hold.has_moved_up = is_in_the_way
        assert replicator.capturing.pause(now + 3600) == pause_s
        assert replicator.capturing.pause(now) == 0.0


def test_between_syncs_it_only_looks_whether_it_is_in_the_way(app, client, replicate, monkeypatch):
    with Replicator(app.path, client) as first:
        first.sync()
    replicator = replicate(app, sync_interval_s=3600)
    done: list[str] = []

    def note(owner: object, name: str) -> None:
        act = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *arguments: (done.append(name), act(*arguments))[1])

    note(replicator.capturing.capture, "step")
    note(replicator.capturing.capture, "settle")
    note(replicator.places[0], "look")
    replicator.start()
    wait_until(lambda: "settle" in done)
    app.insert()
    wait_until(lambda: done.count("settle") > 10)
    assert done.count("step") == 1
    assert 1 <= done.count("look") <= 2
    assert replicator.status.txid == 1


def test_a_history_that_begins_during_a_capture_is_captured_at_once(app, replicate, monkeypatch):
    replicator = replicate(app, sync_interval_s=3600)
    capture = replicator.capturing.step_if_known

    def capture_and_begin(deadline: float) -> None:
        capture(deadline)
        replicator.places[0].look(deadline)

    monkeypatch.setattr(replicator.capturing, "step_if_known", capture_and_begin)
    monkeypatch.setattr(replicator.places[0], "turn", lambda: None)
    replicator.start()
    wait_until(lambda: replicator.status.txid == 1)


def test_no_two_threads_use_the_database_or_the_replica_at_once(replicate, app):
    replicator = replicate(app)
    assert replicator.sync() == 1
    there = ReplicaPosition((), None, None, None)
    parts: list[tuple[threading.Lock, Callable[[float], object]]] = [
        (replicator.places[0].upload_lock, replicator.places[0].look),
        (replicator.places[0].upload_lock, replicator.places[0].upload),
        (replicator.capturing.lock, replicator.places[0].look),
        (replicator.capturing.lock, replicator.capturing.step),
        (replicator.capturing.lock, replicator.capturing.settle),
        (replicator.capturing.lock, lambda deadline: replicator.places[0].begin(there, "a reason", deadline)),
    ]
    for lock, part in parts:
        for deadline in (0.0, time.monotonic() + 0.001):
            with lock, pytest.raises(ReplicatorError, match="another thread is still busy"):
                part(deadline)
    app.insert()
    assert replicator.sync() == 2


def test_no_capture_and_no_checkpoint_of_the_application_waits_for_an_upload(app, hanging, replicate):
    """A checkpoint holds writers off while it waits for the read transaction of a replicator that does not move on."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    replicator = replicate(app, hanging, sync_interval_s=0.02)
    replicator.start()
    hanging.faults.wait_until_waiting()
    for _ in range(5):
        txid = replicator.status.txid
        app.insert(20, 3000)
        wait_until(
            lambda: app.checkpoint("TRUNCATE") == (0, 0, 0)
        )  # not while ours is under way: SQLite waits for none
        wait_until(lambda txid=txid: replicator.status.txid > txid)
    assert replicator.status.uploaded_txid == 0
    hanging.faults.clear()
    wait_until(lambda: replicator.status.uploaded_txid == replicator.status.txid)
    assert replicator.status.snapshots == 1
    assert_replicated(hanging, app.path)


def test_the_time_of_the_last_sync_stands_still_while_captures_fail(app, client, replicate, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "litevfs")
    monkeypatch.setattr("litevfs.replicate.capturing._RETRY_S", 3600.0)  # the next sync comes first
    monkeypatch.setattr("litevfs.replicate.attempts.SAME_AGAIN_S", 0.0)
    now = 1_000
    replicator = replicate(app, sync_interval_s=0.01, clock_ms=lambda: now)
    replicator.start()
    wait_until(lambda: replicator.status.last_sync_ms == 1_000)
    pending = app.path.with_name(".app.db-litevfs") / "pending"
    pending.rename(pending.with_name("away"))
    app.insert(size=LARGE)
    wait_until(lambda: replicator.status.last_error)
    now = 2_000
    wait_until(lambda: caplog.text.count("local state cannot be kept") > 5)
    assert replicator.status.last_sync_ms == 1_000
    assert "local state cannot be kept" in replicator.status.last_error
    pending.with_name("away").rename(pending)
    wait_until(lambda: replicator.status.last_sync_ms == 2_000)
    assert replicator.status.last_error is None
    assert_replicated(client, app.path)


def test_the_time_of_the_last_sync_is_before_what_was_committed_while_it_captured_or_uploaded(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch
):
    now = 1_000
    replicator = replicate(app, clock_ms=lambda: now)
    database = replicator.capturing.capture.database
    hand_over, write = database.hand_over, client.write

    @contextmanager
    def then_a_commit(*, writer: bool = False) -> Generator[ReadTransaction]:
        nonlocal now
        with hand_over(writer=writer) as transaction:
            yield transaction
            now = 2_000
            app.insert()

    with monkeypatch.context() as patch:
        patch.setattr(database, "hand_over", then_a_commit)
        assert replicator.sync() == 1
    assert replicator.status.last_sync_ms == 1_000

    def while_another_is_captured(*arguments: object, **options: object) -> LTXFileInfo:
        nonlocal now
        now = 3_000
        app.insert()
        replicator.capturing.step(time.monotonic() + 20)
        return write(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(client, "write", while_another_is_captured)
        assert replicator.sync() == 2
    assert replicator.status.pending_files == 1
    assert replicator.status.last_sync_ms == 2_000
    assert replicator.sync() == 3
    assert replicator.status.last_sync_ms == 3_000
    assert_replicated(client, app.path)


def test_a_replica_that_cannot_be_asked_at_the_start_does_not_stop_captures(app, failing, replicate):
    with Replicator(app.path, failing) as first:
        first.sync()
        app.insert(20)
        first.sync()
    failing.faults.add(Fault("transient", operations=("list",)))
    replicator = replicate(app, failing, sync_interval_s=0.01)
    replicator.start()
    app.insert()
    wait_until(lambda: replicator.status.txid == 3)
    assert replicator.status.uploaded_txid == 0
    failing.faults.clear()
    wait_until(lambda: replicator.status.uploaded_txid == 3)
    assert replicator.status.snapshots == 0
    assert_replicated(failing, app.path)


@pytest.mark.plan("D06")
def test_a_hundred_concurrent_commits_make_ascending_txids_each_on_the_replica_as_it_was(app, client, replicate):
    app.execute("CREATE TABLE log (thread INTEGER, n INTEGER)")
    replicator = replicate(app, sync_interval_s=0.002)
    replicator.start()

    def commit_ten(thread: int, db: apsw.Connection) -> None:
        for n in range(10):
            db.execute("INSERT INTO log VALUES (?, ?)", (thread, n))

    threads = [threading.Thread(target=commit_ten, args=(n, app.connect())) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    newest = replicator.sync()
    files = files_of(client)
    assert len(files) == newest == replicator.status.txid
    assert [file.header.max_txid for file in files] == list(range(1, newest + 1))
    assert_replicated(client, app.path)
    before: list[list[int]] = [[] for _ in range(10)]
    for txid, data in states(files):
        db = opened(data)
        now = [[n for (n,) in db.execute("SELECT n FROM log WHERE thread = ? ORDER BY rowid", (t,))] for t in range(10)]
        db.close()
        assert all(log == list(range(len(log))) and len(log) >= len(old) for old, log in zip(before, now, strict=True))
        assert now != before or txid == 1
        before = now
    assert before == [list(range(10))] * 10


def test_sync_from_several_threads_at_once_is_one_after_the_other(app, client, replicate):
    replicator = replicate(app)
    results: list[int] = []

    def work(db: apsw.Connection) -> None:
        for _ in range(20):
            db.execute("INSERT INTO t (data) VALUES ('x')")
            count = db.execute("SELECT count(*) FROM t").get
            results.append(replicator.sync())
            assert count

    threads = [threading.Thread(target=work, args=(app.connect(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    assert max(results) == replicator.status.uploaded_txid
    assert_replicated(client, app.path)


@pytest.mark.parametrize("reason", [RuntimeError("can't start new thread"), MemoryError()])
def test_where_there_are_not_threads_enough_it_can_be_started_again_or_closed(app, client, monkeypatch, reason):
    start = threading.Thread.start

    def refuse_the_second(thread: threading.Thread) -> None:
        if thread.name == "litevfs-upload":
            raise reason
        start(thread)

    for is_started_again in (False, True):
        with Replicator(app.path, client) as replicator:
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refuse_the_second)
                with pytest.raises(TransientStorageError, match="no thread for litevfs-upload now"):
                    replicator.start()
            if is_started_again:
                replicator.start()
                wait_until(lambda replicator=replicator: replicator.status.uploaded_txid == 1)
    assert_replicated(client, app.path)
