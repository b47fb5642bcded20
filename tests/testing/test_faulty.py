from __future__ import annotations

import itertools
import threading
import time

import pytest

import litevfs
from litevfs.errors import (
    ReplicaURLError,
    StorageClosedError,
    StorageNotFoundError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore, drop_memory_store, memory_store
from litevfs.testing.client_conformance import ReplicaClientConformance
from litevfs.testing.faulty import Fault, Faults, FaultyReplicaClient, Request, faulty_replica
from litevfs.testing.faulty_objects import FaultyObjectsClient
from tests.primary import Primary
from tests.replica_clients.test_memory import MemoryReplica
from tests.support import connected, one, wait_until

_names = (f"faulty-{n}" for n in itertools.count(1))
CONTENT = bytes(range(256))


@pytest.fixture
def inner_url():
    name = next(_names)
    yield f"memory://{name}"
    drop_memory_store(name)


@pytest.fixture
def faults(inner_url):
    with faulty_replica(inner_url, seed=1) as faults:
        yield faults


@pytest.fixture
def client(faults: Faults):
    client = litevfs.open_replica_client(faults.url)
    yield client
    client.close()


class FaultyMemoryReplica(MemoryReplica):
    """Reached through a client that passes everything on."""

    def __init__(self, name: str, url: str) -> None:
        super().__init__(name)
        self.url = url

    def new_client(self) -> ReplicaClient:
        return litevfs.open_replica_client(self.url)


class TestFaultyReplicaClient(ReplicaClientConformance):
    @pytest.fixture
    def replica(self, faults: Faults):
        return FaultyMemoryReplica(faults.url.removeprefix("faulty+memory://"), faults.url)

    @pytest.fixture
    def hanging_client(self, faults: Faults, client: ReplicaClient):
        faults.add(Fault("hang", operations=("read",)))
        return client


def test_a_slow_answer_comes_if_there_is_time_for_it(faults: Faults, client: ReplicaClient):
    filled(client)
    (file, *_) = client.list_files(0)
    faults.add(Fault("slow", operations=("read",), delay_s=0.02))
    assert client.read(file, timeout_s=20) == CONTENT
    with pytest.raises(StorageTimeoutError):
        client.read(file, timeout_s=0.01)
    faults.clear()
    assert client.read(file, timeout_s=20) == CONTENT


def test_a_stuck_read_is_deaf_to_its_time_limit(faults: Faults, client: ReplicaClient):
    filled(client)
    (file, *_) = client.list_files(0)
    faults.add(Fault("stuck", operations=("read",)))
    errors: list[StorageTimeoutError] = []

    def call() -> None:
        with pytest.raises(StorageTimeoutError) as caught:
            client.read(file, timeout_s=0.01)
        errors.append(caught.value)

    thread = threading.Thread(target=call)
    thread.start()
    faults.wait_until_waiting()
    thread.join(0.1)
    assert thread.is_alive()
    faults.release()  # too late: there is no time left for the answer
    thread.join(10)
    assert len(errors) == 1


def filled(client: ReplicaClient, count: int = 3) -> None:
    for txid in range(1, count + 1):
        client.write(0, txid, txid, CONTENT, txid)


def txids(client: ReplicaClient, min_txid: int = 1) -> list[int]:
    return [file.max_txid for file in client.list_files(0, min_txid)]


def test_without_faults_it_answers_as_the_storage_does(faults: Faults, client: ReplicaClient, inner_url: str):
    filled(client)
    inner = litevfs.open_replica_client(inner_url)
    assert isinstance(client, FaultyReplicaClient)
    assert isinstance(client, ReplicaClient)
    assert client.url == f"faulty+{inner_url}"
    assert client.list_files(0, 2) == inner.list_files(0, 2)
    file = client.list_files(0)[0]
    assert client.read(file, 250, 100) == CONTENT[250:]
    assert client.key(file) == inner.key(file)
    client.delete([file])
    assert txids(client) == [2, 3]
    assert faults.calls == {"write": 3, "list": 3, "read": 1, "delete": 1}
    assert not faults.injected


def test_every_request_is_logged_with_its_place_and_time(faults: Faults, client: ReplicaClient):
    filled(client)
    faults.reset_counters()
    before = time.monotonic()
    file = client.list_files(0, 2)[0]
    client.read(file, 10, 20)
    listing, read = faults.requests
    assert (listing.operation, listing.level, listing.min_txid) == ("list", 0, 2)
    assert (read.operation, read.level, read.min_txid, read.offset, read.size) == ("read", 0, 2, 10, 20)
    assert before <= listing.time <= read.time <= time.monotonic()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("timeout", StorageTimeoutError),
        ("transient", TransientStorageError),
        ("permission", StoragePermissionError),
        ("not_found", StorageNotFoundError),
    ],
)
def test_an_error_happens_to_the_operations_it_is_for_and_until_it_is_removed(faults, client, kind, error):
    filled(client)
    file = client.list_files(0)[0]
    fault = Fault(kind, operations=("read",))
    faults.add(fault)
    for _ in range(3):
        with pytest.raises(error):
            client.read(file)
    assert txids(client) == [1, 2, 3]
    faults.remove(fault)
    assert client.read(file) == CONTENT
    assert faults.injected == {kind: 3}


