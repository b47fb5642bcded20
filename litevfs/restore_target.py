"""The database file that a restore makes: a temporary file beside it until it is whole. Knows no LTX.

`<path>.tmp` is locked by the restore that writes it. What a crash leaves there is removed by the next restore; it is
never written again, since after a crash at the very end it may be another name of the finished database.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from litevfs.errors import RestoreError, RestoreTargetExistsError

_COMPANIONS = ("", "-wal", "-journal", "-shm")
"""Files that must not exist: SQLite would apply a log that it finds beside the new database."""


_FLUSH_BYTES = 8 << 20


class RestoreTarget:
    """The future database at `path`. As a context manager it removes its temporary file, unless published."""

    def __init__(self, path: Path) -> None:
        if not path.name or "\0" in str(path):
            raise RestoreError("cannot write the database: not the name of a file", key=ascii(os.fspath(path)))
        self.path = path
        self.temp_path = path.with_name(path.name + ".tmp")
        self._fd = -1
        self._size = 0  # bytes of the temporary file
        self._run_start = self._run_end = 0  # of what was written last without a break, and is not on its way to disk

    def __enter__(self) -> Self:
        self._check_free()
        with self._translated():
            self._fd = _create_locked(self.temp_path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with suppress(OSError):
                self.temp_path.unlink(missing_ok=True)
        finally:
            os.close(self._fd)

    def clear(self) -> None:
        """Forget everything that was written."""
        self.truncate(0)

    def reserve(self, size: int) -> None:
        """Claim room for `size` bytes at once: faster than bit by bit, and a disk that is too small is known early."""
        if size and hasattr(os, "posix_fallocate"):
            with self._translated():
                os.posix_fallocate(self._fd, 0, size)
                self._size = max(self._size, size)

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long, with zeros where it grows."""
        if size != self._size:
            with self._translated():
                os.ftruncate(self._fd, size)
            self._size = size

    def write_pages(self, pages: Sequence[tuple[int, bytes]], page_size: int) -> None:
        """Write pages, as (pgno, content) ascending, to their places."""
        with self._translated():
            start = 0
            while start < len(pages):
                end = _end_of_run(pages, start)
                self._write((pages[start][0] - 1) * page_size, b"".join([page for _, page in pages[start:end]]))
                start = end

    def publish(self) -> None:
        """Give the file its name, once all of it is on the disk. Raises RestoreTargetExistsError if it is taken."""
        with self._translated():
            os.fsync(self._fd)
            self._check_free()
            try:
                os.link(self.temp_path, self.path)  # unlike a rename, never takes the place of another file
            except FileExistsError:
                raise _exists(self.path) from None
            except OSError:  # no hard links on this file system
                self.temp_path.rename(self.path)
            else:
                self.temp_path.unlink()
            _fsync_folder(self.path.parent)

    def _write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view = view[written:]
            offset += written
        self._size = max(self._size, offset)
        self._note_written(offset - len(data), offset)

    def _note_written(self, start: int, end: int) -> None:
        """Let the system start writing to the disk while pages still come in, so that little is left for the fsync.

        Only what is written in one run, as a snapshot is: scattered pages are likely to be written again.
        """
        if start != self._run_end:
            self._run_start = start
        self._run_end = end
        if end - self._run_start >= _FLUSH_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, self._run_start, end - self._run_start, os.POSIX_FADV_DONTNEED)
            self._run_start = end

    def _check_free(self) -> None:
        for suffix in _COMPANIONS:
            path = self.path.with_name(self.path.name + suffix)
            if os.path.lexists(path):
                raise _exists(path)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except RestoreError:
            raise
        except OSError as error:
            raise RestoreError(
                f"cannot write the database: {error.strerror or error}",
                key=os.fspath(self.path),
                hint="free disk space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None,
            ) from error


def _exists(path: Path) -> RestoreTargetExistsError:
    return RestoreTargetExistsError(
        "will not overwrite an existing file", key=os.fspath(path), hint="move it away, or restore to another path"
    )


def _end_of_run(pages: Sequence[tuple[int, bytes]], start: int) -> int:
    """The end of the pages from `start` on whose numbers follow each other."""
    first = pages[start][0]
    if pages[-1][0] - first == len(pages) - 1 - start:  # they ascend: nothing is left out
        return len(pages)
    end = start + 1
    while pages[end][0] - first == end - start:
        end += 1
    return end


def _create_locked(path: Path) -> int:
    """A new, empty file with an exclusive lock on it, in place of one that a crash has left."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            _remove_leftover(path)
            continue
        try:
            _lock(fd, path)
            if os.fstat(fd).st_nlink:  # else another restore took it for a leftover before it was locked
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _remove_leftover(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        _lock(fd, path)
        path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RestoreError("another restore to the same path is running", key=os.fspath(path)) from error


def _fsync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
