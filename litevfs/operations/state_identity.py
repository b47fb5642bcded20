"""Tells a state from one of another replica that replaced its own and has the same TXID by chance.

A file's timestamp is that of its last transaction on every level, so a state is known by the timestamp in the headers
of the files that end with it. Snapshot files carry the time at which they were made: a known one proves the same
history, another one proves nothing (see `states.lineage`).
"""

from __future__ import annotations

from collections.abc import Collection

from litevfs.errors import LTXFormatError, StorageNotFoundError
from litevfs.files.fetch import Fetcher
from litevfs.ltx.file_info import SNAPSHOT_LEVEL, LTXFileInfo
from litevfs.states.snapshot import Snapshot


def marks_of(state: Snapshot, fetcher: Fetcher) -> frozenset[int]:
    """Times, in milliseconds since the Unix epoch, that only files of the state's own history carry at its end.

    Makes requests only if the state ends with a snapshot file, or reads no page from the file that it ends with.
    """
    ends = [file for file in state.files.values() if file.max_txid == state.txid]
    is_known = any(file.level != SNAPSHOT_LEVEL for file in ends)
    return frozenset({state.timestamp_ms, *([] if is_known else _transaction_times(fetcher, state.txid))})


def is_proved(marks: Collection[int], time_ms: int, txid: int, fetcher: Fetcher) -> bool:
    """Whether a state that ends with a file of this time is the one with these marks.

    Asks the storage only where a snapshot file, which may have been made since, has brought another time.
    """
    if time_ms in marks:
        return True
    found = _transaction_times(fetcher, txid)
    return bool(found) and found.issubset(marks)


def _transaction_times(fetcher: Fetcher, txid: int) -> set[int]:
    """The times of the files that end with a transaction, but for snapshot files, and those damaged or gone."""
    files = fetcher.retry(lambda: fetcher.list_from(0) or fetcher.list_levels(range(SNAPSHOT_LEVEL)))
    times = set()
    for file in files:
        if file.max_txid == txid and file.level != SNAPSHOT_LEVEL:
            times |= _time_of(file, fetcher)
    return times


def _time_of(file: LTXFileInfo, fetcher: Fetcher) -> set[int]:
    try:
        return set(fetcher.confirm_times([(file, None)]))
    except (LTXFormatError, StorageNotFoundError):
        return set()
