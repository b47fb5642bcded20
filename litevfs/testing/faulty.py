"""Storage that fails on purpose: a replica client around any other one, and a URL scheme that leads through it.

Owns which fault happens when: seeded, by operation, switched on and off while connections are open. Knows nothing of
what a fault should lead to. Everything is counted: what was asked for, when, and what went wrong.

    with faulty_replica("memory://app", seed=7) as faults:
        connection = litevfs.connect(faults.url)            # faulty+memory://app
        faults.add(Fault("timeout", probability=0.5))       # from now on, for every client of that URL
        ...
        faults.clear()                                      # healthy again
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Literal, get_args

from litevfs.errors import (
    LitevfsError,
    ReplicaURLError,
    StorageClosedError,
    StorageNotFoundError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient
from litevfs.replica_clients.urls import open_replica_client, register_scheme

Operation = Literal["list", "read", "write", "delete"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

ErrorKind = Literal["timeout", "transient", "permission", "not_found"]
"""Calls that fail: with StorageTimeoutError, TransientStorageError (as an HTTP 500 would; with `retry_after_s` a 429 or
503), StoragePermissionError (trying again cannot help), StorageNotFoundError."""
WaitKind = Literal["slow", "hang", "stuck"]
"""Calls that take time: `delay_s` and then the answer; until the client is closed or the faults are released, then
StorageClosedError; the same, deaf to `close` and to time limits, as a library that hangs in a system call."""
DataKind = Literal["partial", "corrupt"]
"""Reads that answer with fewer bytes than asked for, or with one bit flipped."""
ListingKind = Literal["hide_newest", "show_deleted", "repeat"]
"""Listings that hide the `files` newest of a level, still show what was deleted, or are the one before once more."""
Kind = ErrorKind | WaitKind | DataKind | ListingKind

_OPERATIONS_OF: dict[Kind, tuple[Operation, ...]] = {
    **dict.fromkeys(get_args(ErrorKind) + get_args(WaitKind), ("list", "read")),
    **dict.fromkeys(get_args(DataKind), ("read",)),
    **dict.fromkeys(get_args(ListingKind), ("list",)),
}
_ERRORS: dict[Kind, type[LitevfsError]] = {
    "timeout": StorageTimeoutError,
    "transient": TransientStorageError,
    "permission": StoragePermissionError,
    "not_found": StorageNotFoundError,
}


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """One thing that goes wrong.

    Raises ValueError for an unknown kind, a probability outside 0 to 1, or a kind its operations cannot have.
    """

    kind: Kind
    probability: float = 1.0  # of each call, 0 to 1
    operations: tuple[Operation, ...] = ()  # empty: `list` and `read`, or whichever the kind is about
    count: int | None = None  # how often it happens before it is over; None: until it is removed
    delay_s: float = 0.0  # before the error or the answer; the wait ends when the client is closed
    jitter_s: float = 0.0  # up to so much more, evenly distributed
    retry_after_s: float | None = None  # the pause that an error of kind `transient` asks for
    files: int = 1  # how many `hide_newest` hides
    levels: tuple[int, ...] = ()  # of the files or listings concerned; empty: all

    def __post_init__(self) -> None:
        if self.kind not in _OPERATIONS_OF:
            raise ValueError(f"unknown kind of fault: {self.kind!r}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"not a probability: {self.probability}")
        about = _OPERATIONS_OF[self.kind]
        possible = OPERATIONS if about == ("list", "read") else about
        if not set(self.operations) <= set(possible):
            raise ValueError(f"{self.kind} cannot happen to {self.operations}")

    def concerns(self, operation: Operation, level: int | None) -> bool:
        """Whether the fault can happen to this operation on a file or listing of this level (None: on several)."""
        operations = self.operations or _OPERATIONS_OF[self.kind]
        return operation in operations and (not self.levels or level in self.levels)


@dataclass(frozen=True, slots=True)
class Request:
    """One call as it arrived."""

    time: float  # time.monotonic(), seconds
    operation: Operation
    level: int | None  # None for a deletion
    min_txid: int  # of the file, or where the listing starts
    offset: int = 0  # bytes, of a read
    size: int | None = None  # bytes, of a read; None: to the end


class Faults:
    """What goes wrong at one replica's storage, shared by all clients of its URL. Safe to use from many threads."""

    def __init__(self, url: str, *, seed: int = 0, block_size: int | None = None, log_size: int = 100_000) -> None:
        self.url = url  # of the faulty replica
        self.block_size = block_size  # bytes; makes a local storage look remote; None: as the storage says
        self.calls: Counter[Operation] = Counter()
        self.injected: Counter[Kind] = Counter()
        self.requests: deque[Request] = deque(maxlen=log_size)  # the newest `log_size`, in order of arrival
        self.open_clients = 0
        self.waiting = 0  # calls that wait now, or hang
        self._faults: dict[Fault, int | None] = {}  # how often each may still happen
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._generation = 0  # grows when what hangs is let go
        self._shown: dict[tuple[int, int], list[LTXFileInfo]] = {}  # last true answer, by (level, min_txid)
        self._ever: dict[tuple[int, int, int], LTXFileInfo] = {}  # every file ever listed

    # --- what to do wrong ---------------------------------------------------------------------------------------------

    def add(self, *faults: Fault) -> None:
        """Let these happen too. For each call, those added first are rolled first; one that raises ends it."""
        with self._changed:
            for fault in faults:
                self._faults[fault] = fault.count

    def remove(self, fault: Fault) -> None:
        """Let this one happen no more; calls that hang in it go on hanging. Unknown ones are no error."""
        with self._changed:
            self._faults.pop(fault, None)

    def clear(self) -> None:
        """No more faults, and what hangs goes on with the answer it should have had."""
        with self._changed:
            self._faults.clear()
        self.release()

    def release(self) -> None:
        """Let every call that hangs or waits go on with the answer it should have had."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    def wait_until_waiting(self, calls: int = 1, timeout_s: float = 10.0) -> None:
        """Return once so many calls wait or hang at the same time. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.waiting >= calls, timeout_s):
                raise TimeoutError(f"{self.waiting} calls wait after {timeout_s:g} s, not {calls}")

    def reset_counters(self) -> None:
        """Count and log from nothing again."""
        with self._changed:
            self.calls.clear()
            self.injected.clear()
            self.requests.clear()

    # --- for the client -----------------------------------------------------------------------------------------------

    def note(self, request: Request) -> None:
        """Count and log a call."""
        with self._changed:
            self.calls[request.operation] += 1
            self.requests.append(request)

    def note_clients(self, change: int) -> None:
        """A client was opened (1) or closed (-1)."""
        with self._changed:
            self.open_clients += change

    def roll(self, operation: Operation, level: int | None, kinds: Iterable[Kind]) -> Iterator[Fault]:
        """The faults of these kinds that happen to this call, each counted as it is taken."""
        kinds = frozenset(kinds)
        with self._changed:
            candidates = [f for f in self._faults if f.kind in kinds and f.concerns(operation, level)]
        for fault in candidates:
            if self._happens(fault):
                yield fault

    def _happens(self, fault: Fault) -> bool:
        with self._changed:
            if fault not in self._faults or self._random.random() >= fault.probability:
                return False
            left = self._faults[fault]
            if left is not None:
                if left <= 1:
                    del self._faults[fault]
                else:
                    self._faults[fault] = left - 1
            self.injected[fault.kind] += 1
            return True

    def pause(self, fault: Fault, closed: threading.Event, deadline: float | None = None) -> bool:
        """Wait as the fault says; False when that is longer than until `deadline` (`time.monotonic()`), where it ends.

        Raises StorageClosedError when the client is closed meanwhile.
        """
        deaf = fault.kind == "stuck"
        with self._changed:
            jitter_s = self._random.uniform(0, fault.jitter_s)
            wait_s = math.inf if fault.kind in {"hang", "stuck"} else fault.delay_s + jitter_s
            left_s = math.inf if deadline is None or deaf else deadline - time.monotonic()
            if wait_s == 0:
                return True
            released = self._wait(min(wait_s, left_s), lambda: closed.is_set() and not deaf)
        if closed.is_set():
            raise StorageClosedError(f"the client of {self.url} was closed during a call")
        return released or wait_s <= left_s

    def _wait(self, seconds: float, is_over: Callable[[], bool]) -> bool:
        """Whether what hangs was let go, or `is_over`, within so many seconds."""
        generation = self._generation
        self.waiting += 1
        self._changed.notify_all()
        try:
            return self._changed.wait_for(
                lambda: self._generation != generation or is_over(), None if seconds == math.inf else max(0.0, seconds)
            )
        finally:
            self.waiting -= 1
            self._changed.notify_all()

    def wake(self) -> None:
        """A client was closed: those that wait have to look."""
        with self._changed:
            self._changed.notify_all()

    def damage(self, kind: Kind, data: bytes) -> bytes:
        """`data` cut short, or with one bit flipped."""
        if not data:
            return data
        with self._changed:
            place = self._random.randrange(len(data))
            bit = self._random.randrange(8)
        if kind == "partial":
            return data[:place]
        return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]

    def remember_listing(self, level: int, min_txid: int, listed: list[LTXFileInfo]) -> list[LTXFileInfo]:
        """Keep a true answer for later lies; returns the one before (this one if there is none)."""
        with self._changed:
            for file in listed:
                self._ever[(file.level, file.min_txid, file.max_txid)] = file
            return self._shown.setdefault((level, min_txid), listed)

    def note_told(self, level: int, min_txid: int, listed: list[LTXFileInfo]) -> None:
        """The answer was told as it is: it is what `repeat` repeats from now on."""
        with self._changed:
            self._shown[(level, min_txid)] = listed

    def ever_listed(self, level: int, min_txid: int) -> list[LTXFileInfo]:
        """Every file that such a listing ever showed, ordered as a listing is."""
        with self._changed:
            files = [f for f in self._ever.values() if f.level == level and f.min_txid >= min_txid]
        return sorted(files, key=lambda f: (f.min_txid, f.max_txid))


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
    def url(self) -> str:
        """The URL of the faults, which all clients of this replica share."""
        return self._faults.url

    @property
    def block_size(self) -> int:
        """The storage's own, or what the faults say."""
        return self._inner.block_size if self._faults.block_size is None else self._faults.block_size

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`."""
        faults = self._faults
        self._begin(Request(time.monotonic(), "list", level, min_txid))
        listed = self._inner.list_files(level, min_txid)
        before = faults.remember_listing(level, min_txid, listed)
        answer = listed
        for fault in faults.roll("list", level, get_args(ListingKind)):
            if fault.kind == "repeat":
                return before
            if fault.kind == "show_deleted":
                answer = faults.ever_listed(level, min_txid)
            else:
                newest = sorted(answer, key=lambda f: (f.max_txid, f.min_txid))[-fault.files :]
                answer = [f for f in answer if f not in newest]
        faults.note_told(level, min_txid, listed)
        return answer

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """See `ReplicaClient.read`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._begin(Request(time.monotonic(), "read", file.level, file.min_txid, offset, size), deadline)
        left_s = None if deadline is None else deadline - time.monotonic()
        data = self._inner.read(file, offset, size, timeout_s=left_s)
        for fault in self._faults.roll("read", file.level, get_args(DataKind)):
            data = self._faults.damage(fault.kind, data)
        return data

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
        self._begin(Request(time.monotonic(), "write", level, min_txid))
        return self._inner.write(level, min_txid, max_txid, data, timestamp_ms, exclusive=exclusive)

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """See `ReplicaClient.delete`."""
        files = list(files)
        self._begin(Request(time.monotonic(), "delete", None, min((f.min_txid for f in files), default=0)))
        self._inner.delete(files)

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
        """Count the call, let it wait, let it fail."""
        faults = self._faults
        faults.note(request)
        for fault in faults.roll(request.operation, request.level, get_args(WaitKind) + get_args(ErrorKind)):
            in_time = faults.pause(fault, self._closed, deadline)
            if not in_time or fault.kind in _ERRORS:
                raise _error(fault, request, _ERRORS[fault.kind] if in_time else StorageTimeoutError)
        if self._closed.is_set():
            raise StorageClosedError(f"the client of {self.url} is closed")


def _error(fault: Fault, request: Request, error_type: type[LitevfsError]) -> LitevfsError:
    error = error_type(
        f"injected fault: {fault.kind} during a {request.operation}",
        level=request.level,
        min_txid=request.min_txid if request.operation == "read" else None,
    )
    if isinstance(error, TransientStorageError):
        error.retry_after_s = fault.retry_after_s
    return error


# --- the scheme -------------------------------------------------------------------------------------------------------

SCHEME_PREFIX = "faulty+"
_active: dict[str, tuple[str, Faults]] = {}  # by the inner replica's canonical URL: its URL as given, and the faults
_active_lock = threading.Lock()


@contextmanager
def faulty_replica(inner_url: str, *, seed: int = 0, block_size: int | None = None) -> Iterator[Faults]:
    """Within the block, `faults.url` (`faulty+` before the URL) leads to the replica at `inner_url` through its faults.

    One seed, one order of calls: the same faults. At the end of the block everything that hangs is let go. Raises
    ReplicaURLError for a URL that cannot be opened, or that is faulty already.
    """
    canonical = _canonical(inner_url)
    faults = Faults(SCHEME_PREFIX + canonical, seed=seed, block_size=block_size)
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
    return FaultyReplicaClient(open_replica_client(inner_url, read_timeout_s=read_timeout_s), faults)
