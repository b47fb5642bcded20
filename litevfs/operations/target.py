"""The database file that a restore makes: a temporary file beside it until it is whole. Knows no LTX.

The restore that writes `<path>.tmp` locks it. The next restore removes a file that a crash left there; it never writes
to that file, since after a crash at the very end it may be another name of the finished database.
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import apsw

from litevfs import local_files
from litevfs.errors import RestoreError, RestoreTargetExistsError

_HINTS = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space",
    errno.ENOENT: "make its folder first",
}
_COMPANIONS = ("", "-wal", "-journal", "-shm")
"""Files that must not exist: SQLite would apply a log that it finds beside the new database."""
_BATCH_BYTES = 1 << 20
"""Pages that wait to be written together."""
_FLUSH_BYTES = 8 << 20
"""Pages written in one run, until the system is asked to write them to the disk."""
_TEMPORARY_PREFIX = "litevfs-state-"


class RestoreTarget:
    """The future database at `path`. As a context manager it removes its temporary file, unless published.

    `mode` is that of the file, less the umask. With `replace`, `publish` replaces an existing database, and removes
    its WAL and journal first; otherwise an existing database is an error.
    """

    def __init__(self, path: Path, *, mode: int = 0o666, replace: bool = False) -> None:
        _check_name(path)
        self.path = path
        self.temp_path = path.with_name(path.name + ".tmp")
        self._mode, self._is_replacing = mode, replace
        self._fd = -1
        self._waiting: dict[int, bytes] = {}  # pages to write, by pgno: the newest version of each
        self._run_start = self._run_end = 0  # bytes written last in one run, and not yet sent to the disk

    def __enter__(self) -> Self:
        self._check_free()
        with self._translated():
            self._fd = _create_locked(self.temp_path, self._mode)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with suppress(OSError):
                self.temp_path.unlink(missing_ok=True)
        finally:
            os.close(self._fd)

    def clear(self) -> None:
        """Forget everything that was written."""
        self._waiting.clear()
        with self._translated():
            os.ftruncate(self._fd, 0)

    def reserve(self, size: int) -> None:
        """Reserve room for `size` bytes at once: faster than bit by bit, and a disk that is too small fails early."""
        if size and hasattr(os, "posix_fallocate"):
            with self._translated():
                os.posix_fallocate(self._fd, 0, size)

    def write_pages(self, pages: Sequence[tuple[int, bytes]], page_size: int) -> None:
        """Write pages, as (pgno, content), to their places, over what was written there before."""
        self._waiting.update(pages)
        if len(self._waiting) * page_size >= _BATCH_BYTES:
            self._write_waiting(page_size)

    def end(self, page_count: int, page_size: int) -> None:
        """End the pages: make the file `page_count` pages long, with zeros where none was written."""
        self._write_waiting(page_size)
        with self._translated():
            os.ftruncate(self._fd, page_count * page_size)

    def identity(self) -> tuple[int, int]:
        """Device and inode of the future file."""
        with self._translated():
            status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def publish(self) -> None:
        """Give the file its name, once all of it is on the disk. Raises RestoreTargetExistsError if it is taken."""
        with self._translated():
            os.fsync(self._fd)
            if self._is_replacing:
                self._replace()
            else:
                self._check_free()
                try:
                    local_files.rename_to_new(self.temp_path, self.path)
                except FileExistsError:
                    raise _exists(self.path) from None
            local_files.fsync_folder(self.path.parent)

    def _replace(self) -> None:
        check_unused(self.path)
        for suffix in _COMPANIONS[1:]:  # first: SQLite would apply a log of the old database to the new one
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.temp_path.replace(self.path)

    def _write_waiting(self, page_size: int) -> None:
        pgnos = sorted(self._waiting)
        with self._translated():
            start = 0
            while start < len(pgnos):
                end = _end_of_run(pgnos, start)
                pages = [self._waiting[pgno] for pgno in pgnos[start:end]]
                self._write((pgnos[start] - 1) * page_size, b"".join(pages))
                start = end
        self._waiting.clear()

    def _write(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            view = view[written:]
            offset += written
        self._note_written(offset - len(data), offset)

    def _note_written(self, start: int, end: int) -> None:
        """Let the system start writing to the disk while pages still come in, so that little is left for the fsync.

        Only pages written in one run, as those of a snapshot file: scattered pages are likely to be written again.
        """
        if start != self._run_end:
            self._run_start = start
        self._run_end = end
        if end - self._run_start >= _FLUSH_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, self._run_start, end - self._run_start, os.POSIX_FADV_DONTNEED)
            self._run_start = end

    def _check_free(self) -> None:
        if self.path.exists() and not self.path.is_file():  # a device, say, which a rename would take away
            raise RestoreTargetExistsError(
                "neither a file nor free", key=str(self.path), hint="give the path of a file"
            )
        for suffix in () if self._is_replacing else _COMPANIONS:
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
                hint=_HINTS.get(error.errno or 0),
            ) from error


def is_missing(path: Path) -> bool:
    """Whether there is no database: no file, or an empty file as a placeholder, and no log beside it.

    Raises RestoreError for what is not the name of a file.
    """
    _check_name(path)
    return not any(_size(path.with_name(path.name + suffix)) for suffix in ("", "-wal", "-journal"))


def _check_name(path: Path) -> None:
    """Raise RestoreError for what is not the name of a file; one that is not in UTF-8 may be one."""
    try:
        is_name = bool(path.name) and b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        is_name = False
    if not is_name:
        raise RestoreError("cannot write the database: not the name of a file", key=ascii(os.fspath(path)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def check_unused(path: Path) -> None:
    """Raise RestoreError when another process or connection has the database open in WAL mode, or writes to it."""
    _check_name(path)
    if not _size(path):
        return
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE; ROLLBACK").fetchall()
        finally:
            connection.close(True)
    except (apsw.BusyError, apsw.LockedError) as error:
        raise RestoreError(
            "will not replace a database that is in use", key=os.fspath(path), hint="end the programs that use it"
        ) from error
    except apsw.Error:
        return  # not a database, or a damaged one, which is a reason to replace it


def temporary_target() -> RestoreTarget:
    """A target in the system's folder for temporary files, never to be published; removes those of killed processes.

    Raises RestoreError if there is no such folder.
    """
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        raise RestoreError(f"no folder for temporary files: {error}", hint="set TMPDIR") from error
    for path in folder.glob(f"{_TEMPORARY_PREFIX}*.tmp"):
        with suppress(OSError, RestoreError):
            _remove_leftover(path)
    return RestoreTarget(folder / f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}", mode=0o600)


def _exists(path: Path) -> RestoreTargetExistsError:
    hint = "move it away, restore to another path, or let it be replaced: --force, in Python force=True"
    return RestoreTargetExistsError("will not overwrite an existing file", key=os.fspath(path), hint=hint)


def _end_of_run(pgnos: Sequence[int], start: int) -> int:
    """The end of the numbers from `start` on that follow each other; they ascend."""
    first = pgnos[start]
    if pgnos[-1] - first == len(pgnos) - 1 - start:  # no number is left out
        return len(pgnos)
    end = start + 1
    while pgnos[end] - first == end - start:
        end += 1
    return end


def _create_locked(path: Path, mode: int) -> int:
    """A new, empty file with an exclusive lock on it; replaces one that a crash has left."""
    while True:
        try:
            fd = local_files.create_locked(path, mode)
        except FileExistsError:
            _remove_leftover(path)
            continue
        if fd is not None:  # otherwise another restore took it for a leftover before it was locked
            return fd


def _remove_leftover(path: Path) -> None:
    try:
        local_files.remove_leftover(path)
    except BlockingIOError as error:
        raise RestoreError("another restore to the same path is running", key=os.fspath(path)) from error
