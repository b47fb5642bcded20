"""Which fault happens to which call of a storage, and when: seeded, by operation, switched on and off at any time.

Knows nothing of what a fault should lead to, nor how a call is made (`faulty`). Counts everything: each call, its time,
and its faults.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from litevfs.errors import (
    LitevfsError,
    StorageClosedError,
    StorageNotFoundError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.ltx.file_info import LTXFileInfo

Operation = Literal["list", "read", "write", "delete"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)

ErrorKind = Literal["timeout", "transient", "permission", "not_found", "defect"]
"""Calls that fail: with StorageTimeoutError, TransientStorageError (as an HTTP 500 would; with `retry_after_s` a 429 or
503), StoragePermissionError (retries cannot help), StorageNotFoundError; a `defect` raises what no client may: the
`error` of the fault."""
WaitKind = Literal["slow", "hang", "stuck"]
"""Calls that take time: `delay_s` and then the answer; until the client is closed or the faults are released, then
StorageClosedError; the same, deaf to `close` and to time limits, as a library that hangs in a system call."""
DataKind = Literal["partial", "corrupt"]
"""Reads that answer with fewer bytes than asked for, or with one bit flipped."""
ActKind = Literal["act", "act_after"]
"""Calls beside which something else happens: the `action` of the fault is called with the request before the storage is
asked, or after it has answered. What it raises ends the call."""
WriteKind = Literal["lost_answer"]
"""Writes after which the file is stored, and that end with TransientStorageError all the same."""
ListingKind = Literal["hide", "hide_newest", "show_deleted", "repeat"]
"""Listings that hide the files within `txids`, or the `files` newest of a level; that still show what was deleted; that
repeat the listing before."""
Kind = ErrorKind | WaitKind | ActKind | DataKind | ListingKind | WriteKind

_OPERATIONS_OF: dict[Kind, tuple[Operation, ...]] = {
    **dict.fromkeys(get_args(ErrorKind) + get_args(WaitKind) + get_args(ActKind), ("list", "read")),
    **dict.fromkeys(get_args(DataKind), ("read",)),
    **dict.fromkeys(get_args(ListingKind), ("list",)),
    **dict.fromkeys(get_args(WriteKind), ("write",)),
}
ERRORS: dict[Kind, type[LitevfsError]] = {
    "timeout": StorageTimeoutError,
    "transient": TransientStorageError,
    "permission": StoragePermissionError,
    "not_found": StorageNotFoundError,
}

LOG_SIZE = 100_000
"""Requests that are remembered."""


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """One kind of fault, and when it happens.

    Raises ValueError for an unknown kind, a probability outside 0 to 1, a kind its operations cannot have, or a kind
    without what it needs.
    """

    kind: Kind
    probability: float = 1.0  # of each call, 0 to 1
    operations: tuple[Operation, ...] = ()  # empty: `list` and `read`, or the operations that the kind is about
    count: int | None = None  # how often it happens before it is over; None: until it is removed
    delay_s: float = 0.0  # before the error or the answer; the wait ends when the client is closed
    jitter_s: float = 0.0  # up to so much more, evenly distributed
    retry_after_s: float | None = None  # the pause that an error of kind `transient` asks for
    files: int = 1  # how many `hide_newest` hides
    error: Exception = field(default_factory=lambda: ZeroDivisionError("injected fault: a defect"))  # of a `defect`
    levels: tuple[int, ...] = ()  # of the files or listings concerned; empty: all
    txids: tuple[int, int] | None = None  # first and last of the files read, written or hidden; None: all
    action: Callable[[Request], None] | None = None  # of `act` and `act_after`

    def __post_init__(self) -> None:
        if self.kind not in _OPERATIONS_OF:
            raise ValueError(f"unknown kind of fault: {self.kind!r}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"not a probability: {self.probability}")
        about = _OPERATIONS_OF[self.kind]
        possible = OPERATIONS if about == ("list", "read") else about
        if not set(self.operations) <= set(possible):
            raise ValueError(f"{self.kind} cannot happen to {self.operations}")
        if (self.kind in get_args(ActKind) and self.action is None) or (self.kind == "hide" and self.txids is None):
            raise ValueError(f"{self.kind} needs {'txids' if self.kind == 'hide' else 'an action'}")

    def concerns(self, operation: Operation, level: int | None, txids: tuple[int, int] | None = None) -> bool:
        """Whether the fault can happen to this operation on a file or listing of this level (None: on several).

        `txids`: first and last of the file that is read or written; None for other operations.
        """
        operations = self.operations or _OPERATIONS_OF[self.kind]
        is_there = operation in operations and (not self.levels or level in self.levels)
        return is_there and (txids is None or self.holds(*txids))

    def holds(self, min_txid: int, max_txid: int) -> bool:
        """Whether all TXIDs from one to another are concerned."""
        return self.txids is None or (self.txids[0] <= min_txid and max_txid <= self.txids[1])


@dataclass(frozen=True, slots=True)
class Request:
    """One call as it arrived."""

    time: float  # time.monotonic(), seconds
    operation: Operation
    level: int | None  # None for a deletion
    min_txid: int  # of the file, or where the listing starts
    offset: int = 0  # bytes, of a read
    size: int | None = None  # bytes, of a read; None: to the end
    max_txid: int = 0  # of the file that is read or written; 0 for other calls

    @property
    def txids(self) -> tuple[int, int] | None:
        """First and last TXID of the file that is read or written; None for other calls."""
        return (self.min_txid, self.max_txid) if self.max_txid else None


class Faults:
    """The faults of one replica's storage, shared by all clients of its URL. Safe to use from many threads."""

    def __init__(self, url: str, *, seed: int = 0, block_size: int | None = None) -> None:
        self.url = url  # of the faulty replica
        self.block_size = block_size  # bytes; makes a local storage look remote; None: as the storage says
        self.reads_named = False  # whether new clients list all levels at once, and read by name
        self.calls: Counter[Operation] = Counter()
        self.injected: Counter[Kind] = Counter()
        self.requests: deque[Request] = deque(maxlen=LOG_SIZE)  # the newest, in order of arrival
        self.open_clients = 0
        self.waiting = 0  # calls that wait now, or hang
        self._faults: dict[Fault, int | None] = {}  # how often each may still happen
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._generation = 0  # grows when hanging calls are released
        self._shown: dict[tuple[int, int], list[LTXFileInfo]] = {}  # last true answer, by (level, min_txid)
        self._ever: dict[tuple[int, int, int], LTXFileInfo] = {}  # every file ever listed

    # --- setting faults -----------------------------------------------------------------------------------------------

    def add(self, *faults: Fault) -> None:
        """Add faults. For each call, those added first are rolled first; one that raises ends the call."""
        with self._changed:
            for fault in faults:
                self._faults[fault] = fault.count

    def remove(self, fault: Fault) -> None:
        """Remove a fault; calls that hang in it go on hanging. An unknown fault is no error."""
        with self._changed:
            self._faults.pop(fault, None)

    def clear(self) -> None:
        """Remove all faults, and release hanging calls: they go on with their right answers."""
        with self._changed:
            self._faults.clear()
        self.release()

    def release(self) -> None:
        """Let every call that hangs or waits go on with its right answer."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    def wait_until_waiting(self, calls: int = 1, timeout_s: float = 10.0) -> None:
        """Return once so many calls wait or hang at the same time. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.waiting >= calls, timeout_s):
                raise TimeoutError(f"{self.waiting} calls wait after {timeout_s:g} s, not {calls}")

    def reset_counters(self) -> None:
        """Set all counts to 0 and clear the log."""
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

    def roll(self, request: Request, kinds: Iterable[Kind], level: int | None = None) -> Iterator[Fault]:
        """The faults of these kinds that happen to this call, each counted as it is taken.

        `level`: the one whose part of a listing of several levels is judged; None: that of the call.
        """
        kinds = frozenset(kinds)
        level = request.level if level is None else level
        with self._changed:
            candidates = [
                f for f in self._faults if f.kind in kinds and f.concerns(request.operation, level, request.txids)
            ]
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
        """Wait as the fault says; False when the wait ended early at `deadline` (`time.monotonic()`, seconds).

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
        """Whether the call was released, or `is_over`, within so many seconds."""
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
        """Wake all waits, because a client was closed: its calls have to end."""
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
        """Keep a true answer for later faults; returns the one before (this one if there is none)."""
        with self._changed:
            for file in listed:
                self._ever[file.place] = file
            return self._shown.setdefault((level, min_txid), listed)

    def note_told(self, level: int, min_txid: int, listed: list[LTXFileInfo]) -> None:
        """Note that the true answer was returned: `repeat` repeats it from now on."""
        with self._changed:
            self._shown[(level, min_txid)] = listed

    def ever_listed(self, level: int, min_txid: int) -> list[LTXFileInfo]:
        """Every file that such a listing ever showed, ordered as a listing is."""
        with self._changed:
            files = [f for f in self._ever.values() if f.level == level and f.min_txid >= min_txid]
        return sorted(files, key=lambda f: (f.min_txid, f.max_txid))
