"""Whether the database file was written by anything but a checkpoint, such as a copy over it. Reads no file.

Commits go to the WAL alone, and a checkpoint says in the WAL's index how far it came. Of a file that is written while
that stays the same, no page is known any more. A copy during a checkpoint is not told from that.
"""

from __future__ import annotations

from litevfs.replicate.database import SourceDatabase, WALState
from litevfs.replicate.wal import WALHeader


class FileWatch:
    """Looks at one database file, once a step."""

    def __init__(self, *, is_doubted: bool = False) -> None:
        self.is_doubted = is_doubted
        """Whether more than the WAL may have been written since the newest TXID."""
        self._copied: tuple[WALHeader | None, int] | None = None  # which frames were in the file
        self._written_ns: int | None = None  # when that had come to be so
        self._suspected_ns: int | None = None  # a later time, at which perhaps a checkpoint was under way

    def look(self, database: SourceDatabase, state: WALState) -> bool:
        """Note how the file is, after `state` was read; returns whether it is doubted, at the second look only."""
        copied, written_ns = (state.header, state.backfilled), database.written_ns
        if copied != self._copied:
            self._copied, self._written_ns, self._suspected_ns = copied, written_ns, None
        elif written_ns == self._written_ns or written_ns != self._suspected_ns:
            self._suspected_ns = None if written_ns == self._written_ns else written_ns
        elif not database.is_checkpointed():
            self.is_doubted = True
        return self.is_doubted

    def is_as_seen(self, database: SourceDatabase) -> bool:
        """Whether nothing has written to the file since all that is in it was known."""
        return not self.is_doubted and database.written_ns == self._written_ns
