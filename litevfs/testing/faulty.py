"""Storage that fails on purpose: a replica client around any other one, and a URL scheme that leads through it.

`faults` says what goes wrong: seeded, by operation, switched on and off while connections are open.

    with faulty_replica("memory://app", seed=7) as faults:
        connection = litevfs.connect(faults.url)            # faulty+memory://app
        faults.add(Fault("timeout", probability=0.5))       # from now on, for every client of that URL
        ...
        faults.clear()                                      # healthy again
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO, get_args

from litevfs.concurrency.clock import deadline_in
from litevfs.errors import (
    LitevfsError,
    ReplicaURLError,
    StorageClosedError,
    StorageNotFoundError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.ltx.file_info import LEVELS, LTXFileInfo
from litevfs.replica_clients.base import ReplicaClient, Take
from litevfs.replica_clients.urls import open_replica_client, register_scheme
from litevfs.testing.faults import ERRORS, DataKind, ErrorKind, ListingKind, WaitKind, WriteKind
from litevfs.testing.faults import Fault as Fault
from litevfs.testing.faults import Faults as Faults
from litevfs.testing.faults import Request as Request

PIECE_BYTES = 30_011
"""Of a read in pieces."""


class FaultyReplicaClient:
    """A `ReplicaClient` that passes calls on to another one, which it owns, unless `faults` say otherwise."""

    def __init__(self, inner: ReplicaClient, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self._closed = threading.Event()
        faults.note_clients(1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._inner!r})"

    @property
    def faults(self) -> Faults:
        """The faults of this replica."""
        return self._faults

    @property
    def url(self) -> str:
        """The URL of the faults, which all clients of this replica share."""
        return self._faults.url

    @property
    def block_size(self) -> int:
        """The storage's own block size, or that of the faults."""
        return self._inner.block_size if self._faults.block_size is None else self._faults.block_size

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`."""
        request = Request(time.monotonic(), "list", level, min_txid)
        self._begin(request)
        answer = self._told(request, level, min_txid)
        self._end(request)
        return answer

    def _told(self, request: Request, level: int, min_txid: int) -> list[LTXFileInfo]:
        """The answer to a listing of a level that is under way, with its faults."""
        faults = self._faults
        listed = self._inner.list_files(level, min_txid)
        before = faults.remember_listing(level, min_txid, listed)
        answer = listed
        for fault in faults.roll(request, get_args(ListingKind), level):
            if fault.kind == "repeat":
                return before
            if fault.kind == "show_deleted":
                answer = faults.ever_listed(level, min_txid)
            elif fault.kind == "hide":
                answer = [f for f in answer if not fault.holds(f.min_txid, f.max_txid)]
            else:
                newest = sorted(answer, key=lambda f: (f.max_txid, f.min_txid))[-fault.files :]
                answer = [f for f in answer if f not in newest]
        faults.note_told(level, min_txid, listed)
        return answer

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """See `ReplicaClient.read`."""
        deadline = deadline_in(timeout_s)
        request = Request(time.monotonic(), "read", file.level, file.min_txid, offset, size, file.max_txid)
        self._begin(request, deadline)
        left_s = None if deadline is None else deadline - time.monotonic()
        data = self._inner.read(file, offset, size, timeout_s=left_s)
        for fault in self._faults.roll(request, get_args(DataKind)):
            data = self._faults.damage(fault.kind, data)
        self._end(request)
        return data

    def read_pieces(
        self, file: LTXFileInfo, offset: int, size: int, take: Take, *, timeout_s: float | None = None
    ) -> int:
        """See `ReadsPieces.read_pieces`. The pieces begin and end at no bounds of the caller's."""
        data = self.read(file, offset, size, timeout_s=timeout_s)
        for start in range(0, len(data), PIECE_BYTES):
            take(data[start : start + PIECE_BYTES])
        return len(data)

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
        request = Request(time.monotonic(), "write", level, min_txid, max_txid=max_txid)
        self._begin(request)
        written = self._inner.write(level, min_txid, max_txid, data, timestamp_ms, exclusive=exclusive)
        for fault in self._faults.roll(request, get_args(WriteKind)):
            raise _error(fault, request, TransientStorageError)
        self._end(request)
        return written

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """See `ReplicaClient.delete`."""
        files = list(files)
        request = Request(time.monotonic(), "delete", None, min((f.min_txid for f in files), default=0))
        self._begin(request)
        self._inner.delete(files)
        self._end(request)

    def key(self, file: LTXFileInfo) -> str:
        """See `ReplicaClient.key`."""
        return self._inner.key(file)

    def close(self) -> None:
        """See `ReplicaClient.close`. Calls that wait or hang end with StorageClosedError, but for those `stuck`."""
        if not self._closed.is_set():
            self._closed.set()
            self._faults.note_clients(-1)
            self._faults.wake()
            self._inner.close()

    def _begin(self, request: Request, deadline: float | None = None) -> None:
        """Count the call, and apply the faults that delay it or make it fail."""
        faults = self._faults
        faults.note(request)
        for fault in faults.roll(request, (*get_args(WaitKind), *get_args(ErrorKind), "act")):
            if fault.action is not None:
                fault.action(request)
            in_time = faults.pause(fault, self._closed, deadline)
            if not in_time:
                raise _error(fault, request, StorageTimeoutError)
            if fault.kind == "defect":
                raise fault.error
            if fault.kind in ERRORS:
                raise _error(fault, request, ERRORS[fault.kind])
        if self._closed.is_set():
            raise StorageClosedError(f"the client of {self.url} is closed")

    def _end(self, request: Request) -> None:
        """Let happen what happens after the answer to a call."""
        for fault in self._faults.roll(request, ("act_after",)):
            if fault.action is not None:
                fault.action(request)


def _error(fault: Fault, request: Request, error_type: type[LitevfsError]) -> LitevfsError:
    error = error_type(
        f"injected fault: {fault.kind} during a {request.operation}",
        level=request.level,
        min_txid=request.min_txid if request.operation == "read" else None,
    )
    if isinstance(error, TransientStorageError):
        error.retry_after_s = fault.retry_after_s
    return error


class FaultyNamesClient(FaultyReplicaClient):
    """A `FaultyReplicaClient` with `ListsLevels` and `ReadsNamed`, whatever the client that it passes calls on to has.

    A listing of all levels counts as one call without a level; it shows what faulty listings of each level show.
    """

    def list_from(self, level: int, min_txid: int = 1) -> tuple[list[LTXFileInfo], bool]:
        """See `ListsLevels.list_from`."""
        request = Request(time.monotonic(), "list", None, min_txid)
        self._begin(request)
        files = self._told(request, level, min_txid)
        files = [*files, *(file for above in LEVELS[level + 1 :] for file in self._told(request, above, 1))]
        self._end(request)
        return files, True

    def read_named(
        self, level: int, min_txid: int, max_txid: int, size: int, *, timeout_s: float | None = None
    ) -> tuple[LTXFileInfo, bytes] | None:
        """See `ReadsNamed.read_named`. It gives the time of the write to a second."""
        request = Request(time.monotonic(), "read", level, min_txid, 0, size, max_txid)
        try:
            self._begin(request)
        except StorageNotFoundError:
            return None
        listed = [
            f for f in self._inner.list_files(level, min_txid) if (f.min_txid, f.max_txid) == (min_txid, max_txid)
        ]
        if not listed:
            return None
        try:
            data = self._inner.read(listed[0], 0, size, timeout_s=timeout_s)
        except StorageNotFoundError:
            return None
        for fault in self._faults.roll(request, get_args(DataKind)):
            data = self._faults.damage(fault.kind, data)
        self._end(request)
        return replace(listed[0], modified_ms=listed[0].modified_ms // 1000 * 1000), data


# --- the scheme -------------------------------------------------------------------------------------------------------

SCHEME_PREFIX = "faulty+"
_active: dict[str, tuple[str, Faults]] = {}  # by the inner replica's canonical URL: its URL as given, and the faults
_active_lock = threading.Lock()


@contextmanager
def faulty_replica(
    inner_url: str, *, seed: int = 0, block_size: int | None = None, reads_named: bool = False
) -> Iterator[Faults]:
    """Within the block, `faults.url` (`faulty+` before the URL) leads to the replica at `inner_url` through its faults.

    With `reads_named`, its clients list all levels at once and read files by name, as those of S3 do. One seed, one
    order of calls: the same faults. At the end of the block all hanging calls are released. Raises
    ReplicaURLError for a URL that cannot be opened, or that is faulty already.
    """
    canonical = _canonical(inner_url)
    faults = Faults(SCHEME_PREFIX + canonical, seed=seed, block_size=block_size)
    faults.reads_named = reads_named
    with _active_lock:
        if canonical in _active:
            raise ReplicaURLError(f"{faults.url} is in use")
        _active[canonical] = inner_url, faults
    register_scheme(faults.url.partition("://")[0], _open)
    try:
        yield faults
    finally:
        with _active_lock:
            del _active[canonical]
        faults.clear()


def _canonical(url: str) -> str:
    client = open_replica_client(url)
    client.close()
    return client.url


def _open(url: str, *, read_timeout_s: float) -> FaultyReplicaClient:
    canonical = _canonical(url.removeprefix(SCHEME_PREFIX))
    with _active_lock:
        active = _active.get(canonical)
    if active is None:
        raise ReplicaURLError(f"no faults are set up for {canonical}", hint="open it within faulty_replica(...)")
    inner_url, faults = active
    inner = open_replica_client(inner_url, read_timeout_s=read_timeout_s)
    return FaultyNamesClient(inner, faults) if faults.reads_named else FaultyReplicaClient(inner, faults)
