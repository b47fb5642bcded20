"""A whole reader over real HTTP while the server fails in one way at a time: rows, and what the client did about it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import litevfs
from litevfs.errors import (
    LTXFormatError,
    ReplicaError,
    StorageError,
    StorageNotFoundError,
    StoragePermissionError,
    TransientStorageError,
)
from litevfs.replica_clients.s3.client import S3ReplicaClient
from litevfs.testing.fixtures import TEST_BUCKET
from litevfs.testing.http_faults import HTTPFault, HTTPFaults
from litevfs.testing.s3_proxy import HTTPProxy, RecordedRequest, running_s3_proxy
from litevfs.testing.s3_server import S3Server
from tests.primary import Primary
from tests.support import connected, rows, status_of

pytestmark = pytest.mark.s3

NUMBERS = "WITH RECURSIVE generate(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM generate WHERE value < 300) "
QUERY = "SELECT * FROM t"
FILES = "*/0000/*"  # LTX files of level 0, not listings


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[HTTPProxy]:
    with running_s3_proxy(s3_server.endpoint, seed=7) as proxy:
        yield proxy


@pytest.fixture
def primary(s3_url: Callable[[], str]) -> Iterator[Primary]:
    """One transaction in one file of some pages, written past the proxy."""
    url = s3_url()
    client = S3ReplicaClient(url)
    with Primary(client) as primary:
        primary.run("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)")
        primary.run(f"INSERT INTO t {NUMBERS} SELECT value, hex(randomblob(40)) FROM generate")
        primary.compact(0, 1, 2)
        yield primary
    client.close()


@pytest.fixture
def url(primary: Primary, s3_server: S3Server, proxy: HTTPProxy) -> str:
    return primary.client.url.replace(s3_server.endpoint, proxy.endpoint)


def reads(proxy: HTTPProxy) -> list[RecordedRequest]:
    """Requests for files."""
    return [request for request in proxy.requests if request.path.endswith(".ltx")]


def listings(proxy: HTTPProxy) -> list[RecordedRequest]:
    return [request for request in proxy.requests if "list-type=2" in request.query]


def check_rows(url: str, primary: Primary) -> None:
    with connected(url, poll_interval=0) as connection:
        assert rows(connection, QUERY) == primary.rows(QUERY)


# --- status -----------------------------------------------------------------------------------------------------------


@pytest.mark.plan("F01", "F02")
@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_cannot_answer_now_is_asked_again(status: int, url: str, primary: Primary, proxy: HTTPProxy):
    proxy.faults.add(HTTPFault(status=status, path=FILES, count=2))
    with connected(url, poll_interval=0) as connection:
        assert rows(connection, QUERY) == primary.rows(QUERY)
        assert status_of(connection)["retries"] == 2
    assert len(reads(proxy)) == 3


@pytest.mark.slow
@pytest.mark.plan("F01", "E04")
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_says_when_to_come_back_is_not_asked_before(
    status: int, url: str, primary: Primary, proxy: HTTPProxy
):
    proxy.faults.add(HTTPFault(status=status, retry_after_s=1, path=FILES, count=1))
    check_rows(url, primary)
    first, second = reads(proxy)
    assert second.time - first.time >= 1


@pytest.mark.plan("F01")
def test_a_refusal_is_not_tried_again_and_says_what_to_check(url: str, proxy: HTTPProxy):
    proxy.faults.add(HTTPFault(status=403, path=FILES))
    with pytest.raises(StoragePermissionError, match="s3:GetObject"):
        litevfs.connect(url)
    assert len(reads(proxy)) == 1


@pytest.mark.plan("F01")
def test_a_request_that_the_server_does_not_understand_is_not_tried_again(url: str, proxy: HTTPProxy):
    proxy.faults.add(HTTPFault(status=400, path=FILES))
    with pytest.raises(StorageError, match="InvalidRequest") as caught:
        litevfs.connect(url)
    assert not isinstance(caught.value, TransientStorageError)
    assert len(reads(proxy)) == 1


@pytest.mark.plan("F01")
def test_a_file_that_is_gone_is_looked_for_in_a_new_listing(url: str, primary: Primary, proxy: HTTPProxy):
    proxy.faults.add(HTTPFault(status=404, path=FILES, count=1))
    check_rows(url, primary)
    assert len(reads(proxy)) == 2
    assert {request.query for request in listings(proxy)} < {request.query for request in proxy.requests}
    assert len(listings(proxy)) > len({request.query for request in listings(proxy)})  # all levels once more


@pytest.mark.plan("F01")
def test_a_file_that_stays_gone_ends_in_an_error_that_names_it(url: str, primary: Primary, proxy: HTTPProxy):
    proxy.faults.add(HTTPFault(status=404, path=FILES))
    with pytest.raises((StorageNotFoundError, ReplicaError)) as caught:
        litevfs.connect(url, open_timeout=0.5)
    assert "0000000000000001-0000000000000002" in str(caught.value)


@pytest.mark.plan("F01", "E02")
def test_failures_without_end_end_with_the_read_timeout_and_not_in_a_fast_loop(url: str, proxy: HTTPProxy):
    proxy.faults.add(HTTPFault(status=500, path=FILES))
    with pytest.raises(TransientStorageError, match="InternalError"):
        litevfs.connect(url, read_timeout=0.5, open_timeout=0)
    assert 1 < len(reads(proxy)) < 50


@pytest.mark.plan("F01", "F09")
def test_a_listing_that_fails_once_delays_the_opening_only(url: str, primary: Primary, proxy: HTTPProxy):
    proxy.faults.add(HTTPFault(status=503, path=f"/{TEST_BUCKET}*", count=1))
    check_rows(url, primary)
    assert not proxy.faults.active


# --- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.plan("F03")
def test_half_of_all_requests_failing_costs_requests_and_no_row(url: str, primary: Primary, proxy: HTTPProxy):
    fault = HTTPFault(status=503, probability=0.5)
    proxy.faults.add(fault)
    with connected(url, poll_interval=0, open_timeout=60) as connection:
        assert rows(connection, QUERY) == primary.rows(QUERY)
    assert 0 < proxy.faults.happened[fault] < len(proxy.requests)


@pytest.mark.plan("F04")
def test_a_fault_of_one_method_leaves_the_others_alone(url: str, primary: Primary, proxy: HTTPProxy):
    proxy.faults.add(HTTPFault(status=503, method="PUT"))
    check_rows(url, primary)
    client = S3ReplicaClient(url)
    try:
        with pytest.raises(TransientStorageError, match="SlowDown"):
            client.write(0, 3, 3, b"content", 1)
        assert [file.max_txid for file in client.list_files(0)] == [2]
    finally:
        client.close()
    assert [request.method for request in proxy.requests].count("PUT") >= 1


@pytest.mark.plan("F09")
def test_a_fault_of_some_paths_leaves_the_others_alone(url: str, primary: Primary, proxy: HTTPProxy):
    primary.run("UPDATE t SET text = 'new' WHERE id = 7")
    primary.upload()
    proxy.faults.add(HTTPFault(status=500, path="*/0000000000000003-0000000000000003.ltx", count=1))
    check_rows(url, primary)
    assert sorted(len([r for r in reads(proxy) if r.path == path]) for path in {r.path for r in reads(proxy)}) == [1, 2]


@pytest.mark.plan("F02", "F11")
def test_a_fault_whose_count_has_reached_zero_is_gone(url: str, primary: Primary, proxy: HTTPProxy):
    fault = HTTPFault(status=500, path=FILES, count=1)
    proxy.faults.add(fault)
    assert proxy.faults.active == [fault]
    check_rows(url, primary)
    assert proxy.faults.active == []
    assert proxy.faults.happened[fault] == 1
    before = len(reads(proxy))
    check_rows(url, primary)
    assert len(reads(proxy)) == before + 1


# --- how --------------------------------------------------------------------------------------------------------------


@pytest.mark.plan("F05")
def test_a_slow_server_is_waited_for_and_not_asked_twice(url: str, primary: Primary, proxy: HTTPProxy):
    with connected(url, poll_interval=0) as connection:
        fast = len(proxy.requests)
        assert rows(connection, QUERY) == primary.rows(QUERY)
    proxy.clear()
    proxy.faults.add(HTTPFault(delay_ms=60, jitter_ms=60))
    with connected(url, poll_interval=0) as connection:
        assert rows(connection, QUERY) == primary.rows(QUERY)
        assert status_of(connection)["retries"] == 0
    assert len(proxy.requests) == fast
    assert reads(proxy)[0].time - listings(proxy)[0].time >= 0.06


@pytest.mark.plan("F06")
@pytest.mark.parametrize("when", ["before", "body"])
def test_a_connection_that_breaks_is_made_again(
    when: Any, url: str, primary: Primary, proxy: HTTPProxy, s3_server: S3Server
):
    at_once = when == "before" and s3_server.kind == "minio"  # moto keeps no connection
    proxy.faults.add(HTTPFault(drop_connection=when, path=FILES, count=2))
    with connected(url, poll_interval=0) as connection:
        assert rows(connection, QUERY) == primary.rows(QUERY)
        # The listing has left a connection: dropped without a byte, it is replaced at once, without a pause.
        assert status_of(connection)["retries"] == (1 if at_once else 2)
    assert len(reads(proxy)) == 3


@pytest.mark.plan("F07", "L02")
@pytest.mark.parametrize("size", [0, 1, 500])
def test_a_body_that_ends_early_is_read_again(size: int, url: str, primary: Primary, proxy: HTTPProxy):
    proxy.faults.add(HTTPFault(truncate_body_bytes=size, path=FILES, count=1))
    check_rows(url, primary)
    assert len(reads(proxy)) == 2


@pytest.mark.plan("F07")
def test_a_listing_that_ends_early_hides_nothing(url: str, primary: Primary, proxy: HTTPProxy):
    proxy.faults.add(HTTPFault(truncate_body_bytes=150, path=f"/{TEST_BUCKET}*", count=3))
    check_rows(url, primary)


@pytest.mark.plan("F08", "L02")
def test_a_damaged_body_is_read_once_more(url: str, primary: Primary, proxy: HTTPProxy):
    proxy.faults.add(HTTPFault(corrupt_body=True, path=FILES, count=1))
    check_rows(url, primary)
    assert len(reads(proxy)) == 2


@pytest.mark.plan("F08")
def test_a_file_that_is_damaged_every_time_ends_in_an_error_that_names_it(url: str, proxy: HTTPProxy):
    proxy.faults.add(HTTPFault(corrupt_body=True, path=FILES))
    with pytest.raises(LTXFormatError, match="litevfs verify") as caught:
        litevfs.connect(url, open_timeout=0.2)
    assert (caught.value.level, caught.value.min_txid, caught.value.max_txid) == (0, 1, 2)
    assert len(reads(proxy)) >= 2


# --- the control ------------------------------------------------------------------------------------------------------


def control(proxy: HTTPProxy, method: str, value: Any = None) -> Any:
    data = None if value is None else json.dumps(value).encode()
    request = urllib.request.Request(f"{proxy.endpoint}/_test/inject-fault", data, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@pytest.mark.plan("F10")
def test_faults_are_set_shown_and_cleared_over_http(url: str, primary: Primary, proxy: HTTPProxy):
    control(proxy, "POST", {"status": 500, "path": FILES, "count": 1})
    control(proxy, "POST", [{"delay_ms": 1, "method": "GET"}, {"drop_connection": "before", "path": FILES}])
    assert proxy.faults.active == [
        HTTPFault(status=500, path=FILES, count=1),
        HTTPFault(delay_ms=1, method="GET"),
        HTTPFault(drop_connection="before", path=FILES),
    ]
    assert [fault["path"] for fault in control(proxy, "GET")] == [FILES, "*", FILES]
    assert control(proxy, "DELETE") == []
    check_rows(url, primary)
    assert len(reads(proxy)) == 1
    assert all(request.path != "/_test/inject-fault" for request in proxy.requests)


@pytest.mark.plan("F10")
@pytest.mark.parametrize(
    "value",
    [
        {},
        {"status": 200},
        {"status": 500, "when": "now"},
        {"status": 500, "probability": 2},
        {"status": 500, "count": -1},
        {"status": "500"},
        {"drop_connection": "after"},
        {"path": "*"},
        [{"status": 500}, 7],
    ],
)
def test_what_is_no_fault_is_refused_whole(value: Any, proxy: HTTPProxy):
    with pytest.raises(urllib.error.HTTPError) as caught:
        control(proxy, "POST", value)
    assert caught.value.code == 400
    assert "error" in json.load(caught.value)
    assert proxy.faults.active == []


@pytest.mark.plan("F03", "F11")
def test_the_same_seed_makes_the_same_faults():
    def course() -> list[bool]:
        faults = HTTPFaults(seed=3)
        faults.add(HTTPFault(status=500, probability=0.3, count=20))
        return [faults.take("GET", "/a") is not None for _ in range(100)]

    assert course() == course()
    assert sum(course()) == 20
