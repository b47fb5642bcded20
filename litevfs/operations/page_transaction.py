"""Replaces pages of a SQLite database file in one transaction, beside any readers. Owns the file's locks and journal.

The file changes as SQLite itself changes one in rollback-journal mode: the old content of every page goes into
`<path>-journal`, is synced, then the pages are written and synced, and the end of the journal is the commit. Any
SQLite that opens the file after a crash finds the journal and rolls back. Sources: "File Locking And Concurrency"
(https://www.sqlite.org/lockingv3.html), "The Rollback Journal" (https://www.sqlite.org/fileformat2.html, section 3).

Readers go on while the journal is written (RESERVED lock) and wait while the pages are written (EXCLUSIVE lock).
The locks are SQLite's bytes, taken as open file description locks where the system has them: those hold against other
SQLite libraries in this process too, whose `fcntl` locks the kernel could not tell from ours.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from litevfs import local_files
from litevfs.errors import FollowError
from litevfs.ltx.format import PENDING_BYTE, lock_pgno

RESERVED_BYTE = PENDING_BYTE + 1
SHARED_FIRST = PENDING_BYTE + 2
SHARED_SIZE = 510

JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_JOURNAL_HEADER = struct.Struct(">8sIIIII")
"""Magic, number of records, nonce of the checksums, database size before (pages), sector and page size (bytes)."""
_RECORD_COUNT_AT = 8
SECTOR_SIZE = 512
"""Bytes that the journal's header takes."""
_U32 = struct.Struct(">I")

WAIT_FOR_READERS_S = 0.25
"""How long new readers have to wait for a reader that holds the file, before they are admitted again."""
PAUSE_S = 0.002
"""Pause between two tries to lock."""
_BATCH_PAGES = 256

_FLOCK = struct.Struct("hhqqi4x")
"""`struct flock` of 64-bit Linux: type, whence, start, length, pid (0 for open file description locks)."""
_SET_OFD_LOCK: int | None = getattr(fcntl, "F_OFD_SETLK", None)

HEADER_SIZE = 100


class ReadersInTheWayError(Exception):
    """The file could not be locked in time: readers hold it. Nothing was changed."""


