"""`<path>-follow`: which state of which replica a followed file holds. Owns that file and the lock on it.

Before a transaction the record names the state before it and the one after it, afterwards only the latter; page 1 of
the database shows which of them is true. So a crash at any moment leaves a record that fits. A record that a power
failure damaged costs a comparison with the whole replica, never a wrong row.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from zlib import crc32

from litevfs.errors import FollowError
from litevfs.local_files import sync_data

RECORD_BYTES = 4096
"""Written in one piece."""


@dataclass(frozen=True, slots=True)
class FollowedState:
    """One state of the file."""

    txid: int
    timestamp_ms: int  # of that state on the replica, milliseconds since the Unix epoch
    header_crc: int  # of the database's first 100 bytes, which hold its change counter
    schema_salt: int = 0  # u32, added to the schema's version: not 0 where the file held another database before
    whole_txid: int = 0  # see `Snapshot`; 0: not known

    def is_of(self, header: bytes) -> bool:
        """Whether a database with these first bytes is in this state."""
        return crc32(header) == self.header_crc


class FollowRecord:
    """The record of one followed file, locked for one follower. Raises FollowError if another follower has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            hint = "make its folder first" if isinstance(error, FileNotFoundError) else None
            raise FollowError(
                f"cannot write beside the database: {error.strerror}", key=str(path), hint=hint
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise FollowError(
                "another process keeps this file current already", key=str(path), hint="end that one first"
            ) from error

    def close(self) -> None:
        """Release the lock; the record stays. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was forked meanwhile may have it open for long
            os.close(fd)

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever saved: a follower that was refused, or killed at its start, has left no state."""
        return os.fstat(self._fd).st_size == 0

    def load(self) -> tuple[str, tuple[FollowedState, ...]] | None:
        """The replica's URL and the states that the file may be in; None if there is no whole record."""
        try:
            record = json.loads(os.pread(self._fd, RECORD_BYTES, 0))
            return str(record["url"]), tuple(
                FollowedState(**(state | {"txid": int(state["txid"], 16)})) for state in record["states"]
            )
        except (ValueError, KeyError, TypeError):
            return None

    def save(self, url: str, *states: FollowedState) -> None:
        """Write the record and put it on the disk. Raises OSError."""
        known = [asdict(state) | {"txid": f"{state.txid:016x}"} for state in states]
        record = json.dumps({"url": url, "txid": known[-1]["txid"], "states": known}, indent=1) + "\n"
        os.pwrite(self._fd, record.encode().ljust(RECORD_BYTES), 0)
        os.ftruncate(self._fd, RECORD_BYTES)
        sync_data(self._fd)
