"""Local files that are written whole: a locked temporary file, then its name, then both on the disk.

The process that writes a temporary file holds a lock (flock) on it. The lock ends with the process, so it tells a file
that is being written from one that a crash has left. Every function raises OSError; the caller translates it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LOCK_PAUSE_S = 0.005
"""Pause between two tries to lock a file that another process has locked."""
RESTS_AFTER_NS = 2_000_000_000
"""A folder that has not changed for so long is at rest: the times of few file systems are coarser."""
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
"""What link() says on a file system without hard links."""
_ONLY_ANOTHER_PATH = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP, errno.ENAMETOOLONG}

StrPath = str | os.PathLike[str]


def is_misnamed(error: OSError) -> bool:
    """Whether there can be no file or folder at a path, whatever room and rights there are."""
    return error.errno in _ONLY_ANOTHER_PATH


# --- locks and temporary files ----------------------------------------------------------------------------------------


def lock(fd: int, patience_s: float = 0.0) -> None:
    """Lock an open file for this process alone. Raises BlockingIOError if another process keeps it so long.

    Raises another OSError if the file system has no locks.
    """
    deadline = time.monotonic() + patience_s
    pause = threading.Event()  # never set
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        pause.wait(LOCK_PAUSE_S)


def create_locked(path: StrPath, mode: int = 0o666) -> int | None:
    """The descriptor of a new, empty file with a lock on it (none where the file system has no locks).

    None if another process took the file for one that a crash has left: it has removed it, or is about to. Raises
    FileExistsError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        lock(fd)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        pass  # no locks on this file system
    except BaseException:
        os.close(fd)
        raise
    if os.fstat(fd).st_nlink:
        return fd
    os.close(fd)
    return None


def create_temporary(start: str, end: str, mode: int = 0o666) -> tuple[int, str]:
    """(descriptor, path) of a new, locked file; its path is `start`, 16 random hex digits and `end`."""
    while True:
        path = f"{start}{secrets.token_hex(8)}{end}"
        fd = create_locked(path, mode)
        if fd is not None:
            return fd, path


def remove_leftover(path: StrPath) -> None:
    """Remove a temporary file that a crash has left; a missing file is no error.

    Raises BlockingIOError when a living process has the file, another OSError if that is unknown.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        lock(fd)
        # Another writer may have removed the file locked here, and made a new one of this name.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd)):
                os.unlink(path)
    finally:
        os.close(fd)


# --- whole files ------------------------------------------------------------------------------------------------------


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data` at the descriptor's position."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_whole(path: StrPath, data: bytes, temporary_path: StrPath, mode: int = 0o666, *, is_synced: bool) -> None:
    """Make or replace the file at `path`: readers see all of it or none. Not locked meanwhile.

    `temporary_path` must be free and is free again afterwards. With `is_synced` file and name are on the disk when
    this returns.
    """
    fd = os.open(temporary_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with removing_on_error(temporary_path):
        try:
            write_all(fd, data)
            if is_synced:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary_path, path)
    if is_synced:
        fsync_folder(os.path.dirname(path))


@contextmanager
def removing_on_error(path: StrPath) -> Iterator[None]:
    """Remove the file at `path` when the block ends with an error."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


def rename_to_new(source: StrPath, target: StrPath) -> None:
    """Give a file its name, unless that is taken. Raises FileExistsError."""
    try:
        os.link(source, target)  # unlike a rename, never replaces another file
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target)) from error
        os.replace(source, target)  # the safest way on such a file system
    else:
        remove(source)


def link(source: StrPath, target: StrPath) -> bool:
    """Give a file a second name; returns False on a file system without hard links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def replace_synced(source: StrPath, target: StrPath) -> None:
    """Rename a file, and replace an existing one; the name is on the disk when this returns."""
    os.replace(source, target)
    fsync_folder(os.path.dirname(target))


def remove(path: StrPath) -> None:
    """Remove a file; a missing file is no error."""
    with suppress(FileNotFoundError):
        os.unlink(path)


# --- folders ----------------------------------------------------------------------------------------------------------


def make_folders(folder: str) -> list[str]:
    """Create `folder` and its parents, each entry on the disk before something is put below it; those it made."""
    if os.path.isdir(folder):
        return []
    parent = os.path.dirname(folder)
    made = make_folders(parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        return made
    fsync_folder(parent)
    return [*made, folder]


def sync_data(fd: int) -> None:
    """Put what was written over in a file on the disk; its size must be on the disk already. Raises OSError."""
    getattr(os, "fdatasync", os.fsync)(fd)


def fsync_folder(folder: StrPath) -> None:
    """Put the names of a folder's files on the disk."""
    fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def folder_stamp(path: StrPath) -> object | None:
    """Equal for a folder at rest as long as no name comes or goes; None if it has changed a moment ago, or is gone.

    A folder's time changes with each file that is renamed into it or deleted, but may be as coarse as the clock of its
    file system, so a folder needs to be at rest.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    if time.time_ns() - found.st_mtime_ns < RESTS_AFTER_NS:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
