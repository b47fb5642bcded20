"""Bytes of LTX files to pages: one frame, a whole file in memory, or the two ends of a file. Does no I/O.

Nothing that was not checked leaves this module: a frame by its header, its LZ4 data and its size, a file by its order,
its index and its checksums. Anything wrong is an LTXFormatError, whatever the bytes; no size that a file states is
believed before it is bounded. For files too large to hold in memory see `litevfs.ltx.stream_decoder`.

Source: superfly/ltx, `decoder.go`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from lz4.block import LZ4BlockError
from lz4.block import decompress as lz4_block_decompress
from lz4.frame import LZ4FrameDecompressor

from litevfs.errors import LTXChecksumError, LTXFormatError
from litevfs.ltx.checksum import DatabaseChecksum, FileChecksum
from litevfs.ltx.format import (
    END_OF_PAGES,
    HEADER_SIZE,
    PAGE_FLAG_SIZE,
    PAGE_HEADER_SIZE,
    PAGE_SIZE_FIELD_SIZE,
    TRAILER_SIZE,
    Header,
    Trailer,
)
from litevfs.ltx.page_index import PageIndex, decode_page_index, index_size_from_tail, validate_page_index

LZ4_FRAME_MAGIC = b"\x04\x22\x4d\x18"
"""How every LZ4 frame starts (LZ4 Frame Format Description, "General Structure of LZ4 Frame format")."""
FRAME_HEADER_SIZE = PAGE_HEADER_SIZE + PAGE_SIZE_FIELD_SIZE
"""Bytes before the LZ4 block of a frame that has PAGE_FLAG_SIZE."""
_VERSION_2_PAGE_HEADER_SIZE = 4
_FRAME_HEADER = struct.Struct(">IHI")
_unpack_frame_header = _FRAME_HEADER.unpack_from
assert _FRAME_HEADER.size == FRAME_HEADER_SIZE


def decode_frame(frame: bytes | memoryview, pgno: int, page_size: int) -> bytes:
    """The page in `frame`, which is exactly the frame of page `pgno` as the page index places it.

    Returns `page_size` bytes. Raises LTXFormatError when the frame is another page's, is damaged or does not hold
    exactly one page. Every page that is read passes here: the first lines are the fast way for a sound frame, and
    whatever does not fit is looked at again, slowly.
    """
    try:
        frame_pgno, flags, size = _unpack_frame_header(frame)
        if frame_pgno == pgno and flags == PAGE_FLAG_SIZE and size == len(frame) - FRAME_HEADER_SIZE:
            page: bytes = lz4_block_decompress(frame[FRAME_HEADER_SIZE:], page_size)
            if len(page) == page_size:
                return page
    except (struct.error, LZ4BlockError):
        pass
    return _decode_unusual_frame(frame, pgno, page_size)


def _decode_unusual_frame(frame: bytes | memoryview, pgno: int, page_size: int) -> bytes:
    """The page in a frame without PAGE_FLAG_SIZE, or the error that says what is wrong with a frame."""
    if len(frame) < PAGE_HEADER_SIZE:
        raise _bad_frame(pgno, f"{len(frame)} bytes are less than its header")
    if is_version_2_frame(frame):
        raise version_2_error()
    frame_pgno = int.from_bytes(frame[:4], "big")
    flags = int.from_bytes(frame[4:PAGE_HEADER_SIZE], "big")
    if frame_pgno != pgno:
        raise _bad_frame(pgno, f"its header says page {frame_pgno}")
    if flags & ~PAGE_FLAG_SIZE:
        raise _bad_frame(pgno, f"unknown flags {flags:#06x}")
    if flags == 0:
        return _decode_lz4_frame(frame[PAGE_HEADER_SIZE:], pgno, page_size)
    size = int.from_bytes(frame[PAGE_HEADER_SIZE:FRAME_HEADER_SIZE], "big")
    if size != len(frame) - FRAME_HEADER_SIZE:
        raise _bad_frame(pgno, f"it says its data has {size} bytes, the frame has {len(frame)}")
    raise _bad_frame(pgno, f"its data is not an LZ4 block of {page_size} bytes")


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

    Read as version 3, its magic is a page header with flags that no version has.
    """
    end = _VERSION_2_PAGE_HEADER_SIZE + len(LZ4_FRAME_MAGIC)
    return frame[_VERSION_2_PAGE_HEADER_SIZE:end] == LZ4_FRAME_MAGIC


def version_2_error() -> LTXFormatError:
    """The error for a file of version 2, which has the same magic and page headers of four bytes."""
    return LTXFormatError(
        "LTX page frame has a header of four bytes: this looks like version 2 of the format",
        hint="written by an old Litestream or LiteFS; let a current Litestream write the replica anew",
    )


def _bad_frame(pgno: int, what: str) -> LTXFormatError:
    return LTXFormatError(f"damaged LTX frame of page {pgno}: {what}")


