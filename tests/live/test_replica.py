"""One replica and many readers: what they see while a writer commits, what polling costs, and that everything ends."""

from __future__ import annotations

import gc
import itertools
import os
import select
import signal
import statistics
import threading
import time
from collections import Counter
from pathlib import Path

import apsw
import pytest

import litevfs
from litevfs.errors import (
    LTXFormatError,
    OptionError,
    StaleReplicaError,
    StorageClosedError,
    StorageError,
    TransientStorageError,
)
from litevfs.live.registry import registry
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.urls import open_replica_client
from litevfs.states.next_files import BUSY_POLLS
from litevfs.testing.fixtures import TEST_BUCKET
from litevfs.testing.s3_proxy import running_s3_proxy
from tests.live.ledger import LEDGER, next_version, start_ledger
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, in_threads, one, rows, txid_of, wait_until


def poll_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("litevfs-poll")]


@pytest.fixture(params=[0, 1 << 14], ids=["local", "remote"])
def world(request):
    with Script(block_size=request.param) as script, Primary(script.writer) as primary:
        start_ledger(primary)
        yield primary, script


# --- what readers see -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.plan("L26", "L01", "L32")
def test_32_connections_share_one_poller_and_one_replica_and_read_whole_states(world):
    primary, script = world
    stop = threading.Event()
    replicas, seen = set(), []

    def read(i: int) -> None:
        con = connections[i]
        while not stop.wait(0.001):
            count, total, low, high = rows(con, LEDGER)[0]
            assert (count, total, low) == (400, 0, high)
            seen.append(low)

    connections = in_threads(32, lambda _: litevfs.connect(script.url, poll_interval="5ms"))
    try:
        assert len(poll_threads()) == 1
        replicas = {id(shared.replica) for shared in registry.shared.values()}
        assert len(replicas) == 1
        readers = [threading.Thread(target=read, args=(i,)) for i in range(32)]
        errors = []
        hook = threading.excepthook
        threading.excepthook = lambda args: errors.append(args.exc_value)
        for reader in readers:
            reader.start()
        for version in range(1, 5):
            next_version(primary)
            if version % 2 == 0:  # readers that keep the interpreter busy may miss the states in between
                wait_until(lambda version=version: seen and max(seen) >= version, f"state {version}")
        stop.set()
        for reader in readers:
            reader.join(20)
            assert not reader.is_alive()
        threading.excepthook = hook
        assert errors == []
        assert len(set(seen)) > 2
    finally:
        stop.set()
        for con in connections:
            con.close()
    wait_until(lambda: not poll_threads(), "the end of the poller")


@pytest.mark.plan("L12")
def test_the_last_of_200_rapid_updates_is_seen(world):
    primary, script = world
    with connected(script.url, poll_interval="5ms") as con:
        for _ in range(200):
            primary.commit(
                "UPDATE ledger SET note = 'x' || id WHERE id = 1; UPDATE ledger SET version = version + 1 WHERE id = 1"
            )
        wait_until(lambda: one(con, "SELECT version FROM ledger WHERE id = 1") == 200, "the 200th update")
        assert txid_of(con) == 201
        assert rows(con, "SELECT * FROM ledger") == primary.rows("SELECT * FROM ledger")


@pytest.mark.plan("L08")
def test_a_transaction_keeps_its_state_through_others_compaction_and_retention(world):
    primary, script = world
    with connected(script.url, poll_interval="2ms") as con, connected(script.url) as other:
        con.execute("PRAGMA cache_size=0; BEGIN")
        before = rows(con, "SELECT * FROM ledger")
        for i in range(60):
            next_version(primary)
            if i % 20 == 10:
                primary.compact(1, max(1, primary.txid - 19), primary.txid)
        wait_until(lambda: txid_of(other) == 61, "the newest state")
        # Every file in use goes; the pinned state and the newest one can both be made from others.
        primary.compact(9, 1, 1)
        primary.compact(2, 2, 61)
        primary.delete(0)
        primary.delete(1)
        assert rows(con, "SELECT * FROM ledger") == before
        assert txid_of(con) == 1
        con.execute("COMMIT")
        assert rows(con, LEDGER)[0][2:] == (60, 60)


