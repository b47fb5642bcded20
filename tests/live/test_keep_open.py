"""`keep_open`: connections that come one after another share a replica that stays open between them, for a while."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

import litevfs
from litevfs.live.registry import ReplicaRegistry, registry
from litevfs.options import Options
from tests.interrupts import interrupted_everywhere
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, in_threads, one, wait_until


@pytest.fixture
def world() -> Iterator[tuple[Primary, Script]]:
    with Script(block_size=1 << 16, lists_levels=True) as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        yield primary, script


def asked(script: Script) -> int:
    return script.lists.total() + len(script.reads)


def connection_counts() -> list[str]:
    """What the metrics say of the connections of each replica."""
    return [line.split()[-1] for line in litevfs.metrics().splitlines() if "connections{" in line]


def is_let_go() -> bool:
    return registry.shared == {}


@pytest.mark.parametrize("connect", [litevfs.connect, litevfs.connect_stdlib])
def test_a_connection_after_another_asks_the_storage_nothing(world, connect):
    _, script = world

    def read() -> None:
        with closing(connect(script.url, keep_open="400ms", poll_interval="1h")) as connection:
            assert connection.execute("SELECT x FROM t").fetchall() == [(1,)]

    read()
    first = asked(script)
    for _ in range(19):
        read()
    assert asked(script) == first
    wait_until(is_let_go, "the end of the replica")
    with connected(script.url):
        assert asked(script) > first


def test_polls_go_on_meanwhile_and_no_connection_is_counted(world):
    primary, script = world
    with connected(script.url, keep_open="500ms", poll_interval="5ms"):
        (shared,) = registry.shared.values()
    assert connection_counts() == ["0.0"]
    primary.commit("INSERT INTO t VALUES(2)")
    wait_until(lambda: shared.replica.snapshot.txid == 2, "a poll")
    with connected(script.url, keep_open="500ms", poll_interval="5ms") as connection:
        assert one(connection, "SELECT count(*) FROM t") == 2
        assert connection_counts() == ["1.0"]
    wait_until(is_let_go, "the end of the replica")


def test_the_longest_counts_and_one_that_wants_less_ends_nothing(world):
    _, script = world
    ours = ReplicaRegistry()
    leases = [ours.acquire(Options(replica_url=script.url, keep_open_s=seconds)) for seconds in (0.3, 0.01, 0.0)]
    (shared,) = ours.shared.values()
    until = time.monotonic() + 0.3
    for lease in leases:
        ours.release(lease)
    assert shared.keep_until >= until
    wait_until(lambda: ours.shared == {}, "the end of the replica")
    assert time.monotonic() >= until
    wait_until(lambda: shared.replica.status().state == "closed", "an end")


def test_threads_that_come_and_go_leave_nothing(world):
    _, script = world
    ours = ReplicaRegistry()

    def work(i: int) -> None:
        for _ in range(20):
            lease = ours.acquire(Options(replica_url=script.url, keep_open_s=0.001 * i))
            assert lease.replica.open(5).txid == 1
            ours.release(lease)

    in_threads(8, work)
    wait_until(lambda: ours.shared == {}, "the end of the replica")


@pytest.mark.slow
def test_after_ctrl_c_in_a_release_the_next_one_ends_the_replica_in_time(world):
    _, script = world
    options = Options(replica_url=script.url, keep_open_s=0.001)
    ours = ReplicaRegistry()
    gc.collect()  # sessions of other tests, whose finalizers hide an interrupt
    for lease in interrupted_everywhere(lambda: ours.acquire(options), ours.release):
        ours.release(lease)
        ours.release(ours.acquire(options))
        wait_until(lambda: ours.shared == {}, "the end of the replica")


def test_without_a_thread_that_could_end_it_nothing_is_kept(world, monkeypatch):
    _, script = world
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("litevfs-poll"):
            raise RuntimeError("can't start new thread")
        start(thread)

    ours = ReplicaRegistry()
    lease = ours.acquire(Options(replica_url=script.url, keep_open_s=60.0))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    ours.release(lease)
    wait_until(lambda: ours.shared == {}, "the end of the replica")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_keeps_only_what_connections_hold(world):
    _, script = world
    with connected(script.url, keep_open="300ms", poll_interval="1h"):
        pass
    child = os.fork()
    if child == 0:
        os._exit(0 if is_let_go() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    wait_until(is_let_go, "the end of the replica in the parent")


@pytest.mark.parametrize(("age_s", "asks"), [(1.4, False), (1.6, True)])
def test_a_connection_that_opens_shortly_before_a_poll_ends_makes_no_listing_of_its_own(
    world, monkeypatch, age_s, asks
):
    _, script = world
    with connected(script.url, poll_interval="500ms") as first:
        (shared,) = registry.shared.values()
        monkeypatch.setattr(shared.replica.health, "lag_s", lambda: age_s)
        before = script.lists.total()
        with connected(script.url, poll_interval="500ms") as second:
            assert one(first, "SELECT x FROM t") == one(second, "SELECT x FROM t")
        assert (script.lists.total() > before) == asks
