"""One connection's reads of a page source, and the read-ahead that follows from them.

Where read-ahead does not pay, the source itself is a connection's `Reads`: no extra call per page.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from litevfs.pages.ahead import ReadAhead
from litevfs.pages.btree import LEAF_TABLE
from litevfs.pages.guesses import Guesses
from litevfs.pages.patterns import Scan
from litevfs.pages.shared_scans import Begin
from litevfs.pages.watcher import Watcher
from litevfs.states.snapshot import Snapshot

logger = logging.getLogger("litevfs.pages.reads")

MANY_WAITS, NEAR, PLACES = 16, 32, 4
"""After so many waits of a query, one for a page that is further from those of the last few brings it alone where there
is not room for all: what lies around such pages is used too seldom."""
CALM = 256
"""After so many reads in a row for which nothing had to come, look-ups of rows are not followed until something has to:
to follow one takes several times as long as to read a page that is in memory."""
_TABLE_LEAVES = {LEAF_TABLE}


class Reads(Protocol):
    """How a connection reads pages; `PageSource` documents the methods."""

    def read(self, snapshot: Snapshot, pgno: int, along: dict[int, bytes] | None = None) -> bytes:
        """Page `pgno` as the snapshot has it; `along` may get the pages that a scan reads next."""
        ...

    def first_page(self, snapshot: Snapshot, *, schema_salt: int = 0) -> bytes:
        """Page 1 as SQLite has to see it."""
        ...


class Waits(Protocol):
    """What is told of the waits of one connection's reads."""

    def before_wait(self, snapshot: Snapshot, begins: int) -> None:
        """A read is about to wait for the storage; it is the connection's query number `begins`."""
        ...

    def stop(self) -> None:
        """The connection is closed. Waits for nothing; idempotent."""
        ...


class Source(Reads, Protocol):
    """A page source that can read ahead."""

    def needs_request(self, snapshot: Snapshot, pgno: int) -> bool:
        """Whether a read of the page would have to ask the storage."""
        ...

    def keep_pages(self, snapshot: Snapshot, pages: dict[int, bytes]) -> None:
        """Keep pages, by number, that were decoded along with one and not handed out."""
        ...

    def read_ahead(self, snapshot: Snapshot, pgnos: list[int], watcher: Watcher) -> None:
        """Start fetching pages that will probably be read."""
        ...

    def guess(self, snapshot: Snapshot, pgnos: Sequence[int]) -> Sequence[int]:
        """Start fetching the first of these pages if they cost less than a round trip. Returns them."""
        ...

    @property
    def ahead(self) -> ReadAhead | None:
        """What reads ahead, where that pays and is wanted."""
        ...

    def recall(self, snapshot: Snapshot, watcher: Watcher) -> list[int]:
        """What look-ups need next that an earlier query's index leaf explains."""
        ...


