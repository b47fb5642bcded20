"""One page frame of an LTX file: bytes to a page. Knows nothing of the file around it. Does no I/O.

A frame is a 6-byte header (pgno u32, flags u16), then a u32 size and an LZ4 block of that size. Older files of version
3 lack the flag PAGE_FLAG_SIZE and have an LZ4 frame without a size in front. Source: superfly/ltx, `decoder.go`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

from lz4.block import LZ4BlockError
from lz4.block import decompress as lz4_block_decompress
from lz4.frame import LZ4FrameDecompressor

from litevfs.errors import LTXFormatError
from litevfs.ltx.format import END_OF_PAGES, MAX_FRAME_SIZE, PAGE_FLAG_SIZE, PAGE_HEADER_SIZE, PAGE_SIZE_FIELD_SIZE

LZ4_FRAME_MAGIC = b"\x04\x22\x4d\x18"
"""How every LZ4 frame starts (LZ4 Frame Format Description, "General Structure of LZ4 Frame format")."""
FRAME_HEADER_SIZE = PAGE_HEADER_SIZE + PAGE_SIZE_FIELD_SIZE
"""Bytes before the LZ4 block of a frame that has PAGE_FLAG_SIZE."""
_VERSION_2_PAGE_HEADER_SIZE = 4
READ_BYTES = 1 << 18
"""Read at once of a page block, unless the caller says otherwise."""
_AT_ONCE_BYTES = 1 << 20
_FRAME_HEADER = struct.Struct(">IHI")
unpack_frame_header = _FRAME_HEADER.unpack_from
"""(pgno, flags, size of the LZ4 block)"""
assert _FRAME_HEADER.size == FRAME_HEADER_SIZE


def decode_frame(frame: bytes | memoryview, pgno: int, page_size: int) -> bytes:
    """The page in `frame`, which is exactly the frame of page `pgno` as the page index places it.

    Returns `page_size` bytes. Raises LTXFormatError when the frame is another page's, is damaged or does not hold
    exactly one page. Every page that is read passes here: the first lines are the fast way for a sound frame, and
    the slow way checks every other frame again.
    """
    try:
        frame_pgno, flags, size = unpack_frame_header(frame)
        if frame_pgno == pgno and flags == PAGE_FLAG_SIZE and size == len(frame) - FRAME_HEADER_SIZE:
            page: bytes = lz4_block_decompress(frame[FRAME_HEADER_SIZE:], page_size)
            if len(page) == page_size:
                return page
    except (struct.error, LZ4BlockError):
        pass
    return _decode_unusual_frame(frame, pgno, page_size)


def decode_usual_frames(
    data: bytes, start: int, page_size: int
) -> tuple[list[tuple[int, bytes]], list[int], list[bytes], int]:
    """The frames from `start` on as far as each is whole, has PAGE_FLAG_SIZE and holds a page: the fast way for many.

    Ends after _AT_ONCE_BYTES of pages. Returns pages as (pgno, content), the sizes of their frames, what the file
    checksum covers of them, and where they end. What comes there (a part of a frame, the end mark, damage) is for
    `frame_size` and `decode_frame` to tell.
    """
    pages: list[tuple[int, bytes]] = []
    sizes: list[int] = []
    checksummed: list[bytes] = []
    try:
        for _ in range(_AT_ONCE_BYTES // page_size):
            pgno, flags, size = unpack_frame_header(data, start)
            block = start + FRAME_HEADER_SIZE
            end = block + size
            if flags != PAGE_FLAG_SIZE or end > len(data) or end - start > MAX_FRAME_SIZE:
                break
            page = lz4_block_decompress(data[block:end], page_size)
            if len(page) != page_size:
                break
            pages.append((pgno, page))
            sizes.append(end - start)
            checksummed += (data[start:block], page)
            start = end
    except (struct.error, LZ4BlockError):
        pass
    return pages, sizes, checksummed, start


def decode_usual(
    data: bytes, starts: Sequence[int], sizes: Sequence[int], pgnos: Sequence[int], page_size: int
) -> list[bytes]:
    """The pages of frames that lie at `starts` in `data`, as far as each is as `decode_frame` reads it the fast way.

    Ends before the first frame that is another page's, is damaged, is written otherwise or is not whole.
    """
    pages: list[bytes] = []
    view = memoryview(data)
    try:
        for start, size, pgno in zip(starts, sizes, pgnos, strict=False):
            frame_pgno, flags, block_size = unpack_frame_header(data, start)
            if frame_pgno != pgno or flags != PAGE_FLAG_SIZE or block_size != size - FRAME_HEADER_SIZE:
                break
            page = lz4_block_decompress(view[start + FRAME_HEADER_SIZE : start + size], page_size)
            if len(page) != page_size:
                break
            pages.append(page)
    except (struct.error, LZ4BlockError):
        pass
    return pages


def _decode_unusual_frame(frame: bytes | memoryview, pgno: int, page_size: int) -> bytes:
    """The page in a frame without PAGE_FLAG_SIZE, or the error that says what is wrong with a frame."""
    flags = _checked_flags(frame, pgno)
    if flags == 0:
        return _decode_lz4_frame(frame[PAGE_HEADER_SIZE:], pgno, page_size)
    size = int.from_bytes(frame[PAGE_HEADER_SIZE:FRAME_HEADER_SIZE], "big")
    if size != len(frame) - FRAME_HEADER_SIZE:
        raise _bad_frame(pgno, f"it says its data has {size} bytes, the frame has {len(frame)}")
    raise _bad_frame(pgno, f"its data is not an LZ4 block of {page_size} bytes")


def _checked_flags(frame: bytes | memoryview, pgno: int) -> int:
    if len(frame) < PAGE_HEADER_SIZE:
        raise _bad_frame(pgno, f"{len(frame)} bytes are less than its header")
    if is_version_2_frame(frame):
        raise version_2_error()
    frame_pgno = int.from_bytes(frame[:4], "big")
    if frame_pgno != pgno:
        raise _bad_frame(pgno, f"its header says page {frame_pgno}")
    flags = int.from_bytes(frame[4:PAGE_HEADER_SIZE], "big")
    if flags & ~PAGE_FLAG_SIZE:
        raise _bad_frame(pgno, f"unknown flags {flags:#06x}", "maybe written in another version of the format than 3")
    return flags


def _decode_lz4_frame(data: bytes | memoryview, pgno: int, page_size: int) -> bytes:
    if data[: len(LZ4_FRAME_MAGIC)] != LZ4_FRAME_MAGIC:  # also refuses skippable frames, which hold no page
        raise _bad_frame(pgno, "its data is not an LZ4 frame")
    decompressor = LZ4FrameDecompressor()
    try:
        # One byte more than a page: room to reach the end mark, and to notice a page that is too long.
        page: bytes = decompressor.decompress(data, max_length=page_size + 1)
    except RuntimeError as exc:  # what the lz4 package raises for damaged frames
        raise _bad_frame(pgno, "its LZ4 frame is damaged") from exc
    if len(page) != page_size or not decompressor.eof or decompressor.unused_data:
        raise _bad_frame(pgno, f"its LZ4 frame does not hold exactly {page_size} bytes")
    return page


def is_version_2_frame(frame: bytes | memoryview) -> bool:
    """Whether an LZ4 frame follows the page number at once, as in version 2 of the format.

    Read as version 3, its magic is a page header with flags that no version has. (superfly/ltx wrote version 2 up to
    v0.4.0, version 1 up to v0.3.18; the magic of the file never changed.)
    """
    end = _VERSION_2_PAGE_HEADER_SIZE + len(LZ4_FRAME_MAGIC)
    return frame[_VERSION_2_PAGE_HEADER_SIZE:end] == LZ4_FRAME_MAGIC


def version_2_error() -> LTXFormatError:
    """The error for a file of version 2, which has the same magic and page headers of four bytes."""
    return LTXFormatError(
        "LTX page frame has a header of four bytes: this looks like version 2 of the format",
        hint="written by an old Litestream or LiteFS; let a current Litestream write the replica again",
    )


def _bad_frame(pgno: int, what: str, hint: str | None = None) -> LTXFormatError:
    return LTXFormatError(f"damaged LTX frame of page {pgno}: {what}", hint=hint)


def checksummed_headers(frame: bytes | memoryview) -> bytes | memoryview:
    """What the file checksum covers of a sound frame beside the page: its headers."""
    return frame[: FRAME_HEADER_SIZE if frame[5] & PAGE_FLAG_SIZE else PAGE_HEADER_SIZE]


def frame_size(data: bytes, start: int) -> int | None:
    """Bytes of the frame (or end mark) at `start`, as its headers say; None when too few bytes are there to tell.

    At most MAX_FRAME_SIZE; raises LTXFormatError for headers that no frame has. Reads no more of the frame.
    """
    head = bytes(data[start : start + FRAME_HEADER_SIZE])
    if head[:PAGE_HEADER_SIZE] == END_OF_PAGES:
        return PAGE_HEADER_SIZE
    if len(head) < FRAME_HEADER_SIZE:
        return None
    pgno = int.from_bytes(head[:4], "big")
    if _checked_flags(head, pgno) == PAGE_FLAG_SIZE:
        size: int | None = FRAME_HEADER_SIZE + int.from_bytes(head[PAGE_HEADER_SIZE:], "big")
    elif head[PAGE_HEADER_SIZE:] == LZ4_FRAME_MAGIC:
        size = _size_with_lz4_frame(data, start)
    else:
        raise _bad_frame(pgno, "its data is not an LZ4 frame")
    if size is not None and size > MAX_FRAME_SIZE:
        raise _bad_frame(pgno, f"it says it has {size} bytes")
    return size


def _size_with_lz4_frame(data: bytes, start: int) -> int | None:
    """Follow the sizes inside an LZ4 frame to its end (LZ4 Frame Format Description, "Data Blocks")."""
    flags_at = start + PAGE_HEADER_SIZE + len(LZ4_FRAME_MAGIC)
    if flags_at >= len(data):
        return None
    flags = data[flags_at]
    position = flags_at + 3 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)  # content size, dictionary id
    while position - start <= MAX_FRAME_SIZE:
        if position + 4 > len(data):
            return None
        block = int.from_bytes(data[position : position + 4], "little")
        position += 4
        if block == 0:
            return position - start + (4 if flags & 0x04 else 0)  # content checksum
        position += (block & 0x7FFFFFFF) + (4 if flags & 0x10 else 0)  # block checksum
    return position - start


def read_frames(
    read: Callable[[int, int], bytes], start: int, at_once: int = READ_BYTES
) -> Iterator[tuple[int, bytes]]:
    """(pgno, frame) of the page block that begins at `start`, up to its end mark; `read(offset, size)` gives bytes.

    Memory: `at_once` bytes, or a frame. Frames are separated, not decoded. Raises LTXFormatError if there is none.
    """
    data, position = read(start, at_once), 0
    while True:
        size = frame_size(data, position)
        if size is None or position + size > len(data):
            start += position
            data, position = read(start, max(at_once, MAX_FRAME_SIZE)), 0
            size = frame_size(data, position)
            if size is None or size > len(data):
                raise LTXFormatError("LTX page block does not end with six zero bytes", hint="the file is truncated")
        if size == PAGE_HEADER_SIZE:
            return
        frame = data[position : position + size]
        yield int.from_bytes(frame[:4], "big"), frame
        position += size
