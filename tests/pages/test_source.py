"""The way down from a page to storage: caches shared by states, damaged bytes read again, memory under its limit."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from litevfs.errors import (
    LTXFormatError,
    LTXMissingPagesError,
    PageUnavailableError,
    StorageError,
    StorageNotFoundError,
    StorageTimeoutError,
)
from litevfs.files.fetch import Fetcher
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.pages.source import PageSource
from litevfs.pages.watcher import Watcher
from tests.histories import read_pages
from tests.interrupts import interrupted_everywhere
from tests.ltx.reference import File
from tests.primary import Primary
from tests.scripted import Script, ScriptedClient
from tests.support import missing_pages, wait_until

FILL = (
    "CREATE TABLE t(id INTEGER PRIMARY KEY, s TEXT);"
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
    "INSERT INTO t SELECT i, hex(randomblob(40)) FROM n"
)


@pytest.fixture(params=[0, 1 << 14], ids=["local", "remote"])
def world(request):
    with Script(block_size=request.param) as script, Primary(script.writer) as primary:
        primary.commit(FILL)
        replica = Replica(Options(replica_url=script.url, read_timeout_s=0.3, cache_size_bytes=2_000_000))
        replica.refresh()
        yield primary, script, replica
        replica.close()


def read_all(replica: Replica, primary: Primary) -> None:
    snapshot = replica.snapshot
    for pgno in range(1, snapshot.commit + 1):
        assert replica.pages.read(snapshot, pgno) == primary.page(pgno, snapshot.txid)


def test_a_page_is_decoded_once_and_served_from_memory_after(world):
    primary, script, replica = world
    read_all(replica, primary)
    misses = replica.pages.counters.misses
    script.clear()
    read_all(replica, primary)
    assert script.reads == []
    assert replica.pages.counters.misses == misses == replica.snapshot.commit
    assert replica.pages.counters.hits == replica.snapshot.commit


def test_a_page_that_no_file_holds_is_an_error_and_no_zeros(world):
    """No such state can be made of files; only the lock page is in none, and is zeros."""
    _, _, replica = world
    chunk = replica.snapshot.chunks[0].copy()
    chunk.versions[4] = chunk.files[4] = chunk.frames[4] = 0
    damaged = replace(replica.snapshot, chunks=(chunk, *replica.snapshot.chunks[1:]))
    with pytest.raises(PageUnavailableError, match="page 5 is in no LTX file"):
        replica.pages.read(damaged, 5)


def test_what_was_read_of_files_to_open_them_is_not_read_again_from_a_storage_that_is_far_away():
    with Script(block_size=1 << 14) as script, Primary(script.writer) as primary:
        primary.commit(FILL)
        primary.commit("UPDATE t SET s = 'x' WHERE id = 1000")
        replica = Replica(Options(replica_url=script.url))
        replica.refresh()
        script.clear()
        read_all(replica, primary)
        assert script.reads == []
        replica.close()


def test_a_new_state_reads_only_the_pages_that_changed(world):
    primary, _, replica = world
    read_all(replica, primary)
    primary.commit("UPDATE t SET s = 'x' WHERE id = 1000")
    replica.refresh()
    before = replica.pages.counters.misses
    read_all(replica, primary)
    _, _, changed = read_pages(primary.file_bytes(2, 2))
    assert replica.pages.counters.misses - before == len(changed) < 5


def test_relocated_pages_stay_in_the_cache(world):
    primary, _, replica = world
    read_all(replica, primary)
    primary.commit("UPDATE t SET s = 'x' WHERE id = 1000")
    replica.refresh()
    read_all(replica, primary)
    primary.compact(1, 1, 2)
    primary.delete(0)
    replica.refresh()
    misses = replica.pages.counters.misses
    read_all(replica, primary)
    assert replica.pages.counters.misses == misses


@pytest.mark.plan("L24", "D09")
def test_a_working_set_of_ten_times_the_cache_stays_under_the_limit():
    with Script(block_size=1 << 14) as script, Primary(script.writer) as primary:
        primary.commit(FILL.replace("2000", "20000"))
        limit = len(primary.images[1]) // 10
        replica = Replica(Options(replica_url=script.url, cache_size_bytes=limit))
        replica.refresh()
        for _ in range(2):
            read_all(replica, primary)
            assert replica.pages.memory_bytes <= limit
        replica.close()


@pytest.mark.plan("L02")
def test_a_page_damaged_on_its_way_is_read_again(world):
    primary, script, replica = world
    _forget(replica)
    damaged = []

    def damage_once(file, offset, data):
        if not damaged:
            damaged.append(offset)
            return bytes(len(data))
        return data

    script.on_read = damage_once
    read_all(replica, primary)
    assert damaged
    assert replica.pages.counters.reread == 1


@pytest.mark.plan("L02", "D05")
def test_a_page_damaged_in_storage_is_an_error_that_names_its_file(world):
    _, script, replica = world
    _forget(replica)
    script.on_read = lambda file, offset, data: bytes(len(data))
    with pytest.raises(LTXFormatError) as caught:
        replica.pages.read(replica.snapshot, 3)
    assert (caught.value.level, caught.value.min_txid) == (0, 1)
    assert caught.value.key
    assert "litevfs verify" in caught.value.hint
    script.on_read = None
    assert replica.pages.read(replica.snapshot, 3)


@pytest.mark.plan("D05")
def test_a_file_cut_short_after_it_was_opened_is_an_error_in_time(world):
    _, script, replica = world
    _forget(replica)
    script.on_read = lambda file, offset, data: data[: max(0, 5000 - offset)]
    with pytest.raises(StorageError) as caught:
        replica.pages.read(replica.snapshot, replica.snapshot.commit)
    assert caught.value.key


@pytest.mark.parametrize("pgno", [0, -1, 10**9])
def test_a_page_outside_of_the_database_is_refused(world, pgno):
    _, _, replica = world
    with pytest.raises(PageUnavailableError):
        replica.pages.read(replica.snapshot, pgno)


def test_a_page_that_no_file_holds_is_refused_with_its_file_and_not_served_as_zeros():
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.run("INSERT INTO t VALUES(randomblob(20000))")
        page_size, commit, pages = read_pages(primary.file_bytes(2, 2))
        lost = max(pages)
        del pages[lost]
        file = File(page_size, commit, 2, 2, timestamp_ms=primary.timestamp_ms(2), pages=sorted(pages.items()))
        script.writer.write(0, 2, 2, file.write(), file.timestamp_ms)
        replica = Replica(Options(replica_url=script.url))
        with pytest.raises(LTXMissingPagesError, match=f"page {lost} is in no file") as caught:
            replica.refresh()
        assert caught.value.hint
        assert missing_pages(replica.view(txid=1)) == 0
        replica.close()


def test_the_cache_only_grows_when_it_is_enlarged(world):
    _, _, replica = world
    pages = replica.pages
    before = pages._cache.limit_bytes
    pages.enlarge(1000)
    assert pages._cache.limit_bytes == before
    pages.enlarge(8_000_000)
    assert pages._cache.limit_bytes > before


# --- storage that does not answer, and Ctrl-C -------------------------------------------------------------------------


class SilentClient(ScriptedClient):
    """Every read that has a time limit uses it up."""

    def __init__(self, script: Script) -> None:
        super().__init__(script)
        self.waits_s: list[float] = []

    def read(self, file, offset=0, size=None, *, timeout_s=None):
        self.waits_s.append(timeout_s)
        threading.Event().wait(timeout_s)
        raise StorageTimeoutError("no answer")


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", [True, False])
def test_a_silent_storage_is_asked_more_than_once_but_for_one_read_timeout_in_all(prefetch):
    with Script(block_size=1 << 14) as script, Primary(script.writer) as primary:
        primary.commit(FILL)
        replica = Replica(Options(replica_url=script.url))
        replica.refresh()
        client = SilentClient(script)
        fetcher = Fetcher(client, read_timeout_s=0.4)
        pages = PageSource(fetcher, lambda *_: pytest.fail("looked"), cache_size_bytes=1 << 20, prefetch=prefetch)
        try:
            with pytest.raises(StorageTimeoutError):
                pages.read(replica.snapshot, 3)
            assert len(client.waits_s) > 1
            assert sum(client.waits_s) <= 0.4
        finally:
            fetcher.close()
            replica.close()


@pytest.mark.parametrize("block_size", [0, 1 << 14], ids=["local", "remote"])
def test_a_page_whose_files_are_gone_is_looked_for_within_one_read_timeout_however_often_it_moves(block_size):
    with Script(block_size=block_size) as script, Primary(script.writer) as primary:
        primary.commit(FILL)
        primary.compact(1, 1, 1)
        replica = Replica(Options(replica_url=script.url))
        states = [replica.view(txid=1) for _ in range(2)]
        primary.delete(0)
        primary.delete(1)
        deadlines: list[float] = []

        def find(snapshot, pgno, why, deadline):
            deadlines.append(deadline)
            return states[len(deadlines) % 2]

        began = time.monotonic()
        fetcher = Fetcher(ScriptedClient(script), read_timeout_s=60)
        pages = PageSource(fetcher, find, cache_size_bytes=1 << 20, prefetch=False)
        with pytest.raises(StorageNotFoundError):
            pages.read(states[0], 3)
        assert len(deadlines) > 1
        assert len(set(deadlines)) == 1
        assert began + 60 <= deadlines[0] <= time.monotonic() + 60
        fetcher.close()
        replica.close()


@pytest.mark.parametrize("block_size", [0, 1 << 14], ids=["local", "remote"])
def test_a_file_that_vanishes_while_the_page_is_looked_for_is_no_end_of_the_search(block_size):
    with Script(block_size=block_size) as script, Primary(script.writer) as primary:
        primary.commit(FILL)
        replica = Replica(Options(replica_url=script.url))
        before = replica.view(txid=1)
        primary.compact(1, 1, 1)
        primary.delete(0)
        after = replica.view(txid=1)
        searches: list[StorageNotFoundError] = []

        def find(snapshot, pgno, why, deadline):
            searches.append(why)
            if len(searches) < 4:
                raise StorageNotFoundError("listed, and gone before it was fetched")
            return after

        fetcher = Fetcher(ScriptedClient(script), read_timeout_s=5)
        pages = PageSource(fetcher, find, cache_size_bytes=1 << 20, prefetch=False)
        assert pages.read(before, 3) == primary.page(3, 1)
        assert len(searches) == 4
        fetcher.close()
        replica.close()


@pytest.fixture
def remote():
    with Script(block_size=1 << 14) as script, Primary(script.writer) as primary:
        primary.commit(FILL)
        yield primary, script


def open_replica(script: Script, read_timeout_s: float = 5.0) -> Replica:
    replica = Replica(Options(replica_url=script.url, read_timeout_s=read_timeout_s, cache_size_bytes=2_000_000))
    replica.refresh()
    _forget(replica)
    return replica


def test_a_page_read_ahead_that_does_not_come_is_read_by_the_reader_that_needs_it(remote):
    primary, script = remote
    replica = open_replica(script, read_timeout_s=1.5)
    hanging, go_on = threading.Event(), threading.Event()

    def hang_once(file, offset, data):
        if not hanging.is_set():
            hanging.set()
            assert go_on.wait(30)
        return data

    script.on_read = hang_once
    snapshot, pages = replica.snapshot, replica.pages
    pages.ahead.start(snapshot, [40], Watcher(64))
    assert hanging.wait(10)
    try:
        assert pages.read(snapshot, 40) == primary.page(40)
        assert not pages.blocks.under_way.requests
    finally:
        go_on.set()
        replica.close()


@pytest.mark.slow
def test_ctrl_c_at_any_moment_of_a_read_and_of_reading_ahead_leaves_no_thread_waiting(remote):
    primary, script = remote
    replicas = []

    def make() -> Replica:
        replicas.append(open_replica(script))
        return replicas[-1]

    def work(replica: Replica) -> None:
        snapshot, pages = replica.snapshot, replica.pages
        pages.ahead.start(snapshot, [7, 33, 34, 35, 36, 37, 38, 46], Watcher(64))
        pages.read(snapshot, 33)
        pages.read(snapshot, 44)

    try:
        for replica in interrupted_everywhere(make, work):
            pages = replica.pages
            wait_until(lambda: not pages.blocks.under_way.requests)  # noqa: B023
            for pgno in (33, 44, 46, 7):
                assert pages.read(replica.snapshot, pgno) == primary.page(pgno)
            replicas.pop().close()
    finally:
        for replica in replicas:
            replica.close()


def _forget(replica: Replica) -> None:
    """Drop what opening the replica has warmed."""
    for cache in (replica.pages._cache, replica.pages.blocks and replica.pages.blocks.cache):
        for key in [*cache._entries, *cache._ahead] if cache else []:
            cache.drop(key)
