"""Bytes that memory has no room for, in a temporary file without a name: the tier below `byte_cache`. Owns that file.

The file is made when the first bytes leave memory, and goes with its last descriptor, also where a process is killed.
It is a ring: what is written last takes the place of what was written first. Bytes stay in it when they are read, so
that they are written once, however often they come and go. Before each stands a checksum of key and bytes: what does
not fit is not returned. Without a file (no folder, no room, no rights) the cache above goes on alone.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import tempfile
import threading
from collections import deque

from litevfs.ltx.checksum import checksum_of

logger = logging.getLogger("litevfs.files.spill")

ENTRY_MEMORY_BYTES = 180
"""Memory of what is known of an entry: key, place, their nodes in a dict and a deque (measured)."""
WAITING_SHARE = 0.25
"""Of the memory limit, for bytes that wait for a thread that writes; more are not kept."""
PATIENCE_S = 0.005
"""How long a thread waits for the one that writes, where few more have room to wait: less than a request takes."""
BATCH_BYTES = 1 << 18
"""Written by one call of the system, each of which hands over to other threads."""
MAX_LIMIT_BYTES = 1 << 36
_SIZE_BITS = 24
_HEADER_BYTES = 8
_CLOSE_TIMEOUT_S = 0.3
DESCRIPTOR_SHARE = 0.5
"""Of the descriptors that the process may have; the rest is for sockets, and for the application."""


class Spill:
    """Bytes by int key in a temporary file of at most `limit_bytes`. Keys name content that never changes.

    Safe to use from many threads. A forked child calls `leave_to_parent`, and makes its own.
    """

    def __init__(self, limit_bytes: int, memory_limit_bytes: int) -> None:
        """`memory_limit_bytes`: what may be taken to know where entries are."""
        self.limit_bytes = min(limit_bytes, MAX_LIMIT_BYTES)
        self.memory_limit_bytes = memory_limit_bytes
        self.reads = 0  # entries found so far
        self.damaged = 0  # entries that did not fit their checksum
        self.kept_bytes = 0  # of the file, headers included
        self._fd = -1
        self._is_over = limit_bytes <= 0  # closed, or a write has failed
        self._places: dict[int, int] = {}  # by key: offset << _SIZE_BITS | size
        self._order: deque[tuple[int, int]] = deque()  # (key, place), in the order of the ring
        self._unused: set[int] = set()  # keys of entries whose first use is to come
        self._head = 0  # where the next entry is written
        self._waiting: dict[int, bytes] = {}
        self._waiting_bytes = 0
        self._lock = threading.Lock()  # for all of the above but the file
        self._writing = threading.Lock()  # taken by the thread that writes, and to close the file

    @property
    def room_bytes(self) -> int:
        """How many bytes it keeps at most; 0 once nothing is kept any more."""
        return 0 if self._is_over else self.limit_bytes

    @property
    def index_bytes(self) -> int:
        """Memory that it takes to know where entries are."""
        return len(self._order) * ENTRY_MEMORY_BYTES

    @property
    def memory_bytes(self) -> int:
        """Memory that is taken now, also by bytes that wait to be written."""
        return self.index_bytes + self._waiting_bytes

    def __contains__(self, key: int) -> bool:
        return key in self._places or key in self._waiting

    def get(self, key: int) -> bytes | None:
        """The bytes, or None. Where they come from the file, they are what was written."""
        data = self._waiting.get(key)
        if data is not None:
            self.reads += 1
            return data
        place = self._places.get(key)
        if place is None:
            return None
        size = place & ((1 << _SIZE_BITS) - 1)
        try:
            content = os.pread(self._fd, _HEADER_BYTES + size, place >> _SIZE_BITS)
        except OSError as error:
            content = b""
            if not self._is_over:
                logger.info("cannot read the temporary file: %s", error)
        data = content[_HEADER_BYTES:]
        if len(data) == size and content[:_HEADER_BYTES] == _header(key, data):
            self.reads += 1
            return data
        if self._places.get(key) == place and not self._is_over:  # else it was written over, or closed, meanwhile
            logger.info("an entry of the temporary file is damaged, and is read from storage")
            self.damaged += 1
            self.drop(key)
        return None

    def take_first_use(self, key: int) -> bool:
        """Whether the next use of these bytes, which are about to go back to memory, is their first; told once."""
        with self._lock:
            is_first = key in self._unused
            self._unused.discard(key)
            return is_first

    def add(self, key: int, data: bytes, *, is_unused: bool) -> None:
        """Keep bytes that leave memory, once `write` is called. Does not block."""
        if self._is_over or len(data) >= 1 << _SIZE_BITS or len(data) + _HEADER_BYTES > self.limit_bytes:
            return
        with self._lock:
            if key not in self._places and key not in self._waiting:
                if self._waiting and self._waiting_bytes + len(data) > self.memory_limit_bytes * WAITING_SHARE:
                    return
                self._waiting[key] = data
                self._waiting_bytes += len(data)
            if is_unused:
                self._unused.add(key)

    def drop(self, key: int) -> None:
        """Forget the bytes, if they are there."""
        with self._lock:
            self._places.pop(key, None)
            self._unused.discard(key)
            self._forget_waiting(key)

    def write(self) -> None:
        """Write what waits, unless another thread does: that one, or the next to call this, writes it, too."""
        if not self._waiting:
            return
        is_crowded = self._waiting_bytes > self.memory_limit_bytes * WAITING_SHARE / 2
        if not self._writing.acquire(timeout=PATIENCE_S if is_crowded else 0):
            return
        try:
            if not self._is_over:
                self._write_waiting()
        except OSError as error:
            self._end()
            logger.warning("no temporary file for what cache_size has no room for, it is read again instead: %s", error)
        finally:
            if self._is_over:
                self._close_file()
            self._writing.release()

    def close(self) -> None:
        """Let the file go; a thread that is writing does it a moment later. Idempotent."""
        self._is_over = True
        if self._writing.acquire(timeout=_CLOSE_TIMEOUT_S):
            try:
                self._close_file()
            finally:
                self._writing.release()

    def leave_to_parent(self) -> None:
        """In a forked child, where locks may be taken for ever: close the descriptor; the file stays the parent's."""
        self._is_over = True
        self._places, self._waiting = {}, {}
        self._close_file()

    # --- the file -----------------------------------------------------------------------------------------------------

    def _write_waiting(self) -> None:
        if self._fd < 0:
            self._fd = _open_temporary()
        most_bytes = min(BATCH_BYTES, self.limit_bytes)
        most_entries = self.memory_limit_bytes // ENTRY_MEMORY_BYTES
        batch: list[tuple[int, bytes]] = []
        size = 0
        for key, data in list(self._waiting.items()):
            if batch and (size + _HEADER_BYTES + len(data) > most_bytes or len(batch) >= most_entries):
                self._write_batch(batch, size)
                batch, size = [], 0
            batch.append((key, data))
            size += _HEADER_BYTES + len(data)
        if batch:
            self._write_batch(batch, size)

    def _write_batch(self, batch: list[tuple[int, bytes]], size: int) -> None:
        content = b"".join([part for key, data in batch for part in (_header(key, data), data)])
        with self._lock:
            self._make_room(size, len(batch))
            offset = self._head
        # No entry lies here any more: who reads one that did finds that out.
        if os.pwrite(self._fd, content, offset) != size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with self._lock:
            self._head = offset + size
            for key, data in batch:
                if self._waiting.get(key) is data:  # not dropped meanwhile
                    place = offset << _SIZE_BITS | len(data)
                    self._order.append((key, place))
                    self._places[key] = place
                    self.kept_bytes += _HEADER_BYTES + len(data)
                self._forget_waiting(key)
                offset += _HEADER_BYTES + len(data)

    def _make_room(self, size: int, entries: int) -> None:
        """Forget the entries that lie where the next ones are written, and old ones beyond the limit of memory."""
        if self._head + size > self.limit_bytes:
            while self._order and self._order[0][1] >> _SIZE_BITS >= self._head:
                self._forget_oldest()
            self._head = 0
        while self._order and self._head <= self._order[0][1] >> _SIZE_BITS < self._head + size:
            self._forget_oldest()
        while self._order and (len(self._order) + entries) * ENTRY_MEMORY_BYTES > self.memory_limit_bytes:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        key, place = self._order.popleft()
        self.kept_bytes -= _HEADER_BYTES + (place & ((1 << _SIZE_BITS) - 1))
        if self._places.get(key) == place:
            del self._places[key]
            self._unused.discard(key)

    def _forget_waiting(self, key: int) -> None:
        data = self._waiting.pop(key, None)
        if data is not None:
            self._waiting_bytes -= len(data)

    def _end(self) -> None:
        with self._lock:
            self._is_over = True
            self._places.clear()
            self._order.clear()
            self._unused.clear()
            self._waiting.clear()
            self._waiting_bytes = self.kept_bytes = 0

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _header(key: int, data: bytes) -> bytes:
    return checksum_of(key.to_bytes(16, "big", signed=True), data).to_bytes(_HEADER_BYTES, "big")


def _open_temporary() -> int:
    """A new file without a name: in TMPDIR, else in /var/tmp, as /tmp is memory on many systems. Raises OSError.

    The error is EMFILE while most descriptors are taken: each of many replicas would have one of these.
    """
    folder = None if os.environ.get("TMPDIR") or not os.access("/var/tmp", os.W_OK) else "/var/tmp"
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        fd = os.dup(file.fileno())  # the lowest free number
    if fd < resource.getrlimit(resource.RLIMIT_NOFILE)[0] * DESCRIPTOR_SHARE:
        return fd
    os.close(fd)
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