def test_a_counted_fault_is_over_after_its_count(faults: Faults, client: ReplicaClient):
    faults.add(Fault("transient", count=2, retry_after_s=1.5))
    for _ in range(2):
        with pytest.raises(TransientStorageError) as caught:
            client.list_files(0)
        assert caught.value.retry_after_s == 1.5
    assert client.list_files(0) == []
    assert faults.injected == {"transient": 2}


def test_a_fault_of_one_level_leaves_the_others_alone(faults: Faults, client: ReplicaClient):
    faults.add(Fault("transient", levels=(1,)))
    assert client.list_files(0) == []
    with pytest.raises(TransientStorageError):
        client.list_files(1)


def outcomes(inner_url: str, seed: int) -> list[bool]:
    with faulty_replica(inner_url, seed=seed) as faults:
        client = litevfs.open_replica_client(faults.url)
        faults.add(Fault("transient", probability=0.3))
        failed = []
        for _ in range(300):
            try:
                client.list_files(0)
                failed.append(False)
            except TransientStorageError:
                failed.append(True)
        assert faults.injected["transient"] == sum(failed)
        client.close()
        return failed


def test_a_probability_is_kept_and_a_seed_repeats(inner_url: str):
    first = outcomes(inner_url, seed=5)
    assert 60 <= sum(first) <= 120
    assert outcomes(inner_url, seed=5) == first
    assert outcomes(inner_url, seed=6) != first


def test_partial_data_is_a_strict_prefix_and_corrupt_data_differs_in_one_bit(faults: Faults, client: ReplicaClient):
    filled(client)
    file = client.list_files(0)[0]
    partial = Fault("partial")
    faults.add(partial)
    for _ in range(50):
        data = client.read(file)
        assert len(data) < len(CONTENT)
        assert CONTENT.startswith(data)
    faults.remove(partial)
    faults.add(Fault("corrupt"))
    for _ in range(50):
        data = client.read(file)
        difference = int.from_bytes(data, "big") ^ int.from_bytes(CONTENT, "big")
        assert len(data) == len(CONTENT)
        assert difference.bit_count() == 1


def test_latency_delays_the_answer_and_a_close_ends_the_wait(faults: Faults, client: ReplicaClient):
    faults.add(Fault("slow", delay_s=0.05, jitter_s=0.05, count=1))
    before = time.monotonic()
    assert client.list_files(0) == []
    assert time.monotonic() - before >= 0.05
    faults.add(Fault("timeout", delay_s=60))
    assert_ends_with_closed_error(faults, client)


