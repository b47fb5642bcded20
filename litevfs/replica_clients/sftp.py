"""Replicas on an SFTP server: `sftp://user@host/path`, files at `path/ltx/<level in decimal>/<name>`.

Source of the layout: Litestream 0.5, `sftp/replica_client.go`: the path is relative to the folder that the user logs
in to, and a file's time, in whole seconds, is the timestamp of its LTX header. The protocol (version 3) gives no finer
time and no number of a file, so an etag is made of time and size: it does not tell a file from a replacement with
the same time and size. Neither litevfs nor Litestream ever writes an LTX file a second time.
"""

from __future__ import annotations

import hashlib
import posixpath
import secrets
import stat
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, BinaryIO

from litevfs.errors import (
    ConditionsUnsupportedError,
    OptionError,
    ReplicaURLError,
    StorageFileExistsError,
    StorageNotFoundError,
)
from litevfs.ltx.names import parse_file_name
from litevfs.replica_clients.base import LEVELS, MAX_SIDE_OBJECT_BYTES, LTXFileInfo, SideObject
from litevfs.replica_clients.http.answers import about
from litevfs.replica_clients.http.uploads import open_stream
from litevfs.replica_clients.layouts import GENERATIONS, OldReplicaCheck
from litevfs.replica_clients.location import parse_location
from litevfs.replica_clients.sftp_connection import Channel, SFTPConnection, SSHTarget, sftp_password

BLOCK_SIZE = 1 << 16
_PIECE_BYTES = 1 << 15  # of an upload
_EXAMPLE = "sftp://user@host/path"


