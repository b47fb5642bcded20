"""Replicas in this process's memory, for tests and examples. Owns the store and its client; touches no disk."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote

from litevfs.errors import StorageClosedError, StorageFileExistsError, StorageNotFoundError, StoragePreconditionError
from litevfs.ltx.names import format_file_name, parse_file_name
from litevfs.replica_clients.base import LEVELS, LTXFileInfo, SideObject, too_late

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One object of a `MemoryStore`."""

    data: bytes
    modified_ms: int  # milliseconds since the Unix epoch
    etag: str


class MemoryStore:
    """A folder of objects: `files` maps a key, `<level in decimal>/<name>`, to its content.

    Each method is atomic, from many threads at once. Tests may read `files`; change it by `put` and `remove`.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.files: dict[str, StoredFile] = {}
        self.objects: dict[str, SideObject] = {}  # beside the levels, by name
        self._lock = threading.Lock()
        self._versions = itertools.count(1)

    def put(self, key: str, data: bytes, modified_ms: int) -> StoredFile:
        """Store `data` under `key`, replacing an older value."""
        with self._lock:
            return self._put(key, data, modified_ms)

    def put_new(self, key: str, data: bytes, modified_ms: int) -> StoredFile | None:
        """Store `data` under `key`, or return None and change nothing if the key exists."""
        with self._lock:
            return None if key in self.files else self._put(key, data, modified_ms)

    def _put(self, key: str, data: bytes, modified_ms: int) -> StoredFile:
        stored = self.files[key] = StoredFile(bytes(data), modified_ms, f"v{next(self._versions)}")
        return stored

    def get(self, key: str) -> StoredFile | None:
        """The file under `key`, or None."""
        with self._lock:
            return self.files.get(key)

    def remove(self, key: str) -> None:
        """Remove `key`; nothing happens when it does not exist."""
        with self._lock:
            self.files.pop(key, None)

    def put_object(self, name: str, data: bytes, *, if_match: str | None, if_absent: bool) -> str | None:
        """Store an object beside the levels; its etag, or None where a condition forbids it."""
        with self._lock:
            there = self.objects.get(name)
            if (if_absent and there is not None) or (
                if_match is not None and (there is None or there.etag != if_match)
            ):
                return None
            stored = self.objects[name] = SideObject(bytes(data), f"v{next(self._versions)}")
            return stored.etag

    def remove_object(self, name: str) -> None:
        """Remove an object beside the levels; nothing happens when it does not exist."""
        with self._lock:
            self.objects.pop(name, None)

    def items(self) -> list[tuple[str, StoredFile]]:
        """All keys and contents as they are now, in no order."""
        with self._lock:
            return list(self.files.items())


_named: dict[str, MemoryStore] = {}
_named_lock = threading.Lock()


def memory_store(name: str) -> MemoryStore:
    """The store of this process called `name`, made at its first use and shared by every client of `memory://name`."""
    with _named_lock:
        return _named.setdefault(name, MemoryStore(name))


def drop_memory_store(name: str) -> None:
    """Forget the store called `name`: clients that have it keep it, the next `memory_store(name)` is a new one."""
    with _named_lock:
        _named.pop(name, None)


class MemoryReplicaClient:
    """A replica in a `MemoryStore`. The `modified_ms` of a file is the timestamp it was written with."""

    block_size = 0
    keeps_conditions = True

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        """`memory://<name of the store>`."""
        return f"memory://{quote(self._store.name)}"

    @property
    def store(self) -> MemoryStore:
        """The store this client reads and writes."""
        return self._store

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`."""
        self._check_open()
        found = []
        for key, stored in self._store.items():
            folder, _, name = key.partition("/")
            txids = parse_file_name(name) if folder == str(level) else None
            if txids is not None and txids[0] >= min_txid:
                found.append(LTXFileInfo(level, *txids, len(stored.data), stored.modified_ms, stored.etag))
        return sorted(found, key=lambda file: (file.min_txid, file.max_txid))

    def list_from(self, level: int, min_txid: int = 1) -> tuple[list[LTXFileInfo], bool]:
        """See `ListsLevels.list_from`."""
        files = self.list_files(level, min_txid)
        return [*files, *(file for above in LEVELS[level + 1 :] for file in self.list_files(above))], True

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """See `ReplicaClient.read`."""
        self._check_open()
        if timeout_s is not None and timeout_s <= 0:
            raise too_late(file, self.key(file))
        stored = self._store.get(self.key(file))
        if stored is None:
            raise _not_found("no such file", file, self.key(file))
        if file.etag and file.etag != stored.etag:
            raise _not_found("the file was replaced since it was listed", file, self.key(file))
        return stored.data[offset:] if size is None else stored.data[offset : offset + size]

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
        """See `ReplicaClient.write`."""
        self._check_open()
        content = data if isinstance(data, bytes) else b"".join(iter(lambda: data.read(_CHUNK_BYTES), b""))
        self._check_open()
        key = f"{level}/{format_file_name(min_txid, max_txid)}"
        put = self._store.put_new if exclusive else self._store.put
        stored = put(key, content, timestamp_ms)
        if stored is None:
            raise StorageFileExistsError("the file exists", level=level, min_txid=min_txid, max_txid=max_txid, key=key)
        return LTXFileInfo(level, min_txid, max_txid, len(stored.data), stored.modified_ms, stored.etag)

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """See `ReplicaClient.delete`."""
        self._check_open()
        for file in files:
            self._store.remove(self.key(file))

    def read_object(self, name: str) -> SideObject | None:
        """See `SideObjects.read_object`."""
        self._check_open()
        return self._store.objects.get(name)

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `SideObjects.put_object`."""
        self._check_open()
        etag = self._store.put_object(name, data, if_match=if_match, if_absent=if_absent)
        if etag is None:
            raise StoragePreconditionError("the object is not as expected", key=name)
        return etag

    def delete_object(self, name: str) -> None:
        """See `SideObjects.delete_object`."""
        self._check_open()
        self._store.remove_object(name)

    def key(self, file: LTXFileInfo) -> str:
        """See `ReplicaClient.key`."""
        return f"{file.level}/{file.name}"

    def close(self) -> None:
        """See `ReplicaClient.close`. The store stays."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StorageClosedError(f"the client of {self.url} is closed")


def _not_found(message: str, file: LTXFileInfo, key: str) -> StorageNotFoundError:
    return StorageNotFoundError(message, level=file.level, min_txid=file.min_txid, max_txid=file.max_txid, key=key)
