"""Fetches pages that were planned ahead. Knows where pages are; `watcher` knows which and why, `blocks` how.

A failure here raises no error: a reader that needs the page reads it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Sequence

from litevfs.errors import LitevfsError
from litevfs.files.blocks import BlockReader
from litevfs.files.byte_cache import ENTRY_OVERHEAD_BYTES, ByteCache
from litevfs.files.governor import FREE_BYTES
from litevfs.files.ranges import Range
from litevfs.pages.watcher import Watcher
from litevfs.states.chunks import CHUNK_BITS, CHUNK_MASK, FRAME_SIZE_BITS, FRAME_SIZE_MASK
from litevfs.states.snapshot import Snapshot, decode_page, page_key
from litevfs.states.unplaced import locate

logger = logging.getLogger("litevfs.pages.ahead")

FIRST_FRAME_BYTES = 2048.0
"""Assumed size of a page's frame, until a state is known."""
FRAMES_AVERAGED = 64
STAYING_SHARE = 0.25
"""Pages of a plan that would fill more of the page cache are not counted on there: others drive them out."""

GUESS_SHARE = 0.5
"""Part of a round trip that the bytes of one guess may take: it saves a whole one if it is right."""
GUESS_PART = 0.5
"""A guess of which less can be fetched is too seldom right."""
MAX_GUESS_BYTES = 2_000_000
"""Of one guess, however much the line carries."""
GUESS_RESERVE_BYTES = FREE_BYTES // 2
"""Of what may be read for nothing, kept for plans that rest on more than a guess."""

LOOK_S = 1e-4
"""To decode a page and its entries takes about so long."""


