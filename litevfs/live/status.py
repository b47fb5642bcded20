"""A replica's status: its state and the counts of its parts in one value. Changes nothing."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace

from litevfs.files.fetch import Fetcher
from litevfs.files.keyed_files import DiskCounters
from litevfs.live.health import Health, State
from litevfs.live.prices import usd_month
from litevfs.ltx.names import format_txid
from litevfs.pages.source import PageSource
from litevfs.replica_clients.base import FindsWays
from litevfs.states.snapshot import Snapshot
from litevfs.units import format_timestamp


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """The status of a replica at one moment. Times are in seconds or RFC 3339, sizes in bytes; counters start with its
    first use."""

    url: str  # without credentials
    state: State
    txid: str  # of the published state, 16 hex digits; zeros before the first
    time: str | None  # when the primary made that transaction, RFC 3339
    epoch: int  # how often the replica was replaced by another
    page_size: int  # bytes
    commit: int  # size of the database, pages
    lag_s: float | None  # since the last successful refresh began; None before the first
    poll_interval_s: float  # 0: not polling
    errors: int  # failed refreshes so far
    last_error: str | None  # of the last refresh, if it failed
    cache_hits: int  # pages served from the page cache
    cache_hydrated: int  # pages served from the hydrated file
    cache_misses: int  # pages that had to be decoded
    cache_bytes: int  # memory of the caches
    spilled_bytes: int  # in the temporary file of `spill_size`
    spill_reads: int  # blocks and frames read back from there
    disk_cache_hits: int  # blocks found in the folder `cache_dir`
    disk_cache_misses: int  # blocks not found there
    disk_cache_damaged: int  # blocks found damaged there, deleted, and read from storage
    disk_cache_writing: bool  # false: there is no such folder, or a write to it failed
    index_bytes: int  # memory of the page map
    list_requests: int
    get_requests: int
    requests_usd_month: float | None  # at the pace since the first use, by `prices`; None where requests cost nothing
    bytes_read: int  # from storage
    retries: int  # requests made again after a passing failure
    second_requests: int  # made because the first was slower than 19 of 20
    workarounds: list[str]  # how the storage's server deviates, and what the client does about it

    def to_json(self) -> str:
        """One JSON object, the fields as above."""
        return json.dumps(asdict(self))


def collect_status(
    url: str,
    state: State,
    snapshot: Snapshot | None,
    poll_interval_s: float,
    health: Health,
    fetcher: Fetcher,
    pages: PageSource,
) -> ReplicaStatus:
    """The status of the replica that has these parts; `url` without credentials, `snapshot` the published one."""
    requests, counters, disk_cache = fetcher.counters, pages.counters, fetcher.disk_cache
    disk = disk_cache.counters if disk_cache else DiskCounters()
    return ReplicaStatus(
        url=url,
        state=state,
        txid=format_txid(snapshot.txid if snapshot else 0),
        time=format_timestamp(snapshot.timestamp_ms) if snapshot else None,
        epoch=snapshot.epoch if snapshot else 0,
        page_size=snapshot.page_size if snapshot else 0,
        commit=snapshot.commit if snapshot else 0,
        lag_s=health.lag_s(),
        poll_interval_s=poll_interval_s,
        errors=health.errors,
        last_error=health.last_error,
        cache_hits=max(0, counters.hits),
        cache_misses=counters.misses,
        cache_hydrated=counters.hydrated,
        cache_bytes=pages.memory_bytes,
        spilled_bytes=pages.spill.kept_bytes if pages.spill else 0,
        spill_reads=pages.spill.reads if pages.spill else 0,
        disk_cache_hits=disk.hits,
        disk_cache_misses=disk.misses,
        disk_cache_damaged=disk.damaged,
        disk_cache_writing=disk_cache is not None and disk_cache.is_writing,
        index_bytes=snapshot.index_bytes() if snapshot else 0,
        list_requests=requests.list,
        get_requests=requests.get,
        requests_usd_month=_usd_month(fetcher),
        bytes_read=requests.bytes_read,
        retries=requests.retries,
        second_requests=fetcher.hedges.second,
        workarounds=list(client.workarounds) if isinstance(client := fetcher.client, FindsWays) else [],
    )


def _usd_month(fetcher: Fetcher) -> float | None:
    counters = fetcher.counters
    seconds = time.monotonic() - counters.began
    return round(usd_month(counters.list, counters.get, seconds), 2) if fetcher.is_remote else None


def at_fixed_state(status: ReplicaStatus, snapshot: Snapshot) -> ReplicaStatus:
    """The status for a connection that stays at `snapshot`."""
    return replace(
        status,
        state=State.FIXED,
        txid=format_txid(snapshot.txid),
        time=format_timestamp(snapshot.timestamp_ms),
        epoch=snapshot.epoch,
        page_size=snapshot.page_size,
        commit=snapshot.commit,
    )
