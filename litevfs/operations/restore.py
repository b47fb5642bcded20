"""Restores a state of a replica to a database file. Owns the file on disk until it is whole.

The pages are written as they are in the replica, and so as they are on the primary: no page is patched, so a
database in WAL mode is restored in WAL mode. (Litestream's restore does the same.)
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import apsw

from litevfs.concurrency.retry import Backoff, LookAgain, retry
from litevfs.errors import (
    LitevfsError,
    LTXFormatError,
    LTXMissingPagesError,
    OptionError,
    RestoreError,
)
from litevfs.files.detours import Detours
from litevfs.files.moments import state_at
from litevfs.files.plan import Chain, newest_state
from litevfs.files.stream import FileStreamer, VerifiedStream, client_of
from litevfs.ltx.format import Header
from litevfs.ltx.names import parse_txid
from litevfs.ltx.page_rules import check_growth
from litevfs.operations.target import RestoreTarget, check_unused, is_missing
from litevfs.replica_clients.base import LEVELS, LTXFileInfo, ReplicaClient
from litevfs.replicate.marks import RestoredMark, remove_restored, write_restored
from litevfs.replicate.restored import restored_state
from litevfs.units import parse_duration_s, parse_moment_ms, parse_timestamp_ms

logger = logging.getLogger("litevfs.operations.restore")

Progress = Callable[[int, int], None]
"""Called with (bytes read so far, bytes to read in all) of LTX files; starts again at 0 when the restore does."""


_READ_TIMEOUT_S = 30.0
_MOST_EXPANSION = 255
"""Bytes that a byte of an LZ4 block can stand for at most."""


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What was restored."""

    txid: int
    timestamp_ms: int  # of that transaction, Unix milliseconds
    page_size: int  # bytes
    pages: int  # in the database, the lock page included
    bytes: int  # of the database file
    files: int  # LTX files that were read
    bytes_read: int  # of them


def restore(
    replica: str | os.PathLike[str] | ReplicaClient,
    path: str | os.PathLike[str],
    *,
    txid: int | str | None = None,
    timestamp: datetime | str | None = None,
    integrity_check: bool = False,
    progress: Progress | None = None,
    force: bool = False,
    read_timeout: float | str = _READ_TIMEOUT_S,
) -> RestoreResult:
    """Make the database file `path` from the newest state of a replica, or from an earlier one.

    `replica` is a URL, a path or a client (which stays open). `txid` asks for the state after exactly this transaction
    (a number, or up to 16 hex digits), `timestamp` for the newest state at a time (RFC 3339 text, "5 minutes ago", or a
    datetime, UTC if naive). Every file is verified whole; one that is damaged or stays gone is left out, and logged, if
    others lead to the same TXID. `path` appears with all its content, on the disk, or not at all; until then there is
    `<path>.tmp`, which is removed on any error and replaced by the next restore after a crash. `integrity_check` runs
    SQLite's `PRAGMA integrity_check` before that. A small file beside it, `.<name>-litevfs-restored`, lets a replicator
    to the same replica go on from there. With `force` an existing database is replaced at the end, with its WAL and
    journal, unless it is in use; the file beside it then has a sum of each page of the newest state, 16 bytes, so that
    the replicator uploads only what was written since. `progress` is called with the bytes read so far, and to read in
    all. `read_timeout` bounds each call of the storage, its retries included: seconds, or text such as "10s".

    Raises RestoreTargetExistsError when `path`, or a WAL or journal of that name, exists; RestoreError when it cannot
    be written; OptionError; ReplicaEmptyError, TXIDGapError, TXIDNotFoundError; LTXFormatError for a damaged file that
    no others replace; StorageError.
    """
    find_state = _state_finder(txid, timestamp)
    return _restore(
        replica,
        Path(path),
        find_state,
        integrity_check,
        progress,
        force,
        parse_duration_s(read_timeout),
        keeps_sums=force and find_state is _newest,
    )


def _restore(
    replica: str | os.PathLike[str] | ReplicaClient,
    path: Path,
    find_state: FindState,
    integrity_check: bool,
    progress: Progress | None,
    force: bool,
    read_timeout_s: float,
    *,
    keeps_sums: bool,
) -> RestoreResult:
    if force:
        check_unused(path)
    with (
        RestoreTarget(path, replace=force) as target,
        client_of(replica, read_timeout_s=read_timeout_s) as client,
        FileStreamer(client, read_timeout_s=read_timeout_s) as streamer,
    ):
        result = _Restore(streamer, find_state, target, progress).run()
        if integrity_check:
            _check_integrity(target)
        with _leaving_mark(target, client, result, keeps_sums=keeps_sums):
            target.publish()
    return result


def restore_if_missing(
    replica: str | os.PathLike[str] | ReplicaClient,
    path: str | os.PathLike[str],
    *,
    txid: int | str | None = None,
    timestamp: datetime | str | None = None,
    integrity_check: bool = False,
    progress: Progress | None = None,
    read_timeout: float | str = _READ_TIMEOUT_S,
) -> RestoreResult | None:
    """As `restore`, unless there is a database: None then. An empty file, a placeholder for one, does not count.

    The mark has the sums of all pages, as with `force`.
    """
    if not is_missing(Path(path)):
        return None
    find_state, is_placeholder = _state_finder(txid, timestamp), os.path.lexists(path)
    return _restore(
        replica,
        Path(path),
        find_state,
        integrity_check,
        progress,
        is_placeholder,
        parse_duration_s(read_timeout),
        keeps_sums=find_state is _newest,
    )


