"""The lease: one primary at a time has it, whatever the storage makes of conditions, and clocks are moved by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest

from litevfs.errors import ConditionsUnsupportedError, ReplicaConflictError, TransientStorageError
from litevfs.replica_clients.base import LTXFileInfo, SideObject
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from litevfs.replicate import Replicator
from litevfs.replicate.lease import Lease, LeaseRecord

START_MS = 1_800_000_000_000


class Ignoring(MemoryReplicaClient):
    """Takes conditions and does not keep them, as some servers do."""

    keeps_conditions = False

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        return super().put_object(name, data)


class Refusing(MemoryReplicaClient):
    """Says that it knows no conditions."""

    keeps_conditions = False

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        if if_absent or if_match:
            raise ConditionsUnsupportedError("none here")
        return super().put_object(name, data)


class Unquoting(MemoryReplicaClient):
    """Knows `if_absent` and never finds that `if_match` fits."""

    keeps_conditions = False

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        return super().put_object(name, data, if_match=if_match and "other", if_absent=if_absent)


class Honest(MemoryReplicaClient):
    """Keeps conditions, and does not say so."""

    keeps_conditions = False


CLIENTS = [MemoryReplicaClient, Honest, Ignoring, Refusing, Unquoting]


@dataclass
class Clock:
    now_ms: int = START_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture(params=CLIENTS, ids=lambda kind: kind.__name__)
def client(request: pytest.FixtureRequest):
    client = request.param(MemoryStore())
    yield client
    client.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease_of(client, clock) -> Callable[..., Lease]:
    def make(folder: str, to: MemoryReplicaClient = client) -> Lease:
        return Lease(to, to.url, folder, threading.Event(), clock, ttl_s=30.0, settle_s=0.02)

    return make


def stored(client: MemoryReplicaClient) -> dict[str, object]:
    there = client.read_object("lock.json")
    assert there is not None
    fields = json.loads(there.data)
    assert isinstance(fields, dict)
    return fields


def test_it_has_litestreams_form_and_two_fields_more(lease_of, client):
    assert lease_of("a").hold() is True
    fields = stored(client)
    assert set(fields) == {"generation", "expires_at", "owner", "folder", "run"}
    generation = 2 if isinstance(client, Unquoting) else 1  # found out by the first claim, and claimed again
    assert (fields["generation"], fields["folder"]) == (generation, "a")
    assert fields["expires_at"] == "2027-01-15T08:00:30.000Z"


def test_a_lease_that_litestream_made_is_understood():
    data = b'{"generation":7,"expires_at":"2027-01-15T08:00:00.123456789Z","owner":"host:12"}'
    assert LeaseRecord.unpack(data) == LeaseRecord(7, START_MS + 123, "host:12")
    released = LeaseRecord.unpack(b'{"generation":7,"expires_at":"0001-01-01T00:00:00Z"}')
    assert released.expires_at_ms < 0


def test_which_storages_keep_conditions_is_found_out(lease_of, client):
    lease = lease_of("a")
    lease.hold()
    lease.release()
    lease = lease_of("b")
    lease.hold()
    assert lease.is_strict is (type(client) in (MemoryReplicaClient, Honest))


def test_a_second_one_is_refused_until_the_first_has_given_it_back(lease_of, client):
    first, second = lease_of("a"), lease_of("b")
    first.hold()
    with pytest.raises(ReplicaConflictError, match=r"another primary has the lease.*until 2027-01-15T08:00:30.*hint: "):
        second.hold()
    first.release()
    assert second.hold() is True
    assert second.last_folder == "a"
    assert stored(client)["folder"] == "b"


def test_a_second_one_takes_over_when_it_has_expired_and_the_first_hears_of_it(lease_of, client, clock):
    first, second = lease_of("a"), lease_of("b")
    first.hold()
    clock.now_ms += 30_001
    assert second.hold() is True
    assert int(stored(client)["generation"]) >= 2
    first._renew_at = 0.0
    with pytest.raises(ReplicaConflictError):
        first.hold()
    assert not first.is_held
    first.release()  # what is not ours is not given back
    assert stored(client)["folder"] == "b"


def test_the_next_replicator_of_the_same_folder_takes_over_at_once(lease_of):
    lease_of("a").hold()
    lease = lease_of("a")
    assert lease.hold() is True
    assert lease.last_folder == "a"


def test_it_is_renewed_when_that_is_due_and_only_then(lease_of, client, clock):
    lease = lease_of("a")
    lease.hold()
    clock.now_ms += 10_000
    assert lease.hold() is False
    assert stored(client)["expires_at"] == "2027-01-15T08:00:30.000Z"
    lease._renew_at = 0.0
    assert lease.hold() is False
    assert stored(client)["expires_at"] == "2027-01-15T08:00:40.000Z"
    assert lease.renew_in_s > 10


def test_a_lease_that_expired_while_no_other_wanted_it_is_still_ours(lease_of, clock):
    lease = lease_of("a")
    lease.hold()
    clock.now_ms += 10 * 30_000
    lease._renew_at = 0.0
    assert lease.hold() is False
    assert lease.is_held


def test_a_lease_that_was_removed_is_made_again(lease_of, client):
    lease = lease_of("a")
    lease.hold()
    client.delete_object("lock.json")
    lease._renew_at = 0.0
    with pytest.raises((TransientStorageError, ReplicaConflictError), match="removed"):
        lease.hold()
    assert lease.hold() is True


def test_what_is_no_lease_is_not_replaced(lease_of, client):
    client.put_object("lock.json", b"<html>")
    with pytest.raises(ReplicaConflictError, match=r"not a lease.*--no-lease"):
        lease_of("a").hold()
    assert client.read_object("lock.json").data == b"<html>"


@pytest.mark.parametrize("count", [2, 5])
def test_of_several_at_the_same_moment_one_goes_on_believing(lease_of, count: int):
    for _ in range(10):
        leases = [lease_of(str(number)) for number in range(count)]
        barrier = threading.Barrier(count)

        def claim(lease: Lease, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            for _ in range(3):
                try:
                    return lease.hold()
                except (ReplicaConflictError, TransientStorageError):
                    pass
            return False

        with ThreadPoolExecutor(count) as pool:
            believing = [lease for lease, has in zip(leases, pool.map(claim, leases), strict=True) if has]
        still = [lease for lease in believing if believes(lease)]
        assert len(still) == 1
        still[0].release()


def believes(lease: Lease) -> bool:
    """What it says when it is asked once more, as each sync does."""
    lease._renew_at = 0.0
    try:
        lease.hold()
        lease.check()
    except ReplicaConflictError:
        return False
    return True


def test_an_answer_that_was_lost_costs_no_lease(clock):
    class Losing(MemoryReplicaClient):
        is_losing = False

        def put_object(self, *args: object, **options: object) -> str:
            etag = super().put_object(*args, **options)
            if self.is_losing:
                self.is_losing = False
                raise TransientStorageError("the connection broke")
            return etag

    client = Losing(MemoryStore())
    lease = Lease(client, client.url, "a", threading.Event(), clock)
    for is_first in (True, False):
        client.is_losing = True
        lease._renew_at = 0.0
        with pytest.raises(TransientStorageError):
            lease.hold()
        lease.hold()
        assert lease.is_held, is_first
    lease._renew_at = 0.0
    assert lease.hold() is False


def test_one_that_was_slow_to_claim_claims_again(clock):
    """Another may have taken its claim for gone by then."""

    class Slow(Ignoring):
        reads = 0

        def read_object(self, name: str) -> SideObject | None:
            self.reads += 1
            if self.reads == 1:
                threading.Event().wait(0.05)
            return super().read_object(name)

    client = Slow(MemoryStore())
    lease = Lease(client, client.url, "a", threading.Event(), clock, settle_s=0.02)
    assert lease.hold() is True
    assert (client.reads, stored(client)["generation"]) == (4, 2)


def test_requests_of_a_lease_are_few(clock):
    class Counting(MemoryReplicaClient):
        def __init__(self, store: MemoryStore) -> None:
            super().__init__(store)
            self.gets = self.puts = 0

        def read_object(self, name: str) -> SideObject | None:
            self.gets += 1
            return super().read_object(name)

        def put_object(self, *args: object, **options: object) -> str:
            self.puts += 1
            return super().put_object(*args, **options)

    client = Counting(MemoryStore())
    lease = Lease(client, client.url, "a", threading.Event(), clock)
    lease.hold()
    assert (client.gets, client.puts) == (1, 1)
    lease._renew_at = 0.0
    lease.hold()
    assert (client.gets, client.puts) == (1, 2)
    lease.release()
    assert (client.gets, client.puts) == (1, 3)


# --- with a replicator ------------------------------------------------------------------------------------------------


ONE_OF_EACH = pytest.mark.parametrize("client", [MemoryReplicaClient, Ignoring], indirect=True)
"""A storage that keeps conditions and one that does not: what a replicator makes of the lease is the same otherwise."""


@pytest.mark.slow
@ONE_OF_EACH
def test_a_second_replicator_gets_a_conflict_and_goes_on_when_the_first_is_closed(make_app, client):
    one, other = make_app("one.db"), make_app("other.db")
    with Replicator(other.path, client, new_history=True) as second:
        with Replicator(one.path, client) as first:
            first.sync()
            assert first.status.has_lease
            with pytest.raises(ReplicaConflictError, match="another primary has the lease"):
                second.sync()
        assert second.sync() == 2
        assert second.status.has_lease
    assert [file.max_txid for file in client.list_files(0)] == [1, 2]


@pytest.mark.slow
@ONE_OF_EACH
def test_a_replicator_that_lost_its_lease_hears_of_it_by_its_next_sync(make_app, client):
    one, other = make_app("one.db"), make_app("other.db")
    with Replicator(one.path, client) as first, Replicator(other.path, client, new_history=True) as second:
        first.sync()
        second.places[0].guard.lease._clock_ms = lambda: 4_000_000_000_000
        assert second.sync() == 2
        for _ in range(2):
            one.insert()
            with pytest.raises(ReplicaConflictError):
                first.sync()
        assert [file.max_txid for file in client.list_files(0)] == [1, 2]


def test_what_another_replaced_on_a_storage_that_lets_it_is_told_by_the_next_sync(make_app):
    app = make_app()
    client = Ignoring(MemoryStore())
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        client.write(0, 1, 1, b"of another", 1)
        with pytest.raises(ReplicaConflictError, match="another replaced TXID 0000000000000001"):
            replicator.sync()
    client.close()


@pytest.mark.parametrize("behind", [1, 3])
def test_what_a_program_without_a_lease_replaced_is_told_though_the_storage_keeps_conditions(
    make_app, monkeypatch, behind
):
    """Litestream asks for no lease and sets no condition: beside litevfs on one replica, it replaces what it can."""
    monkeypatch.setattr("litevfs.replicate.guard._FIRST_PAUSE_S", 0.0)
    app = make_app()
    client = MemoryReplicaClient(MemoryStore())
    with Replicator(app.path, client) as replicator:
        for _ in range(4):
            app.insert()
            replicator.sync()
        files = client.list_files(0)
        client.write(0, 4 - behind, 4 - behind, b"of another", 1)
        for _ in range(2):
            app.insert()
            with pytest.raises(ReplicaConflictError, match=f"another replaced TXID {4 - behind:016x}.*hint: let one"):
                replicator.sync()
        assert [file.max_txid for file in client.list_files(0)] == [1, 2, 3, 4]
    assert len(files) == 4
    with Replicator(app.path, client, new_history=True) as replicator:  # started again, it goes on with all of it
        replicator.sync()
    client.close()


@pytest.mark.parametrize("has_etags", [True, False])
def test_uploads_are_looked_at_again_seldom_and_may_be_compacted_away(make_app, has_etags):
    """Where there are no etags, they are read once, as listings show other times than writes do."""

    def shown(file: LTXFileInfo) -> LTXFileInfo:
        return file if has_etags else replace(file, etag="")

    class Counting(MemoryReplicaClient):
        """Its listings show other times than writes do, as those of S3 servers."""

        lists = reads = 0

        def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
            self.lists += 1
            files = super().list_files(level, min_txid)
            return [shown(replace(file, modified_ms=file.modified_ms + 7)) for file in files]

        def write(self, *args: object, **kwargs: object) -> LTXFileInfo:
            return shown(super().write(*args, **kwargs))

        def read(self, file: LTXFileInfo, offset: int, size: int) -> bytes:
            self.reads += 1
            return super().read(file, offset, size)

    app = make_app()
    client = Counting(MemoryStore())
    with Replicator(app.path, client) as replicator:
        replicator.sync()
        before = client.lists
        for _ in range(5):  # within the first pause
            app.insert()
            replicator.sync()
        assert client.lists == before
        guard = replicator.places[0].guard
        for deleted, read in ((0, 0 if has_etags else 6), (3, 0 if has_etags else 2)):
            client.delete(client.list_files(0)[:deleted])
            lists, reads = client.lists, client.reads
            app.insert()
            guard._check_at = 0.0
            replicator.sync()
            app.insert()
            replicator.sync()
            assert (client.lists, client.reads) == (lists + 1, reads + read), deleted
    client.close()


# --- answers that are damaged on their way ----------------------------------------------------------------------------


class Garbling(MemoryReplicaClient):
    """Garbles some answers: `change` gets the data of each object that is read, and may return other data."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.change = lambda data: data

    def read_object(self, name: str) -> SideObject | None:
        there = super().read_object(name)
        return there and SideObject(self.change(there.data), there.etag)


def once(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    left = [change]
    return lambda data: left.pop()(data) if left else data


@pytest.mark.parametrize("change", [lambda data: data.replace(b'"20', b'"10'), lambda data: data[:-3]])
def test_a_lease_that_is_read_wrong_once_is_not_taken_from_its_owner(clock, change):
    store = MemoryStore()
    Lease(MemoryReplicaClient(store), "memory://a", "a", threading.Event(), clock).hold()
    client = Garbling(store)
    client.change = once(change)
    with pytest.raises(ReplicaConflictError, match="another primary has the lease"):
        Lease(client, client.url, "b", threading.Event(), clock).hold()
    assert stored(client)["folder"] == "a"


class IgnoringAndGarbling(Garbling, Ignoring):
    """And its storage keeps no conditions."""


@pytest.mark.parametrize("change", [lambda data: data.replace(b'"run": "', b'"run": "0'), lambda data: data[:-3]])
def test_an_owner_that_reads_its_lease_wrong_once_goes_on(clock, change):
    client = IgnoringAndGarbling(MemoryStore())
    lease = Lease(client, client.url, "a", threading.Event(), clock, settle_s=0.01)
    lease.hold()
    client.change = once(change)
    lease.check()
    assert lease.is_held
