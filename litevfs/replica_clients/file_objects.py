"""Small objects beside a replica in a folder, with conditional writes. Knows no LTX files and no client.

A condition and the write that it is for are one step for everyone who writes here: both happen under a lock (flock) on
`.<name>.lock`. The lock is the system's, so it ends with its process. The etag is the SHA-256 of the content.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from litevfs.errors import ConditionsUnsupportedError, StoragePreconditionError, StorageTimeoutError
from litevfs.replica_clients.base import MAX_SIDE_OBJECT_BYTES, SideObject

_LOCK_TIMEOUT_S = 10.0
_LOCK_PAUSE_S = 0.005


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
    path.parent.mkdir(parents=True, exist_ok=True)
    has_condition = if_absent or if_match is not None
    try:
        with _locked(path):
            if has_condition:
                _check(path, if_match)
            _replace(path, data, path.with_name(f".{path.name}.tmp"))
    except ConditionsUnsupportedError:
        if has_condition:
            raise
        _replace(path, data, path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp"))
    return _etag(data)


def delete_object(path: Path) -> None:
    """See `SideObjects.delete_object`. Raises OSError."""
    with suppress(FileNotFoundError):
        path.unlink()


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _check(path: Path, if_match: str | None) -> None:
    """Raise StoragePreconditionError unless the object has this etag, or does not exist (None)."""
    there = read_object(path)
    if (None if there is None else there.etag) != if_match:
        raise StoragePreconditionError("the object is not as expected", key=os.fspath(path))


def _replace(path: Path, data: bytes, temp: Path) -> None:
    with temp.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temp.replace(path)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    fd = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(fd, path)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    pause = threading.Event()  # never set
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            if time.monotonic() > deadline:
                raise StorageTimeoutError("another process keeps the lock", key=os.fspath(path)) from exc
        except OSError as exc:
            raise ConditionsUnsupportedError("this file system has no locks", key=os.fspath(path)) from exc
        pause.wait(_LOCK_PAUSE_S)
