"""Constants and values of the LTX format, version 3. Owns their meaning and their checks; does no I/O.

Source: superfly/ltx README ("LTX file format") and files that Litestream 0.5.17 wrote. Fixed-width integers are
big-endian. A file is

    header (100 B) | page frames, ascending pgno | 6 zero bytes | page index | trailer (16 B)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from litevfs.errors import LTXFormatError

MAGIC = b"LTX1"
"""First four bytes. Versions 2 and 3 share it; they differ in the page frame."""
HEADER_SIZE = 100
TRAILER_SIZE = 16
PAGE_HEADER_SIZE = 6
"""`pgno` u32, `flags` u16."""
PAGE_SIZE_FIELD_SIZE = 4
"""The compressed size, u32, that follows the page header when PAGE_FLAG_SIZE is set."""
INDEX_SIZE_FIELD_SIZE = 8
"""The u64 after the index's varints: their size in bytes, their terminating zero included."""
END_OF_PAGES = bytes(PAGE_HEADER_SIZE)
"""The zero page header that ends the page block."""

HEADER_FLAG_NO_CHECKSUM = 0x2
"""No rolling database checksum is kept (Litestream sets it)."""
PAGE_FLAG_SIZE = 0x1
"""An LZ4 block with its size in front; without the flag, an LZ4 frame that knows its own size."""
CHECKSUM_FLAG = 1 << 63
"""Forced on in every checksum, so that a checksum is never zero."""

MIN_PAGE_SIZE = 512
MAX_PAGE_SIZE = 65536
MAX_FRAME_SIZE = PAGE_HEADER_SIZE + PAGE_SIZE_FIELD_SIZE + MAX_PAGE_SIZE + MAX_PAGE_SIZE // 255 + 16
"""Bytes of the largest frame that can be valid: the LZ4 bound of the largest page. Anything above it is a lie."""

PENDING_BYTE = 0x40000000
"""SQLite never uses the page that holds this byte (https://www.sqlite.org/fileformat2.html#lock_byte_page)."""

_HEADER = struct.Struct(">4sIIIQQqQqqIIQ20s")
_TRAILER = struct.Struct(">QQ")
assert _HEADER.size == HEADER_SIZE
assert _TRAILER.size == TRAILER_SIZE


def is_valid_page_size(page_size: int) -> bool:
    """A power of two from 512 to 65536 bytes."""
    return MIN_PAGE_SIZE <= page_size <= MAX_PAGE_SIZE and page_size & (page_size - 1) == 0


def lock_pgno(page_size: int) -> int:
    """The number of the page that no LTX file ever holds, for pages of `page_size` bytes."""
    return PENDING_BYTE // page_size + 1


