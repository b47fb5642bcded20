"""A replica in memory."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from litevfs.replica_clients.memory import drop_memory_store, memory_store
from tests.primary import Primary
from tests.support import primary_at


@pytest.fixture
def url() -> Iterator[str]:
    """An empty one."""
    name = f"operations-{uuid.uuid4().hex[:12]}"
    memory_store(name)
    yield f"memory://{name}"
    drop_memory_store(name)


@pytest.fixture
def primary(url: str) -> Iterator[Primary]:
    """What writes to it."""
    with primary_at(url) as primary:
        yield primary
