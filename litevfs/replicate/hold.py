"""The read transaction that keeps the WAL for us. Knows what it keeps; knows neither the position nor any file.

`database.py` says what keeps what. While the held one has a read mark above zero, and while it has mark zero but
something was written since, the WAL is not started over, so every frame in it stays. It can then be handed over to one
that begins later without anything being captured before. That matters to the application: no checkpoint copies what
lies beyond the mark, so with a mark that stays where it is, the application's own checkpoint, which it waits for, would
find a whole second's work at once when the mark moves.
"""

from __future__ import annotations

from litevfs.replicate.database import SourceDatabase, WALState


class Hold:
    """The held read transaction of a database, if there is one. Not safe to use from two threads at once."""

    def __init__(self, database: SourceDatabase) -> None:
        self._database = database
        self._frames = 0  # in the WAL when it had just begun: it sees no more
        self.is_held = False
        self.is_at_mark_zero = False
        """Whether nothing at all is copied out of the WAL, and the WAL may be started over, once."""

    def begin(self, state: WALState) -> None:
        """A new one was handed over to, and the WAL was in this state then, or a moment later."""
        self.is_held, self.is_at_mark_zero, self._frames = True, state.is_backfilled, state.frames

    def move_up(self, frames: int) -> bool:
        """Hand over when the WAL has at least `frames` frames more than the held one sees. Whether it did.

        From mark zero it does so when there are any: no checkpoint gets on before.
        """
        written, backfilled = self._database.wal_counts()
        if not (written > backfilled if self.is_at_mark_zero else written >= self._frames + frames):
            return False
        with self._database.hand_over():
            self._frames, backfilled = self._database.wal_counts()
        self.is_at_mark_zero = self._frames == backfilled
        return True

    def let_go(self) -> None:
        """Hold nothing any more: the WAL may change in any way."""
        self._database.release()
        self.is_held = self.is_at_mark_zero = False
