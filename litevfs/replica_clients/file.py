"""Replicas in a folder: `root/ltx/<level in decimal>/<min_txid>-<max_txid>.ltx`.

Source of the layout: Litestream 0.5, `file/replica_client.go`; the client also reads and continues the layout of S3
(see `layouts`). A file's mtime is the timestamp of its LTX header. Knows nothing of what the files contain.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import quote

from litevfs import local_files
from litevfs.errors import (
    ReplicaFolderNotFoundError,
    StorageClosedError,
    StorageError,
    StorageFileExistsError,
    StorageNotFoundError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)
from litevfs.ltx.names import format_file_name, parse_file_name
from litevfs.replica_clients import file_objects
from litevfs.replica_clients.base import LEVELS, LTXFileInfo, SideObject, too_late
from litevfs.replica_clients.descriptors import NO_DESCRIPTOR, Descriptor, KeptOpen
from litevfs.replica_clients.layouts import LTX_FOLDER, layout_of_folders

T = TypeVar("T")

_TEMP_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.ltx\.[0-9a-f]{16}\.tmp", re.ASCII)
_COPY_BYTES = 1 << 20
_MOST_NAMES = 10_000
_UNCHECKED_BYTES = 1 << 20  # a read up to this size may allocate its buffer before the file's size is known
_TRANSIENT = {errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EINTR, errno.ESTALE, errno.ENOMEM} | NO_DESCRIPTOR

_Key = tuple[int, int, int, str]


class FileReplicaClient:
    """A replica in the folder `root`. Keeps up to `max_open_files` descriptors open between reads, and few
    where all clients of the process keep many (`descriptors.py`).
    """

    block_size = 0
    keeps_conditions = True

    def __init__(self, root: str | os.PathLike[str], *, max_open_files: int = 64) -> None:
        self._root = os.path.abspath(os.fspath(root))  # noqa: PTH100 - keeps symlinks, and str is what os.open takes
        self._kept: KeptOpen[_Key] = KeptOpen(max_open_files)
        self.open_files = self._kept.descriptors
        self._lock = threading.Lock()  # for changes of the levels that were swept
        self._swept_levels: set[int] = set()
        self._made: list[str] = []  # folders, each after the one that it lies in
        self._layout = LTX_FOLDER
        self._is_layout_known = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._root!r})"

    @property
    def url(self) -> str:
        """`file://<absolute path>`, percent-encoded."""
        return "file://" + quote(self._root)

    @property
    def root(self) -> Path:
        """The replica's folder; its files are in `ltx/` below it."""
        return Path(self._root)

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`. Raises ReplicaFolderNotFoundError when `root` does not exist."""
        self._check_open()
        folder = self._folder(level)
        with _translated(folder):
            try:
                entries = self._kept.with_room(lambda: os.scandir(folder))
            except FileNotFoundError:
                if self._finds_other_layout():
                    return self.list_files(level, min_txid)
                if not os.path.isdir(self._root):  # noqa: PTH112 - str in hand
                    raise ReplicaFolderNotFoundError(
                        "no such replica folder",
                        key=self._root,
                        hint="check the path; the primary makes the folder when it first replicates",
                    ) from None
                return []
            with entries:
                found = [file for entry in entries if (file := _file_info(level, entry, min_txid)) is not None]
        return sorted(found, key=lambda file: (file.min_txid, file.max_txid))

    def _finds_other_layout(self) -> bool:
        """Whether the folders of levels, one of which was missing, turn out to have the layout of S3."""
        if self._is_layout_known:
            return False
        try:
            names = set(self._kept.with_room(lambda: os.listdir(self._root)))  # noqa: PTH208 - str in hand
        except (FileNotFoundError, NotADirectoryError):
            return False
        layout = layout_of_folders(names, LTX_FOLDER, self._root)
        if layout is not None:
            self._layout, self._is_layout_known = layout, True
        return layout not in (None, LTX_FOLDER)

    def list_from(self, level: int, min_txid: int = 1) -> tuple[list[LTXFileInfo], bool]:
        """See `ListsLevels.list_from`."""
        files = self.list_files(level, min_txid)
        folders = [self._folder(above) for above in LEVELS[level + 1 :]]
        try:  # one call instead of a failing one for each level that most replicas lack
            names = set(os.listdir(os.path.dirname(folders[0]))) if folders else set()  # noqa: PTH120, PTH208
            there = [i for i, folder in enumerate(folders, level + 1) if os.path.basename(folder) in names]  # noqa: PTH119
        except OSError:
            there = list(LEVELS[level + 1 :])
        return [*files, *(file for above in there for file in self.list_files(above))], True

    @property
    def path(self) -> str:
        """See `ListsFolders.path`."""
        return self._root.strip("/")

    def list_folders(self, path: str) -> list[str]:
        """See `ListsFolders.list_folders`."""
        with _translated(path), suppress(FileNotFoundError, NotADirectoryError), os.scandir(f"/{path}") as entries:
            return [entry.name for entry in islice(entries, _MOST_NAMES) if entry.is_dir()]
        return []

    def place_of(self, path: str) -> str:
        """See `ListsFolders.place_of`."""
        return f"/{path}"

    def stamp(self, level: int) -> object | None:
        """See `StampsLevels.stamp`."""
        return local_files.folder_stamp(self._folder(level))

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """See `ReplicaClient.read`."""
        if timeout_s is not None and timeout_s <= 0:
            raise too_late(file, self.key(file))
        descriptor = self.open_files.get((file.level, file.min_txid, file.max_txid, file.etag))
        if descriptor is None:
            descriptor = self._open_file(file)
        else:
            descriptor.used = True
        try:
            if size is not None and size <= _UNCHECKED_BYTES:
                data = os.pread(descriptor.fd, size, offset)
                if len(data) == size:
                    return data
            return _read_to(descriptor.fd, offset, size)
        except OverflowError:
            return b""  # beyond what any file can hold
        except OSError as exc:
            if exc.errno == errno.EINVAL and offset >= os.fstat(descriptor.fd).st_size:
                return b""  # offset and size together are beyond it
            self._kept.drop(_key(file))
            raise _translate(exc, self.key(file), file) from exc

    def write(
        self,
        level: int,
        min_txid: int,
        max_txid: int,
        data: bytes | BinaryIO,
        timestamp_ms: int,
        *,
        exclusive: bool = False,
    ) -> LTXFileInfo:
        """See `ReplicaClient.write`. The file and its folder are on the disk (fsync) when this returns."""
        self._check_open()
        with _translated(self._root):
            self._finds_other_layout()
        folder = self._folder(level)
        path = f"{folder}/{format_file_name(min_txid, max_txid)}"
        with _translated(path):
            self._made += local_files.make_folders(folder)
            self._sweep_leftovers(level)
            fd, temp_path = local_files.create_temporary(f"{path}.", ".tmp")
            try:
                with local_files.removing_on_error(temp_path):
                    self._copy(data, fd)
                    os.utime(fd, ns=(timestamp_ms * 1_000_000, timestamp_ms * 1_000_000))
                    os.fsync(fd)
                    if exclusive:
                        _rename_to_new(temp_path, path)
                    else:
                        os.replace(temp_path, path)  # noqa: PTH105 - str in hand
                info = _info_from_stat(level, min_txid, max_txid, os.fstat(fd))
            finally:
                os.close(fd)
            _fsync_folder(folder)
        return info

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """See `ReplicaClient.delete`."""
        self._check_open()
        folders = set()
        for file in files:
            path = self.key(file)
            with _translated(path):
                local_files.remove(path)
            folders.add(self._folder(file.level))
            self._kept.drop(_key(file))
        for folder in folders:
            with _translated(folder):
                _fsync_folder(folder)

    def read_object(self, name: str) -> SideObject | None:
        """See `SideObjects.read_object`."""
        return self._with_object(name, file_objects.read_object)

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `SideObjects.put_object`. On the disk (fsync) when this returns."""
        return self._with_object(
            name, lambda path: file_objects.put_object(path, data, if_match=if_match, if_absent=if_absent)
        )

    def delete_object(self, name: str) -> None:
        """See `SideObjects.delete_object`."""
        self._with_object(name, file_objects.delete_object)

    def _with_object(self, name: str, action: Callable[[Path], T]) -> T:
        self._check_open()
        path = self.root / name
        with _translated(str(path)):
            return action(path)

    def key(self, file: LTXFileInfo) -> str:
        """The file's absolute path."""
        return f"{self._folder(file.level)}/{file.name}"

    def remove_folder(self) -> None:
        """See `LeavesFolders.remove_folder`."""
        shutil.rmtree(self._root, ignore_errors=True)
        for folder in reversed(self._made):
            with suppress(OSError):  # it went with the replica's folder, or is not empty
                os.rmdir(folder)  # noqa: PTH106 - str in hand

    def close(self) -> None:
        """See `ReplicaClient.close`. A descriptor that a read is using closes with that read."""
        self._kept.close()

    def _folder(self, level: int) -> str:
        return f"{self._root}/{self._layout.folder(level)[:-1]}"

    def _check_open(self) -> None:
        if self._kept.is_closed:
            raise StorageClosedError(f"the client of {self.url} is closed")

    def _open_file(self, file: LTXFileInfo) -> Descriptor:
        self._check_open()
        path = self.key(file)
        with _translated(path, file):
            # O_NONBLOCK: a FIFO that pretends to be an LTX file must not block; regular files ignore it.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = Descriptor(self._kept.with_room(lambda: os.open(path, flags)))
            status = os.fstat(descriptor.fd)
        if not stat.S_ISREG(status.st_mode):
            raise _error(StorageError, "not a regular file", path, file)
        if file.etag and file.etag != _etag(status):
            raise _error(StorageNotFoundError, "the file was replaced since it was listed", path, file)
        self._kept.keep(_key(file), descriptor)
        self._check_open()
        return descriptor

    def _copy(self, data: bytes | BinaryIO, fd: int) -> None:
        if isinstance(data, bytes):
            local_files.write_all(fd, data)
            return
        while chunk := data.read(_COPY_BYTES):
            self._check_open()
            local_files.write_all(fd, chunk)

    def _sweep_leftovers(self, level: int) -> None:
        """Once per level: remove the temporary files of writers that died (living ones hold a lock on theirs)."""
        with self._lock:
            if level in self._swept_levels:
                return
            self._swept_levels.add(level)
        with os.scandir(self._folder(level)) as entries:
            names = [entry.path for entry in entries if _TEMP_NAME.fullmatch(entry.name)]
        for path in names:
            with suppress(OSError):  # its writer lives, or we may not remove it
                local_files.remove_leftover(path)


def _key(file: LTXFileInfo) -> _Key:
    # With the etag, so that a file of the same name and other content is never read through an old descriptor.
    return (file.level, file.min_txid, file.max_txid, file.etag)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_ino:x}-{status.st_size:x}"


def _info_from_stat(level: int, min_txid: int, max_txid: int, status: os.stat_result) -> LTXFileInfo:
    modified_ms = status.st_mtime_ns // 1_000_000
    return LTXFileInfo(level, min_txid, max_txid, status.st_size, modified_ms, _etag(status))


def _file_info(level: int, entry: os.DirEntry[str], min_txid: int) -> LTXFileInfo | None:
    txids = parse_file_name(entry.name)
    if txids is None or txids[0] < min_txid:
        return None
    try:
        status = entry.stat()
    except FileNotFoundError:  # deleted since the folder was read
        return None
    return _info_from_stat(level, *txids, status) if stat.S_ISREG(status.st_mode) else None


def _read_to(fd: int, offset: int, size: int | None) -> bytes:
    """Like os.pread, but whole (one pread gives at most 2 GiB) and never allocating beyond the file's end."""
    available = max(0, os.fstat(fd).st_size - offset)
    wanted = available if size is None else min(size, available)
    data = os.pread(fd, wanted, offset) if wanted else b""
    if len(data) == wanted:
        return data
    parts = [data]
    while data and (missing := wanted - sum(map(len, parts))):
        data = os.pread(fd, missing, offset + wanted - missing)
        parts.append(data)
    return b"".join(parts)


def _rename_to_new(temp_path: str, path: str) -> None:
    try:
        local_files.rename_to_new(temp_path, path)
    except FileExistsError as exc:
        raise _error(StorageFileExistsError, "the file exists", path, None) from exc


def _fsync_folder(folder: str) -> None:
    with suppress(FileNotFoundError):  # no such file
        local_files.fsync_folder(folder)


@contextmanager
def _translated(path: str, file: LTXFileInfo | None = None) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as exc:
        raise _translate(exc, path, file) from exc


def _translate(exc: OSError, path: str, file: LTXFileInfo | None) -> StorageError:
    reason = exc.strerror or str(exc)
    if exc.errno == errno.ENOENT:
        return _error(StorageNotFoundError, reason, path, file)
    if exc.errno == errno.ENOTDIR:
        hint = "a replica is a folder: does the path name a file, such as the database itself?"
        return _error(StorageNotFoundError, reason, path, file, hint)
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return _error(
            StoragePermissionError, reason, path, file, "check the owner and the mode of the file and folders"
        )
    if exc.errno == errno.ETIMEDOUT:
        return _error(StorageTimeoutError, reason, path, file)
    if exc.errno in NO_DESCRIPTOR:
        return _error(TransientStorageError, reason, path, file, "raise the limit on open files (ulimit -n)")
    return _error(TransientStorageError if exc.errno in _TRANSIENT else StorageError, reason, path, file)


def _error(
    kind: type[StorageError], message: str, path: str, file: LTXFileInfo | None, hint: str | None = None
) -> StorageError:
    if file is None:
        return kind(message, key=path, hint=hint)
    return kind(message, level=file.level, min_txid=file.min_txid, max_txid=file.max_txid, key=path, hint=hint)
