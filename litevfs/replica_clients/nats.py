"""Replicas in a NATS object store: `nats://host/bucket`, objects named `ltx/<level in decimal>/<name>`.

Source of the layout: Litestream 0.5, `nats/replica_client.go`; of the object store: NATS architecture decision 20. An
object is a message that describes it (its name, size and the `nuid` of its content) and messages with pieces of it, of
any sizes. Owns these messages, and the known places of the pieces of a large object, so that it can read a part of it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import threading
import time
import uuid
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO

from litevfs.concurrency.clock import deadline_in
from litevfs.errors import (
    OptionError,
    ReplicaURLError,
    StorageError,
    StorageFileExistsError,
    StorageNotFoundError,
    StoragePreconditionError,
)
from litevfs.ltx.names import format_file_name
from litevfs.replica_clients.base import MAX_SIDE_OBJECT_BYTES, LTXFileInfo, SideObject
from litevfs.replica_clients.http.answers import about
from litevfs.replica_clients.http.uploads import open_stream, read_part
from litevfs.replica_clients.location import parse_location
from litevfs.replica_clients.nats_connection import WRONG_SEQUENCE, NATSConnection, NATSTarget
from litevfs.replica_clients.nats_listing import NATSListing
from litevfs.replica_clients.nats_messages import Described, Pieces, fields_of, first_of
from litevfs.replica_clients.times import iso_ms, rfc3339

CHUNK_BYTES = 128 << 10
"""Size of a piece of a new object, as NATS' own libraries choose it, and of a read that is worth one request."""
_AT_ONCE = 16  # messages under way
_MAX_MAPS = 64  # large objects whose pieces are known
Acknowledged = tuple["asyncio.Future[Any]", "asyncio.Future[None]"]
"""A published piece: its acknowledgement, and what is done once its connection has ended."""
_EXAMPLE = "nats://user@host/bucket"


