"""The pace of many databases in a process: syncs come less often while a processor has no rest, and only then."""

from __future__ import annotations

import time

import pytest

from litevfs.replicate.pace import Pace


@pytest.mark.parametrize("work", [0.0, 0.2, 0.6])
def test_a_process_with_little_to_do_syncs_at_the_intervals_asked_for(work: float):
    pace = Pace()
    for _ in range(20):
        pace.adapt_to(work)
        assert pace.stretch == 1.0


@pytest.mark.parametrize("work", [0.8, 1.3, 2.4])
def test_the_work_of_syncs_comes_to_a_bounded_share_of_a_processor(work: float):
    """`work`: the share that syncs at the intervals asked for would take."""
    pace = Pace()
    for _ in range(20):
        pace.adapt_to(work / pace.stretch)
    assert work / pace.stretch == pytest.approx(0.65, abs=0.01)


def test_the_intervals_grow_to_four_times_theirs_and_come_back():
    pace = Pace()
    for _ in range(20):
        pace.adapt_to(1.9)
    assert pace.stretch == 4.0
    for _ in range(20):
        pace.adapt_to(0.1)
    assert pace.stretch == 1.0


def test_what_the_process_itself_has_used_counts():
    pace = Pace()
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    pace.adapt()
    assert 1.0 <= pace.stretch <= 4.0
    pace.adapt()


def test_a_replicator_goes_by_the_pace_that_it_shares(app, client, replicate):
    replicator = replicate(app, sync_interval_s=1000.0)
    replicator.sync()
    pace = Pace()
    replicator.share_pace(pace)
    pace.stretch = 3.0
    before = time.monotonic()
    replicator.capturing.turn()
    assert replicator.capturing._next_sync >= before + 3000.0


def test_with_many_databases_the_look_for_a_checkpoint_that_waits_comes_later():
    pace = Pace()
    assert pace.patience_s == 0.3
    waits = []
    for pace.databases in (10, 100, 1_000):
        waits.append(pace.patience_s)
    assert waits == [0.3, 1.25, 1.25]


def test_between_syncs_a_database_that_was_not_written_to_is_asked_one_question(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch
):
    replicator = replicate(app)
    replicator.sync()
    app.insert()
    replicator.sync()
    replicator.capturing.settle(time.monotonic() + 20)
    asked = []
    database = replicator.capturing.capture.database
    wal_counts = database.wal_counts
    monkeypatch.setattr(database, "wal_counts", lambda: asked.append(1) or wal_counts())
    monkeypatch.setattr(database, "was_replaced", None)
    monkeypatch.setattr(database, "hand_over", None)
    for asks in range(1, 4):
        replicator.capturing.settle(time.monotonic() + 20)
        assert len(asked) == asks
    monkeypatch.undo()
