from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore, drop_memory_store, memory_store
from litevfs.testing.faulty import Faults, faulty_replica
from tests.primary import Primary


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A replica's storage of its own."""
    name = f"stress-{uuid.uuid4().hex[:12]}"
    yield memory_store(name)
    drop_memory_store(name)


@pytest.fixture
def url(store: MemoryStore) -> str:
    """The replica in `store`, read without any fault."""
    return f"memory://{store.name}"


MakePrimary = Callable[..., Primary]


@pytest.fixture
def make_primary(store: MemoryStore) -> Iterator[MakePrimary]:
    """Makes primaries that write to `store`."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Primary(MemoryReplicaClient(store), **options))


@pytest.fixture
def primary(make_primary: MakePrimary) -> Primary:
    return make_primary()


@pytest.fixture
def faults(url: str) -> Iterator[Faults]:
    """`faults.url` reads `store` as a local storage."""
    with faulty_replica(url, seed=20260101) as faults:
        yield faults


@pytest.fixture
def remote_faults(url: str) -> Iterator[Faults]:
    """`remote_faults.url` reads `store` as a storage at the other end of a network, in blocks of 64 KiB."""
    with faulty_replica(url, seed=20260102, block_size=1 << 16) as faults:
        yield faults
