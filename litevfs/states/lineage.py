"""Whether a listing shows the replica that a state came from. Owns the times that prove it; applies no files.

A file's timestamp is that of its last transaction, on every level that compaction makes. So a TXID with another
timestamp than the known one proves another history, and the known timestamp proves the same history up to there. Full
snapshots carry the time at which they were made: a known time proves the same history, another time proves nothing.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from litevfs.concurrency.clock import now_s
from litevfs.errors import LTXFormatError, ReplicaEmptyError, ReplicaError, StorageNotFoundError
from litevfs.files.fetch import Fetcher
from litevfs.ltx.file_info import SNAPSHOT_LEVEL, LTXFileInfo
from litevfs.states.snapshot import Snapshot

SET_BACK_AFTER_S = 30.0
"""How long the newest known file must be missing from listings and unreadable before the judge believes it is gone."""
MAX_TIMES = 10_000
"""Transactions whose time is remembered, to tell this history from another one."""
MAX_EVIDENCE = 8
"""How many headers one judgement reads at most."""

Times = dict[tuple[bool, int], int]
"""(of a full snapshot?, last TXID) -> a header's timestamp, milliseconds: snapshots carry when they were made."""


class Lineage(enum.Enum):
    """What a listing has to do with a state."""

    SAME = enum.auto()  # proved at the state's own TXID
    STALE = enum.auto()  # leads no further than the state, and nothing in it is younger: an old listing
    OTHER = enum.auto()  # proved: the replica was replaced or set back to an older state
    UNKNOWN = enum.auto()  # the files that would prove it are gone


@dataclass(frozen=True, slots=True)
class Verdict:
    """A listing of all levels, and what it has to do with a state."""

    files: list[LTXFileInfo]
    lineage: Lineage
    proved_txid: int  # up to here, the files are of the state's history; 0: nowhere


