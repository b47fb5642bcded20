"""Steps against an application that leaves no pause: how large the WAL gets, and whom a step keeps waiting."""

from __future__ import annotations

import os
import resource
from collections.abc import Generator
from contextlib import contextmanager, suppress

import apsw
import pytest

from litevfs.errors import ReplicatorError
from litevfs.replicate.database import ReadTransaction, WALState
from litevfs.replicate.wal import WALReader
from tests.replicate.support import assert_replicated
from tests.support import wait_until


@pytest.mark.slow
@pytest.mark.parametrize("autocheckpoint", [0, 10])
def test_a_bulk_load_does_not_keep_the_wal_growing(app, client, replicate, autocheckpoint: int):
    """Whenever the replicator has read what is new, much more has been committed, unless it holds writers off."""
    app.execute(f"PRAGMA wal_autocheckpoint={autocheckpoint}")
    app.db.set_busy_timeout(0)
    is_loading = True

    def commit_more() -> int:
        with suppress(apsw.BusyError):
            if is_loading:
                app.execute("INSERT INTO t (data) VALUES (randomblob(100000))")
        return 0

    replicator = replicate(app, checkpoint_pages=20, truncate_pages=200, clock_ms=commit_more)
    largest = 0
    for _ in range(30):
        replicator.sync()
        largest = max(largest, replicator.status.wal_frames)
    assert 200 < largest < 500
    assert replicator.status.snapshots == 1
    is_loading = False
    replicator.sync()
    assert_replicated(client, app.path)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["FULL", "RESTART", "TRUNCATE"])
def test_a_checkpoint_of_the_application_does_not_wait_for_the_next_sync(app, client, replicate, mode: str):
    """It holds off writers while it waits. The place in its way is below what was written since the last sync."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    replicator = replicate(app, sync_interval_s=3600)
    replicator.start()
    wait_until(lambda: replicator.status.uploaded_txid == 1)
    for txid in (2, 3):
        app.insert(5, 3000)
        replicator.sync()
        app.insert(5, 3000)
        busy, frames, backfilled = app.checkpoint(mode)  # busy where it waits longer than the application likes
        assert (busy, backfilled) == (0, frames)
        assert replicator.status.txid > txid
    assert replicator.status.snapshots == 1
    replicator.sync()
    assert_replicated(client, app.path)


def test_a_commit_just_after_the_read_transaction_began_does_not_keep_checkpoints_from_the_end(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch
):
    """It was captured, and nothing is new; but the transaction stands before it, and could stand there for ever."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    app.db.set_busy_timeout(0)
    replicator = replicate(app)
    app.insert()
    replicator.sync()
    database = replicator.capturing.capture.database
    hand_over = database.hand_over

    @contextmanager
    def with_a_commit(*, writer: bool = False) -> Generator[ReadTransaction]:
        with hand_over(writer=writer) as transaction:
            app.insert()
            yield transaction

    with monkeypatch.context() as patch:
        patch.setattr(database, "hand_over", with_a_commit)
        app.insert()
        replicator.sync()
    results = []
    for _ in range(3):
        results.append(app.checkpoint("TRUNCATE"))
        replicator.sync()
    assert results[-1] == (0, 0, 0), results
    assert replicator.status.snapshots == 1
    assert_replicated(client, app.path)


@pytest.mark.parametrize("starts_over", [True, False])
def test_while_nothing_can_be_captured_the_wal_does_not_grow_and_nothing_is_lost(
    app, client, replicate, starts_over: bool
):
    """As on a full disk, where a WAL that cannot be started over would keep the application from writing."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    app.insert(10, 3000)
    replicator = replicate(app, checkpoint_pages=50)
    replicator.sync()
    app.insert()
    replicator.sync()
    pending = app.path.with_name(".app.db-litevfs") / "pending"
    pending.rename(pending.with_name("away"))
    if starts_over:
        app.execute("PRAGMA wal_autocheckpoint=50")
    for _ in range(20):
        app.execute("UPDATE t SET data = randomblob(3000)")
        with pytest.raises(ReplicatorError, match="local state cannot be kept"):
            replicator.sync()
    assert (app.path.with_name("app.db-wal").stat().st_size < 100 * 4120) is starts_over
    pending.with_name("away").rename(pending)
    replicator.sync()
    assert replicator.status.comparisons == (1 if starts_over else 0)
    assert_replicated(client, app.path)
    app.insert()
    replicator.sync()
    assert replicator.status.comparisons == (1 if starts_over else 0)
    assert_replicated(client, app.path)


def test_a_large_wal_is_not_kept_by_a_process_that_may_open_no_more_files(app, client, replicate):
    app.execute("PRAGMA wal_autocheckpoint=0")
    app.db.set_busy_timeout(0)
    replicator = replicate(app, checkpoint_pages=20)
    replicator.sync()
    app.insert()
    replicator.sync()
    app.insert(20, 3000)
    assert app.checkpoint("RESTART")[0] == 1  # the replicator keeps the WAL
    with no_more_files(), pytest.raises(ReplicatorError, match="Too many open files"):
        replicator.sync()
    assert app.checkpoint("RESTART")[0] == 0
    replicator.sync()
    assert_replicated(client, app.path)


@contextmanager
def no_more_files() -> Generator[None]:
    """As when the limit of the process on open files is reached."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.slow
