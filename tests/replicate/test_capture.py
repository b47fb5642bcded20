"""Steps against an application that leaves no pause: how large the WAL gets, and whom a step keeps waiting."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress

import apsw
import pytest

from litevfs.errors import ReplicatorError
from litevfs.replicate.database import ReadTransaction, WALState
from litevfs.replicate.wal import WALReader
from tests.replicate.support import assert_replicated, wait_until


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


def test_writers_are_not_held_off_when_a_reader_of_the_application_is_in_the_way(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch
):
    app.execute("PRAGMA wal_autocheckpoint=0")
    held_off = 0

    def commit_more() -> int:
        app.execute("INSERT INTO t (data) VALUES (randomblob(100000))")
        return 0

    replicator = replicate(app, checkpoint_pages=20, truncate_pages=200, clock_ms=commit_more)
    database = replicator._capture._database
    hand_over = database.hand_over

    @contextmanager
    def counted(*, writer: bool = False) -> Generator[ReadTransaction]:
        nonlocal held_off
        held_off += writer
        with hand_over(writer=writer) as transaction:
            yield transaction

    monkeypatch.setattr(database, "hand_over", counted)
    replicator.sync()
    reader = app.connect()
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM t").fetchall()
    for _ in range(10):
        replicator.sync()
    assert held_off == 0
    assert replicator.status.wal_frames > 400
    reader.execute("COMMIT")
    for _ in range(2):
        replicator.sync()
    assert held_off > 0
    replicator.sync()
    assert replicator.status.wal_frames < 400
    assert replicator.status.snapshots == 1


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
        start = time.monotonic()
        busy, frames, backfilled = app.checkpoint(mode)
        assert (busy, backfilled) == (0, frames)
        assert time.monotonic() - start < 4
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
    database = replicator._capture._database
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
    assert replicator.status.snapshots == (2 if starts_over else 1)
    assert_replicated(client, app.path)
    app.insert()
    replicator.sync()
    assert replicator.status.snapshots == (2 if starts_over else 1)
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

    monkeypatch.setattr("litevfs.replicate.capture.MOVE_UP_INTERVAL_S", 0.0)
    monkeypatch.setattr(replicator._capture, "_is_closing", between_pages)
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
    database, pages = replicator._capture._database, 0
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
        patch.setattr("litevfs.replicate.capture.MOVE_UP_INTERVAL_S", 0.0)
        patch.setattr("litevfs.replicate.capture._MOVE_UP_FRAMES", 1)
        patch.setattr(database, "hand_over", after_a_checkpoint)
        patch.setattr(replicator._capture, "_is_closing", between_pages)
        replicator._capture.step()
    assert pages > 1
    _, frames, backfilled = app.checkpoint("NOOP")
    assert frames == backfilled
    app.insert()
    assert app.checkpoint("NOOP")[1] < frames  # it began the WAL anew
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


def test_writers_are_held_off_for_the_last_few_frames_only(app, client, replicate, monkeypatch: pytest.MonkeyPatch):
    """What the checkpoint that holds them off has to copy does not grow with what they wrote since the last sync."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    replicator = replicate(app, truncate_pages=2000)
    replicator.sync()
    database = replicator._capture._database
    hand_over, left, is_held_off = database.hand_over, [], False

    @contextmanager
    def watched(*, writer: bool = False) -> Generator[ReadTransaction]:
        nonlocal is_held_off
        with hand_over(writer=writer) as transaction:
            if writer:
                _, frames, backfilled = app.checkpoint("NOOP")
                left.append(frames - backfilled)
            elif not is_held_off:
                app.insert(5)
            is_held_off = writer
            yield transaction

    monkeypatch.setattr(database, "hand_over", watched)
    for _ in range(3):
        app.insert()  # from the second round on, that starts the WAL over
        while app.checkpoint("NOOP")[1] < 8000:
            app.insert(200)
        replicator.sync()
    monkeypatch.undo()
    assert len(left) == 3
    assert max(left) < 50
    replicator.sync()
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1


