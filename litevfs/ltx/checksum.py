"""The checksums of LTX files: CRC-64/GO-ISO with bit 63 forced on. Knows neither frames nor files.

Source: superfly/ltx, `checksum.go`. The CRC itself is the package `fastcrc` (over 30 GiB/s), whose second argument
continues an earlier checksum.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastcrc.crc64 import go_iso

from litevfs.ltx.format import CHECKSUM_FLAG

Buffer = bytes | bytearray | memoryview
"""What can be checksummed: contiguous bytes."""


class FileChecksum:
    """The running checksum of a file's content (with its pages decompressed), fed in order."""

    __slots__ = ("_crc",)

    def __init__(self) -> None:
        self._crc = 0

    def update(self, data: Buffer) -> None:
        """Add the next bytes of the content."""
        self._crc = go_iso(data, self._crc)

    def copy(self) -> FileChecksum:
        """An independent checksum that goes on from the same state."""
        other = FileChecksum()
        other._crc = self._crc
        return other

    @property
    def value(self) -> int:
        """The checksum of everything so far, bit 63 set."""
        return self._crc | CHECKSUM_FLAG


def checksum_of(*parts: Buffer) -> int:
    """The checksum of bytes in several parts, bit 63 set."""
    checksum = FileChecksum()
    for part in parts:
        checksum.update(part)
    return checksum.value


def page_checksum(pgno: int, page: Buffer) -> int:
    """The checksum of one page with its number, bit 63 set."""
    return int(go_iso(page, go_iso(pgno.to_bytes(4, "big")))) | CHECKSUM_FLAG


class DatabaseChecksum:
    """The rolling checksum of a database: the XOR of its pages' checksums, bit 63 set.

    The lock page takes no part. `toggle` adds a page, or removes one that was added before with the same content.
    """

    __slots__ = ("_xor",)

    def __init__(self, value: int = CHECKSUM_FLAG) -> None:
        self._xor = value

    def toggle(self, pgno: int, page: Buffer) -> None:
        """Add page `pgno` with content `page`, or remove exactly that page again."""
        self._xor ^= page_checksum(pgno, page)

    @property
    def value(self) -> int:
        """The checksum of the pages that are in; of none of them it is exactly bit 63."""
        return self._xor | CHECKSUM_FLAG


def database_checksum(pages: Iterable[tuple[int, Buffer]]) -> int:
    """The checksum of a whole database given as (pgno, page), the lock page left out by the caller."""
    checksum = DatabaseChecksum()
    for pgno, page in pages:
        checksum.toggle(pgno, page)
    return checksum.value
