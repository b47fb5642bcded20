"""Copies a whole replica to another storage: every file of every level, byte for byte. Owns order and resumption.

Files go in the order of their first TXID, the longest first: whenever the copy stops, what has arrived is a consistent
replica without gaps, and the next run goes on from there. Small files that others cover are written in parallel.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import BinaryIO, Self

from litevfs.concurrency.futures import result_of
from litevfs.concurrency.retry import Backoff, LookAgain, retry
from litevfs.concurrency.workers import WorkerPool
from litevfs.errors import LitevfsError, ReplicaError, StorageNotFoundError, TransientStorageError
from litevfs.files.fetch import READ_BYTES
from litevfs.files.frame_checks import FEED_BYTES
from litevfs.files.plan import newest_state
from litevfs.files.stream import FileStreamer, PartsFile, client_of
from litevfs.ltx.format import TRAILER_SIZE
from litevfs.replica_clients.base import LEVELS, LTXFileInfo, ReplicaClient
from litevfs.units import parse_duration_s

PARALLEL_WRITES = 8
"""Small files under way to a storage where a write costs a round trip."""
Progress = Callable[[int, int], None]
"""Called with (bytes copied so far, bytes to copy in all)."""
_Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class CopyResult:
    """The results of a copy."""

    txid: int  # the newest TXID of the destination
    files: int  # copied
    bytes: int  # copied
    skipped: int  # files that the destination had already


def copy_replica(
    source: str | os.PathLike[str] | ReplicaClient,
    destination: str | os.PathLike[str] | ReplicaClient,
    *,
    progress: Progress | None = None,
    read_timeout: float | str = 30.0,
) -> CopyResult:
    """Copy all LTX files that `source` has now and `destination` does not have yet.

    Both are URLs, paths or clients (which stay open). Files keep level, name, content and timestamp; each is verified
    whole while it is copied, and arrives whole or not at all. The copy never deletes or overwrites a destination file.
    A file counts as present when one of its level, name and size is there. `progress` is called with the bytes copied
    so far, and to copy in all. `read_timeout` bounds each call of a storage, its retries included: seconds, or text
    such as "10s". A copy that fails so is begun again, nine times.

    Raises ReplicaError when the destination holds another replica; ReplicaEmptyError and TXIDGapError for a source
    without a complete state; LTXFormatError for a damaged file; StorageError.
    """
    read_timeout_s = parse_duration_s(read_timeout)
    with ExitStack() as stack:

        def streamer_of(replica: str | os.PathLike[str] | ReplicaClient) -> FileStreamer:
            client = stack.enter_context(client_of(replica, read_timeout_s=read_timeout_s))
            return stack.enter_context(FileStreamer(client, read_timeout_s=read_timeout_s))

        reader, writer = streamer_of(source), streamer_of(destination)
        if reader.client.url == writer.client.url:
            raise ReplicaError("source and destination are the same replica", key=reader.client.url)
        return _Copy(reader, writer, progress).run()


copy = copy_replica
"""`copy_replica` under its public name, beside `restore` and `verify`."""


class _Copy:
    """One run of `copy_replica`."""

    def __init__(self, reader: FileStreamer, writer: FileStreamer, progress: Progress | None) -> None:
        self._reader = reader
        self._writer = writer
        self._progress = progress
        self._files = self._bytes = self._in_file = self._total = 0
        self._present: dict[_Key, LTXFileInfo] = {}
        self._skipped: int | None = None  # how many files were there before

    def run(self) -> CopyResult:
        # Compaction and retention replace files at any time. To go on with the next file could make a gap.
        self._present = self._list_destination()
        return retry(self._attempt, Backoff(), may_pass=LookAgain(TransientStorageError))

    def _attempt(self) -> CopyResult:
        files = self._reader.list_levels(LEVELS)
        missing = [file for file in copy_order(files) if file.place not in self._present]
        self._total = self._bytes + sum(file.size for file in missing)
        txid = newest_state(files).txid
        if self._skipped is None:
            self._skipped = self._count_common(files, self._present)
        self._copy_files(missing, self._present)
        return CopyResult(txid, self._files, self._bytes, self._skipped)

    def _list_destination(self) -> dict[_Key, LTXFileInfo]:
        try:
            return {file.place: file for file in self._writer.list_levels(LEVELS)}
        except StorageNotFoundError:  # the first file makes the folder; any other cause shows when writing
            return {}

    def _copy_files(self, files: list[LTXFileInfo], present: dict[_Key, LTXFileInfo]) -> None:
        """Copy files in their order; those that add nothing to the ones before may arrive later than others after them.

        Such a file makes no gap when it is missing, so up to PARALLEL_WRITES of them are under way at once.
        """
        covered = 0
        with _Writes(self._writer, lambda copied: self._arrived(copied, present)) as writes:
            for stream in self._reader.stream(files):
                file, self._in_file = stream.file, 0
                # Reading its end raises when the file is not sound, so it is not stored.
                parts = (data for data, _ in stream)
                first = next(parts)  # from here on the header is known
                with io.BufferedReader(PartsFile(chain([first], parts), self._on_read), FEED_BYTES) as content:
                    if file.max_txid <= covered and file.size <= READ_BYTES:
                        writes.start(file, content.read(), stream.header.timestamp_ms)
                    else:
                        writes.make(file, content, stream.header.timestamp_ms)
                self._in_file = 0
                covered = max(covered, file.max_txid)

    def _arrived(self, copied: LTXFileInfo, present: dict[_Key, LTXFileInfo]) -> None:
        present[copied.place] = copied
        self._files += 1
        self._bytes += copied.size

    def _on_read(self, size: int) -> None:
        self._in_file += size
        if self._progress is not None:
            self._progress(self._bytes + self._in_file, self._total)

    def _count_common(self, files: Iterable[LTXFileInfo], present: dict[_Key, LTXFileInfo]) -> int:
        """How many files both have. Raises ReplicaError when the destination is not a copy of the source."""
        common = [(file, present[file.place]) for file in files if file.place in present]
        if present and not common:
            raise self._other_replica(
                "has no file in common with the source (any more, if retention deleted them there)"
            )
        for ours, theirs in common:
            if ours.size != theirs.size:
                raise self._other_replica("holds another file of the same TXIDs", theirs)
        by_age = sorted(common, key=lambda pair: pair[0].max_txid)
        for ours, theirs in (by_age[0], by_age[-1]) if by_age else ():
            if _trailer(self._reader, ours) != _trailer(self._writer, theirs):
                raise self._other_replica("holds another file of the same TXIDs", theirs)
        return len(common)

    def _other_replica(self, what: str, file: LTXFileInfo | None = None) -> ReplicaError:
        return ReplicaError(
            f"the destination {what}: nothing shows that it is a copy of the source",
            level=file.level if file else None,
            min_txid=file.min_txid if file else None,
            max_txid=file.max_txid if file else None,
            key=self._writer.client.key(file) if file else self._writer.client.url,
            hint="copy to an empty place",
        )


class _Writes:
    """Writes of files to the destination, some of them at once where a write costs a round trip. A context manager.

    `arrived` is called, in the thread that uses this, for each file that was stored.
    """

    def __init__(self, writer: FileStreamer, arrived: Callable[[LTXFileInfo], None]) -> None:
        self._client = writer.client
        self._arrived = arrived
        self._pool = WorkerPool(PARALLEL_WRITES, "litevfs-copy") if writer.fetcher.is_remote else None
        self._running: deque[Future[LTXFileInfo]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Wait for the writes under way, whose time the client bounds. Raises their first error if `error` is None."""
        failure: LitevfsError | None = None
        try:
            while self._running:
                try:
                    self._take()
                except LitevfsError as its:
                    failure = failure or its
        finally:
            if self._pool is not None:
                self._pool.shutdown()
        if error is None and failure is not None:
            raise failure

    def make(self, file: LTXFileInfo, content: BinaryIO, timestamp_ms: int) -> None:
        """Write a file, and return when it is stored."""
        self._arrived(self._client.write(file.level, file.min_txid, file.max_txid, content, timestamp_ms))

    def start(self, file: LTXFileInfo, content: bytes, timestamp_ms: int) -> None:
        """Start to write a file. Raises the error of a write that was started before."""
        if self._pool is None:
            self.make(file, io.BytesIO(content), timestamp_ms)
            return
        if len(self._running) >= PARALLEL_WRITES:
            self._take()
        call = partial(self._client.write, file.level, file.min_txid, file.max_txid, content, timestamp_ms)
        self._running.append(self._pool.submit(call))

    def _take(self) -> None:
        self._arrived(result_of(self._running.popleft()))


def copy_order(files: Iterable[LTXFileInfo]) -> list[LTXFileInfo]:
    """`files` in an order each prefix of which has no gap, if all of them together have none.

    Ordered by their first TXID, a file that does not connect to those before it cannot be connected by later ones.
    """
    return sorted(files, key=lambda file: (file.min_txid, -file.max_txid, -file.level))


def _trailer(streamer: FileStreamer, file: LTXFileInfo) -> bytes:
    """The end of a file, which holds a checksum of all of it."""
    size = min(TRAILER_SIZE, file.size)
    return streamer.fetcher.read(file, file.size - size, size)
