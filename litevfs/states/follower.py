"""How one state of a replica leads to the next: what to list, what to fetch, what it proves. No threads, no locks.

The usual step is one listing of level 0, from the newest file already known (the *anchor*) on: as long as the anchor
is listed, nothing in between can have been missed, and the cost does not grow with history. Four times a minute the
listing shows the other levels too, because a state may lie on them alone. Anything unusual, a gap, a vanished anchor, a
file ahead of level 0, is settled by one listing of all levels.
"""

from __future__ import annotations

import itertools
import logging
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence

from litevfs.concurrency.clock import now_s
from litevfs.errors import (
    LitevfsError,
    LTXFormatError,
    ReplicaEmptyError,
    StorageClosedError,
    StorageNotFoundError,
    TXIDGapError,
    TXIDNotFoundError,
)
from litevfs.files.detours import MAX_DETOURS, Detours, is_unusable
from litevfs.files.fetch import Fetcher
from litevfs.files.fetched import FetchedFile
from litevfs.files.part_index import is_costly, open_part
from litevfs.files.plan import Chain, extend, gap_error, newest_state
from litevfs.ltx.file_info import SNAPSHOT_LEVEL, LTXFileInfo
from litevfs.ltx.page_index import page_index_from_frames
from litevfs.states.lineage import Judge, Lineage, Times, Verdict
from litevfs.states.next_files import NextFiles
from litevfs.states.record import Known
from litevfs.states.snapshot import NumberedFile, Snapshot, empty_snapshot
from litevfs.states.survey import Survey
from litevfs.states.unplaced import begin_unplaced

logger = logging.getLogger("litevfs.states.follower")

MIN_FILES = 128
"""A state of at most so many files stays on them; a state of more moves to compacted files each time they double."""
FETCHED_AT_ONCE = 64
"""Files whose bytes are in memory at the same time: small files are read whole."""
MAX_STEPS = 64
"""More new level-0 files than this are not read one by one: compacted levels hold them in fewer."""

_NO_NUMBERS: Mapping[LTXFileInfo, int] = {}

Publish = Callable[[Snapshot, Sequence[int]], None]
"""(state, the TXIDs that led to it and were not published before, ascending; none when pages only moved)."""


