"""The exception tree. Owns every error type of the package; knows nothing of what raises them.

Everything derives from `LitevfsError`. An error that a query can meet carries `extendedresult`, the code that SQLite
reports for it; a binding gives it the parent that the errors of its SQLite library have. Whether a retry may
succeed is a class, `TransientStorageError`, not a text.
"""

from __future__ import annotations

from typing import ClassVar

# SQLite's result codes (https://www.sqlite.org/rescode.html), extended ones included.
_READONLY = 8
_CORRUPT = 11
_CANTOPEN = 14
_IOERR_READ = 10 | 1 << 8
_IOERR_AUTH = 10 | 28 << 8

HINT_READ_ONLY = "a replica is read-only: write to the primary database"
HINT_OTHER_THREAD = "open one connection for each thread: they share the replica's memory"
HINT_FULL = (
    "a replica takes no room: that of sorts and temporary tables (SQLITE_TMPDIR), or of an attached file, is full"
)
"""What a binding appends to errors of its SQLite library, which has words for the fault only."""


_MOST_SHOWN = 200


def shown(value: object) -> str:
    """A value for the text of an error: its repr, cut where it is longer than 200 characters."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - the repr of a foreign class, or of an int of more than 4,300 digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN // 2]}... ({len(text)} characters)"


class LitevfsError(Exception):
    """Base of all errors of this package.

    `level`, `min_txid`, `max_txid` and `key` name the LTX file or the object concerned (None where there is none),
    `hint` says what to do; all of them are part of `str(error)`. `extendedresult` is SQLite's extended result code of
    an error that a query can meet, None of others.
    """

    extendedresult: ClassVar[int | None] = None

    def __init__(
        self,
        message: str,
        *,
        level: int | None = None,
        min_txid: int | None = None,
        max_txid: int | None = None,
        key: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.level = level
        self.min_txid = min_txid
        self.max_txid = max_txid
        self.key = key
        self.hint = hint
        super().__init__(self._render())

    def _render(self) -> str:
        where = []
        if self.level is not None:
            where.append(f"level {self.level}")
        if self.min_txid is not None:
            last = self.min_txid if self.max_txid is None else self.max_txid
            where.append(f"TXIDs {self.min_txid:016x}-{last:016x}")
        if self.key is not None:
            where.append(self.key)
        text = self.message + (f" ({', '.join(where)})" if where else "")
        return text + (f"; hint: {self.hint}" if self.hint else "")

    def __str__(self) -> str:
        return self._render()


# --- requests of a user -----------------------------------------------------------------------------------------------


class OptionError(LitevfsError, ValueError):
    """An option, argument or URI parameter is unknown, or the value of one, or of a variable, is out of range."""

    extendedresult = _CANTOPEN


class ReplicaURLError(OptionError):
    """A replica URL that no client understands, or with a part missing."""


# --- the format -------------------------------------------------------------------------------------------------------


class LTXFormatError(LitevfsError, ValueError):
    """Bytes that are not a valid LTX file, or not the requested part of it."""

    extendedresult = _CORRUPT


class LTXChecksumError(LTXFormatError):
    """A well-formed LTX file whose content does not match a checksum it carries."""


class LTXMissingPagesError(LTXFormatError):
    """An LTX file that makes the database larger and does not hold all of the new pages; so no file holds them."""


# --- storage ----------------------------------------------------------------------------------------------------------


class StorageError(LitevfsError, OSError):
    """A replica client could not do its task. This class itself means that a retry cannot help."""

    extendedresult = _IOERR_READ


class StorageNotFoundError(StorageError, FileNotFoundError):
    """The file, folder, bucket or key does not exist (an LTX file may have been deleted by retention)."""


class ReplicaFolderNotFoundError(StorageNotFoundError):
    """The folder of a replica does not exist (yet): a primary makes it when it first replicates."""


class StorageFileExistsError(StorageError, FileExistsError):
    """A file that was to be new exists already."""


class StoragePreconditionError(StorageError):
    """An object beside the replica is not (or no longer) what a conditional write expects; nothing was written."""


class ConditionsUnsupportedError(StorageError):
    """The storage knows no conditional writes: it refuses them, or its client does not support them."""


class StoragePermissionError(StorageError, PermissionError):
    """The storage refused the credentials or the operation."""

    extendedresult = _IOERR_AUTH


class TransientStorageError(StorageError, ConnectionError):
    """A retry may succeed. `retry_after_s` is the pause in seconds the storage asked for, or None."""

    retry_after_s: float | None = None


class StorageTimeoutError(TransientStorageError, TimeoutError):
    """No answer within the time limit."""


class StorageClosedError(StorageError):
    """The client was closed, possibly while the call was under way."""


# --- replicas ---------------------------------------------------------------------------------------------------------


class ReplicaError(LitevfsError):
    """A replica cannot serve the request."""

    extendedresult = _IOERR_READ


class ReplicaEmptyError(ReplicaError):
    """The replica holds no complete state (yet)."""

    extendedresult = _CANTOPEN


class TXIDGapError(ReplicaError):
    """No file on any level holds the TXIDs `min_txid` to `max_txid`, and later ones exist."""


class TXIDNotFoundError(ReplicaError, LookupError):
    """The requested TXID or time is outside the states that the replica still holds."""

    extendedresult = _CANTOPEN


class SQLiteLibraryError(LitevfsError, RuntimeError):
    """A SQLite library cannot be reached, is too old, or cannot call Python here; `litevfs.dbapi` needs none."""

    extendedresult = _CANTOPEN


class ReplicaReadOnlyError(LitevfsError):
    """A write to a replica. Write to the primary database; databases beside the replica are writable."""

    extendedresult = _READONLY


class PageUnavailableError(ReplicaError):
    """The state a read transaction sees is gone from storage; a new transaction sees a newer state."""


class StaleReplicaError(ReplicaError, TimeoutError):
    """The replica could not be brought up to date within the given time."""


class ResultTypeError(LitevfsError, TypeError):
    """A value of a result does not fit in the type of its column, in a result whose columns all have one type."""


# --- the primary ------------------------------------------------------------------------------------------------------


class ReplicatorError(LitevfsError):
    """The replicator cannot do its work on this database, or not now."""


class ReplicatorLockedError(ReplicatorError):
    """Another replicator runs on this database."""


class ReplicaConflictError(ReplicatorError):
    """The replica holds files that another writer stored while this replicator ran. It overwrites none of them."""


class ReplicatorRefusedError(ReplicatorError):
    """The replicator must not begin until an operator has decided something. Its threads end; see `Replicator.wait`."""


class UnrelatedDatabaseError(ReplicatorRefusedError):
    """The database is not shown to be the newest state of the replica, or to come from it. Nothing was written."""


class ReplicaFormatError(ReplicatorRefusedError):
    """The replica is kept in a form that this version does not write, so it writes no files there."""


class WALError(ReplicatorError):
    """The write-ahead log does not hold what SQLite says it holds."""


# --- restoring -------------------------------------------------------------------------------------------------------


class RestoreError(LitevfsError, OSError):
    """The restored database cannot be written, or fails the requested check."""


class RestoreTargetExistsError(RestoreError, FileExistsError):
    """A file exists at the path of the restored database; only with `force` does a restore replace it."""


# --- a local copy that follows ----------------------------------------------------------------------------------------


class FollowError(LitevfsError, OSError):
    """The local copy of a replica cannot be kept current."""


class FollowTargetError(FollowError):
    """The file to keep current is not, or is no longer, the file that `litevfs.follow` made."""
