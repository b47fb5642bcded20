"""The conformance suite itself: clients that break a promise fail it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from litevfs.errors import StorageNotFoundError, TransientStorageError
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from litevfs.testing.conformance_writing import WritingConformance


class DeletesFirst(MemoryReplicaClient):
    """For a moment, in which a reader comes, a file that is replaced is not there."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.listed = threading.Event()

    def list_files(self, *args: Any, **options: Any) -> Any:
        files = super().list_files(*args, **options)
        self.listed.set()
        return files

    def write(self, level: int, min_txid: int, max_txid: int, *args: Any, **options: Any) -> Any:
        if replaced := [file for file in self.list_files(level) if file.min_txid == min_txid]:
            self.delete(replaced)
            self.listed.clear()
            self.listed.wait(20)
        return super().write(level, min_txid, max_txid, *args, **options)


class SaysGone(MemoryReplicaClient):
    """A file that was not replaced cannot be found."""

    def read(self, *args: Any, **options: Any) -> bytes:
        raise StorageNotFoundError("gone")


class NeverAnswers(MemoryReplicaClient):
    """Each read fails with what may pass."""

    def read(self, *args: Any, **options: Any) -> bytes:
        raise TransientStorageError("busy")


class MixesVersions(MemoryReplicaClient):
    """A read in two parts, the second of what is there by then."""

    def read(self, file: Any, *args: Any, **options: Any) -> bytes:
        first = super().read(file, 0, 25_000)
        (now,) = self.list_files(file.level)
        return first + super().read(now, 25_000)


class GoesBack(MemoryReplicaClient):
    """Every other answer is an old one."""

    def read(self, file: Any, *args: Any, **options: Any) -> bytes:
        content = super().read(file)
        self.last, content = content, getattr(self, "last", content)
        return content


@pytest.mark.parametrize("kind", [DeletesFirst, SaysGone, NeverAnswers, MixesVersions, GoesBack])
def test_a_client_that_breaks_reads_while_a_file_is_replaced_fails(kind: type[MemoryReplicaClient]) -> None:
    suite: Any = WritingConformance()
    failed = False
    for number in range(20):  # a race, which not every run meets
        client = kind(MemoryStore(f"conformance-{number}"))
        try:
            suite.test_concurrent_reads_see_one_version_while_a_file_is_replaced(client, None)
        except (AssertionError, TransientStorageError):
            failed = True
            break
        finally:
            client.close()
    assert failed
