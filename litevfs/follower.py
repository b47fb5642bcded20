"""How one state of a replica leads to the next: what to list, what to fetch, what it proves. No threads, no locks.

The usual step is one listing of level 0, from the newest file already known (the *anchor*) on: as long as the anchor
is listed, nothing in between can have been missed, and the cost does not grow with history. Anything unusual, a gap, a
vanished anchor, a long absence, is settled by one look at all levels.
"""

from __future__ import annotations

import enum
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from litevfs.errors import LitevfsError, ReplicaEmptyError, ReplicaError, TXIDGapError, TXIDNotFoundError
from litevfs.fetch import FetchedFile, Fetcher
from litevfs.history import state_at
from litevfs.plan import Chain, extend, gap_error, newest_state
from litevfs.replica_clients.base import LEVELS, SNAPSHOT_LEVEL, LTXFileInfo
from litevfs.snapshot import NumberedFile, Snapshot, empty_snapshot

logger = logging.getLogger("litevfs.follower")

MIN_FILES = 128
"""A state made of no more files than this has no need of compacted ones; of more, it looks for them as they double."""
FETCHED_AT_ONCE = 64
"""Files whose bytes are in memory at the same time: small ones come whole."""
MAX_STEPS = 64
"""More new level-0 files than this are not read one by one: compacted levels hold them in fewer."""
RESYNC_INTERVAL_S = 60.0
"""How often all levels are listed while nothing on level 0 tells that nothing was missed."""
USUAL_LEVELS = (0, 1, 2, 3, SNAPSHOT_LEVEL)
RARE_LEVELS = tuple(level for level in LEVELS if level not in USUAL_LEVELS)
MAX_TIMES = 10_000
"""Transactions whose time is remembered, to tell this history from another one."""
MAX_EVIDENCE = 8
"""Headers that are read at most to tell."""
_FIRST_VIEW_EPOCH = 1 << 32
"""A fixed view is a history of its own: nothing proves that it is the one of the live states."""
_FIRST_VIEW_COUNTER = 1 << 31
"""Change counters of fixed views start here, so that they never equal one of the live states."""

Publish = Callable[[Snapshot, Sequence[int]], None]
"""(state, the TXIDs that led to it and were not published before, ascending; none when pages only moved)."""


class Lineage(enum.Enum):
    """Whether a listing shows the replica that a state came from."""

    SAME = enum.auto()  # proved at the state's own TXID, or nothing newer to apply
    OTHER = enum.auto()  # proved: the replica was replaced or set back
    UNKNOWN = enum.auto()  # what would have proved it is gone


