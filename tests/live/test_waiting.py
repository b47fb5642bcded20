"""Waiting for a transaction, and looking now: what counts as an answer, and when it is given up."""

from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from litevfs.errors import StaleReplicaError, StorageClosedError, StorageTimeoutError, TransientStorageError
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.replica_clients.memory import MemoryReplicaClient, drop_memory_store, memory_store
from litevfs.testing.faulty import Fault, faulty_replica
from tests.primary import Primary
from tests.scripted import Script
from tests.support import wait_until

INSERT = "INSERT INTO t VALUES(1)"


@pytest.fixture
def world():
    """A primary with one transaction, its storage, and a replica of it that no poller polls."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        replica = Replica(Options(replica_url=script.url, read_timeout_s=5))
        replica.refresh()
        yield primary, script, replica
        replica.close()


@pytest.mark.plan("L03")
def test_a_transaction_has_arrived_though_the_refresh_that_found_it_failed_at_a_later_one(world):
    primary, _, replica = world
    primary.commit(INSERT)
    primary.run(INSERT)
    primary.commit(INSERT)  # behind a hole
    assert replica.wait_for(2, 0).txid == 2
    with pytest.raises(StaleReplicaError, match="LTX files are missing"):
        replica.wait_for(3, 0)


@pytest.mark.plan("L12")
def test_waiting_ends_though_every_refresh_finds_news(world):
    """A writer that never stops, and a TXID that is far away."""
    primary, script, replica = world
    looks = []

    def commit(level, files):
        if level == 0:
            looks.append(primary.commit(INSERT))
            assert len(looks) < 1000, "waits for ever"
        return files

    script.on_list = commit
    with pytest.raises(StaleReplicaError):
        replica.wait_for(10**6, 0.05)
    assert looks


@pytest.mark.plan("E02")
def test_waiting_without_a_poller_refreshes_again_after_pauses(world):
    _, script, replica = world
    script.clear()
    with pytest.raises(StaleReplicaError):
        replica.wait_for(2, 0.5)
    assert 1 < script.lists[0] < 50  # a thousand, if one look followed the other


@pytest.fixture
def patient(world):
    """A caller that waits for the second transaction, and was told by the storage to come back in an hour."""
    _, script, replica = world
    replica.poll_every(3600)
    looks = []

    def refuse(level, files):
        looks.append(level)
        error = TransientStorageError("busy")
        error.retry_after_s = 3600
        raise error

    script.on_list = refuse
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(replica.wait_for, 2, 7200)
        wait_until(lambda: looks)
        script.on_list = None
        yield future
        replica.close()


@pytest.mark.plan("L11")
def test_waiting_ends_when_the_replica_is_closed(world, patient):
    _, _, replica = world
    replica.close()
    with pytest.raises(StorageClosedError):
        patient.result(10)


@pytest.mark.plan("E04")
def test_waiting_ends_when_another_caller_finds_the_transaction(world, patient):
    primary, _, replica = world
    primary.commit(INSERT)
    replica.refresh()
    assert patient.result(10).txid == 2


@pytest.mark.plan("L29")
def test_a_refresh_that_listed_before_a_caller_asked_is_not_its_own(world):
    """`litestream_time = latest` sees what was there when it was said, though another look is under way."""
    primary, script, replica = world
    has_listed, may_go_on = threading.Event(), threading.Event()

    def hold(level, files):
        if not may_go_on.is_set():
            has_listed.set()
            assert may_go_on.wait(10)
        return files

    script.on_list = hold
    first = threading.Thread(target=replica.refresh_now)
    first.start()
    assert has_listed.wait(10)
    primary.commit(INSERT)
    timer = threading.Timer(0.1, may_go_on.set)  # by then, the other look has been joined
    timer.start()
    replica.refresh_now()
    assert replica.snapshot.txid == 2
    first.join(10)
    timer.join(10)


FAILING_READS = Fault("transient", operations=("read",))
ASKING = [
    pytest.param(lambda replica: replica.check_freshness(0.0), id="max_staleness"),
    pytest.param(lambda replica: replica.wait_for(2, 0.0), id="wait"),
    pytest.param(lambda replica: replica.view(txid=2, timeout_s=0.1), id="view"),
]


@pytest.fixture
def failing(monkeypatch):
    """A replica that lists its second transaction and cannot read it, for longer than anybody waits."""
    monkeypatch.setattr("litevfs.live.replica.MIN_REFRESH_S", 0.4)
    name = "waiting-for-failing-reads"
    with Primary(MemoryReplicaClient(memory_store(name))) as primary, faulty_replica(f"memory://{name}") as faults:
        primary.commit("CREATE TABLE t(x)")
        replica = Replica(Options(replica_url=faults.url, read_timeout_s=30))
        replica.refresh()
        primary.commit(INSERT)
        faults.add(FAILING_READS)
        yield replica
        replica.close()
    drop_memory_store(name)


@pytest.mark.slow
@pytest.mark.plan("L10")
@pytest.mark.parametrize("ask", ASKING)
def test_who_gives_up_is_told_why_the_storage_is_tried_again(failing, ask):
    with pytest.raises((StorageTimeoutError, StaleReplicaError), match="injected fault: transient during a read"):
        ask(failing)


@pytest.mark.plan("L10")
def test_who_gives_up_opening_is_told_why_the_storage_is_tried_again(failing):
    replica = Replica(failing.options)
    with pytest.raises(StorageTimeoutError, match=r"no success within .* injected fault: transient during a read"):
        replica.open(0.5)
    replica.close()


@pytest.mark.plan("L10")
def test_who_gives_up_on_a_storage_without_any_answer_is_told_which_one(world):
    """An error of before is not the reason."""
    _, script, replica = world
    replica.fetcher.troubles.note(TransientStorageError("long ago"))
    go_on = threading.Event()
    script.on_list = lambda level, files: go_on.wait(10) and files
    with pytest.raises(StorageTimeoutError, match=f"has not answered within .*{re.escape(script.url)}"):
        replica.view(txid=1, timeout_s=0.05)
    go_on.set()


@pytest.mark.plan("L10")
def test_a_state_gets_old_while_the_machine_sleeps(world, monkeypatch):
    """A closed laptop, a virtual machine on hold: Python's monotonic clock stands still meanwhile."""
    primary, script, replica = world
    primary.commit(INSERT)
    script.clear()
    replica.check_freshness(60)
    assert not script.lists
    clock_gettime = time.clock_gettime
    goes_on = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    monkeypatch.setattr(time, "clock_gettime", lambda clock: clock_gettime(clock) + 3600 * (clock == goes_on))
    assert replica.lag_s() >= 3600
    replica.check_freshness(60)
    assert replica.snapshot.txid == 2
    assert replica.lag_s() < 60
