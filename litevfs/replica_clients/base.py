"""The protocol every storage implements: list, read a range, write, delete. Knows LTX file names, not their content.

A client is safe to use from many threads at once. It translates the errors of its library into `StorageError` and its
subclasses, exactly once and with `from`, and never puts a credential into a message, a repr or a log record. It does
not retry: its caller knows what a retry is worth (see `litevfs.files.fetch`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Protocol, runtime_checkable

from litevfs.errors import StorageTimeoutError
from litevfs.ltx.file_info import LEVELS as LEVELS
from litevfs.ltx.file_info import SNAPSHOT_LEVEL as SNAPSHOT_LEVEL
from litevfs.ltx.file_info import LTXFileInfo as LTXFileInfo
from litevfs.replica_clients.descriptors import Descriptor

Take = Callable[[bytes], object]
"""Called with the next bytes of a read."""


@runtime_checkable
class ReplicaClient(Protocol):
    """Access to the LTX files of one replica in one storage."""

    @property
    def url(self) -> str:
        """The replica's URL, without credentials; opening it again gives an equal client."""
        ...

    @property
    def block_size(self) -> int:
        """Bytes worth reading at once: 0 where a small read costs next to nothing (memory, local files)."""
        ...

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """Files of `level` whose own min_txid is at least `min_txid`, by (min_txid, max_txid) ascending.

        Other names are skipped; a level that does not exist is an empty list. Where the storage can, the listing
        *starts* at `min_txid`, so its cost does not grow with history. Raises StorageNotFoundError only when the
        storage itself (the bucket) does not exist; ReplicaFolderNotFoundError when that is a folder which a primary
        would make.
        """
        ...

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """`size` bytes from `offset` on, or all up to the end (None); fewer only where the file ends before.

        At or past the end the answer is empty. Raises StorageNotFoundError when the file is gone, and
        StorageTimeoutError when the read has not ended `timeout_s` seconds from now (at once if that is not above 0).
        A storage whose calls cannot be ended, such as a local disk, checks the time before each of them.
        """
        ...

    def write(
        self,
        level: int,
        min_txid: int,
        max_txid: int,
        data: bytes | BinaryIO,
        timestamp_ms: int,
        *,
        exclusive: bool = False,
    ) -> LTXFileInfo:
        """Store a whole file atomically: readers see all of it or nothing; an existing file is replaced.

        `timestamp_ms` is the header's timestamp, stored as the file's time (file) or metadata (S3). With `exclusive`,
        a file that exists, or that another writer stores meanwhile, stays: raises StorageFileExistsError.
        """
        ...

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """Delete files; one that does not exist is not an error."""
        ...

    def key(self, file: LTXFileInfo) -> str:
        """Where the file lies, as its storage names it (a path or a key), for messages."""
        ...

    def close(self) -> None:
        """Close every socket and descriptor and end calls under way with StorageClosedError. Idempotent."""
        ...


@runtime_checkable
class ReadsNamed(Protocol):
    """An optional part of a client: the read of a file that was not listed, and that may not exist."""

    def read_named(
        self, level: int, min_txid: int, max_txid: int, size: int, *, timeout_s: float | None = None
    ) -> tuple[LTXFileInfo, bytes] | None:
        """The file of that name, and its bytes up to `size`; None if there is none. Makes one request.

        Of the returned file, only `modified_ms` may differ from what a listing shows. Raises
        StoragePermissionError if the storage does not say whether there is one; other errors are those of
        `ReplicaClient.read`.
        """
        ...


@runtime_checkable
class ReadsPieces(Protocol):
    """An optional part of a client: a read whose bytes are of use before all of them have come.

    `litevfs.files.fetch` reads them at once if a client lacks this.
    """

    @property
    def block_size(self) -> int:
        """See `ReplicaClient.block_size`."""
        ...

    def read_pieces(
        self, file: LTXFileInfo, offset: int, size: int, take: Take, *, timeout_s: float | None = None
    ) -> int:
        """Like `ReplicaClient.read`, in one request; but `take` is called with the bytes, in order, as they come.

        The pieces may have any size; the calls are made in this thread. Returns how many bytes there were.

        What `take` got is right, though an error may follow, of the kinds that `read` raises. What `take` raises ends
        the request.
        """
        ...


