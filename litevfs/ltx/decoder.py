"""Bytes of LTX files to values: a whole file in memory, the two ends of a file, a stream of any length. Does no I/O.

Nothing that was not checked leaves this module. Anything wrong is an LTXFormatError, whatever the bytes, and no size
that a file states is believed before it is bounded. Source: superfly/ltx, `decoder.go`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from litevfs.errors import LTXChecksumError, LTXFormatError
from litevfs.ltx.checksum import DatabaseChecksum, FileChecksum
from litevfs.ltx.format import END_OF_PAGES, HEADER_SIZE, INDEX_SIZE_FIELD_SIZE, TRAILER_SIZE, Header, Trailer
from litevfs.ltx.frame import (
    FRAME_HEADER_SIZE,
    checksummed_headers,
    decode_frame,
    decode_usual_frames,
    frame_size,
    is_version_2_frame,
    version_2_error,
)
from litevfs.ltx.page_index import (
    PageIndex,
    decode_page_index,
    encode_entries_of_frames,
    index_size_from_tail,
    max_index_size,
)
from litevfs.ltx.page_rules import PageOrder, validate_page_index

__all__ = [
    "LTXFile",
    "StreamDecoder",
    "check_checksums",
    "decode_file",
    "decode_frame",
    "read_header_and_index",
    "tail_size_needed",
]

_CHECKSUM_SIZE = 8
"""Bytes of the file checksum, the one part of a file that it does not cover."""


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

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Every frame as (pgno, bytes in the file), ascending."""
        return ((pgno, self.frame(i)) for i, pgno in enumerate(self.index.pgnos.tolist()))

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
        file_checksum.update(checksummed_headers(frame))
        file_checksum.update(page)
        if is_checksummed_snapshot:
            database_checksum.toggle(pgno, page)
    pages_end = HEADER_SIZE + int(index.sizes.sum())
    file_checksum.update(data[pages_end:-_CHECKSUM_SIZE])
    check_checksums(header, trailer, file_checksum, database_checksum)
    return LTXFile(header, index, trailer, data)


def _decode_frames(
    data: bytes | memoryview, header: Header, index: PageIndex
) -> Iterator[tuple[int, memoryview, bytes]]:
    """(pgno, frame, page) of each entry of a sound index."""
    view = memoryview(data)
    page_size = header.page_size
    start = HEADER_SIZE
    for pgno, size in zip(index.pgnos.tolist(), index.sizes.tolist(), strict=True):
        frame = view[start : start + size]
        yield pgno, frame, decode_frame(frame, pgno, page_size)
        start += size


def check_checksums(header: Header, trailer: Trailer, file: FileChecksum, database: DatabaseChecksum) -> None:
    """Compare what a trailer says with what was computed; `database` counts for checksummed snapshots only."""
    if file.value != trailer.file_checksum:
        what = f"file checksum is {file.value:016x}, the trailer says {trailer.file_checksum:016x}"
        hint = None  # the caller, which knows where the file is, says what to do
    elif header.is_snapshot and header.has_checksums and database.value != trailer.post_apply_checksum:
        what = f"database checksum is {database.value:016x}, the trailer says {trailer.post_apply_checksum:016x}"
        hint = "the writer had a wrong state"
    else:
        return
    raise LTXChecksumError(f"LTX {what}", min_txid=header.min_txid, max_txid=header.max_txid, hint=hint)


