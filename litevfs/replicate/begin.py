"""Whether a replicator may make its database the next state of a replica that it does not continue. Does no uploads.

A database continues the replica if the same state folder replicated a database at the same path before. Otherwise it
has to be the replica's newest state, or to come from it (`provenance.py`): a container that came back with an empty
disk, where the application has just made a new database, must not be the next thing that readers see.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from litevfs.errors import LitevfsError, LTXFormatError, TXIDGapError, UnrelatedDatabaseError
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replicate.capture import Capture
from litevfs.replicate.marks import RestoredMark, read_restored
from litevfs.replicate.provenance import PageSums, continues_in_wal, is_newest_state
from litevfs.replicate.replica_position import ReplicaPosition, is_same_file, newest_time
from litevfs.replicate.upload_queue import fingerprint
from litevfs.units import format_timestamp

logger = logging.getLogger("litevfs.replicate")

_HINT = (
    "to go on with the replica's state: move the database away, and run `litevfs restore`, or start with "
    "--restore-if-missing; to make this database the newest state: --new-history"
)


def refuse_unrelated(
    client: ReplicaClient,
    path: Path,
    capture: Capture,
    there: ReplicaPosition,
    reason: str,
    restored_from: Collection[str] = (),
) -> None:
    """Return if the database is, or came from, the state that is `there`; any database may follow an empty replica.

    `reason` says why the local state cannot be continued. A mark of a restore from one of the URLs `restored_from`
    counts as well: the places of a database have the same TXIDs.

    Raises UnrelatedDatabaseError, ReplicatorError, StorageError.
    """
    if there.newest is None:
        return
    mark = read_restored(path)
    if is_restored(client, mark, restored_from, there):
        logger.info("%s: restored from TXID %016x, and goes on from there", path, there.txid)
        return
    why = None if _is_of_litestream(client, path, there) else _why_not_same(client, capture, there)
    if why is not None:
        raise UnrelatedDatabaseError(
            "the database is not the replica's newest state, and nothing shows that it came from it "
            f"({reason}; {why}). Replica: {_describe(there)}. Database: {_describe_database(path, capture, mark)}",
            key=f"{path} to {client.url}",
            hint=_HINT,
        )
    logger.info("%s: has the state of TXID %016x of the replica, and goes on from there", path, there.txid)


def is_restored(
    client: ReplicaClient, mark: RestoredMark | None, restored_from: Collection[str], there: ReplicaPosition
) -> bool:
    """Whether the restore that left the mark made the state that is `there`. See `refuse_unrelated`."""
    if mark is None or there.header is None or mark.txid != there.txid:
        return False
    if mark.replica_url not in {client.url, *restored_from}:
        return False
    return mark.timestamp_ms == there.header.timestamp_ms or mark.timestamp_ms == newest_time(client, there)


def _is_of_litestream(client: ReplicaClient, path: Path, there: ReplicaPosition) -> bool:
    """Whether Litestream, whose own files lie beside the database, has made the replica's newest TXID of it."""
    folder = path.with_name(f".{path.name}-litestream") / "ltx" / "0"
    for file in there.files:
        with suppress(FileNotFoundError), (folder / file.name).open("rb") as content:
            if file.max_txid == there.txid and is_same_file(client, file, fingerprint(content)):
                return True
    return False


def _why_not_same(client: ReplicaClient, capture: Capture, there: ReplicaPosition) -> str | None:
    if there.header is None or there.problem is not None:
        return f"the replica has no whole newest state: {there.problem}"
    ours, theirs = capture.database.page_size, there.header.page_size
    if ours != theirs:
        return f"the database has pages of {ours} bytes, the replica has pages of {theirs}"
    file = next((file for file in there.files if file.max_txid == there.txid), None)
    commit = there.header.commit
    try:
        if file is not None and capture.read_all(lambda wal, state, _: continues_in_wal(client, file, wal, state)):
            return None
        sums = capture.read_all(lambda wal, state, content: PageSums(content) if content.commit == commit else None)
        if sums is None:
            return "their sizes differ"
        return None if is_newest_state(client, there.txid, sums) else "their pages differ"
    except (LTXFormatError, TXIDGapError) as exc:
        return f"the replica cannot be read: {exc.message}"


def _describe(there: ReplicaPosition) -> str:
    if there.header is None:
        return f"TXID {there.txid:016x}, its newest file damaged"
    time = format_timestamp(there.header.timestamp_ms)
    return f"TXID {there.txid:016x} of {time}, {there.header.commit * there.header.page_size:,} bytes"


def _describe_database(path: Path, capture: Capture, mark: RestoredMark | None) -> str:
    if capture.state is not None:
        last = f"last replicated as TXID {capture.state.txid:016x}"
    elif mark is not None:
        last = f"restored from TXID {mark.txid:016x}"
    else:
        last = "no TXID"
    try:
        size = capture.read_all(lambda wal, state, content: content.commit * content.page_size)
        modified_ms = max(file.stat().st_mtime_ns for file in _files(path)) // 1_000_000
    except (LitevfsError, OSError, ValueError):
        return last
    return f"{last}, last written {format_timestamp(modified_ms)}, {size:,} bytes"


def _files(path: Path) -> list[Path]:
    wal = path.with_name(path.name + "-wal")
    return [path, wal] if wal.exists() else [path]