class Follower:
    """Builds the states of one replica. Every method may raise a StorageError or an LTXFormatError of the fetcher."""

    def __init__(
        self, fetcher: Fetcher, keep: Callable[[int, FetchedFile], None], clock: Callable[[], float] = now_s
    ) -> None:
        self._fetcher = fetcher
        self._keep = keep
        self._numbers = itertools.count(1)
        self._anchor: LTXFileInfo | None = None
        self._seen: set[LTXFileInfo] = set()  # files up to the state's TXID that are known to be of this lineage
        self._judge = Judge(fetcher, clock)
        self._names = NextFiles(fetcher)
        self._survey = Survey(fetcher, clock, self._names.as_known)
        self._max_files = MIN_FILES  # of a state, before it moves to compacted ones
        self._told = ""  # why files that are gone are not replaced, in the log already

    def use(self, fetcher: Fetcher, keep: Callable[[int, FetchedFile], None]) -> None:
        """Go on with another fetcher of the same replica (in a forked child)."""
        self._fetcher, self._keep = fetcher, keep
        self._judge.use(fetcher)
        self._survey.use(fetcher)
        self._names.use(fetcher)

    # --- live states --------------------------------------------------------------------------------------------------

    def open_newest(self) -> Snapshot:
        """The newest state. Raises ReplicaEmptyError or TXIDGapError when there is no complete one."""
        began = self._survey.now()
        files = self._survey.list_all()
        snapshot, times = self.make(empty_snapshot(), files)
        self._judge.begin(times)
        self._note_position(files, snapshot)
        self._survey.done(began)
        return snapshot

    def resume(self, known: Known) -> Snapshot:
        """The newest state, from what an earlier process knew: one listing, and what is new since.

        Raises what `follow` raises; then `open_newest` still opens the replica.
        """
        self._numbers = itertools.count(1 + max(known.snapshot.files, default=0))
        self._judge.begin(known.times)
        self._anchor, self._seen = known.anchor, set(known.seen)
        self._survey.resume()
        states = [known.snapshot]
        self.follow(known.snapshot, lambda snapshot, _: states.append(snapshot), thorough=True)
        return states[-1]

    def known(self, snapshot: Snapshot, *, is_verified: bool) -> Known:
        """What a later process may `resume` from; `snapshot` is the newest state."""
        return Known(snapshot, self._anchor, frozenset(self._seen), self._judge.times, is_verified)

    def follow(self, snapshot: Snapshot, publish: Publish, *, thorough: bool = False) -> bool:
        """Publish every state that leads on from `snapshot`, the newest last. False if a state may have been missed.

        That is so for a while where level 0 is empty: a transaction may have passed it between two refreshes. With
        `thorough`, the follower lists all levels then. Raises TXIDGapError, or the error of an unusable file, after
        it has published every state before that and found no way around.
        """
        began, is_due = self._survey.now(), self._survey.is_due()
        known = self._survey.known(snapshot)
        if known is not None and not (thorough or is_due):
            return known
        was_asked = False
        if not thorough and self._names.is_usable and self._is_usual(snapshot):
            snapshot, was_asked = self._follow_by_name(snapshot, publish)
            if was_asked and not is_due:
                return False  # there is no next file, which does not prove that the replica is the same
        is_anchored = self._anchor is not None
        if not self._survey.is_undone and (is_anchored or not (thorough or is_due)):
            snapshot, is_newest = self._follow_level_0(snapshot, publish, is_due=is_due, was_asked=was_asked)
            if is_newest:
                self._survey.rest(snapshot, is_anchored)
                if is_due:
                    self._survey.done(began)
                    self._names.keep_only([*self._seen, *snapshot.files.values()])
                return is_anchored
        self._follow_all_levels(snapshot, publish)
        return True

    def _follow_level_0(
        self, snapshot: Snapshot, publish: Publish, *, is_due: bool, was_asked: bool
    ) -> tuple[Snapshot, bool]:
        """Publish what level 0 lists, and those above if `is_due`. Returns the state, and whether it is the newest."""
        first_txid = self._anchor.min_txid if self._anchor else snapshot.txid + 1
        files = self._survey.list_ahead(first_txid) if is_due else self._survey.list_level_0(first_txid)
        level_0 = [file for file in files if file.level == 0]
        self._names.look_at(level_0, snapshot.txid, was_asked=was_asked)
        chain = extend(snapshot.txid, level_0)
        self._survey.learn_from(chain.files)
        is_all = not chain.gap and all(file.max_txid <= chain.txid for file in files)
        is_usual = self._is_continuous(snapshot, level_0) and is_all and len(chain.files) <= MAX_STEPS
        if not is_usual or not self._is_usual(snapshot):
            return snapshot, False
        self._judge.is_in_order()
        snapshot, failure = self._advance(snapshot, chain, publish)
        self._note_position(level_0, snapshot)
        # The newest file may be on its way still. Of a file that others follow, no more bytes will come.
        if failure and (not is_unusable(failure) or chain.next_after(snapshot.txid) is chain.files[-1]):
            raise failure
        return snapshot, failure is None

    def _follow_all_levels(self, snapshot: Snapshot, publish: Publish) -> None:
        """Publish what all levels hold, also where the replica was replaced. Raises what still keeps it from more."""
        began = self._survey.now()
        self._survey.not_done()
        files = self._survey.list_all()
        is_of_use = bool(extend(snapshot.txid, files).files) or not self._is_at_home(snapshot, files)
        verdict = self._judge.judge(snapshot, self._seen, files, closely=is_of_use)
        failure = self._resync(snapshot, verdict, publish)
        if failure is not None:
            raise failure
        self._survey.done(began)

    def _is_usual(self, snapshot: Snapshot) -> bool:
        """Whether the last refresh left nothing undone, and the state is made of few files."""
        return not self._survey.is_undone and len(snapshot.files) <= self._max_files

    def _follow_by_name(self, snapshot: Snapshot, publish: Publish) -> tuple[Snapshot, bool]:
        """Publish what follows on `snapshot` under the names that it must have on level 0.

        Returns the newest state, and whether storage has no further file of such a name; if not, a listing has to tell.
        """
        ends = [file for file in (self._anchor, *snapshot.files.values()) if file and file.max_txid == snapshot.txid]
        if not ends:
            return snapshot, False
        try:
            found = self._names.find(snapshot.txid, lambda once: self._judge.proves(ends[0], once=once))
            if not found:
                return snapshot, found is not None
            snapshot, times = self._apply_fetched(snapshot, found)
        except (LTXFormatError, StorageNotFoundError) as error:
            logger.info("what was found by its name is of no use: %s", error)
            return snapshot, False
        publish(snapshot, [file.header.max_txid for file in found])
        self._judge.remember(times)
        self._note_position([file.info for file in found], snapshot)
        return snapshot, True

    def _is_continuous(self, snapshot: Snapshot, files: list[LTXFileInfo]) -> bool:
        """Whether a listing of level 0 from the anchor on proves that nothing was missed and nothing replaced."""
        if self._anchor is None:
            return not files
        covered = [file for file in files if file.max_txid <= snapshot.txid]
        return self._anchor in covered and all(file in self._seen for file in covered)

    def _resync(self, snapshot: Snapshot, verdict: Verdict, publish: Publish) -> LitevfsError | None:
        """Bridge gaps, and move away from a replica that was replaced and from files that have vanished.

        Returns the error that kept the follower from the newest state, after it has published what it could.
        """
        if verdict.lineage in {Lineage.OTHER, Lineage.UNKNOWN}:
            self._start_over(snapshot, verdict, publish)
            return None
        snapshot, failure = self._advance_around(snapshot, verdict.files, publish)
        proved_txid = snapshot.txid if verdict.lineage is Lineage.SAME else verdict.proved_txid
        snapshot = self._move_to_compacted_files(snapshot, verdict.files, proved_txid, publish)
        self._note_position(verdict.files, snapshot)
        return failure

    def _start_over(self, old: Snapshot, verdict: Verdict, publish: Publish) -> None:
        if verdict.lineage is Lineage.OTHER:
            logger.warning("the replica was replaced or set back; serving what it holds now")
        else:
            logger.info("nothing links the known state to what the replica holds now; reading it from the beginning")
        start = empty_snapshot(epoch=old.epoch + 1, change_counter=old.change_counter)
        snapshot, times = self.make(start, verdict.files, known=old)
        publish(snapshot, [snapshot.txid])
        self._judge.begin(times)
        self._note_position(verdict.files, snapshot)

    def _advance_around(
        self, snapshot: Snapshot, files: list[LTXFileInfo], publish: Publish
    ) -> tuple[Snapshot, LitevfsError | None]:
        """Apply and publish the chain that leads furthest, without unusable files whose TXIDs other files hold.

        Returns the error that still stops the chain: of the first unusable file, or a gap.
        """
        in_the_way: list[tuple[LTXFileInfo, LitevfsError]] = []
        for _ in range(1 + MAX_DETOURS):
            chain = extend(snapshot.txid, files)
            snapshot, failure = self._advance(snapshot, chain, publish)
            if failure is None:
                break
            file = chain.next_after(snapshot.txid)
            in_the_way.append((file, failure))
            if not is_unusable(failure):
                break
            logger.info("going around a file that is of no use: %s", failure)
            files = [other for other in files if other != file]
        gap = None if chain.gap is None else gap_error(chain.gap)
        return snapshot, next((error for file, error in in_the_way if file.max_txid > snapshot.txid), gap)

    def _advance(self, snapshot: Snapshot, chain: Chain, publish: Publish) -> tuple[Snapshot, LitevfsError | None]:
        """Apply and publish a chain; if a file fails, publish the states before it and return the failure too."""
        if not chain.files:
            return snapshot, None
        try:
            return self._publish_after(snapshot, chain.files, publish), None
        except LitevfsError as error:
            if len(chain.files) == 1:
                return snapshot, error
        try:
            for file in chain.files:
                snapshot = self._publish_after(snapshot, [file], publish)
        except LitevfsError as error:
            return snapshot, error
        return snapshot, None

    def _publish_after(self, snapshot: Snapshot, files: Sequence[LTXFileInfo], publish: Publish) -> Snapshot:
        snapshot, times = self.apply(snapshot, files)
        publish(snapshot, [file.max_txid for file in files])
        self._judge.remember(times)
        return snapshot

    def make(
        self, start: Snapshot, files: list[LTXFileInfo], target: int | None = None, known: Snapshot | None = None
    ) -> tuple[Snapshot, Times]:
        """The newest state, or the one at TXID `target`, made from nothing: without unusable files where
        others lead to the same TXID. See `newest_state` and `apply`.
        """
        detours = Detours(MAX_DETOURS)
        chain = newest_state(files, target)
        while True:
            try:
                return self.apply(start, chain.files, known)
            except LitevfsError as error:
                detours.leave_out(error, files, chain.txid)
                logger.info("going around a file that is of no use: %s", error)
            chain = newest_state(detours.usable(files), chain.txid)

    def apply(
        self, snapshot: Snapshot, files: Sequence[LTXFileInfo], known: Snapshot | None = None
    ) -> tuple[Snapshot, Times]:
        """The state after `files`, fetched in parallel, each checked before it is used; and their times.

        Files that the state `known` uses keep their number, so that their cached pages and blocks stay valid.
        """
        numbers = {file: number for number, file in known.files.items()} if known else {}
        times: Times = {}
        for start in range(0, len(files), FETCHED_AT_ONCE):
            fetched = self._fetcher.fetch_files(files[start : start + FETCHED_AT_ONCE])
            snapshot, some = self._apply_fetched(snapshot, fetched, numbers)
            times |= some
        return snapshot, times

    def _apply_fetched(
        self, snapshot: Snapshot, files: Iterable[FetchedFile], numbers: Mapping[LTXFileInfo, int] = _NO_NUMBERS
    ) -> tuple[Snapshot, Times]:
        times: Times = {}
        for found in files:
            fetched = self._fetcher.confirm_size(found, snapshot.txid, snapshot.commit)
            number = numbers.get(fetched.info) or next(self._numbers)
            numbered = NumberedFile(number, fetched.info, fetched.header, fetched.index, fetched.checks)
            try:
                snapshot = snapshot.apply(numbered)
            except LTXFormatError as error:
                raise self._fetcher.located(error, fetched.info) from error
            self._keep(number, fetched)
            times[fetched.info.level == SNAPSHOT_LEVEL, fetched.header.max_txid] = fetched.header.timestamp_ms
        return snapshot, times

    def _note_position(self, files: Iterable[LTXFileInfo], snapshot: Snapshot) -> None:
        """Remember what the listing showed up to the state's TXID, and the newest level-0 file of it as the anchor."""
        level_0 = [file for file in files if file.level == 0]
        self._names.look_at(level_0, snapshot.txid, was_asked=False)
        level_0 = [file for file in level_0 if file.max_txid == snapshot.txid]
        self._anchor = max(level_0, key=lambda file: file.max_txid, default=None)
        self._seen = {file for file in level_0 if file.min_txid >= (self._anchor.min_txid if self._anchor else 0)}

    # --- files that vanished ------------------------------------------------------------------------------------------

    def _move_to_compacted_files(
        self, snapshot: Snapshot, files: list[LTXFileInfo], proved_txid: int, publish: Publish
    ) -> Snapshot:
        """Read pages from where a state opened now would read them: from few files, none of which retention took.

        Only into files up to `proved_txid`: files beyond may be of another history.
        """
        if not proved_txid or self._is_at_home(snapshot, files):
            return snapshot
        known = set(snapshot.files.values())
        try:
            chain = newest_state(f for f in files if f.max_txid <= proved_txid).files
        except (ReplicaEmptyError, TXIDGapError) as error:
            level = logging.DEBUG if str(error) == self._told else logging.WARNING
            self._told = str(error)
            logger.log(level, "files of the current state are gone, and nothing replaces them yet: %s", error)
            return snapshot
        self._told = ""
        snapshot, times = self.apply(snapshot, [f for f in chain if f not in known])
        self._max_files = max(MIN_FILES, 2 * len(snapshot.files))
        publish(snapshot, ())
        self._judge.remember(times)
        return snapshot

    def _is_at_home(self, snapshot: Snapshot, files: Iterable[LTXFileInfo]) -> bool:
        """Whether pages may stay where they are: in few files, all of which are listed."""
        return len(snapshot.files) <= self._max_files and set(snapshot.files.values()).issubset(files)

    def list_all(self, txid: int | None = None) -> list[LTXFileInfo]:
        """A listing of all levels; with `txid`, of the files that matter to the state after it."""
        return self._survey.list_all(txid)

    @property
    def times(self) -> Fetcher:
        """What reads the times of files."""
        return self._fetcher

    def begin_with(self, start: Snapshot, file: LTXFileInfo) -> Snapshot:
        """The state after a snapshot file whose page index is read later, around the pages that are wanted."""
        header, head, places = open_part(lambda: self._fetcher, file)
        number = next(self._numbers)
        self._keep(number, FetchedFile(file, header, page_index_from_frames(array("I"), array("I")), None, head))
        return begin_unplaced(start, number, file, header, places)

    def begins_costly(self, file: LTXFileInfo) -> bool:
        """Whether `begin_with` is worth while for this file."""
        return is_costly(self._fetcher, file)

    def find_again(self, wanted: Snapshot, published: Snapshot | None, publish: Publish) -> Snapshot | None:
        """List all levels to make the state `wanted`, some files of which are gone, again. None if that is impossible.

        This also publishes newer states as `follow` does, and ignores an error that keeps `follow` from them.
        """
        files = self._survey.list_all()
        is_proved = False
        if published is not None:
            try:
                verdict = self._judge.judge(published, self._seen, files, closely=True)
                is_proved = published.epoch == wanted.epoch and wanted.txid <= verdict.proved_txid
                failure = self._resync(published, verdict, publish)
            except LitevfsError as error:
                failure = error
            if isinstance(failure, StorageClosedError):
                raise failure
            if failure is not None:
                logger.info("while looking for files that are gone: %s", failure)
        start = empty_snapshot(epoch=wanted.epoch, versions=wanted.versions)
        try:
            again, _ = self.make(start, files, wanted.txid, known=wanted)
        except (TXIDNotFoundError, ReplicaEmptyError):
            return None
        is_same = again.size_bytes == wanted.size_bytes and (is_proved or again.timestamp_ms == wanted.timestamp_ms)
        return again if is_same else None