def tail_size_needed(tail: bytes | memoryview, file_size: int, header: Header | None = None) -> int:
    """How many bytes of the end of a file `read_header_and_index` needs, given its last 24 bytes or more.

    They hold the six zero bytes, the page index and the trailer. Raises LTXFormatError when a file of `file_size` bytes
    (and with this `header`, where it is known) cannot hold the index that it says it has.
    """
    needed = len(END_OF_PAGES) + index_size_from_tail(tail) + TRAILER_SIZE
    if needed > file_size - HEADER_SIZE:
        raise LTXFormatError(
            f"LTX file of {file_size} bytes cannot hold a page index of {needed} bytes",
            hint="the file is truncated, still being written, or of version 2 of the format",
        )
    if header is not None and index_size_from_tail(tail) > max_index_size(header):
        raise LTXFormatError(
            f"LTX file of {header.commit} pages cannot have a page index of {index_size_from_tail(tail)} bytes",
            min_txid=header.min_txid,
            max_txid=header.max_txid,
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
    if is_version_2_frame(head[HEADER_SIZE : HEADER_SIZE + FRAME_HEADER_SIZE]):
        raise version_2_error()
    needed = tail_size_needed(tail, file_size, header)
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


class StreamDecoder:
    """Verifies a file of any size while its bytes pass through: `feed()` them in order, then `finish()`.

    Memory: what is fed at once (its pages can be 255 times as large) and one frame, however long the file is. After an
    error the decoder is of no further use.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()  # bytes that are not parsed yet
        self._needed = HEADER_SIZE  # bytes the buffer must have before parsing can go on
        self._header: Header | None = None
        self._order: PageOrder
        self._index = _IndexCheck()
        self._file_checksum = FileChecksum()
        self._database_checksum = DatabaseChecksum()  # of a snapshot that carries checksums

    @property
    def header(self) -> Header | None:
        """The header, or None before its 100 bytes were fed."""
        return self._header

    @property
    def whole_from(self) -> int:
        """See `litevfs.ltx.page_rules.whole_from`; for a file that was fed to its end."""
        return self._order.whole_from

    def feed(self, data: bytes | memoryview) -> list[tuple[int, bytes]]:
        """The pages, as (pgno, content), that `data` completes; any split of a file gives the same pages.

        Each is sound by itself and in its order, but only `finish()` knows the checksums. Raises LTXFormatError.
        """
        self._buffer += data
        pages: list[tuple[int, bytes]] = []
        if len(self._buffer) < self._needed:
            return pages
        known = bytes(self._buffer)
        used = 0
        header = self._header
        if header is None:
            header = self._read_header(known)
            used = HEADER_SIZE
        if not self._index.is_expected:
            used = self._read_pages(header, known, used, pages)
        if self._index.is_expected:
            used = self._read_index(known, used)
            self._needed = 0
            if len(known) - used > TRAILER_SIZE:
                raise LTXFormatError("LTX file goes on where its page index and trailer should end")
        else:
            self._needed -= used
        del self._buffer[:used]
        return pages

    def finish(self) -> Trailer:
        """The trailer of a file that was fed to its end and is sound. Raises LTXFormatError for any other."""
        if self._header is None:
            raise self._truncated("header")
        if not self._index.is_expected:
            raise self._truncated("page block")
        if self._index.missing or len(self._buffer) < TRAILER_SIZE:
            raise self._truncated("page index or trailer")
        if not self._index.is_right:
            raise LTXFormatError("LTX page index does not say where the frames are")
        data = bytes(self._buffer)
        trailer = Trailer.unpack(data)
        trailer.validate(self._header)
        checksum = self._file_checksum.copy()
        checksum.update(data[:-_CHECKSUM_SIZE])
        check_checksums(self._header, trailer, checksum, self._database_checksum)
        return trailer

    def _read_header(self, known: bytes) -> Header:
        self._header = Header.unpack(known)
        self._order = PageOrder(self._header)
        self._file_checksum.update(known[:HEADER_SIZE])
        return self._header

    def _read_pages(self, header: Header, known: bytes, start: int, pages: list[tuple[int, bytes]]) -> int:
        """Read whole frames from `start` on, and the end mark if it is there; where that ends."""
        while True:
            usual, sizes, covered, start = decode_usual_frames(known, start, header.page_size)
            if not usual:
                break
            self._take_pages(header, usual, sizes, covered)
            pages += usual
        while True:
            size = frame_size(known, start)
            if size is None or start + size > len(known):
                self._needed = len(known) + 1 if size is None else start + size
                return start
            frame = known[start : start + size]
            start += size
            if frame == END_OF_PAGES:
                self._order.end()
                self._file_checksum.update(frame)
                self._index.expect()
                return start
            pgno = int.from_bytes(frame[:4], "big")
            page = decode_frame(frame, pgno, header.page_size)
            self._take_pages(header, [(pgno, page)], [size], [checksummed_headers(frame), page])
            pages.append((pgno, page))

    def _take_pages(
        self,
        header: Header,
        pages: list[tuple[int, bytes]],
        sizes: list[int],
        checksummed: Sequence[bytes | memoryview],
    ) -> None:
        pgnos = [pgno for pgno, _ in pages]
        for pgno in pgnos:
            self._order.add(pgno)
        self._index.add(pgnos, sizes)
        self._file_checksum.update(b"".join(checksummed))
        if header.is_snapshot and header.has_checksums:
            for pgno, page in pages:
                self._database_checksum.toggle(pgno, page)

    def _read_index(self, known: bytes, start: int) -> int:
        part = known[start : start + self._index.missing]
        self._index.check(part)
        self._file_checksum.update(part)
        return start + len(part)

    def _truncated(self, where: str) -> LTXFormatError:
        return LTXFormatError(f"LTX file ends within its {where}", hint="the file is truncated or still being written")


class _IndexCheck:
    """Whether the page index of a file is the one that its frames have. Keeps neither, only digests of both."""

    _CHUNK_PAGES = 1 << 14

    def __init__(self) -> None:
        self._pgnos, self._sizes = array("I"), array("I")  # frames that are not in `_wanted` yet
        self._offset = HEADER_SIZE  # where the first of those begins, bytes
        self._wanted, self._found = blake2b(digest_size=16), blake2b(digest_size=16)
        self._size = 0  # bytes of the entries in `_wanted`
        self.is_expected = False
        self.missing = 0  # bytes of the index that are still to come

    def add(self, pgnos: list[int], sizes: list[int]) -> None:
        """Note that these pages come next, in frames of these sizes."""
        self._pgnos.extend(pgnos)
        self._sizes.extend(sizes)
        if len(self._pgnos) >= self._CHUNK_PAGES:
            self._end_chunk()

    def expect(self) -> None:
        """Note that all frames are known, and the index comes next."""
        self._end_chunk()
        end = b"\0" + (self._size + 1).to_bytes(INDEX_SIZE_FIELD_SIZE, "big")
        self._wanted.update(end)
        self.missing = self._size + len(end)
        self.is_expected = True

    def check(self, part: bytes) -> None:
        """Take the next bytes of the index."""
        self._found.update(part)
        self.missing -= len(part)

    @property
    def is_right(self) -> bool:
        """Whether the bytes of the index are the expected ones."""
        return self._wanted.digest() == self._found.digest()

    def _end_chunk(self) -> None:
        entries = encode_entries_of_frames(self._pgnos, self._sizes, self._offset)
        self._wanted.update(entries)
        self._size += len(entries)
        self._offset += sum(self._sizes)
        del self._pgnos[:], self._sizes[:]
