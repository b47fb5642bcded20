"""The objects that the conformance suite of replica clients tests, and helpers of its tests. Holds no tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient

TIMESTAMP_MS = 1_767_323_045_678  # 2026-01-02T03:04:05.678Z
WAIT_S = 30.0


class ReplicaUnderTest(Protocol):
    """An empty replica, its clients, and a way to its storage that shares no code with them."""

    def new_client(self) -> ReplicaClient:
        """One more client of the replica."""
        ...

    def put(self, level: int, name: str, data: bytes) -> None:
        """Store `data` in the folder of `level`, under any name."""
        ...

    def get(self, level: int, name: str) -> bytes | None:
        """The content of that file, or None."""
        ...

    def names(self, level: int) -> set[str]:
        """Every name in the folder of `level`."""
        ...

    def timestamp_ms(self, level: int, name: str) -> int:
        """The time a file was written with, if the storage keeps it (mtime, metadata)."""
        ...


@contextmanager
def silent_endpoint() -> Iterator[str]:
    """`host:port` of a server on the loopback interface that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def file_name(min_txid: int, max_txid: int) -> str:
    """The name of a file, made here and not by the code under test."""
    return f"{min_txid:016x}-{max_txid:016x}.ltx"


def txids_of(files: list[LTXFileInfo]) -> list[tuple[int, int]]:
    """(min_txid, max_txid) of each file."""
    return [(file.min_txid, file.max_txid) for file in files]


def list_and_read(client: ReplicaClient) -> list[bytes]:
    """The content of every file of level 0."""
    return [client.read(file) for file in client.list_files(0)]
