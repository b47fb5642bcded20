"""Writers that are held off for a moment, so that a checkpoint completes: when, for how long, and what if it fails."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import pytest

from litevfs.errors import ReplicatorError
from litevfs.replicate.database import ReadTransaction
from tests.replicate.support import assert_replicated


@pytest.mark.slow
def test_writers_are_not_held_off_when_a_reader_of_the_application_is_in_the_way(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch
):
    app.execute("PRAGMA wal_autocheckpoint=0")
    held_off = 0

    def commit_more() -> int:
        app.execute("INSERT INTO t (data) VALUES (randomblob(100000))")
        return 0

    replicator = replicate(app, checkpoint_pages=20, truncate_pages=200, clock_ms=commit_more)
    database = replicator.capturing.capture.database
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


@pytest.mark.slow
@pytest.mark.parametrize("frames", [2000, pytest.param(8000, marks=pytest.mark.soak)])
def test_writers_are_held_off_for_the_last_few_frames_only(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch, frames: int
):
    """What the checkpoint that holds them off has to copy does not grow with what they wrote since the last sync."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    replicator = replicate(app, checkpoint_pages=frames // 8, truncate_pages=frames // 4)
    replicator.sync()
    database = replicator.capturing.capture.database
    hand_over, left, is_held_off = database.hand_over, [], False

    @contextmanager
    def watched(*, writer: bool = False) -> Generator[ReadTransaction]:
        nonlocal is_held_off
        with hand_over(writer=writer) as transaction:
            if writer:
                _, there, backfilled = app.checkpoint("NOOP")
                left.append(there - backfilled)
            elif not is_held_off:
                app.insert(5)
            is_held_off = writer
            yield transaction

    monkeypatch.setattr(database, "hand_over", watched)
    for _ in range(3):
        app.insert()  # from the second round on, that starts the WAL over
        while app.checkpoint("NOOP")[1] < frames:
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
    database, hand_overs = replicator.capturing.capture.database, []
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
    replicator.capturing.capture.step()
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
    database = replicator.capturing.capture.database
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
        replicator.capturing.capture.step()
        _, frames, backfilled = app.checkpoint("NOOP")
        assert frames == backfilled > 50
    replicator.sync()
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1


@pytest.mark.slow
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
    capture, database = replicator.capturing.capture, replicator.capturing.capture.database
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
