"""Checks whether a replica is sound: reads every file whole, in bounded memory, and judges the chain of files.

Prints nothing and opens no database; `whole_check` and `litevfs verify` do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from litevfs.errors import (
    LitevfsError,
    LTXFormatError,
    ReplicaError,
    RestoreError,
    StorageNotFoundError,
    StoragePermissionError,
    TXIDGapError,
)
from litevfs.files.fetch import Fetcher
from litevfs.files.frame_checks import FEED_BYTES
from litevfs.files.plan import Chain, newest_state, reachable_txids
from litevfs.files.stream import FileStreamer, VerifiedStream
from litevfs.ltx.decoder import StreamDecoder
from litevfs.ltx.format import Header, Trailer
from litevfs.ltx.page_rules import check_growth, check_size_change
from litevfs.operations.restore import apply_files
from litevfs.operations.target import RestoreTarget
from litevfs.replica_clients.base import LEVELS, SNAPSHOT_LEVEL, LTXFileInfo

logger = logging.getLogger("litevfs.operations.verify")

REQUEST_BYTES = 1 << 20
PARALLEL_FILES = 8
"""Files read at once where a request costs a round trip."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault. `level` and `key` are None if it concerns no single file, the TXIDs if it concerns none."""

    message: str
    level: int | None = None
    min_txid: int | None = None
    max_txid: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        return str(
            LitevfsError(self.message, level=self.level, min_txid=self.min_txid, max_txid=self.max_txid, key=self.key)
        )


@dataclass(frozen=True, slots=True)
class FileCheck:
    """One file, read to its end. `problem` None: the file has header and trailer, and is sound between them."""

    file: LTXFileInfo
    header: Header | None = None
    trailer: Trailer | None = None
    problem: Problem | None = None
    is_gone: bool = False  # the storage does not have it (any more)
    whole_from: int = 1  # the page from which on it holds every page up to its commit


@dataclass(frozen=True, slots=True)
class Findings:
    """The verdict on a replica's files together."""

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]  # worth knowing, harmless
    newest: Chain | None  # the newest state that sound files make, None if there is none
    newest_header: Header | None  # of its last file


def check_files(
    fetcher: Fetcher, files: Sequence[LTXFileInfo], report: Callable[[FileCheck], None] = lambda check: None
) -> list[FileCheck]:
    """Every file read and verified, in the order given; `report` sees each as it is done.

    Raises StorageError when the storage fails, which says nothing about a file.
    """
    with ThreadPoolExecutor(PARALLEL_FILES if fetcher.is_remote else 1, thread_name_prefix="litevfs-verify") as pool:
        checks = []
        try:
            for check in pool.map(partial(check_file, fetcher), files):
                checks.append(check)
                report(check)
        except BaseException:
            fetcher.close()  # ends the reads under way
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return checks


def check_newest_state(
    fetcher: Fetcher,
    files: Sequence[LTXFileInfo],
    target: RestoreTarget,
    report: Callable[[FileCheck], None] = lambda check: None,
) -> tuple[list[FileCheck], Chain | None]:
    """Read the newest state into `target` and check its files on the way: each byte is read once for both.

    Returns the checks of those that are sound; and the state, or None where the files do not make it or there is no
    room for it. A file without a check was not judged. Raises StorageError when the storage fails.
    """
    checks: list[FileCheck] = []

    def on_file(stream: VerifiedStream) -> None:
        checks.append(FileCheck(stream.file, stream.header, stream.trailer, whole_from=stream.whole_from))
        report(checks[-1])

    try:
        chain = newest_state(files)
        with FileStreamer(fetcher.client, fetcher=fetcher) as streamer:
            apply_files(streamer, chain.files, target, on_file=on_file)
    except (ReplicaError, LTXFormatError, StorageNotFoundError, StoragePermissionError, RestoreError) as error:
        logger.info("the newest state is not checked on the way: %s", error)
        target.clear()
        return checks, None
    return checks, chain


def check_file(fetcher: Fetcher, file: LTXFileInfo) -> FileCheck:
    """One file, read to its end. Read twice before it counts as damaged: bytes can be damaged in transit."""
    check = _read_whole(fetcher, file)
    return _read_whole(fetcher, file) if check.problem and fetcher.is_remote else check


def _read_whole(fetcher: Fetcher, file: LTXFileInfo) -> FileCheck:
    decoder = StreamDecoder()
    try:
        for offset in range(0, file.size, REQUEST_BYTES):
            data = memoryview(fetcher.read(file, offset, min(REQUEST_BYTES, file.size - offset)))
            for start in range(0, len(data), FEED_BYTES):
                decoder.feed(data[start : start + FEED_BYTES])
        trailer = decoder.finish()
    except StorageNotFoundError as error:
        return FileCheck(file, problem=_file_problem(fetcher, file, error.message), is_gone=True)
    except (LTXFormatError, StoragePermissionError) as error:
        return FileCheck(file, decoder.header, problem=_file_problem(fetcher, file, error.message))
    header = decoder.header
    assert header is not None
    wrong = _misplaced(file, header)
    problem = _file_problem(fetcher, file, wrong) if wrong else None
    return FileCheck(file, header, trailer, problem, whole_from=decoder.whole_from)


