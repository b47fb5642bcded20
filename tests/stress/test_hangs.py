"""Storage calls that never come back: closing, waiting and opening keep to their bounds all the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import litevfs
from litevfs.errors import StaleReplicaError, StorageClosedError
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.testing.faulty import Fault, Faults
from tests.primary import Primary
from tests.support import connected, one, own_threads, rows, wait_until

CLOSE_BOUND_S = 1.5
"""A close may take a second; the rest is for a busy machine."""
FAST = {"poll_interval": "5ms", "cache_size": 0}


@pytest.fixture
def primary(primary: Primary) -> Primary:
    primary.commit("CREATE TABLE t AS SELECT 1 AS a")
    primary.commit("INSERT INTO t SELECT a + 1 FROM t")
    return primary


def seconds_to(call: Callable[[], Any]) -> float:
    before = time.monotonic()
    call()
    return time.monotonic() - before


class InThread:
    """A call in a thread of its own, with its outcome."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def ended(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()


@pytest.mark.plan("L11")
@pytest.mark.parametrize("storage", ["faults", "remote_faults"])
def test_close_ends_a_poll_that_hangs_and_its_threads(request, primary, storage):
    faults: Faults = request.getfixturevalue(storage)
    connection = litevfs.connect(faults.url, **FAST)
    faults.add(Fault("hang", operations=("list",)))
    faults.wait_until_waiting()
    assert own_threads()
    assert seconds_to(connection.close) < CLOSE_BOUND_S
    wait_until(lambda: not own_threads(), "the end of every thread", timeout_s=CLOSE_BOUND_S)
    assert faults.open_clients == 0


@pytest.mark.plan("L11")
def test_close_returns_although_the_poll_is_stuck_in_a_library_that_is_deaf_to_it(primary, faults):
    connection = litevfs.connect(faults.url, **FAST)
    faults.add(Fault("stuck", operations=("list",)))
    faults.wait_until_waiting()
    assert seconds_to(connection.close) < CLOSE_BOUND_S
    faults.clear()
    wait_until(lambda: not own_threads(), "the end of every thread, once the library let go")


@pytest.mark.plan("L11")
@pytest.mark.parametrize("storage", ["faults", "remote_faults"])
def test_close_of_the_replica_ends_a_read_that_hangs_in_another_thread(request, primary, storage):
    faults: Faults = request.getfixturevalue(storage)
    replica = Replica(Options(replica_url=faults.url, cache_size_bytes=0))
    snapshot = replica.open(10)
    faults.add(Fault("hang", operations=("read",)))
    read = InThread(lambda: replica.pages.read(snapshot, 2))
    faults.wait_until_waiting()
    assert seconds_to(replica.close) < CLOSE_BOUND_S
    assert read.ended(CLOSE_BOUND_S)
    assert isinstance(read.error, StorageClosedError)
    assert not own_threads() or wait_until(lambda: not own_threads())


@pytest.mark.plan("L11")
@pytest.mark.parametrize("storage", ["faults", "remote_faults"])
@pytest.mark.parametrize("operation", ["list", "read"])
def test_close_of_the_replica_ends_an_open_that_hangs(request, primary, storage, operation):
    faults: Faults = request.getfixturevalue(storage)
    faults.add(Fault("hang", operations=(operation,)))
    replica = Replica(Options(replica_url=faults.url))
    opening = InThread(lambda: replica.open(60))
    faults.wait_until_waiting()
    assert seconds_to(replica.close) < CLOSE_BOUND_S
    assert opening.ended(CLOSE_BOUND_S)
    assert isinstance(opening.error, StorageClosedError)
    wait_until(lambda: not own_threads(), "the end of every thread")


@pytest.mark.plan("L11")
def test_close_ends_an_open_that_waits_for_a_first_state(faults):
    replica = Replica(Options(replica_url=faults.url))
    opening = InThread(lambda: replica.open(60))
    wait_until(lambda: faults.calls["list"] > 3, "looks for a first state")
    assert seconds_to(replica.close) < CLOSE_BOUND_S
    assert opening.ended(CLOSE_BOUND_S)
    assert isinstance(opening.error, StorageClosedError)


@pytest.mark.plan("L11")
def test_a_subscription_closes_although_its_poll_hangs(primary, faults):
    subscription = litevfs.subscribe(faults.url, lambda txid: None, poll_interval="5ms")
    faults.add(Fault("hang", operations=("list",)))
    faults.wait_until_waiting()
    assert seconds_to(subscription.close) < CLOSE_BOUND_S
    wait_until(lambda: not own_threads(), "the end of every thread")


def test_reads_of_the_published_state_go_on_while_the_poll_hangs(primary, faults):
    with connected(faults.url, **FAST) as connection:
        faults.add(Fault("hang", operations=("list",)))
        faults.wait_until_waiting()
        assert rows(connection, "SELECT a FROM t") == [(1,), (2,)]
        faults.clear()


def test_polling_goes_on_by_itself_after_a_hang_has_passed(primary, faults):
    with connected(faults.url, **FAST) as connection:
        faults.add(Fault("hang", operations=("list",), count=1))
        faults.wait_until_waiting()
        primary.commit("INSERT INTO t VALUES (3)")
        faults.release()
        wait_until(lambda: rows(connection, "SELECT a FROM t") == [(1,), (2,), (3,)], "the new row")


