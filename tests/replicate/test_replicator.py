"""The replicator, its application in the same process: what is written, when, and what happens at restarts."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import apsw
import pytest

from tests.replicate.support import (
    assert_replicated,
    files_of,
    rebuilt,
    source_bytes,
)
from tests.support import wait_until

FIXTURE = Path(__file__).parents[1] / "fixtures" / "orders" / "replica"
ALL_PAGE_SIZES = [512 << n for n in range(8)]


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_first_sync_writes_every_page_as_txid_1_and_one_without_changes_nothing(app, client, replicate):
    app.insert(50)
    replicator = replicate(app)
    assert replicator.sync() == 1
    (file,) = files_of(client)
    assert file.header.is_snapshot
    assert not file.header.has_checksums
    assert_replicated(client, app.path)
    assert replicator.sync() == 1
    assert len(client.list_files(0)) == 1
    assert replicator.status.last_snapshot_reason == "the first sync"


def test_a_file_holds_the_newest_version_of_each_page_that_several_commits_changed(app, client, replicate):
    replicator = replicate(app)
    replicator.sync()
    app.insert(3)
    replicator.sync()
    frames = app.checkpoint("NOOP")[1]
    app.insert(5)
    wal = app.path.with_name("app.db-wal").read_bytes()
    assert replicator.sync() == 3
    file = files_of(client)[2]
    assert [pgno for pgno, _ in file.pages()] == [2]
    header = file.header
    assert (header.wal_offset, header.wal_size) == (32 + frames * 4120, 5 * 4120)
    assert (header.wal_salt1, header.wal_salt2) == tuple(int.from_bytes(wal[n : n + 4], "big") for n in (16, 20))
    assert abs(header.timestamp_ms / 1000 - time.time()) < 60
    assert_replicated(client, app.path)


def test_files_are_stamped_by_the_clock_given_but_never_before_the_file_before(app, client, replicate):
    now = 0
    replicator = replicate(app, clock_ms=lambda: now)
    for now in (5_000, 7_000, 6_000, 9_000):
        app.insert()
        replicator.sync()
        assert replicator.status.last_sync_ms == now
    assert [file.header.timestamp_ms for file in files_of(client)] == [5_000, 7_000, 7_000, 9_000]
    assert [info.modified_ms for info in client.list_files(0)] == [5_000, 7_000, 7_000, 9_000]


@pytest.mark.slow
@pytest.mark.parametrize("page_size", ALL_PAGE_SIZES)
def test_every_page_size_and_kind_of_change_replicates(make_app, client, replicate, page_size: int):
    app = make_app(page_size=page_size, auto_vacuum=page_size // 512 % 3)  # none, full, incremental
    replicator = replicate(app)
    for change in (
        lambda: app.insert(30, page_size),
        lambda: app.execute("UPDATE t SET data = zeroblob(?) WHERE id % 3 = 0", 3 * page_size),
        lambda: app.execute("CREATE INDEX i ON t (data)"),
        lambda: app.execute("DELETE FROM t WHERE id > 5"),
        lambda: app.execute("PRAGMA incremental_vacuum"),
        lambda: app.execute("ALTER TABLE t ADD COLUMN more DEFAULT 'x'"),
        lambda: app.execute("CREATE TABLE u AS SELECT * FROM t"),
        lambda: app.execute("VACUUM"),
        lambda: app.execute("DROP TABLE u"),
        lambda: app.execute("PRAGMA user_version = 7"),
    ):
        change()
        replicator.sync()
        assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1


def test_a_shrinking_database_replicates_with_its_new_size(make_app, client, replicate):
    app = make_app(auto_vacuum=2)
    replicator = replicate(app)
    app.insert(100, 4000)
    replicator.sync()
    app.execute("DELETE FROM t WHERE id > 10")
    app.execute("PRAGMA incremental_vacuum(50)")
    replicator.sync()
    commits = [file.header.commit for file in files_of(client)]
    assert commits[-1] == commits[-2] - 50
    assert_replicated(client, app.path)


def test_what_is_not_committed_is_not_replicated(app, client, replicate):
    """A large transaction spills frames into the WAL before it commits, or rolls back."""
    replicator = replicate(app)
    replicator.sync()
    writer = app.connect()
    writer.execute("PRAGMA cache_size = 1")
    for end, txid in (("ROLLBACK", 1), ("COMMIT", 2)):
        assert app.checkpoint("TRUNCATE") == (0, 0, 0)
        writer.execute("BEGIN")
        for _ in range(100):
            writer.execute("INSERT INTO t (data) VALUES (randomblob(4000))")
        assert app.path.with_name("app.db-wal").stat().st_size > 100_000
        assert replicator.sync() == 1
        writer.execute(end)
        assert replicator.sync() == txid
        replicator.sync()  # nothing is new: it lets go of the frames
        assert_replicated(client, app.path)


@pytest.mark.slow
@pytest.mark.plan("K04")
def test_large_transactions_long_strings_wide_tables_and_thousands_of_small_transactions(app, client, replicate):
    replicator = replicate(app)
    app.execute("BEGIN")
    app.insert(1000, 4000)
    app.execute("COMMIT")
    replicator.sync()
    app.execute(f"CREATE TABLE wide ({', '.join(f'c{n}' for n in range(500))})")
    app.execute(f"INSERT INTO wide VALUES ({', '.join(['?'] * 500)})", *range(500))
    app.execute("CREATE TABLE long (x)")
    for n in range(50):
        app.execute("INSERT INTO long VALUES (?)", f"{n:05}" * 2000)
    replicator.sync()
    for n in range(3000):
        app.execute("INSERT INTO long VALUES (?)", n)
        if n % 1000 == 999:
            replicator.sync()
    assert len(client.list_files(0)) < 10
    assert_replicated(client, app.path)


# --- the WAL is kept, whatever others do ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(3, 100))])
def test_no_checkpoint_of_others_and_no_reader_makes_the_replicator_lose_track(app, client, replicate, seed: int):
    """Random steps of an application; one snapshot at the start is all it takes."""
    rng = random.Random(seed)
    app.db.set_busy_timeout(0)
    app.execute(f"PRAGMA wal_autocheckpoint={rng.choice([0, 1, 20])}")
    readers = [app.connect() for _ in range(3)]
    replicator = replicate(app, checkpoint_pages=rng.choice([5, 1000]), truncate_pages=rng.choice([1000, 5000]))

    def toggle_reader() -> None:
        reader = rng.choice(readers)
        if reader.in_transaction:
            reader.execute("COMMIT")
        else:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM t").fetchall()

    steps = [
        (6, lambda: app.insert(rng.randint(1, 5), rng.choice([10, 3000]))),
        (1, lambda: app.execute("DELETE FROM t WHERE id % 7 = ?", rng.randrange(7))),
        (3, lambda: app.checkpoint("PASSIVE")),
        (2, lambda: app.checkpoint("FULL")),
        (2, lambda: app.checkpoint("RESTART")),
        (3, lambda: app.checkpoint("TRUNCATE")),
        (3, toggle_reader),
        (8, replicator.sync),
    ]
    weights, actions = zip(*steps, strict=True)
    for action in rng.choices(actions, weights, k=250):
        action()
        if action == replicator.sync:
            assert rebuilt(client) == source_bytes(app.path)
    replicator.sync()
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1, replicator.status.last_snapshot_reason


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["FULL", "RESTART", "TRUNCATE"])
def test_a_checkpoint_of_the_application_waits_for_one_sync_at_most(app, client, replicate, mode: str):
    replicator = replicate(app, sync_interval_s=0.5)
    replicator.start()
    wait_until(lambda: replicator.status.uploaded_txid == 1)
    for _ in range(3):
        app.insert(20, 3000)
        busy, frames, backfilled = app.checkpoint(mode)  # busy where it waits longer than the application likes
        assert (busy, backfilled) == (0, frames)
    app.insert()
    replicator.sync()
    assert replicator.status.snapshots == 1
    assert_replicated(client, app.path)


@pytest.mark.parametrize("rounds", [1, 4])
def test_what_is_written_after_a_pause_can_be_copied_out_of_the_wal_before_the_next_sync(
    app, client, replicate, rounds: int
):
    """Held at read mark zero, as it is after a pause, nothing could be, and each commit would look in vain."""
    replicator = replicate(app, sync_interval_s=3600)
    replicator.start()
    wait_until(lambda: replicator.status.uploaded_txid == 1)
    for _ in range(rounds):
        app.insert(30, 3000)
        wait_until(lambda: app.checkpoint("PASSIVE")[2] > 0)
        app.insert(5)
        replicator.sync()
        assert_replicated(client, app.path)
        app.checkpoint("PASSIVE")
        replicator.sync()
    assert replicator.status.snapshots == 1, replicator.status.last_snapshot_reason


def test_a_checkpoint_that_waits_for_the_very_place_the_replicator_took_gets_it(app, client, replicate):
    """Rare, made to happen: SQLite would let it wait for that place until it gives up, and writers with it."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    app.insert(5)
    reader = app.connect()
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM t").fetchall()  # stands in the first place, and not far enough
    app.insert(5)
    replicator = replicate(app)
    replicator.sync()
    app.insert(5)
    program = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None); "
    program += "db.execute('INSERT INTO t (data) VALUES (1)'); print('begins', flush=True); "
    program += "print(db.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone())"
    # A process with an SQLite that looks at a lock now and then, as most do; APSW's queues for it, and is never stuck.
    with subprocess.Popen([sys.executable, "-c", program, app.path], stdout=subprocess.PIPE, text=True) as checkpoint:
        assert checkpoint.stdout.readline() == "begins\n"
        start = time.monotonic()
        wait_until(lambda: time.monotonic() > start + 0.7)  # by now it waits, and looks ten times a second
        reader.execute("COMMIT")
        replicator.sync()  # takes the place before the next look
        while checkpoint.poll() is None:
            replicator.sync()
            wait_briefly()
        assert checkpoint.stdout.read() == "(0, 0, 0)\n"
    assert time.monotonic() - start < 5
    app.insert(3)
    replicator.sync()
    assert_replicated(client, app.path)


