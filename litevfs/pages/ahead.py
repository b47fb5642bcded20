"""Fetches pages that were planned ahead, in few large requests. Knows where pages are; `prefetch` knows which and why.

Pages that lie close together in a file come in one range read. A range that is mostly wanted goes into the blocks,
where neighbours are worth keeping; of a range that is mostly gaps only the wanted pages are kept.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

from litevfs.concurrency.futures import closed_error, settle
from litevfs.errors import LitevfsError, StorageClosedError
from litevfs.files.blocks import BlockReader
from litevfs.files.byte_cache import ENTRY_OVERHEAD_BYTES, ByteCache
from litevfs.files.fetch import Fetcher, patience_s
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.states.snapshot import Snapshot, decode_page

logger = logging.getLogger("litevfs.pages.ahead")

MAX_GAP_BYTES = 1 << 19
"""Reading over a gap of this size costs less than another request, at 10 ms a round trip and 50 MB/s."""
MAX_RUN_BYTES = 1 << 21
"""Size of a request for scattered pages."""
DENSE = 0.5
"""From this part of wanted bytes on, a range is worth keeping as blocks."""

PageKey = Callable[[Snapshot, int, int], int]
"""(snapshot, version, pgno) -> the name of the page's content in the page cache."""
Learn = Callable[[int, bytes], list[int]]
"""(pgno, page) -> further pages that are wanted, now that this one is known."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    number: int  # of the file
    offset: int  # bytes
    size: int  # bytes
    pgno: int
    key: int  # of the page in the page cache


class ReadAhead:
    """Brings planned pages into the caches. Failures are nobody's error: whoever needs the page reads it again."""

    def __init__(self, fetcher: Fetcher, cache: ByteCache, blocks: BlockReader) -> None:
        self._fetcher = fetcher
        self._cache = cache
        self._blocks = blocks
        self._block_size = fetcher.client.block_size
        self._under_way: dict[int, Future[dict[int, bytes]]] = {}
        self._lock = threading.Lock()

    def max_pages(self, page_size: int) -> int:
        """Pages that may be kept ahead without driving each other out of the cache."""
        return self._cache.limit_bytes // (2 * (page_size + ENTRY_OVERHEAD_BYTES))

    def wait_for(self, key: int, deadline: float) -> bytes | None:
        """The page if it is under way, once it is there; None if it is not, or does not arrive.

        Whoever needs it has to have it by `deadline` (see `Fetcher.deadline`), so the wait leaves time to read it.
        """
        future = self._under_way.get(key)
        if future is None:
            return None
        try:
            return future.result(patience_s(deadline)).get(key)
        except LitevfsError:
            return None
        except FutureTimeoutError:
            with self._lock:
                self._forget(key, future)
            return None

    def start(self, snapshot: Snapshot, pgnos: Iterable[int], page_key: PageKey, learn: Learn) -> None:
        """Fetch what is neither there nor under way. Returns at once."""
        with self._lock:
            wanted = self._missing(snapshot, pgnos, page_key)
            try:
                for run in _runs(wanted):
                    self._start_run(snapshot, run, page_key, learn)
            except StorageClosedError:
                pass
            except RuntimeError as error:  # no threads to be had: nothing is read ahead
                logger.info("not reading ahead: %s", error)

    def _missing(self, snapshot: Snapshot, pgnos: Iterable[int], page_key: PageKey) -> list[_Wanted]:
        missing = []
        near = None  # (file, block) that was there for the page before, as it is for most pages of a scan
        for pgno in pgnos:
            version = snapshot.version(pgno)
            if not version:
                continue
            number, offset, size = snapshot.place(pgno)
            block = (number, offset // self._block_size)
            if block == near:
                continue
            key = page_key(snapshot, version, pgno)
            if key in self._cache or key in self._under_way:
                continue
            if self._blocks.has(number, snapshot.files[number], offset, size):
                near = block
            else:
                missing.append(_Wanted(number, offset, size, pgno, key))
        return sorted(missing, key=lambda page: (page.number, page.offset))

    def _start_run(self, snapshot: Snapshot, run: list[_Wanted], page_key: PageKey, learn: Learn) -> None:
        file = snapshot.files[run[0].number]
        start, end = run[0].offset, run[-1].offset + run[-1].size
        if len(run) > 1 and sum(page.size for page in run) >= DENSE * (end - start):
            self._blocks.prefetch(run[0].number, file, start, end - start)
            return
        future: Future[dict[int, bytes]] = Future()

        def fetch() -> None:
            start, size = self._fetcher.worth_reading(file, run[0].offset, run[-1].offset + run[-1].size)
            pages = self._fetch(snapshot, file, run, start, size, future)
            more = [pgno for page in run if page.key in pages for pgno in learn(page.pgno, pages[page.key])]
            if more:
                self.start(snapshot, more, page_key, learn)

        def end_if_cancelled(task: Future[None]) -> None:
            if task.cancelled():
                settle(future, closed_error())

        try:
            for page in run:
                self._under_way[page.key] = future
            self._fetcher.submit(fetch).add_done_callback(end_if_cancelled)
        except BaseException:
            for page in run:
                self._forget(page.key, future)
            settle(future, {})
            raise

    def _forget(self, key: int, future: Future[dict[int, bytes]]) -> None:
        """With the lock held."""
        if self._under_way.get(key) is future:
            del self._under_way[key]

    def _fetch(
        self,
        snapshot: Snapshot,
        file: LTXFileInfo,
        run: list[_Wanted],
        start: int,
        size: int,
        future: Future[dict[int, bytes]],
    ) -> dict[int, bytes]:
        """Pages by key, handed to the cache and to whoever waits for them; what failed is not there."""
        pages: dict[int, bytes] = {}
        try:
            self._read(snapshot, file, run, start, size, pages)
            for key, data in pages.items():
                self._cache.put(key, data)
        finally:
            settle(future, pages)
            with self._lock:
                for page in run:
                    self._forget(page.key, future)
        return pages

    def _read(
        self, snapshot: Snapshot, file: LTXFileInfo, run: list[_Wanted], start: int, size: int, pages: dict[int, bytes]
    ) -> None:
        """Read a run into `pages`. The folder has its bytes before anybody sees a page, if all of them are right."""
        try:
            data = self._fetcher.read_once(file, start, size)
            for page in run:
                frame = data[page.offset - start : page.offset - start + page.size]
                pages[page.key] = decode_page(snapshot, page.pgno, frame)
            self._fetcher.keep(file, start, data)
        except LitevfsError as error:
            logger.info("reading ahead in %s failed: %s", file.name, error)


def _runs(wanted: list[_Wanted]) -> list[list[_Wanted]]:
    """Pages in file order, split where a gap or a request would become too large."""
    runs: list[list[_Wanted]] = []
    for page in wanted:
        last = runs[-1] if runs else None
        if (
            last is not None
            and page.number == last[-1].number
            and page.offset - (last[-1].offset + last[-1].size) <= MAX_GAP_BYTES
            and page.offset + page.size - last[0].offset <= MAX_RUN_BYTES
        ):
            last.append(page)
        else:
            runs.append([page])
    return runs
