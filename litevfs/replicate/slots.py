"""A small record on disk that is replaced often: two slots in one file, written in turn. Knows no meaning of fields.

    slot 0 | slot 1          each a line of JSON, filled up with spaces to a multiple of 4096 bytes; the rest is void

A new record overwrites the older one in its place, so that one sync of the file's data puts it on disk: no file is
made, renamed or removed, and no folder synced. Of the sound slots the one with the greater `sequence` counts. A write
that was cut off damages only its own slot, and the record before counts again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from litevfs import local_files
from litevfs.replicate.upload_queue import checksum

_VERSION = 1
_BLOCK = 4096
"""Bytes of a block: of file systems, and of disks, which write it wholly or not at all."""

_Identity = tuple[int, int, int]


class SlotFile:
    """The file at `path`, which only this object writes. For one thread at a time. A slot has `slot_size` bytes, a
    multiple of 4096, unless a longer record needs more."""

    def __init__(self, path: Path, slot_size: int = _BLOCK) -> None:
        self._path, self._slot_size = path, slot_size
        self._identity: _Identity | None = None  # of the file whose slots are known
        self._newest, self._sequence = 0, 0  # the slot that counts, and its number

    def read(self) -> dict[str, Any] | None:
        """The fields of the record; None when there is none, or it is damaged. Raises OSError."""
        self._identity, self._sequence = None, 0
        try:
            with self._path.open("rb") as file:
                data, identity = file.read(), _identity(os.fstat(file.fileno()))
        except FileNotFoundError:
            return None
        half = len(data) // 2
        found = [_parsed(data[:half]), _parsed(data[half:])]
        sequences = [-1 if fields is None else int(fields.pop("sequence", 0)) for fields in found]
        if max(sequences) < 0:
            return _parsed(data)  # as earlier versions wrote it
        self._newest = sequences.index(max(sequences))
        self._identity, self._sequence = identity, sequences[self._newest]
        return found[self._newest]

    def write(self, fields: dict[str, Any], replace: Callable[[bytes], None]) -> None:
        """Replace the record; it is on disk when this returns. Raises OSError.

        `replace` replaces the whole file, and has it on disk: for the first record, a long one, or when the file is
        not that which was read or written last.
        """
        record = _packed({"sequence": self._sequence + 1, **fields})
        if not self._overwrite(record):
            size = max(self._slot_size, _padded_size(record))
            replace(_padded(record, size) + _padded(b"", size))
            self._newest, self._identity = 0, _identity(self._path.stat())
        self._sequence += 1

    def _overwrite(self, record: bytes) -> bool:
        """Put the record into the slot that does not count. False: there is no room, or the file is another one."""
        if self._identity is None or len(record) >= (size := self._identity[2] // 2):
            return False
        try:
            fd = os.open(os.fspath(self._path), os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if _identity(os.fstat(fd)) != self._identity:
                return False
            slot = 1 - self._newest
            os.lseek(fd, slot * size, os.SEEK_SET)
            local_files.write_all(fd, _padded(record, _padded_size(record)))
            local_files.sync_data(fd)
        finally:
            os.close(fd)
        self._newest = slot
        return True


def _packed(fields: dict[str, Any]) -> bytes:
    return json.dumps({"version": _VERSION, "checksum": checksum(fields), **fields}).encode()


def _padded_size(record: bytes) -> int:
    return len(record) // _BLOCK * _BLOCK + _BLOCK


def _padded(record: bytes, size: int) -> bytes:
    return record.ljust(size - 1) + b"\n"


def _parsed(data: bytes) -> dict[str, Any] | None:
    """The fields of a sound record."""
    try:
        fields = json.loads(data.partition(b"\n")[0] if data.startswith(b'{"version"') else data)
        found, version = fields.pop("checksum"), fields.pop("version")
        return fields if (found, version) == (checksum(fields), _VERSION) else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size