class DatabaseFile:
    """A database file in rollback-journal mode, open for whole transactions. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal_path = path.with_name(path.name + "-journal")
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the file and release every lock. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def rename(self, path: Path) -> None:
        """Give the file another name in its folder, and replace a file of that name; there must be no journal."""
        self.path.rename(path)
        local_files.fsync_folder(path.parent)
        self.path = path
        self.journal_path = path.with_name(path.name + "-journal")

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._fd).st_size

    @property
    def was_replaced(self) -> bool:
        """Whether another file lies at the path now, or none."""
        mine = os.fstat(self._fd)
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return True
        return (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino)

    def read(self, offset: int, amount: int) -> bytes:
        """Bytes of the file; fewer past its end."""
        return os.pread(self._fd, amount, offset)

    @property
    def header(self) -> bytes:
        """The first 100 bytes; empty for an empty database."""
        return self.read(0, HEADER_SIZE)

    @contextmanager
    def reserved(self, timeout_s: float) -> Iterator[None]:
        """Hold the RESERVED lock: no other writer begins, readers go on. Raises ReadersInTheWayError if that fails."""
        deadline = time.monotonic() + timeout_s
        self._lock_until(fcntl.F_WRLCK, RESERVED_BYTE, 1, deadline)
        try:
            yield
        finally:
            self._unlock(RESERVED_BYTE, 1)

    def replace_pages(
        self, pages: Callable[[], Iterable[tuple[int, bytes]]], page_size: int, commit: int, *, timeout_s: float
    ) -> None:
        """Write `pages`, (pgno, content) and the same at each call, and make the file `commit` pages long.

        Called under the RESERVED lock, which ends with it. Raises ReadersInTheWayError, with the file as it was, when
        readers hold it for `timeout_s`; OSError, with a journal that undoes the writes, when the disk fails.
        """
        deadline = time.monotonic() + timeout_s
        self._write_journal([pgno for pgno, _ in pages()], page_size, commit)
        try:
            self._lock_out_readers(deadline)
        except BaseException:
            self.journal_path.unlink()
            raise
        try:
            self._write_pages(pages(), page_size)
            os.ftruncate(self._fd, commit * page_size)
            os.fsync(self._fd)
            self.journal_path.unlink()  # the commit
            local_files.fsync_folder(self.path.parent)
        finally:
            # In this order: a reader that finds a journal and no RESERVED lock rolls back first.
            self._unlock(RESERVED_BYTE, 1)
            self._unlock(PENDING_BYTE, 2 + SHARED_SIZE)

    def _write_pages(self, pages: Iterable[tuple[int, bytes]], page_size: int) -> None:
        for pgno, content in pages:
            _write_all(self._fd, content, (pgno - 1) * page_size)

    # --- the journal --------------------------------------------------------------------------------------------------

    def _write_journal(self, pgnos: Sequence[int], page_size: int, commit: int) -> None:
        """The old content of all pages that change or go, in units of the old page size, on the disk."""
        old_size = self.size
        old_page_size = page_size_of(self.header) or page_size
        old_commit = old_size // old_page_size
        fd = self._create_journal()
        try:
            if old_page_size == page_size:
                kept = [pgno for pgno in pgnos if pgno <= old_commit]
                kept += range(min(commit, old_commit) + 1, old_commit + 1)
            else:
                kept = list(range(1, old_commit + 1))
            lock_page = lock_pgno(old_page_size)
            self._fill_journal(fd, [pgno for pgno in kept if pgno != lock_page], old_page_size, old_commit)
        except BaseException:
            self.journal_path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    def _create_journal(self) -> int:
        """A file for the journal. Raises FileExistsError if one is there that SQLite would roll back.

        A process that ended before it wrote a byte leaves a journal that no SQLite takes for one, and so none removes.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(self.journal_path, flags | os.O_EXCL, self._mode)
        except FileExistsError:
            with self.journal_path.open("rb") as journal:
                if journal.read(1) not in (b"", b"\0"):
                    raise
        return os.open(self.journal_path, flags | os.O_TRUNC, self._mode)

    def _fill_journal(self, fd: int, pgnos: Sequence[int], page_size: int, commit: int) -> None:
        nonce = secrets.randbits(32)
        header = _JOURNAL_HEADER.pack(JOURNAL_MAGIC, 0, nonce, commit, SECTOR_SIZE, page_size)
        _write_all(fd, header.ljust(SECTOR_SIZE, b"\0"), 0)
        end = SECTOR_SIZE
        for start in range(0, len(pgnos), _BATCH_PAGES):
            batch = [
                _record(pgno, self.read((pgno - 1) * page_size, page_size), nonce)
                for pgno in pgnos[start : start + _BATCH_PAGES]
            ]
            data = b"".join(batch)
            _write_all(fd, data, end)
            end += len(data)
        # Write the count when the records are on the disk: a journal that lost its tail must undo nothing.
        os.fsync(fd)
        local_files.fsync_folder(self.path.parent)
        _write_all(fd, _U32.pack(len(pgnos)), _RECORD_COUNT_AT)
        os.fsync(fd)

    @property
    def _mode(self) -> int:
        return os.fstat(self._fd).st_mode & 0o777

    # --- locks --------------------------------------------------------------------------------------------------------

    def _lock_out_readers(self, deadline: float) -> None:
        """The EXCLUSIVE lock. Readers that hold the file get time to end; new ones wait for a bounded time."""
        while True:
            until = min(deadline, time.monotonic() + WAIT_FOR_READERS_S)
            try:
                self._lock_until(fcntl.F_WRLCK, PENDING_BYTE, 1, until)
                return self._lock_until(fcntl.F_WRLCK, SHARED_FIRST, SHARED_SIZE, until)
            except ReadersInTheWayError:
                self._unlock(PENDING_BYTE, 1)
                if time.monotonic() >= deadline:
                    raise
            _pause(WAIT_FOR_READERS_S)

    def _lock_until(self, kind: int, start: int, length: int, deadline: float) -> None:
        while not self._lock(kind, start, length):
            if time.monotonic() >= deadline:
                raise ReadersInTheWayError
            _pause(PAUSE_S)

    def _lock(self, kind: int, start: int, length: int) -> bool:
        try:
            if _SET_OFD_LOCK is None:
                operation = fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_EX | fcntl.LOCK_NB
                fcntl.lockf(self._fd, operation, length, start)
            else:
                fcntl.fcntl(self._fd, _SET_OFD_LOCK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def _unlock(self, start: int, length: int) -> None:
        self._lock(fcntl.F_UNLCK, start, length)


def page_size_of(header: bytes) -> int:
    """Bytes of a page, from a database's first 100 bytes; 0 if they are no header."""
    if len(header) < HEADER_SIZE or not header.startswith(b"SQLite format 3\0"):
        return 0
    size = int.from_bytes(header[16:18], "big")
    return 65536 if size == 1 else size


def _record(pgno: int, content: bytes, nonce: int) -> bytes:
    """One page in the journal; the checksum is of every 200th byte from the end."""
    sampled = np.frombuffer(content, np.uint8)[len(content) - 200 : 0 : -200]
    checksum = (nonce + int(sampled.sum(dtype=np.uint64))) & 0xFFFFFFFF
    return _U32.pack(pgno) + content + _U32.pack(checksum)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        if not written:
            raise FollowError("cannot write the database: the disk takes no more bytes")
        view = view[written:]
        offset += written


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)
