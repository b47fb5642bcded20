"""The database that is replicated, through SQLite: read transactions that keep the WAL, checkpoints, page reads.

Knows nothing of replicas. Nothing here ever writes to the database but SQLite's own checkpoints.

How a read transaction keeps the WAL (source: SQLite's wal.c, walTryBeginRead, walRestartLog, walCheckpoint). While one
is open, every frame committed after it began stays in the WAL, whichever process checkpoints in whichever mode:

- Begun while frames were not in the database file yet, it holds a read mark above zero. No checkpoint copies frames
  beyond the mark, and the WAL is never started over.
- Begun when all frames were in the database file, it holds read mark zero. The WAL may then be started over, once, and
  what that overwrites was in the database before the transaction began. Nothing is copied out of the WAL any more, so
  it cannot be started over again.

So the chain holds as long as each read transaction ends only after the next one began (`hand_over`), and everything
that the next one does not keep was read from the WAL before. It needs two connections in turn, and a third for
questions and checkpoints, but no table and no write transaction.

Why SQLite reads the database file for us: POSIX locks belong to the process, and closing any descriptor of a file drops
all of them, those of the application included when it runs in this process
(https://www.sqlite.org/howtocorrupt.html, 2.2). So no code here opens the database or its -shm file by itself. For the
same reason two copies of SQLite must not open one database in one process.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw

from litevfs.errors import LitevfsError, ReplicatorError
from litevfs.replicate.source_file import identity, refuse_old_sqlite, refuse_other_sqlite, source_file, warn_of_links
from litevfs.replicate.wal import WALHeader, WALReader

_BUSY_TIMEOUT_MS = 1000
_WRITER_TIMEOUT_MS = 50
_SCHEMA = "SELECT CAST(type AS BLOB), CAST(name AS BLOB), rootpage, CAST(sql AS BLOB) FROM sqlite_schema"
"""Wait for the write lock: its owner may be waiting for our read transaction."""
_BUSY_HINT = "with PRAGMA locking_mode=EXCLUSIVE an application keeps all others from its database, a replicator too"
_READ_ONLY_HINT = (
    "the replicator needs permission to write the database and the files -wal and -shm beside it, "
    "so run it as the user that the application runs as"
)
_MAIN_DB = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READWRITE
_RETRY_PAUSE_S = 0.001
_STATE_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class WALState:
    """What SQLite says about the WAL at one moment."""

    header: WALHeader | None  # of the file; None while nothing was written since the file was emptied
    frames: int  # number of the last frame of the last transaction that readers see; 0 for an empty WAL
    backfilled: int  # up to which frame the database file has everything

    @property
    def is_backfilled(self) -> bool:
        """Whether the database file alone is the newest state, and the next writer may start the WAL over."""
        return self.frames == self.backfilled


class ReadTransaction:
    """One state of the database, for as long as it is open."""

    def __init__(self, connection: apsw.Connection, path: Path, schema_version: int) -> None:
        self._connection = connection
        self._path = path
        self.schema_version = schema_version
        """SQLite counts it up with each change of the schema."""

    def page_count(self) -> int:
        """Size of the database in this state, pages."""
        with translated(self._path):
            return int(_value(self._connection, "PRAGMA page_count"))

    def schema_sum(self) -> str | None:
        """A sum of what the schema says; None when it cannot be read."""
        try:
            rows = self._connection.execute(_SCHEMA).fetchall()
        except apsw.Error:
            return None
        finally:
            self._connection.execute("PRAGMA writable_schema=RESET")  # gives back the memory that SQLite has it in
        return hashlib.sha256(repr(rows).encode()).hexdigest()

    def read_file(self, offset: int, size: int) -> bytes:
        """`size` bytes of the database *file* from `offset`, zeros past its end; does not read the WAL."""
        with translated(self._path):
            return self._connection.read("main", 0, offset, size)[1]


class SourceDatabase:
    """Three connections to one database in WAL mode. Not safe to use from two threads at once.

    Links in `path` are resolved, as SQLite does. `switch_to_wal` switches a database in rollback mode to WAL mode;
    without it, or when that fails, the database is refused. `own_process`: no other SQLite is in this process, which is
    then not looked for. Raises ReplicatorError.
    """

    def __init__(self, path: str | os.PathLike[str], *, switch_to_wal: bool = False, own_process: bool = False) -> None:
        refuse_old_sqlite()
        self.path = Path(path).resolve()
        self.wal_path = self.path.with_name(self.path.name + "-wal")
        file = source_file(self.path)
        self.inode = file.st_ino
        self.switch_to_wal, self.own_process = switch_to_wal, own_process
        warn_of_links(self.path, file)
        if not own_process:
            refuse_other_sqlite(self.path, file)
        self._connections: list[apsw.Connection] = []
        self._file: apsw.VFSFile | None = None  # opened through SQLite, which closes it when that drops no lock
        self._pause = threading.Event()  # never set
        try:
            with translated(self.path, busy_hint=_BUSY_HINT):
                self._held, self._spare, self._admin = (self._connect() for _ in range(3))
                self._file = apsw.VFSFile("", str(self.path), [_MAIN_DB, 0])
                self._admin.set_busy_timeout(0)
                self._check_journal_mode(switch_to_wal)
                for connection in self._connections:
                    # No cache: pages are read past it, and SQLite would set aside room for 20 of them (pcache1.c).
                    connection.execute("PRAGMA cache_size=1; PRAGMA shrink_memory")
                self.page_size = int(_value(self._admin, "PRAGMA page_size"))
                self._check_writable()
            self._files = [identity(file), *self._companions()]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every transaction and close; the WAL stays as it is. Idempotent."""
        if self._file is not None:
            self._file.xClose()
            self._file = None
        while self._connections:
            self._connections.pop().close(True)  # forced: all open statements are ours

    def again(self) -> SourceDatabase:
        """The database that is at the path now, opened as this one was."""
        return SourceDatabase(self.path, switch_to_wal=self.switch_to_wal, own_process=self.own_process)

    def was_replaced(self) -> bool:
        """Whether this is not, or no longer, open on the database at `path`. Raises ReplicatorError when there is none.

        The -wal and -shm files count too: a program that puts another database into the same file removes them. SQLite
        itself never does while a connection in WAL mode is open (wal.c, sqlite3WalClose: only with the file locked
        exclusively). From then on the application uses other files than this object, and no lock separates the two.
        """
        return not self._connections or [identity(source_file(self.path)), *self._companions()] != self._files

    @property
    def written_ns(self) -> int | None:
        """When the file was last written, as it says, nanoseconds since the Unix epoch; None if it is gone.

        Commits leave it alone, checkpoints do not, nor does a copy that is put into the same file.
        """
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return None

    def is_in_place(self) -> bool:
        """Whether `path` still leads to the database that is open here; not, if it leads nowhere."""
        try:
            return not self.was_replaced()
        except ReplicatorError:
            return False

    @contextmanager
    def hand_over(self, *, writer: bool = False) -> Generator[ReadTransaction]:
        """A new read transaction; at the end it takes the place of the held one, which ends only then.

        With an exception the new one ends and the held one stays. `writer` makes the new one hold the write lock too,
        until the next hand-over or `release`.
        """
        new = self._spare
        new.set_busy_timeout(_WRITER_TIMEOUT_MS if writer else _BUSY_TIMEOUT_MS)
        with translated(self.path):
            new.execute("BEGIN IMMEDIATE" if writer else "BEGIN")
        try:
            with translated(self.path):
                version = int(_value(new, "PRAGMA schema_version"))  # BEGIN alone reads nothing, and so holds nothing
            yield ReadTransaction(new, self.path, version)
        except BaseException:
            _rollback(new)
            raise
        self._spare, self._held = self._held, new
        _rollback(self._spare)

    def release(self) -> None:
        """End the held transaction, if any: from here on the WAL may change in any way."""
        if self._connections:
            with translated(self.path):
                _rollback(self._held)

    def open_wal(self) -> WALReader:
        """Read the WAL through SQLite, which has it open: also when its name was removed."""
        return WALReader(self.wal_path, read=lambda size, offset: self._admin.read("main", 1, offset, size)[1])

    def wal_state(self, wal: WALReader) -> WALState:
        """The WAL as readers see it now. Frames that are in the file but not visible to readers do not count."""
        header, counts = wal.header(), self.wal_counts()
        for _ in range(_STATE_ATTEMPTS):
            header_after, counts_after = wal.header(), self.wal_counts()
            # SQLite reads its two counts one after the other. Both only grow, unless the WAL is started over meanwhile.
            if header == header_after and all(n <= m for n, m in zip(counts, counts_after, strict=True)):
                return WALState(header, *counts)
            header, counts = header_after, counts_after
        raise ReplicatorError("the WAL is started over all the time", key=str(self.wal_path))

    def wal_counts(self) -> tuple[int, int]:
        """(frames, backfilled) of `WALState` as SQLite reads them, one after the other: no more than a hint."""
        deadline = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
        while True:
            counts = self._checkpoint("NOOP")
            if counts is not None:
                return counts
            if time.monotonic() > deadline:
                raise ReplicatorError("SQLite does not say how far the WAL goes", key=str(self.path))
            self._pause.wait(_RETRY_PAUSE_S)

    def is_kept_from_writing(self) -> bool:
        """Whether a checkpoint holds writers off: another connection has the checkpoint lock and the write lock.

        This tries the locks in this order, so that it never blocks a writer that does not wait for locks. It copies
        frames as `checkpoint` does.
        """
        if self._checkpoint("PASSIVE") is not None:
            return False
        self._spare.set_busy_timeout(0)
        with translated(self.path):
            try:
                self._spare.execute("BEGIN IMMEDIATE")
            except apsw.BusyError:
                return True
            finally:
                _rollback(self._spare)
        return False

    def is_checkpointed(self) -> bool:
        """Whether another connection checkpoints at this moment. This copies frames as `checkpoint` does."""
        return self._checkpoint("PASSIVE") is None

    def checkpoint(self, *, truncate: bool = False, wait: bool = False) -> None:
        """Copy into the database file the frames that need no wait for a reader or writer, which may be none.

        `truncate` shortens the WAL file to nothing as well, if no reader uses it. `wait` waits for another
        checkpoint, which an application tries at each commit while the WAL is large; without it, this does nothing
        then.
        """
        deadline = time.monotonic() + (_BUSY_TIMEOUT_MS / 1000 if wait else 0.0)
        while self._checkpoint("TRUNCATE" if truncate else "PASSIVE") is None and time.monotonic() < deadline:
            self._pause.wait(_RETRY_PAUSE_S)

    def flush(self) -> None:
        """Have the system put the database file on disk, as far as it is written.

        A checkpoint that copies everything does so at its end; our own checkpoint then holds writers off.
        """
        assert self._file is not None
        with translated(self.path):
            self._file.xSync(apsw.SQLITE_SYNC_NORMAL)

    def _checkpoint(self, mode: str) -> tuple[int, int] | None:
        """(frames, backfilled); None when SQLite was busy: it gives up when it meets a commit just being published.

        Raises ReplicatorError if the application uses other files by now: our frames may not be that database's.
        """
        if mode != "NOOP" and self.was_replaced():
            raise ReplicatorError("the database was replaced while it was replicated", key=str(self.path))
        with translated(self.path):
            _, frames, backfilled = self._admin.execute(f"PRAGMA wal_checkpoint({mode})").get
        return None if frames < 0 else (frames, backfilled)

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._connections.append(connection)
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # the position in the WAL outlives us
        return connection

    def _check_journal_mode(self, switch_to_wal: bool) -> None:
        pragma = "PRAGMA journal_mode=WAL" if switch_to_wal else "PRAGMA journal_mode"
        mode = _value(self._held, pragma)
        if mode != "wal":
            raise ReplicatorError(
                f"the database is in journal mode {mode!r}, only databases in WAL mode can be replicated",
                key=str(self.path),
                hint=f"run: {shlex.join(['sqlite3', str(self.path), 'PRAGMA journal_mode=WAL'])}, "
                "or let the replicator do it with --wal",
            )

    def _check_writable(self) -> None:
        """Raise ReplicatorError where SQLite opened any of the three files only for reading."""
        if self._admin.readonly("main"):
            raise apsw.ReadOnlyError("attempt to write a readonly database")
        self.wal_counts()  # SQLite's own such error when it is one of the others

    def _companions(self) -> list[tuple[int, int] | None]:
        """Which files -wal and -shm are now; None for a missing one."""
        found: list[tuple[int, int] | None] = []
        for suffix in ("-wal", "-shm"):
            try:
                found.append(identity(os.stat(f"{self.path}{suffix}")))  # noqa: PTH116 - each capture asks
            except OSError:
                found.append(None)
        return found


@contextmanager
def translated(path: Path, *, busy_hint: str | None = None) -> Generator[None]:
    """Turn SQLite's errors and the system's into ReplicatorError."""
    try:
        yield
    except (apsw.Error, OSError) as exc:
        if isinstance(exc, LitevfsError):
            raise
        text = f"SQLite: {exc}" if isinstance(exc, apsw.Error) else exc.strerror or str(exc)
        hint = _READ_ONLY_HINT if isinstance(exc, apsw.ReadOnlyError) else None
        if isinstance(exc, apsw.BusyError):
            hint = busy_hint
        raise ReplicatorError(text, key=str(path), hint=hint) from exc


def _value(connection: apsw.Connection, pragma: str) -> str | int:
    value: str | int = connection.execute(pragma).get
    return value


def _rollback(connection: apsw.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")
