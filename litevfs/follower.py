"""How one state of a replica leads to the next: what to list, what to fetch, what it proves. No threads, no locks.

The usual step is one listing of level 0, from the newest file already known (the *anchor*) on: as long as the anchor
is listed, nothing in between can have been missed, and the cost does not grow with history. Anything unusual, a gap, a
vanished anchor, a long absence, is settled by one look at all levels.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from litevfs.errors import LitevfsError, ReplicaEmptyError, ReplicaError, TXIDGapError, TXIDNotFoundError
from litevfs.fetch import FetchedFile, Fetcher
from litevfs.history import state_at
from litevfs.ltx.format import Header
from litevfs.plan import Chain, extend, gap_error, newest_state
from litevfs.replica_clients.base import LEVELS, SNAPSHOT_LEVEL, LTXFileInfo
from litevfs.snapshot import NumberedFile, Snapshot, empty_snapshot

logger = logging.getLogger("litevfs.follower")

MAX_STEPS = 64
"""More new level-0 files than this are not read one by one: compacted levels hold them in fewer."""
RESYNC_INTERVAL_S = 60.0
"""How often all levels are listed while nothing on level 0 tells that nothing was missed."""
USUAL_LEVELS = (0, 1, 2, 3, SNAPSHOT_LEVEL)
RARE_LEVELS = tuple(level for level in LEVELS if level not in USUAL_LEVELS)
_FIRST_VIEW_COUNTER = 1 << 31
"""Change counters of fixed views start here, so that they never equal one of the live states."""

Publish = Callable[[Snapshot, Sequence[int]], None]
"""(state, the TXIDs that led to it and were not published before, ascending; none when pages only moved)."""


class Follower:
    """Builds the states of one replica. Every method may raise a StorageError or an LTXFormatError of the fetcher."""

    def __init__(self, fetcher: Fetcher, keep: Callable[[int, FetchedFile], None]) -> None:
        self._fetcher = fetcher
        self._keep = keep
        self._numbers = itertools.count(1)
        self._view_counters = itertools.count(_FIRST_VIEW_COUNTER)
        self._anchor: LTXFileInfo | None = None
        self._anchor_header: Header | None = None
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
        continuous = anchor in files if anchor else (bool(chain.files) or not self._resync_due())
        if not continuous or chain.gap or len(chain.files) > MAX_STEPS:
            self._resync(snapshot, self._list_all(), publish)
        else:
            self._set_anchor(files, self._advance(snapshot, chain, publish))

    def _resync_due(self) -> bool:
        return time.monotonic() - self._last_resync > RESYNC_INTERVAL_S

    def _list_all(self, target: int | None = None) -> list[LTXFileInfo]:
        """The files of all levels; those that Litestream leaves empty by default only if the others do not suffice."""
        self._last_resync = time.monotonic()
        files = self._fetcher.list_levels(USUAL_LEVELS)
        try:
            newest_state(files, target)
        except ReplicaError:
            files += self._fetcher.list_levels(RARE_LEVELS)
        return files

    def _resync(self, snapshot: Snapshot, files: list[LTXFileInfo], publish: Publish) -> None:
        """Bridge gaps, notice another replica in the same place, leave files that have vanished."""
        if self._is_replaced(snapshot, files):
            logger.warning("the replica was replaced by another one; serving that from now on")
            start = empty_snapshot(epoch=snapshot.epoch + 1, change_counter=snapshot.change_counter)
            replacement = self._build_newest(files, start)
            publish(replacement, [replacement.txid])
            return
        chain = extend(snapshot.txid, files)
        snapshot = self._advance(snapshot, chain, publish)
        snapshot = self._leave_vanished_files(snapshot, files, publish)
        self._set_anchor(files, snapshot)
        if chain.gap is not None:
            raise gap_error(chain.gap)

    def _build_newest(self, files: list[LTXFileInfo], start: Snapshot) -> Snapshot:
        snapshot = self._apply(start, newest_state(files).files)
        self._set_anchor(files, snapshot)
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

    def _apply(self, snapshot: Snapshot, files: Sequence[LTXFileInfo]) -> Snapshot:
        """The state after `files`, all fetched in parallel, each checked before any is used."""
        for fetched in self._fetcher.fetch_files(files):
            number = next(self._numbers)
            snapshot = snapshot.apply(NumberedFile(number, fetched.info, fetched.header, fetched.index))
            self._keep(number, fetched)
            if fetched.info.level == 0:
                self._anchor_header = fetched.header
        return snapshot

    def _set_anchor(self, files: Iterable[LTXFileInfo], snapshot: Snapshot) -> None:
        """The newest level-0 file of the listing that the state covers."""
        covered = [f for f in files if f.level == 0 and f.max_txid <= snapshot.txid]
        self._anchor = max(covered, key=lambda f: f.max_txid, default=None)

    # --- replicas that were replaced ----------------------------------------------------------------------------------

    def _is_replaced(self, snapshot: Snapshot, files: list[LTXFileInfo]) -> bool:
        """Whether the listing shows another replica, not a stale view of this one.

        A file we use that is listed under the same name with other content proves it. So does a listing whose newest
        TXID is behind ours though its newest file was written after ours: a stale listing shows only older files.
        """
        if not files:
            return False
        listed = {(f.level, f.min_txid, f.max_txid): f for f in files}
        known = {*snapshot.files.values(), *([self._anchor] if self._anchor else [])}
        for file in known:
            other = listed.get((file.level, file.min_txid, file.max_txid))
            if other is not None and not _same_content(file, other) and self._header_differs(other):
                return True
        newest_known_ms = max((f.modified_ms for f in known), default=0)
        behind = max(f.max_txid for f in files) < snapshot.txid
        return behind and max(f.modified_ms for f in files) > newest_known_ms

    def _header_differs(self, file: LTXFileInfo) -> bool:
        """Whether a file that looks changed is another one; a repeated upload of the same transaction is not."""
        header = self._fetcher.fetch_files([file])[0].header
        anchor = self._anchor_header
        if anchor is not None and (anchor.min_txid, anchor.max_txid) == (header.min_txid, header.max_txid):
            return header != anchor
        return True

    # --- files that vanished ------------------------------------------------------------------------------------------

    def _leave_vanished_files(self, snapshot: Snapshot, files: list[LTXFileInfo], publish: Publish) -> Snapshot:
        """Point pages of files that are no longer listed to files that hold the same versions."""
        listed = set(files)
        if all(file in listed for file in snapshot.files.values()):
            return snapshot
        known = set(snapshot.files.values())
        try:
            chain = newest_state(f for f in files if f.max_txid <= snapshot.txid).files
        except (ReplicaEmptyError, TXIDGapError) as error:
            logger.warning("files of the current state are gone, and nothing replaces them yet: %s", error)
            return snapshot
        snapshot = self._apply(snapshot, [f for f in chain if f not in known])
        publish(snapshot, ())
        return snapshot

    def find_again(self, wanted: Snapshot, published: Snapshot | None, publish: Publish) -> Snapshot | None:
        """Look at all levels for the state `wanted`, some files of which are gone. None if it cannot be made again.

        On the way, the published state moves on as in `follow`.
        """
        files = self._list_all()
        if published is not None:
            try:
                self._resync(published, files, publish)
            except TXIDGapError as error:
                logger.info("while looking for files that are gone: %s", error)
        if published is not None and self._is_replaced(wanted, files):
            return None
        try:
            chain = newest_state(files, wanted.txid)
        except (TXIDNotFoundError, ReplicaEmptyError):
            return None
        return self._as_view(self._apply(empty_snapshot(epoch=wanted.epoch), chain.files))

    # --- fixed states -------------------------------------------------------------------------------------------------

    def build_view(self, txid: int, epoch: int, files: list[LTXFileInfo] | None = None) -> Snapshot:
        """The state after transaction `txid` exactly, from a listing of all levels if there is one already.

        Raises TXIDNotFoundError when the replica does not hold it.
        """
        chain = newest_state(self._list_all(txid) if files is None else files, txid)
        return self._as_view(self._apply(empty_snapshot(epoch=epoch), chain.files))

    def _as_view(self, snapshot: Snapshot) -> Snapshot:
        return replace(snapshot, change_counter=next(self._view_counters))

    def find_time(self, timestamp_ms: int) -> tuple[list[LTXFileInfo], int]:
        """(listing of all levels, TXID of the newest state that is not younger than the time).

        Raises TXIDNotFoundError for a time before the first state that the replica holds, or in the future.
        """
        files = self._list_all()
        return files, state_at(files, timestamp_ms, lambda file: self._fetcher.read_header(file).timestamp_ms)


def _same_content(a: LTXFileInfo, b: LTXFileInfo) -> bool:
    if a.etag or b.etag:
        return (a.size, a.etag) == (b.size, b.etag)
    return (a.size, a.modified_ms) == (b.size, b.modified_ms)
