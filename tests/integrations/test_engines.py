"""Dask, Ray and Spark read one state of a table while the primary goes on, each for real, in a process of its own.

At the end retention removes a state between planning and reading: all three report the error of the piece.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import apsw
import pytest

import litevfs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]  # two of them start a cluster

ROOT = Path(__file__).parents[2]
ROWS = 5000

_COMMON = """
import sys, threading
import apsw, litevfs
database, replica = sys.argv[1:]

def go_on():
    \"\"\"The primary deletes everything and goes on; what was planned before still reads its state.\"\"\"
    application = apsw.Connection(database)
    with litevfs.Replicator(database, replica) as replicator:
        application.execute("DELETE FROM t WHERE id % 2 = 0")
        replicator.sync()
        application.execute("INSERT INTO t (name) VALUES ('late')")
        replicator.sync()
    application.close()

def remove_states():
    \"\"\"The primary goes on; compaction and retention leave its newest state only.\"\"\"
    from contextlib import closing
    from litevfs.maintenance.compaction import compact_level
    from litevfs.maintenance.retention import enforce_level_0_retention
    from litevfs.replica_clients.urls import open_replica_client
    go_on()
    with closing(open_replica_client(replica)) as client:
        compact_level(client, 1)
        enforce_level_0_retention(client, 2**62)

def show_error(read):
    try:
        print("read:", read())
    except Exception as error:
        said = "up in is not on the replica any more: retention removed it" in str(error) and "hold=True" in str(error)
        print("TXIDNotFoundError" in repr(error) + str(error), said)
"""

_DASK = (
    _COMMON
    + """
import dask
from litevfs.integrations.dask import read_table
with dask.config.set(scheduler="threads", num_workers=2):
    frame = read_table(replica, "t", npartitions=4, columns=["id", "name", "price", "kind", "odd"], as_text=["odd"])
    go_on()
    print(frame.npartitions, str(frame.dtypes["price"]), str(frame.dtypes["kind"]))
    print(int(frame.id.sum().compute()), len(frame), round(float(frame.price.sum().compute())))
    found = frame[frame.id.isin([7, 8])].compute()
    print(found.name.tolist(), found.odd.tolist())
    frame = read_table(replica, "t", npartitions=4, columns=["id"])
    remove_states()
    show_error(lambda: len(frame))
"""
)

_RAY = (
    _COMMON
    + """
import ray
from litevfs.integrations.ray import read_table
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False, object_store_memory=10**8)
ray.data.DataContext.get_current().enable_progress_bars = False
dataset = read_table(replica, "t", parallelism=4, as_text=["odd"])
go_on()
rows = dataset.to_pandas()
print(int(rows.id.sum()), len(rows), round(rows.price.sum()))
found = rows[rows.id.isin([7, 8])].sort_values("id")
print(found.name.tolist(), found.odd.tolist())
dataset = read_table(replica, "t", parallelism=4)
remove_states()
show_error(dataset.to_pandas)
ray.shutdown()
"""
)

_SPARK = (
    _COMMON
    + """
from pyspark.sql import SparkSession, functions
from litevfs.integrations.spark import register
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
spark.sparkContext.setLogLevel("OFF")
register(spark)
given = {"url": replica, "table": "t", "numPartitions": "4", "as_text": "odd"}
frame = spark.read.format("litevfs").options(**given).load()
print([(field.name, field.dataType.simpleString()) for field in frame.schema.fields])
go_on()
print(frame.rdd.getNumPartitions())
now = spark.read.format("litevfs").options(url=replica, table="t", txid="1", as_text="odd").load()
row = now.agg(functions.sum("id"), functions.count("id"), functions.round(functions.sum("price"))).collect()[0]
print(row[0], row[1], int(row[2]))
found = sorted(now.filter("id >= 7 and id <= 8").collect())
print([row.name for row in found], [row.odd for row in found])
fixed = spark.read.format("litevfs").options(url=replica, table="t", txid="3").load()
remove_states()
show_error(fixed.count)
spark.stop()
"""
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    connection = apsw.Connection(str(tmp_path / "app.db"))
    connection.pragma("journal_mode", "wal")
    connection.execute(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, price REAL, data BLOB, kind NUMERIC, odd INTEGER)"
    )
    with connection:
        connection.executemany(
            "INSERT INTO t VALUES (?, ?, ?, zeroblob(100), ?, ?)",
            [(n, f"name {n}", n / 4, n % 3, "none" if n == 7 else n) for n in range(1, ROWS + 1)],
        )
    with litevfs.Replicator(str(tmp_path / "app.db"), str(tmp_path / "replica")) as replicator:
        replicator.sync()
    connection.close()
    return tmp_path


def run(program: str, folder: Path) -> list[str]:
    environment = os.environ | {
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder / "app.db"), str(folder / "replica")],
        capture_output=True,
        text=True,
        timeout=250,
        env=environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


SUM = f"{ROWS * (ROWS + 1) // 2} {ROWS} {round(ROWS * (ROWS + 1) / 8)}"
FOUND = "['name 7', 'name 8'] ['none', '8']"
"""The text in a column of integers is read, as all its values are read as text."""
GONE = "True True"
"""What `show_error` prints of a `TXIDNotFoundError` with its text."""


@pytest.mark.skipif(find_spec("dask") is None or find_spec("pandas") is None, reason="pip install 'litevfs[engines]'")
def test_dask_reads_one_state(folder):
    types, *rows = run(_DASK, folder)
    assert types in ("4 double[pyarrow] string", "4 double[pyarrow] large_string[pyarrow]")  # as Dask is configured
    assert rows == [SUM, FOUND, GONE]


@pytest.mark.skipif(find_spec("ray") is None, reason="pip install 'litevfs[engines]'")
def test_ray_reads_one_state(folder):
    assert run(_RAY, folder)[-3:] == [SUM, FOUND, GONE]


@pytest.mark.skipif(find_spec("pyspark") is None, reason="pip install 'litevfs[engines]'")
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17")
def test_spark_reads_one_state(folder):
    types = [("id", "bigint"), ("name", "string"), ("price", "double"), ("data", "binary"), ("kind", "string")]
    types.append(("odd", "string"))
    assert run(_SPARK, folder) == [str(types), "4", SUM, FOUND, GONE]