class ReadAhead:
    """Fetches the bytes of planned pages, and shows a watcher the interior pages that its plan waits for."""

    def __init__(self, blocks: BlockReader, cache: ByteCache) -> None:
        self._blocks = blocks
        self._cache = cache
        self._is_new = True  # no state is known yet
        self._frame_bytes = FIRST_FRAME_BYTES  # of a page, on average

    def follow(self, snapshot: Snapshot) -> None:
        """A state is published: its files say how large a frame is, before any was read.

        A plan of larger frames than assumed would drive its own pages out of the cache before they are read.
        """
        if self._is_new and snapshot.commit:
            self._is_new = False
            size = sum(file.size for file in snapshot.files.values()) / snapshot.commit
            self._frame_bytes = min(size, float(snapshot.page_size))

    def max_pages(self) -> int:
        """Pages that may be kept ahead without driving each other out of the cache; their blocks take a little more."""
        return self._pages_in(self._blocks.ahead_bytes)

    def pages_kept(self) -> int:
        """Like `max_pages`, however long it takes until they come."""
        return self._pages_in(self._blocks.cache.room_bytes)

    def _pages_in(self, most: int) -> int:
        room = max(most - 2 * self._blocks.block_bytes, most / 2)
        return int(room / (self._frame_bytes + ENTRY_OVERHEAD_BYTES))

    def start(
        self,
        snapshot: Snapshot,
        pgnos: Iterable[int],
        watcher: Watcher,
        owner: object | None = None,
        *,
        is_sparing: bool = False,
    ) -> None:
        """Start fetching the pages that are neither cached nor under way. Returns at once.

        The owner, which is the watcher if none is given, may `take_back` what has not begun. `is_sparing`: see
        `BlockReader.read_ahead`.
        """
        pgnos = list(pgnos)
        if snapshot.unplaced:  # this may be a thread of the pool, which must not wait for another one
            pgnos = [pgno for pgno in pgnos if snapshot.is_placed(pgno)]
        most = self._blocks.scan_request_bytes if watcher.is_on_its_way else self._blocks.request_bytes
        for number, frames in self._missing(snapshot, pgnos).items():
            frames.sort()
            file = snapshot.files[number]
            if not self._blocks.read_ahead(number, file, frames, owner or watcher, most, is_sparing=is_sparing):
                watcher.hold_back()
        watcher.max_window = self.max_pages()
        watcher.credit = int((self._blocks.governor.credit - 2 * self._blocks.block_bytes) / self._frame_bytes)
        watcher.step = int(most / self._frame_bytes)
        for pgno in watcher.awaited(pgnos):
            self._show_when_there(snapshot, pgno, watcher)

    def peek(self, snapshot: Snapshot, pgno: int) -> bytes | None:
        """A page's bytes if they are in memory and sound; does not count as their use."""
        version = snapshot.version(pgno)
        if not version or not snapshot.is_placed(pgno):
            return None
        page = self._cache.peek(page_key(snapshot, version, pgno))
        frame = None if page else self._blocks.peek(*snapshot.place(pgno))
        if frame is not None:
            try:
                page = decode_page(snapshot, pgno, frame)
            except LitevfsError as error:
                logger.info("page %d in memory is damaged: %s", pgno, error)
        return page

    def guess(self, snapshot: Snapshot, pgnos: Sequence[int]) -> Sequence[int]:
        """Start fetching the first of these pages, as many as cost less than a round trip. Returns them at once.

        None if that is less than the part GUESS_PART of them, or if too much was read for nothing before.
        """
        room = self._guess_bytes
        wanted: list[int] = []
        for number, pgno in enumerate(pgnos):
            size = _frame_size(snapshot, pgno)
            if size > room:
                if number < GUESS_PART * len(pgnos):
                    return ()
                break
            room -= size
            if size:
                wanted.append(pgno)
        return wanted if self._start_guess(snapshot, wanted) else ()

    def guess_trees(self, snapshot: Snapshot, trees: Iterable[Sequence[int]]) -> None:
        """Start fetching small trees, by their leaves: each whole, as many as cost less than a round trip together.

        And no more than there is room for beside the reserve of `guess`.
        """
        room = min(self._guess_bytes, self._blocks.governor.credit - GUESS_RESERVE_BYTES)
        wanted: list[int] = []
        for leaves in sorted(trees, key=len):
            room -= sum(_frame_size(snapshot, pgno) for pgno in leaves)
            if room < 0:
                break
            wanted += leaves
        self._start_guess(snapshot, wanted)

    @property
    def _guess_bytes(self) -> int:
        return min(int(self._blocks.line.trip_bytes * GUESS_SHARE), MAX_GUESS_BYTES)

    def _start_guess(self, snapshot: Snapshot, pgnos: list[int]) -> bool:
        """Start fetching those that are missing; False if none is, or too much was read for nothing before."""
        missing = self._missing(snapshot, [pgno for pgno in pgnos if snapshot.is_placed(pgno)])
        total = sum(size for frames in missing.values() for _, size in frames)
        if not total or not self._blocks.governor.has_room(total, beside=GUESS_RESERVE_BYTES):
            return False
        for number, frames in missing.items():
            self._blocks.read_ahead(number, snapshot.files[number], sorted(frames))
        return True

    def want_alone(self, snapshot: Snapshot, pgno: int) -> None:
        """Let the read of a page that is about to wait bring no pages beside it; see `BlockReader.want_alone`."""
        if snapshot.version(pgno) and snapshot.is_placed(pgno):
            number, offset, _ = snapshot.place(pgno)
            self._blocks.want_alone(number, snapshot.files[number], offset)

    def take_back(self, owner: object) -> None:
        """Take back what this owner alone has started, as far as it has not begun."""
        self._blocks.take_back(owner)

    def fetch(
        self,
        snapshot: Snapshot,
        pgnos: list[int],
        owner: object,
        call: Callable[[], object],
        *,
        is_sparing: bool = False,
    ) -> None:
        """Start fetching pages, and make the call when the requests for them have ended, with or without them.

        `is_sparing`: see `BlockReader.read_ahead`.
        """
        locate(snapshot, pgnos)
        self.start(snapshot, pgnos, Watcher(self.max_pages()), owner, is_sparing=is_sparing)
        self._when_there(snapshot, pgnos, call)

    def hold(self, snapshot: Snapshot, pgnos: Iterable[int], again: Container[int]) -> None:
        """Let these pages, if they are in memory, stay for a next use longer than others, the last one longest.

        Those that are used `again` stay after that, too.
        """
        for pgno in pgnos:
            if snapshot.version(pgno) and snapshot.is_placed(pgno):
                self._blocks.hold(*snapshot.place(pgno), stays=pgno in again)

    def _when_there(self, snapshot: Snapshot, pgnos: Iterable[int], call: Callable[[], object]) -> None:
        places = [snapshot.place(pgno) for pgno in pgnos if snapshot.version(pgno) and snapshot.is_placed(pgno)]
        left = iter(range(len(places)))  # `next` of it is atomic

        def one_more() -> None:
            if next(left, -1) < 0:
                call()

        for place in places:
            self._blocks.when_there(*place, one_more)
        one_more()

    def room(self) -> tuple[int, int]:
        """How many pages may be read ahead by what was read for nothing so far, and how many a request brings."""
        credit = self._blocks.governor.credit - 2 * self._blocks.block_bytes
        return int(credit / self._frame_bytes), int(self._blocks.request_bytes / self._frame_bytes)

    @property
    def used_bytes(self) -> int:
        """How many bytes that were read ahead have been used."""
        return self._blocks.governor.used

    @property
    def used_pages(self) -> int:
        """How many pages that is, about."""
        return int(self.used_bytes / self._frame_bytes)

    @property
    def pages_for_a_request(self) -> float:
        """How many pages come in the time that a request takes among many, beside its bytes."""
        return self._blocks.line.gap_bytes / self._frame_bytes

    @property
    def pages_in_a_trip(self) -> int:
        """How many pages can be looked at in the time of a round trip."""
        return int(self._blocks.line.latency_s / LOOK_S)

    def _missing(self, snapshot: Snapshot, pgnos: list[int]) -> dict[int, list[Range]]:
        """Frames by file of the pages that are not in the page cache, or will not be when their turn comes."""
        missing: dict[int, list[Range]] = {}
        total = count = 0
        stay = len(pgnos) * (snapshot.page_size + ENTRY_OVERHEAD_BYTES) <= self._cache.limit_bytes * STAYING_SHARE
        chunks, last, touch = snapshot.chunks, snapshot.commit, self._cache.touch
        for pgno in pgnos:
            if not 1 <= pgno <= last:
                continue
            chunk, slot = chunks[(pgno - 1) >> CHUNK_BITS], (pgno - 1) & CHUNK_MASK
            version = chunk.versions[slot]
            if version and not (stay and touch(page_key(snapshot, version, pgno))):
                frame = chunk.frames[slot]
                size = frame & FRAME_SIZE_MASK
                missing.setdefault(chunk.files[slot], []).append((frame >> FRAME_SIZE_BITS, size))
                total += size
                count += 1
        if count:
            self._frame_bytes += (total / count - self._frame_bytes) * min(1.0, count / FRAMES_AVERAGED)
        return missing

    def _show_when_there(self, snapshot: Snapshot, pgno: int, watcher: Watcher) -> None:
        if snapshot.version(pgno) and not self._show_if_there(snapshot, pgno, watcher):
            number, offset, size = snapshot.place(pgno)
            self._blocks.when_there(number, offset, size, lambda: self._show_if_there(snapshot, pgno, watcher))

    def _show_if_there(self, snapshot: Snapshot, pgno: int, watcher: Watcher) -> bool:
        page = self.peek(snapshot, pgno)
        if page is not None and (more := watcher.learn(pgno, page)):
            self.start(snapshot, more, watcher)
        return page is not None


def _frame_size(snapshot: Snapshot, pgno: int) -> int:
    """Bytes of a page's frame; 0 if there is none, or where it lies is not known without reading."""
    return snapshot.place(pgno)[2] if snapshot.version(pgno) and snapshot.is_placed(pgno) else 0
