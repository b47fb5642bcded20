"""What the replicas of a process have done so far, by replica: the numbers behind its metrics. Knows no format of them.

A replica is closed with its last connection, and a process may open one for each request that it serves: counts of
closed replicas are kept, so that none goes back.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import astuple, dataclass

from litevfs.files.keyed_files import DiskCounters
from litevfs.live.replica import Replica

MOST_CLOSED = 1000
"""Closed replicas whose counts are kept by URL; those closed before are added up under `OTHERS`."""
OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers that only grow, from the first use of a replica on."""

    list_requests: int = 0
    get_requests: int = 0
    failed_requests: int = 0
    retries: int = 0
    second_requests: int = 0
    bytes_read: int = 0
    refreshes: int = 0
    failed_refreshes: int = 0
    pages_cached: int = 0  # pages that SQLite asked for, by where they were found
    pages_hydrated: int = 0
    pages_decoded: int = 0
    blocks_found: int = 0  # in the folder `cache_dir`
    blocks_missing: int = 0
    blocks_damaged: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def counts_of(replica: Replica) -> Counts:
    """The counts of an open replica."""
    requests, pages, health = replica.fetcher.counters, replica.pages.counters, replica.health
    disk = replica.fetcher.disk_cache.counters if replica.fetcher.disk_cache else DiskCounters()
    return Counts(
        list_requests=requests.list,
        get_requests=requests.get,
        failed_requests=requests.errors,
        retries=requests.retries,
        second_requests=replica.fetcher.hedges.second,
        bytes_read=requests.bytes_read,
        refreshes=health.refreshes,
        failed_refreshes=health.errors,
        pages_cached=max(0, pages.hits),
        pages_hydrated=pages.hydrated,
        pages_decoded=pages.misses,
        blocks_found=disk.hits,
        blocks_missing=disk.misses,
        blocks_damaged=disk.damaged,
    )


class ClosedCounts:
    """Counts of closed replicas by URL, a bounded number of them. Not safe to use from two threads at once."""

    def __init__(self) -> None:
        self._by_url: OrderedDict[str, Counts] = OrderedDict()

    def add(self, replica: Replica) -> None:
        """Note the counts of a replica that is about to be closed."""
        self._add(replica.url, counts_of(replica))
        while len(self._by_url) > MOST_CLOSED:
            _, counts = self._by_url.popitem(last=False)
            self._add(OTHERS, counts)

    def _add(self, url: str, counts: Counts) -> None:
        self._by_url[url] = self._by_url.get(url, Counts()) + counts
        self._by_url.move_to_end(url)

    def items(self) -> list[tuple[str, Counts]]:
        """(URL, counts) of each."""
        return list(self._by_url.items())