class NATSReplicaClient:
    """A replica in an object store that exists already (`nats object add BUCKET`), as Litestream demands it.

    Parameters of the URL: `creds` (a file of credentials), `tls=true`. The password of the URL's user is
    LITEVFS_NATS_PASSWORD, a token LITEVFS_NATS_TOKEN. `read_timeout_s` bounds each call.
    """

    block_size = CHUNK_BYTES
    keeps_conditions = True

    def __init__(self, url: str, *, read_timeout_s: float = 30.0) -> None:
        self._location = parse_location(
            url,
            example=_EXAMPLE,
            parameters=("creds", "tls"),
            default_port=4222,
            password_from="LITEVFS_NATS_PASSWORD holds the password, LITEVFS_NATS_TOKEN a token",
        )
        if read_timeout_s <= 0:
            raise OptionError(f"read_timeout {read_timeout_s:g} s leaves the server no time", hint="for example 30s")
        self._bucket, _, path = self._location.path.partition("/")
        if not self._bucket:
            raise ReplicaURLError("a nats URL without a bucket", hint=f"for example {_EXAMPLE}")
        if self._location.parameters.get("tls", "false") not in ("true", "false"):
            raise ReplicaURLError("tls in a nats URL is neither true nor false")
        self._prefix = f"{path}/" if path else ""
        self._timeout_s = read_timeout_s
        self._maps: dict[str, Pieces] = {}
        self._lock = threading.Lock()  # guards the maps
        target = NATSTarget(
            f"{self._location.host}:{self._location.port or 4222}",
            self._location.user,
            os.environ.get("LITEVFS_NATS_PASSWORD", ""),
            "" if self._location.user else os.environ.get("LITEVFS_NATS_TOKEN", ""),
            self._location.parameters.get("creds", ""),
            self._location.parameters.get("tls") == "true",
        )
        self._connection = NATSConnection(target, read_timeout_s)
        self._listing = NATSListing(self._bucket, self._prefix, read_timeout_s)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        """The replica's URL, without a password."""
        return self._location.url

    # --- listing ------------------------------------------------------------------------------------------------------

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """See `ReplicaClient.list_files`. The first listing is of all objects, of every level, and the later ones of
        what was stored since: one request if that is nothing.
        """
        found = self._connection.call(self._bucket, self._listing.list_files)
        return [file for file in found if file.level == level and file.min_txid >= min_txid]

    def list_from(self, level: int, min_txid: int = 1) -> tuple[list[LTXFileInfo], bool]:
        """See `ListsLevels.list_from`."""
        found = self._connection.call(self._bucket, self._listing.list_files)
        wanted = [f for f in found if f.level > level or (f.level == level and f.min_txid >= min_txid)]
        return wanted, True

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(
        self, file: LTXFileInfo, offset: int = 0, size: int | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """See `ReplicaClient.read`. One request for an object of one piece; of a larger one the pieces are looked up
        once, and the needed ones are requested at the same time.
        """
        self._connection.check_open()
        if size == 0:
            return b""
        deadline = deadline_in(timeout_s)
        key = self.key(file)
        with about(file, key):
            try:
                return self._connection.call(key, lambda js: self._read(js, file, offset, size), deadline)
            except StorageNotFoundError:
                self._listing.known = None  # a file that is listed is gone without a mark: list all the next time
                raise

    def read_named(
        self, level: int, min_txid: int, max_txid: int, size: int, *, timeout_s: float | None = None
    ) -> tuple[LTXFileInfo, bytes] | None:
        """See `ReadsNamed.read_named`. One request if there is no such object; one more for the content."""
        deadline = deadline_in(timeout_s)
        file = LTXFileInfo(level, min_txid, max_txid, 0, 0)
        key = self.key(file)

        async def read(js: Any) -> tuple[LTXFileInfo, bytes] | None:
            described = await self._newest(js, key)
            found = (
                None
                if described is None
                else self._listing.file_of(described, iso_ms(str(described.fields.get("mtime"))))
            )
            return None if found is None else (found, await self._read(js, found, 0, size) if found.size else b"")

        with about(file, key):
            return self._connection.call(key, read, deadline)

    async def _read(self, js: Any, file: LTXFileInfo, offset: int, size: int | None) -> bytes:
        nuid, length = file.etag, file.size
        if not nuid:
            described = await self._described(js, self.key(file))
            nuid, length = described.nuid, int(described.fields.get("size", 0))
        end = length if size is None else min(length, offset + size)
        if offset >= end:
            if length == 0:
                await self._described(js, self.key(file))
            return b""
        pieces = self._maps.get(nuid)
        if pieces is None:
            first = await self._message(js, seq=1, subject=self._content(nuid), next=True)
            if len(first.data or b"") == length:
                return bytes(first.data[offset:end])
            pieces = await self._look_up(js, nuid)
            if pieces.starts[-1] != length:
                raise StorageNotFoundError("the object was replaced since it was listed")
            with self._lock:
                while len(self._maps) >= _MAX_MAPS:
                    self._maps.pop(next(iter(self._maps)))
                self._maps[nuid] = pieces
        first_piece, last_piece = bisect_right(pieces.starts, offset) - 1, bisect_right(pieces.starts, end - 1)
        data = []
        for start in range(first_piece, last_piece, _AT_ONCE):
            wanted = pieces.sequences[start : min(last_piece, start + _AT_ONCE)]
            messages = await asyncio.gather(*(self._message(js, seq=sequence) for sequence in wanted))
            data += [message.data for message in messages]
        skip = offset - pieces.starts[first_piece]
        return b"".join(data)[skip : skip + end - offset]

    async def _look_up(self, js: Any, nuid: str) -> Pieces:
        """Where the pieces of an object are; the server tells their sizes without sending them."""
        sequences, starts = [], [0]
        options = {"stream": self._stream, "ordered_consumer": True, "headers_only": True}
        subscription = await js.subscribe(self._content(nuid), **options)
        try:
            left = 1
            while left:
                message = await subscription.next_msg(timeout=self._timeout_s)
                sequences.append(message.metadata.sequence.stream)
                starts.append(starts[-1] + int(message.headers["Nats-Msg-Size"]))
                left = message.metadata.num_pending
        finally:
            await subscription.unsubscribe()
        return Pieces(sequences, starts)

    async def _message(self, js: Any, **which: Any) -> Any:
        return await js.get_msg(self._stream, direct=True, **which)

    async def _described(self, js: Any, name: str) -> Described:
        """The description of an object that exists. Raises nats-py's NotFoundError."""
        described = await self._newest(js, name)
        if described is None or described.is_deleted:
            raise StorageNotFoundError("no such object")
        return described

    async def _newest(self, js: Any, name: str) -> Described | None:
        from nats.js.errors import NotFoundError

        try:
            message = await self._message(js, subject=self._description(name))
        except NotFoundError:
            return None
        return Described(int(message.seq), fields_of(message.data))

    # --- writing ------------------------------------------------------------------------------------------------------

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
        """See `ReplicaClient.write`. The object exists once its description is stored, after all its pieces."""
        self._connection.check_open()
        file = LTXFileInfo(level, min_txid, max_txid, 0, timestamp_ms)
        key = self.key(file)
        headers = {"Litestream-Timestamp": [rfc3339(timestamp_ms)]}
        with about(file, key):
            try:
                size, nuid, _ = self._store(key, open_stream(data), headers, expected=0 if exclusive else None)
            except StoragePreconditionError as exc:
                raise StorageFileExistsError("the object exists") from exc
        return LTXFileInfo(level, min_txid, max_txid, size, int(time.time() * 1000), nuid)

    def _store(
        self, name: str, stream: BinaryIO, headers: dict[str, list[str]], *, expected: int | None
    ) -> tuple[int, str, int]:
        """(size, nuid, sequence number) of a new object. `expected` is the number of the one it replaces, or 0.

        Raises StoragePreconditionError if another number is found.
        """
        before = self._connection.call(name, lambda js: self._newest(js, name))
        there = 0 if before is None or before.is_deleted else before.sequence
        if expected is not None and expected != there:
            raise StoragePreconditionError("the object is another", key=name)
        nuid, digest, size, chunks = uuid.uuid4().hex, hashlib.sha256(), 0, 0
        try:
            acknowledged: list[Acknowledged] = []
            while piece := read_part(stream, CHUNK_BYTES):
                digest.update(piece)
                size, chunks = size + len(piece), chunks + 1
                self._connection.call(name, partial(self._publish, nuid, piece, acknowledged))
            self._connection.call(name, lambda js: self._all_of(nuid, acknowledged))
            fields = {
                "name": name,
                "headers": headers,
                "options": {"max_chunk_size": CHUNK_BYTES},
                "bucket": self._bucket,
                "nuid": nuid,
                "size": size,
                "mtime": rfc3339(int(time.time() * 1000)),
                "chunks": chunks,
                "digest": f"SHA-256={base64.urlsafe_b64encode(digest.digest()).decode()}",
            }
            condition = None if expected is None else before.sequence if before else 0
            sequence = self._connection.call(name, lambda js: self._describe(js, name, fields, condition))
        except BaseException:
            with suppress(StorageError):  # report the first failure
                self._purge(name, nuid)
            raise
        if before is not None and before.nuid:
            with suppress(StorageError):  # left pieces only take room: no reader finds them
                self._purge(name, before.nuid)
        return size, nuid, sequence

    async def _publish(self, nuid: str, piece: bytes, acknowledged: list[Acknowledged], js: Any) -> None:
        future = await js.publish_async(self._content(nuid), piece, stream=self._stream)
        acknowledged.append((future, self._connection.lost))
        if len(acknowledged) >= _AT_ONCE:
            await first_of(*acknowledged.pop(0))

    async def _all_of(self, nuid: str, acknowledged: list[Acknowledged]) -> None:
        self._connection.wait_for_subject(self._content(nuid))
        while acknowledged:
            await first_of(*acknowledged.pop(0))

    async def _describe(self, js: Any, name: str, fields: dict[str, Any], expected: int | None) -> int:
        from nats.js.errors import APIError

        headers = {"Nats-Rollup": "sub"}  # the message replaces the one before
        if expected is not None:
            headers["Nats-Expected-Last-Subject-Sequence"] = str(expected)
        body = json.dumps(fields, separators=(",", ":")).encode()
        try:
            stored = await js.publish(self._description(name), body, stream=self._stream, headers=headers)
        except APIError as exc:
            if exc.err_code == WRONG_SEQUENCE:
                raise StoragePreconditionError("the object is another", key=name) from exc
            raise
        return int(stored.seq)

    def _purge(self, name: str, nuid: str) -> None:
        self._connection.call(name, lambda js: js.purge_stream(self._stream, subject=self._content(nuid)))

    def delete(self, files: Iterable[LTXFileInfo]) -> None:
        """See `ReplicaClient.delete`. Three requests a file."""
        self._connection.check_open()
        for file in files:
            with about(file, self.key(file)):
                self._delete(self.key(file))

    def _delete(self, name: str) -> None:
        before = self._connection.call(name, lambda js: self._newest(js, name))
        if before is None or before.is_deleted:
            return
        fields = {**before.fields, "deleted": True, "size": 0, "chunks": 0, "digest": ""}
        self._connection.call(name, lambda js: self._describe(js, name, fields, None))
        self._purge(name, before.nuid)

    # --- objects beside the levels ------------------------------------------------------------------------------------

    def read_object(self, name: str) -> SideObject | None:
        """See `SideObjects.read_object`. Its etag is the number of the message that describes it."""
        key = f"{self._prefix}{name}"
        described = self._connection.call(key, lambda js: self._newest(js, key))
        if described is None or described.is_deleted:
            return None
        size = int(described.fields.get("size", 0))
        content = LTXFileInfo(0, 1, 1, size, 0, described.nuid)
        data = self._connection.call(key, lambda js: self._read(js, content, 0, MAX_SIDE_OBJECT_BYTES)) if size else b""
        return SideObject(data, str(described.sequence))

    def put_object(self, name: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `SideObjects.put_object`."""
        if if_match is not None and not if_match.isdecimal():  # an etag of another storage
            raise StoragePreconditionError("the object is another", key=f"{self._prefix}{name}")
        expected = 0 if if_absent else None if if_match is None else int(if_match)
        return str(self._store(f"{self._prefix}{name}", open_stream(data), {}, expected=expected)[2])

    def delete_object(self, name: str) -> None:
        """See `SideObjects.delete_object`."""
        self._delete(f"{self._prefix}{name}")

    # --- the rest -----------------------------------------------------------------------------------------------------

    def key(self, file: LTXFileInfo) -> str:
        """The object's name in the bucket."""
        return f"{self._prefix}ltx/{file.level}/{format_file_name(file.min_txid, file.max_txid)}"

    def close(self) -> None:
        """See `ReplicaClient.close`."""
        self._connection.close()

    @property
    def _stream(self) -> str:
        return f"OBJ_{self._bucket}"

    def _content(self, nuid: str) -> str:
        return f"$O.{self._bucket}.C.{nuid}"

    def _description(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"
