"""`--metrics-addr`: a replicator's status over HTTP, for Prometheus and for health checks.

`/metrics` has Litestream's names where the meaning is the same, `litevfs_...` for the rest; `/healthz` answers 200
while commits reach the replica in time, else 503 with the reason. Needs the extra `metrics`.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from litevfs.concurrency.workers import start_thread
from litevfs.errors import OptionError
from litevfs.replicate.replicator import Replicator
from litevfs.replicate.status import CheckResult, PlaceStatus, ReplicatorStatus, why_unhealthy

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import GaugeMetricFamily, Metric, UntypedMetricFamily
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from prometheus_client.registry import Collector
except ImportError as _error:
    raise OptionError("--metrics-addr needs prometheus_client", hint="pip install 'litevfs[metrics]'") from _error


def parse_address(text: object) -> tuple[str, int]:
    """`host:port`, or `:port` for every interface, as Litestream's `addr`. Raises OptionError."""
    host, colon, port = str(text).rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise OptionError(f"not an address: {text!r}", hint="for example 127.0.0.1:9090")
    return host.strip("[]") or "0.0.0.0", int(port)


@contextmanager
def serving(address: str, replicators: Callable[[], Sequence[Replicator]]) -> Iterator[int]:
    """Serve the status at `address` until the block ends; gives the port. Raises OptionError if that fails."""
    registry = CollectorRegistry()
    registry.register(_Collector(replicators))
    try:
        server = _Server(parse_address(address), _handler(registry, replicators))
    except OSError as error:
        raise OptionError(f"cannot listen at {address}: {error.strerror or error}") from error
    thread = start_thread(server.serve_forever, "litevfs-metrics")
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


class _Collector(Collector):
    def __init__(self, replicators: Callable[[], Sequence[Replicator]]) -> None:
        self._replicators = replicators

    def collect(self) -> Iterable[Metric]:
        gauges: dict[str, GaugeMetricFamily] = {}
        totals: dict[str, list[int]] = {}  # by kind of replica: uploads, bytes
        for replicator in self._replicators():
            status, path = replicator.status, replicator.path
            for name, text, value in _gauges(path, status) + _check_gauges(replicator.last_check):
                family = gauges.setdefault(name, GaugeMetricFamily(name, text, labels=["db"]))
                family.add_metric([str(path)], value)
            for place in status.places:
                for name, text, value in _place_gauges(place) if len(status.places) > 1 else ():
                    family = gauges.setdefault(name, GaugeMetricFamily(name, text, labels=["db", "replica"]))
                    family.add_metric([str(path), place.replica], value)
                total = totals.setdefault(urlsplit(place.replica).scheme, [0, 0])
                total[0] += place.files_uploaded
                total[1] += place.bytes_uploaded
        yield from gauges.values()
        for index, (end, text) in enumerate((("total", "number"), ("bytes", "bytes"))):
            # Without a type: that of a counter would lengthen the name.
            operations = UntypedMetricFamily(
                f"litestream_replica_operation_{end}", f"Uploads, {text}", labels=["replica_type", "operation"]
            )
            for kind, total in totals.items():
                operations.add_metric([kind, "PUT"], total[index])
            yield operations


def _gauges(path: Path, status: ReplicatorStatus) -> list[tuple[str, str, float]]:
    wal = path.with_name(path.name + "-wal")
    return [
        ("litestream_db_size", "The current size of the database file, bytes", _size(path)),
        ("litestream_wal_size", "The current size of the WAL file, bytes", _size(wal)),
        ("litestream_txid", "The newest TXID made", status.txid),
        ("litevfs_uploaded_txid", "The newest TXID known to be on the replica", status.uploaded_txid),
        ("litevfs_pending_files", "LTX files that wait for their upload", status.pending_files),
        ("litevfs_snapshots", "Times that the whole database was captured", status.snapshots),
        ("litevfs_last_sync_timestamp_seconds", "Everything committed before is there", _seconds(status)),
        ("litevfs_has_lease", "Whether this primary has the lease", float(status.has_lease)),
        ("litevfs_failing", "Whether the last attempt failed", float(status.last_error is not None)),
        ("litevfs_maintenance_failing", "Whether upkeep fails", float(status.last_maintenance_error is not None)),
    ]


def _place_gauges(place: PlaceStatus) -> list[tuple[str, str, float]]:
    """Those of each place, where a database has several."""
    return [
        ("litevfs_place_uploaded_txid", "The newest TXID known to be at the place", place.uploaded_txid),
        ("litevfs_place_pending_files", "LTX files that wait for their upload there", place.pending_files),
        ("litevfs_place_last_sync_timestamp_seconds", "Everything committed before is there", _seconds(place)),
        ("litevfs_place_has_lease", "Whether this primary has the lease there", float(place.has_lease)),
        ("litevfs_place_failing", "Whether the last attempt failed there", float(place.last_error is not None)),
    ]


def _check_gauges(check: CheckResult | None) -> list[tuple[str, str, float]]:
    if check is None:
        return []
    return [
        (
            "litevfs_verify_timestamp_seconds",
            "When the replica was last compared with the database",
            check.time_ms / 1000,
        ),
        ("litevfs_verify_txid", "The TXID that was restored and compared", check.txid),
        ("litevfs_verify_failing", "Whether it was not the database", float(check.problem is not None)),
    ]


def _size(path: Path) -> float:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _seconds(status: ReplicatorStatus | PlaceStatus) -> float:
    return 0.0 if status.last_sync_ms is None else status.last_sync_ms / 1000


def _why_any_unhealthy(replicators: Sequence[Replicator]) -> str | None:
    reasons = {one.path: why_unhealthy(one.status, one.sync_interval_s) for one in replicators}
    failing = [(path, why) for path, why in reasons.items() if why is not None]
    if not failing:
        return None
    path, why = failing[0]
    return why if len(reasons) == 1 else f"{len(failing)} of {len(reasons)} databases: {path}: {why}"


def _handler(
    registry: CollectorRegistry, replicators: Callable[[], Sequence[Replicator]]
) -> Callable[..., BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif self.path == "/healthz":
                why = _why_any_unhealthy(replicators())
                self._answer(200 if why is None else 503, "text/plain; charset=utf-8", f"{why or 'ok'}\n".encode())
            else:
                self._answer(404, "text/plain", b"/metrics or /healthz\n")

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Log no requests."""

    return Handler
