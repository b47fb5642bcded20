"""Faults (F) against every client and its real server: errors of the right kind, whole files, right rows, no hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from litevfs.errors import StorageClosedError, StorageError, StorageTimeoutError, TransientStorageError
from litevfs.replica_clients.base import LEVELS, ReplicaClient
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from litevfs.testing.conformance_base import TIMESTAMP_MS, ReplicaUnderTest, file_name
from litevfs.testing.http_faults import HTTPFault
from litevfs.testing.s3_proxy import HTTPProxy
from tests.primary import Primary
from tests.replica_clients.store_faults import (
    CUT_BYTES,
    DATA,
    PASSING_FAULTS,
    READ_FAULTS,
    clear,
    hang,
    inject,
    pass_faults,
)
from tests.replica_clients.stores import Proxy
from tests.support import connected, rows, txid_of, wait_until

pytestmark = pytest.mark.servers

QUERY = "SELECT id, name, hex(data) FROM t ORDER BY name"
NAME = file_name(1, 1)


@pytest.fixture
def written(replica: ReplicaUnderTest) -> ReplicaUnderTest:
    if replica.url.startswith("http"):
        pytest.skip("a web server's replica is read only")
    return replica


def meets(proxy: Proxy, name: str, call: Callable[[], object]) -> BaseException:
    """The error of a call that meets the fault of this name; the storage is sound again after it."""
    if not isinstance(proxy, HTTPProxy) and name not in CUT_BYTES:
        pytest.skip("a fault of HTTP")
    inject(proxy, name)
    try:
        with pytest.raises(StorageError) as caught:
            call()
    finally:
        clear(proxy)
    return caught.value


@pytest.mark.plan("F01", "F06", "F07")
@pytest.mark.parametrize("name", READ_FAULTS)
def test_a_read_tells_faults_by_their_kind_and_the_next_is_right(
    name: str, proxy: Proxy, replica: ReplicaUnderTest, client: ReplicaClient
):
    fault, kind = READ_FAULTS[name]
    replica.put(0, NAME, DATA)
    (file,) = client.list_files(0)
    assert client.read(file, 1, 400_000) == DATA[1:400_001]
    error = meets(proxy, name, lambda: client.read(file, 1, 400_000, timeout_s=20.0))
    assert type(error) is kind
    assert NAME in str(error)
    if fault.retry_after_s is not None:
        assert isinstance(error, TransientStorageError)
        assert error.retry_after_s == fault.retry_after_s
    assert client.read(file, 1, 400_000) == DATA[1:400_001]


@pytest.mark.plan("F01", "F06")
@pytest.mark.parametrize("name", ["500", "503", "drop"])
def test_a_listing_that_fails_is_transient_and_the_next_is_whole(
    name: str, proxy: Proxy, replica: ReplicaUnderTest, client: ReplicaClient
):
    replica.put(0, NAME, b"content")
    (file,) = client.list_files(0)
    error = meets(proxy, name, lambda: client.list_files(0))
    assert type(error) is TransientStorageError
    assert client.list_files(0) == [file]


@pytest.mark.plan("F01", "F06")
@pytest.mark.parametrize("name", ["503", "drop"])
def test_a_write_that_fails_leaves_a_whole_file(
    name: str, proxy: Proxy, written: ReplicaUnderTest, client: ReplicaClient
):
    client.write(0, 1, 1, b"before", TIMESTAMP_MS)
    error = meets(proxy, name, lambda: client.write(0, 1, 1, DATA, TIMESTAMP_MS))
    assert type(error) is TransientStorageError
    assert NAME in str(error)
    assert written.get(0, NAME) in (b"before", DATA)
    assert len(client.list_files(0)) == 1
    client.write(0, 1, 1, b"at last", TIMESTAMP_MS)
    assert written.get(0, NAME) == b"at last"
    assert written.names(0) == {NAME}


@pytest.mark.plan("F06")
def test_an_upload_that_breaks_off_leaves_what_was_there(
    proxy: Proxy, written: ReplicaUnderTest, client: ReplicaClient
):
    if isinstance(proxy, HTTPProxy):
        pytest.skip("a request that breaks off: `test_failed_upload_leaves_nothing` of the conformance suite")
    client.write(0, 1, 1, b"before", TIMESTAMP_MS)
    proxy.cut_after(200_000)
    with pytest.raises(TransientStorageError):
        client.write(0, 1, 1, 4 * DATA, TIMESTAMP_MS)
    assert written.get(0, NAME) == b"before"
    assert [file.size for file in client.list_files(0)] == [6]


@pytest.mark.plan("F01", "F06")
@pytest.mark.parametrize("name", ["503", "drop"])
def test_a_delete_that_fails_is_transient_and_the_next_deletes(
    name: str, proxy: Proxy, written: ReplicaUnderTest, client: ReplicaClient
):
    written.put(0, NAME, b"content")
    files = client.list_files(0)
    error = meets(proxy, name, lambda: client.delete(files))
    assert type(error) is TransientStorageError
    client.delete(files)
    assert written.names(0) == set()


@pytest.mark.plan("F05")
def test_a_read_of_a_server_that_hangs_ends_by_its_time_limit(
    proxy: Proxy, replica: ReplicaUnderTest, client: ReplicaClient
):
    replica.put(0, NAME, DATA)
    (file,) = client.list_files(0)
    assert client.read(file, 0, 5, timeout_s=20.0) == DATA[:5]
    hang(proxy)
    began = time.monotonic()
    with pytest.raises(StorageTimeoutError, match=NAME):
        client.read(file, timeout_s=0.3)
    assert time.monotonic() - began < 20


@pytest.mark.plan("F05", "L11")
def test_closing_ends_a_read_within_a_second(proxy: Proxy, replica: ReplicaUnderTest):
    replica.put(0, NAME, DATA)
    assert min(closed_under_a_read(proxy, replica) for _ in range(3)) < 1  # load only adds to it


def closed_under_a_read(proxy: Proxy, replica: ReplicaUnderTest) -> float:
    """How long closing takes, seconds, while a read waits for a server that hangs."""
    client = replica.new_client()
    (file,) = client.list_files(0)
    assert client.read(file, 0, 5) == DATA[:5]
    hang(proxy)
    raised: list[StorageError] = []

    def read() -> None:
        try:
            client.read(file)
        except StorageError as error:
            raised.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    began = time.monotonic()
    client.close()
    thread.join(20)
    took = time.monotonic() - began
    assert [type(error) for error in raised] == [StorageClosedError]
    clear(proxy)
    return took


# --- a whole reader ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source() -> Iterator[Primary]:
    """Files of several levels, one of which takes many reads."""
    client = MemoryReplicaClient(MemoryStore("faults"))
    with Primary(client) as primary:
        primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, data BLOB)")
        primary.commit("CREATE INDEX t_name ON t(name)")
        numbers = "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 600) "
        primary.commit(f"{numbers} INSERT INTO t SELECT n, hex(randomblob(8)), randomblob(1000) FROM s")
        primary.compact(9, 1, 3)
        primary.delete(0)
        for number in range(5):
            primary.commit("UPDATE t SET data = randomblob(900) WHERE id % 5 = ?", (number,))
        yield primary
    client.close()


@pytest.fixture
def filled(source: Primary, replica: ReplicaUnderTest) -> ReplicaUnderTest:
    for level in LEVELS:
        for file in source.client.list_files(level):
            replica.put(level, file.name, source.client.read(file))
    return replica


@pytest.mark.plan("F02", "F03", "F05", "F06", "F07", "F08", "F11")
@pytest.mark.parametrize("name", PASSING_FAULTS)
def test_a_reader_gets_over_faults_that_pass(name: str, proxy: Proxy, filled: ReplicaUnderTest, source: Primary):
    for seed in range(2):
        happened = pass_faults(proxy, name, seed)
        with connected(filled.url, poll_interval=0) as connection:
            assert rows(connection, QUERY) == source.rows(QUERY)
        assert happened()
        clear(proxy)


@pytest.mark.plan("F01", "L10")
def test_a_reader_that_polls_goes_on_after_an_outage(proxy: Proxy, filled: ReplicaUnderTest, source: Primary):
    with connected(filled.url, poll_interval="50ms", read_timeout="30s") as connection:
        assert rows(connection, QUERY) == source.rows(QUERY)
        for _ in range(3):
            if isinstance(proxy, HTTPProxy):
                proxy.faults.add(HTTPFault(status=503), HTTPFault(drop_connection="before"))
            else:
                proxy.drop()
            txid = source.commit("UPDATE t SET data = randomblob(900) WHERE id % 7 = abs(random()) % 7")
            filled.put(0, file_name(txid, txid), source.file_bytes(txid, txid))
            clear(proxy)
            wait_until(lambda txid=txid: txid_of(connection) == txid, "the new transaction", 30.0)
            assert rows(connection, QUERY) == source.rows(QUERY)
