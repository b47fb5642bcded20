"""Thousands of short courses of events at the level of pages, with whole images as the oracle: cheap, so many.

Databases here are made of numbers, not by SQLite, and files by the tests alone, which can do what a well-kept primary
never does: compacted files of any range, that overlap, straddle and come late, of any level; full snapshots that say
when they were made; clocks that stand still or step back; retention of any files that can be spared, or of any at all;
databases that are replaced or set back; listings of which some levels are those of an earlier look.
"""

from __future__ import annotations

import itertools
from random import Random

import pytest

from litevfs.errors import LitevfsError, PageUnavailableError, ReplicaEmptyError, StorageNotFoundError
from litevfs.live.replica import Replica
from litevfs.ltx.encoder import encode_file
from litevfs.ltx.format import Header
from litevfs.options import Options
from litevfs.replica_clients.base import LEVELS, LTXFileInfo
from litevfs.states.snapshot import Snapshot
from tests.scripted import Script

PAGE_SIZE = 512
MAX_PAGES = 8
COURSES = 60
SOAK_COURSES = 3000
CLOCKS: dict[str, tuple[int, ...]] = {"goes": (1, 5, 1000), "steps back": (0, 1, 1000, -3000), "stands": (0,)}

_pages = itertools.count(1)


class Database:
    """Transactions of a made-up database: the whole image after each, what it changed, and when it was made."""

    def __init__(
        self, random: Random, clock: str, start_ms: int, before: Database | None = None, txid: int = 0
    ) -> None:
        """Begins after transaction `txid` of the one `before`."""
        kept = range(1, txid + 1)
        self.images = {0: b""} | {n: before.images[n] for n in kept if before}
        self.changed = {n: before.changed[n] for n in kept if before}
        self.times_ms = {n: before.times_ms[n] for n in kept if before}
        self.now_ms = start_ms
        self._random, self._clock = random, CLOCKS[clock]

    @property
    def txid(self) -> int:
        return len(self.images) - 1

    def commit(self) -> int:
        """Grow, change or shrink, sometimes to no page at all."""
        random, txid, old = self._random, self.txid + 1, self.images[self.txid]
        pages = len(old) // PAGE_SIZE
        size = random.choice((pages, pages, pages + random.randint(1, 4), pages - random.randint(1, 5)))
        size = min(max(size, 1 if pages == 0 or random.random() < 0.9 else 0), MAX_PAGES)
        changed = {n for n in range(1, size + 1) if n == 1 or n > pages or random.random() < 0.25}
        image = bytearray(old[: size * PAGE_SIZE].ljust(size * PAGE_SIZE, b"\0"))
        for n in changed:
            image[(n - 1) * PAGE_SIZE : n * PAGE_SIZE] = next(_pages).to_bytes(8) * (PAGE_SIZE // 8)
        self.now_ms += random.choice(self._clock)
        self.images[txid], self.changed[txid], self.times_ms[txid] = bytes(image), changed, self.now_ms
        return txid

    def file(self, min_txid: int, max_txid: int, timestamp_ms: int) -> bytes:
        """The LTX file of a range of transactions."""
        size = len(self.images[max_txid]) // PAGE_SIZE
        changed = set().union(*(self.changed[n] for n in range(min_txid, max_txid + 1)))
        pages = [(n, self.page(n, max_txid)) for n in range(1, size + 1) if min_txid == 1 or n in changed]
        return encode_file(Header(PAGE_SIZE, size, min_txid, max_txid, timestamp_ms=timestamp_ms), pages)

    def page(self, pgno: int, txid: int) -> bytes:
        return self.images[txid][(pgno - 1) * PAGE_SIZE : pgno * PAGE_SIZE]


class World:
    """One storage, the databases that were ever replicated to it, and one replica of it."""

    def __init__(self, seed: int, clock: str) -> None:
        self.random = Random(seed)
        self.clock = clock
        self.now_s = self.looked_s = 1000.0
        self.tick()
        block_size = self.random.choice((0, 0, 4096))
        self.script = Script(
            block_size=4096 if seed % 4 == 3 else block_size,
            lists_levels=seed % 4 > 0,
            max_names=9 if seed % 4 == 2 else 1000,
            reads_named=seed % 4 == 3,
        )
        self.client = self.script.writer
        self.databases = [Database(self.random, clock, 10**6)]
        self.late: list[int] = []  # transactions that are not uploaded yet
        self.listed: dict[int, list[LTXFileInfo]] = {}
        self.pinned: list[Snapshot] = []
        self.was_pruned = False  # what happened may cost a reader its state
        self.was_disturbed = False  # the same, and a look may fail
        options = {"cache_size_bytes": self.random.choice((0, 3000, 100_000)), "prefetch": False}
        self.replica = Replica(
            Options(replica_url=self.script.url, read_timeout_s=5.0, **options), clock=lambda: self.now_s
        )

    def close(self) -> None:
        self.replica.close()
        self.script.__exit__(None, None, None)

    @property
    def database(self) -> Database:
        return self.databases[-1]

    def files(self, *levels: int) -> list[LTXFileInfo]:
        return [file for level in levels or LEVELS for file in self.client.list_files(level)]

    def reachable(self, gone: tuple[LTXFileInfo, ...] = ()) -> set[int]:
        """TXIDs whose state the storage holds, by the names of its files; 0 is the empty state."""
        found = {0}
        for file in sorted(set(self.files()).difference(gone), key=lambda f: f.max_txid):
            if any(file.min_txid - 1 <= txid < file.max_txid for txid in found):
                found.add(file.max_txid)
        return found

    # --- what a well-kept primary does --------------------------------------------------------------------------------

    def tick(self) -> None:
        self.now_s += self.random.choice((1, 10, 31, 61))

    def commit(self) -> None:
        self.late += [self.database.commit() for _ in range(self.random.choice((1, 1, 2, 5)))]

    def write(self, level: int, min_txid: int, max_txid: int) -> None:
        database = self.database
        time_ms = database.times_ms[max_txid] if level < 9 else database.now_ms + self.random.choice((0, 1, 5000))
        self.client.write(level, min_txid, max_txid, database.file(min_txid, max_txid, time_ms), time_ms)

    def upload(self) -> None:
        if self.late:
            txid = self.late.pop(0)
            self.write(0, txid, txid)

    def upload_all(self) -> None:
        while self.late:
            self.upload()

    def compact(self) -> None:
        """Any range of what is uploaded, mostly what follows the file before."""
        random = self.random
        uploaded = min(self.late, default=self.database.txid + 1) - 1
        if uploaded < 1:
            return
        last = random.choice((uploaded, random.randint(1, uploaded)))
        level = random.choice((1, 1, 1, 2, 3, 9))
        if level == 9 and any(file.max_txid == last for file in self.files(9)):
            return  # made once for a TXID, by any primary: another one would have another time
        first = random.choice((max((f.max_txid for f in self.files(level)), default=0) + 1, random.randint(1, last)))
        self.write(level, 1 if level == 9 else min(first, last), last)

    def retain(self) -> None:
        """The oldest files of a level go, as far as the newest state can spare them; never its newest."""
        files = self.files(self.random.choice((0, 0, 0, 1, 2, 9)))[:-1]
        gone: tuple[LTXFileInfo, ...] = ()
        for file in files[: self.random.randint(0, len(files))]:
            if max(self.reachable()) in self.reachable((*gone, file)):
                gone = (*gone, file)
        self.client.delete(gone)

    # --- what nobody should do and is served all the same ------------------------------------------------------------

    def prune(self) -> None:
        """Of all files that end at the newest state, which the replica has seen, or before, only a snapshot is sure to
        stay. It does not prove that pages are those of that state.
        """
        state = self.replica.snapshot
        if state is not None and state.txid == max(self.reachable()):
            self.was_pruned = True
            if not any(file.max_txid == state.txid for file in self.files(9)):
                self.write(9, 1, state.txid)
            files = [file for file in self.files() if (file.level, file.max_txid) != (9, state.txid)]
            self.client.delete(self.random.sample(files, self.random.randint(0, len(files))))

    # --- what must not happen and does --------------------------------------------------------------------------------

    def upload_too_soon(self) -> None:
        if self.late:
            self.was_disturbed = True
            txid = self.late.pop()
            self.write(0, txid, txid)

    def lose(self) -> None:
        self.was_disturbed = True
        files = self.files(self.random.choice((0, 1, 9)))
        self.client.delete(files[: self.random.randint(0, len(files))])

    def replace(self) -> None:
        """Another database takes the place, often with a file that ends where the old one did; an old listing often
        goes with it.
        """
        random = self.random
        last = self.replica.snapshot.txid if self.replica.snapshot else 0
        self.was_disturbed = True
        self.client.delete(self.files())
        self.databases.append(Database(random, self.clock, self.database.now_ms + 10_000_000))
        self.late, done = [], 0
        for _ in range(random.choice((0, 1, 3, last, last + 3))):
            self.database.commit()
        while done < self.database.txid:
            first = done + 1
            done = (
                last
                if done < last <= self.database.txid and random.random() < 0.5
                else random.randint(first, self.database.txid)
            )
            self.write(random.choice((0, 1, 1, 2, 3, *([9] if first == 1 else []))), first, done)
        random.choice((self.look, self.look_at_old_listings, self.read_by_old_listings))()

    def set_back(self) -> None:
        """The database is restored to an earlier state, and goes on from there under the same TXIDs."""
        uploaded = min(self.late, default=self.database.txid + 1) - 1
        if uploaded >= 2:
            self.was_disturbed = True
            txid = self.random.randint(1, uploaded - 1)
            self.client.delete([file for file in self.files() if file.max_txid > txid])
            start_ms = self.database.now_ms + 10_000_000
            self.databases.append(Database(self.random, self.clock, start_ms, self.database, txid))
            self.late = [self.database.commit() for _ in range(self.random.choice((0, 1, 2, 6)))]
            self.random.choice((self.look, self.upload_all))()

    def look_at_old_listings(self) -> None:
        with self.old_listings():
            self.look()

    def read_by_old_listings(self) -> None:
        with self.old_listings():
            self.read_pinned()

    def old_listings(self) -> _OldListings:
        self.was_disturbed = True
        return _OldListings(self)

    # --- readers ------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        before = self.replica.snapshot
        thorough = self.random.random() < 0.3
        is_all = thorough or not self.script.reads_named or self.now_s - self.looked_s >= 15
        self.looked_s = self.now_s
        try:
            self.replica.refresh(thorough=thorough)
        except LitevfsError as error:
            assert self.was_disturbed or isinstance(error, ReplicaEmptyError), repr(error)
        now = self.replica.snapshot
        if now is not None:
            assert before is None or now.epoch > before.epoch or now.txid >= before.txid
            self.check(now)
            self.pinned = [*self.pinned[-3:], now]
        if self.script.on_list is None:
            self.listed = {level: self.files(level) for level in LEVELS}
            if now is not None and is_all and not self.was_disturbed:
                assert now.txid == max(self.reachable())

    def read_pinned(self) -> None:
        for snapshot in self.pinned:
            self.check(snapshot)

    def view(self) -> None:
        txid = self.random.randint(1, max(self.database.txid, 1))
        try:
            view = self.replica.view(txid=txid, timeout_s=0.01)
        except LitevfsError:
            assert self.was_disturbed or txid not in self.reachable()
        else:
            assert view.txid == txid
            self.check(view)

    def check(self, snapshot: Snapshot) -> None:
        """Every page that can be read is that of one of the databases at the snapshot's TXID."""
        txid, size = snapshot.txid, snapshot.commit * PAGE_SIZE
        fitting = [d for d in self.databases if txid in d.images and len(d.images[txid]) == size]
        for pgno in range(1, snapshot.commit + 1):
            try:
                page = self.replica.pages.read(snapshot, pgno)
            except (PageUnavailableError, StorageNotFoundError) as error:
                may_be_lost = self.was_pruned or txid != max(self.reachable())
                assert self.was_disturbed or (may_be_lost and snapshot is not self.replica.snapshot), repr(error)
                continue
            fitting = [database for database in fitting if database.page(pgno, txid) == page]
        assert fitting, f"a state of TXID {txid}, epoch {snapshot.epoch}, that no database ever had"

    def settle(self) -> None:
        """With one more transaction and a snapshot, the next looks find the newest state, whatever happened."""
        self.commit()
        self.upload_all()
        self.write(9, 1, self.database.txid)
        self.was_disturbed = True
        for _ in range(3):
            self.tick()
            self.now_s += 61
            self.look()
        state = self.replica.snapshot
        assert state is not None
        pages = [self.replica.pages.read(state, pgno) for pgno in range(1, state.commit + 1)]
        assert (state.txid, b"".join(pages)) == (self.database.txid, self.database.images[self.database.txid])


class _OldListings:
    """While it is entered, some levels are listed as they were at an earlier look."""

    def __init__(self, world: World) -> None:
        self._script = world.script
        random = world.random
        levels = random.choice(([0], random.sample(LEVELS, 5)))
        self._old = {level: files for level, files in world.listed.items() if level in levels}

    def __enter__(self) -> None:
        self._script.on_list = lambda level, files: self._old.get(level, files)

    def __exit__(self, *_: object) -> None:
        self._script.on_list = None


USUAL = ("commit", "upload", "upload_all", "upload_all", "compact", "compact", "retain", "tick", "view", "read_pinned")
TROUBLE = ("upload_too_soon", "lose", "replace", "set_back", "look_at_old_listings", "read_by_old_listings")


@pytest.fixture(autouse=True)
def nothing_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no storage that hangs: thousands of looks, and one of them may take a second."""
    monkeypatch.setattr("litevfs.live.replica.MIN_REFRESH_S", 60.0)


@pytest.mark.plan("D13", "L03", "L08", "L29", "E01", "E03", "D05")
@pytest.mark.parametrize(
    "courses",
    [
        range(COURSES),
        pytest.param(range(10**6, 10**6 + SOAK_COURSES), marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
    ],
    ids=["some", "many"],
)
@pytest.mark.parametrize(
    ("events", "clock"),
    [
        pytest.param(USUAL, "goes", id="well kept"),
        pytest.param(USUAL, "steps back", id="well kept, clock steps back"),
        pytest.param(USUAL, "stands", id="well kept, clock stands"),  # then nothing tells one database from another
        pytest.param((*USUAL, "prune"), "goes", id="pruned by hand"),
        pytest.param(USUAL + TROUBLE, "goes", id="in trouble"),
        pytest.param(USUAL + TROUBLE, "steps back", id="in trouble, clock steps back"),
    ],
)
def test_no_course_of_events_mixes_states_or_misses_the_newest(events, clock, courses):
    for seed in courses:
        world = World(seed, clock)
        try:
            for _ in range(world.random.choice((20, 40, 80))):
                getattr(world, world.random.choice(("look", "look", "look", "commit", *events)))()
            world.settle()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        finally:
            world.close()
