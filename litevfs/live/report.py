"""Puts what the parts of a replica count together into one `ReplicaStatus`. Changes nothing."""

from __future__ import annotations

from dataclasses import replace

from litevfs.files.disk_cache import DiskCounters
from litevfs.files.fetch import Fetcher
from litevfs.live.health import Health
from litevfs.live.status import ReplicaStatus, State
from litevfs.ltx.names import format_txid
from litevfs.options import format_timestamp
from litevfs.pages.source import PageSource
from litevfs.states.snapshot import Snapshot


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
        last_error=str(health.last_error) if health.last_error else None,
        cache_hits=counters.hits,
        cache_misses=counters.misses,
        cache_hydrated=counters.hydrated,
        cache_bytes=pages.memory_bytes,
        disk_cache_hits=disk.hits,
        disk_cache_misses=disk.misses,
        disk_cache_damaged=disk.damaged,
        disk_cache_writing=disk_cache is not None and disk_cache.is_writing,
        index_bytes=snapshot.index_bytes() if snapshot else 0,
        list_requests=requests.list,
        get_requests=requests.get,
        bytes_read=requests.bytes_read,
        retries=requests.retries,
    )


def at_fixed_state(status: ReplicaStatus, snapshot: Snapshot) -> ReplicaStatus:
    """The same replica as a connection sees it that stays at `snapshot`."""
    return replace(
        status,
        state=State.FIXED,
        txid=format_txid(snapshot.txid),
        time=format_timestamp(snapshot.timestamp_ms),
        epoch=snapshot.epoch,
        page_size=snapshot.page_size,
        commit=snapshot.commit,
    )
