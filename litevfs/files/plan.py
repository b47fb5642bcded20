"""From listings to the states they can make, and to the chain of files that makes one. Pure.

The rule is Litestream's restore plan: start from the newest snapshot that is not past the target, then again and again
take the file that connects (`min_txid <= covered + 1`) and reaches furthest, the higher level on a tie. Files may
overlap what is covered: a file holds the newest version of each page it names, so applying it again is harmless.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from litevfs.errors import ReplicaEmptyError, TXIDGapError, TXIDNotFoundError
from litevfs.ltx.file_info import SNAPSHOT_LEVEL, LTXFileInfo
from litevfs.ltx.names import MAX_TXID, format_txid

FILE_COST_BYTES = 1 << 14
"""What a request for a file costs beside its bytes."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Files to apply in this order, and how far they reach."""

    files: tuple[LTXFileInfo, ...]
    txid: int  # state after the last file; where the chain started from if it is empty
    gap: tuple[int, int] | None  # (first, last) TXID that no file holds although later ones exist

    def next_after(self, txid: int) -> LTXFileInfo:
        """The first file that a state at `txid` does not contain."""
        return next(file for file in self.files if file.max_txid > txid)


def extend(covered: int, files: Iterable[LTXFileInfo], target: int = MAX_TXID) -> Chain:
    """The files that lead on from the state `covered` (0: from nothing), never past `target`.

    A file that starts past what can be covered makes a gap; it is reported, not raised, since it may close by itself.
    """
    candidates = sorted(
        (f for f in files if covered < f.max_txid <= target), key=lambda f: (f.min_txid, f.max_txid, f.level)
    )
    chain: list[LTXFileInfo] = []
    best: LTXFileInfo | None = None
    position = 0
    while True:
        while position < len(candidates) and candidates[position].min_txid <= covered + 1:
            best = _further(best, candidates[position])
            position += 1
        if best is None or best.max_txid <= covered:
            break
        chain.append(best)
        covered = best.max_txid
    gap = (covered + 1, candidates[position].min_txid - 1) if position < len(candidates) else None
    return Chain(tuple(chain), covered, gap)


def least_bytes(covered: int, files: Iterable[LTXFileInfo], target: int) -> tuple[LTXFileInfo, ...] | None:
    """Files that lead on from the state `covered` to `target` exactly, of the least size together; None if none do.

    A file that begins before `covered` or goes over many transactions holds more than what changed, so this prefers
    small ones; each counts as FILE_COST_BYTES more, for its request.
    """
    best: dict[int, tuple[int, tuple[int, LTXFileInfo] | None]] = {covered: (0, None)}  # TXID -> (cost, from where)
    cheapest = [covered]  # TXIDs reached, ascending, each cheaper than all that lie before it are from there on
    for file in sorted((f for f in files if covered < f.max_txid <= target), key=lambda f: f.max_txid):
        place = bisect_left(cheapest, file.min_txid - 1)
        if place == len(cheapest):
            continue
        before = cheapest[place]
        cost = best[before][0] + file.size + FILE_COST_BYTES
        if before >= file.max_txid or (file.max_txid in best and best[file.max_txid][0] <= cost):
            continue
        best[file.max_txid] = cost, (before, file)
        while cheapest and best[cheapest[-1]][0] >= cost:
            cheapest.pop()
        cheapest.append(file.max_txid)
    if target not in best:
        return None
    found: list[LTXFileInfo] = []
    step = best[target][1]
    while step is not None:
        found.append(step[1])
        step = best[step[0]][1]
    return tuple(reversed(found))


def _further(a: LTXFileInfo | None, b: LTXFileInfo) -> LTXFileInfo:
    if a is None:
        return b
    return b if (b.max_txid, b.level) >= (a.max_txid, a.level) else a


def no_files_error() -> ReplicaEmptyError:
    """The error to raise when no level holds a file."""
    return ReplicaEmptyError(
        "the replica holds no LTX files", hint="check the path, and that the primary replicates to it"
    )


def newest_state(files: Iterable[LTXFileInfo], target: int | None = None) -> Chain:
    """The chain that makes the newest state, or the state at TXID `target` exactly.

    Raises ReplicaEmptyError (no files at all), TXIDGapError (later files exist but none connects) or, with a target,
    TXIDNotFoundError (past the newest TXID, or only part of a compacted file).
    """
    files = list(files)
    if not files:
        raise no_files_error()
    limit = MAX_TXID if target is None else target
    snapshots = [f for f in files if f.level == SNAPSHOT_LEVEL and f.min_txid == 1 and f.max_txid <= limit]
    newest = max(snapshots, key=lambda f: f.max_txid, default=None)
    start = () if newest is None else (newest,)
    rest = extend(0 if newest is None else newest.max_txid, files, limit)
    chain = Chain(start + rest.files, rest.txid, rest.gap)
    if target is not None and chain.txid != target:
        raise _not_found(files, target, chain.txid)
    if chain.gap is not None and target is None:
        raise gap_error(chain.gap)
    return chain


def gap_error(gap: tuple[int, int]) -> TXIDGapError:
    """The error for TXIDs that no listed file holds."""
    first, last = gap
    what = "the replica has no complete state: its first TXIDs are missing" if first == 1 else "LTX files are missing"
    hint = "restore the missing files, or run litevfs replicate --snapshot on the primary"
    if first > 1:
        hint += f"; txid={format_txid(first - 1)} is the state before them"
    return TXIDGapError(what, min_txid=first, max_txid=last, hint=hint)


def _not_found(files: list[LTXFileInfo], target: int, reached: int) -> TXIDNotFoundError:
    newest = max(f.max_txid for f in files)
    if target > newest:
        hint = f"the newest TXID is {format_txid(newest)}"
    elif reached:
        hint = f"the nearest earlier state is {format_txid(reached)}; later ones up to there are compacted away"
    elif (earliest := min((f.max_txid for f in files if f.min_txid == 1), default=None)) is not None:
        hint = f"the earliest state still held is {format_txid(earliest)}"
    else:
        hint = "no file begins with the first TXID, so there is no state; litevfs replicate --snapshot makes one"
    return TXIDNotFoundError("no such state in the replica", min_txid=target, hint=hint)


def reachable_ends(files: Sequence[LTXFileInfo]) -> dict[int, list[LTXFileInfo]]:
    """The TXIDs whose state the files can make, ascending, each with the files that end there: the lowest level first,
    since a full snapshot carries the time at which it was made instead of that of its last transaction. What lies
    before these files may be gone: with an old snapshot, retention deletes the files below the next one.
    """
    reachable: dict[int, list[LTXFileInfo]] = {}
    newest = 0
    for file in sorted(files, key=lambda f: (f.max_txid, -f.level)):
        if file.min_txid <= newest + 1:
            newest = file.max_txid
        if file.max_txid == newest:
            reachable.setdefault(newest, []).insert(0, file)
    return reachable


def reachable_txids(files: Sequence[LTXFileInfo]) -> dict[int, LTXFileInfo]:
    """See `reachable_ends`: each TXID with the first of its files."""
    return {txid: ends[0] for txid, ends in reachable_ends(files).items()}