def wait_briefly() -> None:
    threading.Event().wait(0.02)


def test_the_replicator_checkpoints_a_wal_that_has_grown(app, client, replicate):
    app.execute("PRAGMA wal_autocheckpoint=0")
    replicator = replicate(app, checkpoint_pages=50)
    wal = app.path.with_name("app.db-wal")
    sizes = []
    for _ in range(20):
        app.insert(10, 3000)
        replicator.sync()
        sizes.append(wal.stat().st_size // 4120)
    assert max(sizes) < 120
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1


@pytest.mark.slow
def test_writers_that_never_pause_do_not_keep_the_wal_growing(app, client, replicate):
    """No checkpoint without the write lock would ever complete: there is always one more commit."""
    replicator = replicate(app, checkpoint_pages=200, truncate_pages=400)
    replicator.sync()
    stop, written, longest = threading.Event(), [0], [0.0]
    writer = app.connect()
    writer.execute("PRAGMA wal_autocheckpoint=0")

    def write() -> None:
        while not stop.wait(0.0003):  # shorter than any checkpoint takes
            start = time.monotonic()
            writer.execute("UPDATE t SET data = randomblob(3000) WHERE id = ?", (written[0] % 10,))
            longest[0] = max(longest[0], time.monotonic() - start)
            written[0] += 1

    app.insert(10)
    thread = threading.Thread(target=write)
    thread.start()
    largest = 0
    try:
        while written[0] < 3000:
            stop.wait(0.01)
            replicator.sync()
            largest = max(largest, replicator.status.wal_frames)
    finally:
        stop.set()
        thread.join()
    replicator.sync()
    assert largest < 1500
    assert longest[0] < 2
    assert replicator.status.snapshots == 1
    assert_replicated(client, app.path)


@pytest.mark.slow
def test_writers_that_wait_for_no_lock_and_never_pause_can_be_let_alone(app, client, replicate):
    """Each write is tried just once, and one always is, so that the write lock would show that is held for a moment."""
    replicator = replicate(app, checkpoint_pages=200, truncate_pages=None)
    replicator.sync()
    stop, failures = threading.Event(), list[apsw.BusyError]()
    writer = app.connect()
    writer.set_busy_timeout(0)
    app.insert(10)

    def write() -> None:
        while not stop.is_set():
            try:
                writer.execute("UPDATE t SET data = randomblob(3000) WHERE id % 10 = 1")
            except apsw.BusyError as exc:
                failures.append(exc)

    largest = 0
    thread = threading.Thread(target=write)
    thread.start()
    try:
        while largest < 1500:
            replicator.sync()
            largest = max(largest, replicator.status.wal_frames)
    finally:
        stop.set()
        thread.join()
    assert failures == []
    replicator.sync()
    app.insert()  # the first after a pause starts the WAL over
    replicator.sync()
    assert replicator.status.wal_frames < 10
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1


@pytest.mark.slow
@pytest.mark.parametrize("is_started", [False, True])
def test_a_wal_file_that_was_huge_is_shortened_when_no_writer_is_there(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch, is_started: bool
):
    """Not at once: the system may take longer for that than any checkpoint, and writers would be held off so long."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    replicator = replicate(app, checkpoint_pages=50, truncate_pages=100, sync_interval_s=3600)
    app.insert(300, 3000)
    wal = app.path.with_name("app.db-wal")
    replicator.sync()
    assert wal.stat().st_size > 300 * 4120
    monkeypatch.setattr("litevfs.replicate.limits.SHORTEN_AFTER_S", 0.05)
    if is_started:
        replicator.start()
        wait_until(lambda: wal.stat().st_size == 0)
    else:
        wait_until(lambda: replicator.sync() and wal.stat().st_size == 0)
    app.insert()
    replicator.sync()
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1


def test_a_reader_of_the_application_that_stays_open_costs_nothing_but_wal(app, client, replicate):
    app.execute("PRAGMA wal_autocheckpoint=0")
    reader = app.connect()
    replicator = replicate(app, checkpoint_pages=20, truncate_pages=60)
    replicator.sync()
    app.insert()
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM t").get == 1
    for _ in range(20):
        app.insert(10, 3000)
        replicator.sync()
    assert reader.execute("SELECT count(*) FROM t").get == 1
    assert app.path.with_name("app.db-wal").stat().st_size > 200 * 4120
    reader.execute("COMMIT")
    replicator.sync()
    app.insert()
    replicator.sync()
    assert replicator.status.wal_frames < 10
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1


def test_a_damaged_wal_ends_in_what_sqlite_itself_makes_of_it(app, client, replicate):
    app.execute("PRAGMA wal_autocheckpoint=0")
    replicator = replicate(app)
    replicator.sync()
    app.insert(10, 3000)
    with app.path.with_name("app.db-wal").open("r+b") as wal:
        wal.seek(-100, os.SEEK_END)
        wal.write(b"damage")
    assert replicator.sync() == 2
    assert "the WAL is damaged: of its " in replicator.status.last_comparison_reason
    assert rebuilt(client) == source_bytes(app.path)
    app.insert()
    assert replicator.sync() == 3
    assert replicator.status.comparisons == 1
