"""The one place where a replica client meets the codec: listings and LTX files become values, with retry and counters.

Nothing here knows SQLite, snapshots or pages. A `Fetcher` serves one replica and may be used from many threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from functools import partial
from typing import TypeVar, cast

from litevfs.concurrency.calls import Troubles
from litevfs.concurrency.futures import closed_error
from litevfs.concurrency.retry import Backoff, retry
from litevfs.errors import LitevfsError, LTXFormatError, StoragePermissionError, TransientStorageError
from litevfs.files.fetched import FetchedFile, check_name
from litevfs.files.frame_checks import frame_checks, verify_stream
from litevfs.files.gets import REQUEST_SHARE, Gets
from litevfs.files.hedges import LIST, Hedges, What, answers_of
from litevfs.files.io_threads import IOThreads
from litevfs.files.line import line_to
from litevfs.files.ranges import likely_head_bytes, likely_tail_bytes, pieces
from litevfs.files.requests import Requests
from litevfs.files.write_behind import WriteBehind
from litevfs.ltx.decoder import decode_file, read_header_and_index, tail_size_needed
from litevfs.ltx.format import HEADER_SIZE, Header
from litevfs.replica_clients.base import ListsLevels, LTXFileInfo, ReplicaClient

logger = logging.getLogger("litevfs.files.fetch")

T = TypeVar("T")
E = TypeVar("E")

WHOLE_FILE_BYTES = 1 << 20
"""Files up to this size come in one request and are verified whole; over S3 that costs little more than the trip."""
READ_BYTES = 1 << 19
"""Bytes of one request when a file is streamed from its first byte to its last."""
PARALLEL_READS = 16
"""Such requests under way at once where each costs a round trip; with READ_BYTES, the bound on their read-ahead."""
MAX_READINGS = 3
"""Requests for the time in a header until two of them agree; a first one was made before as a rule."""
DAMAGE_HINT = (
    "the file is damaged: litevfs verify shows what else is; on the primary, litevfs replicate --snapshot mends it"
)


class Fetcher:
    """Reads one replica's storage, and keeps blocks of it in a folder if there is one (`disk_cache`).

    With `verify`, files of any size are read whole and verified before they are handed out.
    """

    def __init__(
        self,
        client: ReplicaClient,
        *,
        read_timeout_s: float,
        disk_cache: WriteBehind | None = None,
        verify: bool = False,
        max_requests_per_s: float | None = None,
    ) -> None:
        self.client = client
        self.disk_cache = disk_cache
        self.requests = Requests(max_requests_per_s if client.block_size else None, read_timeout_s)
        self.counters = self.requests.counters
        self.troubles = Troubles(client.url)
        self.line = line_to(client.url)
        self.hedges = Hedges(answers_of(client.url))
        self.gets = Gets(client, self.requests, self.line, self.hedges, read_timeout_s)
        self._read_timeout_s = read_timeout_s
        self._levels_client = client if isinstance(client, ListsLevels) else None
        self._verify = verify
        self._closed = threading.Event()
        self.threads = IOThreads(self.line, self._closed.is_set, is_remote=self.is_remote)

    @property
    def is_remote(self) -> bool:
        """Whether a request costs a round trip, so that fewer and larger ones win."""
        return self.client.block_size > 0

    @property
    def verifies(self) -> bool:
        """Whether files are read whole and verified before they are handed out."""
        return self._verify

    # --- requests -----------------------------------------------------------------------------------------------------

    def list_files(self, level: int, min_txid: int = 1) -> list[LTXFileInfo]:
        """One listing of one level, not retried: the caller lists again with its next refresh."""
        return self._counted_list(partial(self.client.list_files, level, min_txid), f"level {level}")

    def list_from(self, level: int, min_txid: int = 1) -> list[LTXFileInfo] | None:
        """Files of `level` from `min_txid` on and all of the levels above it, in one request, not retried.

        None if the storage cannot do that, or if one answer has no room for all: the caller then lists each level.
        """
        client = self._levels_client
        if client is None:
            return None
        try:
            files, are_all = self._counted_list(partial(client.list_from, level, min_txid), f"levels {level} to 9")
        except StoragePermissionError as error:  # perhaps only the wider prefix is forbidden
            logger.info("listing level by level from now on: %s", error)
            self._levels_client = None
            return None
        return files if are_all else None

    def _counted_list(self, call: Callable[[], T], name: str) -> T:
        return self.hedged(LIST, lambda: self.requests.list(lambda: self.line.trip(call), name))

    def hedged(self, what: What, request: Callable[[], T]) -> T:
        """Make a request, and again if it is late. Raises what it raises. What is observed stays as it is."""
        is_alone = not self.is_remote or self.requests.observer
        return (self.hedges.timed if is_alone else self.hedges.first_answer)(what, request)

    def list_levels(self, levels: Iterable[int]) -> list[LTXFileInfo]:
        """All files of several levels, listed in parallel."""
        calls = [partial(self.list_files, level) for level in levels]
        return [file for files in self.threads.parallel(calls) for file in files]

    def deadline(self) -> float:
        """When a read of one page that begins now has to end (`time.monotonic()`, seconds)."""
        return time.monotonic() + self._read_timeout_s

    def read(
        self,
        file: LTXFileInfo,
        offset: int,
        size: int,
        *,
        after: TransientStorageError | None = None,
        deadline: float | None = None,
    ) -> bytes:
        """Exactly `size` bytes of a file, with retries within the read timeout; the first pause now, if `after` failed.

        With a `deadline` (from `deadline()`) all attempts end then. Raises TransientStorageError when answers stay
        too short, else what the client raises.
        """
        once = partial(self._read_once, file, offset, size, deadline)
        return self.retry(once, after=after, deadline=deadline)

    def _read_once(self, file: LTXFileInfo, offset: int, size: int, deadline: float | None) -> bytes:
        return self.hedged(size, partial(self.gets.read, file, offset, size, deadline))

    @property
    def request_timeout_s(self) -> float:
        """The time limit of one request that may be retried."""
        return self.gets.timeout_s

    def retry(
        self, call: Callable[[], T], *, after: TransientStorageError | None = None, deadline: float | None = None
    ) -> T:
        """`call()`, tried again after transient errors (one of which was `after`) until the read timeout is over."""
        deadline = self.deadline() if deadline is None else deadline
        backoff = Backoff.within(self._read_timeout_s)
        return retry(call, backoff, until=deadline, pause=self._pause, after=after)

    def _pause(self, seconds: float, error: LitevfsError) -> None:
        if self._closed.is_set():
            raise closed_error() from error
        logger.info("trying again in %.3f s: %s", seconds, error)
        self.troubles.note(error)
        self.requests.retry()
        if self._closed.wait(seconds):
            raise closed_error()

    # --- whole files --------------------------------------------------------------------------------------------------

    def fetch_files(self, files: Sequence[LTXFileInfo]) -> list[FetchedFile]:
        """Header and index of each file, in the order given, all read in parallel.

        Small files are read whole and verified; large ones are streamed and verified only with `verify`. Raises
        LTXFormatError, with level, TXIDs and key, for the first bad file. Not to be called in the pool.
        """
        small = [file for file in files if file.size <= WHOLE_FILE_BYTES]
        large = [file for file in files if file.size > WHOLE_FILE_BYTES]
        calls: list[Callable[[], FetchedFile | bytes]] = [partial(self._fetch_small, f) for f in small]
        for file in large:
            calls += [partial(self._read_head, file), partial(self._read_tail, file, likely_tail_bytes(file))]
        results = iter(self.threads.parallel(calls))
        fetched: dict[LTXFileInfo, FetchedFile] = {}
        for file in small:
            fetched[file] = cast(FetchedFile, next(results))
        for file in large:
            head, tail = cast(bytes, next(results)), cast(bytes, next(results))
            fetched[file] = self._twice(self._fetch_ends, file, (head, tail))
        return [fetched[file] for file in files]

    def read_header(self, file: LTXFileInfo, *, once: bool = False) -> Header:
        """The header of a file, in one request; 100 bytes. `once`: it is not tried again."""
        size = min(HEADER_SIZE, file.size)
        try:
            header = Header.unpack(self._read_once(file, 0, size, None) if once else self.read(file, 0, size))
            check_name(file, header)
        except LTXFormatError as error:
            raise self.located(error, file) from error
        return header

    def read_header_again(self, file: LTXFileInfo) -> Header:
        """The header of a file once more, where much depends on it: no checksum covers a header that is read alone, and
        damage on its way may have changed it. A small file is read from storage whole, and verified.
        """
        if file.size > WHOLE_FILE_BYTES:
            return self.read_header(file)
        return self.checked(file, self.read(file, 0, file.size)).header

    def read_time(self, file: LTXFileInfo, *, once: bool = False) -> int:
        """The timestamp in a file's header, milliseconds since the Unix epoch, as one request says."""
        return self.read_header(file, once=once).timestamp_ms

    def confirm_times(self, read: Sequence[tuple[LTXFileInfo, int | None]]) -> list[int]:
        """The timestamps of files, each with the one that was read alone before, or None; see `files.moments`.

        Small files are read whole and verified; the headers of large ones until two requests agree. Raises
        LTXFormatError for a damaged file, or a header that is never the same. Not to be called in the pool.
        """
        return self.threads.parallel([partial(self._confirm_time, file, found_ms) for file, found_ms in read])

    def _confirm_time(self, file: LTXFileInfo, found_ms: int | None) -> int:
        if file.size <= WHOLE_FILE_BYTES:
            return self._twice(self._fetch_whole, file).header.timestamp_ms
        seen = set() if found_ms is None else {found_ms}
        for _ in range(MAX_READINGS):
            again_ms = self.read_time(file)
            if again_ms in seen:
                return again_ms
            seen.add(again_ms)
        raise self.located(LTXFormatError("each request for the header brings another time"), file)

    def confirm_size(self, fetched: FetchedFile, txid: int, commit: int) -> FetchedFile:
        """The file, fetched again if its header was damaged on its way; for one to follow on `txid` and `commit` pages.

        Of a file that was not read whole, nothing but its header says that the database has become smaller, and a wrong
        size would be in the way of all files to come. Raises LTXFormatError if each request brings another header.
        """
        if fetched.checks is not None or fetched.header.max_txid <= txid or fetched.header.commit >= commit:
            return fetched
        again = self.read_header(fetched.info)
        if again == fetched.header:
            return fetched
        logger.info("reading %s again: another header came", self.client.key(fetched.info))
        fetched = self._twice(self._fetch_ends, fetched.info)
        if again != fetched.header:
            raise self.located(LTXFormatError("each request brings another header"), fetched.info)
        return fetched

    def _twice(
        self, fetch: Callable[[LTXFileInfo, E | None], FetchedFile], file: LTXFileInfo, read: E | None = None
    ) -> FetchedFile:
        """`fetch`, from the bytes that were `read` already, if any, and once more from storage if those are damaged.

        Bytes can be damaged on their way, and a bad file costs the caller far more than a second request.
        """
        try:
            return fetch(file, read)
        except LTXFormatError as error:
            logger.info("reading %s again: %s", self.client.key(file), error)
        try:
            return fetch(file, None)
        except LTXFormatError as error:
            raise self.located(error, file) from error

    def _fetch_small(self, file: LTXFileInfo) -> FetchedFile:
        return self._twice(self._fetch_whole, file, self._read_kept(file, 0, file.size))

    def _fetch_whole(self, file: LTXFileInfo, data: bytes | None) -> FetchedFile:
        data = self._read_kept(file, 0, file.size, fresh=True) if data is None else data
        decoded = decode_file(data)
        check_name(file, decoded.header)
        return FetchedFile(file, decoded.header, decoded.index, data, checks=frame_checks(decoded.index, data))

    def checked(self, file: LTXFileInfo, data: bytes) -> FetchedFile:
        """A whole file that was read just now, verified, and kept in the folder. Raises LTXFormatError, located."""
        try:
            fetched = self._fetch_whole(file, data)
        except LTXFormatError as error:
            raise self.located(error, file) from error
        self.keep(file, 0, data)
        return fetched

    def _fetch_ends(self, file: LTXFileInfo, ends: tuple[bytes, bytes] | None) -> FetchedFile:
        fresh = ends is None
        head, tail = ends or (
            self._read_head(file, fresh=fresh),
            self._read_tail(file, likely_tail_bytes(file), fresh=fresh),
        )
        needed = tail_size_needed(tail, file.size, Header.unpack(head))
        if needed > len(tail):
            tail = self._read_before(file, needed, tail, fresh=fresh)
        header, index, _ = read_header_and_index(head, tail, file.size)
        check_name(file, header)
        checks = None
        if self._verify:
            # The index is verified with the rest of the file, and no byte is read twice.
            with closing(self._passing(file, head, tail, fresh=fresh)) as pieces:
                checks = verify_stream(pieces, index)
        return FetchedFile(file, header, index, None, head, checks)

    def _passing(self, file: LTXFileInfo, head: bytes, tail: bytes, *, fresh: bool) -> Generator[bytes, None, None]:
        """The whole file in pieces; the bytes between its two ends are read now, a bounded part of them ahead."""
        start, end = len(head), file.size - len(tail)
        step = max(READ_BYTES - READ_BYTES % (self.client.block_size or 1), self.client.block_size)
        calls = (
            partial(self._read_kept, file, offset, min(step, end - offset), fresh=fresh)
            for offset in range(start, end, step)
        )
        yield head
        for piece in self.threads.in_order(calls, PARALLEL_READS):
            if self._closed.is_set():  # not every storage notices that, and a folder never does
                raise closed_error()
            yield piece
        yield tail[max(0, start - end) :]

    def _read_head(self, file: LTXFileInfo, *, fresh: bool = False) -> bytes:
        free_bytes = 0 if self._verify else self.line.trip_bytes  # what verifies a file streams it, in bounded memory
        return self._read_kept(file, 0, likely_head_bytes(file, self.client.block_size, free_bytes), fresh=fresh)

    def _read_tail(self, file: LTXFileInfo, size: int, *, fresh: bool = False) -> bytes:
        """At least `size` bytes of the end, or the whole file; with a folder, whole blocks."""
        offset = file.size - min(size, file.size)
        offset -= offset % (self.client.block_size or 1)
        return self._read_kept(file, offset, file.size - offset, fresh=fresh)

    def _read_before(self, file: LTXFileInfo, size: int, tail: bytes, *, fresh: bool) -> bytes:
        """At least `size` bytes of the end, of which the `tail` is read already; the rest in parallel."""
        start = file.size - size
        parts = pieces(start - start % (self.client.block_size or 1), file.size - len(tail), READ_BYTES)
        calls = [partial(self._read_kept, file, *part, fresh=fresh) for part in parts]
        return b"".join([*self.threads.parallel(calls), tail])

    def _read_kept(self, file: LTXFileInfo, offset: int, size: int, *, fresh: bool = False) -> bytes:
        """Like `read` for bytes from the start of a block on, from the folder if it has them, but not if `fresh`."""
        if self.disk_cache is not None and not fresh:
            data = self.disk_cache.get_range(file, offset, size)
            if data is not None:
                return data
        data = self.read(file, offset, size)
        self.keep(file, offset, data)
        return data

    def keep(self, file: LTXFileInfo, offset: int, data: bytes) -> None:
        """Keep the whole blocks among bytes that were read from storage in the folder, if there is one."""
        if self.disk_cache is not None:
            self.disk_cache.put_range(file, offset, data)

    def located(self, error: LTXFormatError, file: LTXFileInfo) -> LTXFormatError:
        """The same error with the place of the file, and a hint if it has none."""
        return type(error)(
            error.message,
            level=file.level,
            min_txid=file.min_txid,
            max_txid=file.max_txid,
            key=self.client.key(file),
            hint=error.hint or DAMAGE_HINT,
        )

    def close(self) -> None:
        """End calls under way and release threads and sockets. Idempotent."""
        self._closed.set()
        self.requests.close()
        self.client.close()
        self.threads.close()
        if self.disk_cache is not None:
            self.disk_cache.close()


def patience_s(deadline: float) -> float:
    """How long a read that must end at `deadline` waits for another thread's request before it makes its own."""
    return max(0.0, deadline - time.monotonic()) * REQUEST_SHARE
