"""An LTX file as a listing shows it: level, TXIDs, size, time. Knows no storage and no content."""

from __future__ import annotations

from dataclasses import dataclass

from litevfs.ltx.names import format_file_name

SNAPSHOT_LEVEL = 9
"""Level of full snapshots (min_txid 1)."""
LEVELS = range(SNAPSHOT_LEVEL + 1)
"""All levels a replica can have: 0 as uploaded, 1 to 8 compacted, 9 snapshots."""


@dataclass(frozen=True, slots=True)
class LTXFileInfo:
    """One LTX file as a listing shows it."""

    level: int
    min_txid: int
    max_txid: int
    size: int  # bytes
    modified_ms: int  # the storage's own time of the write, milliseconds since the Unix epoch
    etag: str = ""  # opaque; differs when the content does, "" where the storage has none

    @property
    def place(self) -> tuple[int, int, int]:
        """Level, min_txid and max_txid: one file of a replica at most; listings are in this order."""
        return self.level, self.min_txid, self.max_txid

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return format_file_name(self.min_txid, self.max_txid)
