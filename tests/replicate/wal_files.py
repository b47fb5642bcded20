"""WAL files for tests: SQLite writes them; a slow reference, made from the format's words, reads and rewrites them."""

from __future__ import annotations

import sqlite3
import struct
from dataclasses import dataclass
from pathlib import Path

HEADER, FRAME_HEADER = 32, 24


def slow_checksum(data: bytes, s0: int, s1: int, order: str) -> tuple[int, int]:
    """The recurrence as https://www.sqlite.org/fileformat2.html#checksum_algorithm gives it; order is ">" or "<"."""
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for x0, x1 in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + x0 + s1) % 2**32
        s1 = (s1 + x1 + s0) % 2**32
    return s0, s1


def with_checksums(wal: bytes, order: str) -> bytes:
    """The same WAL with the magic number and the checksums of the given byte order."""
    page_size = struct.unpack_from(">I", wal, 8)[0]
    head = struct.pack(">I", 0x377F0682 + (order == ">")) + wal[4:24]
    sums = slow_checksum(head, 0, 0, order)
    parts = [head, struct.pack(">2I", *sums)]
    for at in range(HEADER, len(wal) - page_size - FRAME_HEADER + 1, FRAME_HEADER + page_size):
        frame = wal[at : at + FRAME_HEADER + page_size]
        sums = slow_checksum(frame[:8] + frame[24:], *sums, order)
        parts += [frame[:16], struct.pack(">2I", *sums), frame[24:]]
    return b"".join(parts)


@dataclass(frozen=True)
class Commit:
    """What a slow reading says after one more transaction."""

    frame: int
    size: int  # pages
    pages: dict[int, bytes]  # newest content of every page so far, none above size


def slow_commits(wal: bytes) -> list[Commit]:
    """Every valid transaction of a WAL, one frame after the other, as SQLite recovers it."""
    if len(wal) < HEADER:
        return []
    magic, _, page_size, _, salt1, salt2, sum1, sum2 = struct.unpack_from(">8I", wal)
    order = ">" if magic & 1 else "<"
    sums = slow_checksum(wal[:24], 0, 0, order)
    if magic not in (0x377F0682, 0x377F0683) or sums != (sum1, sum2):
        return []
    commits: list[Commit] = []
    pages: dict[int, bytes] = {}
    for at in range(HEADER, len(wal) - page_size - FRAME_HEADER + 1, FRAME_HEADER + page_size):
        pgno, size, frame_salt1, frame_salt2, sum1, sum2 = struct.unpack_from(">6I", wal, at)
        page = wal[at + FRAME_HEADER : at + FRAME_HEADER + page_size]
        sums = slow_checksum(wal[at : at + 8] + page, *sums, order)
        if pgno == 0 or (frame_salt1, frame_salt2) != (salt1, salt2) or sums != (sum1, sum2):
            break
        pages[pgno] = page
        if size:
            frame = (at - HEADER) // (FRAME_HEADER + page_size) + 1
            commits.append(Commit(frame, size, {n: p for n, p in pages.items() if n <= size}))
    return commits


def sqlite_database(path: Path, *, page_size: int = 4096, auto_vacuum: int = 0) -> sqlite3.Connection:
    """A new database in WAL mode that no commit checkpoints."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA page_size={page_size}")
    db.execute(f"PRAGMA auto_vacuum={auto_vacuum}")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA wal_autocheckpoint=0")
    return db
