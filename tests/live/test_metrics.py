"""`litevfs.metrics()`: what a process that reads replicas tells Prometheus."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import litevfs
from litevfs.live.counts import MOST_CLOSED, OTHERS, ClosedCounts
from litevfs.live.registry import ReplicaRegistry
from litevfs.options import Options
from litevfs.replica_clients.urls import open_replica_client
from tests.primary import Primary
from tests.support import wait_until

pytest.importorskip("prometheus_client", reason="needs the extra `metrics` (pip install 'litevfs[metrics]')")
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def samples(url: str) -> dict[tuple[str, ...], float]:
    """(name, further labels...) -> value, of the metrics of one replica."""
    found = {}
    for family in text_string_to_metric_families(litevfs.metrics()):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("replica") == url:
                found[(sample.name, *labels.values())] = sample.value
    return found


@pytest.fixture
def replica():
    url = f"memory://{uuid.uuid4().hex}"
    client = open_replica_client(url)
    with Primary(client) as primary:
        primary.commit("CREATE TABLE t (a)")
        yield url, primary
    client.close()


def test_a_reader_is_seen_with_its_txid_lag_requests_and_pages(replica):
    url, primary = replica
    assert samples(url) == {}
    connection = litevfs.connect(url, poll_interval="20ms")
    other = litevfs.connect(url, poll_interval="0")  # a replica of its own, which stays behind
    try:
        assert connection.execute("SELECT count(*) FROM t").get == 0
        before = samples(url)
        assert before["litevfs_txid",] == 1
        assert before["litevfs_connections",] == 2
        assert before["litevfs_database_bytes",] == 2 * 4096
        assert before["litevfs_transaction_timestamp_seconds",] == primary.timestamp_ms(1) / 1000
        assert before["litevfs_state", "current"] == 1
        assert before["litevfs_state", "behind"] == 0
        primary.commit("INSERT INTO t VALUES (1)")
        wait_until(lambda: samples(url)["litevfs_txid",] == 2, "the next transaction")
        assert connection.execute("SELECT count(*) FROM t").get == 1
        after = samples(url)
        assert 0 <= after["litevfs_lag_seconds",] < 60
        grown = ["litevfs_refreshes_total", "litevfs_read_bytes_total"]
        assert all(after[name,] > before[name,] for name in grown)
        assert sum(after["litevfs_pages_total", kind] for kind in ("cache", "hydrated", "storage")) > 0
        assert after["litevfs_failed_refreshes_total",] == 0
    finally:
        connection.close()
        other.close()
    closed = samples(url)
    assert ("litevfs_txid",) not in closed
    for key, value in closed.items():
        assert value >= after[key], key  # counts go on
    with litevfs.connect(url) as again:
        again.execute("SELECT count(*) FROM t").fetchall()
        assert samples(url)["litevfs_refreshes_total",] > closed["litevfs_refreshes_total",]
    again.close()


def test_a_replica_that_cannot_be_refreshed_shows_it(tmp_path: Path):
    client = open_replica_client(str(tmp_path / "replica"))
    with Primary(client) as primary:
        primary.commit("CREATE TABLE t (a)")
    connection = litevfs.connect(str(tmp_path / "replica"), poll_interval="20ms")
    try:
        (tmp_path / "replica").rename(tmp_path / "away")
        (tmp_path / "replica").write_text("in the way")
        wait_until(lambda: samples(client.url)["litevfs_failed_refreshes_total",] > 0, "a failed refresh")
        found = samples(client.url)
        assert found["litevfs_state", "behind"] + found["litevfs_state", "stalled"] == 1
    finally:
        connection.close()
        client.close()


def test_metrics_join_a_registry_of_the_application(replica):
    url, _ = replica
    registry = CollectorRegistry()
    litevfs.register_metrics(registry)
    connection = litevfs.connect(url)
    try:
        assert registry.get_sample_value("litevfs_txid", {"replica": url}) == 1
        with pytest.raises(ValueError, match="Duplicated"):
            litevfs.register_metrics(registry)
    finally:
        connection.close()


def test_counts_of_closed_replicas_are_bounded_and_none_is_lost():
    replicas = ReplicaRegistry()
    for number in range(3):
        replicas.release(replicas.acquire(Options.collect({"replica_url": f"memory://m{number}"}, {})))
    assert len(replicas.survey()[1]) == 3
    closed = ClosedCounts()
    lease = replicas.acquire(Options.collect({"replica_url": "memory://many"}, {}))
    lease.replica.health.refreshes = 1
    for number in range(MOST_CLOSED + 10):
        lease.replica.fetcher.client = open_replica_client(f"memory://r{number}")
        closed.add(lease.replica)
    replicas.release(lease)
    counts = dict(closed.items())
    assert len(counts) <= MOST_CLOSED + 1
    assert OTHERS in counts
    assert sum(one.refreshes for one in counts.values()) == MOST_CLOSED + 10


def test_without_prometheus_client_the_error_names_the_extra(tmp_path: Path):
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not installed')")
    program = "import litevfs\ntry: litevfs.metrics()\nexcept litevfs.OptionError as error: print(error)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "litevfs[metrics]" in done.stdout