class SFTPReplicaClient:
    """A replica on an SFTP server; the host's key has to be known, or given in the URL.

    Parameters of the URL: `keyPath` (a private key; else the agent's and those in ~/.ssh), `knownHosts` (a file; else
    ~/.ssh/known_hosts), `hostKey` (its type and base64), `absolute=true` (the path begins at the root). A password is
    taken from LITEVFS_SFTP_PASSWORD. `read_timeout_s` bounds each read, listing and piece of an upload.
    """

    block_size = BLOCK_SIZE
    keeps_conditions = False  # the protocol has none

    def __init__(self, url: str, *, read_timeout_s: float = 30.0) -> None:
        self._location = parse_location(
            url,
            example=_EXAMPLE,
            parameters=("keyPath", "knownHosts", "hostKey", "absolute"),
            default_port=22,
            password_from="LITEVFS_SFTP_PASSWORD holds the password",
        )
        if read_timeout_s <= 0:
            raise OptionError(f"read_timeout {read_timeout_s:g} s leaves the server no time", hint="for example 30s")
        if not self._location.user:
            raise ReplicaURLError("an sftp URL without a user", hint=f"for example {_EXAMPLE}")
        options = self._location.parameters
        if options.get("absolute", "false") not in ("true", "false"):
            raise ReplicaURLError("absolute in an sftp URL is neither true nor false")
        self._root = "/" if options.get("absolute") == "true" else ""
        self._timeout_s = read_timeout_s
        self._old = OldReplicaCheck(self._location.url, self._has_old)
        target = SSHTarget(
            self._location.host,
            self._location.port or 22,
            self._location.user,
            sftp_password(),
            options.get("keyPath"),
            options.get("knownHosts"),
            options.get("hostKey"),
        )
        self._connection = SFTPConnection(target, read_timeout_s)
        self._made: list[str] = []  # folders, each after the one that it lies in

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        """The replica's URL, without a password."""
        return self._location.url

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`. Lists the whole folder: the protocol cannot begin within it."""
        return [file for file in self._list([level]) if file.min_txid >= min_txid]

    def list_from(self, level: int, min_txid: int = 1) -> tuple[list[LTXFileInfo], bool]:
        """See `ListsLevels.list_from`. Lists the folders at the same time."""
        files = self._list([other for other in LEVELS if other >= level])
        return [file for file in files if file.level > level or file.min_txid >= min_txid], True

    def _list(self, levels: Sequence[int]) -> list[LTXFileInfo]:
        folders = [self._root + self._location.folder(level) for level in levels]
        with self._connection.channel(folders[0]) as channel:
            entries = channel.requests.list_folders(folders)
        found = []
        for level, own in zip(levels, entries, strict=True):
            for entry in own:
                txids = parse_file_name(entry.name)
                if txids is not None and not stat.S_ISDIR(entry.attributes.st_mode or 0):
                    found.append(_file_info(level, txids, entry.attributes))
        self._old.check(found)
        return sorted(found, key=lambda file: file.place)

    @property
    def path(self) -> str:
        """See `ListsFolders.path`."""
        return self._location.path

    def list_folders(self, path: str) -> list[str]:
        """See `ListsFolders.list_folders`."""
        folder = f"{self._root}{path}" or "."
        with self._connection.channel(folder) as channel:
            entries = channel.requests.list_folders([folder])[0]
        names = (entry.name for entry in entries if stat.S_ISDIR(entry.attributes.st_mode or 0))
        return [name for name in names if name not in (".", "..")]

    def place_of(self, path: str) -> str:
        """See `ListsFolders.place_of`."""
        return replace(self._location, path=path).url

    def _has_old(self) -> bool:
        folder = f"{self._root}{self._location.prefix}{GENERATIONS}"
        with self._connection.channel(folder) as channel:
            return bool(channel.requests.list_folders([folder])[0])

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """See `ReplicaClient.read`. Two round trips, one if an earlier read has left the file open."""
        self._connection.check_open()
        if size == 0:
            return b""
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        key = self.key(file)
        with about(file, key), self._connection.channel(key, deadline) as channel:
            if file.etag and channel.requests.is_open(key):
                read = self._read(channel, file, offset, size, deadline)
                if read is not None:
                    return read
            channel.requests.open(key)
            read = self._read(channel, file, offset, size, deadline)
            if read is None:
                raise StorageNotFoundError("the file was replaced since it was listed")
            return read

    def _read(
        self, channel: Channel, file: LTXFileInfo, offset: int, size: int | None, deadline: float
    ) -> bytes | None:
        """The range of an open file; None if that is another file than was listed."""
        key, at, length = self.key(file), offset, file.size
        end = sys.maxsize if size is None else offset + size
        pieces: list[bytes] = []
        while True:
            channel.limit(deadline)
            count = max(0, min(end, length) - at)
            attributes, piece = channel.requests.read(key, at, count)
            if file.etag and _etag(attributes) != file.etag:
                channel.requests.close(key)
                return None
            pieces.append(piece)
            length = int(attributes.st_size)
            at += len(piece)
            if at >= min(end, length):
                break
            if count and not piece:
                raise StorageNotFoundError("the file is shorter than it was when listed")
        if not file.etag or (offset == 0 and at >= length):  # there is no more of it to read
            channel.requests.close(key)
        return b"".join(pieces)

    def read_named(
        self, level: int, min_txid: int, max_txid: int, size: int, *, timeout_s: float | None = None
    ) -> tuple[LTXFileInfo, bytes] | None:
        """See `ReadsNamed.read_named`. One round trip if there is no such file, two for one that is there."""
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        file = LTXFileInfo(level, min_txid, max_txid, 0, 0)
        key = self.key(file)
        with about(file, key), self._connection.channel(key, deadline) as channel:
            try:
                channel.requests.open(key)
            except FileNotFoundError:
                return None
            attributes, data = channel.requests.read(key, 0, size)
            file = _file_info(level, (min_txid, max_txid), attributes)
            while len(data) < min(size, file.size):
                channel.limit(deadline)
                _, piece = channel.requests.read(key, len(data), min(size, file.size) - len(data))
                if not piece:
                    raise StorageNotFoundError("the file became shorter during the read")
                data += piece
            channel.requests.close(key)
            return file, data

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
        """See `ReplicaClient.write`. A `.tmp` beside the file, on the server's disk, takes its name at the end."""
        file = LTXFileInfo(level, min_txid, max_txid, 0, timestamp_ms)
        key = self.key(file)
        with about(file, key), self._connection.channel(key) as channel:
            attributes = self._store(channel, key, open_stream(data), timestamp_ms // 1000, exclusive=exclusive)
        return _file_info(level, (min_txid, max_txid), attributes)

    def _store(
        self, channel: Channel, key: str, stream: BinaryIO, mtime_s: int | None, *, exclusive: bool = False
    ) -> Any:
        sftp, temporary = channel.sftp, f"{key}.{secrets.token_hex(8)}.tmp"
        try:
            handle = sftp.open(temporary, "wx", bufsize=0)
        except FileNotFoundError:
            self._make_folders(sftp, posixpath.dirname(key))
            handle = sftp.open(temporary, "wx", bufsize=0)
        try:
            with handle:
                handle.set_pipelined(True)
                while piece := stream.read(_PIECE_BYTES):
                    channel.limit(time.monotonic() + self._timeout_s)
                    handle.write(piece)
                handle.set_pipelined(False)
                with suppress(OSError):  # the server does not know it
                    channel.requests.extended("fsync@openssh.com", handle.handle)
            if mtime_s is not None:
                sftp.utime(temporary, (mtime_s, mtime_s))
            attributes = sftp.stat(temporary)
            if exclusive:
                _rename_to_new(sftp, temporary, key)
            else:
                _rename_over(sftp, temporary, key)
                self._connection.close_files()
        except BaseException:
            with suppress(Exception):  # report the first failure
                channel.limit(time.monotonic() + self._timeout_s)
                sftp.remove(temporary)
            raise
        return attributes

    def _make_folders(self, sftp: Any, folder: str) -> None:
        parts = folder.split("/")
        for count in range(1, len(parts) + 1):
            path = "/".join(parts[:count])
            if path:
                with suppress(OSError):  # it exists, or the open that follows raises the error
                    sftp.mkdir(path)
                    self._made.append(path)

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """See `ReplicaClient.delete`. One request a file."""
        self._connection.check_open()
        for file in files:
            key = self.key(file)
            with about(file, key):
                self._delete(key)

    def _delete(self, key: str) -> None:
        with self._connection.channel(key) as channel, suppress(FileNotFoundError):
            channel.sftp.remove(key)
            self._connection.close_files()

    # --- objects beside the levels ------------------------------------------------------------------------------------

    def read_object(self, name: str) -> SideObject | None:
        """See `SideObjects.read_object`."""
        path = f"{self._root}{self._location.prefix}{name}"
        with self._connection.channel(path) as channel:
            try:
                with channel.sftp.open(path, "rb", bufsize=0) as handle:
                    data = handle.read(MAX_SIDE_OBJECT_BYTES)
            except FileNotFoundError:
                return None
        return SideObject(data, _digest(data))

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `SideObjects.put_object`. Raises ConditionsUnsupportedError for any condition."""
        self._connection.check_open()
        path = f"{self._root}{self._location.prefix}{name}"
        if if_absent or if_match is not None:
            raise ConditionsUnsupportedError("SFTP knows no conditional writes", key=path)
        with self._connection.channel(path) as channel:
            self._store(channel, path, open_stream(data), None)
        return _digest(data)

    def delete_object(self, name: str) -> None:
        """See `SideObjects.delete_object`."""
        self._delete(f"{self._root}{self._location.prefix}{name}")

    # --- the rest -----------------------------------------------------------------------------------------------------

    def key(self, file: LTXFileInfo) -> str:
        """The file's path on the server."""
        return self._root + self._location.key(file)

    def remove_folder(self) -> None:
        """See `LeavesFolders.remove_folder`. Removes empty folders only."""
        root = f"{self._root}{self._location.prefix}"
        folders = [self._root + self._location.folder(level) for level in LEVELS]
        with self._connection.channel(root) as channel:
            for folder in (*folders, f"{root}ltx/", root, *reversed(self._made)):
                if folder.strip("/"):
                    with suppress(OSError):  # there is none, or it is not empty
                        channel.sftp.rmdir(folder.rstrip("/"))

    def close(self) -> None:
        """See `ReplicaClient.close`."""
        self._connection.close()


def _rename_to_new(sftp: Any, temporary: str, key: str) -> None:
    """The protocol's own rename, which replaces nothing (draft-ietf-secsh-filexfer-02, 6.5)."""
    try:
        sftp.rename(temporary, key)
    except OSError:
        with suppress(FileNotFoundError):
            sftp.stat(key)
            raise StorageFileExistsError("the file exists") from None
        raise


def _rename_over(sftp: Any, temporary: str, key: str) -> None:
    try:
        sftp.posix_rename(temporary, key)
    except OSError as exc:
        if exc.errno is not None:
            raise
        # A server without OpenSSH's extension: for a moment the file does not exist.
        with suppress(FileNotFoundError):
            sftp.remove(key)
        sftp.rename(temporary, key)


def _file_info(level: int, txids: tuple[int, int], attributes: Any) -> LTXFileInfo:
    return LTXFileInfo(level, *txids, int(attributes.st_size), int(attributes.st_mtime or 0) * 1000, _etag(attributes))


def _etag(attributes: Any) -> str:
    return f"{attributes.st_mtime}-{attributes.st_size}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