def assert_ends_with_closed_error(faults: Faults, client: ReplicaClient) -> None:
    caught: list[Exception] = []

    def call() -> None:
        try:
            client.list_files(0)
        except StorageClosedError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    faults.wait_until_waiting()
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(caught) == 1


def test_a_hanging_call_ends_with_the_close_of_its_client(faults: Faults, client: ReplicaClient):
    faults.add(Fault("hang"))
    assert_ends_with_closed_error(faults, client)


def test_a_stuck_call_is_deaf_to_close_and_ends_when_it_is_released(faults: Faults, client: ReplicaClient):
    faults.add(Fault("stuck"))
    ended = threading.Event()

    def call() -> None:
        with pytest.raises(StorageClosedError):
            client.list_files(0)
        ended.set()

    thread = threading.Thread(target=call)
    thread.start()
    faults.wait_until_waiting()
    client.close()
    assert not ended.wait(0.1)
    faults.release()
    thread.join(10)
    assert ended.is_set()


def test_a_released_call_gets_the_answer_it_should_have_had(faults: Faults, client: ReplicaClient):
    filled(client)
    faults.add(Fault("hang", count=1))
    answers: list[list[int]] = []
    thread = threading.Thread(target=lambda: answers.append(txids(client)))
    thread.start()
    faults.wait_until_waiting()
    faults.clear()
    thread.join(10)
    assert answers == [[1, 2, 3]]


def test_listings_hide_the_newest_files_for_a_while(faults: Faults, client: ReplicaClient):
    filled(client)
    faults.add(Fault("hide_newest", files=2, count=3))
    assert [txids(client), txids(client, 2), txids(client, 3)] == [[1], [], []]
    assert txids(client) == [1, 2, 3]


def test_listings_show_what_was_deleted(faults: Faults, client: ReplicaClient):
    filled(client)
    files = client.list_files(0)
    client.delete(files[:2])
    faults.add(Fault("show_deleted", count=1))
    assert client.list_files(0) == files
    assert txids(client) == [3]
    with pytest.raises(StorageNotFoundError):
        client.read(files[0])


def test_listings_repeat_the_one_before_until_they_tell_the_truth_again(faults: Faults, client: ReplicaClient):
    filled(client, 1)
    assert txids(client) == [1]
    client.write(0, 2, 2, CONTENT, 2)
    faults.add(Fault("repeat", count=2))
    assert [txids(client), txids(client), txids(client)] == [[1], [1], [1, 2]]


def test_a_local_store_can_be_made_to_look_remote(inner_url: str):
    with faulty_replica(inner_url, block_size=1 << 16) as faults:
        client = litevfs.open_replica_client(faults.url)
        assert client.block_size == 1 << 16
        client.close()
    inner = litevfs.open_replica_client(inner_url)
    assert inner.block_size == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "unheard_of"},
        {"kind": "timeout", "probability": 1.1},
        {"kind": "corrupt", "operations": ("list",)},
        {"kind": "repeat", "operations": ("read",)},
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(arguments: dict):
    with pytest.raises(ValueError, match=r"fault|probability|cannot"):
        Fault(**arguments)


def test_a_url_without_faults_is_refused_and_so_is_the_same_one_twice(inner_url: str):
    with faulty_replica(inner_url) as faults, pytest.raises(ReplicaURLError), faulty_replica(inner_url):
        pass
    with pytest.raises(ReplicaURLError):
        litevfs.open_replica_client(faults.url)


def test_connections_go_through_the_faults_and_every_client_is_closed(faults: Faults, inner_url: str):
    store = litevfs.open_replica_client(inner_url)
    with Primary(store) as primary:
        primary.commit("CREATE TABLE t AS SELECT 42 AS a")
        faults.add(Fault("transient", operations=("list",), count=3))
        with connected(faults.url, poll_interval=0) as connection:
            assert one(connection, "SELECT a FROM t") == 42
            assert faults.injected == {"transient": 3}
            assert faults.open_clients == 1
    wait_until(lambda: faults.open_clients == 0, "closing every client")
    assert memory_store(inner_url.removeprefix("memory://")).files


