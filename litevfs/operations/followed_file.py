"""The database file of a follower: its state, and the step to the next whole state. Knows no replica.

Owns the file, its record (`follow_record`), the check that no other program wrote to it, and page 1 as an ordinary
rollback-journal database whose change counter grows with each state, so that readers notice. `page_transaction`
replaces the pages.
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from zlib import crc32

import apsw
import numpy as np

from litevfs.errors import FollowError, FollowTargetError, LitevfsError
from litevfs.operations.follow_record import FollowedState, FollowRecord
from litevfs.operations.page_transaction import DatabaseFile, ReadersInTheWayError, page_size_of
from litevfs.pages.page_one import JOURNAL_VERSIONS, as_rollback_journal
from litevfs.states.snapshot import Snapshot

RECORD_SUFFIX = "-follow"
TEMPORARY_SUFFIX = "-following"
"""Suffix of the file that becomes the database once its first state is whole."""
LOCK_TIMEOUT_S = 10.0
"""How long one step waits for readers; then it pauses for a while."""
MEMORY_BYTES = 16_000_000
"""Changed pages beyond these wait in a temporary file."""
_EMPTY = FollowedState(txid=0, timestamp_ms=0, header_crc=crc32(b""))


class FollowedFile:
    """The file at `path`, locked for one follower of the replica at `url`.

    Raises FollowTargetError when the path is another database (unless `overwrite`), FollowError when it cannot be used.
    """

    def __init__(self, path: Path, url: str, *, overwrite: bool = False) -> None:
        self.path = path
        self.url = url
        self.state = _EMPTY  # TXID 0: not known
        self._schema_salt = 0
        self._record = FollowRecord(path.with_name(path.name + RECORD_SUFFIX))
        self._database: DatabaseFile | None = None
        try:
            if self._is_taken():
                self._open_existing(overwrite=overwrite)
            else:
                self._begin_new()
        except BaseException:
            self.close()
            raise

    @property
    def database(self) -> DatabaseFile:
        """The open file. Raises FollowError when this was closed."""
        if self._database is None:
            raise FollowError("this follower is closed", key=str(self.path))
        return self._database

    @property
    def page_size(self) -> int:
        """Bytes of a page; 0 of an empty file."""
        return page_size_of(self.database.header)

    def close(self) -> None:
        """Close the file; it stays, unless it never got a whole state. Idempotent."""
        if (database := self._database) is not None:
            self._database = None
            database.close()
            if database.path != self.path:
                database.path.unlink(missing_ok=True)
        self._record.close()

    def _is_taken(self) -> bool:
        """Whether a database lies at the path; an empty file, as container mounts make them, is none."""
        if self.path.exists() and not self.path.is_file():
            raise FollowTargetError("neither a file nor free", key=str(self.path), hint="give the path of a file")
        is_taken = self.path.exists() and self.path.stat().st_size > 0
        for suffix in ("-wal", "-journal"):
            companion = self.path.with_name(self.path.name + suffix)
            if companion.exists() and not is_taken:
                raise FollowTargetError(
                    "a log without its database, which SQLite would apply", key=str(companion), hint="move it away"
                )
        return is_taken

    def _begin_new(self) -> None:
        """Make a file that gets its name with its first state: it exists whole or not at all."""
        temporary = self.path.with_name(self.path.name + TEMPORARY_SUFFIX)
        with _translated(self.path):
            for leftover in (temporary, temporary.with_name(temporary.name + "-journal")):
                leftover.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            self._database = DatabaseFile(temporary)

    def _open_existing(self, *, overwrite: bool) -> None:
        with _translated(self.path):
            self._database = database = DatabaseFile(self.path)
        self.recover()
        header = database.header
        _check_is_ordinary(self.path, header)
        followed = self._record.load()
        url, states = followed or ("", ())
        match = next((state for state in states if url == self.url and state.is_of(header)), None)
        is_torn = followed is None and not self._record.is_new
        if match is None and not (overwrite or is_torn):
            raise _not_ours(self.path, url, self.url)
        self.state = match or FollowedState(txid=0, timestamp_ms=0, header_crc=crc32(header))
        self._schema_salt = self.state.schema_salt

    def recover(self) -> None:
        """Roll back a transaction that a crash or a full disk left half written. Raises FollowError if that fails."""
        database = self.database
        if not database.journal_path.exists():
            return
        try:
            connection = apsw.Connection(str(database.path), flags=apsw.SQLITE_OPEN_READWRITE)
            try:
                connection.set_busy_timeout(int(LOCK_TIMEOUT_S * 1000))
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            finally:
                connection.close()
        except apsw.Error as error:
            raise FollowError(f"the database cannot be recovered: {error}", key=str(database.path)) from error

    def begin_other_database(self) -> None:
        """Note that the next state is no later one of the file's: equal schema versions may be other schemas."""
        if self.database.size:
            self._schema_salt = secrets.randbits(32) | 1

    def first_page(self, page: bytes, commit: int) -> bytes:
        """Page 1 of an ordinary rollback-journal database of `commit` pages; differs from the file's page 1."""
        counter = int.from_bytes(self.database.header[24:28], "big") + 1
        return as_rollback_journal(page, counter, commit, self._schema_salt)

    def replace(self, pages: PageSpool, snapshot: Snapshot) -> None:
        """Put `pages` into the file and make it as long as the database, in one transaction: the state `snapshot`.

        Raises FollowTargetError if another program wrote to the file, FollowError if readers or the disk prevent the
        write; the file then still holds its state, or a journal that restores it (`recover`).
        """
        database = self.database
        crc, commit = crc32(pages.header), snapshot.commit
        new = FollowedState(snapshot.txid, snapshot.timestamp_ms, crc, self._schema_salt, snapshot.whole_txid)
        with _translated(self.path):
            try:
                with database.reserved(LOCK_TIMEOUT_S):
                    self._check_untouched()
                    self._record.save(self.url, self.state, new)
                    database.replace_pages(pages.in_order, pages.page_size, commit, timeout_s=LOCK_TIMEOUT_S)
                    self.state = new
            except ReadersInTheWayError:
                raise FollowError(
                    f"readers have held the database for {LOCK_TIMEOUT_S:g} s",
                    key=str(self.path),
                    hint="it is brought up to date when they end their transactions",
                ) from None
            self._record.save(self.url, new)
            if database.path != self.path:
                self._publish(database)

    def _publish(self, database: DatabaseFile) -> None:
        if self._is_taken():
            raise FollowTargetError("another program has made the database meanwhile", key=str(self.path))
        database.rename(self.path)

    def _check_untouched(self) -> None:
        database = self.database
        if database.was_replaced or not self.state.is_of(database.header):
            raise FollowTargetError(
                "the database was written by another program, or replaced",
                key=str(self.path),
                hint="it is a copy, for readers only: move it away and follow to a new file",
            )


