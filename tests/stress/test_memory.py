"""Memory: of the page map per page, of the caches under pressure, and what happens when there is none left."""

from __future__ import annotations

import gc
import random
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import litevfs
from litevfs.files.frame_checks import frame_checks
from litevfs.live.replica import Replica
from litevfs.ltx.decoder import decode_file
from litevfs.ltx.encoder import encode_file
from litevfs.ltx.format import Header, lock_pgno
from litevfs.ltx.page_index import PageIndex
from litevfs.options import Options
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.memory import MemoryReplicaClient
from litevfs.states.snapshot import NumberedFile, Snapshot, empty_snapshot
from litevfs.testing.faulty import Faults
from tests.primary import Primary
from tests.stress.conftest import MakePrimary
from tests.support import connected, in_threads, missing_pages, one, rows, wait_until

BYTES_PER_PAGE = 20


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Within the block, a function that tells the bytes allocated since its start and still held."""
    gc.collect()
    tracemalloc.start()
    start, _ = tracemalloc.get_traced_memory()

    def held() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - start

    try:
        yield held
    finally:
        tracemalloc.stop()


# --- the page map -----------------------------------------------------------------------------------------------------


def numbered_file(number: int, pgnos: np.ndarray, commit: int) -> NumberedFile:
    """File `number` brings transaction `number`, with frames of 2,000 bytes back to back; no file has the lock page."""
    pgnos = pgnos[pgnos != lock_pgno(4096)]
    offsets = np.arange(len(pgnos), dtype=np.uint64) * np.uint64(2000) + np.uint64(100)
    index = PageIndex(pgnos.astype(np.uint32), offsets, np.full(len(pgnos), 2000, np.uint32))
    header = Header(page_size=4096, commit=commit, min_txid=number, max_txid=number, timestamp_ms=number)
    return NumberedFile(number, LTXFileInfo(0, number, number, 100 + 2000 * len(pgnos), number), header, index)


def whole_file(number: int) -> tuple[LTXFileInfo, Header, bytes]:
    """A file of transaction `number`, which appends 1,000 pages; small enough to be read whole."""
    pgnos = range(number * 1000 - 999, number * 1000 + 1)
    header = Header(page_size=512, commit=pgnos[-1], min_txid=number, max_txid=number, timestamp_ms=number)
    data = encode_file(header, ((pgno, pgno.to_bytes(4, "big") * 128) for pgno in pgnos))
    return LTXFileInfo(0, number, number, len(data), number), header, data


def updated(snapshot: Snapshot, transactions: int, random_: np.random.Generator) -> Snapshot:
    for _ in range(transactions):
        pgnos = np.unique(random_.integers(1, snapshot.commit + 1, 50))
        snapshot = snapshot.apply(numbered_file(snapshot.txid + 1, pgnos, snapshot.commit))
    return snapshot


@pytest.mark.plan("L04")
@pytest.mark.parametrize("transactions", [100, pytest.param(5_000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_a_million_pages_take_at_most_20_bytes_each_however_often_they_are_updated(transactions):
    pages = 1_000_000
    random_ = np.random.default_rng(1)
    updated(empty_snapshot().apply(numbered_file(1, np.arange(1, 9), 8)), 1, np.random.default_rng(1))  # imports
    with traced() as held:
        snapshot = empty_snapshot().apply(numbered_file(1, np.arange(1, pages + 1), pages))
        assert held() <= BYTES_PER_PAGE * pages
        snapshot = updated(snapshot, transactions, random_)
        assert held() <= BYTES_PER_PAGE * pages
        assert snapshot.txid == transactions + 1
        assert len(snapshot.files) <= transactions + 1


@pytest.mark.plan("L04")
def test_updates_of_the_same_pages_do_not_add_up():
    """10 pages, 1,000 transactions: the map names 10 files at most, and takes what it took at first."""
    pages = 10_000
    first = empty_snapshot().apply(numbered_file(1, np.arange(1, pages + 1), pages))
    snapshot = first
    for _ in range(20):
        snapshot = snapshot.apply(numbered_file(snapshot.txid + 1, np.arange(100, 110), pages))
    with traced() as held:
        for _ in range(1000):
            snapshot = snapshot.apply(numbered_file(snapshot.txid + 1, np.arange(100, 110), pages))
        assert held() <= BYTES_PER_PAGE * 1024 * 2
    assert len(snapshot.files) == 2
    assert snapshot.index_bytes() <= BYTES_PER_PAGE * (pages + 1024)


@pytest.mark.plan("L04")
def test_pages_that_each_came_with_a_transaction_of_their_own_take_no_more_once_they_are_compacted():
    """A long-lived reader of a busy primary: the files are gone from storage, one compacted file holds all pages."""
    pages = 2048
    updated(empty_snapshot().apply(numbered_file(1, np.arange(1, 9), 8)), 1, np.random.default_rng(1))  # imports
    with traced() as held:
        snapshot = empty_snapshot().apply(numbered_file(1, np.arange(1, pages + 1), pages))
        for pgno in range(1, pages + 1):
            snapshot = snapshot.apply(numbered_file(snapshot.txid + 1, np.array([pgno]), pages))
        everything = numbered_file(snapshot.txid + 1, np.arange(1, pages + 1), pages)
        header = replace(everything.header, min_txid=1, max_txid=snapshot.txid)
        info = replace(everything.info, level=9, min_txid=1, max_txid=snapshot.txid)
        snapshot = snapshot.apply(replace(everything, header=header, info=info))
        assert snapshot.place(1)[0] == everything.number
        del everything, header, info
        assert held() <= BYTES_PER_PAGE * pages


@pytest.mark.plan("L04")
def test_pages_of_files_that_were_verified_whole_take_no_more():
    """Twenty files of a thousand pages each, none above WHOLE_FILE_BYTES, so that each page has a checksum too."""
    pages = 20_000
    whole = [whole_file(number) for number in range(1, 21)]
    updated(empty_snapshot().apply(numbered_file(1, np.arange(1, 9), 8)), 1, np.random.default_rng(1))  # imports
    with traced() as held:
        snapshot = empty_snapshot()
        while whole:
            info, header, data = whole.pop(0)
            index = decode_file(data).index
            snapshot = snapshot.apply(NumberedFile(info.max_txid, info, header, index, frame_checks(index, data)))
            del index, data
        assert missing_pages(snapshot) == 0
        assert held() <= BYTES_PER_PAGE * pages


def large_database(store: Any, pages: int) -> None:
    """A file of so many pages of 512 bytes, most of them alike; no SQLite database, but pages of one."""
    header = Header(page_size=512, commit=pages, min_txid=1, max_txid=1, timestamp_ms=1)
    content = encode_file(header, ((pgno, pgno.to_bytes(4, "big") * 128) for pgno in range(1, pages + 1)))
    MemoryReplicaClient(store).write(0, 1, 1, content, 1)


@pytest.mark.plan("L04")
@pytest.mark.parametrize("pages", [30_000, pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_an_open_replica_holds_no_more_than_its_page_map_and_its_caches(store, remote_faults, pages):
    large_database(store, pages)
    cache_size_bytes = 200_000
    with traced() as held:
        replica = Replica(Options(replica_url=remote_faults.url, cache_size_bytes=cache_size_bytes))
        try:
            snapshot = replica.open(30)
            picks = random.Random(3)
            for _ in range(500):
                pgno = picks.randint(1, pages)
                assert replica.pages.read(snapshot, pgno) == pgno.to_bytes(4, "big") * 128
            overhead = 300_000  # objects, threads, the log of requests
            assert held() <= BYTES_PER_PAGE * pages + 2 * cache_size_bytes + overhead
            assert snapshot.index_bytes() <= BYTES_PER_PAGE * (pages + 1024)
        finally:
            replica.close()


# --- the caches -------------------------------------------------------------------------------------------------------

NUMBERS = "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 3000) "


@pytest.fixture
def wide(make_primary: MakePrimary) -> Primary:
    """About 2.5 MB of database in pages of 1 KiB."""
    primary = make_primary(page_size=1024)
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
    primary.commit(f"{NUMBERS} INSERT INTO t SELECT n, randomblob(700) FROM s")
    return primary


def storage_of(request: pytest.FixtureRequest, name: str) -> Faults:
    faults: Faults = request.getfixturevalue(name)
    return faults


@pytest.mark.plan("L24", "D09")
@pytest.mark.parametrize("storage", ["faults", "remote_faults"])
def test_a_working_set_ten_times_the_cache_gives_right_rows_in_bounded_memory(request, wide, storage):
    faults = storage_of(request, storage)
    limit = len(wide.images[wide.txid]) // 10
    expected = dict(wide.rows("SELECT id, data FROM t"))
    options = Options(replica_url=faults.url, cache_size_bytes=limit)
    replica = Replica(options)
    try:
        snapshot = replica.open(30)
        image = wide.images[wide.txid]
        picks = random.Random(4)
        largest = 0
        for _ in range(4):
            for pgno in picks.sample(range(2, snapshot.commit + 1), 400):
                assert replica.pages.read(snapshot, pgno) == image[(pgno - 1) * 1024 : pgno * 1024]
                largest = max(largest, replica.pages.memory_bytes)
        assert limit // 20 < largest <= limit
        assert replica.pages.counters.misses > 1000
    finally:
        replica.close()

    def read(i: int) -> None:
        with connected(faults.url, poll_interval="1h", cache_size=limit) as connection:
            connection.execute("PRAGMA cache_size=10")  # SQLite's own, in pages
            order = list(expected)
            random.Random(i).shuffle(order)
            for id_ in order[:100]:
                assert one(connection, "SELECT data FROM t WHERE id = ?", id_) == expected[id_]

    in_threads(8, read)


@pytest.mark.plan("L24", "D09")
def test_a_storm_of_misses_holds_no_more_than_the_cache_and_the_reads_under_way(wide, remote_faults):
    limit = 250_000
    readers = 4
    with traced() as held, connected(remote_faults.url, poll_interval="1h", cache_size=limit):
        opened = held()

        def read(i: int) -> None:
            with connected(remote_faults.url, poll_interval="1h", cache_size=limit) as connection:
                connection.execute("PRAGMA cache_size=10")
                assert one(connection, "SELECT sum(length(data)) FROM t WHERE id <= 1500") == 1500 * 700

        in_threads(readers, read)
        assert remote_faults.calls["read"] > 10
        remote_faults.reset_counters()  # the log of requests is the test's own
        # What was read ahead may be on its way still, and threads of earlier tests be at their end.
        wait_until(lambda: held() - opened <= 2 * limit, "that memory is within its limit")


@pytest.mark.plan("D09")
@pytest.mark.parametrize("cache_size", [0, 1, 2000, "100KB"])
@pytest.mark.parametrize("storage", ["faults", "remote_faults"])
def test_the_smallest_caches_still_give_right_rows(request, wide, storage, cache_size):
    faults = storage_of(request, storage)
    with connected(faults.url, poll_interval=0, cache_size=cache_size) as connection:
        query = "SELECT id, data FROM t WHERE id < 1000 AND id % 7 = 3"
        assert rows(connection, query) == wide.rows(query)


# --- no memory --------------------------------------------------------------------------------------------------------


class FailsOnce:
    """Stands before a function: its `nth` call fails for want of memory, every other one passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, nth: int = 1) -> None:
        self._function = getattr(owner, name)
        self._left = nth
        self._lock = threading.Lock()
        self.failed = False
        monkeypatch.setattr(owner, name, self)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        with self._lock:
            self._left -= 1
            fails = self._left == 0
        if fails:
            self.failed = True
            raise MemoryError("no memory left, as the test wants it")
        return self._function(*arguments, **keywords)


