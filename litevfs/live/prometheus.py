"""The replicas of this process as Prometheus metrics. Needs the extra `metrics`; imported when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from litevfs.live.counts import Counts
from litevfs.live.health import State
from litevfs.live.registry import OpenReplica, ReplicaRegistry

_COUNTERS = (
    ("litevfs_requests", "Requests to the storage", "operation", (("list", "list_requests"), ("get", "get_requests"))),
    ("litevfs_failed_requests", "Requests that failed", None, ((None, "failed_requests"),)),
    ("litevfs_request_retries", "Requests made again after a passing failure", None, ((None, "retries"),)),
    (
        "litevfs_second_requests",
        "Requests made a second time as the first was slow",
        None,
        ((None, "second_requests"),),
    ),
    ("litevfs_read_bytes", "Bytes read from the storage", None, ((None, "bytes_read"),)),
    ("litevfs_refreshes", "Times that the storage was asked for what is new", None, ((None, "refreshes"),)),
    ("litevfs_failed_refreshes", "Refreshes that failed", None, ((None, "failed_refreshes"),)),
    (
        "litevfs_pages",
        "Pages that SQLite asked for, by where they were found",
        "source",
        (("cache", "pages_cached"), ("hydrated", "pages_hydrated"), ("storage", "pages_decoded")),
    ),
    (
        "litevfs_disk_cache_blocks",
        "Blocks looked for in the cache folder (damaged ones count as missing, too)",
        "result",
        (("found", "blocks_found"), ("missing", "blocks_missing"), ("damaged", "blocks_damaged")),
    ),
)


class ReplicaCollector(Collector):
    """Metrics of all replicas that connections of this process hold open, and counts of those closed since."""

    def __init__(self, replicas: ReplicaRegistry) -> None:
        self._replicas = replicas

    def describe(self) -> Iterable[Metric]:
        """The metrics without values: a registry refuses a second collector of these names."""
        yield from _counters({})
        yield from _gauges({})

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now. Makes no request."""
        opened, counts = self._replicas.survey()
        yield from _counters(counts)
        yield from _gauges(opened)


def _counters(counts: dict[str, Counts]) -> Iterable[Metric]:
    for name, text, label, parts in _COUNTERS:
        family = CounterMetricFamily(name, text, labels=["replica", *([label] if label else [])])
        for url, values in counts.items():
            for value, field in parts:
                family.add_metric([url, *([value] if value else [])], getattr(values, field))
        yield family


def _gauges(opened: dict[str, list[OpenReplica]]) -> Iterable[Metric]:
    texts = {
        "litevfs_txid": "The published TXID",
        "litevfs_transaction_timestamp_seconds": "When the primary made that transaction, Unix time",
        "litevfs_lag_seconds": "Since the last successful refresh began",
        "litevfs_database_bytes": "Size of the database",
        "litevfs_connections": "Connections that hold the replica open",
        "litevfs_memory_cache_bytes": "Memory of the caches",
        "litevfs_spilled_bytes": "Bytes in the temporary file for what memory has no room for",
        "litevfs_index_bytes": "Memory of the page map",
    }
    families = {name: GaugeMetricFamily(name, text, labels=["replica"]) for name, text in texts.items()}
    states = GaugeMetricFamily("litevfs_state", "1 for the state that the replica is in", labels=["replica", "state"])
    for url, replicas in opened.items():
        for name, value in _values(replicas).items():
            families[name].add_metric([url], value)
        state = _first(replicas).replica.state
        for one in (State.OPENING, State.CURRENT, State.BEHIND, State.STALLED):
            states.add_metric([url, one.value], float(one is state))
    yield from families.values()
    yield states


def _first(replicas: Sequence[OpenReplica]) -> OpenReplica:
    """Of several replicas of one URL, opened with different options, the one to tell about: the first that polls."""
    return next((one for one in replicas if one.polls), replicas[0])


def _values(replicas: Sequence[OpenReplica]) -> dict[str, float]:
    replica = _first(replicas).replica
    snapshot, lag_s = replica.snapshot, replica.lag_s()
    values: dict[str, float] = {
        "litevfs_connections": sum(one.connections for one in replicas),
        "litevfs_memory_cache_bytes": sum(one.replica.pages.memory_bytes for one in replicas),
        "litevfs_spilled_bytes": sum(one.replica.pages.spill.kept_bytes for one in replicas if one.replica.pages.spill),
        "litevfs_index_bytes": sum(one.replica.snapshot.index_bytes() for one in replicas if one.replica.snapshot),
    }
    if snapshot is not None:
        values["litevfs_txid"] = snapshot.txid
        values["litevfs_transaction_timestamp_seconds"] = snapshot.timestamp_ms / 1000
        values["litevfs_database_bytes"] = snapshot.commit * snapshot.page_size
    if lag_s is not None:
        values["litevfs_lag_seconds"] = lag_s
    return values