def test_a_write_may_be_done_although_its_answer_gets_lost(faults: Faults, client: ReplicaClient):
    faults.add(Fault("lost_answer", count=1))
    with pytest.raises(TransientStorageError):
        client.write(0, 1, 1, CONTENT, 1)
    assert txids(client) == [1]
    client.write(0, 2, 2, CONTENT, 2)
    assert txids(client) == [1, 2]


def test_a_client_with_a_defect_raises_what_no_client_may(faults: Faults, client: ReplicaClient):
    faults.add(Fault("defect", operations=("write",), levels=(1,), count=1, error=OSError("as it comes")))
    client.write(0, 1, 1, CONTENT, 1)
    with pytest.raises(OSError, match="as it comes"):
        client.write(1, 1, 1, CONTENT, 1)
    client.write(1, 1, 1, CONTENT, 1)


# --- faults of single files, and what happens beside a call -----------------------------------------------------------


def test_a_fault_of_some_txids_happens_to_their_files_only(faults: Faults, client: ReplicaClient):
    filled(client)
    first, second, third = client.list_files(0)
    faults.add(Fault("transient", operations=("read", "write"), txids=(2, 2)))
    for sound in (first, third):
        assert client.read(sound) == CONTENT
        client.write(0, sound.min_txid, sound.max_txid, CONTENT, 1)
    with pytest.raises(TransientStorageError):
        client.read(second)
    with pytest.raises(TransientStorageError):
        client.write(0, 2, 2, CONTENT, 1)
    client.write(1, 1, 2, CONTENT, 1)  # holds more than them
    assert [request.txids for request in faults.requests][-1] == (1, 2)


def test_files_are_hidden_from_listings_by_their_txids(faults: Faults, client: ReplicaClient):
    filled(client)
    faults.add(Fault("hide", txids=(1, 2), count=2))
    assert [txids(client), txids(client), txids(client)] == [[3], [3], [1, 2, 3]]
    with pytest.raises(ValueError, match="needs txids"):
        Fault("hide")


def test_something_happens_just_before_a_call_or_just_after_it(faults: Faults, client: ReplicaClient, inner_url: str):
    inner = litevfs.open_replica_client(inner_url)
    filled(client, 1)

    def write_next(request: Request) -> None:
        last = inner.list_files(0)[-1].max_txid
        inner.write(0, last + 1, last + 1, CONTENT, 1)

    before = Fault("act", operations=("list",), action=write_next)
    faults.add(before)
    assert txids(client) == [1, 2]
    faults.remove(before)
    faults.add(Fault("act_after", operations=("list",), action=write_next))
    assert txids(client) == [1, 2]
    assert len(inner.list_files(0)) == 3
    with pytest.raises(ValueError, match="needs an action"):
        Fault("act")


def test_what_an_action_raises_ends_the_call(faults: Faults, client: ReplicaClient):
    def refuse(request: Request) -> None:
        raise StoragePermissionError(f"no {request.operation}")

    faults.add(Fault("act", operations=("write",), action=refuse, count=1))
    with pytest.raises(StoragePermissionError, match="no write"):
        filled(client, 1)
    filled(client, 1)


def test_objects_beside_the_levels_are_passed_on():
    inner = MemoryReplicaClient(MemoryStore("objects"))
    client = FaultyObjectsClient(inner, Faults(inner.url))
    etag = client.put_object("lock.json", b"{}", if_absent=True)
    there = client.read_object("lock.json")
    assert there is not None
    assert (there.data, there.etag, client.keeps_conditions) == (b"{}", etag, inner.keeps_conditions)
    client.delete_object("lock.json")
    assert inner.read_object("lock.json") is None
    client.close()
    with pytest.raises(TypeError, match="keeps no objects"):
        FaultyObjectsClient(FaultyReplicaClient(inner, Faults(inner.url)), Faults(inner.url))
