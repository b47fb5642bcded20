"""What opening, polling and a commit cost over S3, counted by a proxy before a server."""

from __future__ import annotations

from collections import Counter
from urllib.parse import parse_qs

import pytest

from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.replica_clients.urls import open_replica_client
from litevfs.testing.fixtures import TEST_BUCKET
from litevfs.testing.http_faults import HTTPFault
from litevfs.testing.s3_proxy import running_s3_proxy
from tests.primary import Primary
from tests.support import connected, one

INSERT = "INSERT INTO t VALUES(randomblob(300))"


def kinds(proxy) -> dict[str, int]:
    """Requests since the last `proxy.clear()`."""
    return Counter("LIST" if "list-type" in parse_qs(r.query) else r.method for r in proxy.requests)


@pytest.fixture
def world(s3_server, s3_url):
    """A primary that writes to S3, a proxy before that, and the replica's URL through it."""
    path = s3_url().partition("?")[0].rpartition("/")[2]
    client = open_replica_client(s3_server.url(TEST_BUCKET, path))
    with running_s3_proxy(s3_server.endpoint) as proxy, Primary(client) as primary:
        primary.commit("CREATE TABLE t(x)")
        yield primary, proxy, s3_server.url(TEST_BUCKET, path, endpoint=proxy.endpoint)
    client.close()


@pytest.mark.s3
@pytest.mark.plan("L12")
def test_opening_takes_one_listing_and_each_small_file_once(world):
    primary, proxy, url = world
    for _ in range(4):
        primary.commit(INSERT)
    primary.compact(1, 1, 3)
    proxy.clear()
    with connected(url, poll_interval=0) as connection:
        assert one(connection, "SELECT count(*) FROM t") == 4
    assert kinds(proxy) == {"LIST": 1, "GET": 3}


@pytest.mark.s3
@pytest.mark.plan("L12")
def test_opening_a_large_file_takes_one_listing_and_its_two_ends(world):
    primary, proxy, url = world
    primary.commit("INSERT INTO t SELECT randomblob(2000000)")
    primary.compact(9, 1, 2)
    proxy.clear()
    with connected(url, poll_interval=0) as connection:
        assert one(connection, "SELECT count(*) FROM sqlite_schema") == 1
    assert kinds(proxy) == {"LIST": 1, "GET": 2}


@pytest.mark.s3
@pytest.mark.plan("L12")
def test_a_minute_costs_sixty_reads_and_four_listings(world, clock):
    primary, proxy, url = world
    replica = Replica(Options(replica_url=url), clock=clock)
    try:
        replica.refresh()
        proxy.clear()
        for _ in range(60):
            clock.now_s += 1
            replica.refresh(thorough=False)
        assert kinds(proxy) == {"LIST": 4, "GET": 60}
        primary.commit(INSERT)
        proxy.clear()
        clock.now_s += 1
        replica.refresh(thorough=False)
        assert replica.snapshot is not None
        assert replica.snapshot.txid == 2
        assert kinds(proxy) == {"GET": 3}  # the file, the proof, and that there is no further file
    finally:
        replica.close()


@pytest.mark.s3
@pytest.mark.hedged
def test_a_poll_whose_answer_does_not_come_is_made_a_second_time(world, clock):
    primary, proxy, url = world
    replica = Replica(Options(replica_url=url), clock=clock)
    try:
        replica.refresh()
        for _ in range(80):
            clock.now_s += 1
            replica.refresh(thorough=False)
        second, before = replica.status().second_requests, kinds(proxy)["GET"]
        primary.commit(INSERT)
        proxy.faults.add(HTTPFault(delay_ms=3_600_000, method="GET", count=1))
        clock.now_s += 1
        replica.refresh(thorough=False)
        assert replica.snapshot is not None
        assert replica.snapshot.txid == 2
        assert replica.status().second_requests == second + 1
        assert kinds(proxy)["GET"] == before + 4  # the file twice, the proof, and that there is no further file
    finally:
        replica.close()
