"""Byte blocks of LTX files, for storages where a request costs a round trip. Knows files and offsets, not pages.

A miss fetches the whole block around the bytes asked for. Misses that follow each other in a file are a scan: what lies
ahead of it is asked for in ever larger steps, up to a bound, and from then on as fast as the scan moves.
Bytes under way are shared: a block is never asked for twice at the same time, unless a request takes too long. Whatever
happens to a request, whoever waits for it reads for itself in the end.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

from litevfs.concurrency.futures import closed_error, settle
from litevfs.errors import TransientStorageError
from litevfs.files.byte_cache import ByteCache
from litevfs.files.fetch import Fetcher, patience_s
from litevfs.ltx.file_info import LTXFileInfo

logger = logging.getLogger("litevfs.files.blocks")

REQUEST_BYTES = 1 << 20
"""What lies ahead is asked for in parallel requests of this size: one stream seldom fills the line."""
GROWTH = 4
"""By which a scan asks further ahead, until it is as far as it may."""
MAX_AHEAD_BYTES = 1 << 24
MAX_SCANS = 16
"""Scans followed at once, over all files; the one not seen for longest is forgotten."""
BLOCK_NUMBER_BITS = 32


@dataclass(slots=True)
class _Scan:
    """Reads that follow each other in a file."""

    position: int  # block read last
    end: int  # first block not asked for yet
    ahead: int  # blocks to keep asked for beyond the position


class _Request(Future[dict[int, bytes]]):
    """A run of blocks under way; the result is their bytes by number."""

    def __init__(self, number: int, run: range) -> None:
        super().__init__()
        self.run = run  # never empty
        self.keys = range(_key(number, run.start), _key(number, run.stop))


class BlockReader:
    """Reads bytes of LTX files through a cache of blocks."""

    def __init__(self, fetcher: Fetcher, *, limit_bytes: int, read_ahead: bool) -> None:
        self.cache = ByteCache(limit_bytes)
        self._fetcher = fetcher
        self._disk_cache = fetcher.disk_cache
        self._seen_on_disk = -1
        self._last_followed = -1
        self._block_size = fetcher.client.block_size
        self._read_ahead = read_ahead
        self._request_blocks = max(1, REQUEST_BYTES // self._block_size)
        ahead_blocks = min(MAX_AHEAD_BYTES, limit_bytes * 2 // 3) // self._block_size
        self._max_ahead = max(1, ahead_blocks) if read_ahead else 1
        self._under_way: dict[int, _Request] = {}
        self._scans: OrderedDict[tuple[int, int], _Scan] = OrderedDict()  # by (file number, end)
        self._lock = threading.Lock()

    def read(self, number: int, file: LTXFileInfo, offset: int, size: int, deadline: float) -> bytes:
        """`size` bytes of a file, which is known as `number`, by `deadline` (see `Fetcher.deadline`).

        Raises what `Fetcher.read` raises.
        """
        block_size = self._block_size
        first, last = offset // block_size, (offset + size - 1) // block_size
        start = offset - first * block_size
        if first == last:
            return self._block(number, file, first, deadline)[start : start + size]
        joined = b"".join([self._block(number, file, block, deadline) for block in range(first, last + 1)])
        return joined[start : start + size]

    def keep(self, number: int, file: LTXFileInfo, data: bytes) -> None:
        """Keep bytes of the start of a file that were read anyway."""
        whole = len(data) == file.size
        for start in range(0, len(data), self._block_size):
            block = data[start : start + self._block_size]
            if whole or len(block) == self._block_size:
                self.cache.put(_key(number, start // self._block_size), block)

    def has(self, number: int, file: LTXFileInfo, offset: int, size: int) -> bool:
        """Whether all of these bytes are there, in memory or in the folder, or under way."""
        blocks = range(offset // self._block_size, (offset + size - 1) // self._block_size + 1)
        return all(self._is_near(_key(number, block), file, block) for block in blocks)

    def prefetch(self, number: int, file: LTXFileInfo, offset: int, size: int) -> None:
        """Start fetching the blocks around these bytes that are not there, unless a scan is about to do so anyway."""
        first, last = offset // self._block_size, (offset + size - 1) // self._block_size
        with self._lock:
            runs = self._runs(number, file, first, last - first + 1)
            if not runs or (number, runs[0].start) in self._scans:
                return
            if last > first:
                self._remember(number, _Scan(first, last + 1, last - first + 1))
            self._read_ahead_of(number, file, runs)

    def drop(self, number: int, file: LTXFileInfo, offset: int, size: int) -> None:
        """Forget the blocks around these bytes: they turned out to be damaged."""
        for block in range(offset // self._block_size, (offset + size - 1) // self._block_size + 1):
            self.cache.drop(_key(number, block))
            if self._disk_cache is not None:
                self._disk_cache.drop(file, block)

    def _block(self, number: int, file: LTXFileInfo, block: int, deadline: float) -> bytes:
        key = _key(number, block)
        data = self.cache.get(key)
        if data is None:
            data = self._from_disk(number, file, block) or self._miss(number, file, block, deadline)
        if self._read_ahead and key != self._last_followed:  # not for every page of a block
            self._last_followed = key
            self._follow(number, file, block)
        return data

    def _from_disk(self, number: int, file: LTXFileInfo, block: int) -> bytes | None:
        data = self._disk_cache.get(file, block) if self._disk_cache else None
        if data is not None:
            self.cache.put(_key(number, block), data)
        return data

    # --- misses -------------------------------------------------------------------------------------------------------

    def _miss(self, number: int, file: LTXFileInfo, block: int, deadline: float) -> bytes:
        key = _key(number, block)
        request: _Request | None = None
        mine: _Request | None = None
        failure: TransientStorageError | None = None
        try:
            with self._lock:
                request = self._under_way.get(key)
                if request is None:
                    data = self.cache.get(key)  # another reader may just have brought it
                    if data is not None:
                        return data
                    first, *ahead = self._runs(number, file, block, self._window_after_miss(number, block), force=True)
                    request = mine = _Request(number, first)
                    self._register(mine)
                    self._read_ahead_of(number, file, ahead)
            if mine is not None:
                self._run(file, mine, deadline)
            return request.result(patience_s(deadline))[block]
        except TransientStorageError as error:
            # What is read ahead is tried once; what a reader waits for is worth the retries.
            failure = error
        except FutureTimeoutError:
            assert request is not None
            logger.info("reading block %d of %s, which another request has not brought in time", block, file.name)
            self._forget(request)
        except BaseException:
            if mine is not None:
                self._give_up(mine)
            raise
        offset, size = self._extent(file, range(block, block + 1))
        data = self._fetcher.read(file, offset, size, after=failure, deadline=deadline)
        self._fetcher.keep(file, offset, data)
        self.cache.put(key, data)
        return data

    def _window_after_miss(self, number: int, block: int) -> int:
        """How many blocks to ask for now: one, or more when this is where a scan comes next."""
        scan = self._scans.pop((number, block), None)
        window = 1 if scan is None else min(scan.ahead * GROWTH, self._max_ahead)
        self._remember(number, _Scan(block, block + window, window))
        return window

    def _scan_at(self, number: int, block: int) -> _Scan | None:
        """The scan that has just read a block. Of several the one that is furthest ahead, and the others are forgotten.

        Two that go on side by side would each ask for the part of every request that the other has not asked for.
        """
        keys = [
            (scanned, end)
            for (scanned, end), scan in self._scans.items()
            if scanned == number and scan.ahead > 1 and scan.position <= block < end
        ]
        if not keys:
            return None
        furthest = max(keys)
        for key in keys:
            if key != furthest:
                del self._scans[key]
        return self._scans[furthest]

    def _remember(self, number: int, scan: _Scan) -> None:
        self._scans[(number, scan.end)] = scan
        while len(self._scans) > MAX_SCANS:
            self._scans.popitem(last=False)

    def _follow(self, number: int, file: LTXFileInfo, block: int) -> None:
        """Ask for what lies further ahead as a scan moves on, so that a few requests are always under way."""
        with self._lock:
            scan = self._scan_at(number, block)
            if scan is None:
                return
            end = scan.end
            if scan.position < block:
                # Else what was read long ago and just now would outlive what was read ahead in between.
                self.cache.demote(_key(number, scan.position))
                scan.position = block
            ahead = min(scan.ahead * GROWTH, self._max_ahead)
            wanted = ahead - (end - block - 1)
            if wanted > self._request_blocks:
                wanted -= wanted % self._request_blocks
            if wanted < min(self._request_blocks, scan.ahead):
                return
            del self._scans[(number, end)]
            self._remember(number, _Scan(block, end + wanted, ahead))
            self._read_ahead_of(number, file, self._runs(number, file, end, wanted))

    # --- requests (with the lock held) --------------------------------------------------------------------------------

    def _runs(self, number: int, file: LTXFileInfo, first: int, window: int, *, force: bool = False) -> list[range]:
        """Blocks `first` to `first + window` that are neither there nor under way, in runs of one request each.

        With `force`, the first block in any case.
        """
        blocks_in_file = (file.size + self._block_size - 1) // self._block_size
        runs: list[range] = []
        for block in range(first, min(first + window, blocks_in_file)):
            key = _key(number, block)
            if self._is_near(key, file, block) and not (force and block == first):
                continue
            if runs and runs[-1].stop == block and len(runs[-1]) < self._request_blocks:
                runs[-1] = range(runs[-1].start, block + 1)
            else:
                runs.append(range(block, block + 1))
        return runs

    def _is_near(self, key: int, file: LTXFileInfo, block: int) -> bool:
        """Whether a block is there, in memory or in the folder, or under way."""
        if key in self.cache or key in self._under_way:
            return True
        if key != self._seen_on_disk:  # which a scan asks for page after page
            if self._disk_cache is None or not self._disk_cache.has(file, block):
                return False
            self._seen_on_disk = key
        return True

    def _register(self, request: _Request) -> None:
        for key in request.keys:
            self._under_way[key] = request

    def _read_ahead_of(self, number: int, file: LTXFileInfo, runs: list[range]) -> None:
        """Start a request for each run. Where there are no threads for that, there is no reading ahead."""
        try:
            for run in runs:
                self._submit(file, _Request(number, run))
        except RuntimeError as error:
            logger.info("not reading ahead in %s: %s", file.name, error)

    def _submit(self, file: LTXFileInfo, request: _Request) -> None:
        def end_if_cancelled(task: Future[None]) -> None:
            if task.cancelled():
                settle(request, closed_error())

        try:
            self._register(request)
            self._fetcher.submit(lambda: self._run(file, request)).add_done_callback(end_if_cancelled)
        except BaseException:
            self._unregister(request)
            raise

    def _unregister(self, request: _Request) -> None:
        for key in request.keys:
            if self._under_way.get(key) is request:
                del self._under_way[key]

    # --- requests (without the lock) ----------------------------------------------------------------------------------

    def _run(self, file: LTXFileInfo, request: _Request, deadline: float | None = None) -> None:
        """Make one request and hand its blocks to the cache and to whoever waits for them."""
        try:
            offset, size = self._extent(file, request.run)
            data = self._fetcher.read_once(file, offset, size, deadline)
            self._fetcher.keep(file, offset, data)  # first: what anybody has seen is on its way to the folder
            step = self._block_size
            parts = [data[start : start + step] for start in range(0, size, step)]
            for key, part in zip(request.keys, parts, strict=True):
                self.cache.put(key, part)
            settle(request, dict(zip(request.run, parts, strict=True)))
        except Exception as error:  # noqa: BLE001 (handed to whoever waits, to the last one)
            settle(request, error)
        finally:
            self._give_up(request)

    def _give_up(self, request: _Request) -> None:
        """No more is done for a request: who still waits for it, as after Ctrl-C in its thread, tries for himself."""
        self._forget(request)
        if not request.done():
            settle(request, TransientStorageError("the read that this one waited for was interrupted"))

    def _forget(self, request: _Request) -> None:
        with self._lock:
            self._unregister(request)

    def _extent(self, file: LTXFileInfo, run: range) -> tuple[int, int]:
        """(offset, size) of a run of blocks, in bytes."""
        offset = run.start * self._block_size
        return offset, min(len(run) * self._block_size, file.size - offset)


def _key(number: int, block: int) -> int:
    return number << BLOCK_NUMBER_BITS | block
