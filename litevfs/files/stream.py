"""Whole LTX files from first byte to last: read ahead in parallel, verified while streamed, not kept.

Owns how files of any size are read in bounded memory. Knows neither databases nor destinations: see `restore`, `copy`
and `replicate.compaction`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Self, TypeVar

from litevfs.concurrency.futures import run_ahead
from litevfs.concurrency.workers import WorkerPool
from litevfs.errors import LTXFormatError
from litevfs.files.fetch import PARALLEL_READS, READ_BYTES, Fetcher
from litevfs.files.fetched import check_name
from litevfs.files.frame_checks import FEED_BYTES, small_parts
from litevfs.ltx.decoder import StreamDecoder
from litevfs.ltx.format import Header, Trailer
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient
from litevfs.replica_clients.urls import is_client, open_replica_client

T = TypeVar("T")


@contextmanager
def client_of(
    replica: str | os.PathLike[str] | ReplicaClient, *, read_timeout_s: float = 30.0
) -> Iterator[ReplicaClient]:
    """The client of a URL or a path, closed at the end; or the client that was passed, which stays open."""
    if is_client(replica):
        yield replica
        return
    client = open_replica_client(replica, read_timeout_s=read_timeout_s)
    try:
        yield client
    finally:
        client.close()


class FileStreamer:
    """Reads whole files of one replica in the order asked for. A context manager; leaves client and fetcher open.

    Memory: FEED_BYTES, or PARALLEL_READS times READ_BYTES where a request costs a round trip.
    """

    def __init__(self, client: ReplicaClient, *, read_timeout_s: float = 30.0, fetcher: Fetcher | None = None) -> None:
        self.client = client
        self.fetcher = fetcher or Fetcher(client, read_timeout_s=read_timeout_s)
        self._pool = WorkerPool(PARALLEL_READS, "litevfs-stream") if self.fetcher.is_remote else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()  # calls that hang end with the client, which its owner closes

    def list_levels(self, levels: Iterable[int]) -> list[LTXFileInfo]:
        """All files of several levels, tried again after transient errors. Raises StorageError."""
        listings = self._ahead(partial(self.list_level, level) for level in levels)
        return [file for listing in listings for file in listing]

    def list_level(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """Files of one level whose min_txid is at least `min_txid`; as `list_levels`."""
        return self.fetcher.retry(partial(self.fetcher.list_files, level, min_txid))

    def stream(self, files: Sequence[LTXFileInfo]) -> Iterator[VerifiedStream]:
        """A stream for each file, to be taken to its end before the next one.

        Read-ahead goes on past the end of a file, so many small files take no more round trips than a large one.
        """
        # Where a request costs next to nothing, small pieces stay in the processor's cache while they are decoded.
        step = READ_BYTES if self.fetcher.is_remote else FEED_BYTES
        ranges = ((file, offset) for file in files for offset in range(0, file.size, step))
        pieces = self._ahead(
            partial(self.fetcher.read, file, offset, min(step, file.size - offset)) for file, offset in ranges
        )
        for file in files:
            yield VerifiedStream(file, islice(pieces, -(-file.size // step)), self.fetcher)

    def _ahead(self, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Results in order, with up to PARALLEL_READS calls under way where that helps."""
        return run_ahead(calls, self._pool.submit if self._pool else None, PARALLEL_READS)


class VerifiedStream:
    """The bytes of one file as they arrive, each piece with the pages that it completes.

    Iterating gives (bytes, [(pgno, page), ...]) and ends without an error only for a file that is sound as a whole: the
    checksums come last, so the caller must not trust any piece until then. Raises LTXFormatError, with level,
    TXIDs and key, and what the client raises.
    """

    def __init__(self, file: LTXFileInfo, pieces: Iterable[bytes], fetcher: Fetcher) -> None:
        self.file = file
        self._pieces = pieces
        self._fetcher = fetcher
        self._decoder = StreamDecoder()
        self.trailer: Trailer | None = None  # known at the end of the file

    @property
    def header(self) -> Header:
        """The file's header; known from the first piece on."""
        header = self._decoder.header
        if header is None:
            raise RuntimeError("nothing was read yet")
        return header

    @property
    def whole_from(self) -> int:
        """See `litevfs.ltx.page_rules.whole_from`; known at the end."""
        return self._decoder.whole_from

    def __iter__(self) -> Iterator[tuple[memoryview, list[tuple[int, bytes]]]]:
        is_named = False
        try:
            for part in small_parts(self._pieces):
                pages = self._decoder.feed(part)
                if self._decoder.header is None:
                    continue  # the file is shorter than a header: the check at the end reports it
                if not is_named:
                    check_name(self.file, self._decoder.header)
                    is_named = True
                yield part, pages
            self.trailer = self._decoder.finish()
        except LTXFormatError as error:
            raise self._fetcher.located(error, self.file) from error


class PartsFile(io.RawIOBase):
    """A readable file over bytes that arrive in parts, for an upload."""

    def __init__(
        self, parts: Iterator[bytes] | Iterator[memoryview], on_read: Callable[[int], object] | None = None
    ) -> None:
        """`on_read` is called with how many bytes were read, each time."""
        self._parts = parts
        self._rest = memoryview(b"")
        self._on_read = on_read

    def readable(self) -> bool:
        """As all such files."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the type of the base is wider
        """The next bytes; 0 at the end. Raises what the parts raise."""
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = memoryview(part)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        if self._on_read is not None:
            self._on_read(size)
        return size
