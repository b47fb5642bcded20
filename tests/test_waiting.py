"""Waiting for a transaction, and looking now: what counts as an answer, and when it is given up."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from litevfs.errors import StaleReplicaError, StorageClosedError, TransientStorageError
from litevfs.options import Options
from litevfs.replica import Replica
from tests.primary import Primary
from tests.scripted import Script
from tests.support import wait_until

INSERT = "INSERT INTO t VALUES(1)"


@pytest.fixture
def world():
    """A primary with one transaction, its storage, and a replica of it that nobody polls."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        replica = Replica(Options(replica_url=script.url, read_timeout_s=5))
        replica.refresh()
        yield primary, script, replica
        replica.close()


@pytest.mark.plan("L03")
def test_a_transaction_has_arrived_though_the_look_that_found_it_failed_at_a_later_one(world):
    primary, _, replica = world
    primary.commit(INSERT)
    primary.run(INSERT)
    primary.commit(INSERT)  # behind a hole
    assert replica.wait_for(2, 0).txid == 2
    with pytest.raises(StaleReplicaError, match="LTX files are missing"):
        replica.wait_for(3, 0)


@pytest.mark.plan("L12")
def test_waiting_ends_though_every_look_finds_news(world):
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
def test_waiting_without_a_poller_looks_again_after_pauses(world):
    _, script, replica = world
    script.clear()
    with pytest.raises(StaleReplicaError):
        replica.wait_for(2, 0.5)
    assert 1 < script.lists[0] < 50  # a thousand, if one look followed the other


@pytest.fixture
def patient(world):
    """Somebody who waits for the second transaction, and was told by the storage to come back in an hour."""
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
def test_waiting_ends_when_somebody_else_finds_the_transaction(world, patient):
    primary, _, replica = world
    primary.commit(INSERT)
    replica.refresh()
    assert patient.result(10).txid == 2


@pytest.mark.plan("L29")
def test_a_look_that_listed_before_somebody_asked_is_no_look_of_his(world):
    """`litestream_time = latest` sees what was there when it was said, though another look is under way."""
    primary, script, replica = world
    has_listed, may_go_on = threading.Event(), threading.Event()

    def hold(level, files):
        if not may_go_on.is_set():
            has_listed.set()
            assert may_go_on.wait(10)
        return files

    script.on_list = hold
    first = threading.Thread(target=replica.look_now)
    first.start()
    assert has_listed.wait(10)
    primary.commit(INSERT)
    timer = threading.Timer(0.1, may_go_on.set)  # by then, the other look has been joined
    timer.start()
    replica.look_now()
    assert replica.snapshot.txid == 2
    first.join(10)
    timer.join(10)
