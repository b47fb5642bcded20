"""Merges a replica's files into fewer, larger ones: level by level, and whole states as snapshots. Needs no database.

Source of the rules: Litestream 0.5, `store.go` and `compactor.go`: a compaction takes all files of one level that are
newer than the newest of the next. Two may run at once: the same inputs give the same bytes under the same name, and
readers of a replica expect files that overlap. Nothing here deletes; see `retention`.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO, BinaryIO

from litevfs.concurrency.retry import Backoff, LookAgain, retry
from litevfs.errors import LitevfsError, OptionError, ReplicatorError
from litevfs.files.detours import Detours, is_unusable
from litevfs.files.fetch import READ_BYTES
from litevfs.files.plan import extend, gap_error, newest_state
from litevfs.files.stream import FileStreamer, PartsFile
from litevfs.ltx.compactor import compact, compacted_header
from litevfs.ltx.format import HEADER_SIZE, TRAILER_SIZE, Header, Trailer
from litevfs.ltx.frame import read_frames
from litevfs.replica_clients.base import LEVELS, SNAPSHOT_LEVEL, LTXFileInfo, ReplicaClient

logger = logging.getLogger("litevfs.compaction")

_FILES_AT_ONCE = 64
"""Files merged at once. Each takes a buffer (see `read_frames`), so that more are merged in groups first."""

Choose = Callable[[FileStreamer, Detours], Sequence[LTXFileInfo]]
"""Lists the replica for the files to compact, oldest first, without those that are left out."""


def compact_level(
    client: ReplicaClient,
    level: int,
    *,
    source_level: int | None = None,
    known: LTXFileInfo | None = None,
    temp_folder: str | None = None,
) -> LTXFileInfo | None:
    """Make one file of `level`, 1 to 8, from the new files on the level below it (or on `source_level`).

    Returns the new file, or None if there are no new files. `known` is a file of `level` that was seen before; listing
    starts there instead of at the beginning. Each input is read once, verified whole, and kept in `temp_folder` (the
    system's if None), together with the result, until that is stored. Memory: some megabytes, whatever the size of the
    database and the number of files.

    A damaged file is left out where others hold its transactions: the newest snapshot file, behind which the new file
    begins then, or files of lower levels, which are compacted in its place. Raises TXIDGapError when no file of the
    replica holds TXIDs between the two levels, LTXFormatError for a damaged file that no others replace,
    StorageError, and ReplicatorError when there is no room for temporary files.
    """
    source = level - 1 if source_level is None else source_level
    if not 0 <= source < level < SNAPSHOT_LEVEL:
        raise OptionError(
            f"cannot compact level {source} into level {level}", hint=f"levels go up, from 0 to {SNAPSHOT_LEVEL - 1}"
        )
    return _compact(
        client, level, lambda streamer, detours: _new_files(streamer, detours, source, level, known), temp_folder
    )


def snapshot(client: ReplicaClient, *, temp_folder: str | None = None) -> LTXFileInfo | None:
    """Store the newest state of a replica as one file of level 9, made from the files it consists of.

    Returns the new file, or None when the newest state is a snapshot file already. Resources and errors are those of
    `compact_level`; also ReplicaEmptyError.
    """
    return _compact(client, SNAPSHOT_LEVEL, _files_of_newest_state, temp_folder)


def store_as_snapshot(client: ReplicaClient, file: BinaryIO, page_index: IO[bytes]) -> LTXFileInfo:
    """Store `file` on level 9: one of level 0, verified, that holds the whole database. `page_index`: an empty file.

    From then on, this state and later ones need no file of an earlier TXID. Raises StorageError.
    """
    fd = file.fileno()
    source = _read_ends(fd, 0, os.fstat(fd).st_size)
    source = replace(source, header=replace(source.header, min_txid=1))
    header = compacted_header([source.header])
    with io.BufferedReader(PartsFile(compact([source], spool=page_index)), READ_BYTES) as data:
        written = client.write(SNAPSHOT_LEVEL, 1, header.max_txid, data, header.timestamp_ms)
    logger.info("stored a snapshot in %s", client.key(written))
    return written


def newest_file(streamer: FileStreamer, level: int, known: LTXFileInfo | None = None) -> LTXFileInfo | None:
    """The file of `level` that reaches furthest, None if there is none. Lists from `known` on if it still exists."""
    files = streamer.list_level(level, known.min_txid) if known else []
    return max(files or streamer.list_level(level), key=lambda file: file.max_txid, default=None)


def _new_files(
    streamer: FileStreamer, detours: Detours, source: int, level: int, known: LTXFileInfo | None
) -> Sequence[LTXFileInfo]:
    """The files of level `source` that lead on from what `level` covers."""
    newest = newest_file(streamer, level, known)
    covered = newest.max_txid if newest else 0
    if not detours:
        newer = streamer.list_level(source, covered + 1)
        chain = extend(covered, newer)
        if chain.files or not newer:
            return chain.files
    # No file connects. An older file may reach over the hole (after two compactions at once), or files of other levels
    # may hold the missing TXIDs (a snapshot file replaced older files).
    listed = streamer.list_levels(LEVELS)
    usable = detours.usable(listed)
    candidates = [file for file in usable if file.level == source]
    if detours:  # what a snapshot file holds need not be compacted; of the rest, lower levels may hold what is unusable
        snapshots = (file.max_txid for file in usable if file.level == SNAPSHOT_LEVEL and file.min_txid == 1)
        last = max((file.max_txid for file in listed if file.level == source), default=0)
        below = [file for file in usable if file.level <= source]
        chain = extend(max(covered, max(snapshots, default=0)), below, last)
    else:
        chain = extend(covered, candidates)
    if chain.files or chain.gap is None:
        return chain.files
    last_missing = chain.gap[1]
    if extend(covered, (file for file in usable if file.level != source)).txid < last_missing:
        raise gap_error(chain.gap)
    return extend(last_missing, candidates).files


def _files_of_newest_state(streamer: FileStreamer, detours: Detours) -> Sequence[LTXFileInfo]:
    files = newest_state(detours.usable(streamer.list_levels(LEVELS))).files
    return () if len(files) == 1 and files[0].level == SNAPSHOT_LEVEL else files


def _compact(client: ReplicaClient, level: int, choose: Choose, temp_folder: str | None) -> LTXFileInfo | None:
    detours = Detours()
    files: Sequence[LTXFileInfo] = ()

    def attempt() -> LTXFileInfo | None:
        nonlocal files
        files = choose(streamer, detours)
        return _write_compacted(streamer, files, level, temp_folder) if files else None

    with FileStreamer(client) as streamer:
        while True:
            try:
                return retry(attempt, Backoff(), may_pass=LookAgain())
            except LitevfsError as error:
                if not is_unusable(error):
                    raise
                wanted = max((file.max_txid for file in files), default=0)
                detours.leave_out(error, streamer.list_levels(LEVELS), wanted)
                logger.warning("going around a file that is of no use: %s", error)


def _write_compacted(
    streamer: FileStreamer, files: Sequence[LTXFileInfo], level: int, temp_folder: str | None
) -> LTXFileInfo:
    with _temporary_file(temp_folder) as spool, _temporary_file(temp_folder) as result:
        inputs = list(_spool(streamer, files, spool, temp_folder))
        while len(inputs) > _FILES_AT_ONCE:
            first, *later = inputs  # the first is often a snapshot file, by far the largest, and is merged once
            groups = (later[i : i + _FILES_AT_ONCE] for i in range(0, len(later), _FILES_AT_ONCE))
            inputs = [first, *(_merge(group, spool, temp_folder) for group in groups)]
        header = _merge(inputs, result, temp_folder).header
        result.seek(0)
        written = streamer.client.write(level, header.min_txid, header.max_txid, result, header.timestamp_ms)
    logger.info("compacted %d files into %s", len(files), streamer.client.key(written))
    return written


@dataclass(frozen=True, slots=True)
class _SpooledFile:
    """One input, verified, at an offset of the spool file: see `CompactionInput`."""

    header: Header
    trailer: Trailer
    fd: int
    start: int  # bytes; where the file begins in the spool file

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """(pgno, frame) of every page, in the order of the file."""
        return read_frames(lambda offset, size: os.pread(self.fd, size, offset), self.start + HEADER_SIZE)


def _spool(
    streamer: FileStreamer, files: Sequence[LTXFileInfo], spool: BinaryIO, temp_folder: str | None
) -> Iterator[_SpooledFile]:
    """Copy files into `spool`, one behind the other. Later reads get the bytes that were verified here."""
    start = 0
    for stream in streamer.stream(files):
        for data, _ in stream:
            with _no_room(temp_folder):
                spool.write(data)
        with _no_room(temp_folder):
            spool.flush()
        yield _read_ends(spool.fileno(), start, stream.file.size)
        start += stream.file.size


def _merge(inputs: Sequence[_SpooledFile], into: BinaryIO, temp_folder: str | None) -> _SpooledFile:
    """Write the file that `inputs` merge into to the end of `into`."""
    start = into.tell()
    with _temporary_file(temp_folder) as page_index, _no_room(temp_folder):
        into.writelines(compact(inputs, spool=page_index))
        into.flush()
    return _read_ends(into.fileno(), start, into.tell() - start)


def _read_ends(fd: int, start: int, size: int) -> _SpooledFile:
    """Header and trailer of a verified file at `start`."""
    header = Header.unpack(os.pread(fd, HEADER_SIZE, start))
    trailer = Trailer.unpack(os.pread(fd, TRAILER_SIZE, start + size - TRAILER_SIZE))
    return _SpooledFile(header, trailer, fd, start)


@contextmanager
def _temporary_file(folder: str | None) -> Iterator[BinaryIO]:
    with _no_room(folder):
        file = tempfile.TemporaryFile(prefix="litevfs-compaction-", dir=folder)  # noqa: SIM115 - closed below
    try:
        yield file
    finally:
        with suppress(OSError):  # unwritten bytes, which are no longer needed
            file.close()


@contextmanager
def _no_room(folder: str | None) -> Iterator[None]:
    try:
        yield
    except LitevfsError:
        raise
    except OSError as error:
        raise ReplicatorError(
            f"cannot write temporary files: {error.strerror or error}",
            key=tempfile.gettempdir() if folder is None else folder,
            hint="compaction needs room for its inputs and its result; TMPDIR, or temp_folder in Python, names one "
            "that has it",
        ) from error
