"""One replica per URL and process: who shares, whose options count, and that the last one turns off the light."""

from __future__ import annotations

import pytest

from litevfs.options import Options
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.sharing import ReplicaRegistry
from tests.primary import Primary
from tests.scripted import Script
from tests.support import in_threads


@pytest.fixture
def world():
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        yield script, ReplicaRegistry()


def options(script: Script, **values: object) -> Options:
    return Options(replica_url=script.url, **values)


@pytest.mark.plan("L26")
def test_connections_to_one_url_share_one_replica(world):
    script, registry = world
    a, b = options(script), options(script, poll_interval_s=5.0)
    assert registry.acquire(a) is registry.acquire(b)
    registry.release(a)
    registry.release(b)
    assert registry._shared == {}


def test_spellings_of_one_place_are_one_replica(tmp_path, monkeypatch):
    with Primary(FileReplicaClient(tmp_path / "r")) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.client.close()
    monkeypatch.chdir(tmp_path)
    registry = ReplicaRegistry()
    spellings = ["r", "./r", str(tmp_path / "r"), f"file://{tmp_path}/r", f"file://{tmp_path}/x/../r/"]
    every = [Options(replica_url=url) for url in spellings]
    assert len({id(registry.acquire(o)) for o in every}) == 1
    for o in every:
        registry.release(o)
    assert registry._shared == {}


def test_connections_that_do_not_poll_are_not_moved_on_by_those_that_do(world):
    script, registry = world
    polling, still = options(script), options(script, poll_interval_s=0.0)
    assert registry.acquire(polling) is not registry.acquire(still)
    registry.release(polling)
    registry.release(still)


@pytest.mark.plan("L02", "L26")
def test_connections_that_want_files_verified_share_with_their_like_only(world):
    script, registry = world
    plain, verifying, another = options(script), options(script, verify=True), options(script, verify=True)
    replica = registry.acquire(verifying)
    assert registry.acquire(plain) is not replica
    assert registry.acquire(another) is replica
    for o in (plain, verifying, another):
        registry.release(o)
    assert registry._shared == {}


def test_the_shortest_interval_and_the_largest_cache_count(world):
    script, registry = world
    first, second, third = (
        options(script, poll_interval_s=interval, cache_size_bytes=size)
        for interval, size in ((5.0, 1_000_000), (2.0, 3_000_000), (9.0, 500))
    )
    replica = registry.acquire(first)
    replica.open(5)
    replica.poll_every(first.poll_interval_s)
    for o in (second, third):
        registry.acquire(o).poll_every(o.poll_interval_s)
    assert replica.status().poll_interval_s == 2.0
    assert replica.pages._cache.limit_bytes == 3_000_000
    for o in (first, second, third):
        registry.release(o)
    assert replica.status().state == "closed"


def test_nothing_polls_for_fixed_views_alone(world):
    script, registry = world
    live, fixed = options(script), options(script, txid=1)
    replica = registry.acquire(live)
    assert registry.acquire(fixed) is replica
    replica.open(5)
    replica.poll_every(live.poll_interval_s)
    registry.release(live)
    assert replica.status().poll_interval_s == 0
    assert replica.status().state == "current"
    registry.release(fixed)
    assert replica.status().state == "closed"


def test_a_replica_that_was_let_go_is_made_anew(world):
    script, registry = world
    o = options(script)
    first = registry.acquire(o)
    registry.release(o)
    second = registry.acquire(o)
    assert second is not first
    assert second.open(5).txid == 1
    registry.release(o)


def test_threads_that_come_and_go_leave_nothing(world):
    script, registry = world

    def work(i: int) -> None:
        o = options(script, poll_interval_s=0.01 if i % 2 else 0.0)
        for _ in range(20):
            replica = registry.acquire(o)
            assert replica.open(5).txid == 1
            replica.poll_every(o.poll_interval_s)
            registry.release(o)

    in_threads(8, work)
    assert registry._shared == {}