PLACES = {
    "decoding an index": ("litevfs.ltx.decoder", "decode_page_index"),
    "verifying a file": ("litevfs.files.fetch", "decode_file"),
    "numpy, in a snapshot": ("litevfs.states.snapshot.np", "unique"),
    "a new chunk": ("litevfs.states.snapshot", "empty_chunk"),
}


def place(name: str) -> tuple[Any, str]:
    path, attribute = PLACES[name]
    owner: Any = litevfs
    for part in path.split(".")[1:]:
        owner = getattr(owner, part)
    return owner, attribute


@pytest.mark.plan("L31")
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("nth", [1, 2])
def test_an_open_that_runs_out_of_memory_fails_and_the_next_one_works(primary, url, monkeypatch, where, nth):
    primary.commit("CREATE TABLE t (a)")
    primary.commit("INSERT INTO t VALUES (zeroblob(10000000))")  # more than one chunk of the page map
    failing = FailsOnce(monkeypatch, *place(where), nth)
    with pytest.raises(MemoryError):
        litevfs.connect(url, poll_interval=0)
    assert failing.failed
    with connected(url, poll_interval=0) as connection:
        assert rows(connection, "SELECT length(a) FROM t") == [(10_000_000,)]


@pytest.mark.plan("L31")
@pytest.mark.parametrize("where", [name for name in PLACES if name != "a new chunk"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_poll_that_runs_out_of_memory_publishes_nothing_by_halves(primary, url, monkeypatch, where, nth):
    primary.commit("CREATE TABLE t (a, b)")
    with connected(url, poll_interval=0) as connection:
        for n in range(4):
            primary.commit("INSERT INTO t VALUES (?, zeroblob(600000))", (n,))  # more than a few pages
        failing = FailsOnce(monkeypatch, *place(where), nth)
        with pytest.raises(MemoryError):
            one(connection, "PRAGMA litestream_poll")
        assert failing.failed
        txid = int(one(connection, "PRAGMA litestream_txid"), 16)
        assert rows(connection, "SELECT a FROM t") == primary.rows("SELECT a FROM t", txid)
        assert int(one(connection, "PRAGMA litestream_poll"), 16) == 5
        assert rows(connection, "SELECT a FROM t") == [(0,), (1,), (2,), (3,)]


@pytest.mark.plan("L31")
def test_the_poller_outlives_a_poll_that_runs_out_of_memory(primary, url, monkeypatch, caplog):
    primary.commit("CREATE TABLE t (a)")
    with connected(url, poll_interval="5ms") as connection:
        failing = FailsOnce(monkeypatch, *place("verifying a file"))
        primary.commit("INSERT INTO t VALUES (1)")
        wait_until(lambda: rows(connection, "SELECT a FROM t") == [(1,)], "the new row")
        assert failing.failed
    assert "no memory left" in caplog.text


@pytest.mark.plan("L31")
@pytest.mark.parametrize("storage", ["faults", "remote_faults"])
def test_a_page_read_that_runs_out_of_memory_fails_that_query_alone(request, wide, monkeypatch, storage):
    faults = storage_of(request, storage)
    with connected(faults.url, poll_interval=0, cache_size=0) as connection:
        failing = FailsOnce(monkeypatch, litevfs.ltx.frame, "lz4_block_decompress", 5)
        with pytest.raises(MemoryError):
            rows(connection, "SELECT sum(length(data)) FROM t WHERE id <= 500")
        assert failing.failed
        assert rows(connection, "SELECT sum(length(data)) FROM t WHERE id <= 500") == [(500 * 700,)]
