"""The world of random courses: one storage, the databases that were ever replicated to it, and one replica of it.

A step of a course is the name of a method and its arguments. An event takes one number, from which it draws all that it
leaves to chance, so that a course is its steps, and any of them can be left out. An act does one thing that is told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from random import Random

from litevfs.errors import LitevfsError, LTXFormatError, PageUnavailableError, ReplicaEmptyError, StorageNotFoundError
from litevfs.live.replica import Replica
from litevfs.ltx.names import format_file_name
from litevfs.options import Options
from litevfs.replica_clients.base import LEVELS, LTXFileInfo
from litevfs.states.snapshot import Snapshot
from tests.scripted import Script
from tests.states.databases import PAGE_SIZE, Captured, Database, MadeUp

INTERVAL_S = 15.0
"""How often a replica looks at all levels, as the docs say: not taken from the code that is tried."""
SETTLING_LOOKS = 2
LOOKS_AFTER_SET_BACK = 4
"""That transactions are gone is believed when it has lasted 30 s."""

Step = tuple[str, *tuple[int, ...]]


class World:
    """One storage, its databases, one replica."""

    def __init__(self, seed: int = 0, clock: str = "goes", *, is_captured: bool = False) -> None:
        """`seed` draws the kind of storage and the options; `clock`, one of CLOCKS, is the one of its databases.

        With `is_captured`, these are SQLite's.
        """
        self.clock, self.is_captured = clock, is_captured
        self.now_s = self.looked_s = 1000.0
        random = Random(seed)
        block_size = random.choice((0, 0, 4096))
        self.script = Script(
            block_size=4096 if seed % 4 == 3 else block_size,
            lists_levels=seed % 4 > 0,
            max_names=9 if seed % 4 == 2 else 1000,
            reads_named=seed % 4 == 3,
        )
        self.client = self.script.writer
        self.databases: list[Database] = []
        self.begin_another()
        self.listed: dict[int, list[LTXFileInfo]] = {}
        self.pinned: list[Snapshot] = []
        self.was_pruned = False  # what happened may cost a reader its state
        self.was_disturbed = False  # the same, and a look may fail
        self.was_damaged = False  # the same, and a page of any state may be told damaged
        self.was_set_back = False  # what is left may be a known state, and nothing younger
        self._ends_with_news = seed % 2 == 1
        options = Options(
            replica_url=self.script.url,
            read_timeout_s=5.0,
            cache_size_bytes=random.choice((0, 3000, 100_000)),
            prefetch=seed % 5 == 0,
        )
        self.replica = Replica(options, clock=lambda: self.now_s)

    def close(self) -> None:
        self.replica.close()
        for database in self.databases:
            database.close()
        self.script.__exit__(None, None, None)

    def play(self, steps: Iterable[Step]) -> None:
        """Take the steps; then the newest state arrives, whatever happened."""
        for name, *arguments in steps:
            getattr(self, name)(*arguments)
        self.settle()

    @property
    def database(self) -> Database:
        return self.databases[-1]

    @property
    def txid(self) -> int:
        return max(self.database.images)

    @property
    def uploaded_txid(self) -> int:
        """Up to here, all transactions were uploaded."""
        return min(self.late, default=self.txid + 1) - 1

    def files(self, *levels: int) -> list[LTXFileInfo]:
        return [file for level in levels or LEVELS for file in self.client.list_files(level)]

    def reachable(self, gone: Collection[LTXFileInfo] = ()) -> set[int]:
        """TXIDs whose state the storage holds, by the names of its files; 0 is the empty state."""
        found = {0}
        for file in sorted(set(self.files()).difference(gone), key=lambda f: f.max_txid):
            if any(file.min_txid - 1 <= txid < file.max_txid for txid in found):
                found.add(file.max_txid)
        return found

    # --- acts ---------------------------------------------------------------------------------------------------------

    def write(self, level: int, min_txid: int, max_txid: int, later_ms: int = 0) -> None:
        """A file of these transactions; a full snapshot says that it was made `later_ms` after the newest of all."""
        database = self.database
        time_ms = database.times_ms[max_txid] if level < 9 else database.now_ms + later_ms
        self.client.write(level, min_txid, max_txid, database.file(min_txid, max_txid, time_ms), time_ms)

    def begin_another(self) -> None:
        """The database gives way to another one, of which nothing is uploaded yet."""
        self.was_disturbed = bool(self.databases)
        self.client.delete(self.files())
        start_ms = self.database.now_ms + 10_000_000 if self.databases else 10**6
        self.databases.append(Captured(start_ms) if self.is_captured else MadeUp(self.clock, start_ms))
        self.late: list[int] = []  # transactions that are not uploaded yet

    def commit_one(self, n: int) -> None:
        """The transaction that `n` draws."""
        self.late += self.database.commit(Random(n))

    def keep_only(self, level: int) -> None:
        """The files of all other levels go."""
        self.was_pruned = True
        self.client.delete([file for file in self.files() if file.level != level])

    def refresh(self, *, thorough: bool = True) -> None:
        """Look for what is new, and compare the whole state."""
        before = self.replica.snapshot
        is_all = thorough or not self.script.reads_named or self.now_s - self.looked_s >= INTERVAL_S
        self.looked_s = self.now_s
        try:
            self.replica.refresh(thorough=thorough)
        except LitevfsError as error:
            assert error.message
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

    def refresh_by_old_levels(self, *levels: int) -> None:
        """Refresh, with these levels listed as they were at an earlier look."""
        with self.old_listings(levels):
            self.refresh()

    @contextmanager
    def old_listings(self, levels: Collection[int]) -> Iterator[None]:
        self.was_disturbed = True
        old = {level: files for level, files in self.listed.items() if level in levels}
        self.script.on_list = lambda level, files: old.get(level, files)
        yield
        self.script.on_list = None

    # --- events: what a well-kept primary does ------------------------------------------------------------------------

    def tick(self, n: int) -> None:
        self.now_s += Random(n).choice((1, 10, 31, 61))

    def commit(self, n: int) -> None:
        random = Random(n)
        for _ in range(random.choice((1, 1, 2, 5))):
            self.late += self.database.commit(random)

    def upload(self, n: int) -> None:
        if self.late:
            txid = self.late.pop(0)
            self.write(0, txid, txid)

    def upload_all(self, n: int) -> None:
        while self.late:
            self.upload(n)

    def compact(self, n: int) -> None:
        """Any range of what is uploaded, mostly what follows the file before."""
        random, uploaded = Random(n), self.uploaded_txid
        if uploaded < 1:
            return
        last = random.choice((uploaded, random.randint(1, uploaded)))
        level = random.choice((1, 1, 1, 2, 3, 9))
        if level == 9:
            self._write_snapshot(last, random)
            return
        first = random.choice((max((f.max_txid for f in self.files(level)), default=0) + 1, random.randint(1, last)))
        self.write(level, min(first, last), last)

    def _write_snapshot(self, txid: int, random: Random) -> None:
        """Once for a TXID, by any primary: another one would have another time."""
        if not any(file.max_txid == txid for file in self.files(9)):
            self.write(9, 1, txid, random.choice((0, 1, 5000)))

    def retain(self, n: int) -> None:
        """The oldest files of a level go, as far as the newest state can spare them; never its newest."""
        random = Random(n)
        files = self.files(random.choice((0, 0, 0, 1, 2, 9)))[:-1]
        gone: list[LTXFileInfo] = []
        for file in files[: random.randint(0, len(files))]:
            if max(self.reachable()) in self.reachable([*gone, file]):
                gone.append(file)
        self.client.delete(gone)

    # --- events: what is bad practice and served all the same ---------------------------------------------------------

    def prune(self, n: int) -> None:
        """Of all files that end at the newest state, which the replica has seen, or before, only a snapshot is sure to
        stay. It does not prove that pages are those of that state.
        """
        random, state = Random(n), self.replica.snapshot
        if state is not None and state.txid == max(self.reachable()):
            self.was_pruned = True
            self._write_snapshot(state.txid, random)
            files = [file for file in self.files() if (file.level, file.max_txid) != (9, state.txid)]
            self.client.delete(random.sample(files, random.randint(0, len(files))))

    # --- events: what must not happen and does ------------------------------------------------------------------------

    def upload_too_soon(self, n: int) -> None:
        if self.late:
            self.was_disturbed = True
            txid = self.late.pop()
            self.write(0, txid, txid)

    def lose(self, n: int) -> None:
        """The oldest files of a level go, whether or not others hold the same."""
        random = Random(n)
        self.was_disturbed = True
        files = self.files(random.choice((0, 0, 0, 1, 2, 9)))
        self.client.delete(files[: random.randint(0, len(files))])

    def damage(self, n: int) -> None:
        """A byte of a file is another one."""
        random, files = Random(n), self.files()
        if files:
            self.was_disturbed = self.was_damaged = True
            file = random.choice((random.choice(files), max(files, key=lambda f: f.max_txid)))
            key = f"{file.level}/{format_file_name(file.min_txid, file.max_txid)}"
            stored = self.script.store.get(key)
            assert stored is not None
            data = bytearray(stored.data)
            data[random.choice((random.randrange(len(data)), -1))] ^= random.randint(1, 255)
            self.script.store.put(key, bytes(data), stored.modified_ms)

    def replace(self, n: int) -> None:
        """Another database takes the place, often with a file that ends where the old one did; an old listing often
        goes with it.
        """
        random = Random(n)
        last = self.replica.snapshot.txid if self.replica.snapshot else 0
        self.begin_another()
        for _ in range(random.choice((0, 1, 3, last, last + 3))):
            self.database.commit(random)
        done = 0
        while done < self.txid:
            first = done + 1
            done = last if done < last <= self.txid and random.random() < 0.5 else random.randint(first, self.txid)
            self.write(random.choice((0, 1, 1, 2, 3, *([9] if first == 1 else []))), first, done)
        event = random.choice((self.look, self.look_at_old_listings, self.read_by_old_listings, self.commit))
        event(random.getrandbits(32))

    def set_back(self, n: int) -> None:
        """The database is restored to an earlier state, and goes on from there under the same TXIDs."""
        random = Random(n)
        if self.uploaded_txid >= 2:
            self.was_disturbed = self.was_set_back = True
            txid = random.randint(1, self.uploaded_txid - 1)
            self.client.delete([file for file in self.files() if file.max_txid > txid])
            self.databases.append(MadeUp(self.clock, self.database.now_ms + 10_000_000, self.database, txid))
            self.late = [txid for _ in range(random.choice((0, 1, 2, 6))) for txid in self.database.commit(random)]
            random.choice((self.look, self.upload_all))(random.getrandbits(32))

    def look_at_old_listings(self, n: int) -> None:
        with self.old_listings(_some_levels(n)):
            self.look(n)

    def read_by_old_listings(self, n: int) -> None:
        with self.old_listings(_some_levels(n)):
            self.read_pinned(n)

    # --- events: readers ----------------------------------------------------------------------------------------------

    def look(self, n: int) -> None:
        self.refresh(thorough=Random(n).random() < 0.3)

    def read_pinned(self, n: int) -> None:
        """States of earlier looks are still what they were, or gone."""
        for snapshot in self.pinned:
            self.check(snapshot)

    def view(self, n: int) -> None:
        txid = Random(n).randint(1, max(self.txid, 1))
        try:
            view = self.replica.view(txid=txid, timeout_s=0.01)
        except LitevfsError:
            assert self.was_disturbed or txid not in self.reachable()
        else:
            assert view.txid == txid
            self.check(view)

    # --- the oracle ---------------------------------------------------------------------------------------------------

    def check(self, snapshot: Snapshot) -> None:
        """Every page that can be read is that of one of the databases at the snapshot's TXID."""
        txid = snapshot.txid
        images = [database.images[txid] for database in self.databases if txid in database.images]
        images = [image for image in images if len(image) == snapshot.commit * PAGE_SIZE]
        for pgno in range(1, snapshot.commit + 1):
            try:
                page = self.replica.pages.read(snapshot, pgno)
            except LTXFormatError as error:
                assert self.was_damaged, repr(error)
                continue
            except (PageUnavailableError, StorageNotFoundError) as error:
                may_be_lost = self.was_pruned or txid != max(self.reachable())
                assert self.was_disturbed or (may_be_lost and snapshot is not self.replica.snapshot), repr(error)
                continue
            images = [image for image in images if image[(pgno - 1) * PAGE_SIZE : pgno * PAGE_SIZE] == page]
        assert images, f"a state of TXID {txid}, epoch {snapshot.epoch}, that no database ever had"

    def settle(self) -> None:
        """With everything uploaded and a snapshot, the next looks find the newest state, whatever happened.

        That is so with and without one more transaction. Only that a database was set back, and nothing else, is not
        believed at once.
        """
        if self._ends_with_news or self.was_damaged or self.txid == 0:
            self.late += self.database.commit(Random(0))
        self.upload_all(0)
        self._write_snapshot(self.txid, Random(0))
        self.was_disturbed = True
        for _ in range(LOOKS_AFTER_SET_BACK if self.was_set_back else SETTLING_LOOKS):
            self.now_s += INTERVAL_S
            self.refresh()
        state = self.replica.snapshot
        assert state is not None
        pages = [self.replica.pages.read(state, pgno) for pgno in range(1, state.commit + 1)]
        assert (state.txid, b"".join(pages)) == (self.txid, self.database.images[self.txid])


def _some_levels(n: int) -> list[int]:
    random = Random(n)
    return random.choice(([0], random.sample(LEVELS, 5), [level for level in LEVELS if random.random() < 0.5]))
