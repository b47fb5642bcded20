"""The read transaction that keeps the WAL for the capture. Knows what it keeps, but no position and no file.

`database.py` says which transaction keeps which frames. While the held one has a read mark above zero, and while it has
mark zero but something was written since, the WAL is not started over, so every frame in it stays. It can then be
handed over to one that begins later without a capture before. That matters to the application: no checkpoint copies
frames beyond the mark, so with a mark that stays where it is, the application's own checkpoint, which it waits for,
would find a whole second's work at once when the mark moves.
"""

from __future__ import annotations

import time

from litevfs.replicate.database import SourceDatabase, WALState


class Hold:
    """The held read transaction of a database, if there is one. Not safe to use from two threads at once."""

    def __init__(self, database: SourceDatabase) -> None:
        self._database = database
        self._frames = 0  # in the WAL when it had just begun: it sees no more
        self._seen_frames, self._seen_at = 0, 0.0  # frames in the WAL, and since when (monotonic) there are so many
        self.is_held = False
        self.is_at_mark_zero = False
        """Whether no checkpoint copies any frame out of the WAL, and the WAL may be started over, once."""

    def begin(self, state: WALState) -> None:
        """Note a hand-over to a new transaction; the WAL was in this state then, or a moment later."""
        self.is_held, self.is_at_mark_zero, self._frames = True, state.is_backfilled, state.frames

    def move_up(self, frames: int, counts: tuple[int, int] | None = None) -> bool:
        """Hand over if the WAL has at least `frames` frames more than the held transaction sees. Returns whether it
        did. `counts`: those of the WAL as just read, if they were.

        From mark zero, one frame is enough: until then no checkpoint makes progress.
        """
        written, backfilled = counts or self._database.wal_counts()
        if not (written > backfilled if self.is_at_mark_zero else written >= self._frames + frames):
            return False
        with self._database.hand_over():
            self._frames, backfilled = self._database.wal_counts()
        self.is_at_mark_zero = self._frames == backfilled
        return True

    def quiet_s(self, frames: int) -> float:
        """For how long the WAL has had `frames` frames, as far as was asked: there was no write, as while a checkpoint
        that holds writers off waits for the held transaction."""
        now = time.monotonic()
        if frames != self._seen_frames:
            self._seen_frames, self._seen_at = frames, now
        return now - self._seen_at

    def let_go(self) -> None:
        """End the held transaction: from now on the WAL may change in any way."""
        self._database.release()
        self.is_held = self.is_at_mark_zero = False
