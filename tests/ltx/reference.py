"""An LTX writer of its own, slow and plain, from the words of the format: the oracle of the codec's tests.

It shares nothing with `litevfs.ltx`, and writes whatever it is told to, wrong files included (with right checksums, so
that the check under test is the one that has to notice).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import lz4.block
import lz4.frame

BIT_63 = 1 << 63
PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xD800000000000000 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _crc_table()


def crc64(data: bytes) -> int:
    """CRC-64/GO-ISO, a byte at a time."""
    crc = 2**64 - 1
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ (2**64 - 1)


def checksum_of_database(pages: Iterable[tuple[int, bytes]]) -> int:
    result = 0
    for pgno, page in pages:
        result ^= crc64(struct.pack(">I", pgno) + page)
    return result | BIT_63


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def block_frame(pgno: int, page: bytes) -> bytes:
    block = lz4.block.compress(page, store_size=False)
    return struct.pack(">IHI", pgno, 1, len(block)) + block


def old_frame(pgno: int, page: bytes) -> bytes:
    return struct.pack(">IH", pgno, 0) + lz4.frame.compress(page, content_checksum=True)


def page_of(pgno: int, page_size: int, seed: int = 0) -> bytes:
    """A page that differs from every other page and compresses about 2:1."""
    text = b"".join(
        struct.pack(">IQQ", pgno, seed, crc64(bytes((i & 0xFF, pgno & 0xFF, seed & 0xFF)))) for i in range(8)
    )
    return (text * (page_size // len(text) + 1))[:page_size]


@dataclass
class File:
    """What to write. `frames`, `index`, `end`, `post`, `checksum` take the place of what would be right."""

    page_size: int = 512
    commit: int = 3
    min_txid: int = 1
    max_txid: int = 1
    flags: int = 2
    pre: int = 0
    post: int = 0
    timestamp_ms: int = 1_700_000_000_000
    magic: bytes = b"LTX1"
    pages: Sequence[tuple[int, bytes]] | None = None  # all pages of a snapshot when None
    frames: Sequence[bytes] | None = None
    index: Sequence[tuple[int, int, int]] | None = None
    index_data: bytes | None = None
    index_size: int | None = None
    end: bytes = bytes(6)
    checksum: int | None = None
    more: bytes = b""
    all_pages: list[tuple[int, bytes]] = field(init=False)

    def __post_init__(self) -> None:
        if self.pages is None:
            self.pages = [(pgno, page_of(pgno, self.page_size)) for pgno in range(1, self.commit + 1)]
        self.all_pages = list(self.pages)

    def header(self) -> bytes:
        fields = self.magic, self.flags, self.page_size, self.commit, self.min_txid, self.max_txid, self.timestamp_ms
        return struct.pack(">4sIIIQQqQqqIIQ20x", *fields, self.pre, 0, 0, 0, 0, 0)

    def write(self) -> bytes:
        frames = self.frames
        if frames is None:
            frames = [block_frame(pgno, page) for pgno, page in self.all_pages]
        index, offset = [], 100
        for (pgno, _), frame in zip(self.all_pages, frames, strict=True):
            index.append((pgno, offset, len(frame)))
            offset += len(frame)
        if self.index is not None:
            index = list(self.index)
        index_data = b"".join(varint(value) for entry in index for value in entry) + b"\0"
        if self.index_data is not None:
            index_data = self.index_data
        size = len(index_data) if self.index_size is None else self.index_size
        tail = self.end + index_data + struct.pack(">QQ", size, self.post)
        content = self.header()
        for (_, page), frame in zip(self.all_pages, frames, strict=True):
            content += frame[: 10 if frame[5] & 1 else 6] + page
        checksum = crc64(content + tail) | BIT_63 if self.checksum is None else self.checksum
        return self.header() + b"".join(frames) + tail + struct.pack(">Q", checksum) + self.more


def snapshot_with_checksums(page_size: int = 512, commit: int = 3, **more) -> File:
    file = File(page_size=page_size, commit=commit, flags=0, **more)
    file.post = checksum_of_database(file.all_pages)
    return file
