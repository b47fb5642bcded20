"""Which files of a replica may be deleted, and their deletion. Plans are pure; only files proved spare are deleted.

Source of the rules: Litestream 0.5, `store.go` and `db.go`: level-0 files go some time after level 1 covers them, old
snapshot files go, and with them the files of lower levels that lead up to them. Stricter here: the newest snapshot file
older than the retention time stays, because every state within the retention time builds on it.

A file dated later than now was written while a clock was wrong: its time says nothing. It counts as old, or it would
stay until that time has come; only the newest snapshot file needs a time before the horizon for that.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence

from litevfs.errors import ReplicaEmptyError, TXIDGapError
from litevfs.files.plan import newest_state, reachable_txids
from litevfs.files.stream import FileStreamer
from litevfs.replica_clients.base import LEVELS, SNAPSHOT_LEVEL, LTXFileInfo, ReplicaClient

logger = logging.getLogger("litevfs.retention")

_CLOCK_DIFFERENCE_MS = 3_600_000
"""A time up to so much later than now may come from a clock that is a little ahead."""


def enforce_level_0_retention(
    client: ReplicaClient, horizon_ms: int, *, level: int = 1, now_ms: float = math.inf
) -> list[LTXFileInfo]:
    """Delete level-0 files written before `horizon_ms` (Unix epoch) that `level`, the next one in use, covers.

    The newest level-0 file stays. Returns the deleted files; raises StorageError if a deletion failed.
    """
    with FileStreamer(client) as streamer:
        if len(streamer.list_level(0)) < 2:
            return []
        files = streamer.list_levels(LEVELS)
        return _delete(client, files, plan_level_0_retention(files, horizon_ms, level, now_ms))


def enforce_snapshot_retention(
    client: ReplicaClient, horizon_ms: int, *, now_ms: float = math.inf
) -> list[LTXFileInfo]:
    """Delete files that only states older than `horizon_ms` need: snapshot files, and files of all levels below them.

    The newest file of every level stays, and the newest snapshot written before `horizon_ms`: the states since then
    build on it. Returns the deleted files; raises StorageError if a deletion failed.
    """
    with FileStreamer(client) as streamer:
        files = streamer.list_levels(LEVELS)
        return _delete(client, files, plan_snapshot_retention(files, horizon_ms, now_ms), horizon_ms, now_ms)


def plan_level_0_retention(
    files: Sequence[LTXFileInfo], horizon_ms: int, level: int = 1, now_ms: float = math.inf
) -> list[LTXFileInfo]:
    """The oldest level-0 files, up to the first that is young, not covered by `level`, or the newest.

    Among files that one compacted file covers, those before a young one stay too: its state is made of them.
    """
    covered = _merged((file.min_txid, file.max_txid) for file in files if file.level == level)
    by_age = sorted((file for file in files if file.level == 0), key=lambda file: file.modified_ms)
    once = {file.name: file for file in by_age}  # a listing may show a file twice, before and after it was replaced
    on_level_0 = sorted(once.values(), key=lambda file: (file.max_txid, file.min_txid))
    count = 0
    for file in on_level_0[:-1]:
        is_covered = any(first <= file.min_txid and file.max_txid <= last for first, last in covered)
        if not _is_old(file, horizon_ms, now_ms) or not is_covered:
            break
        count += 1
    ends = {file.max_txid for file in files if file.level != 0}  # states that need no level-0 file
    while count and ends.isdisjoint(file.max_txid for file in on_level_0[count - 1 : count + 1]):
        count -= 1
    return on_level_0[:count]


def plan_snapshot_retention(
    files: Sequence[LTXFileInfo], horizon_ms: int, now_ms: float = math.inf
) -> list[LTXFileInfo]:
    """Files written before `horizon_ms` that lead no further than the newest snapshot written before then."""
    old = [file for file in files if _is_old(file, horizon_ms, now_ms)]
    newest = {file.level: file for file in sorted(files, key=lambda f: (f.max_txid, f.min_txid))}
    old_snapshots = [
        file
        for file in old
        if file.level == SNAPSHOT_LEVEL
        and file.min_txid == 1
        and (file.modified_ms <= horizon_ms or file != newest[SNAPSHOT_LEVEL])
    ]
    if not old_snapshots:
        return []
    base = max(old_snapshots, key=lambda file: file.max_txid)
    return [file for file in old if file.max_txid <= base.max_txid and file not in (base, newest[file.level])]


def _is_old(file: LTXFileInfo, horizon_ms: float, now_ms: float) -> bool:
    return file.modified_ms <= horizon_ms or file.modified_ms > now_ms + _CLOCK_DIFFERENCE_MS


def are_spare(
    files: Sequence[LTXFileInfo],
    doomed: Sequence[LTXFileInfo],
    horizon_ms: float = -math.inf,
    now_ms: float = math.inf,
) -> bool:
    """Whether `files` without `doomed` still make the states that must stay.

    The newest state must be the same, and every state at the end of a remaining file written after `horizon_ms` that
    can be made with all files must be one that can be made with the rest.
    """
    gone = set(doomed)
    rest = [file for file in files if file not in gone]
    try:
        if newest_state(rest).txid != newest_state(files).txid:
            return False
    except (ReplicaEmptyError, TXIDGapError) as error:
        logger.info("nothing can be deleted safely: %s", error)
        return False
    wanted = {file.max_txid for file in rest if not _is_old(file, horizon_ms, now_ms)}
    return wanted & reachable_txids(files).keys() <= reachable_txids(rest).keys()


def _delete(
    client: ReplicaClient,
    files: Sequence[LTXFileInfo],
    doomed: Sequence[LTXFileInfo],
    horizon_ms: float = -math.inf,
    now_ms: float = math.inf,
) -> list[LTXFileInfo]:
    if not doomed:
        return []
    if not are_spare(files, doomed, horizon_ms, now_ms):
        logger.warning("keeping %d files at %s that retention would delete: others need them", len(doomed), client.url)
        return []
    in_order = sorted(doomed, key=lambda file: (file.level, file.min_txid))
    client.delete(in_order)
    logger.info("deleted %d files at %s", len(in_order), client.url)
    return in_order


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of TXIDs, both ends included, with those that touch or overlap made one."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged
