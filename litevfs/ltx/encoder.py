"""Pages to the bytes of an LTX file, one piece at a time. Refuses what the format forbids. Opens no file.

Source: superfly/ltx, `encoder.go`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import IO

from lz4.block import compress as lz4_block_compress

from litevfs.errors import LTXFormatError
from litevfs.ltx.checksum import DatabaseChecksum, FileChecksum
from litevfs.ltx.decoder import check_checksums
from litevfs.ltx.format import (
    END_OF_PAGES,
    HEADER_SIZE,
    INDEX_SIZE_FIELD_SIZE,
    MAX_FRAME_SIZE,
    PAGE_FLAG_SIZE,
    PAGE_HEADER_SIZE,
    Header,
    Trailer,
)
from litevfs.ltx.frame import FRAME_HEADER_SIZE, checksummed_headers
from litevfs.ltx.page_index import encode_entries_of_frames
from litevfs.ltx.page_rules import PageOrder

_ENTRIES_AT_ONCE = 1 << 16
_SPOOL_READ_BYTES = 1 << 18


class Encoder:
    """Writes one file: `begin()`, `page()` or `frame()` for each page ascending, `finish()`.

    Each call returns the next bytes of the file. The page index comes at its end, and is kept until then: in `spool`,
    an empty binary file open for reading and writing, or in memory if there is none (about 9 bytes a page).
    """

    def __init__(self, header: Header, *, spool: IO[bytes] | None = None) -> None:
        header.validate()
        self._header = header
        self._order = PageOrder(header)
        self._state = "new"  # then "pages", then "finished"
        self._pgnos, self._sizes = array("I"), array("I")  # of frames whose index entries are not encoded yet
        self._entries: IO[bytes] = BytesIO() if spool is None else spool  # of the page index, encoded
        self._entries_size = 0  # bytes
        self._offset = HEADER_SIZE  # of the first frame whose entry is not encoded yet
        self._file_checksum = FileChecksum()
        self._database_checksum = DatabaseChecksum()  # of a snapshot that carries checksums

    @property
    def header(self) -> Header:
        """The header of the file."""
        return self._header

    def begin(self) -> bytes:
        """The file's header. Once, before anything else."""
        if self._state != "new":
            raise RuntimeError("begin() was called before")
        data = self._header.pack()
        self._file_checksum.update(data)
        self._state = "pages"
        return data

    def page(self, pgno: int, data: bytes | memoryview) -> bytes:
        """The frame of page `pgno` with content `data`. Raises LTXFormatError for a page that may not come next."""
        self._check_page(pgno, data)
        block = lz4_block_compress(data, store_size=False)
        frame = b"".join(
            (pgno.to_bytes(4, "big"), PAGE_FLAG_SIZE.to_bytes(2, "big"), len(block).to_bytes(4, "big"), block)
        )
        self._add(pgno, frame, data)
        return frame

    def frame(self, pgno: int, frame: bytes, page: bytes | memoryview) -> bytes:
        """A frame of another file, copied unchanged; `page` is what `decode_frame(frame, pgno, ...)` returned."""
        flags = int.from_bytes(frame[4:PAGE_HEADER_SIZE], "big")
        is_sized = flags == PAGE_FLAG_SIZE and len(frame) == FRAME_HEADER_SIZE + int.from_bytes(frame[6:10], "big")
        if frame[:4] != pgno.to_bytes(4, "big") or not (is_sized or flags == 0) or len(frame) > MAX_FRAME_SIZE:
            raise self._refused(f"these {len(frame)} bytes are no frame of page {pgno}")
        self._check_page(pgno, page)
        self._add(pgno, frame, page)
        return frame

    def finish(self, post_apply_checksum: int = 0) -> bytes:
        """End mark, page index and trailer; `post_apply_checksum` is 0 exactly for files without checksums.

        Raises LTXFormatError when pages of a snapshot are missing, or when the checksum may not or must be given,
        LTXChecksumError when it is not that of the snapshot's pages.
        """
        return b"".join(self.finish_in_parts(post_apply_checksum))

    def finish_in_parts(self, post_apply_checksum: int = 0) -> Iterator[bytes]:
        """What `finish` returns, piece by piece. Raises as it does, at the latest before the trailer."""
        self._check_open()
        self._order.end()
        self._state = "finished"
        self._encode_entries()
        for part in self._end_of_file():
            self._file_checksum.update(part)
            yield part
        self._file_checksum.update(post_apply_checksum.to_bytes(8, "big"))
        trailer = Trailer(post_apply_checksum, self._file_checksum.value)
        trailer.validate(self._header)
        check_checksums(self._header, trailer, self._file_checksum, self._database_checksum)
        yield trailer.pack()

    def _end_of_file(self) -> Iterator[bytes]:
        """The bytes between the last frame and the trailer."""
        yield END_OF_PAGES
        self._entries.seek(0)
        while part := self._entries.read(_SPOOL_READ_BYTES):
            yield part
        yield b"\0" + (self._entries_size + 1).to_bytes(INDEX_SIZE_FIELD_SIZE, "big")

    def _encode_entries(self) -> None:
        if self._pgnos:
            entries = encode_entries_of_frames(self._pgnos, self._sizes, self._offset)
            self._entries.write(entries)
            self._entries_size += len(entries)
            self._offset += sum(self._sizes)
            del self._pgnos[:], self._sizes[:]

    def _check_open(self) -> None:
        if self._state != "pages":
            raise RuntimeError("begin() was not called" if self._state == "new" else "finish() was called before")

    def _check_page(self, pgno: int, page: bytes | memoryview) -> None:
        self._check_open()
        if len(page) != self._header.page_size:
            raise self._refused(f"page {pgno} has {len(page)} bytes instead of {self._header.page_size}")
        self._order.add(pgno)

    def _add(self, pgno: int, frame: bytes, page: bytes | memoryview) -> None:
        self._file_checksum.update(checksummed_headers(frame))
        self._file_checksum.update(page)
        if self._header.is_snapshot and self._header.has_checksums:
            self._database_checksum.toggle(pgno, page)
        self._pgnos.append(pgno)
        self._sizes.append(len(frame))
        if len(self._pgnos) == _ENTRIES_AT_ONCE:
            self._encode_entries()

    def _refused(self, what: str) -> LTXFormatError:
        return LTXFormatError(
            f"cannot encode LTX file: {what}", min_txid=self._header.min_txid, max_txid=self._header.max_txid
        )


def encode_file(header: Header, pages: Iterable[tuple[int, bytes]], post_apply_checksum: int = 0) -> bytes:
    """A whole file in memory, of (pgno, content) ascending. Raises LTXFormatError, see `Encoder`."""
    encoder = Encoder(header)
    parts = [encoder.begin()]
    parts.extend(encoder.page(pgno, page) for pgno, page in pages)
    parts.append(encoder.finish(post_apply_checksum))
    return b"".join(parts)