def test_a_read_that_was_interrupted_leaves_no_other_reader_of_the_same_block_waiting(
    primary, remote_faults, monkeypatch
):
    """Ctrl-C in the thread that fetches a block must not hang those that wait for the same block."""
    replica = Replica(Options(replica_url=remote_faults.url, cache_size_bytes=0))
    try:
        snapshot = replica.open(10)
        client_read = replica.fetcher.client.read
        arrived, interrupt = threading.Event(), threading.Event()

        def interrupted(*arguments: Any, **options: Any) -> bytes:
            monkeypatch.setattr(replica.fetcher.client, "read", client_read)
            arrived.set()
            assert interrupt.wait(10)
            raise KeyboardInterrupt

        monkeypatch.setattr(replica.fetcher.client, "read", interrupted)
        first = InThread(lambda: replica.pages.read(snapshot, 2))
        assert arrived.wait(10)
        second = InThread(lambda: replica.pages.read(snapshot, 2))
        blocks = replica.pages.blocks
        assert blocks is not None
        under_way = next(iter(blocks.under_way.requests.values()))
        wait_until(lambda: [a for a in under_way._answers.values() if a._condition._waiters], "the second reader")
        interrupt.set()
        assert first.ended(10)
        assert isinstance(first.error, KeyboardInterrupt)
        ended = second.ended(3)
        if not ended:
            under_way.end(StorageClosedError("end of the test"))
        assert ended
        assert second.error is None
        assert second.result == primary.page(2)
    finally:
        replica.close()


HANG_BOUND_S = 5.0
"""A look is given some time at least, however short the timeout; the rest is for a busy machine."""


def bounded(faults: Faults, call: Callable[[], Any], bound_s: float) -> BaseException | None:
    """The error of a call that must end within `bound_s` although the storage hangs, which gets 250 ms to answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("litevfs.live.replica.MIN_REFRESH_S", 0.25)
        thread = InThread(call)
        ended = thread.ended(bound_s)
    faults.clear()
    assert thread.ended(20)
    assert ended, f"it did not end within {bound_s} s"
    return thread.error


def test_open_timeout_bounds_an_open_whose_storage_hangs(primary, faults):
    faults.add(Fault("hang"))
    error = bounded(faults, lambda: litevfs.connect(faults.url, open_timeout="200ms").close(), HANG_BOUND_S)
    assert isinstance(error, litevfs.LitevfsError)


def test_wait_for_keeps_its_timeout_while_the_poll_hangs(primary, faults):
    with connected(faults.url, **FAST) as connection:
        faults.add(Fault("hang", operations=("list",)))
        faults.wait_until_waiting()
        error = bounded(faults, lambda: litevfs.wait_for(connection, 99, 0.2), HANG_BOUND_S)
        assert isinstance(error, StaleReplicaError)


def test_max_staleness_refuses_a_transaction_in_bounded_time_while_the_poll_hangs(primary, faults):
    with connected(faults.url, max_staleness="50ms", **FAST) as connection:
        faults.add(Fault("hang", operations=("list",)))
        faults.wait_until_waiting()
        threading.Event().wait(0.06)  # until the last success is older than that
        error = bounded(faults, lambda: one(connection, "SELECT count(*) FROM t"), HANG_BOUND_S)
        assert isinstance(error, StaleReplicaError)


def test_a_further_connection_opens_beside_a_listing_that_hangs(primary, faults, monkeypatch):
    """It waits a moment for a newer state, and not even that once the look is known to take long."""
    monkeypatch.setattr("litevfs.live.replica.JUST_NOW_S", 0.0)  # as if the last look had been a while ago
    with connected(faults.url, **FAST):
        faults.add(Fault("hang", operations=("list",)))
        faults.wait_until_waiting()
        for _ in range(3):
            opening = InThread(lambda: litevfs.connect(faults.url, open_timeout="1h", **FAST))
            assert opening.ended(HANG_BOUND_S)
            assert opening.error is None
            assert rows(opening.result, "SELECT a FROM t") == [(1,), (2,)]
            opening.result.close()
        faults.clear()


@pytest.mark.plan("L11")
@pytest.mark.parametrize(
    "call",
    [
        lambda url, con: litevfs.connect(url, txid=1, open_timeout="50ms", read_timeout="50ms", **FAST),
        lambda url, con: con.pragma("litestream_time", "2026-01-01T00:00:01Z"),
        lambda url, con: con.pragma("litestream_poll"),
        lambda url, con: rows(con, "SELECT a FROM t"),
    ],
    ids=["a fixed connection", "time travel", "a poll", "a page whose file has moved"],
)
def test_what_has_to_list_keeps_its_bound_while_a_listing_hangs(primary, faults, call):
    with connected(faults.url, read_timeout="50ms", **FAST) as connection:
        primary.compact(1, 1, 2)
        faults.add(Fault("hang", operations=("list",)))
        faults.wait_until_waiting()
        primary.delete(0)
        error = bounded(faults, lambda: call(faults.url, connection), HANG_BOUND_S)
        assert isinstance(error, litevfs.StorageTimeoutError)
        assert rows(connection, "SELECT a FROM t") == [(1,), (2,)]


def test_a_refresh_that_hangs_is_no_current_state(primary, faults, monkeypatch):
    replica = Replica(Options(replica_url=faults.url))
    try:
        replica.open(10)
        replica.poll_every(0.005)
        faults.add(Fault("hang", operations=("list",)))
        faults.wait_until_waiting()
        assert replica.status().state == "current"
        monkeypatch.setattr("litevfs.live.health.LATE_AFTER_S", 0.1)
        wait_until(lambda: replica.status().state == "behind", "trouble in the status")
        monkeypatch.setattr("litevfs.live.health.STALLED_AFTER_S", 0.1)
        wait_until(lambda: replica.status().state == "stalled", "more trouble in the status")
        monkeypatch.undo()
        faults.clear()
        wait_until(lambda: replica.status().state == "current", "the end of the trouble")
    finally:
        replica.close()
