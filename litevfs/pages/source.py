"""`PageSource.read(snapshot, pgno)`: the way down from SQLite's page to bytes in storage, through every tier.

A read tries the page cache, the hydrated file if there is one, the blocks (where a request costs a round trip), and
then storage. The source checks what it gets: the frame by its header and size; a file that was read whole was checked
by its checksum before it was published. Damaged bytes are read again once; for a file that is gone, the source asks its
owner for another one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from litevfs.errors import LitevfsError, LTXFormatError, StorageNotFoundError, TransientStorageError
from litevfs.files.blocks import BlockReader
from litevfs.files.byte_cache import ByteCache
from litevfs.files.fetch import Fetcher
from litevfs.files.fetched import FetchedFile
from litevfs.files.governor import Governor
from litevfs.files.spill import Spill
from litevfs.ltx.format import lock_pgno
from litevfs.pages.ahead import ReadAhead
from litevfs.pages.counters import PageCounters
from litevfs.pages.hydration import Hydration
from litevfs.pages.page_one import as_rollback_journal
from litevfs.pages.quick_reads import QuickReads
from litevfs.pages.reads import Reads, Waits, WatchedReads
from litevfs.pages.recall import JUMPS
from litevfs.pages.runs import MAX_RUN_BYTES, Run, Runs, run_from
from litevfs.pages.watcher import Watcher
from litevfs.replica_clients.base import KeepsOpen
from litevfs.states.chunks import CHUNK_BITS, CHUNK_MASK
from litevfs.states.snapshot import EPOCH_SHIFT, PGNO_BITS, Snapshot, decode_page, page_key
from litevfs.states.unplaced import locate

logger = logging.getLogger("litevfs.pages.source")

BLOCK_SHARE = 0.8
"""Part of the cache for blocks where there are any: they hold compressed pages, so the same memory goes further."""

RUNS_IN_CACHE = 8
"""Runs of pages that the page cache has room for, at least."""

MAX_MOVES = 8
"""How many other files one read tries for a page: meanwhile, retention may delete the next file too."""

SCAN_SHARE = 0.5
"""Part of the page cache that one scan may take."""

FindElsewhere = Callable[[Snapshot, int, StorageNotFoundError, float], Snapshot]
"""(snapshot, pgno, why, deadline) -> a snapshot that has the same version of the page in another file.