@contextmanager
def _leaving_mark(
    target: RestoreTarget, client: ReplicaClient, result: RestoreResult, *, keeps_sums: bool
) -> Iterator[None]:
    """Write the mark first, so that a replicator continues from there even if an application has written meanwhile.

    The sums of all pages, which spare it the upload of those that stay as they are, take half as long as the restore.
    """
    content = b""
    if keeps_sums:
        with suppress(OSError, apsw.Error):  # then the first upload holds the whole database
            content = restored_state(target.temp_path, result.page_size, result.pages).pack()
    try:
        mark = RestoredMark(client.url, result.txid, result.timestamp_ms, *target.identity())
        write_restored(target.path, mark, content)
    except OSError as error:
        logger.warning("no mark of where it came from is left beside %s: %s", target.path, error)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            remove_restored(target.path)
        raise


FindState = Callable[[FileStreamer, Sequence[LTXFileInfo]], int | None]
"""The requested TXID, given a listing; None for the newest."""


def _state_finder(txid: int | str | None, timestamp: datetime | str | None) -> FindState:
    if txid is not None and timestamp is not None:
        raise OptionError("both txid and timestamp are given", hint="one of them says which state")
    if timestamp is not None:
        now_ms = int(time.time() * 1000)
        at_ms = parse_moment_ms(timestamp, now_ms) if isinstance(timestamp, str) else parse_timestamp_ms(timestamp)
        return lambda streamer, files: state_at(files, at_ms, streamer.fetcher)
    if txid is None:
        return _newest
    wanted = parse_txid(txid)
    return lambda streamer, files: wanted


def _newest(streamer: FileStreamer, files: Sequence[LTXFileInfo]) -> int | None:
    return None


class _Restore:
    """The attempts of one `restore`: again after a file vanished or was damaged, then without that file."""

    def __init__(
        self, streamer: FileStreamer, find_state: FindState, target: RestoreTarget, progress: Progress | None
    ) -> None:
        self._streamer, self._find_state, self._target, self._progress = streamer, find_state, target, progress
        self._detours = Detours()
        self._files: Sequence[LTXFileInfo] = ()  # what the last attempt listed
        self._chain: Chain | None = None  # of the last attempt, if it came so far

    def run(self) -> RestoreResult:
        while True:
            try:
                return retry(self._attempt, Backoff(), may_pass=LookAgain())
            except LitevfsError as error:
                if self._chain is None:
                    raise
                self._detours.leave_out(error, self._files, self._chain.txid)
                logger.warning("going around a file that is of no use: %s", error)

    def _attempt(self) -> RestoreResult:
        self._chain = None
        self._files = self._streamer.list_levels(LEVELS)
        usable = self._detours.usable(self._files)
        wanted = self._find_state(self._streamer, usable) if usable else None
        self._chain = newest_state(usable, wanted)
        # A damaged file may have put pages anywhere, so an earlier attempt is not kept.
        return apply_files(self._streamer, self._chain.files, self._target, self._progress)


def apply_files(
    streamer: FileStreamer,
    files: Sequence[LTXFileInfo],
    target: RestoreTarget,
    progress: Progress | None = None,
    on_file: Callable[[VerifiedStream], None] = lambda stream: None,
) -> RestoreResult:
    """Make the state of a chain of files, oldest first, in `target`: of each page the newest version stays.

    `on_file` is called for each file that is sound and fits on those before it. Raises what `restore` raises, but does
    not read any file again.
    """
    total = sum(file.size for file in files)
    done = 0

    def on_read(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, total)

    target.clear()
    state: Header | None = None
    for stream in streamer.stream(files):
        try:
            state = _apply_file(stream, state, target, on_read)
        except (_UnfitError, LTXMissingPagesError) as error:
            raise streamer.fetcher.located(error, stream.file) from None
        on_file(stream)
    assert state is not None, "a chain has files"
    target.end(state.commit, state.page_size)
    size = state.commit * state.page_size
    return RestoreResult(state.max_txid, state.timestamp_ms, state.page_size, state.commit, size, len(files), total)


class _UnfitError(LTXFormatError):
    """A sound file that cannot follow on the files before it."""


def _apply_file(
    stream: VerifiedStream, before: Header | None, target: RestoreTarget, on_read: Callable[[int], None]
) -> Header:
    """Apply one file to the state `before`; the header of the state it makes."""
    is_begun = False
    for data, pages in stream:
        page_size = stream.header.page_size
        if before is None and not is_begun:
            # A false or damaged header must not fill the disk.
            target.reserve(min(stream.header.commit * page_size, stream.file.size * _MOST_EXPANSION))
        is_begun = True
        target.write_pages(pages, page_size)
        on_read(len(data))
    if before is not None and stream.header.page_size != before.page_size and stream.whole_from > 1:
        sizes = f"its page size is {stream.header.page_size}, that of the files before it {before.page_size}"
        raise _UnfitError(f"{sizes}, and it does not hold all pages")
    check_growth(stream.header, stream.whole_from, before.commit if before else 0)
    return stream.header


def integrity_findings(target: RestoreTarget) -> list[str]:
    """The lines of `PRAGMA integrity_check` for a whole state, or why it fails: ["ok"] means sound."""
    path = quote(os.fsencode(target.temp_path.resolve()))  # so SQLite also accepts names that are not UTF-8
    try:
        connection = apsw.Connection(
            f"file:{path}?immutable=1",  # no other process uses the file, and SQLite must make none beside it
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
        )
        try:
            connection.set_progress_handler(lambda: False, 100_000)  # so that Ctrl-C is noticed
            return [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
        finally:
            connection.close()
    except apsw.Error as error:
        return [str(error)]


def _check_integrity(target: RestoreTarget) -> None:
    findings = integrity_findings(target)
    if findings != ["ok"]:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise RestoreError(
            f"the restored database does not pass PRAGMA integrity_check: {findings[0]}{more}",
            hint="an earlier state (txid, timestamp) may be sound",
        )
