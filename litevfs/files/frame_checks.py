"""Verifies whole LTX files, and makes a check of each frame for later reads. Owns those checks; does no I/O.

The format has one checksum per file and none per page. So the fetcher keeps 16 bits of each frame of a file that it
has verified, and compares later reads of ranges of the file with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from litevfs.ltx.decoder import StreamDecoder
from litevfs.ltx.page_index import PageIndex

FEED_BYTES = 1 << 16
"""Bytes decoded at once: a hostile file can make 255 times as many bytes of pages of them."""


def frame_check(frame: bytes | memoryview) -> int:
    """A 16-bit check of a frame's bytes, never 0. The format itself has none per page."""
    return (crc32(frame) & 0xFFFF) or 1


def frame_checks(index: PageIndex, data: bytes) -> NDArray[np.uint16]:
    """The checks of all frames of a file that was verified whole, in the order of its index."""
    checks = _FrameChecks(index)
    checks.feed(data)
    return checks.values


def verify_stream(pieces: Iterable[bytes], index: PageIndex) -> NDArray[np.uint16]:
    """Verify a file from its bytes, first to last, in pieces of any size; returns the checks of its frames.

    `index` is as `read_header_and_index` gives it for the bytes of the same pieces. Memory: a piece, a frame, the
    result, and FEED_BYTES decoded. Raises LTXFormatError for a file that is not sound as a whole.
    """
    decoder = StreamDecoder()
    checks = _FrameChecks(index)
    for part in small_parts(pieces):
        decoder.feed(part)
        checks.feed(part)
    decoder.finish()
    return checks.values


def small_parts(pieces: Iterable[bytes]) -> Iterator[memoryview]:
    """The same bytes in parts that are safe to decode at once."""
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), FEED_BYTES):
            yield view[start : start + FEED_BYTES]


class _FrameChecks:
    """The checks of a file's frames, from its bytes in order. Keeps no more than the frame that is not whole yet."""

    def __init__(self, index: PageIndex) -> None:
        self.values = np.zeros(len(index), np.uint16)
        self._index = index
        self._done = 0  # frames
        self._rest = b""  # of the bytes fed: those after the done frames
        self._rest_at = 0  # where that lies in the file, bytes

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the file."""
        if self._done == len(self._index):
            return  # the page index and the trailer
        known = memoryview(self._rest + data)
        start = self._rest_at
        whole = self._frames_before(start + len(known))
        offsets = self._index.offsets[self._done : whole].tolist()
        sizes = self._index.sizes[self._done : whole].tolist()
        self.values[self._done : whole] = [
            frame_check(known[offset - start : offset - start + size])
            for offset, size in zip(offsets, sizes, strict=True)
        ]
        if sizes:
            self._done = whole
            self._rest_at = offsets[-1] + sizes[-1]
        self._rest = bytes(known[self._rest_at - start :])

    def _frames_before(self, end: int) -> int:
        """How many frames end at or before this byte of the file; they lie back to back."""
        begun = int(np.searchsorted(self._index.offsets, np.uint64(end), side="right"))
        if begun and int(self._index.offsets[begun - 1]) + int(self._index.sizes[begun - 1]) > end:
            begun -= 1
        return begun
