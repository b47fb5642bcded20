"""Bytes by key in the files of a folder, under a limit. Owns the folder's layout and the checks of its content.

Knows no LTX file. The bytes of a key are one file, `<1 hex digit>/<64 hex digits>.block`, named by the key. Each file
carries its own key and a checksum, and is trusted only if both are right: so there is no fsync, no lock and no index
beside the files, and a crash, a torn write or a flipped bit costs one more read from storage.

The least recently used files go first. The folder is divided into groups, each with its share of the limit. A process
lists a group before it writes the first file there, and then only when the files written since may have filled it.
Several processes on one folder may exceed the limit together by an eighth for each of them but the first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import struct
import threading
import time
from dataclasses import dataclass

from litevfs import local_files
from litevfs.errors import OptionError
from litevfs.ltx.checksum import checksum_of

logger = logging.getLogger("litevfs.files.disk_cache")

SHARDS = 16
"""Subfolders, by a name's first digit. ext4 spreads folders over the disk: with 256, a block takes twice as long."""
MIN_GROUP_BYTES = 1 << 22
"""A group of subfolders has room for many blocks."""
GROUP_SLACK = 8
"""A process frees an eighth of a group at once, and may write as much before it lists the group again."""
ALLOCATION_BYTES = 4096
"""Files take multiples of this on disk, in nearly every file system."""
TOUCH_AFTER_S = 10.0
"""Precision of the time of the last use: writing the time at every read would cost more than the read."""
TEMP_LIFE_S = 60.0
"""A temporary file of this age was left by a process that was killed."""

# Every file: magic, key (sha256), checksum of key and block, then the block; its length follows from the key.
_HEADER = struct.Struct(">8s32sQ")
_MAGIC = b"LVFSBLK1"
_MAGIC_COMPRESSED = b"LVFSBLK2"  # the block in a smaller form
_BLOCK_NAME = re.compile(r"[0-9a-f]{64}\.block")
_TEMP_NAME = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.tmp")


@dataclass(slots=True)
class DiskCounters:
    """Counts of reads and writes of the folder for one replica so far."""

    hits: int = 0
    misses: int = 0
    damaged: int = 0  # found, not trusted, deleted; counted as misses too
    evicted: int = 0


