"""Least recently used bytes under a limit, and apart from them those read ahead. Knows neither pages nor storage.

Keys name content that never changes, so nothing is ever invalidated. Hits take no lock: each operation on the mapping
is atomic in CPython; a race between two of them costs at most a wasted or an early eviction.

Used entries do not evict entries put `ahead` of their use: those may take most of the limit, and the oldest of them
goes first. The first use moves an entry over to the rest; one that waits for it too long loses the privilege. An entry
that is there already can be held: it becomes the youngest of them.

With a `spill`, what is evicted goes to a file, and comes back from there when it is asked for: it counts as kept.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import NamedTuple

from litevfs.files.spill import Spill

ENTRY_OVERHEAD_BYTES = 200
"""Memory of an entry beside its payload: bytes object header, key, and the mapping's own node (measured)."""
AHEAD_SHARE = 0.95
"""Part of the limit for entries put ahead."""
AHEAD_LIFE_S = 30.0
"""An entry put ahead and not used for so long is evicted before any other."""
PASSING = 8
"""How many of the entries put ahead stay after their use; a reader that passes through returns to no earlier one."""
SPILL_MEMORY_SHARE = 0.5
"""Part of the limit for knowing what is in the spill; the file holds many times that."""
ROOM_SHIFT = 8
"""A full cache makes room for `limit_bytes >> ROOM_SHIFT` at once: for each entry alone it would take longer."""
SPILL_ROOM_SHIFT = 5
"""The same with a spill, which writes what is evicted together in one call of the system."""


class _Unused(NamedTuple):
    """Bytes that wait for their use."""

    value: bytes
    since: float  # on the cache's clock, seconds
    is_first: bool = True  # their use is their first one
    stays: bool = False  # they have more than one use


