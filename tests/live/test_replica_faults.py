"""Opening, travelling and reading when the storage fails once, and later does not."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

import litevfs
from litevfs.errors import LTXFormatError, StorageNotFoundError
from litevfs.replica_clients.memory import MemoryReplicaClient, drop_memory_store, memory_store
from litevfs.testing.faulty import Fault, faulty_replica
from tests.live.ledger import LEDGER, next_version, start_ledger
from tests.primary import Primary
from tests.support import connected, rows, txid_of

# --- one failure that passes ------------------------------------------------------------------------------------------


@pytest.fixture
def faulty():
    name = f"replica-{uuid.uuid4().hex[:12]}"
    with Primary(MemoryReplicaClient(memory_store(name))) as primary, faulty_replica(f"memory://{name}") as faults:
        start_ledger(primary)
        for _ in range(3):
            next_version(primary)
        yield primary, faults
    drop_memory_store(name)


NO_LIST = Fault("transient", operations=("list",), count=1)
NO_FILES = Fault("not_found", operations=("read",), count=3)


@pytest.mark.parametrize("fault", [NO_LIST, NO_FILES], ids=["a listing fails", "files vanish"])
@pytest.mark.parametrize("options", [{"txid": 2}, {"poll_interval": 0}], ids=["fixed", "live"])
def test_opening_outlasts_what_passes(faulty, fault, options):
    primary, faults = faulty
    faults.add(replace(fault))
    with connected(faults.url, **options) as con:
        assert rows(con, LEDGER) == primary.rows(LEDGER, txid_of(con))
    assert faults.injected[fault.kind]


@pytest.mark.parametrize("fault", [NO_LIST, NO_FILES], ids=["a listing fails", "files vanish"])
def test_time_travel_outlasts_what_passes(faulty, fault):
    _, faults = faulty
    with connected(faults.url, poll_interval=0) as con:
        faults.add(replace(fault))
        con.execute("PRAGMA litestream_time = '2026-01-01T00:00:02Z'")
        assert faults.injected[fault.kind]
        assert txid_of(con) == 2


def test_a_read_whose_page_has_moved_outlasts_a_listing_that_fails(faulty):
    primary, faults = faulty
    with connected(faults.url, poll_interval=0, cache_size=0) as con:
        primary.compact(1, 1, 4)
        primary.delete(0)
        faults.add(replace(NO_LIST))
        assert rows(con, LEDGER) == primary.rows(LEDGER)
        assert faults.injected["transient"]


def test_a_storage_that_does_not_exist_is_told_at_once(faulty, tmp_path):
    """As a bucket. A folder is waited for, but not for a state of the past."""
    _, faults = faulty
    faults.add(Fault("not_found", operations=("list",)))
    for url, options in ((faults.url, {}), (faults.url, {"txid": 1}), (tmp_path / "none", {"txid": 1})):
        with pytest.raises(StorageNotFoundError):
            litevfs.connect(url, open_timeout="1h", **options)


@pytest.mark.parametrize("kind", ["permission", "not_found", "transient"])
def test_a_further_connection_opens_at_the_state_at_hand_when_its_own_refresh_fails(faulty, kind):
    primary, faults = faulty
    with connected(faults.url, poll_interval=0) as first:
        faults.add(Fault(kind, operations=("list",)))
        with connected(faults.url, poll_interval=0) as second:
            assert rows(second, LEDGER) == rows(first, LEDGER) == primary.rows(LEDGER)
        assert faults.injected[kind]


def test_a_damaged_newest_file_keeps_only_the_first_from_opening(faulty):
    primary, faults = faulty
    with connected(faults.url, poll_interval=0) as first:
        primary.client.write(0, 5, 5, b"", 0)
        with connected(faults.url, poll_interval=0) as second:
            assert rows(second, LEDGER) == rows(first, LEDGER) == primary.rows(LEDGER)
    with pytest.raises(LTXFormatError):
        litevfs.connect(faults.url)