class KeyedFiles:
    """Bytes by key (32 bytes) in the folder `path`. Safe to use from many threads and processes."""

    def __init__(self, path: str, limit_bytes: int, counters: DiskCounters, *, compresses: bool) -> None:
        self.has_failed = False
        self._compresses = compresses
        self._path = os.path.abspath(path)  # noqa: PTH100 (a str: joined at every read)
        self._counters = counters
        self._groups = _group_count(limit_bytes)
        self._group_limit = limit_bytes // self._groups
        self._room = [0] * self._groups  # bytes that may be written to each group before it is listed
        self._on_their_way = [0] * self._groups  # bytes that threads are writing, and a listing may not show yet
        self._lock = threading.Lock()

    def prepare(self, block_size: int) -> None:
        """Make the folder and write a block of this size to it as a test. Raises OptionError if there can be no folder.

        One that takes no block now, for want of room or of rights, is only read, and that is logged.
        """
        path = self._file_path(secrets.token_bytes(32))
        if self._compresses and not _can_compress():
            raise OptionError("cache_dir_compress needs zstandard", hint="pip install 'litevfs[compress]'")
        try:
            os.makedirs(self._path, 0o700, exist_ok=True)  # noqa: PTH103 (str)
            self._write_file(path, secrets.token_bytes(block_size))
            os.unlink(path)  # noqa: PTH108 (str)
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
            if isinstance(error, OSError) and not local_files.is_misnamed(error):
                self._fail(error)
                return
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise OptionError(
                f"cache_dir {self._path}: {why}", hint="name a folder that can be written to, with room for blocks"
            ) from error

    def read(self, key: bytes, size: int) -> bytes | None:
        """The `size` bytes kept under `key`, or None. A file with any other content is deleted."""
        path = self._file_path(key)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # missing or unreadable: then the reader asks storage
            return None
        try:
            content = os.read(fd, _HEADER.size + size + 1)
            _touch(fd)
        except OSError as error:
            logger.info("cannot read %s: %s", path, error)
            return None
        finally:
            os.close(fd)
        data = content[_HEADER.size :]
        if content.startswith(_MAGIC_COMPRESSED):
            if not _can_compress():
                return None  # another process keeps blocks so, and this one lacks zstandard
            whole = _whole(key, content, size)
            if whole is not None:
                return whole
        elif len(data) == size and content[: _HEADER.size] == _header(key, data):
            return data
        logger.info("%s is damaged: deleting it", path)
        self._counters.damaged += 1
        self.delete(key)
        return None

    def write(self, key: bytes, data: bytes) -> None:
        """Keep the bytes if there is room for them. The first failure is logged, and ends all writing."""
        if self.has_failed:
            return
        content = _packed(key, data) if self._compresses else _header(key, data) + data
        group, cost = (key[0] >> 4) * self._groups // SHARDS, _allocated(len(content))
        try:
            if self._make_room(group, cost):
                try:
                    self._write_file(self._file_path(key), content)
                finally:
                    with self._lock:
                        self._on_their_way[group] -= cost
        except FileNotFoundError:  # the folder was deleted just now: the next block makes it again
            pass
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.has_failed = True
        logger.warning("cache_dir %s takes no more blocks until the replica is opened again: %s", self._path, error)

    def delete(self, key: bytes) -> None:
        """Delete the bytes kept under `key`."""
        with contextlib.suppress(OSError):
            os.unlink(self._file_path(key))  # noqa: PTH108 (str)

    def has(self, key: bytes) -> bool:
        """Whether the folder has bytes under `key`."""
        return os.path.exists(self._file_path(key))  # noqa: PTH110 (str)

    # --- files --------------------------------------------------------------------------------------------------------

    def _file_path(self, key: bytes) -> str:
        name = key.hex()
        return f"{self._path}/{name[0]}/{name}.block"

    def _write_file(self, path: str, content: bytes) -> None:
        """A whole file or none, readable by its owner alone."""
        temporary = f"{path.removesuffix('.block')}.{secrets.token_hex(8)}.tmp"
        try:
            local_files.write_whole(path, content, temporary, 0o600, is_synced=False)
        except FileNotFoundError:
            os.makedirs(self._path, 0o700, exist_ok=True)  # noqa: PTH103 (str)
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.dirname(path), 0o700)  # noqa: PTH102, PTH120 (str)
            local_files.write_whole(path, content, temporary, 0o600, is_synced=False)

    # --- the limit ----------------------------------------------------------------------------------------------------

    def _make_room(self, group: int, cost: int) -> bool:
        """Whether `cost` bytes may be written to a group now; deletes old blocks to make room."""
        if cost > self._group_limit:
            return False
        with self._lock:
            if self._room[group] < cost:
                self._room[group] = self._look_through(group, cost)
            if self._room[group] < cost:
                return False
            self._room[group] -= cost
            self._on_their_way[group] += cost
            return True

    def _look_through(self, group: int, cost: int) -> int:
        """Delete old blocks until a group has room for `cost` more bytes. Returns how many may be written until the
        next call.

        Deletes nothing but blocks, and temporary files that a killed process left.
        """
        found: list[tuple[float, int, str]] = []  # (time of the last use, bytes, path)
        width = SHARDS // self._groups
        for shard in range(group * width, (group + 1) * width):
            found += _list_shard(f"{self._path}/{shard:x}")
        total = sum(size for _, size, _ in found) + self._on_their_way[group]
        if total + cost > self._group_limit:
            enough = min(self._group_limit - cost, self._group_limit - self._group_limit // GROUP_SLACK)
            for _, size, path in sorted(found):
                if total <= enough:
                    break
                with contextlib.suppress(OSError):
                    os.unlink(path)  # noqa: PTH108 (str)
                    total -= size
                    self._counters.evicted += 1
        return min(self._group_limit - total, max(cost, self._group_limit // GROUP_SLACK))


def _group_count(limit_bytes: int) -> int:
    groups = SHARDS
    while groups > 1 and limit_bytes // groups < MIN_GROUP_BYTES:
        groups //= 2
    return groups


def _list_shard(folder: str) -> list[tuple[float, int, str]]:
    """(time of the last use in seconds since the Unix epoch, bytes on disk, path) of blocks; deletes left-overs."""
    found = []
    forgotten = time.time() - TEMP_LIFE_S
    shard = folder[-1]
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            is_block = _BLOCK_NAME.fullmatch(entry.name) is not None
            if not (is_block or _TEMP_NAME.fullmatch(entry.name)) or not entry.name.startswith(shard):
                continue
            with contextlib.suppress(OSError):  # gone meanwhile
                if not entry.is_file(follow_symlinks=False):
                    continue
                stat = entry.stat(follow_symlinks=False)
                if is_block or stat.st_mtime > forgotten:
                    found.append((stat.st_mtime, _allocated(stat.st_size), entry.path))
                else:
                    os.unlink(entry.path)  # noqa: PTH108 (str)
    return found


def _allocated(size: int) -> int:
    """Disk space of a file; an empty file takes space too."""
    return max(1, -(-size // ALLOCATION_BYTES)) * ALLOCATION_BYTES


def _header(key: bytes, data: bytes, magic: bytes = _MAGIC) -> bytes:
    return _HEADER.pack(magic, key, checksum_of(key, data))


def _can_compress() -> bool:
    try:
        from litevfs.files import compressed  # noqa: F401 (loads zstandard)
    except ImportError:
        return False
    return True


def _packed(key: bytes, data: bytes) -> bytes:
    """The content of a block's file: in the smaller form if that saves disk space."""
    from litevfs.files.compressed import compress

    smaller = compress(data)
    if _allocated(_HEADER.size + len(smaller)) < _allocated(_HEADER.size + len(data)):
        return _header(key, smaller, _MAGIC_COMPRESSED) + smaller
    return _header(key, data) + data


def _whole(key: bytes, content: bytes, size: int) -> bytes | None:
    """The block of `size` bytes in the smaller form; None if it is damaged."""
    from litevfs.files.compressed import decompress

    smaller = content[_HEADER.size :]
    if content[: _HEADER.size] != _header(key, smaller, _MAGIC_COMPRESSED):
        return None
    return decompress(smaller, size)


def _touch(fd: int) -> None:
    """Record the use of a block as its file's mtime, now and then; also corrects a time in the future."""
    if abs(time.time() - os.fstat(fd).st_mtime) > TOUCH_AFTER_S:
        with contextlib.suppress(OSError):
            os.utime(fd)