class Follower:
    """Builds the states of one replica. Every method may raise a StorageError or an LTXFormatError of the fetcher."""

    def __init__(self, fetcher: Fetcher, keep: Callable[[int, FetchedFile], None]) -> None:
        self._fetcher = fetcher
        self._keep = keep
        self._numbers = itertools.count(1)
        self._view_epochs = itertools.count(_FIRST_VIEW_EPOCH)
        self._view_counters = itertools.count(_FIRST_VIEW_COUNTER)
        self._anchor: LTXFileInfo | None = None
        self._seen: set[LTXFileInfo] = set()  # files up to the state's TXID that are known to be of this lineage
        self._times: OrderedDict[int, int] = OrderedDict()  # TXID -> timestamp of this lineage, milliseconds
        self._max_files = MIN_FILES  # of a state, before it moves to compacted ones
        self._last_resync = 0.0

    def use(self, fetcher: Fetcher, keep: Callable[[int, FetchedFile], None]) -> None:
        """Go on with another fetcher of the same replica (in a forked child)."""
        self._fetcher, self._keep = fetcher, keep

    # --- live states --------------------------------------------------------------------------------------------------

    def open_newest(self) -> Snapshot:
        """The newest state. Raises ReplicaEmptyError or TXIDGapError when there is no complete one."""
        return self._build_newest(self._list_all(), empty_snapshot())

    def follow(self, snapshot: Snapshot, publish: Publish) -> None:
        """Publish every state that leads on from `snapshot`, the newest last.

        Raises TXIDGapError, or what a file in the way raised, after everything before it was published.
        """
        anchor = self._anchor
        files = self._fetcher.list_files(0, anchor.min_txid if anchor else snapshot.txid + 1)
        chain = extend(snapshot.txid, files)
        is_usual = self._is_continuous(snapshot, files) and not chain.gap and len(chain.files) <= MAX_STEPS
        if not is_usual or len(snapshot.files) > self._max_files:
            self._resync(snapshot, self._list_all(), publish)
        else:
            self._note_position(files, self._advance(snapshot, chain, publish))

    def _is_continuous(self, snapshot: Snapshot, files: list[LTXFileInfo]) -> bool:
        """Whether a listing of level 0 from the anchor on proves that nothing was missed and nothing replaced."""
        if self._anchor is None:
            return not files and time.monotonic() - self._last_resync < RESYNC_INTERVAL_S
        covered = [file for file in files if file.max_txid <= snapshot.txid]
        return self._anchor in covered and all(file in self._seen for file in covered)

    def _list_all(self, target: int | None = None) -> list[LTXFileInfo]:
        """The files of all levels; those that Litestream leaves empty by default only if the others do not suffice."""
        self._last_resync = time.monotonic()
        files = self._fetcher.list_levels(USUAL_LEVELS)
        try:
            newest_state(files, target)
        except ReplicaError:
            files += self._fetcher.list_levels(RARE_LEVELS)
        return files

    def _resync(self, snapshot: Snapshot, files: list[LTXFileInfo], publish: Publish) -> Lineage:
        """Bridge gaps, notice another replica in the same place, leave files that have vanished."""
        if not files:  # and the anchor stays, so that whatever comes next is looked at as closely
            raise ReplicaEmptyError(
                "the replica holds no LTX files any more", hint="is it being replaced, or was its path emptied?"
            )
        lineage = self._lineage(snapshot, files)
        if lineage is not Lineage.SAME:
            self._build_anew(snapshot, files, lineage, publish)
            return lineage
        chain = extend(snapshot.txid, files)
        snapshot = self._advance(snapshot, chain, publish)
        snapshot = self._move_to_compacted_files(snapshot, files, publish)
        self._note_position(files, snapshot)
        if chain.gap is not None:
            raise gap_error(chain.gap)
        return lineage

    def _build_anew(self, old: Snapshot, files: list[LTXFileInfo], lineage: Lineage, publish: Publish) -> None:
        if lineage is Lineage.OTHER:
            logger.warning("the replica was replaced or set back; serving what it holds now")
        else:
            logger.info("nothing links the known state to what the replica holds now; reading it anew")
        start = empty_snapshot(epoch=old.epoch + 1, change_counter=old.change_counter)
        self._times.clear()
        snapshot = self._build_newest(files, start, known=old)
        publish(snapshot, [snapshot.txid])

    def _build_newest(self, files: list[LTXFileInfo], start: Snapshot, known: Snapshot | None = None) -> Snapshot:
        snapshot = self._apply(start, newest_state(files).files, known)
        self._note_position(files, snapshot)
        return snapshot

    def _advance(self, snapshot: Snapshot, chain: Chain, publish: Publish) -> Snapshot:
        """Apply and publish a chain; if a file fails, what comes before it is published and the failure raised."""
        if not chain.files:
            return snapshot
        try:
            snapshot = self._apply(snapshot, chain.files)
        except LitevfsError:
            if len(chain.files) == 1:
                raise
            for file in chain.files:
                snapshot = self._apply(snapshot, [file])
                publish(snapshot, [file.max_txid])
        else:
            publish(snapshot, [file.max_txid for file in chain.files])
        return snapshot

    def _apply(
        self,
        snapshot: Snapshot,
        files: Sequence[LTXFileInfo],
        known: Snapshot | None = None,
        *,
        is_live: bool = True,
    ) -> Snapshot:
        """The state after `files`, fetched in parallel, each checked before it is used.

        Files that the state `known` uses keep their number, so that what is cached of them stays of use. Times are
        remembered of the live history only.
        """
        numbers = {file: number for number, file in known.files.items()} if known else {}
        for start in range(0, len(files), FETCHED_AT_ONCE):
            for fetched in self._fetcher.fetch_files(files[start : start + FETCHED_AT_ONCE]):
                number = numbers.get(fetched.info) or next(self._numbers)
                snapshot = snapshot.apply(
                    NumberedFile(number, fetched.info, fetched.header, fetched.index, fetched.checks)
                )
                self._keep(number, fetched)
                if is_live and fetched.info.level != SNAPSHOT_LEVEL:
                    self._note_time(fetched.header.max_txid, fetched.header.timestamp_ms)
        return snapshot

    def _note_time(self, txid: int, timestamp_ms: int) -> None:
        self._times[txid] = timestamp_ms
        while len(self._times) > MAX_TIMES:
            self._times.popitem(last=False)

    def _note_position(self, files: Iterable[LTXFileInfo], snapshot: Snapshot) -> None:
        """Remember what the listing showed up to the state's TXID, and the newest level-0 file of it as the anchor."""
        covered = [file for file in files if file.max_txid <= snapshot.txid]
        level_0 = [file for file in covered if file.level == 0]
        self._anchor = max(level_0, key=lambda file: file.max_txid, default=None)
        self._seen = {file for file in level_0 if file.min_txid >= (self._anchor.min_txid if self._anchor else 0)}

    # --- replicas that were replaced ----------------------------------------------------------------------------------

    def _lineage(self, snapshot: Snapshot, files: list[LTXFileInfo]) -> Lineage:
        """Whether what is listed belongs to the history that led to `snapshot`.

        A file's timestamp is that of its last transaction, on every level that compaction makes. So a TXID with another
        timestamp than we know proves another history, and the known one at the snapshot's own TXID proves the same.
        Full snapshots prove nothing, unless they are the file we know: they carry the time at which they were made.
        """
        ours = {*snapshot.files.values(), *self._seen}
        evidence = [f for f in files if f in ours or (f.max_txid in self._times and f.level != SNAPSHOT_LEVEL)]
        for file in sorted(evidence, key=lambda f: (f.max_txid, -f.level), reverse=True)[:MAX_EVIDENCE]:
            if file not in ours and self._read_time(file) != self._times[file.max_txid]:
                return Lineage.OTHER
            if file.max_txid == snapshot.txid:
                return Lineage.SAME
        if any(file.max_txid > snapshot.txid for file in files):
            return Lineage.UNKNOWN
        # No further than what we have: a stale listing, unless its newest transaction is younger than ours. Where only
        # full snapshots are left, one that was made later may be of any history.
        transactions = [file for file in files if file.level != SNAPSHOT_LEVEL]
        newest = max(transactions or files, key=lambda f: f.max_txid)
        if self._read_time(newest) <= self._times.get(snapshot.txid, snapshot.timestamp_ms):
            return Lineage.SAME
        return Lineage.OTHER if transactions else Lineage.UNKNOWN

    def _read_time(self, file: LTXFileInfo) -> int:
        return self._fetcher.read_header(file).timestamp_ms

    # --- files that vanished ------------------------------------------------------------------------------------------

    def _move_to_compacted_files(self, snapshot: Snapshot, files: list[LTXFileInfo], publish: Publish) -> Snapshot:
        """Read pages from where a state opened now would read them: from few files, none of which retention took."""
        listed = set(files)
        if len(snapshot.files) <= self._max_files and all(file in listed for file in snapshot.files.values()):
            return snapshot
        known = set(snapshot.files.values())
        try:
            chain = newest_state(f for f in files if f.max_txid <= snapshot.txid).files
        except (ReplicaEmptyError, TXIDGapError) as error:
            logger.warning("files of the current state are gone, and nothing replaces them yet: %s", error)
            return snapshot
        snapshot = self._apply(snapshot, [f for f in chain if f not in known])
        self._max_files = max(MIN_FILES, 2 * len(snapshot.files))
        publish(snapshot, ())
        return snapshot

    def find_again(self, wanted: Snapshot, published: Snapshot | None, publish: Publish) -> Snapshot | None:
        """Look at all levels for the state `wanted`, some files of which are gone. None if it cannot be made again.

        On the way, the published state moves on as in `follow`.
        """
        files = self._list_all()
        is_proved = False
        if published is not None:
            try:
                lineage = self._resync(published, files, publish)
                is_proved = lineage is Lineage.SAME and published.epoch == wanted.epoch
            except (ReplicaEmptyError, TXIDGapError) as error:
                logger.info("while looking for files that are gone: %s", error)
        try:
            chain = newest_state(files, wanted.txid)
        except (TXIDNotFoundError, ReplicaEmptyError):
            return None
        start = empty_snapshot(epoch=wanted.epoch, versions=wanted.versions)
        again = self._apply(start, chain.files, known=wanted, is_live=False)
        return self._as_view(again) if is_proved or again.timestamp_ms == wanted.timestamp_ms else None

    # --- fixed states -------------------------------------------------------------------------------------------------

    def find_state(self, txid: int | None, timestamp_ms: int | None) -> tuple[list[LTXFileInfo], int]:
        """(listing of all levels, TXID): the TXID itself, or that of the newest state not younger than the time.

        Raises TXIDNotFoundError for a time before the first state that the replica holds, or in the future.
        """
        files = self._list_all(txid)
        if txid is None:
            assert timestamp_ms is not None
            txid = state_at(files, timestamp_ms, self._read_time)
        return files, txid

    def build_view(self, files: list[LTXFileInfo], txid: int) -> Snapshot:
        """The state after transaction `txid` exactly. Raises TXIDNotFoundError when the files do not make it."""
        chain = newest_state(files, txid)
        start = empty_snapshot(epoch=next(self._view_epochs))
        return self._as_view(self._apply(start, chain.files, is_live=False))

    def _as_view(self, snapshot: Snapshot) -> Snapshot:
        return replace(snapshot, change_counter=next(self._view_counters))