class Judge:
    """Remembers one history as it is published, and compares listings with it."""

    def __init__(self, fetcher: Fetcher, clock: Callable[[], float] = now_s) -> None:
        """`clock` gives seconds that always grow."""
        self._fetcher = fetcher
        self._clock = clock
        self._times: OrderedDict[tuple[bool, int], int] = OrderedDict()
        self._missing_since: float | None = None  # by the clock; the newest file known

    def use(self, fetcher: Fetcher) -> None:
        """Go on with another fetcher of the same replica."""
        self._fetcher = fetcher

    def begin(self, times: Times) -> None:
        """Another history is published."""
        self.is_in_order()
        self._times.clear()
        self.remember(times)

    def remember(self, times: Times) -> None:
        """Files with these times were published. Those of a state that is only being tried prove nothing."""
        self._times.update(times)
        while len(self._times) > MAX_TIMES:
            self._times.popitem(last=False)

    @property
    def times(self) -> Times:
        """Those remembered, oldest first."""
        return dict(self._times)

    def is_in_order(self) -> None:
        """Note that the newest known file is where it should be."""
        self._missing_since = None

    def judge(
        self, snapshot: Snapshot, seen: Iterable[LTXFileInfo], files: list[LTXFileInfo], *, closely: bool
    ) -> Verdict:
        """What a listing of all levels has to do with `snapshot`; `seen` are files of its history beside its own.

        `closely` is for callers that go on to read the listed files: a known file then proves something only if storage
        still has it, because one level's listing may be older than another's, and from before a replacement.

        Raises ReplicaEmptyError for an empty one, and ReplicaError while the newest transactions seem to be gone:
        the judge believes that the replica was set back only after a while, since listings and reads can both be stale.
        """
        if not files:
            raise ReplicaEmptyError(
                "the replica holds no LTX files any more", hint="is it being replaced, or was its path emptied?"
            )
        ours = {*snapshot.files.values(), *seen}
        verdict = self._compare(snapshot, ours, files, closely=closely)
        if verdict.lineage is not Lineage.STALE or self._is_still_there(snapshot, ours):
            self._missing_since = None
            return verdict
        now = self._clock()
        self._missing_since = now if self._missing_since is None else self._missing_since
        if now - self._missing_since >= SET_BACK_AFTER_S:
            return replace(verdict, lineage=Lineage.OTHER, proved_txid=0)
        if self._is_remade(snapshot, files):
            return replace(verdict, lineage=Lineage.UNKNOWN, proved_txid=0)
        newest = max(file.max_txid for file in files)
        raise ReplicaError(
            "the newest transactions are gone from the replica",
            min_txid=min(newest + 1, snapshot.txid),
            max_txid=snapshot.txid,
            hint="was it set back, or replaced by an older one? what it holds is served if that lasts",
        )

    def _compare(
        self, snapshot: Snapshot, ours: set[LTXFileInfo], files: list[LTXFileInfo], *, closely: bool
    ) -> Verdict:
        evidence = [f for f in files if f in ours or self._can_tell(f, snapshot)]
        if any(f.max_txid == snapshot.txid and f.level != SNAPSHOT_LEVEL and f not in evidence for f in files):
            return Verdict(files, Lineage.UNKNOWN, 0)  # its history is unknown, and the next file would connect to it
        proved = 0
        for file in sorted(evidence, key=lambda f: (f.max_txid, -f.level), reverse=True)[:MAX_EVIDENCE]:
            found = self._is_ours(file, is_known=file in ours, closely=closely)
            if found:
                proved = max(proved, file.max_txid)
            elif found is not None and file.level != SNAPSHOT_LEVEL:
                return Verdict(files, Lineage.OTHER, 0)
            if proved == snapshot.txid:
                return Verdict(files, Lineage.SAME, proved)
        if any(file.max_txid > snapshot.txid for file in files):
            return Verdict(files, Lineage.UNKNOWN, 0)
        # It leads no further than the state: a stale listing, unless its newest transaction is younger than ours.
        newest = max((f for f in files if f.level != SNAPSHOT_LEVEL), key=lambda f: f.max_txid, default=None)
        if newest is None or newest in ours or newest.max_txid <= proved or not self._is_younger(newest, snapshot):
            return Verdict(files, Lineage.STALE, proved)
        return Verdict(files, Lineage.OTHER, 0)

    def _is_younger(self, file: LTXFileInfo, snapshot: Snapshot) -> bool:
        try:
            return (
                self._fetcher.read_time(file) > snapshot.timestamp_ms and self._time_again(file) > snapshot.timestamp_ms
            )
        except LTXFormatError:  # damaged, it proves nothing
            return False

    def _is_remade(self, snapshot: Snapshot, files: list[LTXFileInfo]) -> bool:
        """Whether only a later full snapshot is left, or one that ends where the newest known file, now gone, ended.

        Such a snapshot may be of any history. A snapshot made earlier may come from an old listing.
        """
        newest = max(files, key=lambda f: (f.max_txid, f.level))
        is_all = all(file.level == SNAPSHOT_LEVEL for file in files)
        ends_here = newest.level == SNAPSHOT_LEVEL and newest.max_txid == snapshot.txid
        try:
            return (is_all or ends_here) and self._is_younger(newest, snapshot)
        except StorageNotFoundError:
            return False

    def _can_tell(self, file: LTXFileInfo, snapshot: Snapshot) -> bool:
        """Whether the time in a file's header may prove something."""
        if file.level == SNAPSHOT_LEVEL:
            return file.max_txid == snapshot.txid
        return (False, file.max_txid) in self._times

    def _is_ours(self, file: LTXFileInfo, *, is_known: bool, closely: bool) -> bool | None:
        """Whether a file with a known time is of this history; None if it is gone or damaged and so proves nothing."""
        if is_known and not closely:
            return True
        known = self._known_times(file.max_txid)
        try:
            return self._fetcher.read_time(file) in known or is_known or self._time_again(file) in known
        except (StorageNotFoundError, LTXFormatError):
            return None

    def _known_times(self, txid: int) -> set[int]:
        return {self._times[key] for key in ((False, txid), (True, txid)) if key in self._times}

    def _is_still_there(self, snapshot: Snapshot, ours: set[LTXFileInfo]) -> bool:
        """Whether storage still has the newest known file, which a listing does not show."""
        return any(self._is_there(file) for file in ours if file.max_txid == snapshot.txid)

    def proves(self, file: LTXFileInfo, *, once: bool) -> bool:
        """Whether storage still has a file that the state comes from, unchanged; `once`: by one request alone."""
        try:
            return self._fetcher.read_time(file, once=once) in self._known_times(file.max_txid)
        except (StorageNotFoundError, LTXFormatError):
            return False

    def _is_there(self, file: LTXFileInfo) -> bool:
        try:
            found = self._fetcher.read_time(replace(file, etag=""))  # the file that has that name now
        except (StorageNotFoundError, LTXFormatError):
            return False
        return found in self._known_times(file.max_txid)

    def _time_again(self, file: LTXFileInfo) -> int:
        """A file's time, read again and verified if it can be, before a state is given up for it."""
        return self._fetcher.read_header_again(file).timestamp_ms