@runtime_checkable
class ListsLevels(Protocol):
    """An optional part of a client: the files of several levels in one request.

    `litevfs.files.fetch` lists level by level if a client lacks this, or if one answer has no room for all files.
    """

    def list_from(self, level: int, min_txid: int = 1) -> tuple[list[LTXFileInfo], bool]:
        """(files, whether these are all): files of `level` whose own min_txid is at least `min_txid`, and every file of
        the levels above it, by (level, min_txid, max_txid) ascending.

        Makes one request. If one answer has no room for all files (S3: 1,000 names), returns the first of them, and
        False. Errors are those of `ReplicaClient.list_files`.
        """
        ...


@runtime_checkable
class StampsLevels(Protocol):
    """An optional part of a client: whether a level can have changed, for less than a listing of it costs."""

    def stamp(self, level: int) -> object | None:
        """Equal stamps, of which the first was taken before a listing: another listing shows the same names.

        None if that cannot be told now, for example because the level has changed a moment ago. Raises no error.
        """
        ...


@runtime_checkable
class KeepsOpen(Protocol):
    """An optional part of a client: what it has open can be read past it."""

    open_files: Mapping[tuple[int, int, int, str], Descriptor]
    """By (level, min_txid, max_txid, etag). A reader keeps the descriptor for as long as it reads, and marks it `used`.

    An answer that is too short, or an error, is for `ReplicaClient.read` to judge.
    """


@runtime_checkable
class FindsWays(Protocol):
    """An optional part of a client: which deviations of its server the client works around."""

    @property
    def workarounds(self) -> tuple[str, ...]:
        """The deviations found so far and what the client does about each, one text each; for people."""
        ...


@runtime_checkable
class LeavesFolders(Protocol):
    """An optional part of a client whose storage has folders, which stay when their files are deleted."""

    def remove_folder(self) -> None:
        """Remove the replica's folder, and those above it that this client made, if they are empty and the storage
        removes no other. The doctor calls this for the folder of its own, whose files are deleted.
        """
        ...


@runtime_checkable
class ListsFolders(Protocol):
    """An optional part of a client: the names of folders around the replica, for errors that name what is near."""

    @property
    def path(self) -> str:
        """The replica's path in its storage, without a slash at either end; "" is the root."""
        ...

    def list_folders(self, path: str) -> list[str]:
        """The names of the folders directly below such a path, the first thousand or more. Makes one request.

        A path that does not exist has none. Raises StorageError.
        """
        ...

    def place_of(self, path: str) -> str:
        """Such a path as a user would write it."""
        ...


def too_late(file: LTXFileInfo, key: str) -> StorageTimeoutError:
    """The error of a read whose time is over before it begins."""
    return StorageTimeoutError(
        "no time is left for the read", level=file.level, min_txid=file.min_txid, max_txid=file.max_txid, key=key
    )


@dataclass(frozen=True, slots=True)
class SideObject:
    """A small object beside the levels of a replica: a lease, a manifest."""

    data: bytes
    etag: str  # opaque, never empty; differs when the content does


MAX_SIDE_OBJECT_BYTES = 1 << 20
"""A larger object is cut off there: no object that this package knows comes near."""


@runtime_checkable
class SideObjects(Protocol):
    """An optional part of a client: small objects beside the levels, with conditional writes.

    `name` is a plain file name such as `lock.json`. The object lies where Litestream puts it: in the folder (or under
    the prefix) that holds the levels' folders, for a file replica beside `ltx/`. Each read sees the last write that
    was answered.
    """

    @property
    def keeps_conditions(self) -> bool:
        """Whether the storage is known to keep the conditions of `put_object`; False means that only a try can tell."""
        ...

    def read_object(self, name: str) -> SideObject | None:
        """The object, None when there is none. Raises StorageError."""
        ...

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """Store the object in one step, and return its etag.

        With `if_match` only while the object has this etag, with `if_absent` only while there is none; at most one of
        the two is given. Raises StoragePreconditionError if the condition does not hold, ConditionsUnsupportedError if
        the storage answers that it has no such conditions, and StorageError. A storage that ignores them in silence
        stores the object: see `keeps_conditions`.
        """
        ...

    def delete_object(self, name: str) -> None:
        """Delete the object; one that does not exist is not an error."""
        ...