def test_the_application_s_checkpoints_get_on_between_syncs(app, client, replicate):
    """With all of them waiting for the next sync, the first one after it would have everything to do at once."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    replicator = replicate(app, sync_interval_s=3600)
    replicator.start()
    wait_until(lambda: replicator.status.uploaded_txid == 1)
    for frames in (1100, 2200, 3300):
        while app.checkpoint("NOOP")[1] < frames:
            app.insert(100)
        wait_until(lambda: app.checkpoint("PASSIVE")[2] >= app.checkpoint("NOOP")[1] - 1000)
    assert replicator.status.txid == 1
    replicator.sync()
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1


@pytest.mark.slow
def test_the_application_s_checkpoints_get_on_while_much_is_captured(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch
):
    app.execute("PRAGMA wal_autocheckpoint=0")
    replicator = replicate(app)
    replicator.sync()
    app.insert(50, 4000)
    _, captured, before = app.checkpoint("PASSIVE")
    backfilled: list[int] = []

    def between_pages() -> bool:
        app.insert(40)
        backfilled.append(app.checkpoint("PASSIVE")[2])
        return False

    monkeypatch.setattr("litevfs.replicate.limits.MOVE_UP_INTERVAL_S", 0.0)
    monkeypatch.setattr(replicator.capturing.capture, "is_closing", between_pages)
    replicator.sync()
    monkeypatch.undo()
    assert before < captured < captured + 1000 < backfilled[-1]
    replicator.sync()
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1


def test_what_is_committed_and_checkpointed_while_a_step_reads_is_captured_before_the_wal_can_start_over(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch
):
    """The held transaction has moved up over it meanwhile, so nothing but the step itself keeps it in the WAL."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    app.insert(5, 3000)
    replicator = replicate(app)
    replicator.sync()
    database, pages = replicator.capturing.capture.database, 0
    hand_over = database.hand_over

    @contextmanager
    def after_a_checkpoint(*, writer: bool = False) -> Generator[ReadTransaction]:
        app.checkpoint("PASSIVE")
        with hand_over(writer=writer) as transaction:
            yield transaction

    def between_pages() -> bool:
        nonlocal pages
        pages += 1
        if pages == 1:
            app.execute("UPDATE t SET data = randomblob(3000) WHERE id = 1")  # a page that nothing else changes later
        return False

    app.execute("UPDATE t SET data = randomblob(3000) WHERE id > 1")
    with monkeypatch.context() as patch:
        patch.setattr("litevfs.replicate.limits.MOVE_UP_INTERVAL_S", 0.0)
        patch.setattr("litevfs.replicate.limits.MOVE_UP_FRAMES", 1)
        patch.setattr(database, "hand_over", after_a_checkpoint)
        patch.setattr(replicator.capturing.capture, "is_closing", between_pages)
        replicator.capturing.capture.step()
    assert pages > 1
    _, frames, backfilled = app.checkpoint("NOOP")
    assert frames == backfilled
    app.insert()
    assert app.checkpoint("NOOP")[1] < frames  # it started the WAL over
    replicator.sync()
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1


def test_a_wal_that_was_started_over_and_is_just_as_long_again_is_not_taken_for_the_same(app, client, replicate):
    app.execute("PRAGMA wal_autocheckpoint=0")
    app.checkpoint("TRUNCATE")
    replicator = replicate(app)
    replicator.sync()
    for _ in range(3):
        app.insert()
        replicator.sync()
        _, frames, backfilled = app.checkpoint("PASSIVE")
        assert (frames, backfilled) == (1, 1)
        replicator.sync()  # nothing is new, and the next writer may start the WAL over
    assert_replicated(client, app.path)
    assert replicator.status.txid == 4
    assert replicator.status.snapshots == 1


def test_a_wal_that_starts_over_while_the_whole_database_is_read_is_read_on_from_its_beginning(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch
):
    app.execute("PRAGMA wal_autocheckpoint=0")
    app.insert(5, 3000)
    replicator = replicate(app)
    database = replicator.capturing.capture.database
    wal_state, seen = database.wal_state, []

    def then_a_commit(wal: WALReader) -> WALState:
        seen.append(wal_state(wal))
        if len(seen) == 1:
            app.insert(10, 3000)
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(database, "wal_state", then_a_commit)
        replicator.sync()
        replicator.sync()
    assert seen[0].is_backfilled
    assert seen[-1].header != seen[0].header
    assert seen[-1].frames > seen[0].frames  # nothing is left of the run before
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1
