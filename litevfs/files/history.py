"""Which states a replica holds, and which of them was the newest at a given time. Pure but for the clock.

A file's timestamp is that of its last transaction, so timestamps grow with `max_txid`: a binary search reads the
headers of a handful of files however long the history is. Full snapshots are the exception: they carry the time at
which they were made, and are asked only about states that no other file ends at.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence

from litevfs.errors import OptionError, TXIDNotFoundError
from litevfs.files.plan import extend, no_files_error
from litevfs.options import format_timestamp, parse_duration_s, parse_timestamp_ms
from litevfs.replica_clients.base import LTXFileInfo

_RELATIVE = re.compile(r"(\d+(?:\.\d*)?)\s*([a-zµ]+)\s+ago|-\s*(\d+(?:\.\d*)?)\s*([a-zµ]+)", re.IGNORECASE)
_MAX_AGO_S = 1e15
"""Before anything that could have been stored."""
_UNITS = {
    "second": "s",
    "sec": "s",
    "minute": "m",
    "min": "m",
    "hour": "h",
    "hr": "h",
    "day": "d",
}


def parse_moment_ms(text: str, now_ms: int) -> int:
    """Milliseconds since the Unix epoch, from RFC 3339 or `5 minutes ago`, `-5m`, `yesterday`, `now`.

    Raises OptionError for anything else.
    """
    words = text.strip().lower()
    if words == "now":
        return now_ms
    if words == "yesterday":
        return now_ms - 86_400_000
    match = _RELATIVE.fullmatch(words)
    try:
        if match is None:
            return parse_timestamp_ms(text)
        number, unit = match[1] or match[3], match[2] or match[4]
        short = _UNITS.get(unit.removesuffix("s"), unit)
        if unit in {"week", "weeks"}:
            number, short = str(float(number) * 7), "d"
        return now_ms - round(parse_duration_s(f"{number}{short}", most_s=_MAX_AGO_S) * 1000)
    except OptionError as error:
        raise OptionError(
            f"not a time: {text!r}", hint="write RFC 3339 (2026-01-31T12:00:00Z), or for example '5 minutes ago'"
        ) from error


def reachable_txids(files: Sequence[LTXFileInfo]) -> dict[int, LTXFileInfo]:
    """The TXIDs whose state the files can make, ascending, each with a file that ends there: of the lowest level, since
    a full snapshot carries the time at which it was made instead of that of its last transaction. What that file
    connects to may be gone: with an old snapshot, retention takes what lies below the next one.
    """
    reachable: dict[int, LTXFileInfo] = {}
    newest = 0
    for file in sorted(files, key=lambda f: (f.max_txid, -f.level)):
        if file.min_txid <= newest + 1:
            newest = file.max_txid
        if file.max_txid == newest:
            reachable[newest] = file
    return reachable


def state_at(files: Sequence[LTXFileInfo], timestamp_ms: int, read_timestamp_ms: Callable[[LTXFileInfo], int]) -> int:
    """The TXID of the newest state at a time; reads about log2(number of states) headers.

    Raises ReplicaEmptyError, or TXIDNotFoundError for a time before the first state or in the future.
    """
    if not files:
        raise no_files_error()
    if timestamp_ms > time.time() * 1000:
        raise TXIDNotFoundError(f"{format_timestamp(timestamp_ms)} lies in the future")
    states = list(reachable_txids(files).items())
    low, high = 0, len(states)  # states[:low] are not younger than the time, states[high:] are
    earliest_ms = None
    while low < high:
        middle = (low + high) // 2
        found_ms = read_timestamp_ms(states[middle][1])
        if found_ms <= timestamp_ms:
            low = middle + 1
        else:
            high, earliest_ms = middle, found_ms
    if low:
        return states[low - 1][0]
    if earliest_ms is None:
        chain = extend(0, files)
        raise TXIDNotFoundError("the replica holds no complete state", min_txid=chain.txid + 1)
    raise TXIDNotFoundError(
        f"no state is as old as {format_timestamp(timestamp_ms)}",
        hint=f"the earliest state still held is of {format_timestamp(earliest_ms)}",
    )
