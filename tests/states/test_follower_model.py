"""Any mixture of commits, late uploads, compaction, retention, stale listings and replacement, against whole images.

Whatever happens, a state's pages are those of one database at one TXID, and pinned states stay right or say they are
gone. When the trouble ends, the newest state arrives.
"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litevfs.errors import LitevfsError, PageUnavailableError
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.replica_clients.base import LEVELS, LTXFileInfo
from litevfs.states.snapshot import Snapshot
from litevfs.states.survey import INTERVAL_S
from tests.primary import Primary
from tests.scripted import Script
from tests.support import Clock


class World:
    """One storage, the databases that were ever replicated to it, and one replica."""

    def __init__(self) -> None:
        self.script = Script()
        self.primaries: list[Primary] = []
        self.replace(0)
        options = Options(replica_url=self.script.url, read_timeout_s=5.0, cache_size_bytes=100_000)
        self.clock = Clock()
        self.replica = Replica(options, clock=self.clock)
        self.late: list[int] = []
        self.listed: dict[int, list[LTXFileInfo]] = {}
        self.pinned: list[Snapshot] = []

    @property
    def primary(self) -> Primary:
        return self.primaries[-1]

    # --- what can happen ----------------------------------------------------------------------------------------------

    def replace(self, n: int) -> None:
        """Another database takes the place."""
        for old in self.primaries:
            old.delete_all()
        new = Primary(self.script.writer, page_size=512)
        new.start_ms += len(self.primaries) * 10_000_000
        self.primaries.append(new)
        self.late = []
        new.commit(f"CREATE TABLE t(x); INSERT INTO t VALUES({n}), (randomblob(3000))")

    def commit(self, n: int) -> None:
        """A transaction that grows, changes or shrinks the database."""
        sql = (
            "INSERT INTO t VALUES(randomblob(2000))",
            "UPDATE t SET x = randomblob(700) WHERE rowid % 3 = 1",
            "DELETE FROM t WHERE rowid > 4",
        )[n % 3]
        before = self.primary.txid
        self.primary.run(sql, may_change_nothing=True)
        if n % 3 == 2:
            self.primary.run("VACUUM")
        self.late += range(before + 1, self.primary.txid + 1)

    def upload(self, n: int) -> None:
        """One transaction arrives, not always the oldest."""
        if self.late:
            self.primary.upload(self.late.pop(0 if n % 4 else -1))

    def upload_all(self, n: int) -> None:
        while self.late:
            self.primary.upload(self.late.pop(0))

    def compact(self, n: int) -> None:
        """A range of transactions that are all uploaded becomes one file."""
        newest = min(self.late, default=self.primary.txid + 1) - 1
        if newest >= 1:
            random = Random(n)
            max_txid = random.randint(1, newest)
            level = random.choice([1, 1, 2, 9])
            min_txid = 1 if level == 9 else random.randint(max(1, max_txid - 6), max_txid)
            self.primary.compact(level, min_txid, max_txid)

    def retain(self, n: int) -> None:
        """The oldest files of a level go, whether or not others make them superfluous."""
        level = Random(n).choice([0, 0, 0, 1, 2, 9])
        self.primary.delete(level, range(1, Random(n).randint(1, self.primary.txid) + 1))

    def look_stale(self, n: int) -> None:
        """Refresh from listings some of which are those of an earlier look."""
        stale = {level: files for level, files in self.listed.items() if Random(n + level).random() < 0.5}
        self.script.on_list = lambda level, files: stale.get(level, files)
        self.look(n)
        self.script.on_list = None

    def look(self, n: int) -> None:
        """Refresh, and compare the whole state."""
        before = self.replica.snapshot
        try:
            self.replica.refresh()
        except LitevfsError as error:
            assert error.message  # whatever it is, the state stays whole
        now = self.replica.snapshot
        if now is not None:
            assert self.is_whole(now)
            assert before is None or now.epoch > before.epoch or now.txid >= before.txid
            self.pinned = [*self.pinned[-2:], now]
        if self.script.on_list is None:
            self.listed = {level: self.script.writer.list_files(level) for level in LEVELS}

    def read_pinned(self, n: int) -> None:
        """States of earlier transactions are still what they were, or gone."""
        for snapshot in self.pinned:
            assert self.is_whole(snapshot)

    # --- the oracle ---------------------------------------------------------------------------------------------------

    def is_whole(self, snapshot: Snapshot) -> bool:
        """Whether every page that can be read is that of one of the databases at the snapshot's TXID."""
        images = [p.images[snapshot.txid] for p in self.primaries if snapshot.txid in p.images]
        images = [image for image in images if len(image) == snapshot.commit * 512]
        for pgno in range(1, snapshot.commit + 1):
            try:
                page = self.replica.pages.read(snapshot, pgno)
            except PageUnavailableError:
                continue
            images = [image for image in images if image[(pgno - 1) * 512 : pgno * 512] == page]
        return bool(images)

    def settle(self) -> None:
        """Everything is uploaded and a snapshot taken: the newest state is there at the next looks."""
        self.upload_all(0)
        self.primary.compact(9, 1, self.primary.txid)
        for _ in range(2):
            self.clock.now_s += INTERVAL_S
            self.look(0)
        assert self.replica.snapshot.txid == self.primary.txid
        assert all(
            self.replica.pages.read(self.replica.snapshot, pgno) == self.primary.page(pgno)
            for pgno in range(1, self.replica.snapshot.commit + 1)
        )

    def close(self) -> None:
        self.replica.close()
        for primary in self.primaries:
            primary.close()
        self.script.__exit__(None, None, None)


_EVENTS = ("commit", "upload", "upload_all", "compact", "look", "look_stale", "retain", "read_pinned", "replace")
_steps = st.lists(
    st.tuples(st.sampled_from(("commit", "upload_all", "compact", "look", "look", *_EVENTS)), st.integers(0, 1000)),
    min_size=10,
    max_size=50,
)


def run_course(steps) -> None:
    world = World()
    try:
        for name, n in steps:
            getattr(world, name)(n)
        world.settle()
    finally:
        world.close()


@pytest.fixture(autouse=True)
def nothing_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no storage that hangs: thousands of looks, and one of them may take a second."""
    monkeypatch.setattr("litevfs.live.replica.MIN_REFRESH_S", 60.0)


_COMMIT = ("commit", 0)


@pytest.mark.plan("E03", "L29")
@pytest.mark.parametrize(
    "steps",
    [
        [*[_COMMIT] * 5, ("compact", 0), ("look", 0), ("replace", 0), _COMMIT, ("look_stale", 0)],
        [*[_COMMIT] * 6, ("compact", 0), ("look", 0), ("replace", 0), ("look_stale", 0)],
        [("commit", 2), ("upload_all", 0), ("compact", 248), ("look", 2), ("replace", 3), ("look_stale", 2)],
        [("retain", 578), ("compact", 0), ("look", 464), ("replace", 0), ("look_stale", 2), ("commit", 1)],
    ],
)
def test_a_look_that_mixes_listings_of_two_databases_mixes_no_state(steps):
    """Level 9 as it was before a replacement beside the new level 0, whose file ends at the same TXID."""
    run_course(steps)


@pytest.mark.plan("D13", "L29", "E01", "E03", "D05")
@settings(max_examples=60, deadline=None)
@given(_steps)
def test_no_course_of_events_mixes_states_or_loses_the_newest(steps):
    run_course(steps)