@dataclass(frozen=True, slots=True, eq=False)
class LTXFile:
    """A whole file in memory, verified by `decode_file`."""

    header: Header
    index: PageIndex
    trailer: Trailer
    data: bytes | memoryview  # the file

    def frame(self, i: int) -> bytes:
        """The i-th frame of the index, as it is in the file."""
        start = int(self.index.offsets[i])
        return bytes(self.data[start : start + int(self.index.sizes[i])])

    def page(self, pgno: int) -> bytes:
        """The content of page `pgno`. Raises KeyError when the file does not hold it."""
        i = self.index.find(pgno)
        if i is None:
            raise KeyError(pgno)
        return decode_frame(self.frame(i), pgno, self.header.page_size)

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """Every page as (pgno, content), ascending."""
        return ((pgno, page) for pgno, _, page in _decode_frames(self.data, self.header, self.index))


def decode_file(data: bytes | memoryview) -> LTXFile:
    """Parse and verify a whole file, the checksums included. Raises LTXFormatError."""
    header, index, trailer = read_header_and_index(data, data, len(data))
    file_checksum = FileChecksum()
    file_checksum.update(data[:HEADER_SIZE])
    database_checksum = DatabaseChecksum()
    is_checksummed_snapshot = header.is_snapshot and header.has_checksums
    for pgno, frame, page in _decode_frames(data, header, index):
        file_checksum.update(checksummed_frame_header(frame))
        file_checksum.update(page)
        if is_checksummed_snapshot:
            database_checksum.toggle(pgno, page)
    pages_end = HEADER_SIZE + int(index.sizes.sum())
    file_checksum.update(data[pages_end:-8])
    check_checksums(header, trailer, file_checksum, database_checksum)
    return LTXFile(header, index, trailer, data)


def _decode_frames(
    data: bytes | memoryview, header: Header, index: PageIndex
) -> Iterator[tuple[int, bytes | memoryview, bytes]]:
    """(pgno, frame, page) of each entry of a sound index."""
    page_size = header.page_size
    start = HEADER_SIZE
    for pgno, size in zip(index.pgnos.tolist(), index.sizes.tolist(), strict=True):
        frame = data[start : start + size]
        yield pgno, frame, decode_frame(frame, pgno, page_size)
        start += size


def checksummed_frame_header(frame: bytes | memoryview) -> bytes | memoryview:
    """What the file checksum covers of a sound frame beside the page: its headers."""
    return frame[: FRAME_HEADER_SIZE if frame[5] & PAGE_FLAG_SIZE else PAGE_HEADER_SIZE]


def check_checksums(header: Header, trailer: Trailer, file: FileChecksum, database: DatabaseChecksum) -> None:
    """Compare what a trailer says with what was computed; `database` counts for checksummed snapshots only."""
    if file.value != trailer.file_checksum:
        what = f"file checksum is {file.value:016x}, the trailer says {trailer.file_checksum:016x}"
        hint = "the file is damaged"
    elif header.is_snapshot and header.has_checksums and database.value != trailer.post_apply_checksum:
        what = f"database checksum is {database.value:016x}, the trailer says {trailer.post_apply_checksum:016x}"
        hint = "the writer had a wrong state"
    else:
        return
    raise LTXChecksumError(f"LTX {what}", min_txid=header.min_txid, max_txid=header.max_txid, hint=hint)


def tail_size_needed(tail: bytes | memoryview, file_size: int) -> int:
    """How many bytes of the end of a file `read_header_and_index` needs, given its last 24 bytes or more.

    They hold the six zero bytes, the page index and the trailer. Raises LTXFormatError when a file of `file_size` bytes
    cannot hold the index that it says it has.
    """
    needed = len(END_OF_PAGES) + index_size_from_tail(tail) + TRAILER_SIZE
    if needed > file_size - HEADER_SIZE:
        raise LTXFormatError(
            f"LTX file of {file_size} bytes cannot hold a page index of {needed} bytes",
            hint="the file is truncated, still being written, or of version 2 of the format",
        )
    return needed


def read_header_and_index(
    head: bytes | memoryview, tail: bytes | memoryview, file_size: int
) -> tuple[Header, PageIndex, Trailer]:
    """Header, page index and trailer of a file of `file_size` bytes, with every check that needs no page.

    `head` is how the file starts (100 bytes or more), `tail` how it ends (`tail_size_needed` bytes or more); they may
    overlap. Raises LTXFormatError for a file that is not sound, and a plain ValueError for a tail that is too short.
    """
    header = Header.unpack(head)
    if is_version_2_frame(head[HEADER_SIZE:]):
        raise version_2_error()
    needed = tail_size_needed(tail, file_size)
    if len(tail) < needed:
        raise ValueError(f"a tail of {needed} bytes is needed, got {len(tail)}")
    tail = tail[len(tail) - needed :]
    if tail[: len(END_OF_PAGES)] != END_OF_PAGES:
        raise LTXFormatError("LTX page block does not end with six zero bytes before the page index")
    trailer = Trailer.unpack(tail[-TRAILER_SIZE:])
    trailer.validate(header)
    index = decode_page_index(tail[len(END_OF_PAGES) : -TRAILER_SIZE])
    validate_page_index(index, header, pages_end=file_size - needed)
    return header, index, trailer
