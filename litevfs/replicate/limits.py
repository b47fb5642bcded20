"""When a capture checkpoints, stops for a while, or lets other checkpoints pass. Plain values.

Why checkpoints of the application have to be let pass: such a checkpoint looks at how far the reader in one of SQLite's
five places is, and if not far enough, waits until the place is free, even when a reader that is has taken it meanwhile.
If the capture takes it, the checkpoint waits until it gives up, and holds off all writers so long: each new transaction
takes the place of the one before. It is rare, as it must begin just when the capture hands over. So a later check is
enough, and a second one to be sure: frames written while the capture holds nothing may be lost in a WAL that was
emptied, which costs a whole copy.
"""

from __future__ import annotations

from dataclasses import dataclass

from litevfs.errors import OptionError

CHECKPOINTS_A_STEP = 2
CATCH_UP_STEPS = 5
MAKE_WAY_AFTER_S = 0.3
LOOK_AGAIN_AFTER_S = 0.2
"""A checkpoint that copies much, or waits for a disk, must not look like one that waits for our read transaction."""
MAKE_WAY_S = 0.15
"""Longer than SQLite pauses between two tries of a lock, which is 0.1 s (`sqliteDefaultBusyCallback`)."""
MOVE_UP_FRAMES = 1000
"""So many frames SQLite lets the WAL have before it checkpoints by itself (SQLITE_DEFAULT_WAL_AUTOCHECKPOINT)."""
MOVE_UP_INTERVAL_S = 0.02
"""How long the replicator may block the application's own checkpoints: a few hundred transactions."""
SUMS_A_STEP = 1000
"""Sums of pages that a capture computes besides, when nothing was written since: a few milliseconds."""
SHORTEN_AFTER_S = 10.0
"""Giving back the space of a huge file can take longer than any checkpoint, so no writer should be active."""


@dataclass(frozen=True, slots=True)
class WALLimits:
    """When the replicator checkpoints, in pages of the WAL, and how many bytes may wait for their upload."""

    checkpoint_pages: int  # from here on, without waiting for any reader or writer
    truncate_pages: int | None  # from here on, holding writers off for a moment; a larger file is shortened in a pause
    pending_bytes: int | None = None  # from here on nothing is captured; None: as much as the disk holds

    def __post_init__(self) -> None:
        pages, largest = self.checkpoint_pages, self.truncate_pages
        if pages < 1 or (largest is not None and pages > largest):
            raise OptionError(f"checkpoint_pages {pages} is not from 1 to truncate_pages {largest}")