def test_writers_are_not_held_off_when_they_pause_before_it_comes_to_that(
    app, replicate, monkeypatch: pytest.MonkeyPatch
):
    app.execute("PRAGMA wal_autocheckpoint=0")
    replicator = replicate(app, checkpoint_pages=20, truncate_pages=30)
    replicator.sync()
    database, hand_overs = replicator._capture._database, []
    hand_over = database.hand_over

    @contextmanager
    def watched(*, writer: bool = False) -> Generator[ReadTransaction]:
        hand_overs.append(writer)
        with hand_over(writer=writer) as transaction:
            yield transaction
        if len(hand_overs) <= 3:  # those of a step before it catches up
            app.insert(5, 3000)

    app.insert(40, 3000)
    monkeypatch.setattr(database, "hand_over", watched)
    replicator._capture.step()
    assert len(hand_overs) > 3
    assert not any(hand_overs)
    _, frames, backfilled = app.checkpoint("NOOP")
    assert frames == backfilled > 30


def test_writers_are_held_off_until_a_checkpoint_of_the_application_is_done_and_all_is_copied(
    app, client, replicate, stuck_in_checkpoint, monkeypatch: pytest.MonkeyPatch
):
    """Else one that is under way at each such moment would keep the WAL growing."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    app.insert(40, 3000)
    replicator = replicate(app, checkpoint_pages=20, truncate_pages=30)
    replicator.sync()
    assert replicator.status.wal_frames > 40
    app.insert(40, 3000)  # starts the WAL over: no checkpoint gets as far in it as the replicator stood before
    database = replicator._capture._database
    hand_over, is_first = database.hand_over, True

    with ExitStack() as stack, monkeypatch.context() as patch:

        @contextmanager
        def then_stuck(*, writer: bool = False) -> Generator[ReadTransaction]:
            nonlocal is_first
            with hand_over(writer=writer) as transaction:
                yield transaction
            if is_first:
                is_first = False
                stack.enter_context(stuck_in_checkpoint(until=database))
                app.insert(20, 3000)

        patch.setattr(database, "hand_over", then_stuck)
        replicator._capture.step()
        _, frames, backfilled = app.checkpoint("NOOP")
        assert frames == backfilled > 50
    replicator.sync()
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1


@pytest.mark.parametrize("step", ["checkpoint", "_publish"])
def test_what_fails_while_writers_are_held_off_lets_them_go_on_and_loses_nothing(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch, step: str
):
    app.execute("PRAGMA wal_autocheckpoint=0")
    app.db.set_busy_timeout(0)
    replicator = replicate(app, checkpoint_pages=20, truncate_pages=30)
    replicator.sync()
    app.checkpoint("PASSIVE")
    replicator.sync()
    capture, database = replicator._capture, replicator._capture._database
    owner = database if step == "checkpoint" else capture
    hand_over, act, is_held_off, failures = database.hand_over, getattr(owner, step), False, 0

    @contextmanager
    def watched(*, writer: bool = False) -> Generator[ReadTransaction]:
        nonlocal is_held_off
        with hand_over(writer=writer) as transaction:
            if not writer and not is_held_off:
                app.insert(5, 3000)
            yield transaction
        is_held_off |= writer

    def failing(*arguments: object, **options: object) -> None:
        nonlocal failures
        if is_held_off:
            failures += 1
            raise ReplicatorError("No space left on device")
        act(*arguments, **options)

    app.insert(40, 3000)
    with monkeypatch.context() as patch:
        patch.setattr(database, "hand_over", watched)
        patch.setattr(owner, step, failing)
        capture.step()
    assert failures == 1
    app.insert()
    assert app.checkpoint("RESTART")[0] == 0
    app.insert()  # starts the WAL over
    replicator.sync()
    assert_replicated(client, app.path)


def test_a_wal_that_starts_over_while_the_whole_database_is_read_is_read_on_from_its_beginning(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch
):
    app.execute("PRAGMA wal_autocheckpoint=0")
    app.insert(5, 3000)
    replicator = replicate(app)
    database = replicator._capture._database
    wal_state, seen = database.wal_state, []

    def then_a_commit(wal: WALReader) -> WALState:
        seen.append(wal_state(wal))
        if len(seen) == 1:
            app.insert()
        return seen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(database, "wal_state", then_a_commit)
        replicator.sync()
    assert seen[0].is_backfilled
    assert app.checkpoint("NOOP")[1] < seen[0].frames  # it began the WAL anew
    replicator.sync()
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1
