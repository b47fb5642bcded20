"""What a replica says of itself: its state and its counters, as values. Knows nothing of how they come about."""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass


class State(enum.StrEnum):
    """Where a replica is in its life."""

    OPENING = "opening"  # no complete state yet
    CURRENT = "current"  # the last look for new transactions succeeded, and the next one is not late
    BEHIND = "behind"  # the last look failed, found what it could not use, or takes long or is overdue
    STALLED = "stalled"  # behind for long: somebody should look
    CLOSED = "closed"
    FIXED = "fixed"  # said to a connection that sees one state whatever the replica does: txid, timestamp, time travel


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One look at a replica. Times are in seconds or RFC 3339, sizes in bytes; counters start with its first use."""

    url: str  # without credentials
    state: State
    txid: str  # of the published state, 16 hex digits; zeros before the first
    time: str | None  # when the primary made that transaction, RFC 3339
    epoch: int  # how often the replica was replaced by another
    page_size: int  # bytes
    commit: int  # size of the database, pages
    lag_s: float | None  # since the last successful look for new transactions began; None before the first
    poll_interval_s: float  # 0: not polling
    errors: int  # failed looks so far
    last_error: str | None  # of the last look, if it failed
    cache_hits: int  # pages served from the page cache
    cache_hydrated: int  # pages served from the hydrated file
    cache_misses: int  # pages that had to be decoded
    cache_bytes: int  # memory of the caches
    disk_cache_hits: int  # blocks found in the folder `cache_dir`
    disk_cache_misses: int  # blocks looked for there in vain
    disk_cache_damaged: int  # blocks found damaged there, deleted, and read from storage
    disk_cache_writing: bool  # false: there is no such folder, or it has failed and takes no more blocks
    index_bytes: int  # memory of the page map
    list_requests: int
    get_requests: int
    bytes_read: int  # from storage
    retries: int  # requests made again after a passing failure

    def to_json(self) -> str:
        """One JSON object, the fields as above."""
        return json.dumps(asdict(self))
