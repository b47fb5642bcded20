"""The replicator's files beside the database, in the folder `.<database>-litevfs`; they survive any end of the process.

    lock         held by the replicator that runs; its text is that process's number
    state.json   the position: which TXID came last, and where in the WAL the next one begins
    owner.json   the folder's ID (`marks.py`)
    pending/     LTX files that are not yet known to be on the replica

A file is pending first, then `state.json` counts it, then it is uploaded, then it is removed here. So a pending file
beyond `state.json` was never uploaded and is made again, and one that is uploaded twice has the same content.

The files hold pages of the database, so only users who may read the database may read them: as SQLite does for the WAL,
they get the database's permissions and, from root, its owner, in a folder that is the owner's alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from litevfs import local_files
from litevfs.errors import LitevfsError, ReplicatorError, ReplicatorLockedError
from litevfs.ltx.encoder import Encoder
from litevfs.ltx.format import TRAILER_SIZE, Header
from litevfs.ltx.names import format_file_name, parse_file_name
from litevfs.replicate.content import Content
from litevfs.replicate.marks import folder_id, state_folder
from litevfs.replicate.wal import WALPosition

_VERSION = 1
_SPOOL_IN_MEMORY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class State:
    """Where the replicator stands after TXID `txid`."""

    replica_url: str
    inode: int  # of the database file: another file is another database
    page_size: int  # bytes
    txid: int
    timestamp_ms: int  # of that TXID's file
    file_size: int  # bytes of that TXID's file
    file_trailer: str  # and its last 16 bytes, in hex: enough to know it again
    position: WALPosition  # in the WAL, after that TXID


@dataclass(frozen=True, slots=True, order=True)
class PendingFile:
    """One LTX file that waits for its upload. All have one TXID."""

    txid: int
    path: Path


class PendingLimitError(ReplicatorError):
    """The files that wait for their upload have reached the limit."""


class _Access:
    """Makes folders and files that only those can read who can read the database (wal.c has it from findCreateFileMode
    and robustFchown of os_unix.c)."""

    def __init__(self, database: Path) -> None:
        try:
            status = database.stat()
            self._mode = status.st_mode & 0o666 | 0o600
        except FileNotFoundError:  # not restored yet
            status, self._mode = database.parent.stat(), 0o600
        self._owner = (status.st_uid, status.st_gid)

    def make_folder(self, path: Path) -> None:
        path.mkdir(0o700, exist_ok=True)
        with suppress(PermissionError):  # the file has another owner
            path.chmod(0o700)
        self._give(path)

    def open(self, path: str | os.PathLike[str], flags: int) -> int:
        """As the `opener` of `open`."""
        fd = os.open(path, flags | os.O_CLOEXEC, self._mode)
        self._give(fd)
        return fd

    def _give(self, path: Path | int) -> None:
        if os.geteuid() == 0:
            with suppress(OSError):  # SQLite ignores this, too: the process may be the root of a container
                os.chown(path, *self._owner)


class StateFolder:
    """The folder of one database, held exclusively from construction to `close`. Raises ReplicatorLockedError."""

    def __init__(self, database: Path) -> None:
        self.path = state_folder(database)
        self._database = database
        self._pending = self.path / "pending"
        self._state = self.path / "state.json"
        self._lock = self.path / "lock"
        self._lock_fd: int | None = None
        self._lock_pid = 0
        self.id = ""
        """ID that tells this folder from all others, also from copies of it."""
        self.take()

    def take(self) -> None:
        """Make the folder, unless it is there, and hold it. Raises ReplicatorLockedError."""
        self.close()
        with _translated(self.path):
            self._access = _Access(self._database)
            for folder in (self.path, self._pending):
                self._access.make_folder(folder)
            self._lock_fd, self._lock_pid = self._access.open(self._lock, os.O_RDWR | os.O_CREAT), os.getpid()
            try:
                _lock(self._lock_fd, self._database)
                self._remove_leftovers()
                self.id = folder_id(self.path, os.fstat(self._lock_fd), self._access.open)
            except BaseException:
                self.close()
                raise

    def is_held(self) -> bool:
        """Whether the folder at the path is the held one; another program may have removed it and made a new one."""
        if self._lock_fd is None:
            return False
        with _translated(self._lock):
            try:
                return os.path.samestat(self._lock.stat(), os.fstat(self._lock_fd))
            except (FileNotFoundError, NotADirectoryError):
                return False

    def close(self) -> None:
        """Release the lock, so that another replicator may take the folder. Idempotent."""
        fd, self._lock_fd = self._lock_fd, None
        if fd is not None:
            if os.getpid() == self._lock_pid:  # a process forked from this one has the descriptor, too, and keeps it
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def load(self) -> State | None:
        """The state last saved; None when there is none, or it is damaged.

        Pending files that it does not count are removed.
        """
        try:
            fields = json.loads(self._state.read_bytes())
            checksum, version = fields.pop("checksum"), fields.pop("version")
            is_sound = (checksum, version) == (_checksum(fields), _VERSION)
            state = State(**(fields | {"position": WALPosition(**fields["position"])})) if is_sound else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            state = None
        self.discard(file for file in self.pending() if state is None or file.txid > state.txid)
        return state

    def save(self, state: State) -> None:
        """Replace the state; it is on disk when this returns."""
        fields = asdict(state)
        data = json.dumps({"version": _VERSION, "checksum": _checksum(fields), **fields}, indent=1).encode()
        with _translated(self._state):
            temp = self._state.with_suffix(".tmp")
            self._write_synced(temp, [data])
            self._check_held()
            local_files.replace_synced(temp, self._state)

    def reset(self) -> None:
        """Forget everything: the state and the pending files."""
        with _translated(self._state):
            self._state.unlink(missing_ok=True)
            local_files.fsync_folder(self.path)
        self.discard(self.pending())

    def add_pending(self, txid: int, parts: Iterable[bytes]) -> PendingFile:
        """Write one LTX file; when this returns, it is whole and on disk; after an error, it does not exist."""
        target = self._pending / format_file_name(txid, txid)
        temp = target.with_suffix(".tmp")
        with _translated(target), local_files.removing_on_error(temp):
            self._write_synced(temp, parts)
            self._check_held()
            local_files.replace_synced(temp, target)
        return PendingFile(txid, target)

    def spool(self) -> SpooledTemporaryFile[bytes]:
        """A temporary file that has no name, and is in memory as long as it is small."""
        return SpooledTemporaryFile(_SPOOL_IN_MEMORY_BYTES, "w+b", dir=str(self._pending))

    def pending(self) -> list[PendingFile]:
        """The files that wait for their upload, by TXID."""
        with _translated(self._pending):
            try:
                files = [(parse_file_name(path.name), path) for path in self._pending.iterdir()]
            except FileNotFoundError:
                return []
        return sorted(PendingFile(txids[0], path) for txids, path in files if txids)

    def check_room(self, limit: int | None) -> None:
        """Raise PendingLimitError when more than `limit` bytes wait for their upload; None: there is no limit."""
        if limit is not None and (size := self.pending_bytes()) > limit:
            raise PendingLimitError(
                f"{size:,} bytes wait for their upload, more than the {limit:,} allowed, and nothing more is captured",
                key=str(self.path),
                hint="see what keeps uploads from succeeding; the whole database is captured after that",
            )

    def pending_bytes(self) -> int:
        """Bytes of the files that wait for their upload."""
        sizes = []
        for file in self.pending():
            with suppress(FileNotFoundError):  # just uploaded
                sizes.append(file.path.stat().st_size)
        return sum(sizes)

    def discard(self, files: Iterable[PendingFile]) -> None:
        """Remove pending files."""
        for file in files:
            with _translated(file.path):
                file.path.unlink(missing_ok=True)

    def _write_synced(self, path: Path, parts: Iterable[bytes]) -> None:
        with open(path, "wb", opener=self._access.open) as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())

    def _check_held(self) -> None:
        if not self.is_held():
            raise ReplicatorError("the replicator's local state was removed", key=str(self.path))

    def _remove_leftovers(self) -> None:
        for temp in [*self._pending.glob("*.tmp"), *self.path.glob("*.tmp")]:
            temp.unlink(missing_ok=True)


def add_file(
    folder: StateFolder, before: State, content: Content, now_ms: int, between_pages: Callable[[], None]
) -> State:
    """Make `content` the TXID after `before`: the state, saved in `folder` like the file that leads to it.

    `now_ms` is its time, Unix milliseconds, unless that of `before` is later. `between_pages` is called for each page;
    what it raises leaves everything as it was. Raises WALError, ReplicatorError.
    """
    header = Header(
        page_size=content.page_size,
        commit=content.commit,
        min_txid=before.txid + 1,
        max_txid=before.txid + 1,
        timestamp_ms=max(now_ms, before.timestamp_ms),
        wal_offset=content.wal_offset,
        wal_size=content.wal_size,
        wal_salt1=content.end.salt1,
        wal_salt2=content.end.salt2,
    )
    file = folder.add_pending(header.max_txid, _encoded(folder, header, content, between_pages))
    size, trailer = fingerprint(file.path)
    state = replace(
        before,
        txid=header.max_txid,
        timestamp_ms=header.timestamp_ms,
        file_size=size,
        file_trailer=trailer,
        position=content.end,
    )
    folder.save(state)
    return state


def _encoded(
    folder: StateFolder, header: Header, content: Content, between_pages: Callable[[], None]
) -> Iterator[bytes]:
    with folder.spool() as spool:
        encoder = Encoder(header, spool=spool)
        yield encoder.begin()
        for pgno, page in content.pages:
            between_pages()
            yield encoder.page(pgno, page)
        yield from encoder.finish_in_parts()


def fingerprint(path: Path) -> tuple[int, str]:
    """(size in bytes, trailer in hex) of an LTX file."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TRAILER_SIZE))
        return size, file.read().hex()


def _checksum(fields: dict[str, Any]) -> int:
    """Checksum of a state's fields: a wrong digit would make a position, or a time, that seems right."""
    return zlib.crc32(json.dumps(fields).encode())


def _lock(fd: int, database: Path) -> None:
    try:
        local_files.lock(fd)
    except BlockingIOError as exc:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip()
        raise ReplicatorLockedError(
            f"process {owner or 'unknown'} replicates this database already", key=str(database)
        ) from exc
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


@contextmanager
def _translated(path: Path) -> Generator[None]:
    """Turn the system's errors into ReplicatorError."""
    try:
        yield
    except OSError as exc:
        if isinstance(exc, LitevfsError):
            raise
        raise ReplicatorError(
            f"the replicator's local state cannot be kept: {exc.strerror or exc}",
            key=str(path),
            hint="the folder of the database must be writable and have space for the pages of one sync",
        ) from exc
