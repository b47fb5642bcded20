"""The record beside a hydrated file: which pages it holds in which version, and a checksum of each.

The record may be older than the file, which a killed process goes on writing: a page counts only if its checksum is
right. Owns the record's file; reads and writes no page.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from litevfs import local_files
from litevfs.ltx.checksum import checksum_of
from litevfs.states.record import Known, pack, unpack

_MAGIC = b"LVFSHYD1"
_SQLITE_MAGIC = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat2.html#magic_header_string
_HEAD = struct.Struct(">8sQIQ")  # magic, checksum of the rest, pages, bytes of the state's record


@dataclass(frozen=True, slots=True)
class Hydrated:
    """What an earlier process left."""

    known: Known
    versions: NDArray[np.uint32]  # by page, codes of the known state's history; 0: the page is not there
    sums: NDArray[np.uint64]  # by page, see `page_checksum`


def record_path(path: str) -> Path:
    """Where the record of the hydrated file at `path` lies."""
    return Path(f"{path}-litevfs")


def save(path: str, url: str, hydrated: Hydrated) -> None:
    """Replace the record; readers see all of it or none. Raises OSError."""
    state = pack(hydrated.known, url)
    body = state + zlib.compress(hydrated.versions.tobytes() + hydrated.sums.tobytes(), 1)
    data = _HEAD.pack(_MAGIC, checksum_of(body), len(hydrated.versions), len(state)) + body
    target = record_path(path)
    local_files.write_whole(target, data, f"{target}.{secrets.token_hex(8)}.tmp", 0o600, is_synced=False)


def load(path: str, url: str) -> Hydrated | None:
    """The record of a file of this replica; None if there is none, or it is of no use. Raises OSError."""
    try:
        data = record_path(path).read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < _HEAD.size:
        return None
    magic, checksum, pages, state_bytes = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if magic != _MAGIC or checksum != checksum_of(body):
        return None
    known = unpack(body[:state_bytes], url)
    if known is None:
        return None
    content = zlib.decompress(body[state_bytes:])
    versions: NDArray[Any] = np.frombuffer(content, np.uint32, pages)
    sums: NDArray[Any] = np.frombuffer(content, np.uint64, pages, versions.nbytes)
    return Hydrated(known, versions, sums)


def is_of_others(fd: int, path: str) -> bool:
    """Whether the open file is a database that no hydration has made: those have a record, at first an empty one.

    Raises OSError.
    """
    return os.pread(fd, len(_SQLITE_MAGIC), 0) == _SQLITE_MAGIC and not record_path(path).exists()


def begin(path: str) -> None:
    """Leave an empty record, as the file is about to be of another content: it says that the file is litevfs' own."""
    with contextlib.suppress(OSError):
        record_path(path).write_bytes(b"")
