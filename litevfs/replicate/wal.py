"""The write-ahead log as SQLite keeps it on disk: header, frames, checksums. Only reads; knows nothing of replication.

Source: "WAL-mode File Format" (https://www.sqlite.org/walformat.html) and "The WAL File Format"
(https://www.sqlite.org/fileformat2.html#walformat). All integers of the file are big-endian:

    header (32 B) | frame 1 | frame 2 | ...      a frame is a header (24 B) and one page

A frame counts when its salts are the file header's and its checksum, which runs through all frames before it, is right.
A transaction counts when its last frame, the commit frame, counts. Frames are numbered from 1, as SQLite does.

The file carries none of SQLite's locks, so opening and closing it by ordinary means disturbs no other process.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from litevfs.errors import WALError
from litevfs.ltx.format import is_valid_page_size

MAGIC = 0x377F0682
"""First four bytes. The lowest bit says that checksums read the file as big-endian words, else little-endian."""
VERSION = 3007000
HEADER_SIZE = 32
FRAME_HEADER_SIZE = 24

_HEADER = struct.Struct(">8I")
_FRAME_HEADER = struct.Struct(">6I")
_WORDS_IN_FRAME_HEADER = FRAME_HEADER_SIZE // 4
_WORDS_CHECKSUMMED_IN_FRAME_HEADER = 2  # pgno and commit; then the page
_FEW_FRAMES = 16
_READ_SIZE = 4 << 20
"""Bytes of frames to read and check at once."""

_Words = npt.NDArray[np.uint32]
_Checksum = tuple[int, int]
_ReadRange = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class WALHeader:
    """The first 32 bytes of the file. They change each time SQLite starts the file over."""

    page_size: int  # bytes
    checkpoint_sequence: int
    salt1: int  # grows by one each time the file starts over
    salt2: int  # random each time
    checksum1: int
    checksum2: int
    big_endian: bool  # the byte order of the words that checksums run over

    @property
    def frame_size(self) -> int:
        """Bytes of a frame with its header."""
        return FRAME_HEADER_SIZE + self.page_size

    @property
    def start(self) -> WALPosition:
        """The position before the first frame."""
        return WALPosition(self.salt1, self.salt2, 0, self.checksum1, self.checksum2)

    @classmethod
    def parse(cls, data: bytes) -> WALHeader | None:
        """The header in the first 32 bytes of `data`; None for one that SQLite would take for an empty file."""
        return _parsed_header(bytes(data[:HEADER_SIZE]))


@lru_cache(maxsize=4096)
def _parsed_header(data: bytes) -> WALHeader | None:
    """See `WALHeader.parse`. One capture asks several times, and the answer changes only with the bytes."""
    if len(data) < HEADER_SIZE:
        return None
    magic, version, page_size, sequence, salt1, salt2, checksum1, checksum2 = _HEADER.unpack(data)
    if magic & ~1 != MAGIC or version != VERSION or not is_valid_page_size(page_size):
        return None
    big_endian = bool(magic & 1)
    if checksum(data[: HEADER_SIZE - 8], (0, 0), big_endian=big_endian) != (checksum1, checksum2):
        return None
    return WALHeader(page_size, sequence, salt1, salt2, checksum1, checksum2, big_endian)


@dataclass(frozen=True, slots=True)
class WALPosition:
    """A point between two frames: everything up to and including number `frame` lies before it."""

    salt1: int
    salt2: int
    frame: int  # 0: before the first
    checksum1: int  # the running checksum at this point
    checksum2: int

    def is_in(self, header: WALHeader | None) -> bool:
        """Whether `header` begins the same run of the file, that is, it has not been started over since."""
        return header is not None and (self.salt1, self.salt2) == (header.salt1, header.salt2)


@dataclass(frozen=True, slots=True, eq=False)
class WALChanges:
    """What whole transactions changed between two positions: the newest frame of each page."""

    pgnos: npt.NDArray[np.uint32]  # ascending, none above `commit`
    frames: npt.NDArray[np.int64]  # the number of the frame that holds each page
    commit: int  # size of the database after the last transaction, pages
    end: WALPosition  # after the last commit frame


class WALReader:
    """Reads one WAL file, which others may be writing. A file that does not exist reads like an empty one."""

    def __init__(
        self, path: str | os.PathLike[str], *, read_size: int = _READ_SIZE, read: _ReadRange | None = None
    ) -> None:
        """`read_size`: bytes read at once, or a frame if that is larger. `read(size, offset)` reads the file instead of
        a descriptor of the path, and may fill up what lies behind the end with zeros."""
        self._path, self._read_size, self._read_open = Path(path), read_size, read
        self._fd: int | None = None
        if read is not None:
            return
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            pass

    def __enter__(self) -> WALReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    @property
    def size(self) -> int:
        """Bytes of the file, frames of earlier runs behind the valid ones included."""
        return 0 if self._fd is None else os.fstat(self._fd).st_size

    def header(self) -> WALHeader | None:
        """The header as it is now; None while there is none that SQLite would accept."""
        return WALHeader.parse(self._read(HEADER_SIZE, 0))

    def position(self, header: WALHeader, frame: int) -> WALPosition | None:
        """The position after `frame`, by the checksum that the frame carries; None when it is not of this run.

        The checksum is not verified here. It need not be: what follows is checked by continuing from it.
        """
        position = header.start if frame == 0 else self._stored_position(header, frame)
        return position if position is not None and position.is_in(header) else None

    def holds(self, header: WALHeader, position: WALPosition) -> bool:
        """Whether the frames up to `position` are still those from when the position was taken."""
        return position.is_in(header) and self.position(header, position.frame) == position

    def run_before_ended_at(self, header: WALHeader, frames: int, position: WALPosition) -> bool:
        """Whether the run before that of `header`, which has `frames` frames so far, had nothing after `position`.

        False when that cannot be told. SQLite writes frames in order, so until the new run has come that far, the last
        frame of the old one is still there, and behind it what the old one never wrote over: a frame of a run before.
        A file that ends there shows nothing: it may have been longer, as SQLite cuts it when a run begins, anywhere, if
        there is a `journal_size_limit` (wal.c: `truncateOnCommit`, walLimitSize).
        """
        if header.salt1 != (position.salt1 + 1) % 2**32 or not frames < position.frame:
            return False
        last, behind = (self._stored_position(header, frame) for frame in (position.frame, position.frame + 1))
        if last != position or behind is None:
            return False
        return (behind.salt1, behind.salt2) != (last.salt1, last.salt2)

    def changes(self, header: WALHeader, start: WALPosition, last_frame: int | None = None) -> WALChanges | None:
        """What whole, valid transactions changed after `start`, up to `last_frame` (None: as far as they go).

        None when there is no such transaction. Memory: 8 bytes a frame. Raises ValueError for a position in another
        run of the file.
        """
        if not start.is_in(header):
            raise ValueError("the position belongs to another run of the WAL")
        runs, frame, seed = [], start.frame, (start.checksum1, start.checksum2)
        commit_frame, commit = start.frame, 0
        for words in self._frames(header, start.frame, last_frame):
            count = valid_frames(words, header, seed)
            pgnos, commits = _big_endian(words[:count, 0]), _big_endian(words[:count, 1])
            runs.append(pgnos)
            marked = np.flatnonzero(commits)
            if marked.size:
                commit_frame, commit = frame + int(marked[-1]) + 1, int(commits[marked[-1]])
            if count < len(words):
                break
            frame, seed = frame + count, _stored_checksum(words[-1])
        if commit_frame == start.frame:
            return None
        return self._newest(header, start.frame, np.concatenate(runs)[: commit_frame - start.frame], commit)

    def page(self, header: WALHeader, frame: int) -> bytes:
        """The page in `frame`. Raises WALError when the file ends before."""
        data = self._read(header.page_size, _offset(header, frame) + FRAME_HEADER_SIZE)
        if len(data) < header.page_size:
            raise WALError(f"frame {frame} of the WAL is gone", key=str(self._path))
        return data

    def _newest(self, header: WALHeader, before: int, pgnos: npt.NDArray[np.uint32], commit: int) -> WALChanges:
        end = self.position(header, before + len(pgnos))
        if end is None:
            raise WALError("the WAL was started over while it was read", key=str(self._path))
        if len(pgnos) <= _FEW_FRAMES:
            newest = {pgno: before + i for i, pgno in enumerate(pgnos.tolist(), 1) if pgno <= commit}
            few = sorted(newest)
            return WALChanges(np.array(few, np.uint32), np.array([newest[pgno] for pgno in few], np.int64), commit, end)
        unique, distance_from_end = np.unique(pgnos[::-1], return_index=True)
        kept = unique <= commit
        frames = before + len(pgnos) - distance_from_end.astype(np.int64)
        return WALChanges(unique[kept], frames[kept], commit, end)

    def _frames(self, header: WALHeader, after: int, last_frame: int | None) -> Iterator[_Words]:
        """Frames after number `after`, whole ones only, in arrays of (frames, words of a frame)."""
        at_once = max(1, self._read_size // header.frame_size)
        frame = after
        while last_frame is None or frame < last_frame:
            wanted = at_once if last_frame is None else min(at_once, last_frame - frame)
            data = self._read(wanted * header.frame_size, _offset(header, frame + 1))
            count = len(data) // header.frame_size
            if count:
                yield np.frombuffer(data, np.uint32, count * header.frame_size // 4).reshape(count, -1)
            if count < wanted:
                return
            frame += count

    def _stored_position(self, header: WALHeader, frame: int) -> WALPosition | None:
        """The position that the header of `frame` states, of any run; None past the end of the file."""
        data = self._read(FRAME_HEADER_SIZE, _offset(header, frame))
        if len(data) < FRAME_HEADER_SIZE:
            return None
        _, _, salt1, salt2, checksum1, checksum2 = _FRAME_HEADER.unpack(data)
        return WALPosition(salt1, salt2, frame, checksum1, checksum2)

    def _read(self, size: int, offset: int) -> bytes:
        """`size` bytes from `offset`, fewer only at the end of the file."""
        if self._read_open is not None:
            return self._read_open(size, offset)
        parts = []
        while self._fd is not None and size > 0:
            part = os.pread(self._fd, size, offset)
            if not part:
                break
            parts.append(part)
            size, offset = size - len(part), offset + len(part)
        return b"".join(parts)


# --- checksums --------------------------------------------------------------------------------------------------------
#
# SQLite runs, for each pair of words x0, x1:   s0 += x0 + s1;  s1 += x1 + s0      (all modulo 2^32)
# That is linear. With F(0) = 0, F(1) = 1, F(n) = F(n-1) + F(n-2), n words w[0..n-1] turn (s0, s1) into
#
#     s0' = F(n-1) s0 + F(n) s1   + sum of F(n-1-j) w[j]
#     s1' = F(n) s0   + F(n+1) s1 + sum of F(n-j)   w[j]
#
# so a frame is two dot products with fixed coefficients. And as every frame carries the checksum it ended with, each
# can be checked against its predecessor's on its own: if all steps hold, the whole chain holds.


def checksum(data: bytes, seed: _Checksum, *, big_endian: bool) -> _Checksum:
    """The checksum after `data`, a multiple of 8 bytes, when it was `seed` before."""
    words = _in_order(np.frombuffer(data, np.uint32), big_endian=big_endian)
    fibonacci = _fibonacci(len(words) + 1)
    added = [int(np.dot(words, fibonacci[start::-1][: len(words)])) for start in (len(words) - 1, len(words))]
    before, here, after = (int(fibonacci[len(words) + step]) for step in (-1, 0, 1))
    s0, s1 = seed
    return (before * s0 + here * s1 + added[0]) % 2**32, (here * s0 + after * s1 + added[1]) % 2**32


def valid_frames(words: _Words, header: WALHeader, seed: _Checksum) -> int:
    """How many of the frames, from the first on, belong to the run of `header` and continue the checksum `seed`.

    `words` are the frames as they lie in the file, an array of (frames, words of a frame).
    """
    if len(words) <= _FEW_FRAMES:
        return _valid_few_frames(words, header, seed)
    right = _big_endian(words[:, 0]) != 0  # there is no page 0
    right &= _big_endian(words[:, 2]) == header.salt1
    right &= _big_endian(words[:, 3]) == header.salt2
    stored0, stored1 = _big_endian(words[:, 4]), _big_endian(words[:, 5])
    s0 = np.concatenate((np.array(seed[:1], np.uint32), stored0[:-1]))
    s1 = np.concatenate((np.array(seed[1:], np.uint32), stored1[:-1]))
    for0, for1, before, here, after = _frame_coefficients(header.page_size)
    ordered = _in_order(words, big_endian=header.big_endian)
    right &= before * s0 + here * s1 + np.einsum("ij,j->i", ordered, for0) == stored0
    right &= here * s0 + after * s1 + np.einsum("ij,j->i", ordered, for1) == stored1
    wrong = np.flatnonzero(~right)
    return int(wrong[0]) if wrong.size else len(words)


def _valid_few_frames(words: _Words, header: WALHeader, seed: _Checksum) -> int:
    """The same, frame by frame: faster for a small transaction."""
    for0, for1, before, here, after = _frame_coefficients(header.page_size)
    factors = int(before), int(here), int(after)
    ordered = _in_order(words, big_endian=header.big_endian)
    for i, frame in enumerate(words):
        pgno, _, salt1, salt2, *stored = _FRAME_HEADER.unpack_from(frame)
        added0, added1 = int(np.dot(ordered[i], for0)), int(np.dot(ordered[i], for1))
        s0 = (factors[0] * seed[0] + factors[1] * seed[1] + added0) % 2**32
        s1 = (factors[1] * seed[0] + factors[2] * seed[1] + added1) % 2**32
        if not pgno or (salt1, salt2) != (header.salt1, header.salt2) or stored != [s0, s1]:
            return i
        seed = s0, s1
    return len(words)


@lru_cache(maxsize=8)
def _frame_coefficients(page_size: int) -> tuple[_Words, _Words, np.uint32, np.uint32, np.uint32]:
    """For a whole frame: the factors of its words in s0' and s1', zero for those left out, and F(n-1), F(n), F(n+1)."""
    count = _WORDS_CHECKSUMMED_IN_FRAME_HEADER + page_size // 4
    fibonacci = _fibonacci(count + 1)
    for0, for1 = (np.zeros(_WORDS_IN_FRAME_HEADER + page_size // 4, np.uint32) for _ in range(2))
    covered = np.r_[:_WORDS_CHECKSUMMED_IN_FRAME_HEADER, _WORDS_IN_FRAME_HEADER : len(for0)]
    for0[covered] = fibonacci[count - 1 :: -1]
    for1[covered] = fibonacci[count:0:-1]
    return for0, for1, fibonacci[count - 1], fibonacci[count], fibonacci[count + 1]


def _fibonacci(last: int) -> _Words:
    """F(0) to F(last), modulo 2^32."""
    numbers = [0, 1]
    while len(numbers) <= last:
        numbers.append((numbers[-1] + numbers[-2]) % 2**32)
    return np.array(numbers, np.uint32)


def _stored_checksum(frame: _Words) -> _Checksum:
    stored = _big_endian(frame[4:6])
    return int(stored[0]), int(stored[1])


def _in_order(words: _Words, *, big_endian: bool) -> _Words:
    return words.view(">u4" if big_endian else "<u4").astype(np.uint32, copy=False)


def _big_endian(words: _Words) -> _Words:
    return _in_order(words, big_endian=True)


def _offset(header: WALHeader, frame: int) -> int:
    """Where `frame`, counted from 1, begins in the file."""
    return HEADER_SIZE + (frame - 1) * header.frame_size
