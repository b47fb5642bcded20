"""The read transaction that keeps the WAL for the capture: what it sees, when it moves on, and whom it keeps waiting.

Knows no position and no file. `database.py` says which transaction keeps which frames. While the held one has a read
mark above zero, and while it has mark zero but something was written since, the WAL is not started over, so every frame
in it stays. It can then be handed over to one that begins later without a capture before. That matters to the
application: no checkpoint copies frames beyond the mark, so with a mark that stays where it is, the application's own
checkpoint, which it waits for, would find a whole second's work at once when the mark moves.
"""

from __future__ import annotations

import time
from contextlib import suppress

from litevfs.errors import ReplicatorError
from litevfs.replicate import limits
from litevfs.replicate.database import SourceDatabase, WALState


class Hold:
    """The held read transaction of a database, if there is one. Not safe to use from two threads at once."""

    def __init__(self, database: SourceDatabase) -> None:
        self.database = database
        self._frames = 0  # in the WAL when it had just begun: it sees no more
        self._seen_frames, self._seen_at = 0, 0.0  # frames in the WAL, and since when (monotonic) there are so many
        self._next_move_up = 0.0  # monotonic
        self._look_at: float | None = None  # monotonic; when to check whether it keeps a checkpoint waiting
        self._has_looked = False  # and the last check said that it may
        self.patience_s = limits.MAKE_WAY_AFTER_S
        self.state = WALState(None, 0, 0)
        """The WAL at the last `begin`."""
        self.is_held = False
        self.is_at_mark_zero = False
        """Whether no checkpoint copies any frame out of the WAL, and the WAL may be started over, once."""
        self.stands_at_end = False
        """Whether it is known to see just what was captured."""
        self.has_moved_up = False
        """Whether the last `move_up` did so."""

    @property
    def is_in_the_way(self) -> bool:
        """Whether checkpoints of the application wait for it to move, or would if the application wrote now."""
        return self.is_at_mark_zero or self.has_moved_up

    def begin(self, state: WALState, *, stands_at_end: bool = False) -> None:
        """Note a hand-over to a new transaction; the WAL was in this state then, or a moment later."""
        if state.is_backfilled:
            self._look_at = None
        elif (state.header, state.frames) != (self.state.header, self.state.frames):
            self.look_later()
        self.is_held, self.is_at_mark_zero, self._frames = True, state.is_backfilled, state.frames
        self.state, self.stands_at_end = state, stands_at_end

    def move_up(self, frames: int, counts: tuple[int, int] | None = None) -> bool:
        """Hand over if the WAL has at least `frames` frames more than the held transaction sees. Returns whether it
        did. `counts`: those of the WAL as just read, if they were.

        From mark zero, one frame is enough: until then no checkpoint makes progress.
        """
        written, backfilled = counts or self.database.wal_counts()
        is_due = written > backfilled if self.is_at_mark_zero else written >= self._frames + frames
        if is_due:
            with self.database.hand_over():
                self._frames, backfilled = self.database.wal_counts()
            self.is_at_mark_zero, self.stands_at_end = self._frames == backfilled, False
        self.has_moved_up = is_due
        return is_due

    def keep_up(self) -> None:
        """During a long capture: move up when it is time to."""
        now = time.monotonic()
        if now >= self._next_move_up:
            self._next_move_up = now + limits.MOVE_UP_INTERVAL_S
            with suppress(ReplicatorError):  # the next one may
                self.move_up(limits.MOVE_UP_FRAMES)

    def quiet_s(self, frames: int) -> float:
        """For how long the WAL has had `frames` frames, as far as was asked: there was no write, as while a checkpoint
        that holds writers off waits for the held transaction."""
        now = time.monotonic()
        if frames != self._seen_frames:
            self._seen_frames, self._seen_at = frames, now
        return now - self._seen_at

    def is_time_to_look(self) -> bool:
        """Whether to check if a checkpoint waits for the read mark all the time (see `limits`)."""
        return self._look_at is not None and time.monotonic() >= self._look_at

    def look_later(self) -> None:
        """Check so only after `patience_s`."""
        self._has_looked, self._look_at = False, time.monotonic() + self.patience_s

    def must_make_way(self) -> bool:
        """Check when it is time to; whether a checkpoint has waited for the read mark at two checks in a row."""
        if not self.is_time_to_look():
            return False
        self._look_at = None
        if not self.database.is_kept_from_writing():
            return False
        if not self._has_looked:
            self._has_looked, self._look_at = True, time.monotonic() + limits.LOOK_AGAIN_AFTER_S
            return False
        return True

    def let_go(self) -> None:
        """End the held transaction: from now on the WAL may change in any way."""
        self.database.release()
        self.is_held = self.is_at_mark_zero = self.stands_at_end = self.has_moved_up = False
