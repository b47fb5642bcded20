"""A replica that goes from storage to storage, and is the same at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from litevfs.operations.copy import copy_replica
from litevfs.replica_clients.base import LEVELS
from litevfs.replica_clients.urls import open_replica_client
from tests.replica_clients.stores import STORES, running_store

ORDERS = Path(__file__).parents[1] / "fixtures" / "orders" / "replica"


@pytest.fixture
def urls(tmp_path: Path) -> Iterator[list[str]]:
    """Empty replicas, one in each storage that has a server here; those whose server is missing are left out."""
    with ExitStack() as stack:
        found = []
        for scheme in STORES:
            work = tmp_path / scheme
            work.mkdir()
            if scheme == "http":  # read only
                continue
            try:
                store = stack.enter_context(running_store(scheme, work))
            except pytest.skip.Exception:
                continue
            replica = store.new_replica(store.address)
            if hasattr(replica, "http"):
                stack.callback(replica.http.clear)
            found.append(replica.url)
        yield found


def content_of(url: str) -> dict[tuple[int, str], bytes]:
    client = open_replica_client(url)
    try:
        return {(file.level, file.name): client.read(file) for level in LEVELS for file in client.list_files(level)}
    finally:
        client.close()


@pytest.mark.servers
def test_a_replica_copied_through_every_storage_is_the_same(urls: list[str], tmp_path: Path):
    source, expected = f"file://{ORDERS}", content_of(f"file://{ORDERS}")
    assert urls
    for url in [*urls, f"file://{tmp_path}/end"]:
        assert copy_replica(source, url).files == len(expected)
        assert copy_replica(source, url).skipped == len(expected)  # a second copy has nothing to do
        assert content_of(url) == expected
        source = url