class WatchedReads:
    """Reads of one connection; from their order a watcher predicts the next pages."""

    def __init__(self, source: Source, watcher: Watcher, waits: Waits | None = None) -> None:
        self._source = source
        self._watcher: Watcher | None = watcher
        self._waits = waits
        self._guesses = Guesses(watcher.trees)
        self._begins = 0
        self._left: dict[int, bytes] = {}  # leaves decoded along with another page and not handed out, by number
        self._left_of: Snapshot | None = None
        self._handed_for: dict[int, Scan] | None = None  # the watcher's `resting` that `_left` was compared with
        self._waits_so_far = 0  # of this query
        self._waited_for: deque[int] = deque(maxlen=PLACES)  # pages, of its last waits
        self._calm = 0  # reads in a row of what was in memory, and had been used before
        self._used_bytes = 0  # of what was read ahead, when that was looked at last

    def read(self, snapshot: Snapshot, pgno: int, along: dict[int, bytes] | None = None) -> bytes:
        """Read a page, and start reading what will probably come next.

        The watcher sees each read but those of leaves that rest, which `along` may get.
        """
        source, watcher = self._source, self._watcher
        if watcher is None:
            return source.read(snapshot, pgno)
        page = self._left.pop(pgno, None) if self._left_of is snapshot else None
        passes = False
        if (scan := watcher.resting.get(pgno)) is not None:
            scan.rested = pgno  # as `before_read` does
        else:
            passes = self._before_read(snapshot, pgno, watcher, is_there=page is not None)
        if page is None:
            page = source.read(snapshot, pgno) if along is None else self._read_along(snapshot, pgno, along, watcher)
        if self._left and along is not None and watcher.resting is not self._handed_for:
            self._hand_out(watcher, along, snapshot.page_size)
        if watcher.wants(page) and not (passes and page[0] == LEAF_TABLE):
            try:
                if ahead := watcher.after_read(pgno, page):
                    source.read_ahead(snapshot, ahead, watcher)
            except Exception:  # noqa: BLE001 (logged)
                self._stop_watching()
        if self._guesses.open_for == pgno:
            self._guesses.check()
        return page

    def _before_read(self, snapshot: Snapshot, pgno: int, watcher: Watcher, *, is_there: bool) -> bool:
        """See what comes with a page, and after it. Whether the watcher does not follow the read."""
        source = self._source
        try:
            if not is_there and source.needs_request(snapshot, pgno):
                self._calm = 0
                self._before_wait(snapshot, pgno)
            elif self._is_calm() and watcher.passes(pgno):
                return True
            ahead = watcher.before_read(pgno)
            if watcher.recall.is_due and self._calm <= 1:  # else rows come from memory, whatever they hang on
                ahead += source.recall(snapshot, watcher)
            if ahead:
                source.read_ahead(snapshot, ahead, watcher)
        except Exception:  # noqa: BLE001 (logged)
            self._stop_watching()
        return False

    def _is_calm(self) -> bool:
        """Whether all that the last reads were of was in memory, and had been used before; called for each read."""
        used_bytes = 0 if (ahead := self._source.ahead) is None else ahead.used_bytes
        if used_bytes != self._used_bytes:
            self._used_bytes, self._calm = used_bytes, 0
        self._calm += 1
        return self._calm > CALM

    def _before_wait(self, snapshot: Snapshot, pgno: int) -> None:
        """Page `pgno` costs a round trip: see what may come with it."""
        self._waits_so_far += 1
        is_near = any(abs(pgno - other) < NEAR for other in self._waited_for)
        self._waited_for.append(pgno)
        if self._waits_so_far > MANY_WAITS and not is_near and (ahead := self._source.ahead) is not None:
            ahead.want_alone(snapshot, pgno)
        elif below := self._guesses.below(pgno):
            self._guesses.note(pgno, self._source.guess(snapshot, [pgno, *below]))
        if self._waits is not None:  # last: its thread would take its turn before the request
            self._waits.before_wait(snapshot, self._begins)

    def _read_along(self, snapshot: Snapshot, pgno: int, along: dict[int, bytes], watcher: Watcher) -> bytes:
        """A page; the leaves decoded with it wait in `_left`, and `along` is empty then, or gets them if all rest."""
        come: dict[int, bytes] = {}
        page = self._source.read(snapshot, pgno, come)
        if come:
            along.clear()
            size, resting = snapshot.page_size, watcher.resting
            come.pop((pgno - 1) * size, None)
            numbers = [offset // size + 1 for offset in come]
            if resting.keys() >= set(numbers) and {other[0] for other in come.values()} == _TABLE_LEAVES:
                self._left.clear()  # most runs of a scan are such: no page of one is looked at
                along.update(come)
                resting[numbers[-1]].rested = numbers[-1]
                return page
            self._left = left = dict(zip(numbers, come.values(), strict=True))
            self._left_of, self._handed_for = snapshot, None
            others = [
                number for number, other in left.items() if other[0] != LEAF_TABLE and not watcher.rests_whole(number)
            ]
            if others:
                self._source.keep_pages(snapshot, {number: left.pop(number) for number in others})
        return page

    def _hand_out(self, watcher: Watcher, along: dict[int, bytes], page_size: int) -> None:
        """Move pages to `along` that rest: whose reads change no plan."""
        self._handed_for = resting = watcher.resting
        if ready := self._left.keys() & resting.keys():
            pages = [self._left.pop(number) for number in ready]
            along.update(zip([(number - 1) * page_size for number in ready], pages, strict=True))
            last = max(ready)
            resting[last].rested = last  # for all that is known

    def first_page(self, snapshot: Snapshot, *, schema_salt: int = 0) -> bytes:
        """Page 1, which may be the root of what is read next."""
        page = self._source.first_page(snapshot, schema_salt=schema_salt)
        if self._watcher is not None and page:
            self._watcher.after_read(1, page)
        return page

    @property
    def planner(self) -> object | None:
        """Whom what is read ahead for the query belongs to."""
        return self._watcher

    @property
    def looks_up(self) -> bool:
        """Whether the query looks up rows that are planned as soon as they can be."""
        return self._watcher is not None and self._watcher.looks_up

    def end(self) -> None:
        """The query has ended: what is planned and has not been asked for yet is not wanted any more."""
        if self._watcher is not None and (ahead := self._source.ahead) is not None:
            ahead.take_back(self._watcher)

    def begin(self) -> None:
        """Another query begins: the reads of the query before say nothing about it."""
        self.end()
        self._begins += 1
        self._calm = self._waits_so_far = 0
        self._waited_for.clear()
        self._left.clear()
        self._left_of = None
        if self._watcher is not None:
            self._watcher.begin()

    def expect_rows(self, begins: int, rows: int) -> None:
        """Plan the look-ups of query number `begins` for about so many rows, or ALL_ROWS; from any thread."""
        if (watcher := self._watcher) is not None and begins == self._begins:
            watcher.expect(rows)
            if begins != self._begins:  # meanwhile another one has begun
                watcher.expect(0)

    def hold(self, roots: Sequence[int], shared: Mapping[int, Begin], begins: int) -> None:
        """Keep in mind where query number `begins` is in these trees, see `Watcher.hold`; from any thread."""
        if (watcher := self._watcher) is not None and begins == self._begins:
            watcher.hold(roots, shared)
            if begins != self._begins:
                watcher.hold(())

    def way_to(self, root: int) -> list[tuple[int, int]]:
        """See `Watcher.way_to`."""
        return [] if self._watcher is None else self._watcher.way_to(root)

    def take_passed(self) -> dict[int, None]:
        """See `Watcher.take_passed`."""
        return {} if self._watcher is None else self._watcher.take_passed()

    def expect_scans(self, snapshot: Snapshot, roots: Sequence[int], begins: int) -> None:
        """Query number `begins` is going to read these trees whole, one after the other: start with the first of them.

        Called in another thread than `read`.
        """
        watcher = self._watcher
        if watcher is not None and begins == self._begins:
            if ahead := watcher.expect_scans(list(roots)):
                self._source.read_ahead(snapshot, ahead, watcher)
            if begins != self._begins:  # meanwhile another one has begun, which shows its own patterns
                watcher.begin()
                self.end()

    def _stop_watching(self) -> None:
        """Go on without hints after an error in them: reads get slower, but no query fails."""
        logger.exception("reading ahead failed; this connection goes on without")
        self._watcher = None
