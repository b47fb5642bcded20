"""What the newest TXID holds, page by page: a sum of each page, in two files of the state folder. Knows no database.

    pages.sums   a header, then 16 bytes a page: the sum of the page in the state of the header's TXID; zeros: unknown
    pages.log    what came after that, a record for each TXID, and for each time that unknown sums were found

Each record names pages and their new sums, which may be unknown. So the files never have to be written over in place,
and a capture of many pages need not compute a sum for each. Once the log is long, both become a new `pages.sums`.

A wrong sum would keep a changed page from the replica, so nothing here is trusted by its name. `pages.sums` has a
checksum; the checksum of each record continues that of the one before, the first that of `pages.sums`; and both say
which TXID they lead to, and its file's size and trailer, as the replicator's state does. The sums count only if the
two agree: what a crash has cut off, a power failure has mixed up, or a copy has put there, counts for nothing.

A record is written before the state that it leads to, and ignored until that is on disk: a killed process loses none.
The log is synced at the end of the process only. What that can cost, after a power failure, is an upload.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from fastcrc.crc64 import go_iso

from litevfs import local_files
from litevfs.errors import ReplicatorError
from litevfs.ltx.format import lock_pgno
from litevfs.replicate.access import Access

logger = logging.getLogger("litevfs.replicate")

SUM_SIZE = 16
"""Bytes. Of SHA-256, so that not even pages that were made for it have the same sum: CRCs are easily made equal."""
UNKNOWN = bytes(SUM_SIZE)
SUMS_NAME, LOG_NAME = "pages.sums", "pages.log"
_MAGIC = b"litevfs pages 1\n"
_FILE = struct.Struct("<QQ16s")  # of an LTX file: TXID, size in bytes, trailer
_HEADER = struct.Struct("<16sII32s")  # magic, page size in bytes, size of the database in pages, `_FILE`
_RECORD = struct.Struct("<32sIII")  # `_FILE`, size of the database in pages, numbers of pages and sums that follow
_CHECKSUM = struct.Struct("<Q")
_SHORTEST_LOG = 1 << 18
_LONGEST_LOG = 16 << 20
"""Bytes at which the log is merged: it is read at each start, and by then has cost less than the sums themselves."""

_Sums = npt.NDArray[np.void]
_SUM = np.dtype((np.void, SUM_SIZE))


@dataclass(frozen=True, slots=True)
class FileKey:
    """Which LTX file a state ends with."""

    txid: int
    size: int  # bytes
    trailer: str  # hex

    def pack(self) -> bytes:
        """The key as it stands in both files."""
        return _FILE.pack(self.txid, self.size, bytes.fromhex(self.trailer))


@dataclass(frozen=True, slots=True)
class _Record:
    key: bytes
    commit: int  # size of the database, pages
    pgnos: npt.NDArray[np.uint32]
    sums: _Sums  # of the first pages; those of the others are unknown
    end: int  # where the record ends in the log, bytes
    checksum: int

    def apply(self, sums: bytearray) -> None:
        """Bring the sums of the state before to this one."""
        size = self.commit * SUM_SIZE
        del sums[size:]
        sums.extend(bytes(size - len(sums)))
        view = np.frombuffer(sums, _SUM)
        at = self.pgnos.astype(np.int64) - 1
        view[at] = np.void(UNKNOWN)
        view[at[: len(self.sums)]] = self.sums
        del view  # so that the array can be resized again


@dataclass(frozen=True, slots=True)
class _Base:
    page_size: int  # bytes
    commit: int  # pages
    key: bytes
    checksum: int
    sums: bytearray


def page_sum(page: bytes | memoryview) -> bytes:
    """The sum of a page."""
    return hashlib.sha256(page).digest()[:SUM_SIZE]


class KnownPages:
    """The sums in `folder`. For one thread at a time.

    A change is made in two steps: `add` or `prepare`, and once the state that it leads to is on disk, `confirm`. When
    the files cannot be written, the sums are given up, and nothing else fails. `is_ours` says whether the folder is
    still held.
    """

    def __init__(self, folder: Path, access: Access, is_ours: Callable[[], bool]) -> None:
        self._sums, self._log = folder / SUMS_NAME, folder / LOG_NAME
        self._access, self._is_ours = access, is_ours
        self._key: bytes | None = None  # of the state whose sums are on disk; None: there are none
        self._page_size = 0
        self.commit = 0
        """Size of the database in the state whose sums are known, pages."""
        self._end, self._checksum = 0, 0  # where the next record goes, and the checksum that it continues
        self._longest = _SHORTEST_LOG  # bytes of the log
        self._added: _Record | None = None  # not confirmed yet
        self._prepared: tuple[bytes, int, int, int] | None = None  # of new sums: key, checksum, page size, commit
        self._is_synced = True
        self._has_warned = False
        self._flags: bytearray | None = None  # a byte a page: whether its sum is known; None: not asked for yet
        self._known_until = 0  # all pages before are known

    # --- reading ------------------------------------------------------------------------------------------------------

    def open(self, key: FileKey | None) -> None:
        """Find the sums of the state that ends with the file `key`, if they are there; None: there is no state."""
        self._set_none()
        if key is None:
            return
        with self._forgiving("read"):
            base = self._read_base(only_header=True)
            if base is not None:
                self._begin(base.key, base.checksum, base.page_size, base.commit)
                for record in self._records():
                    if record.key == key.pack():
                        self._take(record)
            if self._key != key.pack():
                self._set_none()

    def is_at(self, key: FileKey, page_size: int) -> bool:
        """Whether the sums of this state are known, as far as was read."""
        return (self._key, self._page_size) == (key.pack(), page_size)

    def read(self, key: FileKey, page_size: int) -> bytearray | None:
        """The sums of all pages in that state, 16 bytes each; None when they are not known."""
        sums: bytearray | None = None
        if self.is_at(key, page_size):
            with self._forgiving("read"):
                sums = self._merged()
            if sums is None:
                self._set_none()
        return sums

    def _merged(self) -> bytearray | None:
        base = self._read_base()
        if base is None:
            return None
        checksum, sums, at = base.checksum, base.sums, 0
        sums.extend(bytes(base.commit * SUM_SIZE - len(sums)))
        for record in self._records(base.checksum):
            if record.end > self._end:
                break
            record.apply(sums)
            checksum, at = record.checksum, record.end
        return sums if (checksum, at) == (self._checksum, self._end) else None

    def _read_base(self, *, only_header: bool = False) -> _Base | None:
        """The file of sums, if it is sound; with `only_header`, whether it is does not matter yet."""
        try:
            with self._sums.open("rb") as file:
                size = os.fstat(file.fileno()).st_size - _HEADER.size - _CHECKSUM.size
                if size < 0:
                    return None
                header, sums = file.read(_HEADER.size), bytearray(0 if only_header else size)
                file.readinto(sums)
                file.seek(_HEADER.size + size)
                (checksum,) = _CHECKSUM.unpack(file.read(_CHECKSUM.size))
        except FileNotFoundError:
            return None
        magic, page_size, commit, key = _HEADER.unpack(header)
        if magic != _MAGIC or not (only_header or go_iso(sums, go_iso(header)) == checksum):
            return None
        return _Base(page_size, commit, key, checksum, sums)

    def _records(self, checksum: int | None = None) -> Iterator[_Record]:
        """The sound records of the log, from the first on."""
        checksum, at = self._checksum if checksum is None else checksum, 0
        try:
            data = memoryview(self._log.read_bytes())
        except FileNotFoundError:
            return
        while at + _RECORD.size + _CHECKSUM.size <= len(data):
            key, commit, pages, known = _RECORD.unpack_from(data, at)
            pgnos_at = at + _RECORD.size
            sums_at = pgnos_at + 4 * pages
            end = sums_at + SUM_SIZE * known
            if known > pages or end + _CHECKSUM.size > len(data):
                return
            checksum = go_iso(data[at:end], checksum)
            if _CHECKSUM.unpack_from(data, end) != (checksum,):
                return
            pgnos, sums = np.frombuffer(data[pgnos_at:sums_at], "<u4"), np.frombuffer(data[sums_at:end], _SUM)
            at = end + _CHECKSUM.size
            yield _Record(key, commit, pgnos, sums, at, checksum)

    def unknown(self, at_most: int) -> list[int]:
        """Pages whose sums are not known, ascending, so many at most."""
        if self._key is not None and self._flags is None:
            with self._forgiving("read"):
                sums = self._merged()
                self._flags = None if sums is None else _flags(sums, self._page_size)
                self._known_until = 0
        found: list[int] = []
        while self._key is not None and self._flags is not None and len(found) < at_most:
            self._known_until = self._flags.find(0, found[-1] if found else self._known_until)
            if self._known_until < 0:
                self._known_until = len(self._flags)
                break
            found.append(self._known_until + 1)
        if found:
            self._known_until = found[0] - 1
        return found

    # --- writing ------------------------------------------------------------------------------------------------------

    def add(self, key: FileKey, commit: int, pgnos: npt.ArrayLike, sums: bytes) -> None:
        """Note that in the state that ends with the file `key`, and has `commit` pages, these pages have these sums.

        `sums` may have those of the first pages alone.
        """
        self._added = self._prepared = None
        if self._key is None:
            return
        with self._forgiving("written"):
            self._check_ours()
            numbers = np.asarray(pgnos, "<u4")
            head = _RECORD.pack(key.pack(), commit, len(numbers), len(sums) // SUM_SIZE)
            data = b"".join((head, numbers.tobytes(), sums))
            checksum = go_iso(data, self._checksum)
            data += _CHECKSUM.pack(checksum)
            fd = self._open_log()
            try:
                os.lseek(fd, self._end, os.SEEK_SET)
                local_files.write_all(fd, data)
            finally:
                os.close(fd)
            known = np.frombuffer(sums, _SUM)
            self._added = _Record(key.pack(), commit, numbers, known, self._end + len(data), checksum)
            self._is_synced = False

    def prepare(self, key: FileKey, page_size: int, sums: bytes | bytearray, commit: int | None = None) -> None:
        """Put the sums of all pages in that state on disk; of the `commit` pages the last may be left out: unknown."""
        self._added = self._prepared = None
        commit = len(sums) // SUM_SIZE if commit is None else commit
        header = _HEADER.pack(_MAGIC, page_size, commit, key.pack())
        checksum = go_iso(sums, go_iso(header))
        with self._forgiving("written"):
            self._check_ours()
            with local_files.removing_on_error(self._temp):
                self._access.write_synced(self._temp, [header, sums, _CHECKSUM.pack(checksum)])
            self._prepared = key.pack(), checksum, page_size, commit

    def confirm(self) -> None:
        """The state that the last `add` or `prepare` led to is on disk: from here on, its sums count."""
        if self._prepared is not None:
            with self._forgiving("written"):
                self._check_ours()
                local_files.replace_synced(self._temp, self._sums)  # no record of the log continues it
                self._log.unlink(missing_ok=True)
                self._begin(*self._prepared)
        elif self._added is not None:
            self._take(self._added)
            self._flag(self._added)
        else:
            self._set_none()  # it could not be written
        self._added = self._prepared = None

    def merge(self, key: FileKey) -> None:
        """Merge the log into the sums, if it has become long."""
        if self._end > self._longest:
            sums = self.read(key, self._page_size)
            if sums is not None:
                self.prepare(key, self._page_size, sums)
                self.confirm()

    def forget(self) -> None:
        """Remove the sums: another history begins."""
        self._set_none()
        with self._forgiving("removed"):
            self._sums.unlink(missing_ok=True)
            self._log.unlink(missing_ok=True)

    def sync(self) -> None:
        """Have the log on disk."""
        if self._key is not None and not self._is_synced and self._is_ours():
            with self._forgiving("written"):
                fd = self._access.open(self._log, os.O_RDWR)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
                self._is_synced = True

    def _open_log(self) -> int:
        try:
            return os.open(os.fspath(self._log), os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return self._access.open(self._log, os.O_WRONLY | os.O_CREAT)

    @property
    def _temp(self) -> Path:
        return self._sums.with_suffix(".tmp")

    def _flag(self, record: _Record) -> None:
        if self._flags is not None:
            del self._flags[record.commit :]
            self._flags.extend(bytes(record.commit - len(self._flags)))
            flags, at = np.frombuffer(self._flags, np.uint8), record.pgnos.astype(np.int64) - 1
            flags[at], flags[at[: len(record.sums)]] = 0, 1
            self._known_until = 0 if len(at) > len(record.sums) else self._known_until
            self._known_until = min(self._known_until, record.commit)

    def _take(self, record: _Record) -> None:
        self._key, self.commit, self._end, self._checksum = record.key, record.commit, record.end, record.checksum

    def _begin(self, key: bytes, checksum: int, page_size: int, commit: int) -> None:
        self._key, self._checksum, self._page_size, self._end = key, checksum, page_size, 0
        self.commit, self._flags = commit, None
        self._longest = min(max(_SHORTEST_LOG, commit * SUM_SIZE // 4), _LONGEST_LOG)

    def _set_none(self) -> None:
        self._key = self._added = self._prepared = self._flags = None

    def _check_ours(self) -> None:
        if not self._is_ours():
            raise ReplicatorError("the replicator's local state was removed", key=str(self._sums.parent))

    @contextmanager
    def _forgiving(self, what: str) -> Iterator[None]:
        """Give the sums up when the files cannot be used: what is on disk is of an earlier state, or none."""
        try:
            yield
        except (OSError, ReplicatorError) as error:
            self._set_none()
            log = logger.debug if self._has_warned else logger.warning
            log("sums of pages cannot be %s, so the whole database may be uploaded later: %s", what, error)
            self._has_warned = True


def _flags(sums: bytearray, page_size: int) -> bytearray:
    flags = bytearray(np.frombuffer(sums, np.uint64).reshape(-1, SUM_SIZE // 8).any(axis=1).tobytes())
    left_out = lock_pgno(page_size)
    if left_out <= len(flags):
        flags[left_out - 1] = 1
    return flags