class ByteCache:
    """A mapping from int keys to bytes that keeps its memory at or under `limit_bytes`."""

    def __init__(
        self,
        limit_bytes: int,
        on_first_use: Callable[[int], None] | None = None,
        *,
        spill: Spill | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_first_use(size)` is called for each entry put ahead when it is used, once, with its size in bytes."""
        self.limit_bytes = limit_bytes
        self.is_full = False  # from the first entry on that was evicted to make room
        self.spill = spill
        self._on_first_use = on_first_use
        self._clock = clock  # seconds
        self._entries: OrderedDict[int, bytes] = OrderedDict()
        self._ahead: OrderedDict[int, _Unused] = OrderedDict()
        self._passing: deque[int] = deque()
        self._size_bytes = 0
        self._ahead_bytes = 0  # size of `_ahead`
        self._lock = threading.Lock()

    @property
    def ahead_limit_bytes(self) -> int:
        """Memory for entries put ahead."""
        return int(self.limit_bytes * AHEAD_SHARE)

    @property
    def room_bytes(self) -> int:
        """How many bytes put ahead stay until their use, in memory or in the spill."""
        return max(self.ahead_limit_bytes, self.spill.room_bytes if self.spill is not None else 0)

    def enlarge(self, limit_bytes: int) -> None:
        """Take up to `limit_bytes`, if that is more than now."""
        if limit_bytes > self.limit_bytes:
            self.limit_bytes = limit_bytes
            self.is_full = False
            if self.spill is not None:
                self.spill.memory_limit_bytes = int(limit_bytes * SPILL_MEMORY_SHARE)

    def get(self, key: int) -> bytes | None:
        """The bytes, now the most recently used, or None."""
        value = self._entries.get(key)
        if value is not None:
            try:
                self._entries.move_to_end(key)
            except KeyError:  # evicted since
                pass
            return value
        if key in self._ahead or (self.spill is not None and self._bring_back(self.spill, key)):
            return self._first_use(key)
        return None

    def peek(self, key: int) -> bytes | None:
        """The bytes or None; does not count as their use."""
        value = self._in_memory(key)
        if value is None and self.spill is not None and self._bring_back(self.spill, key):
            value = self._in_memory(key)
        return value

    def _in_memory(self, key: int) -> bytes | None:
        value = self._entries.get(key)
        if value is None and (unused := self._ahead.get(key)) is not None:
            return unused.value
        return value

    def touch(self, key: int) -> bool:
        """Whether the bytes are kept; if so they are the last to be evicted now. Does not count as their use."""
        if key not in self._entries:
            return key in self._ahead
        try:
            self._entries.move_to_end(key)
        except KeyError:  # evicted since
            return False
        return True

    def hold(self, key: int, *, stays: bool = False) -> bool:
        """Whether the bytes are kept; if so they stay for their next use like those put ahead, as far as there is room.

        Does not count as their use, and that one does not count as their first. If it `stays`, the entry is one of
        those put ahead after its use, too, until it is the oldest.
        """
        with self._lock:
            if (unused := self._ahead.get(key)) is not None:
                self._ahead[key] = unused._replace(since=self._clock(), stays=unused.stays or stays)
                self._ahead.move_to_end(key)
                return True
            value = self._entries.get(key)
            if value is None:
                return self.spill is not None and key in self.spill
            cost = len(value) + ENTRY_OVERHEAD_BYTES
            if self._ahead_bytes + cost <= self.ahead_limit_bytes:
                self._ahead_bytes += cost  # see `put` for the order
                del self._entries[key]
                self._ahead[key] = _Unused(value, self._clock(), is_first=False, stays=stays)
            return True

    def put(self, key: int, value: bytes, *, ahead: bool = False) -> None:
        """Keep the bytes, at the expense of the least recently used. More than the limit is not kept at all."""
        cost = len(value) + ENTRY_OVERHEAD_BYTES
        if cost > (self.ahead_limit_bytes if ahead else self.limit_bytes):
            return
        with self._lock:
            if key in self._entries or key in self._ahead:
                return
            self._insert(key, value, cost, _Unused(value, self._clock()) if ahead else None)
        if self.spill is not None:
            self.spill.write()

    def _insert(self, key: int, value: bytes, cost: int, unused: _Unused | None) -> None:
        # Room is made first, so that the limit holds at any moment. In this order, Ctrl-C between two steps counts
        # too much and never too little, until nothing is left.
        while unused is not None and self._ahead_bytes > self.ahead_limit_bytes - cost and self._ahead:
            self._evict_ahead()
        if self._size_bytes > self._memory_limit - cost:
            self._make_room(max(cost, self.limit_bytes >> (ROOM_SHIFT if self.spill is None else SPILL_ROOM_SHIFT)))
        self._size_bytes += cost
        if unused is not None:
            self._ahead_bytes += cost
            self._ahead[key] = unused
        else:
            self._entries[key] = value

    def _bring_back(self, spill: Spill, key: int) -> bool:
        """Whether the bytes are in memory now, from the spill, as they were when they left."""
        value = spill.get(key) if key in spill else None
        if value is None:
            return False
        with self._lock:
            if key not in self._entries and key not in self._ahead:
                unused = _Unused(value, self._clock()) if spill.take_first_use(key) else None
                self._insert(key, value, len(value) + ENTRY_OVERHEAD_BYTES, unused)
        spill.write()
        return True

    @property
    def _memory_limit(self) -> int:
        """What entries may take beside what is known of the spill."""
        return self.limit_bytes if self.spill is None else self.limit_bytes - self.spill.index_bytes

    def put_all(self, values: dict[int, bytes]) -> int:
        """Keep the bytes under all these keys, which together are small beside the limit. Returns how many are new."""
        with self._lock:
            new = {key: value for key, value in values.items() if key not in self._entries and key not in self._ahead}
            cost = sum(map(len, new.values())) + len(new) * ENTRY_OVERHEAD_BYTES
            if cost > self.limit_bytes:
                return 0
            self._make_room(cost)
            self._size_bytes += cost  # see `put` for the order
            self._entries.update(new)
        if self.spill is not None:
            self.spill.write()
        return len(new)

    def _make_room(self, cost: int) -> None:
        """Evict what `_evict` would, in few steps for each entry where none was put ahead."""
        entries, freed = self._entries, 0
        excess = self._size_bytes - (self._memory_limit - cost)
        self.is_full = self.is_full or excess > 0
        while not self._ahead and entries and freed < excess:
            key, value = entries.popitem(last=False)
            freed += len(value) + ENTRY_OVERHEAD_BYTES
            if self.spill is not None:
                self.spill.add(key, value, is_unused=False)
        self._size_bytes -= freed
        while self._size_bytes > self._memory_limit - cost and (entries or self._ahead):
            self._evict()

    def drop(self, key: int) -> None:
        """Forget the bytes, if they are there."""
        with self._lock:
            if self.spill is not None:
                self.spill.drop(key)
            old = self._entries.pop(key, None)
            if old is not None:
                self._forget(old)
            unused = self._ahead.pop(key, None)
            if unused is not None:
                self._forget_ahead(unused.value)

    def _first_use(self, key: int) -> bytes | None:
        with self._lock:
            unused = self._ahead.pop(key, None)
            if unused is None:  # another reader has just used it, or it was evicted
                return self._entries.get(key)
            value = unused.value
            if unused.stays:
                self._ahead[key] = unused._replace(since=self._clock(), is_first=False)
            else:
                self._ahead_bytes -= len(value) + ENTRY_OVERHEAD_BYTES
                self._entries[key] = value
                self._passing.append(key)
                if len(self._passing) > PASSING:
                    self._demote(self._passing.popleft())
        if self._on_first_use is not None and unused.is_first:
            self._on_first_use(len(value))
        return value

    def _demote(self, key: int) -> None:
        """Make the bytes the first to be evicted: they were used already."""
        try:
            self._entries.move_to_end(key, last=False)
        except KeyError:  # gone already
            pass

    def _evict(self) -> None:
        """Evict one entry: one put ahead only if there is no other, or if it has waited for too long."""
        if self._entries and not (self._ahead and self._clock() - self._oldest_since() > AHEAD_LIFE_S):
            key, value = self._entries.popitem(last=False)
            if self.spill is not None:
                self.spill.add(key, value, is_unused=False)
            self._forget(value)
        else:
            self._evict_ahead()

    def _oldest_since(self) -> float:
        return self._ahead[next(iter(self._ahead))].since

    def _evict_ahead(self) -> None:
        key, unused = self._ahead.popitem(last=False)
        if self.spill is not None:
            self.spill.add(key, unused.value, is_unused=unused.is_first)
        self._forget_ahead(unused.value)

    def _forget_ahead(self, value: bytes) -> None:
        self._ahead_bytes -= len(value) + ENTRY_OVERHEAD_BYTES
        if not self._ahead:
            self._ahead_bytes = 0
        self._forget(value)

    def _forget(self, value: bytes) -> None:
        self._size_bytes -= len(value) + ENTRY_OVERHEAD_BYTES
        if not self._entries and not self._ahead:
            self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Memory held, the overhead of the entries included, and what is known of the spill."""
        return self._size_bytes + (self.spill.memory_bytes if self.spill is not None else 0)

    def __len__(self) -> int:
        return len(self._entries) + len(self._ahead)

    def __contains__(self, key: int) -> bool:
        return key in self._entries or key in self._ahead or (self.spill is not None and key in self.spill)
