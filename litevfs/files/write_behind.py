"""Blocks on their way to the folder: a thread writes them, and until then readers find them here. Owns that thread.

A reader must not wait for a disk: creating a file can take milliseconds while other programs keep the disk busy. So
blocks wait here, up to a bound; blocks beyond it are not written, and are read from storage the next time.
"""

from __future__ import annotations

import logging
import threading

from litevfs.files.disk_cache import DiskCache
from litevfs.files.keyed_files import DiskCounters
from litevfs.options import Options
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient

logger = logging.getLogger("litevfs.files.write_behind")

MAX_WAITING_BYTES = 1 << 23


class WriteBehind:
    """A `DiskCache` that readers never wait for. The thread lives only while blocks wait to be written."""

    close_timeout_s = 0.5

    def __init__(self, cache: DiskCache, *, max_waiting_bytes: int = MAX_WAITING_BYTES) -> None:
        self._cache = cache
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting: dict[tuple[LTXFileInfo, int], bytes] = {}  # in the order in which they came
        self._waiting_bytes = 0
        self._thread: threading.Thread | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return self._cache.block_size

    @property
    def counters(self) -> DiskCounters:
        """The counts of the folder so far."""
        return self._cache.counters

    @property
    def is_writing(self) -> bool:
        """Whether new blocks are kept: no longer after a write to the folder failed."""
        return self._cache.is_writing

    def close(self) -> None:
        """Write the waiting blocks for at most `close_timeout_s`; keep no new ones. Idempotent."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            thread.join(self.close_timeout_s)
        with self._lock:
            self._waiting.clear()

    # --- blocks -------------------------------------------------------------------------------------------------------

    def get(self, file: LTXFileInfo, block: int) -> bytes | None:
        """See `DiskCache.get`."""
        data = self._waiting.get((file, block))
        if data is None:
            return self._cache.get(file, block)
        self.counters.hits += 1
        return data

    def has(self, file: LTXFileInfo, block: int) -> bool:
        """See `DiskCache.has`."""
        return (file, block) in self._waiting or self._cache.has(file, block)

    def put(self, file: LTXFileInfo, block: int, data: bytes) -> None:
        """Keep a block soon, if not too many wait already; replaces an older one."""
        key = (file, block)
        with self._lock:
            self._forget(key)
            if self._closed or not self.is_writing or self._waiting_bytes + len(data) > self._max_waiting_bytes:
                return
            self._waiting[key] = data
            self._waiting_bytes += len(data)
            if self._thread is None:
                self._start()

    def drop(self, file: LTXFileInfo, block: int) -> None:
        """See `DiskCache.drop`."""
        with self._lock:
            self._forget((file, block))
        self._cache.drop(file, block)

    # --- runs of blocks -----------------------------------------------------------------------------------------------

    def get_range(self, file: LTXFileInfo, offset: int, size: int) -> bytes | None:
        """`size` bytes of a file from the start of a block on, or None if the folder lacks some of them."""
        blocks = []
        for block in range(offset // self.block_size, (offset + size - 1) // self.block_size + 1):
            data = self.get(file, block)
            if data is None:
                return None
            blocks.append(data)
        return b"".join(blocks)[:size]

    def put_range(self, file: LTXFileInfo, offset: int, data: bytes) -> None:
        """Keep the whole blocks among these bytes of a file soon; replaces older ones."""
        end = offset + len(data)
        whole_end = end if end == file.size else end - end % self.block_size
        for block in range(-(-offset // self.block_size), -(-whole_end // self.block_size)):
            start = block * self.block_size - offset
            self.put(file, block, data[start : start + self.block_size])

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        thread = threading.Thread(target=self._write_all, name="litevfs-disk-cache", daemon=True)
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # the interpreter is ending, or there are too many threads
            self._waiting.clear()
            self._waiting_bytes = 0
        else:
            self._thread = thread

    def _write_all(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    self._waiting_bytes = 0  # also where Ctrl-C in a reader came between a block and its count
                    return
                key, data = next(iter(self._waiting.items()))
            try:
                self._cache.put(*key, data)
            except Exception:  # want of memory, or a defect: the blocks that wait would fill the room of all others
                logger.exception("a block is not kept")
            with self._lock:
                if self._waiting.get(key) is data:
                    self._forget(key)
                    continue
            self._cache.drop(*key)  # it was dropped while it was being written

    def _forget(self, key: tuple[LTXFileInfo, int]) -> None:
        data = self._waiting.pop(key, None)
        if data is not None:
            self._waiting_bytes -= len(data)


def disk_cache_for(client: ReplicaClient, options: Options, *, prepare: bool) -> WriteBehind | None:
    """Blocks of a client's replica in `cache_dir`; None without a folder, or where reading costs next to nothing.

    With `prepare`, the folder is made, and tried: raises OptionError if there can be no folder.
    """
    if not options.cache_dir or not client.block_size:
        return None
    cache = DiskCache(
        options.cache_dir,
        options.cache_dir_size_bytes,
        url=client.url,
        block_size=client.block_size,
        compresses=options.cache_dir_compress,
    )
    if prepare:
        cache.prepare()
    return WriteBehind(cache)
