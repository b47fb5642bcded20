"""The read transaction that keeps the WAL, against an application that acts at any moment of a step."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from typing import Any

import apsw
import pytest

from litevfs.replicate import Replicator, limits
from litevfs.replicate.database import ReadTransaction, SourceDatabase, WALState
from litevfs.replicate.hold import Hold
from litevfs.replicate.wal import WALReader
from tests.replicate.conftest import Application
from tests.replicate.support import assert_replicated, files_of, source_bytes, states
from tests.support import wait_until


class Interruptions:
    """Between any two calls of a capture to SQLite, and any two pages, a random application does something.

    Knows every state that a reader could see, by its hash.
    """

    def __init__(self, app: Application, rng: random.Random) -> None:
        self._app, self._rng = app, rng
        self._readers = [app.connect() for _ in range(2)]
        self._is_acting = False
        self.odds = 0.0
        self.committed: dict[bytes, int] = {}  # hash of a state -> number of the newest commit that led to it
        self._note()

    def act(self) -> None:
        """One step, unless this is in the middle of one, or the odds are against it."""
        if self._is_acting or self._rng.random() >= self.odds:
            return
        self._is_acting = True
        try:
            with suppress(apsw.BusyError):
                self._step()
        finally:
            self._is_acting = False

    def _step(self) -> None:
        app, rng = self._app, self._rng
        mode = rng.choice(["PASSIVE", "PASSIVE", "FULL", "RESTART", "TRUNCATE"])
        choices: list[tuple[int, Callable[[], Any]]] = [
            (10, lambda: self._write("INSERT INTO t (data) VALUES (randomblob(?))", rng.choice([10, 3000, 9000]))),
            (2, lambda: self._write("UPDATE t SET data = randomblob(50) WHERE id % 3 = ?", rng.randrange(3))),
            (2, lambda: self._write("DELETE FROM t WHERE id % 7 = ?", rng.randrange(7))),
            (1, lambda: self._write("PRAGMA incremental_vacuum(3)")),
            (4, lambda: app.checkpoint(mode)),
            (2, self._toggle_reader),
        ]
        weights, actions = zip(*choices, strict=True)
        rng.choices(actions, weights)[0]()

    def _write(self, sql: str, *values: object) -> None:
        self._app.execute(sql, *values)
        self._note()

    def _note(self) -> None:
        self.committed[hashlib.sha1(source_bytes(self._app.path)).digest()] = len(self.committed)

    def _toggle_reader(self) -> None:
        reader = self._rng.choice(self._readers)
        if reader.in_transaction:
            reader.execute("COMMIT")
        else:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM t").fetchall()

    def come_between(self, replicator: Replicator, monkeypatch: pytest.MonkeyPatch) -> None:
        database: SourceDatabase = replicator.capturing.capture.database
        hand_over = database.hand_over

        @contextmanager
        def interrupted_hand_over(*, writer: bool = False) -> Generator[ReadTransaction]:
            self.act()
            with hand_over(writer=writer) as transaction:
                self.act()
                yield transaction
                self.act()
            self.act()

        def interrupted(call: Callable[..., Any]) -> Callable[..., Any]:
            def both_sides(*args: object, **options: object) -> object:
                self.act()
                result = call(*args, **options)
                self.act()
                return result

            return both_sides

        def is_closing() -> bool:
            self.act()
            return False

        monkeypatch.setattr(database, "hand_over", interrupted_hand_over)
        for name in ("wal_state", "checkpoint", "flush", "is_kept_from_writing"):
            monkeypatch.setattr(database, name, interrupted(getattr(database, name)))
        monkeypatch.setattr(replicator.capturing.capture, "is_closing", is_closing)


def course(make_app, client, replicate, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Every TXID is a state of the source, none goes back, the last is the newest; one snapshot is all it takes."""
    rng = random.Random(seed)
    monkeypatch.setattr(limits, "MOVE_UP_INTERVAL_S", 0.0)
    monkeypatch.setattr(limits, "MOVE_UP_FRAMES", rng.choice([1, 5, 1000]))
    monkeypatch.setattr(limits, "SHORTEN_AFTER_S", rng.choice([0.0, 1000.0]))
    monkeypatch.setattr(limits, "MAKE_WAY_AFTER_S", 0.0)
    monkeypatch.setattr(limits, "LOOK_AGAIN_AFTER_S", 0.0)
    app: Application = make_app(auto_vacuum=2)
    app.db.set_busy_timeout(0)
    app.execute(f"PRAGMA wal_autocheckpoint={rng.choice([0, 1, 20])}")
    app.insert(20, 3000)
    replicator = replicate(app, checkpoint_pages=rng.choice([5, 50]), truncate_pages=rng.choice([50, 60, 500]))
    world = Interruptions(app, rng)
    world.come_between(replicator, monkeypatch)
    replicator.sync()
    for _ in range(60):
        world.odds = rng.choice([0.02, 0.2, 0.6])
        rng.choice([replicator.sync, replicator.capturing.capture.settle, world.act])()
    world.odds = 0.0
    replicator.sync()
    replicator.sync()
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1, replicator.status.last_snapshot_reason
    numbers = [world.committed[hashlib.sha1(data).digest()] for _, data in states(files_of(client))]
    assert numbers == sorted(numbers)
    assert len(numbers) > 1


