"""What a snapshot keeps of 2,048 consecutive pages: of each where its bytes are, and which ones. Knows no file.

Per page:

- `version` (u32): the TXID that the page's content is of, as a code. Within one history a TXID has one content, so two
  snapshots of it with equal versions of a page have equal bytes: pages are cached by it.
- `file` (u32): the number of the file to read it from. Compaction puts the same version into another file.
- `frame` (u64): offset (47 bits) and size (17 bits) of the frame there.
- `check` (u16): of the frame's bytes (`files.frame_checks`), where its file was verified whole; 0 where it was not.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK_BITS = 11
CHUNK_PAGES = 1 << CHUNK_BITS
CHUNK_MASK = CHUNK_PAGES - 1
MIN_SLOTS = 16  # of the last chunk
FRAME_SIZE_BITS = 17
"""Enough for the largest frame (`MAX_FRAME_SIZE`)."""
FRAME_SIZE_MASK = (1 << FRAME_SIZE_BITS) - 1
MAX_FRAME_OFFSET = 1 << (64 - FRAME_SIZE_BITS)


class Chunk:
    """2,048 consecutive pages, in Python's own arrays: indexing them takes half as long as numpy's. The last chunk of a
    database has as few slots as it needs (see `slots_of`).

    For whole ranges numpy gets a short-lived view: views that stay would take a twentieth of the content's memory.
    """

    __slots__ = ("checks", "files", "frames", "versions")

    def __init__(self, versions: array[int], files: array[int], frames: array[int], checks: array[int]) -> None:
        self.versions, self.files, self.frames, self.checks = versions, files, frames, checks

    @property
    def version_array(self) -> NDArray[np.uint32]:
        """`versions` for numpy; writing to it changes the chunk."""
        return np.frombuffer(self.versions, np.uint32)

    @property
    def file_array(self) -> NDArray[np.uint32]:
        """`files` for numpy."""
        return np.frombuffer(self.files, np.uint32)

    @property
    def frame_array(self) -> NDArray[np.uint64]:
        """`frames` for numpy."""
        return np.frombuffer(self.frames, np.uint64)

    @property
    def check_array(self) -> NDArray[np.uint16]:
        """`checks` for numpy."""
        return np.frombuffer(self.checks, np.uint16)

    @property
    def arrays(self) -> tuple[NDArray[np.unsignedinteger[Any]], ...]:
        """All four arrays of the chunk."""
        return self.version_array, self.file_array, self.frame_array, self.check_array

    def copy(self) -> Chunk:
        """An independent chunk with the same content."""
        return Chunk(self.versions[:], self.files[:], self.frames[:], self.checks[:])

    def extended(self, slots: int) -> Chunk:
        """An independent chunk of so many slots, those beyond the content of this one empty."""
        room = empty_chunk(slots - len(self.versions))
        return Chunk(
            self.versions + room.versions,
            self.files + room.files,
            self.frames + room.frames,
            self.checks + room.checks,
        )


def empty_chunk(slots: int) -> Chunk:
    """A chunk of so many slots, of pages that no file holds."""
    u16, u32, u64 = ((code, bytes(slots * size)) for code, size in (("H", 2), ("I", 4), ("Q", 8)))
    return Chunk(array(*u32), array(*u32), array(*u64), array(*u16))


def slots_of(commit: int, number: int) -> int:
    """Slots that chunk `number` has in a database of `commit` pages: a power of two for the last, all for the others.

    A process may have thousands of small databases open, each of a few pages.
    """
    needed = commit - (number << CHUNK_BITS)
    return min(CHUNK_PAGES, max(MIN_SLOTS, 1 << (needed - 1).bit_length()))
