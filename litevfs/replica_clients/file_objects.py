"""Small objects beside a replica in a folder, with conditional writes. Knows no LTX files and no client.

A condition and its write are one step for every process that uses this module: both happen under a lock (flock) on
`.<name>.lock`. The operating system holds the lock, so it ends with its process. The etag is the SHA-256 of the
content.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from litevfs import local_files
from litevfs.errors import ConditionsUnsupportedError, StoragePreconditionError, StorageTimeoutError
from litevfs.replica_clients.base import MAX_SIDE_OBJECT_BYTES, SideObject

_LOCK_TIMEOUT_S = 10.0


def read_object(path: Path) -> SideObject | None:
    """See `SideObjects.read_object`. Raises OSError."""
    try:
        # O_NONBLOCK: a FIFO of that name must not block; regular files ignore it.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        data = file.read(MAX_SIDE_OBJECT_BYTES)
    return SideObject(data, _etag(data))


def put_object(path: Path, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
    """See `SideObjects.put_object`; on the disk (fsync) when this returns. Raises OSError besides."""
    local_files.make_folders(os.path.abspath(path.parent))  # noqa: PTH100 - str wanted
    has_condition = if_absent or if_match is not None
    try:
        with _locked(path):
            if has_condition:
                _check(path, if_match)
            temporary = path.with_name(f".{path.name}.tmp")
            local_files.remove(temporary)  # a crash may have left it
            local_files.write_whole(path, data, temporary, is_synced=True)
    except ConditionsUnsupportedError:
        if has_condition:
            raise
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        local_files.write_whole(path, data, temporary, is_synced=True)
    return _etag(data)


def delete_object(path: Path) -> None:
    """See `SideObjects.delete_object`. Raises OSError."""
    local_files.remove(path)


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check(path: Path, if_match: str | None) -> None:
    """Raise StoragePreconditionError unless the object has this etag, or does not exist (None)."""
    there = read_object(path)
    if (None if there is None else there.etag) != if_match:
        raise StoragePreconditionError("the object is not as expected", key=os.fspath(path))


@contextmanager
def _locked(path: Path) -> Generator[None]:
    fd = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            local_files.lock(fd, _LOCK_TIMEOUT_S)
        except BlockingIOError as exc:
            raise StorageTimeoutError("another process keeps the lock", key=os.fspath(path)) from exc
        except OSError as exc:
            raise ConditionsUnsupportedError("this file system has no locks", key=os.fspath(path)) from exc
        yield
    finally:
        os.close(fd)
