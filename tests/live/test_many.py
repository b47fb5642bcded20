"""Many replicas in one process: threads, storages that hang, a ceiling on requests."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import pytest

import litevfs
from litevfs.live.registry import registry
from tests.primary import Primary
from tests.scripted import Script
from tests.support import one, own_threads, rows, wait_until


@pytest.fixture
def worlds():
    """Ten replicas, each in a storage of its own."""
    with ExitStack() as stack:
        worlds = []
        for _ in range(10):
            script = stack.enter_context(Script())
            primary = stack.enter_context(Primary(script.writer))
            primary.commit("CREATE TABLE t(x)")
            worlds.append((script, primary))
        yield worlds


@pytest.mark.slow
def test_a_storage_that_hangs_delays_no_other_replica(worlds):
    go_on, hanging = threading.Event(), threading.Event()

    def hang(level, files):
        hanging.set()
        assert go_on.wait(60)
        return files

    with ExitStack() as stack:
        connections = [litevfs.connect(script.url, poll_interval="10ms") for script, _ in worlds]
        for connection in connections:
            stack.callback(connection.close)
        stack.callback(go_on.set)
        worlds[0][0].on_list = hang
        assert hanging.wait(20)
        for _, primary in worlds:
            primary.commit("INSERT INTO t VALUES(1)")
        for connection in connections[1:]:
            wait_until(lambda connection=connection: rows(connection, "SELECT x FROM t") == [(1,)], "news")
        assert rows(connections[0], "SELECT x FROM t") == []
        go_on.set()
        wait_until(lambda: rows(connections[0], "SELECT x FROM t") == [(1,)], "news of the storage that hung")
    wait_until(lambda: not own_threads(), "the end of all threads")


def test_many_replicas_at_rest_have_few_threads(tmp_path):
    with ExitStack() as stack:
        primary = stack.enter_context(Script())
        stack.enter_context(Primary(primary.writer)).commit("CREATE TABLE t(x)")
        for i in range(100):
            # each its own: connections share a replica only if they agree on this
            connection = litevfs.connect(primary.url, poll_interval="200ms", read_timeout=f"{30 + i}s")
            stack.callback(connection.close)
        assert len(registry.shared) == 100
        before = primary.lists.total()
        wait_until(lambda: primary.lists.total() >= before + 300, "three polls of each", timeout_s=30)
        assert len(own_threads()) <= 32
    wait_until(lambda: not own_threads(), "the end of all threads")


@pytest.mark.slow
def test_no_second_has_more_requests_than_the_ceiling_and_every_replica_has_its_share():
    asked: list[tuple[float, int]] = []
    with ExitStack() as stack:
        for i in range(4):
            script = stack.enter_context(Script(block_size=1 << 14))
            primary = stack.enter_context(Primary(script.writer))
            primary.commit("CREATE TABLE t(x)")
            script.on_list = lambda level, files, i=i: asked.append((time.monotonic(), i)) or files
            interval = "1ms" if i == 0 else "100ms"  # one that asks for all there is
            connection = litevfs.connect(script.url, poll_interval=interval, max_requests_per_s=20)
            stack.callback(connection.close)
        del asked[:]
        began = time.monotonic()
        wait_until(lambda: time.monotonic() > began + 2.5, "some seconds")
    times = [at for at, _ in asked]
    assert all(later - first >= 0.9 for first, later in zip(times, times[21:], strict=False))
    shares = [sum(who == i for _, who in asked) for i in range(4)]
    assert min(shares) >= 4, shares


def test_closing_ends_a_wait_for_the_ceiling():
    with Script(block_size=1 << 14) as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        connection = litevfs.connect(script.url, poll_interval="10ms", max_requests_per_s=7)
        wait_until(lambda: script.lists.total() >= 2)
        connection.close()
    wait_until(lambda: not own_threads(), "the end of all threads")


def test_local_replicas_know_no_ceiling(tmp_path):
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        connection = litevfs.connect(script.url, poll_interval=0, max_requests_per_s=0.001)
        try:
            for _ in range(3):
                assert one(connection, "PRAGMA litestream_poll") == "0000000000000001"
        finally:
            connection.close()
