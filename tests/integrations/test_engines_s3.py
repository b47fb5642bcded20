"""Dask, Ray and Spark over a real S3 server while a primary commits and retention runs: each reads one whole state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import apsw
import pytest

import litevfs
from litevfs.maintenance.compaction import compact_level
from litevfs.maintenance.retention import enforce_level_0_retention
from litevfs.replica_clients.urls import open_replica_client
from litevfs.testing.s3_proxy import HTTPProxy, running_s3_proxy
from litevfs.testing.s3_server import S3Server
from tests.servers import running_minio
from tests.support import wait_until

pytestmark = [pytest.mark.servers, pytest.mark.timeout(280)]

ROOT = Path(__file__).parents[2]
ROWS = 3000
BUCKET = "engines"

_COMMON = """
import json, sys, time
import litevfs
url, cache = sys.argv[1:]

def show(txid, count, low, high, total):
    print(json.dumps({"txid": txid, "count": int(count), "low": int(low), "high": int(high), "total": int(total)}))
"""

_HELD = (
    _COMMON
    + """
def rounds():
    \"\"\"States that the primary is asked to keep; each is read when it has gone on for a while.\"\"\"
    for _ in range(2):
        txid = litevfs.partitions(url, "t", 1, hold=True)[0].txid
        time.sleep(1.0)
        yield f"{txid:016x}"
"""
)

_FIXED = (
    _COMMON
    + """
def rounds():
    \"\"\"The only state.\"\"\"
    yield f"{1:016x}"
"""
)

_DASK = """
import dask
from litevfs.integrations.dask import read_table
with dask.config.set(scheduler="processes", num_workers=2):
    for txid in rounds():
        frame = read_table(url, "t", npartitions=4, txid=txid, columns=["id", "version"], cache_dir=cache)
        version = frame.version
        show(txid, *dask.compute(version.count(), version.min(), version.max(), frame.id.sum()))
"""

_RAY = """
import ray
from litevfs.integrations.ray import read_table
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False, object_store_memory=10**8)
ray.data.DataContext.get_current().enable_progress_bars = False
for txid in rounds():
    rows = read_table(url, "t", parallelism=4, txid=txid, columns=["id", "version"], cache_dir=cache).to_pandas()
    show(txid, len(rows), rows.version.min(), rows.version.max(), rows.id.sum())
ray.shutdown()
"""

_SPARK = """
from pyspark.sql import SparkSession, functions as f
from litevfs.integrations.spark import register
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
spark.sparkContext.setLogLevel("OFF")
register(spark)
for txid in rounds():
    options = {"url": url, "table": "t", "txid": txid, "cache_dir": cache, "numPartitions": "4"}
    frame = spark.read.format("litevfs").options(**options).load()
    row = frame.agg(f.count("id"), f.min("version"), f.max("version"), f.sum("id")).collect()[0]
    show(txid, *row)
spark.stop()
"""


class LivePrimary:
    """Commits all the time, compacts, and deletes level-0 files as soon as retention may."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url = url
        self.versions: dict[int, int] = {}  # of the table in the state after each TXID
        self.error: Exception | None = None
        self._stop = threading.Event()
        self._database = str(folder / "app.db")
        self._thread = threading.Thread(target=self._run, name="primary")
        with closing(apsw.Connection(self._database)) as connection:
            connection.pragma("journal_mode", "wal")
            connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, version INTEGER, filler BLOB)")
            rows = ((number,) for number in range(1, ROWS + 1))
            connection.executemany("INSERT INTO t VALUES (?, 0, randomblob(50))", rows)
        self.started = threading.Event()
        self._thread.start()

    def _run(self) -> None:
        client = open_replica_client(self.url)
        try:
            with (
                closing(client),
                closing(apsw.Connection(self._database)) as connection,
                litevfs.Replicator(self._database, self.url, sync_interval_s=3600) as replicator,
            ):
                version = 0
                self.versions[replicator.sync()] = version
                self.started.set()
                while not self._stop.wait(0.05):
                    version += 1
                    with connection:
                        connection.execute("UPDATE t SET version = ?", (version,))
                        connection.execute("INSERT INTO t VALUES (?, ?, NULL)", (ROWS + version, version))
                    self.versions[replicator.sync()] = version
                    if version % 3 == 0:
                        compact_level(client, 1)
                        enforce_level_0_retention(client, 2**62)
        except Exception as error:  # noqa: BLE001 (the fixture raises it)
            self.error = error
        finally:
            self.started.set()

    def wait_for_another_state(self) -> None:
        known = len(self.versions)
        wait_until(lambda: len(self.versions) > known or self.error, "another state", 30)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_minio(tmp_path_factory.mktemp("minio")) as server:
        with closing(server.boto3_client()) as client:
            client.create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture
