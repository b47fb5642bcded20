"""Bytes of LTX files, for storages where a request costs a round trip. Knows files and offsets, not pages.

A reader's miss fetches the whole block around the wanted bytes. Read-ahead fetches a plan's ranges in a few parallel
requests, as far as the governor allows: as blocks where the ranges lie close together, else as the ranges alone.
No bytes are requested twice at the same time, unless a request takes too long. A reader that waits for another reader's
request without getting its bytes makes its own request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from itertools import takewhile

from litevfs.errors import StorageClosedError, StoragePermissionError, TransientStorageError
from litevfs.files.byte_cache import SPILL_MEMORY_SHARE, ByteCache
from litevfs.files.fetch import Fetcher, patience_s
from litevfs.files.governor import FREE_BYTES, Governor
from litevfs.files.hedges import first_of
from litevfs.files.ranges import Limits, Range, affordable_runs, block_runs, blocks_of, clusters
from litevfs.files.spill import Spill
from litevfs.files.under_way import Cutter, Part, Request, UnderWay, block_key, failure_of, range_key
from litevfs.ltx.file_info import LTXFileInfo

logger = logging.getLogger("litevfs.files.blocks")

GAP_RESERVE_BYTES = FREE_BYTES // 8
"""Of what may be read for nothing, kept for plans of other pages than those between which gaps are read over."""
MAX_ALONE = 64
"""Ranges wanted alone, at most: a few for each connection that reads."""
SCAN_REQUESTS = 3
"""That wait for their use or are under way, at least."""


class BlockReader:
    """Reads bytes of LTX files through a cache of blocks, and of single ranges that were read ahead."""

    def __init__(
        self, fetcher: Fetcher, *, limit_bytes: int, governor: Governor | None = None, spill_bytes: int = 0
    ) -> None:
        """`spill_bytes`: of a temporary file for what memory has no room for; none beside a folder for blocks."""
        self.governor = governor or Governor()
        spills = spill_bytes and fetcher.disk_cache is None
        spill = Spill(spill_bytes, int(limit_bytes * SPILL_MEMORY_SHARE)) if spills else None
        self.cache = ByteCache(limit_bytes, self.governor.take, spill=spill)
        self.line = fetcher.line
        self.under_way = UnderWay()
        self._fetcher = fetcher
        self._disk_cache = fetcher.disk_cache
        self._seen_on_disk = -1
        self._wanted_alone: set[int] = set()  # keys of ranges, until they are read
        self._block_size = fetcher.client.block_size

    def read(self, number: int, file: LTXFileInfo, offset: int, size: int, deadline: float, *, most: int = 0) -> bytes:
        """`size` bytes of a file, which is known as `number`, by `deadline` (see `Fetcher.deadline`).

        More bytes, up to `most`, as far as the blocks after the last of these are in memory. Raises what `Fetcher.read`
        raises.
        """
        key = range_key(number, offset)
        alone = self._range_alone(key, deadline)
        if alone is not None and len(alone) == size:
            return alone
        if self._wanted_alone and key in self._wanted_alone:
            self._wanted_alone.discard(key)
            return self._miss(number, file, Part(key, offset, size), range(0), deadline)
        block_size = self._block_size
        first, last = offset // block_size, (offset + size - 1) // block_size
        start, most = offset - first * block_size, max(size, most)
        if start + most <= block_size:
            return self._block(number, file, first, deadline)[start : start + most]
        blocks = [self._block(number, file, block, deadline, last) for block in range(first, last + 1)]
        for block in range(last + 1, (offset + most - 1) // block_size + 1):
            if (following := self.cache.get(block_key(number, block))) is None:
                break
            blocks.append(following)
        views = [memoryview(block) for block in blocks]  # so that a slice is no copy
        views[0] = views[0][start:]
        views[-1] = views[-1][: max(0, most - sum(map(len, views[:-1])))]
        return b"".join(views)

    def want_alone(self, number: int, file: LTXFileInfo, offset: int) -> None:
        """Let the next read of a range bring no block around it, if the cache has no room for all of the file.

        A block of a file from which single ranges are read would drive out as many others as it holds.
        """
        if self._disk_cache is None and file.size > self.cache.room_bytes:
            if len(self._wanted_alone) >= MAX_ALONE:  # of reads that have ended before
                self._wanted_alone.clear()
            self._wanted_alone.add(range_key(number, offset))

    def keep(self, number: int, file: LTXFileInfo, data: bytes) -> None:
        """Keep bytes of the start of a file that were read anyway."""
        whole = len(data) == file.size
        for start in range(0, len(data), self._block_size):
            block = data[start : start + self._block_size]
            if whole or len(block) == self._block_size:
                self.cache.put(block_key(number, start // self._block_size), block)

    def drop(self, number: int, file: LTXFileInfo, offset: int, size: int) -> None:
        """Forget the blocks around these bytes: they turned out to be damaged."""
        self.cache.drop(range_key(number, offset))
        for block in self._blocks_around(offset, size):
            self.cache.drop(block_key(number, block))
            if self._disk_cache is not None:
                self._disk_cache.drop(file, block)

    def _blocks_around(self, offset: int, size: int) -> range:
        return range(offset // self._block_size, (offset + size - 1) // self._block_size + 1)

    def _range_alone(self, key: int, deadline: float) -> bytes | None:
        """A range that was read ahead without its block; waits until it has come."""
        if key in self.under_way.requests and (joined := self.under_way.join(key)) is not None:
            request, answer = joined
            try:
                data = answer.result(patience_s(deadline))
            except (TransientStorageError, StoragePermissionError, FutureTimeoutError):
                self.under_way.forget(request)
                return None
            self.cache.get(key)  # its first use
            return data
        return self.cache.get(key)

    def _block(self, number: int, file: LTXFileInfo, block: int, deadline: float, last: int = 0) -> bytes:
        """A block, whose reader wants those up to `last`, too: what is missing there comes by the same request."""
        data = self.cache.get(block_key(number, block))
        if data is None:
            following = range(block + 1, last + 1)
            data = self._from_disk(number, file, block) or self._miss(
                number, file, self._part(number, file, block), following, deadline
            )
        return data

    def _from_disk(self, number: int, file: LTXFileInfo, block: int) -> bytes | None:
        data = self._disk_cache.get(file, block) if self._disk_cache else None
        if data is not None:
            self.cache.put(block_key(number, block), data)
        return data

    # --- misses -------------------------------------------------------------------------------------------------------

    def _miss(self, number: int, file: LTXFileInfo, part: Part, following: range, deadline: float) -> bytes:
        """A part that is not in memory; by the same request come the blocks `following` it that are missing."""
        key = part.key
        mine: Request | None = None
        failure: TransientStorageError | None = None
        try:
            with self.under_way.lock:
                joined = self.under_way.join(key)
                if joined is None:
                    data = self.cache.get(key)  # another reader may just have put it there
                    if data is not None:
                        return data
                    run = takewhile(
                        lambda block: not self._is_near(block_key(number, block), file, block),
                        following,
                    )
                    mine = Request(file, [part, *self._parts(number, file, run)], ahead=False)
                    self.under_way.add(mine)
                    joined = mine, mine.answer(key)
            request, answer = joined
            if mine is not None:
                self.governor.need(mine.size)
                if self._late_after_s(mine) is None or not self._start(mine, deadline):
                    self._run(mine, deadline)
            data = self._first_answer(request, answer, part, deadline)
            self.cache.get(key)  # the first use of bytes that were read ahead
            return data
        except (TransientStorageError, StoragePermissionError) as error:
            failure = failure_of(error, is_mine=mine is not None)
        except FutureTimeoutError:
            logger.info("reading %s from %d, which another request has not brought in time", file.name, part.offset)
            self.under_way.forget(request)
        except BaseException:
            if mine is not None:
                self._give_up(mine)
            raise
        data = self._fetcher.read(file, part.offset, part.size, after=failure, deadline=deadline)
        self._fetcher.keep(file, part.offset, data)
        self.cache.put(key, data)
        return data

    def _late_after_s(self, request: Request) -> float | None:
        """After how many seconds a second request may be made; None: not at all. What is observed stays as it is."""
        gets, hedges = self._fetcher.gets, self._fetcher.hedges
        return None if self._fetcher.requests.observer else hedges.late_after_s(gets.first_bytes(request.size))

    def _first_answer(self, request: Request, answer: Future[bytes], part: Part, deadline: float) -> bytes:
        """The part's bytes from a request under way, or from a second one if that is late: what comes first.

        Raises the error of the last request, or FutureTimeoutError. The one that loses goes on and fills the cache.
        """
        until = time.monotonic() + patience_s(deadline)
        late_after_s = None if answer.done() else self._late_after_s(request)
        if late_after_s is None or request.comes_in_time(answer, late_after_s, until):
            return answer.result(max(0.0, until - time.monotonic()))
        second = Request(request.file, [part], ahead=False)
        other = second.answer(part.key)
        if not self._fetcher.hedges.take() or not self._start(second, deadline):
            return answer.result(max(0.0, until - time.monotonic()))
        logger.debug("asking for a part of %s a second time", request.file.name)
        return first_of((answer, other), patience_s(deadline))

    @property
    def block_bytes(self) -> int:
        """Size of a block; the last one of a file may be smaller."""
        return self._block_size

    @property
    def request_bytes(self) -> int:
        """How many bytes one request fetches at most."""
        return max(self.line.request_bytes, self._block_size)

    @property
    def scan_request_bytes(self) -> int:
        """The same for a reader that goes through a file, if several such requests may be under way."""
        return max(self.request_bytes, min(self.line.scan_request_bytes, self.ahead_bytes // SCAN_REQUESTS))

    @property
    def ahead_bytes(self) -> int:
        """How many bytes may wait for their use or be under way, by the cache's room and by the line."""
        return min(self.cache.ahead_limit_bytes, max(self.line.ahead_bytes, 2 * self._block_size))

    # --- read-ahead ---------------------------------------------------------------------------------------------------

    def has(self, number: int, file: LTXFileInfo, offset: int, size: int) -> bool:
        """Whether all of these bytes are in memory, in the folder, or under way."""
        key = range_key(number, offset)
        if key in self.cache or key in self.under_way.requests:
            return True
        return all(self._is_near(block_key(number, block), file, block) for block in self._blocks_around(offset, size))

    def read_ahead(
        self,
        number: int,
        file: LTXFileInfo,
        ranges: Iterable[Range],
        owner: object | None = None,
        most: int = 0,
        is_sparing: bool = False,
    ) -> bool:
        """Start fetching ascending ranges that are neither kept nor under way. False if the governor refuses.

        The `owner` may `take_back` what has not begun. Requests have `most`, or `request_bytes`; see `Limits`, too.
        """
        limits = Limits(self._block_size, self.line.gap_bytes, most or self.request_bytes, is_sparing)
        with self.under_way.lock:
            planned = self._plan(number, file, ranges, owner, limits)
            requests = (Request(file, parts, ahead=True, owner=owner) for parts in planned)
            granted = list(takewhile(lambda request: self.governor.grant(request.size), requests))
            self._submit(granted)
        return len(granted) == len(planned)

    def take_back(self, owner: object) -> None:
        """Take back the requests that have not begun and that this owner alone has planned. No reader waits for one."""
        if self.under_way.requests:
            self.governor.give_back(self.under_way.take_back(owner))

    def when_there(self, number: int, offset: int, size: int, call: Callable[[], object]) -> None:
        """Make the call when these bytes come, or their request ends without them; now if there is none."""
        last = self._blocks_around(offset, size)[-1]
        keys = range_key(number, offset), block_key(number, last)
        answer = next(filter(None, map(self.under_way.answer, keys)), None)
        if answer is None:
            call()
        else:
            answer.add_done_callback(lambda _: call())

    def hold(self, number: int, offset: int, size: int, *, stays: bool) -> None:
        """Let these bytes, if they are in memory, stay there for a next use longer than others.

        They stay after that if there are others in their block, or if told so.
        """
        if not self.cache.hold(range_key(number, offset), stays=stays):
            for block in self._blocks_around(offset, size):
                self.cache.hold(block_key(number, block), stays=True)

    def peek(self, number: int, offset: int, size: int) -> bytes | None:
        """These bytes if they are in memory; does not count as their use."""
        alone = self.cache.peek(range_key(number, offset))
        if alone is not None:
            return alone
        around = self._blocks_around(offset, size)
        blocks = [block for n in around if (block := self.cache.peek(block_key(number, n))) is not None]
        start = offset - around.start * self._block_size
        return b"".join(blocks)[start : start + size] if len(blocks) == len(around) else None

    def _plan(
        self, number: int, file: LTXFileInfo, ranges: Iterable[Range], owner: object | None, limits: Limits
    ) -> list[list[Part]]:
        """The parts of each request that fetches the missing bytes of the ranges."""
        planned: list[list[Part]] = []
        has_room = not limits.is_sparing or file.size <= self.cache.room_bytes
        for group, is_dense in clusters(ranges, limits):
            if (is_dense and has_room) or self._disk_cache is not None:  # the folder keeps whole blocks alone
                wanted = blocks_of(group, self._block_size)
                self.under_way.share((block_key(number, block) for block in wanted), owner)
                missing = [block for block in wanted if not self._stays_near(block_key(number, block), file, block)]
                runs = block_runs(missing, limits.request // limits.block)
                planned += [self._parts(number, file, run) for run in runs]
            else:
                self.under_way.share((range_key(number, offset) for offset, _ in group), owner)
                for offset, _ in group:
                    self.cache.hold(range_key(number, offset))
                scattered = [wanted for wanted in group if not self.has(number, file, *wanted)]
                planned += [
                    [Part(range_key(number, offset), offset, size) for offset, size in run]
                    for run in affordable_runs(scattered, limits, self._has_room)
                ]
        return planned

    def _has_room(self, size: int) -> bool:
        return self.governor.has_room(size, beside=GAP_RESERVE_BYTES)

    def _stays_near(self, key: int, file: LTXFileInfo, block: int) -> bool:
        """Like `_is_near`; in memory a block stays until its turn comes: what comes ahead of it evicts others first."""
        return self.cache.hold(key) or self._is_near(key, file, block)

    def _is_near(self, key: int, file: LTXFileInfo, block: int) -> bool:
        """Whether a block is in memory, in the folder, or under way."""
        if key in self.cache or key in self.under_way.requests:
            return True
        if key != self._seen_on_disk:  # remembered, as a scan asks for the same block page after page
            if self._disk_cache is None or not self._disk_cache.has(file, block):
                return False
            self._seen_on_disk = key
        return True

    # --- requests --------------------------------------------------------------------------------

    def _part(self, number: int, file: LTXFileInfo, block: int) -> Part:
        offset = block * self._block_size
        return Part(block_key(number, block), offset, min(self._block_size, file.size - offset))

    def _parts(self, number: int, file: LTXFileInfo, blocks: Iterable[int]) -> list[Part]:
        return [self._part(number, file, block) for block in blocks]

    def _submit(self, requests: Sequence[Request]) -> None:
        """Start requests that were granted. If no thread can start, there is no read-ahead."""
        try:
            for request in requests:
                self.under_way.add(request.made_by(partial(self._run, request)))
            self._fetcher.threads.start(requests)
        except BaseException as error:
            for request in requests:
                self._give_up(request)
                self.governor.give_back(request.size)
            if not isinstance(error, RuntimeError | StorageClosedError):
                raise
            logger.info("not reading ahead: %s", error)

    def _start(self, request: Request, deadline: float) -> bool:
        """Make a request in another thread at once; False if none can: it does not wait behind what is read ahead."""
        if not self._fetcher.threads.has_room:
            return False
        try:
            self._fetcher.threads.start([request.made_by(partial(self._run, request, deadline))])
        except (RuntimeError, StorageClosedError):
            return False
        return True

    def _run(self, request: Request, deadline: float | None = None) -> None:
        """Make one request and hand each part, when it has come, to the cache and to the readers that wait for it.

        The last one waits for the end: who has all of a request's bytes finds it counted.
        """
        cutter = Cutter(request.parts)

        def take(piece: bytes) -> None:
            request.came_at = time.monotonic()
            for part, data in cutter.feed(piece):
                self._bring(request, part, data)

        try:
            self._fetcher.gets.read_pieces(request.file, request.offset, request.size, take, deadline)
            self._bring(request, *cutter.last())
        except Exception as error:  # noqa: BLE001 (handed to the readers that wait, to the last one)
            if request.ahead:
                self.governor.give_back(request.size - cutter.came)
            request.end(error)
        finally:
            self._give_up(request)

    def _bring(self, request: Request, part: Part, data: bytes) -> None:
        self._fetcher.keep(request.file, part.offset, data)  # first: what a reader has seen is on its way to the folder
        self.cache.put(part.key, data, ahead=request.ahead)
        self.under_way.came(request, part)  # from here on readers find it in the cache
        request.bring(part.key, data)

    def _give_up(self, request: Request) -> None:
        """End a request: a reader that still waits for it, as after Ctrl-C, makes its own."""
        self.under_way.forget(request)
        request.end(TransientStorageError("the read that this one waited for was interrupted"))
