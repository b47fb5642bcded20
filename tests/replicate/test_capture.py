"""Steps against an application that leaves no pause: how large the WAL gets, and whom a step keeps waiting."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager, suppress

import apsw
import pytest

from litevfs.errors import ReplicatorError
from litevfs.replicate.database import ReadTransaction
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