Or a clear error, soon after the deadline (`time.monotonic()`, seconds) at the latest.
"""


@dataclass(frozen=True, slots=True)
class Along:
    """What is decoded along with a page."""

    count: int  # of pages, at most, with the page itself
    pages: dict[int, bytes] | None = None  # gets them, by offset in the database
    is_kept: bool = True  # in the page cache, too


class PageSource:
    """Pages of all snapshots of one replica, shared by its connections. Safe to use from many threads."""

    def __init__(
        self,
        fetcher: Fetcher,
        find_elsewhere: FindElsewhere,
        *,
        cache_size_bytes: int,
        prefetch: bool,
        governor: Governor | None = None,
        spill_size_bytes: int = 0,
    ) -> None:
        self._fetcher = fetcher
        self._find_elsewhere = find_elsewhere
        self.counters = PageCounters()
        block_bytes = int(cache_size_bytes * BLOCK_SHARE) if fetcher.is_remote else 0
        self._cache = ByteCache(cache_size_bytes - block_bytes)
        self._cached = self._cache.get
        self.blocks = (
            BlockReader(fetcher, limit_bytes=block_bytes, governor=governor, spill_bytes=spill_size_bytes)
            if fetcher.is_remote
            else None
        )
        """Where a request to the storage costs a round trip."""
        self.ahead = ReadAhead(self.blocks, self._cache) if self.blocks and prefetch else None
        """What reads ahead, where that pays and is wanted."""
        self._client_read, self._counters = fetcher.client.read, fetcher.counters
        self.hydration: Hydration | None = None
        self._runs = Runs()
        self._gone: set[int] = set()  # numbers of files that have vanished; few, and small

    def hydrate(self, path: str | None, *, lazily: bool = False) -> None:
        """From now on, copy the states that are published into a local file and read from there what it has.

        Without room or rights for a file, reads go on without it. Raises OptionError if `path` can be no file.
        """
        try:
            self.hydration = self.hydration or Hydration(
                path, self._reads_in_order(), url=self._fetcher.client.url, lazily=lazily
            )
        except OSError as error:
            if isinstance(error, LitevfsError):
                raise
            logger.warning("nothing is hydrated until the replica is opened again, reads go to the storage: %s", error)

    def follow(self, snapshot: Snapshot) -> None:
        """A new state is published."""
        if self.ahead is not None:
            self.ahead.follow(snapshot)
        if self.hydration is not None:
            self.hydration.follow(snapshot)

    def close(self) -> None:
        """End the background threads, close the files. Idempotent."""
        if self.hydration is not None:
            self.hydration.close()
        if self.spill is not None:
            self.spill.close()

    def leave_to_parent(self) -> Snapshot | None:
        """In a forked child: let go of the parent's files. Returns the state that its hydrated file followed."""
        if self.spill is not None:
            self.spill.leave_to_parent()
        return self.hydration.leave_to_parent() if self.hydration is not None else None

    @property
    def spill(self) -> Spill | None:
        """The file for what memory has no room for, where there may be one."""
        return self.blocks.cache.spill if self.blocks is not None else None

    @property
    def memory_bytes(self) -> int:
        """Memory of all caches."""
        return self._cache.size_bytes + (self.blocks.cache.size_bytes if self.blocks else 0)

    def enlarge(self, cache_size_bytes: int) -> None:
        """Let the caches take up to `cache_size_bytes` in all, if that is more than now."""
        block_bytes = int(cache_size_bytes * BLOCK_SHARE) if self.blocks else 0
        self._cache.enlarge(cache_size_bytes - block_bytes)
        if self.blocks is not None:
            self.blocks.cache.enlarge(block_bytes)

    def keep(self, number: int, file: FetchedFile) -> None:
        """Put bytes into the blocks that opening a file has read anyway."""
        if self.blocks is not None:
            self.blocks.keep(number, file.info, file.head if file.data is None else file.data)

    def read(self, snapshot: Snapshot, pgno: int, along: dict[int, bytes] | None = None) -> bytes:
        """The bytes of page `pgno` (from 1 on) as the snapshot has it, `snapshot.page_size` of them, not patched.

        Where pages were decoded along with it because a scan needs them next, they are the new content of `along`, by
        their offset in the database (bytes). Raises PageUnavailableError, LTXFormatError or a StorageError; never
        returns anything else than the page.
        """
        if 1 <= pgno <= snapshot.commit:
            chunk = snapshot.chunks[(pgno - 1) >> CHUNK_BITS]
            slot = (pgno - 1) & CHUNK_MASK
            version = chunk.versions[slot]
            key = snapshot.epoch << EPOCH_SHIFT | version << PGNO_BITS | pgno
            page = self._cached(key)
            if page is not None:
                self.counters.hits += 1
                return page
            if version:
                return self._load(snapshot, pgno, version, key, along)
            if pgno == lock_pgno(snapshot.page_size):
                return bytes(snapshot.page_size)  # in no LTX file, and zeros in every database
        snapshot.place(pgno)  # raises: no file holds the page
        raise AssertionError(pgno)

    def first_page(self, snapshot: Snapshot, *, schema_salt: int = 0) -> bytes:
        """Page 1 as SQLite has to see it: a rollback-journal database whose change counter is the snapshot's.

        `schema_salt` is added to the schema's version number, so that SQLite reads the schema again. Empty if the
        database has no page.
        """
        if not snapshot.commit:
            return b""
        return as_rollback_journal(self.read(snapshot, 1), snapshot.change_counter, snapshot.commit, schema_salt)

    # --- read-ahead ---------------------------------------------------------------------------------------------------

    def reads(self, waits: Waits | None = None) -> Reads:
        """The reads of one connection: watched, where read-ahead pays. `waits` is told when they wait."""
        if self.ahead is not None:
            return WatchedReads(self, Watcher(self.ahead.max_pages()), waits)
        client = self._fetcher.client
        if self.blocks is not None or self.hydration is not None or not isinstance(client, KeepsOpen):
            return self
        return QuickReads(self, client, self._cache, self._runs, self.counters, self._counters)

    def read_ahead(self, snapshot: Snapshot, pgnos: list[int], watcher: Watcher) -> None:
        """Start fetching pages that will probably be read."""
        if self.ahead is not None:
            if self.hydration is not None:
                pgnos = self.hydration.lacks(snapshot, pgnos)
            locate(snapshot, pgnos)
            self.ahead.start(snapshot, pgnos, watcher)

    def guess(self, snapshot: Snapshot, pgnos: Sequence[int]) -> Sequence[int]:
        """Start fetching the first of these pages if they cost less than a round trip. Returns them."""
        return () if self.ahead is None or self.hydration is not None else self.ahead.guess(snapshot, pgnos)

    def needs_request(self, snapshot: Snapshot, pgno: int) -> bool:
        """Whether a read of the page would have to ask a storage where that costs a round trip."""
        version = snapshot.version(pgno)
        if self.blocks is None or not version or page_key(snapshot, version, pgno) in self._cache:
            return False
        if self.hydration is not None and not self.hydration.lacks(snapshot, [pgno]):
            return False
        if not snapshot.is_placed(pgno):
            return True
        number, offset, size = snapshot.place(pgno)
        return not self.blocks.has(number, snapshot.files[number], offset, size)

    def recall(self, snapshot: Snapshot, watcher: Watcher) -> list[int]:
        """What look-ups need next that an earlier query's index leaf explains: a search as long as the trips so far."""
        if self.ahead is None:
            return []
        most = JUMPS * self.ahead.pages_in_a_trip
        return watcher.recalled(partial(self.ahead.peek, snapshot), most)

    @property
    def is_remote(self) -> bool:
        """Whether a request to the storage costs a round trip."""
        return self.blocks is not None

    def announce(self, snapshot: Snapshot, pgnos: list[int]) -> None:
        """Start fetching pages that the caller reads next, all of them."""
        if self.ahead is not None:
            locate(snapshot, pgnos)
            self.ahead.start(snapshot, pgnos, Watcher(self.ahead.max_pages()))

    def _reads_in_order(self) -> Callable[[Snapshot, int], bytes]:
        """`read_through` for a reader that reads pages in the order of their numbers."""
        if self.ahead is None:
            return self.read_through
        watcher = Watcher(self.ahead.max_pages())

        def read(snapshot: Snapshot, pgno: int) -> bytes:
            if ahead := watcher.follow_run(pgno):
                self.read_ahead(snapshot, ahead, watcher)
            return self.read_through(snapshot, pgno)

        return read

    # --- misses -------------------------------------------------------------------------------------------------------

    def _load(self, snapshot: Snapshot, pgno: int, version: int, key: int, along: dict[int, bytes] | None) -> bytes:
        deadline = None if self.blocks is None else self._fetcher.deadline()
        if self.hydration is not None and (page := self.hydration.get(snapshot, version, pgno)) is not None:
            self.counters.hydrated += 1
        else:
            self.counters.misses += 1
            if self._runs.is_alone(pgno):
                page = self.read_through(snapshot, pgno, deadline)
            else:
                page, is_kept = self._load_run(snapshot, pgno, deadline, along)
                if not is_kept:
                    return page
        self._cache.put(key, page)
        return page

    def _load_run(
        self, snapshot: Snapshot, pgno: int, deadline: float | None, along: dict[int, bytes] | None
    ) -> tuple[bytes, bool]:
        """A page that goes on with a run of reads, and those that come next; and whether they are worth keeping."""
        count, scanned = self._runs.length_from(pgno, self._run_bytes // snapshot.page_size)
        if count == 1:
            return self.read_through(snapshot, pgno, deadline), True
        is_kept = along is None or scanned * snapshot.page_size <= self._cache.limit_bytes * SCAN_SHARE
        return self.read_through(snapshot, pgno, deadline, Along(count, along, is_kept)), is_kept

    @property
    def _run_bytes(self) -> int:
        return min(MAX_RUN_BYTES, self._cache.limit_bytes // RUNS_IN_CACHE)

    def read_through(
        self, snapshot: Snapshot, pgno: int, deadline: float | None = None, along: Along | None = None
    ) -> bytes:
        """Like `read`, past the page cache: for callers that read every page once.

        `along`: what is worth decoding with it, where that costs no request more; `pgno` itself is not kept. Ends by
        `deadline`, one read timeout from now if that is not given (see `Fetcher.deadline`).
        """
        try:
            return self._read_from(snapshot, pgno, deadline, along)
        except StorageNotFoundError as error:
            gone = error
        return self._read_elsewhere(snapshot, pgno, gone, deadline)

    def _read_elsewhere(
        self, snapshot: Snapshot, pgno: int, gone: StorageNotFoundError, deadline: float | None
    ) -> bytes:
        """The page from another file. A run ends here: only this page is sure to be the same there."""
        deadline = self._fetcher.deadline() if deadline is None else deadline
        for _ in range(MAX_MOVES):
            self._note_gone(snapshot, pgno)
            try:
                snapshot = self._find_elsewhere(snapshot, pgno, gone, deadline)
                self._gone.discard(snapshot.file_number(pgno))  # the file is listed, maybe again
                return self._read_from(snapshot, pgno, deadline, None)
            except StorageNotFoundError as error:  # the page's file, or another one that vanished meanwhile
                gone = error
        self._note_gone(snapshot, pgno)
        raise gone

    def _note_gone(self, snapshot: Snapshot, pgno: int) -> None:
        self._gone.add(snapshot.file_number(pgno))
        self.counters.relocated += 1

    def _read_from(self, snapshot: Snapshot, pgno: int, deadline: float | None, along: Along | None) -> bytes:
        number, offset, size = snapshot.place(pgno)
        run = None if along is None else run_from(snapshot, pgno, along.count)
        try:
            data = self._fetch(snapshot, number, offset, size, run.size if run else size, deadline)
            if run and along and (pages := run.decode(snapshot, data)):
                self._hand_out(snapshot, run, pages, along)
                return pages[0]
            return decode_page(snapshot, pgno, data[:size])
        except (LTXFormatError, TransientStorageError) as error:
            return self._read_again(snapshot, pgno, error, deadline)

    def _fetch(
        self, snapshot: Snapshot, number: int, offset: int, size: int, most: int, deadline: float | None
    ) -> bytes:
        """`size` bytes of a file of the snapshot, or up to `most` of them where that costs no request more."""
        if number in self._gone:
            raise StorageNotFoundError("the file is gone, as an earlier read has shown")
        if self.blocks is None:
            data = self._client_read(snapshot.files[number], offset, most)
            counters = self._counters
            counters.get += 1
            counters.bytes_read += most
            return data
        deadline = self._fetcher.deadline() if deadline is None else deadline
        return self.blocks.read(number, snapshot.files[number], offset, size, deadline, most=most)

    def _hand_out(self, snapshot: Snapshot, run: Run, pages: list[bytes], along: Along) -> None:
        """Let the pages after the first one be found by the reads that come."""
        count = len(pages) - 1
        if along.pages is not None:
            along.pages.clear()
            along.pages.update(zip(run.places(snapshot.page_size), pages, strict=False))
        if along.is_kept:
            kept = run.by_key(snapshot, pages)
            del kept[page_key(snapshot, run.versions[0], run.pgnos[0])]
            count = self._cache.put_all(kept)
        if along.pages is None:
            self.counters.decoded_along(count)
        else:
            self.counters.misses += count

    def keep_pages(self, snapshot: Snapshot, pages: dict[int, bytes]) -> None:
        """Keep pages, by number, that were decoded along with one: their first read is about to come."""
        self._cache.put_all({page_key(snapshot, snapshot.version(pgno), pgno): page for pgno, page in pages.items()})
        self.counters.hits -= len(pages)

    def _read_again(self, snapshot: Snapshot, pgno: int, why: Exception, deadline: float | None) -> bytes:
        """Read straight from storage, past the blocks: the damaged bytes may come from a block."""
        number, offset, size = snapshot.place(pgno)
        file = snapshot.files[number]
        logger.info("reading page %d of %s again: %s", pgno, file.name, why)
        self.counters.reread += 1
        if self.blocks is not None:
            self.blocks.drop(number, file, offset, size)
        after = why if isinstance(why, TransientStorageError) else None
        try:
            data = self._fetcher.read(file, offset, size, after=after, deadline=deadline)
            return decode_page(snapshot, pgno, data)
        except LTXFormatError as error:
            raise self._fetcher.located(error, file) from error
