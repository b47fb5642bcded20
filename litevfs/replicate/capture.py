"""Committed transactions become LTX files on local disk, one file a step. Owns the position; knows no replica.

A step either reads from the WAL what was committed since the position, or, when it cannot be sure to see all of that,
reads the whole database and says why. Of that, the next TXID holds what differs from the last one by the sums of its
pages (`known_pages.py`), or all, where they are not known or another history begins. It can be sure when a read
transaction was held since the position was taken (`database.py`), or when the WAL still holds the frames up to the
position and was not started over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from litevfs.errors import ReplicatorError, WALError
from litevfs.replicate import limits
from litevfs.replicate.changed_pages import ChangedPages, find_sums
from litevfs.replicate.content import Content, detached, read_changes, read_database, start_of_changes
from litevfs.replicate.database import SourceDatabase, WALState, translated
from litevfs.replicate.file_watch import FileWatch
from litevfs.replicate.hold import Hold
from litevfs.replicate.joining import ReplicaEnd, begin_place
from litevfs.replicate.new_file import add_file
from litevfs.replicate.schema_mark import may_be_mistaken, read_schema, with_schema
from litevfs.replicate.state import State, StateFolder
from litevfs.replicate.upload_queue import UploadQueue
from litevfs.replicate.wal import WALPosition, WALReader

T = TypeVar("T")

logger = logging.getLogger("litevfs.replicate")


class Capture:
    """The steps for one database. Not safe to use from two threads at once.

    `is_closing` is asked between pages; when true, a step under way ends with ReplicatorError and has done nothing.
    `clock_ms` tells the Unix time, in milliseconds, that a new file is stamped with.
    """

    def __init__(
        self,
        database: SourceDatabase,
        folder: StateFolder,
        wal_limits: limits.WALLimits,
        is_closing: Callable[[], bool],
        clock_ms: Callable[[], int],
    ) -> None:
        self._path, self.database, self._folder = database.path, database, folder
        self.limits, self.is_closing, self._clock_ms = wal_limits, is_closing, clock_ms
        self.hold = Hold(database)
        """While it holds, everything after `state.position` stays in the WAL."""
        self._may_start_over = False  # whether the WAL may have been started over, once, since that position
        self._pause = threading.Event()  # never set
        self.state: State | None = None
        """After the newest file; None until `begin`, when there is no local state to continue."""
        self.reason: str | None = None
        """Why the next step reads the whole database; None when it reads on in the WAL."""
        self._is_whole_wanted = False  # whether all of it is to be in the file
        self._watch = FileWatch()
        self.snapshots = 0
        self.last_snapshot_reason: str | None = None
        self.comparisons = 0
        self.last_comparison_reason: str | None = None
        self._load()

    def begin(self, queue: UploadQueue, end: ReplicaEnd, reason: str) -> None:
        """The next step takes the whole database, for the place of `queue`, which is to begin after `end`."""
        self.state, self.reason = begin_place(self._folder, queue, self.state, end, self.database), reason
        self._is_whole_wanted = True
        self._folder.known_pages.forget()
        self._let_go()

    def go_on(self, begin: Callable[[StateFolder, State | None, SourceDatabase], State | None]) -> bool:
        """Let a place go on where its replica ends, if `begin` finds the state for that; returns whether it did."""
        state = begin(self._folder, self.state, self.database)
        if state is not None and state is not self.state:
            self.state, self.reason, self._is_whole_wanted = state, "the database was restored", False
            self._let_go()
        return state is not None

    def want_whole_database(self, reason: str) -> None:
        """The next step takes the whole database, whatever is known of it."""
        self.reason, self._is_whole_wanted = self.reason or reason, True

    def step(self) -> State:
        """Capture everything committed before the call into the folder; writes no file if there is nothing new."""
        if not self._folder.is_held():
            self._let_go()  # while the replicator cannot capture, it leaves the WAL to the application
            raise ReplicatorError("the replicator's local state was removed", key=str(self._folder.path))
        try:
            is_whole = self.reason is not None and not self._knows_pages()
            self._folder.make_room(self.limits.pending_bytes, self._known_state().txid, is_whole=is_whole)
            with translated(self._path):
                if self.database.was_replaced():
                    self._reopen()
                with WALReader(self.database.wal_path) as wal:
                    self._step(wal)
        except ReplicatorError:
            self._let_go_of_large_wal()
            raise
        return self._known_state()

    def step_deleted(self) -> None:
        """Capture what is new, from the files that are open here: the names were removed. Raises ReplicatorError."""
        if self.state is not None and self.reason is None and self._folder.is_held():
            with translated(self._path), self.database.open_wal() as wal:
                self._advance(wal)

    def read_all(self, use: Callable[[WALReader, WALState, Content], T]) -> T:
        """What `use` makes of the WAL and the whole database, before a state is continued. Raises ReplicatorError."""
        if self.database.was_replaced():
            self._reopen()
        source = self.database
        with translated(self._path), WALReader(source.wal_path) as wal, source.hand_over() as transaction:
            result = use(wal, state := source.wal_state(wal), read_database(wal, state, transaction, source.page_size))
        self._let_go()
        return result

    def read_captured(self, use: Callable[[Content], T]) -> tuple[int, T]:
        """Capture what is new; returns the TXID, and what `use` makes of the database in its state."""
        self.step()  # takes the whole database, if that is due
        with translated(self._path), WALReader(self.database.wal_path) as wal:
            with self.database.hand_over() as transaction:
                state = self.database.wal_state(wal)
                self._capture_changes(wal, state)
                result = use(read_database(wal, state, transaction, self.database.page_size))
            self._begin_hold(state)
        return self._known_state().txid, result

    def settle(self) -> None:
        """Between steps: let checkpoints of the application finish that only wait for our read transaction to move."""
        if self.state is None or self.reason is not None or not self.hold.is_held:
            return
        frames, backfilled = self.database.wal_counts()
        quiet_s = self.hold.quiet_s(frames)
        is_behind = frames != self.state.position.frame
        if self.hold.stands_at_end and backfilled < frames and not (is_behind or self.hold.is_time_to_look()):
            return
        self.hold.move_up(limits.MOVE_UP_FRAMES, (frames, backfilled))
        patience_s = limits.SHORTEN_AFTER_S if self.hold.is_at_mark_zero else self.hold.patience_s if is_behind else 0.0
        if self.hold.has_moved_up or quiet_s < patience_s or not self.database.is_in_place():
            return
        # A WALError comes again at the next step.
        with suppress(WALError), translated(self._path), WALReader(self.database.wal_path) as wal:
            if self.hold.is_at_mark_zero:
                self._shorten(wal, quiet_s)
            elif not is_behind:
                self._read_on(wal)
            elif self.database.is_kept_from_writing():
                self._advance(wal)

    def keeps_state(self) -> bool:
        """Whether `state` is known, and in the folder. If the folder was removed, start as a new replicator would.

        Raises ReplicatorError when the folder cannot be made again, ReplicatorLockedError when another has made it.
        """
        if self._folder.is_held():
            return self.state is not None
        self._let_go()
        self._folder.take()
        self._load()
        return False

    def close(self) -> None:
        """Close the database. Idempotent."""
        self.database.close()

    def _load(self) -> None:
        self.state, self.reason, self._is_whole_wanted = self._folder.load(), None, False
        if self.state is not None and self.state.inode != self.database.inode:
            self.reason = "the database file is not the one that was replicated before"
        is_written = self.state is not None and self.state.written_ns not in (None, self.database.written_ns)
        self._watch = FileWatch(is_doubted=is_written and self._knows_pages())  # by a checkpoint, or by a copy

    def _reopen(self) -> None:
        self._let_go()
        self.database.close()
        self.database = self.hold.database = self.database.again()
        self.reason = "the database file was replaced by another"

    def _step(self, wal: WALReader) -> None:
        before = self.hold.state
        if self.reason is None:
            try:
                self._read_on(wal)
            except WALError as exc:
                self.reason = exc.message
        if self.reason is not None:
            self._read_whole_database(wal, self.reason)
        with suppress(ReplicatorError):  # the next step tries again
            self._keep_wal_small(wal, before)
        self._folder.known_pages.merge(self._known_state().key)

    def _shorten(self, wal: WALReader, quiet_s: float) -> None:
        """Give back the space of a huge WAL file, once there was no write for `quiet_s` seconds."""
        pages = self.limits.truncate_pages
        if pages is not None and quiet_s >= limits.SHORTEN_AFTER_S and wal.size > pages * self.database.page_size:
            self.database.checkpoint(truncate=True)

    def _keep_up(self) -> None:
        """Do what `settle` does, when it is due, during a long capture."""
        self._check_open()
        self.hold.keep_up()

    def _read_on(self, wal: WALReader) -> None:
        if not self._is_up_to_date(wal):
            self._advance(wal)
        elif self.hold.must_make_way():
            self._let_go()
            self._pause.wait(limits.MAKE_WAY_S)
            self._advance(wal)  # can tell from the WAL whether it missed anything
            self.hold.look_later()

    def _is_up_to_date(self, wal: WALReader) -> bool:
        """Whether nothing is new, and a new read transaction would stand where the held one does."""
        if not self.hold.stands_at_end:
            return False
        position, state = self._known_state().position, self.database.wal_state(wal)
        is_old = position.is_in(state.header) and state.frames == position.frame and not state.is_backfilled
        return is_old and not self._watch.look(self.database, state)

    def _advance(self, wal: WALReader) -> None:
        """Capture the new frames, then hand the read transaction over. Raises WALError if the WAL cannot show them."""
        is_held = self.hold.is_held
        if is_held:
            self._capture_changes(wal, self.database.wal_state(wal), self._keep_up)
        with self.database.hand_over() as transaction:
            state = self.database.wal_state(wal)
            self._watch.look(self.database, state)
            start = self._next_start(wal, state)
            is_captured = state.is_backfilled or not is_held  # otherwise new frames stay in the WAL for the next step
            if is_captured:
                self._capture_changes(wal, state)
            if is_captured or start is None:
                self._save(with_schema(self._known_state(), transaction))
            if start is None and state.is_backfilled:  # the database file is the state of the newest TXID
                known, is_sound = self._folder.known_pages, partial(self._watch.is_as_seen, self.database)
                find_sums(known, self._known_state(), transaction, limits.SUMS_A_STEP, is_sound)
        self._begin_hold(state, stands_at_end=start is None)

    def _capture_changes(
        self, wal: WALReader, state: WALState, between_pages: Callable[[], None] | None = None
    ) -> None:
        start = self._next_start(wal, state)
        if start is not None:
            self._publish(read_changes(wal, state, start), self._known_state(), between_pages)

    def _next_start(self, wal: WALReader, state: WALState) -> WALPosition | None:
        """See `start_of_changes`."""
        position, may_start_over = self._known_state().position, self._may_start_over
        return start_of_changes(wal, state, position, may_start_over=may_start_over, is_doubted=self._watch.is_doubted)

    def _read_whole_database(self, wal: WALReader, reason: str) -> None:
        before = self._known_state()
        known = self._folder.known_pages.read(before.key, self.database.page_size) if self._knows_pages() else None
        self._let_go()
        self.database.checkpoint()  # only makes the copy simpler
        with self.database.hand_over() as transaction:
            state, watch = self.database.wal_state(wal), FileWatch()
            watch.look(self.database, state)
            after = read_schema(before, transaction)
            if may_be_mistaken(after, before):
                known = None
            content = read_database(wal, state, transaction, self.database.page_size)
            changed = ChangedPages(content, known, self._check_open)
            if changed.is_empty:
                self._save(replace(self._on_this_file(after), position=content.end))
                self._may_start_over = False
            else:
                self._publish(changed.content, after, sums=changed.sums)
        self._begin_hold(state)
        self.reason, self._is_whole_wanted, self._watch = None, False, watch
        if known is not None:
            self.last_comparison_reason, self.comparisons = reason, self.comparisons + 1
            logger.info("%s: compared with TXID %016x, as %s", self._path, before.txid, reason)
            return
        self.last_snapshot_reason, self.snapshots = reason, self.snapshots + 1
        logger.info("%s: TXID %016x holds the whole database: %s", self._path, self._known_state().txid, reason)

    def _knows_pages(self) -> bool:
        """Whether a read of the whole database can be compared with the newest TXID."""
        if self._is_whole_wanted or self.state is None:
            return False
        return self._folder.known_pages.is_at(self.state.key, self.database.page_size)

    def _save(self, state: State) -> None:
        """What is known of the newest TXID has changed."""
        if state is not self.state:
            self._folder.save(state)
            self.state = state

    def _publish(
        self,
        content: Content,
        before: State,
        between_pages: Callable[[], None] | None = None,
        sums: bytearray | None = None,
    ) -> None:
        """Make the next LTX file and count it. `before`, `sums`: see `add_file`."""
        if content.page_size != before.page_size and sums is None:
            raise WALError("the pages of the database have another size now")
        before = replace(self._on_this_file(before), page_size=content.page_size)
        self.state = add_file(self._folder, before, content, self._clock_ms(), between_pages or self._check_open, sums)
        self._may_start_over = False

    def _on_this_file(self, state: State) -> State:
        return replace(state, inode=self.database.inode, written_ns=self.database.written_ns)

    def _check_open(self) -> None:
        if self.is_closing():
            raise ReplicatorError("the replicator is being closed", key=str(self._path))

    def _let_go_of_large_wal(self) -> None:
        """Let the WAL be as small as without a replicator, while the replicator cannot capture: the disk may be full.

        The WAL may be started over now; until that happens, nothing is lost.
        """
        if self.hold.is_held and self.database.wal_counts()[0] >= self.limits.checkpoint_pages:
            logger.warning("%s: the WAL is not kept any more until a sync succeeds", self._path)
            self._let_go()

    def _keep_wal_small(self, wal: WALReader, before: WALState) -> None:
        """Checkpoint a WAL that has grown, so that the next writer starts it over.

        `before`: where our read transaction stood. If no checkpoint came that far, holding writers off changes nothing.
        """
        wal_limits, state = self.limits, self.hold.state
        for _ in range(limits.CHECKPOINTS_A_STEP):
            if state.is_backfilled or state.frames < wal_limits.checkpoint_pages:
                break
            self.database.checkpoint()
            self._advance(wal)
            state = self.hold.state
        else:
            has_reached_us = state.header != before.header or state.backfilled >= before.frames
            is_too_long = wal_limits.truncate_pages is not None and state.frames >= wal_limits.truncate_pages
            if is_too_long and not state.is_backfilled and has_reached_us:
                self._checkpoint_between_writers(wal)
        if self.hold.is_at_mark_zero:
            self._shorten(wal, self.hold.quiet_s(self.hold.state.frames))

    def _checkpoint_between_writers(self, wal: WALReader) -> None:
        """Hold writers off for one short checkpoint: without a pause between commits, none ever completes.

        Capture, copy and flush run before that as far as possible, so that writers do not wait for them. Their last
        frames are read while they wait, and put on disk afterwards. If those are lost, the WAL shows it.
        """
        self._catch_up(wal)
        if self.hold.state.is_backfilled:
            return  # there was a pause
        with self._folder.spool() as spool:
            with self.database.hand_over(writer=True):
                state = self.database.wal_state(wal)
                start = self._next_start(wal, state)
                content = None if start is None else detached(read_changes(wal, state, start), spool)
            try:
                self.database.checkpoint(wait=True)
                with self.database.hand_over():
                    state = self.database.wal_state(wal)
                if content is not None:
                    self._publish(content, self._known_state())
            except BaseException:
                self._let_go()  # releases the write lock above all
                raise
        self._begin_hold(state, stands_at_end=True)

    def _catch_up(self, wal: WALReader) -> None:
        """Capture, and have on disk, all but the last few frames, if writers are not faster than that."""
        for _ in range(limits.CATCH_UP_STEPS):
            before = self.hold.state.frames
            self.database.checkpoint()
            self.database.flush()
            self._advance(wal)
            if self.hold.state.is_backfilled:
                return
            if self.hold.state.frames - before <= limits.MOVE_UP_FRAMES:
                break
        self.hold.move_up(1)
        self.database.checkpoint()
        self.database.flush()

    def _begin_hold(self, state: WALState, *, stands_at_end: bool = False) -> None:
        """A read transaction is held that began in this state, or just before; what it does not keep was captured."""
        self.hold.begin(state, stands_at_end=stands_at_end)
        self._may_start_over |= state.is_backfilled

    def _let_go(self) -> None:
        self.hold.let_go()
        self._may_start_over = False

    def _known_state(self) -> State:
        if self.state is None:
            raise ReplicatorError("the replica's position is not known yet", key=str(self._path))
        return self.state
