from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from litevfs.replica_clients.memory import MemoryReplicaClient, drop_memory_store, memory_store
from litevfs.testing.client_conformance import ReplicaClientConformance


class MemoryReplica:
    def __init__(self, name: str) -> None:
        self.store = memory_store(name)

    def new_client(self) -> MemoryReplicaClient:
        return MemoryReplicaClient(self.store)

    def put(self, level: int, name: str, data: bytes) -> None:
        self.store.put(f"{level}/{name}", data, 1)

    def get(self, level: int, name: str) -> bytes | None:
        stored = self.store.files.get(f"{level}/{name}")
        return stored.data if stored else None

    def names(self, level: int) -> set[str]:
        return {key.partition("/")[2] for key in self.store.files if key.startswith(f"{level}/")}

    def timestamp_ms(self, level: int, name: str) -> int:
        return self.store.files[f"{level}/{name}"].modified_ms


class TestMemoryReplicaClient(ReplicaClientConformance):
    @pytest.fixture
    def replica(self) -> Iterator[MemoryReplica]:
        name = f"test {uuid.uuid4()}/with % and #"
        yield MemoryReplica(name)
        drop_memory_store(name)


def test_clients_of_a_name_share_its_store_until_it_is_dropped():
    first = memory_store("shared-by-name")
    try:
        assert memory_store("shared-by-name") is first
        drop_memory_store("shared-by-name")
        assert memory_store("shared-by-name") is not first
    finally:
        drop_memory_store("shared-by-name")
