"""Least recently used bytes under a limit. Knows neither pages nor storage.

Keys name content that never changes, so nothing is ever invalidated. Hits take no lock: each operation on the mapping
is atomic in CPython; a race between two of them costs at most a wasted or an early eviction.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

ENTRY_OVERHEAD_BYTES = 200
"""Memory of an entry beside its payload: bytes object header, key, and the mapping's own node (measured)."""


class ByteCache:
    """A mapping from int keys to bytes that keeps its memory at or under `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._entries: OrderedDict[int, bytes] = OrderedDict()
        self._size_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: int) -> bytes | None:
        """The bytes, now the most recently used, or None."""
        value = self._entries.get(key)
        if value is not None:
            try:
                self._entries.move_to_end(key)
            except KeyError:  # evicted since
                pass
        return value

    def put(self, key: int, value: bytes) -> None:
        """Keep the bytes, at the expense of the least recently used. More than the limit is not kept at all."""
        cost = len(value) + ENTRY_OVERHEAD_BYTES
        if cost > self.limit_bytes:
            return
        with self._lock:
            if key in self._entries:
                return
            # Room is made first, so that the limit holds at any moment. In this order, Ctrl-C between two steps counts
            # too much and never too little, until nothing is left.
            while self._size_bytes > self.limit_bytes - cost and self._entries:
                _, old = self._entries.popitem(last=False)
                self._size_bytes -= len(old) + ENTRY_OVERHEAD_BYTES
            if not self._entries:
                self._size_bytes = 0
            self._size_bytes += cost
            self._entries[key] = value

    def demote(self, key: int) -> None:
        """Let the bytes be the first to go: they have had their use."""
        try:
            self._entries.move_to_end(key, last=False)
        except KeyError:  # gone already
            pass

    def drop(self, key: int) -> None:
        """Forget the bytes, if they are there."""
        with self._lock:
            old = self._entries.pop(key, None)
            if old is not None:
                self._size_bytes -= len(old) + ENTRY_OVERHEAD_BYTES

    @property
    def size_bytes(self) -> int:
        """Memory held, the overhead of the entries included."""
        return self._size_bytes

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: int) -> bool:
        return key in self._entries
