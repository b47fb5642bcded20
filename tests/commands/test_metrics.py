"""`litevfs replicate --metrics-addr`: what Prometheus and a health check get of a replicator that runs."""

from __future__ import annotations

import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from litevfs.errors import OptionError
from litevfs.replicate import Replicator
from litevfs.replicate.status import unix_time_ms
from tests.replicate.support import failing_client, refuse_writes
from tests.support import wait_until

pytest.importorskip("prometheus_client", reason="needs the extra `metrics` (pip install 'litevfs[metrics]')")
from prometheus_client.parser import text_string_to_metric_families

from litevfs.commands.metrics import parse_address, serving


def get(port: int, path: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_are_litestreams_where_the_thing_is_the_same_and_health_follows_the_uploads(tmp_path: Path):
    path, client = tmp_path / "app.db", failing_client(tmp_path / "replica")
    with closing(apsw.Connection(str(path))) as app, closing(client):
        app.execute("PRAGMA journal_mode=WAL").fetchall()
        app.execute("CREATE TABLE t (a)")
        with (
            Replicator(path, client, sync_interval_s=0.02) as replicator,
            serving("127.0.0.1:0", lambda: (replicator,)) as port,
        ):
            assert get(port, "/healthz") == (503, "nothing was synced yet\n")
            replicator.sync()
            assert get(port, "/healthz") == (200, "ok\n")
            families = text_string_to_metric_families(get(port, "/metrics")[1])
            found = {sample.name: (sample.labels, sample.value) for family in families for sample in family.samples}
            size = sum(file.size for file in client.list_files(0))
            db = {"db": str(path)}
            assert found["litestream_db_size"] == (db, path.stat().st_size)
            assert found["litestream_wal_size"] == (db, path.with_name("app.db-wal").stat().st_size)
            assert found["litestream_txid"] == found["litevfs_uploaded_txid"] == (db, 1)
            put = {"replica_type": "file", "operation": "PUT"}
            assert found["litestream_replica_operation_total"] == (put, 1)
            assert found["litestream_replica_operation_bytes"] == (put, size)
            assert found["litevfs_has_lease"] == (db, 1)
            refuse_writes(client)
            replicator.start()
            app.execute("INSERT INTO t VALUES (1)")
            wait_until(lambda: get(port, "/healthz")[0] == 503)
            assert "injected fault" in get(port, "/healthz")[1]
            assert get(port, "/other")[0] == 404


@pytest.mark.parametrize(("sync_interval_s", "code"), [(1.0, 503), (600.0, 200)])
def test_what_is_late_is_told_by_the_interval_of_each_database(tmp_path: Path, sync_interval_s: float, code: int):
    path = tmp_path / "app.db"
    with closing(apsw.Connection(str(path))) as app:
        app.execute("PRAGMA journal_mode=WAL; CREATE TABLE t (a)").fetchall()
        replica = str(tmp_path / "replica")
        with Replicator(
            path, replica, sync_interval_s=sync_interval_s, clock_ms=lambda: unix_time_ms() - 100_000
        ) as replicator:
            replicator.sync()
            with serving("127.0.0.1:0", lambda: (replicator,)) as port:
                assert get(port, "/healthz")[0] == code


@pytest.mark.parametrize("text", ["", "9090", "host:", "host:99999", "host:http"])
def test_what_is_no_address_is_refused(text: str):
    with pytest.raises(OptionError, match="not an address"):
        parse_address(text)


def test_an_address_may_leave_the_host_out():
    assert parse_address(":9090") == ("0.0.0.0", 9090)
    assert parse_address("[::1]:80") == ("::1", 80)


def test_each_of_several_places_has_values_of_its_own_and_health_needs_all(tmp_path: Path):
    path, client = tmp_path / "app.db", failing_client(tmp_path / "replica")
    with closing(apsw.Connection(str(path))) as app, closing(client):
        app.execute("PRAGMA journal_mode=WAL").fetchall()
        app.execute("CREATE TABLE t (a)")
        with (
            Replicator(path, str(tmp_path / "other"), places=[client], sync_interval_s=0.02) as replicator,
            serving("127.0.0.1:0", lambda: (replicator,)) as port,
        ):
            replicator.sync()
            refuse_writes(client)
            app.execute("INSERT INTO t VALUES (1)")
            replicator.start()
            wait_until(lambda: get(port, "/healthz")[0] == 503)
            assert get(port, "/healthz")[1].startswith(f"to {client.url}: ")
            wait_until(lambda: replicator.status.places[0].uploaded_txid == 2)
            text = get(port, "/metrics")[1]
            found = {
                (sample.name, sample.labels.get("replica")): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
            for number, place in enumerate(replicator.places):
                assert found["litevfs_place_uploaded_txid", place.client.url] == (2, 1)[number]
                assert found["litevfs_place_pending_files", place.client.url] == (0, 1)[number]
                assert found["litevfs_place_failing", place.client.url] == (0, 1)[number]
                assert found["litevfs_place_has_lease", place.client.url] == 1
            assert found["litevfs_uploaded_txid", None] == 1
            client.faults.clear()
            wait_until(lambda: get(port, "/healthz")[0] == 200)
