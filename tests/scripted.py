"""Replicas whose storage a test can watch and disturb: `scripted://name`, a memory replica behind a `Script`.

The script counts every call by itself, past the counters of the code under test.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from typing import BinaryIO

from litevfs.ltx.names import format_file_name
from litevfs.replica_clients.base import LEVELS, LTXFileInfo
from litevfs.replica_clients.memory import MemoryReplicaClient, MemoryStore
from litevfs.replica_clients.urls import register_scheme

ALL_LEVELS = -1
"""What a listing of all levels counts as."""

_scripts: dict[str, Script] = {}


class Script:
    """One replica's storage; hooks may be set and cleared at any time."""

    def __init__(
        self, *, block_size: int = 0, lists_levels: bool = False, max_names: int = 1000, reads_named: bool = False
    ) -> None:
        """`lists_levels`: one listing holds all levels, and up to `max_names` files; `reads_named`: and files that were
        not listed can be read, if there is a `block_size`.
        """
        self.name = f"replica-{uuid.uuid4().hex[:12]}"
        self.url = f"scripted://{self.name}"
        self.block_size = block_size
        self.lists_levels, self.max_names, self.reads_named = lists_levels, max_names, reads_named
        self.store = MemoryStore(self.name)
        self.on_list: Callable[[int, list[LTXFileInfo]], list[LTXFileInfo]] | None = None
        self.on_read: Callable[[LTXFileInfo, int, bytes], bytes] | None = None
        self.on_name: Callable[[int, bool], bool] | None = None  # (TXID, is it there?) -> whether to say that it is
        self.names: list[int] = []  # TXIDs of the files that were read without being listed
        self.clients = 0
        self.lists: Counter[int] = Counter()  # by level; ALL_LEVELS
        self.list_times: list[float] = []  # monotonic, seconds; of level 0
        self.reads: list[tuple[str, int, int | None]] = []  # (key, offset, size)
        self._lock = threading.Lock()
        _scripts[self.name] = self

    @property
    def writer(self) -> MemoryReplicaClient:
        """A client of the same store that nothing disturbs and nothing counts."""
        return MemoryReplicaClient(self.store)

    def count_list(self, level: int) -> None:
        """One listing of a level."""
        with self._lock:
            self.lists[level] += 1
            if level in {0, ALL_LEVELS}:
                self.list_times.append(time.monotonic())

    def count_read(self, key: str, offset: int, size: int | None) -> None:
        """One read."""
        with self._lock:
            self.reads.append((key, offset, size))

    def clear(self) -> None:
        """Count from zero again."""
        with self._lock:
            self.lists.clear()
            self.list_times.clear()
            self.reads.clear()
            self.names.clear()

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        del _scripts[self.name]


class ScriptedClient:
    """The client of a `Script`."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._client = MemoryReplicaClient(script.store)
        self.block_size = script.block_size
        script.clients += 1

    @property
    def url(self) -> str:
        """`scripted://name`."""
        return self._script.url

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient`."""
        self._script.count_list(level)
        files = self._client.list_files(level, min_txid)
        return self._script.on_list(level, files) if self._script.on_list else files

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """See `ReplicaClient`."""
        self._script.count_read(self.key(file), offset, size)
        data = self._client.read(file, offset, size, timeout_s=timeout_s)
        return self._script.on_read(file, offset, data) if self._script.on_read else data

    def write(
        self,
        level: int,
        min_txid: int,
        max_txid: int,
        data: bytes | BinaryIO,
        timestamp_ms: int,
        *,
        exclusive: bool = False,
    ) -> LTXFileInfo:
        """See `ReplicaClient`."""
        return self._client.write(level, min_txid, max_txid, data, timestamp_ms, exclusive=exclusive)

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """See `ReplicaClient`."""
        self._client.delete(files)

    def key(self, file: LTXFileInfo) -> str:
        """See `ReplicaClient`."""
        return self._client.key(file)

    def close(self) -> None:
        """See `ReplicaClient`."""
        self._client.close()


class LevelsClient(ScriptedClient):
    """The client of a `Script` whose storage lists all levels at once."""

    def list_from(self, level: int, min_txid: int = 1) -> tuple[list[LTXFileInfo], bool]:
        """See `ListsLevels`."""
        self._script.count_list(ALL_LEVELS)
        files, _ = self._client.list_from(level, min_txid)
        if self._script.on_list:
            by_level = ((n, [file for file in files if file.level == n]) for n in LEVELS[level:])
            files = [file for n, found in by_level for file in self._script.on_list(n, found)]
        return files[: self._script.max_names], len(files) <= self._script.max_names


class NamesClient(LevelsClient):
    """The same, where files can be read that were not listed. Of them it knows the time to a second only."""

    def read_named(
        self, level: int, min_txid: int, max_txid: int, size: int, *, timeout_s: float | None = None
    ) -> tuple[LTXFileInfo, bytes] | None:
        """See `ReadsNamed`."""
        self._script.names.append(max_txid)
        stored = self._script.store.get(f"{level}/{format_file_name(min_txid, max_txid)}")
        says_so = self._script.on_name is None or self._script.on_name(max_txid, stored is not None)
        if stored is None or not says_so:
            return None
        modified_ms = stored.modified_ms // 1000 * 1000 + 1
        info = LTXFileInfo(level, min_txid, max_txid, len(stored.data), modified_ms, stored.etag)
        data = stored.data[:size]
        return info, self._script.on_read(info, 0, data) if self._script.on_read else data


def _open(url: str, *, read_timeout_s: float) -> ScriptedClient:
    script = _scripts[url.removeprefix("scripted://")]
    if script.reads_named:
        return NamesClient(script)
    return LevelsClient(script) if script.lists_levels else ScriptedClient(script)


register_scheme("scripted", _open)