@pytest.fixture
def held(app):
    """A held read transaction that sees all of the WAL; (database, hold)."""
    app.execute("PRAGMA wal_autocheckpoint=0")
    app.insert(3)
    with closing(SourceDatabase(app.path)) as database, WALReader(database.wal_path) as wal:
        hold = Hold(database)
        with database.hand_over():
            state = database.wal_state(wal)
        hold.begin(state)
        yield database, hold


def test_it_moves_up_when_the_wal_has_as_many_new_frames_as_asked_for(app, held):
    database, hold = held
    seen, _ = database.wal_counts()
    app.insert(4)
    new = database.wal_counts()[0] - seen
    assert not hold.move_up(new + 1)
    app.checkpoint("PASSIVE")
    assert database.wal_counts() == (seen + new, seen)
    assert hold.move_up(new)
    app.checkpoint("PASSIVE")
    assert database.wal_counts() == (seen + new, seen + new)
    assert not hold.move_up(1)


def test_from_mark_zero_it_moves_up_for_any_frame(app, held):
    database, hold = held
    app.checkpoint("PASSIVE")
    with database.hand_over():
        counts = database.wal_counts()
    hold.begin(WALState(None, *counts))
    assert hold.is_at_mark_zero
    assert not hold.move_up(1)
    app.insert()
    assert hold.move_up(1000)
    assert not hold.is_at_mark_zero
    app.insert()
    assert not hold.move_up(1000)


def test_it_lets_go_of_everything(app, held):
    _, hold = held
    app.db.set_busy_timeout(0)
    assert app.checkpoint("TRUNCATE")[0] == 1
    hold.begin(WALState(None, 0, 0))
    assert (hold.is_held, hold.is_at_mark_zero) == (True, True)
    hold.let_go()
    assert (hold.is_held, hold.is_at_mark_zero) == (False, False)
    assert app.checkpoint("TRUNCATE") == (0, 0, 0)


def test_what_it_moves_up_to_may_be_mark_zero(app, held, monkeypatch: pytest.MonkeyPatch):
    """The counts before are no more than a hint: SQLite reads one after the other."""
    database, hold = held
    app.insert()
    hand_over = database.hand_over

    @contextmanager
    def of_a_wal_that_was_copied() -> Generator[ReadTransaction]:
        database.release()
        app.checkpoint("PASSIVE")
        with hand_over() as transaction:
            yield transaction

    monkeypatch.setattr(database, "hand_over", of_a_wal_that_was_copied)
    assert hold.move_up(1)
    assert hold.is_at_mark_zero


@pytest.mark.parametrize("is_stuck", [False, True])
def test_it_lets_go_for_a_checkpoint_that_waits_and_not_for_one_that_is_only_seen_once(
    app, client, replicate, monkeypatch: pytest.MonkeyPatch, is_stuck: bool
):
    """What is written while nothing is held may be lost in the WAL, and costs a snapshot then."""
    monkeypatch.setattr(limits, "MAKE_WAY_AFTER_S", 0.0)
    monkeypatch.setattr(limits, "LOOK_AGAIN_AFTER_S", 0.0)
    app.execute("PRAGMA wal_autocheckpoint=0")
    replicator = replicate(app)
    app.insert(5)
    replicator.sync()
    reader, other = app.connect(), app.connect()
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM t").fetchall()
    app.insert(5)
    replicator.sync()
    look = replicator.capturing.capture.settle
    times_let_go = 0
    release = replicator.capturing.capture.database.release

    def counted_release() -> None:
        nonlocal times_let_go
        times_let_go += 1
        release()

    monkeypatch.setattr(replicator.capturing.capture.database, "release", counted_release)

    def checkpoint() -> None:
        while other.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()[0][0]:
            pass  # it waits for no other checkpoint, as the ones below are

    thread = threading.Thread(target=checkpoint)
    thread.start()  # holds off writers while it waits for the reader
    wait_until(replicator.capturing.capture.database.is_kept_from_writing)
    look()
    assert times_let_go == 0
    if is_stuck:
        look()
    reader.execute("COMMIT")
    wait_until(lambda: len({*app.checkpoint("NOOP")[1:]}) == 1)  # all is copied; it waits for the last place now
    look()
    thread.join()
    assert times_let_go == is_stuck
    app.insert()
    replicator.sync()
    assert_replicated(client, app.path)
    assert replicator.status.snapshots == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_an_application_that_acts_at_any_moment_of_a_step_loses_nothing(
    make_app, client, replicate, monkeypatch: pytest.MonkeyPatch, seed: int
):
    course(make_app, client, replicate, monkeypatch, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_300_applications_that_act_at_any_moment_of_a_step_lose_nothing(
    make_app, client, replicate, monkeypatch: pytest.MonkeyPatch, seed: int
):
    course(make_app, client, replicate, monkeypatch, seed)