def _misplaced(file: LTXFileInfo, header: Header) -> str | None:
    if (header.min_txid, header.max_txid) != (file.min_txid, file.max_txid):
        return f"the header says TXIDs {header.min_txid:016x}-{header.max_txid:016x}, the name says otherwise"
    if file.level == SNAPSHOT_LEVEL and not header.is_snapshot:
        return "a file on the snapshot level that is no snapshot"
    return None


def _file_problem(fetcher: Fetcher, file: LTXFileInfo, message: str) -> Problem:
    return Problem(message, file.level, file.min_txid, file.max_txid, fetcher.client.key(file))


def without_deleted(fetcher: Fetcher, checks: Sequence[FileCheck]) -> list[FileCheck]:
    """The checks, but for files that were deleted since they were listed, as retention does."""
    levels = {check.file.level for check in checks if check.is_gone}
    listed = {file.place for level in levels for file in fetcher.list_files(level)}
    return [check for check in checks if not check.is_gone or check.file.place in listed]


def judge(checks: Sequence[FileCheck]) -> Findings:
    """The verdict on checked files: the chain of the newest state, holes, page sizes, database checksums."""
    problems = [check.problem for check in checks if check.problem]
    files = [check.file for check in checks]
    sound = {check.file: check for check in checks if check.problem is None}
    try:
        listed_txid = newest_state(files).txid
    except LitevfsError as error:  # no files, no first state, or a gap
        listed_txid = max(reachable_txids(files), default=0)
        last = error.max_txid if isinstance(error, TXIDGapError) else None
        problems.append(Problem(error.message, min_txid=error.min_txid, max_txid=last))
    newest, unfit = _newest_fitting(sound)
    problems += unfit
    newest_txid = newest.txid if newest else 0
    if newest_txid < listed_txid:
        problems.append(_unreadable(newest_txid, listed_txid))
    if newest is None:
        return Findings(tuple(problems), (), None, None)
    header = _header(sound[newest.files[-1]])
    problems += _two_page_sizes(sound.values())
    problems += _broken_checksum_chain([sound[file] for file in newest.files])
    return Findings(tuple(problems), tuple(_holes(files)), newest, header)


def _newest_fitting(sound: dict[LTXFileInfo, FileCheck]) -> tuple[Chain | None, list[Problem]]:
    """The newest state of files that fit together, and the problems of the others, which this takes out of `sound`."""
    problems: list[Problem] = []
    while txid := max(reachable_txids(list(sound)), default=0):
        chain = newest_state(sound, txid)
        problem = next(_missing_pages([sound[file] for file in chain.files]), None)
        if problem is None:
            return chain, problems
        problems.append(problem[1])
        del sound[problem[0]]
    return None, problems


def _missing_pages(chain: Sequence[FileCheck]) -> Iterator[tuple[LTXFileInfo, Problem]]:
    """Files that make the database larger than those before, or change the page size, and do not hold the pages."""
    commit = page_size = 0
    for check in chain:
        header, file = _header(check), check.file
        try:
            if page_size not in (0, header.page_size):
                check_size_change(header, check.whole_from, page_size)
            check_growth(header, check.whole_from, commit)
        except LTXFormatError as error:
            yield file, Problem(error.message, file.level, file.min_txid, file.max_txid)
        commit, page_size = header.commit, header.page_size


def _unreadable(newest_txid: int, listed_txid: int) -> Problem:
    reach = f"sound files reach TXID {newest_txid:016x}" if newest_txid else "no state is readable"
    return Problem(f"the newest state needs a damaged file; {reach}", min_txid=newest_txid + 1, max_txid=listed_txid)


def _header(check: FileCheck) -> Header:
    assert check.header is not None
    return check.header


def _two_page_sizes(checks: Iterable[FileCheck]) -> Iterator[Problem]:
    """Files that end with a TXID at which another one has pages of another size."""
    sizes: dict[int, int] = {}
    for check in checks:
        size, file = _header(check).page_size, check.file
        if (other := sizes.setdefault(file.max_txid, size)) != size:
            message = f"the page size is {size} bytes, that of another file with the same newest TXID is {other}"
            yield Problem(message, file.level, file.min_txid, file.max_txid)


def _broken_checksum_chain(chain: Sequence[FileCheck]) -> Iterator[Problem]:
    """Where files carry the database's checksum, each has to start from what the one before it left."""
    for before, after in pairwise(chain):
        assert before.trailer is not None
        left, found = before.trailer.post_apply_checksum, _header(after).pre_apply_checksum
        if after.file.min_txid == before.file.max_txid + 1 and left and found and left != found:
            message = f"it starts from a database with checksum {found:016x}, the file before it left {left:016x}"
            yield Problem(message, after.file.level, after.file.min_txid, after.file.max_txid)


def _holes(files: Iterable[LTXFileInfo]) -> Iterator[str]:
    """TXIDs missing on a level between those that it holds; harmless if another level has them."""
    by_level: Mapping[int, list[LTXFileInfo]] = {level: [] for level in LEVELS if level != SNAPSHOT_LEVEL}
    for file in files:
        if file.level in by_level:
            by_level[file.level].append(file)
    for level, found in by_level.items():
        reached = None
        for file in sorted(found, key=lambda f: (f.min_txid, f.max_txid)):
            if reached is not None and file.min_txid > reached + 1:
                yield f"level {level} has no file for TXIDs {reached + 1:016x}-{file.min_txid - 1:016x}"
            reached = max(reached or 0, file.max_txid)
