"""How long `restore` and `copy` go on with a storage that does not answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from litevfs.errors import OptionError, TransientStorageError
from litevfs.operations.copy import copy_replica
from litevfs.operations.restore import restore
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore


class AwayClient(MemoryReplicaClient):
    """A storage that is away; counts the calls."""

    block_size = 65536

    def __init__(self) -> None:
        super().__init__(MemoryStore("away"))
        self.calls = 0

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        self.calls += 1
        raise TransientStorageError("the storage is away")


def copy_to(client: AwayClient, source: Path, **options: Any) -> None:
    copy_replica(source, client, **options)


@pytest.mark.parametrize("operation", [restore, copy_to])
@pytest.mark.parametrize("no_time", [0, "0s", "0ms"])
def test_without_time_no_call_is_made_again(tmp_path: Path, operation, no_time: float | str) -> None:
    clients = AwayClient(), AwayClient()
    for client, limit in zip(clients, (no_time, "300ms"), strict=True):
        with pytest.raises(TransientStorageError, match="the storage is away"):
            operation(client, tmp_path / "new", read_timeout=limit)
    assert clients[0].calls < clients[1].calls


@pytest.mark.parametrize("operation", [restore, copy_to])
@pytest.mark.parametrize("bad", ["soon", -1, None])
def test_what_is_no_duration_is_refused_before_anything_is_read(tmp_path: Path, operation, bad) -> None:
    client = AwayClient()
    with pytest.raises(OptionError, match="not a duration"):
        operation(client, tmp_path / "new", read_timeout=bad)
    assert client.calls == 0
    assert list(tmp_path.iterdir()) == []
