"""The states of a replica, each entered and left, as its status tells them."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from litevfs.errors import LitevfsError, ReplicaEmptyError, StorageClosedError, StorageTimeoutError, TXIDGapError
from litevfs.live.health import STALLED_AFTER_S, State
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.testing.faulty import Fault, Faults
from tests.primary import Primary

pytestmark = pytest.mark.plan("E06")


@pytest.fixture
def replica(faults: Faults):
    replica = Replica(Options(replica_url=faults.url))
    yield replica
    replica.close()


LISTING_FAILS = Fault("timeout", operations=("list",))


def refresh_fails(replica: Replica, error: type[LitevfsError]) -> None:
    with pytest.raises(error):
        replica.refresh()


@pytest.mark.plan("D12")
def test_opening_lasts_until_the_first_complete_state(replica, primary: Primary, faults):
    assert replica.state is State.OPENING
    assert replica.status().lag_s is None
    refresh_fails(replica, ReplicaEmptyError)
    faults.add(LISTING_FAILS)
    refresh_fails(replica, StorageTimeoutError)
    assert replica.state is State.OPENING
    faults.clear()
    primary.run("CREATE TABLE t (a)")
    primary.commit("INSERT INTO t VALUES (1)")
    refresh_fails(replica, TXIDGapError)
    assert replica.state is State.OPENING
    primary.upload(1)
    assert replica.refresh()
    assert replica.state is State.CURRENT
    assert replica.status().errors == 3


def test_a_failed_refresh_is_behind_long_failure_is_stalled_success_is_current(replica, primary, faults, clock):
    primary.commit("CREATE TABLE t (a)")
    replica.refresh()
    assert replica.state is State.CURRENT
    clock.now_s += 1
    faults.add(LISTING_FAILS)
    refresh_fails(replica, StorageTimeoutError)
    assert replica.state is State.BEHIND
    clock.now_s += STALLED_AFTER_S
    assert replica.state is State.BEHIND
    clock.now_s += 0.1
    assert replica.state is State.STALLED
    assert replica.status().lag_s == pytest.approx(STALLED_AFTER_S + 1.1)
    assert "injected fault" in str(replica.status().last_error)
    faults.clear()
    assert not replica.refresh()  # nothing new, but the look succeeded
    assert replica.state is State.CURRENT
    assert replica.status().last_error is None
    assert replica.status().lag_s == 0


def test_a_slow_poller_is_given_ten_intervals_before_it_is_stalled(replica, primary, faults, clock):
    primary.commit("CREATE TABLE t (a)")
    replica.refresh()
    replica.poll_every(60)
    faults.add(LISTING_FAILS)
    refresh_fails(replica, StorageTimeoutError)
    clock.now_s += 600
    assert replica.state is State.BEHIND
    clock.now_s += 1
    assert replica.state is State.STALLED


def test_a_stalled_replica_that_gets_some_way_but_not_to_the_end_stays_stalled(replica, primary, faults, clock):
    """Files up to a hole are published, and it is still not current."""
    primary.commit("CREATE TABLE t (a)")
    replica.refresh()
    faults.add(LISTING_FAILS)
    refresh_fails(replica, StorageTimeoutError)
    clock.now_s += STALLED_AFTER_S + 1
    faults.clear()
    primary.commit("INSERT INTO t VALUES (2)")
    primary.run("INSERT INTO t VALUES (3)")
    primary.commit("INSERT INTO t VALUES (4)")
    refresh_fails(replica, TXIDGapError)
    assert replica.status().txid == f"{2:016x}"
    assert replica.state is State.STALLED
    primary.upload(3)
    replica.refresh()
    assert replica.state is State.CURRENT


@pytest.mark.parametrize("before", ["opening", "current", "behind"])
def test_closed_is_for_good_from_any_state(replica, primary, faults, before):
    if before != "opening":
        primary.commit("CREATE TABLE t (a)")
        replica.refresh()
    if before == "behind":
        faults.add(LISTING_FAILS)
        refresh_fails(replica, StorageTimeoutError)
    assert replica.state is State[before.upper()]
    replica.close()
    faults.clear()
    assert replica.state is State.CLOSED
    refresh_fails(replica, StorageClosedError)
    with pytest.raises(StorageClosedError):
        replica.open(1) if before == "opening" else replica.view(txid=1)
    assert replica.state is State.CLOSED
    replica.close()


def test_trouble_is_said_once_when_it_begins_once_when_it_lasts_and_once_when_it_ends(
    replica, primary, faults, clock, caplog
):
    caplog.set_level(logging.INFO, "litevfs.live.replica")
    primary.commit("CREATE TABLE t (a)")
    replica.refresh()
    faults.add(LISTING_FAILS)
    for _ in range(10):
        clock.now_s += 10
        refresh_fails(replica, StorageTimeoutError)
    faults.clear()
    for _ in range(3):
        replica.refresh()
    said = [
        (record.levelname, record.getMessage()) for record in caplog.records if record.name == "litevfs.live.replica"
    ]
    assert [level for level, _ in said] == ["WARNING", "ERROR", "INFO"]
    assert "stays at its last state" in said[0][1]
    assert "stalled" in said[1][1]
    assert "up to date again" in said[2][1]


def test_states_are_the_same_from_every_thread(replica, primary):
    primary.commit("CREATE TABLE t (a)")
    seen: list[Any] = []
    replica.refresh()
    thread = threading.Thread(target=lambda: seen.append(replica.status().state))
    thread.start()
    thread.join(10)
    assert seen == [State.CURRENT]


def test_a_refresh_that_fails_for_want_of_memory_is_behind_too(replica, primary, monkeypatch):
    primary.commit("CREATE TABLE t (a)")
    replica.refresh()
    primary.commit("INSERT INTO t VALUES (1)")

    def out_of_memory(data: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr("litevfs.files.fetch.decode_file", out_of_memory)
    with pytest.raises(MemoryError):
        replica.refresh()
    assert replica.state is State.BEHIND