@pytest.mark.slow
@pytest.mark.plan("L06")
def test_threads_read_whole_states_through_one_page_source_while_it_moves():
    with Script() as script, Primary(script.writer) as primary:
        start_ledger(primary)
        replica = Replica(Options(replica_url=script.url))
        replica.refresh()
        done = threading.Event()

        def work(i: int) -> int:
            if i == 0:
                for _ in range(30):
                    next_version(primary)
                    replica.refresh()
                done.set()
                return 0
            checked = 0
            while not done.is_set() or not checked:
                snapshot = replica.snapshot
                for pgno in range(1, snapshot.commit + 1):
                    assert replica.pages.read(snapshot, pgno) == primary.page(pgno, snapshot.txid)
                checked += 1
            return checked

        assert min(in_threads(8, work)[1:]) >= 1
        replica.close()


# --- what polling costs -----------------------------------------------------------------------------------------------


@pytest.mark.plan("L13")
@pytest.mark.parametrize(("interval_ms", "listings"), [(5, 40), (200, 4)])
def test_listings_fit_the_poll_interval(interval_ms, listings):
    with Script() as script, Primary(script.writer) as primary:
        start_ledger(primary)
        with connected(script.url, poll_interval=f"{interval_ms}ms"):
            wait_until(lambda: len(script.list_times) > listings, "the listings")
        times = script.list_times[1:]  # the first was for opening
        gaps = [b - a for a, b in itertools.pairwise(times)]
        assert sum(gaps) >= len(gaps) * (interval_ms / 1000 - 0.002) - 0.05  # not sooner, but the first may be late
        assert sorted(gaps)[len(gaps) // 2] < interval_ms / 1000 + 0.1  # nor much later
        assert set(script.lists) - {0} == {1, 2, 3, 9}
        assert all(script.lists[level] == 1 for level in (1, 2, 3, 9))


@pytest.mark.plan("L13")
def test_without_polling_nothing_is_listed_until_it_is_asked_for():
    with Script() as script, Primary(script.writer) as primary:
        start_ledger(primary)
        with connected(script.url, poll_interval=0) as con:
            assert poll_threads() == []
            script.clear()
            next_version(primary)
            for _ in range(5):
                assert rows(con, LEDGER)[0][3] == 0
            assert script.lists == {}
            assert one(con, "PRAGMA litestream_poll") == "0000000000000002"
            assert script.lists == {0: 1}
            assert rows(con, LEDGER)[0][3] == 1


@pytest.mark.plan("L10", "E06", "K06")
def test_the_poller_outlives_failures_and_says_so(caplog):
    with Script() as script, Primary(script.writer) as primary:
        start_ledger(primary)
        with connected(script.url, poll_interval="5ms") as con:
            replica = next(iter(registry.shared.values())).replica

            def fail(level, files):
                raise TransientStorageError("the storage is away")

            script.on_list = fail
            next_version(primary)
            wait_until(lambda: replica.status().errors >= 3, "failures")
            status = replica.status()
            assert (status.state, status.last_error) == ("behind", "the storage is away")
            lag_s = status.lag_s
            wait_until(lambda: replica.status().lag_s > lag_s + 0.02, "growing lag")
            assert rows(con, LEDGER)[0][3] == 0
            script.on_list = None
            wait_until(lambda: rows(con, LEDGER)[0][3] == 1, "the new state", timeout_s=40)
            wait_until(lambda: replica.status().state == "current", "a sound poll, which ends after that state is seen")
            status = replica.status()
            assert status.last_error is None
    warnings = [r for r in caplog.records if r.levelname == "WARNING" and "the storage is away" in r.getMessage()]
    assert len(warnings) == 1


def test_a_defect_in_a_refresh_does_not_end_the_poller(caplog):
    with Script() as script, Primary(script.writer) as primary:
        start_ledger(primary)
        with connected(script.url, poll_interval="5ms") as con:
            failures = []

            def fail_twice(level, files):
                if len(failures) < 2:
                    failures.append(level)
                    raise ZeroDivisionError("a defect")
                return files

            script.on_list = fail_twice
            next_version(primary)
            wait_until(lambda: rows(con, LEDGER)[0][3] == 1, "the new state")
    assert sum("failed unexpectedly" in r.getMessage() for r in caplog.records) == 2


@pytest.mark.slow
@pytest.mark.plan("L02")
@pytest.mark.parametrize("block_size", [0, 1 << 14], ids=["local", "remote"])
def test_reads_are_right_or_end_in_a_typed_error_while_storage_fails(block_size):
    with Script(block_size=block_size) as script, Primary(script.writer) as primary:
        start_ledger(primary)
        next_version(primary)
        counter = Counter()

        def disturb(file, offset, data):
            counter["reads"] += 1
            kind = counter["reads"] % 11
            if kind == 1:
                counter["failed"] += 1
                raise TransientStorageError("busy")
            if kind == 5:
                counter["short"] += 1
                return data[: len(data) // 2]
            if kind == 8 and not block_size:  # a read is one frame then, and this is its header
                counter["damaged"] += 1
                return bytes(b ^ 0x55 for b in data[:10]) + data[10:]
            return data

        with connected(script.url, poll_interval=0, cache_size=0, read_timeout="5s") as con:
            con.execute("PRAGMA cache_size=0")
            script.on_read = disturb
            right, failed = 0, []
            for _ in range(10):
                try:
                    assert rows(con, "SELECT * FROM ledger") == primary.rows("SELECT * FROM ledger")
                    right += 1
                except (LTXFormatError, StorageError) as error:
                    failed.append(error)
            script.on_read = None
            assert rows(con, "SELECT * FROM ledger") == primary.rows("SELECT * FROM ledger")
        assert right
        assert all(error.key for error in failed)
        assert counter["failed"] >= 3
        assert counter["short"] >= 3
        assert bool(counter["damaged"]) == (block_size == 0)


@pytest.mark.plan("L02")
@pytest.mark.parametrize("block_size", [0, 1 << 14], ids=["local", "remote"])
def test_a_flipped_bit_in_the_text_of_a_row_is_never_served(block_size):
    """The file was small enough to be verified whole when it was published; its pages are read again later."""
    with Script(block_size=block_size) as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES('No word occurs here again, so each is literal.')")

        def flip(file, offset, data):
            return data.replace(b"literal", b"mineral")

        with connected(script.url, poll_interval=0, cache_size=0) as con:
            script.on_read = flip
            with pytest.raises(LTXFormatError):
                rows(con, "SELECT * FROM t")


# --- waiting and freshness --------------------------------------------------------------------------------------------


def test_waiting_for_a_txid_returns_when_it_is_there_and_gives_up_in_time():
    with Script() as script, Primary(script.writer) as primary:
        start_ledger(primary)
        with connected(script.url, poll_interval="5ms") as con:
            with pytest.raises(StaleReplicaError):
                con.execute("PRAGMA litestream_wait_txid = '2 30ms'")
            timer = threading.Timer(0.05, next_version, (primary,))
            timer.start()
            assert one(con, "PRAGMA litestream_wait_txid = '2 10s'") == "0000000000000002"
            timer.join()
            assert rows(con, LEDGER)[0][3] == 1


def test_a_transaction_refuses_a_state_that_is_too_old_and_works_again_after():
    with Script() as script, Primary(script.writer) as primary:
        start_ledger(primary)
        with connected(script.url, poll_interval=0, max_staleness="1ms") as con:

            def fail(level, files):
                raise TransientStorageError("the storage is away")

            next_version(primary)
            wait_until(lambda: rows(con, LEDGER)[0][3] == 1, "a refresh on the way")
            script.on_list = fail
            with pytest.raises(StaleReplicaError, match="the storage is away"):
                wait_until(lambda: rows(con, LEDGER) and None, timeout_s=5)
            script.on_list = None
            assert rows(con, LEDGER)[0][3] == 1


# --- life and death ---------------------------------------------------------------------------------------------------


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


@pytest.mark.slow
@needs_proc
@pytest.mark.plan("D07")
def test_100_rounds_leave_no_descriptor_and_no_thread(tmp_path):
    with Primary(FileReplicaClient(tmp_path / "r")) as primary:
        start_ledger(primary)
        for _ in range(5):
            next_version(primary)
        with connected(str(tmp_path / "r")) as con:
            rows(con, LEDGER)
        before, threads = descriptors(), threading.active_count()
        for _ in range(100):
            with connected(str(tmp_path / "r"), poll_interval="10ms") as con:
                assert rows(con, LEDGER) == [(400, 0, 5, 5)]
        gc.collect()
        wait_until(lambda: descriptors() <= before and threading.active_count() <= threads, "everything to be let go")
        assert registry.shared == {}
        primary.client.close()


@pytest.mark.slow
@needs_proc
@pytest.mark.s3
@pytest.mark.plan("D07")
def test_40_rounds_over_s3_leave_no_socket_and_no_thread(s3_url):
    url = s3_url()
    with Primary(open_replica_client(url)) as primary:
        start_ledger(primary)
        next_version(primary)
        primary.client.close()
    with connected(url) as con:
        rows(con, LEDGER)
    gc.collect()
    wait_until(lambda: not any(t.name.startswith("litevfs") for t in threading.enumerate()), "the first round's end")
    before, threads = descriptors(), threading.active_count()
    for _ in range(40):
        with connected(url, poll_interval="10ms") as con:
            assert rows(con, LEDGER) == [(400, 0, 1, 1)]
    gc.collect()
    wait_until(lambda: descriptors() <= before and threading.active_count() <= threads, "everything to be let go")
    assert registry.shared == {}


@needs_proc
@pytest.mark.plan("L30")
def test_descriptors_are_back_to_the_start_after_eight_readers(tmp_path):
    with Primary(FileReplicaClient(tmp_path / "r")) as primary:
        start_ledger(primary)
        gc.collect()
        before = descriptors()

        def work(i: int) -> None:
            if i == 0:
                for _ in range(40):
                    next_version(primary)
                return
            with connected(str(tmp_path / "r"), poll_interval="15ms") as con:
                for _ in range(30):
                    _, total, low, high = rows(con, LEDGER)[0]
                    assert (total, low) == (0, high)

        in_threads(9, work)
        wait_until(lambda: descriptors() <= before + 1, "descriptors to be closed")  # the writer's folder may stay open
        primary.client.close()


@pytest.mark.plan("L11")
def test_close_returns_soon_while_a_listing_hangs():
    with Script() as script, Primary(script.writer) as primary:
        start_ledger(primary)
        hanging, go_on = threading.Event(), threading.Event()

        def hang(level, files):
            hanging.set()
            assert go_on.wait(20)
            return files

        with connected(script.url, poll_interval="2ms"):
            script.on_list = hang
            assert hanging.wait(10)
            started = time.monotonic()
        assert time.monotonic() - started < 15
        go_on.set()
        wait_until(lambda: not poll_threads(), "the end of the poller")


def test_a_closed_replica_refuses_everything():
    with Script() as script, Primary(script.writer) as primary:
        start_ledger(primary)
        replica = Replica(Options(replica_url=script.url))
        replica.refresh()
        replica.close()
        replica.close()
        assert replica.status().state == "closed"
        for call in (replica.refresh, lambda: replica.view(txid=1), lambda: replica.wait_for(9, 5)):
            with pytest.raises(StorageClosedError):
                call()
        replica.poll_every(0.01)
        assert poll_threads() == []


def test_a_fixed_connection_that_travels_to_the_latest_state_sees_it_or_is_told_why_not():
    with Script() as script, Primary(script.writer) as primary:
        start_ledger(primary)
        next_version(primary)
        with connected(script.url, txid=1) as con:
            assert rows(con, LEDGER)[0][3] == 0
            try:
                con.execute("PRAGMA litestream_time = 'latest'")
                assert rows(con, LEDGER)[0][3] == 1
            except OptionError:
                assert rows(con, LEDGER)[0][3] == 0


def test_a_connection_without_polling_opens_at_the_newest_state_whatever_others_are_there():
    with Script() as script, Primary(script.writer) as primary:
        start_ledger(primary)
        with connected(script.url, poll_interval=0) as first:
            assert rows(first, LEDGER)[0][3] == 0
            next_version(primary)
            with connected(script.url, poll_interval=0) as second:
                assert rows(second, LEDGER)[0][3] == 1


def test_a_live_connection_opens_at_the_newest_state_though_a_fixed_one_kept_the_replica_alive():
    with Script() as script, Primary(script.writer) as primary:
        start_ledger(primary)
        with connected(script.url, txid=1):
            with connected(script.url, poll_interval="60s") as live:
                assert rows(live, LEDGER)[0][3] == 0
            next_version(primary)  # no poller is there
            with connected(script.url, poll_interval="60s") as live:
                assert rows(live, LEDGER)[0][3] == 1


# --- fork -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_reads_and_polls_on_its_own_and_the_parent_goes_on(tmp_path):
    with Primary(FileReplicaClient(tmp_path / "r")) as primary:
        start_ledger(primary)
        with connected(str(tmp_path / "r"), poll_interval="5ms") as con:
            assert rows(con, LEDGER)[0][3] == 0
            from_child, to_parent = os.pipe()
            child = os.fork()
            if child == 0:
                _in_child(con, to_parent)
            os.close(to_parent)
            try:
                assert _answer(from_child) == b"0"
                next_version(primary)
                wait_until(lambda: rows(con, LEDGER)[0][3] == 1, "the parent's own news")
                assert _answer(from_child) == b"1"
            finally:
                os.close(from_child)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            assert len(poll_threads()) == 1
            next_version(primary)
            wait_until(lambda: rows(con, LEDGER)[0][3] == 2, "news after the child's end")
        primary.client.close()


def _in_child(con: apsw.Connection, to_parent: int) -> None:
    """Tell the parent each version this process sees; never return."""
    signal.alarm(20)
    try:
        told = None
        while True:
            _, total, low, high = rows(con, LEDGER)[0]
            if (total, low) != (0, high):
                os.write(to_parent, b"!")
            if low != told:
                told = low
                os.write(to_parent, str(low).encode())
    finally:
        os._exit(1)


def _answer(pipe: int) -> bytes:
    assert select.select([pipe], [], [], 15)[0], "the child does not answer"
    return os.read(pipe, 1)


# --- over S3 ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.plan("L12", "L25")
def test_over_s3_each_commit_is_seen_soon_and_polling_costs_a_read(s3_server, s3_url):
    with running_s3_proxy(s3_server.endpoint) as proxy:
        path = s3_url().partition("?")[0].rpartition("/")[2]
        client = open_replica_client(s3_server.url(TEST_BUCKET, path))
        url = s3_server.url(TEST_BUCKET, path, endpoint=proxy.endpoint)
        with Primary(client) as primary:
            start_ledger(primary)
            connections = [connected(url, poll_interval="50ms") for _ in range(10)]
            opened = [c.__enter__() for c in connections]
            try:
                late = []
                for version in range(1, 51):
                    next_version(primary)
                    uploaded = time.monotonic()
                    wait_until(lambda v=version: rows(opened[v % 10], LEDGER)[0][2:] == (v, v), f"version {version}")
                    late.append(time.monotonic() - uploaded)
                assert statistics.median(late) < 0.05 + 1
                proxy.clear()
                started = time.monotonic()
                wait_until(lambda: len(proxy.requests) >= 8, "polls")
                elapsed = time.monotonic() - started
                requests = list(proxy.requests)
                assert len(requests) <= elapsed / 0.05 + 2 + BUSY_POLLS
                assert {r.method for r in requests} == {"GET"}
                assert sum("list-type=2" in r.query for r in requests) <= 1 + elapsed / 15
                assert {rows(con, LEDGER)[0] for con in opened} == {(400, 0, 50, 50)}
            finally:
                for connection in connections:
                    connection.__exit__(None, None, None)
            proxy.clear()
            threading.Event().wait(0.2)  # four intervals in which nothing may happen
            assert proxy.requests == []
        client.close()