@dataclass(frozen=True, slots=True)
class Header:
    """The first 100 bytes of a file."""

    page_size: int  # bytes
    commit: int  # database size after this file is applied, pages
    min_txid: int
    max_txid: int
    timestamp_ms: int  # milliseconds since the Unix epoch
    flags: int = HEADER_FLAG_NO_CHECKSUM
    pre_apply_checksum: int = 0  # of the database before this file; 0 on snapshots and with NoChecksum
    wal_offset: int = 0  # bytes; where the transaction was in the original WAL, 0 for a journal
    wal_size: int = 0  # bytes
    wal_salt1: int = 0
    wal_salt2: int = 0
    node_id: int = 0

    @property
    def is_snapshot(self) -> bool:
        """A snapshot holds every page from 1 to `commit` but the lock page."""
        return self.min_txid == 1

    @property
    def has_checksums(self) -> bool:
        """Whether the file takes part in the rolling database checksum."""
        return not self.flags & HEADER_FLAG_NO_CHECKSUM

    def pack(self) -> bytes:
        """The header's 100 bytes."""
        return _HEADER.pack(
            MAGIC,
            self.flags,
            self.page_size,
            self.commit,
            self.min_txid,
            self.max_txid,
            self.timestamp_ms,
            self.pre_apply_checksum,
            self.wal_offset,
            self.wal_size,
            self.wal_salt1,
            self.wal_salt2,
            self.node_id,
            b"",
        )

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Header:
        """Parse and validate the first 100 bytes of `data`. Raises LTXFormatError."""
        if len(data) < HEADER_SIZE:
            raise LTXFormatError(f"LTX header needs {HEADER_SIZE} bytes, got {len(data)}", hint="the file is truncated")
        (
            magic,
            flags,
            page_size,
            commit,
            min_txid,
            max_txid,
            timestamp_ms,
            pre_apply_checksum,
            wal_offset,
            wal_size,
            wal_salt1,
            wal_salt2,
            node_id,
            reserved,
        ) = _HEADER.unpack_from(data)
        if magic != MAGIC:
            is_database = bytes(magic) == b"SQLi"
            raise LTXFormatError(
                f"not an LTX file: it starts with {bytes(magic)!r} instead of {MAGIC!r}",
                hint="it is a SQLite database" if is_database else "look for foreign files under the replica's path",
            )
        header = cls(
            page_size=page_size,
            commit=commit,
            min_txid=min_txid,
            max_txid=max_txid,
            timestamp_ms=timestamp_ms,
            flags=flags,
            pre_apply_checksum=pre_apply_checksum,
            wal_offset=wal_offset,
            wal_size=wal_size,
            wal_salt1=wal_salt1,
            wal_salt2=wal_salt2,
            node_id=node_id,
        )
        if any(reserved):
            raise header._invalid("reserved bytes are not zero")
        header.validate()
        return header

    def validate(self) -> None:
        """Check the rules of the format on each field. Raises LTXFormatError."""
        if self.flags & ~HEADER_FLAG_NO_CHECKSUM:
            raise self._invalid(f"unknown flags {self.flags:#x}")
        if not is_valid_page_size(self.page_size):
            raise self._invalid(f"page size {self.page_size} is not a power of two from 512 to 65536")
        if not 0 <= self.commit < 2**32:
            raise self._invalid(f"commit {self.commit} is not an unsigned 32-bit number")
        if not 1 <= self.min_txid <= self.max_txid < 2**64:
            raise self._invalid(f"TXIDs {self.min_txid:016x}-{self.max_txid:016x} are not a range from 1 on")
        if not -(2**63) <= self.timestamp_ms < 2**63:
            raise self._invalid(f"timestamp {self.timestamp_ms} is not a signed 64-bit number")
        self._validate_checksum()
        self._validate_wal()

    def _validate_checksum(self) -> None:
        if self.is_snapshot or not self.has_checksums:
            if self.pre_apply_checksum:
                kind = "a snapshot" if self.is_snapshot else "a file without checksums"
                raise self._invalid(f"pre-apply checksum on {kind}")
        elif not self.pre_apply_checksum & CHECKSUM_FLAG:
            raise self._invalid("pre-apply checksum without its flag bit 63")

    def _validate_wal(self) -> None:
        if self.wal_offset < 0 or self.wal_size < 0:
            raise self._invalid(f"negative WAL offset {self.wal_offset} or size {self.wal_size}")
        if self.wal_offset == 0 and (self.wal_size or self.wal_salt1 or self.wal_salt2):
            raise self._invalid("WAL size or salts without a WAL offset")

    def _invalid(self, what: str) -> LTXFormatError:
        return LTXFormatError(f"invalid LTX header: {what}", min_txid=self.min_txid, max_txid=self.max_txid)


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last 16 bytes of a file."""

    post_apply_checksum: int  # of the database after this file; 0 with NoChecksum
    file_checksum: int  # of the file's content, pages decompressed

    def pack(self) -> bytes:
        """The trailer's 16 bytes."""
        return _TRAILER.pack(self.post_apply_checksum, self.file_checksum)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Trailer:
        """Parse exactly 16 bytes; what they mean depends on the header. Raises LTXFormatError."""
        if len(data) != TRAILER_SIZE:
            raise LTXFormatError(f"LTX trailer needs {TRAILER_SIZE} bytes, got {len(data)}")
        return cls(*_TRAILER.unpack(data))

    def validate(self, header: Header) -> None:
        """Check the trailer against its header. Raises LTXFormatError."""
        if not self.file_checksum & CHECKSUM_FLAG:
            raise LTXFormatError("invalid LTX trailer: file checksum without its flag bit 63")
        if not header.has_checksums:
            if self.post_apply_checksum:
                raise LTXFormatError("invalid LTX trailer: post-apply checksum in a file without checksums")
        elif not self.post_apply_checksum & CHECKSUM_FLAG:
            raise LTXFormatError("invalid LTX trailer: post-apply checksum without its flag bit 63")
        elif header.commit == 0 and self.post_apply_checksum != CHECKSUM_FLAG:
            raise LTXFormatError("invalid LTX trailer: post-apply checksum of an empty database")