class PageSpool:
    """Changed pages on their way into a file, in memory up to a limit. A context manager."""

    def __init__(self, page_size: int, folder: Path) -> None:
        self.page_size = page_size  # bytes
        self._folder = folder
        self.header = b""  # the first 100 bytes of page 1
        self._pgnos: list[int] = []
        self._spool = tempfile.SpooledTemporaryFile(MEMORY_BYTES, dir=str(folder))  # noqa: SIM115 (closed by `__exit__`)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what a full disk has not taken is of no use any more
            self._spool.close()

    def __len__(self) -> int:
        return len(self._pgnos)

    def add(self, pgno: int, page: bytes) -> None:
        """Keep a page; call this once for each page."""
        if pgno == 1:
            self.header = page[:100]
        with _translated(self._folder, "the pages to be written"):
            self._spool.write(page)
        self._pgnos.append(pgno)

    def in_order(self) -> Iterator[tuple[int, bytes]]:
        """(pgno, content), ascending; the same at each call."""
        for place in np.argsort(np.array(self._pgnos, np.int64)).tolist():
            self._spool.seek(place * self.page_size)
            yield self._pgnos[place], self._spool.read(self.page_size)


@contextmanager
def _translated(path: Path, what: str = "the database") -> Iterator[None]:
    try:
        yield
    except LitevfsError:
        raise
    except OSError as error:
        hint = "free disk space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        raise FollowError(f"cannot write {what}: {error.strerror or error}", key=str(path), hint=hint) from error


def _check_is_ordinary(path: Path, header: bytes) -> None:
    if not page_size_of(header):
        raise FollowTargetError("this is no SQLite database", key=str(path), hint="follow to another file")
    wal = path.with_name(path.name + "-wal")
    if header[18:20] != JOURNAL_VERSIONS or wal.exists():
        raise FollowTargetError(
            "this database is in WAL mode", key=str(path), hint="move it away with its -wal, or follow to another file"
        )


def _not_ours(path: Path, followed_url: str, url: str) -> FollowTargetError:
    if not followed_url:
        what = "there is a database that litevfs did not make"
    elif followed_url != url:
        what = f"this file follows {followed_url}"
    else:
        what = "the database was written by another program since it was followed"
    return FollowTargetError(
        what, key=str(path), hint="move it away, or let it be overwritten: --force, in Python overwrite=True"
    )