def primary(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LivePrimary]:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    primary = LivePrimary(tmp_path, server.url(BUCKET, tmp_path.name))
    try:
        assert primary.started.wait(30)
        yield primary
    finally:
        primary.close()
    assert primary.error is None


def run(program: str, url: str, folder: Path) -> list[dict[str, int | str]]:
    """What a program prints, in a process of its own; its workers share a folder."""
    environment = os.environ | {
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    script = folder / "engine.py"
    script.write_text(guarded(program))
    done = subprocess.run(
        [sys.executable, str(script), url, str(folder / "cache")],
        capture_output=True,
        text=True,
        timeout=250,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(program: str, primary: LivePrimary, folder: Path) -> None:
    """Each result is the state of its TXID, though most states are gone by then."""
    unheld = []
    for _ in range(4):
        unheld += litevfs.partitions(primary.url, "t", 1, columns=["version"])
        primary.wait_for_another_state()
    results = run(_HELD + program, primary.url, folder)
    assert len(results) == 2
    for result in results:
        version = primary.versions[int(result["txid"], 16)]
        rows = ROWS + version
        expected = {"count": rows, "low": version, "high": version, "total": rows * (rows + 1) // 2}
        assert result == {"txid": result["txid"], **expected}
    assert results[0] != results[1]
    primary.close()
    gone = 0
    for piece in unheld:  # some of these states are the last ones of compacted files
        version = primary.versions[piece.txid]
        try:
            assert piece.read()["version"].to_pylist() == [version] * (ROWS + version)
        except litevfs.TXIDNotFoundError as error:
            assert "was cut up in is not on the replica any more" in str(error)
            gone += 1
    assert gone


def guarded(program: str) -> str:
    """As a main program that processes which import it do not run again."""
    return (
        "def main():\n"
        + "".join(f"    {line}\n" for line in program.splitlines())
        + ("\nif __name__ == '__main__':\n    main()\n")
    )


ENGINES = pytest.mark.parametrize(
    ("program", "package"), [(_DASK, "dask"), (_RAY, "ray"), (_SPARK, "pyspark")], ids=["dask", "ray", "spark"]
)


@ENGINES
def test_an_engine_reads_states_that_are_held_while_the_primary_goes_on(primary, tmp_path, program, package):
    skip_without(package)
    check(program, primary, tmp_path)


def skip_without(package: str) -> None:
    if find_spec(package) is None or find_spec("pandas") is None:
        pytest.skip("pip install 'litevfs[engines]'")
    if package == "pyspark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java 17")


# --- the folder that workers share ------------------------------------------------------------------------------------


@pytest.fixture
def counted(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, HTTPProxy]]:
    """A replica of one state of about 6 MB behind a proxy that counts."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    database = tmp_path / "app.db"
    with closing(apsw.Connection(str(database))) as connection:
        connection.pragma("journal_mode", "wal")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, version INTEGER, filler BLOB)")
        with connection:
            rows = ((number,) for number in range(1, ROWS + 1))
            connection.executemany("INSERT INTO t VALUES (?, 7, randomblob(2000))", rows)
        with litevfs.Replicator(database, server.url(BUCKET, tmp_path.name)) as replicator:
            assert replicator.sync() == 1
    with running_s3_proxy(server.endpoint) as proxy:
        yield server.url(BUCKET, tmp_path.name, endpoint=proxy.endpoint), proxy


def check_folder(program: str, counted: tuple[str, HTTPProxy], folder: Path) -> None:
    """The workers of one job read each byte once; those of the next one, other processes, take them from the folder."""
    url, proxy = counted
    expected = {"txid": f"{1:016x}", "count": ROWS, "low": 7, "high": 7, "total": ROWS * (ROWS + 1) // 2}
    assert run(_FIXED + program, url, folder) == [expected]
    assert 5_000_000 < proxy.answered_bytes < 8_000_000
    assert reads_of(proxy)
    proxy.clear()
    assert run(_FIXED + program, url, folder) == [expected]
    assert reads_of(proxy) == []
    assert proxy.requests  # listings


def reads_of(proxy: HTTPProxy) -> list[str | None]:
    """The ranges of the LTX files that were read."""
    return [request.range for request in proxy.requests if request.method == "GET" and request.path.endswith(".ltx")]


@ENGINES
def test_the_workers_of_an_engine_share_a_folder(counted, tmp_path, program, package):
    skip_without(package)
    check_folder(program, counted, tmp_path)
