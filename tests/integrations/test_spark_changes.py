"""A stream of row changes in Spark, for real: commits between batches, a restart from the checkpoint, a replay."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import apsw
import pytest

import litevfs
from litevfs.errors import OptionError, ResultTypeError, TXIDNotFoundError
from litevfs.replica_clients.file import FileReplicaClient
from tests.primary import Primary

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(280),
    pytest.mark.skipif(find_spec("pyspark") is None, reason="pip install 'litevfs[engines]'"),
]

ROOT = Path(__file__).parents[2]

_PROGRAM = """
import json, shutil, sys
import apsw, litevfs
from pathlib import Path
from pyspark.sql import SparkSession
from litevfs.integrations.spark import register
database, replica, checkpoint = sys.argv[1:]
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
spark.sparkContext.setLogLevel("OFF")
register(spark)

def show(name, rows):
    print(json.dumps([name, rows]))

def stream(begin):
    options = {"url": replica, "table": "t", "from": begin, "poll_interval": "50ms"}
    return spark.readStream.format("litevfs").options(**options).load()

def keep(frame, batch):
    rows = [[*row[:-1], row.data and row.data.hex()] for row in frame.collect()]
    show(f"batch {batch}", rows)

def wait_for(query, txid):
    # until a batch up to that TXID is done
    while f"{txid:016x}" not in str(query.lastProgress and query.lastProgress["sources"][0]["endOffset"]):
        query.awaitTermination(0.05)

def run(frame):
    return frame.writeStream.option("checkpointLocation", checkpoint).foreachBatch(keep).start()

def commit(replicator, application, *statements):
    with application:
        for statement in statements:
            application.execute(statement)
    return replicator.sync()

show("schema", [[field.name, field.dataType.simpleString()] for field in stream("1").schema.fields])
application = apsw.Connection(database)
with litevfs.Replicator(database, replica) as replicator:
    commit(replicator, application, "INSERT INTO t (id, name, kind) VALUES (10, 'ten', 1.5), (11, 'eleven', 3)")
    query = run(stream("1"))
    query.processAllAvailable()
    commit(replicator, application, "UPDATE t SET name = 'X' WHERE id = 1", "DELETE FROM t WHERE id = 2")
    wait_for(query, commit(replicator, application, "INSERT INTO other VALUES (1)"))
    query.stop()
    commit(replicator, application, "INSERT INTO t (id, data) VALUES (12, x'00ff')", "DELETE FROM t WHERE id = 10")
    query = run(stream("1"))  # from the checkpoint
    query.processAllAvailable()
    query.stop()
last = max(int(path.name) for path in Path(checkpoint, "commits").iterdir() if path.name.isdigit())
for path in Path(checkpoint, "commits").glob(f"*{last}*"):
    path.unlink()  # as if Spark had died after the batch and before it was told so
show("replay", [])
query = run(stream("1"))
query.processAllAvailable()
query.stop()
try:
    stream("ff").writeStream.format("noop").start().processAllAvailable()
except Exception as error:
    show("gone", [line for line in str(error).splitlines() if "litevfs.errors." in line][:1])
spark.stop()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with closing(apsw.Connection(str(tmp_path / "app.db"))) as connection:
        connection.pragma("journal_mode", "wal")
        connection.execute(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, twice AS (id * 2), price REAL, kind NUMERIC, data BLOB)"
            "; CREATE TABLE other (x); INSERT INTO t (id, name, price) VALUES (1, 'one', 0.25), (2, 'two', 0.5)"
        )
        with litevfs.Replicator(str(tmp_path / "app.db"), str(tmp_path / "replica")) as replicator:
            replicator.sync()
    return tmp_path


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17")
def test_each_change_comes_once_over_restarts_and_the_same_way_in_a_replay(folder):
    environment = {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *(str(folder / name) for name in ("app.db", "replica", "checkpoint"))],
        capture_output=True,
        text=True,
        timeout=250,
        env=os.environ | environment,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shown: list[tuple[str, list[Any]]] = [json.loads(line) for line in done.stdout.splitlines()]
    names = [name for name, _ in shown]
    parts = dict(shown)
    assert names[0] == "schema"
    assert parts["schema"] == [
        ["op", "string"],
        ["txid", "string"],
        ["id", "bigint"],
        ["name", "string"],
        ["price", "double"],
        ["kind", "string"],
        ["data", "binary"],
    ]
    before, after = shown[1 : names.index("replay")], shown[names.index("replay") + 1 :]
    rows = [row for name, batch in before for row in batch]
    assert [[row[0], *row[2:]] for row in rows] == [
        ["insert", 10, "ten", None, "1.5", None],
        ["insert", 11, "eleven", None, "3", None],
        ["update", 1, "X", 0.25, None, None],
        ["delete", 2, "two", 0.5, None, None],
        ["delete", 10, "ten", None, "1.5", None],
        ["insert", 12, None, None, None, "00ff"],
    ]
    txids = [row[1] for row in rows]
    assert txids == sorted(txids)
    assert len(set(txids)) >= 3
    assert after[0] == before[-1]
    assert [name for name, _ in after[1:]] == ["gone"]
    assert "TXIDNotFoundError" in parts["gone"][0]


# --- the reader alone, without Java -----------------------------------------------------------------------------------


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Primary]:
    with Primary(FileReplicaClient(tmp_path / "replica")) as primary:
        primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x INTEGER, any); INSERT INTO t VALUES (1, 1, 1)")
        yield primary
        primary.client.close()


def source(tmp_path: Path, **options: str) -> Any:
    from litevfs.integrations.spark import LitevfsDataSource

    given = {"url": (tmp_path / "replica").as_uri(), "table": "t", "from": "latest"} | options
    source = LitevfsDataSource(given)
    return source.streamReader(source.schema())


def offset(txid: int) -> dict[str, Any]:
    """One of a checkpoint of an earlier version."""
    return {"txid": f"{txid:016x}"}


def rows(reader: Any, start: int, end: int) -> list[tuple[Any, ...]]:
    return [row for piece in reader.partitions(offset(start), offset(end)) for row in reader.read(piece)]


def test_offsets_are_txids_and_an_empty_batch_reads_nothing(primary, tmp_path):
    reader = source(tmp_path)
    with closing_reader(reader):
        assert reader.initialOffset() == reader.latestOffset() == offset(1) | {"marks": [primary.timestamp_ms(1)]}
        assert reader.partitions(offset(1), offset(1)) == []
    assert source(tmp_path, **{"from": "1"}).initialOffset()["txid"] == offset(1)["txid"]
    with pytest.raises(TXIDNotFoundError):
        source(tmp_path, **{"from": "2"}).initialOffset()
    with pytest.raises(TXIDNotFoundError, match="was the replica replaced"):
        reader.partitions(offset(2), offset(1))


@contextmanager
def closing_reader(reader: Any) -> Iterator[None]:
    try:
        yield
    finally:
        reader.stop()
        reader.stop()


def test_a_batch_whose_start_retention_removed_is_an_error_that_says_so(primary, tmp_path):
    reader = source(tmp_path)
    primary.commit("INSERT INTO t VALUES (2, 2, 2)")
    primary.commit("INSERT INTO t VALUES (3, 3, 3)")
    assert len(rows(reader, 2, 3)) == 1
    primary.compact(9, 1, 3)
    primary.delete(0)
    with pytest.raises(TXIDNotFoundError, match=r"after TXID 0000000000000002 .* retention removed one"):
        rows(reader, 2, 3)


def test_a_checkpoint_of_a_replica_that_another_took_the_place_of_is_refused(primary, tmp_path):
    """The other one has both TXIDs: what differs between its states is no change of the rows that were read."""
    reader = source(tmp_path, poll_interval="0")
    start = json.loads(json.dumps(reader.initialOffset()))
    primary.commit("INSERT INTO t VALUES (2, 2, 2)")
    with closing_reader(reader):
        end = json.loads(json.dumps(reader.latestOffset()))
    (piece,) = reader.partitions(start, end)
    assert len(list(reader.read(piece))) == 1
    primary.delete_all()
    with Primary(primary.client) as other:
        other.start_ms += 86_400_000
        other.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x INTEGER, any)")
        other.commit("INSERT INTO t VALUES (7, 7, 7)")
        for offsets in ((start, end), (start, offset(2)), (offset(1), end)):
            (piece,) = reader.partitions(*offsets)
            with pytest.raises(TXIDNotFoundError, match="another one than that of the stream's checkpoint"):
                list(reader.read(piece))
        assert len(rows(reader, 1, 2)) == 1


def test_columns_that_come_and_go(primary, tmp_path):
    before = source(tmp_path)
    added = primary.commit("ALTER TABLE t ADD COLUMN more TEXT DEFAULT 'm'; INSERT INTO t VALUES (2, 2, 2.5, 'n')")
    assert rows(before, 1, added)[-1] == ("insert", offset(added)["txid"], 2, 2, "2.5")
    after = source(tmp_path)
    assert rows(after, 1, added)[-1] == ("insert", offset(added)["txid"], 2, 2, "2.5", "n")
    dropped = primary.commit("ALTER TABLE t DROP COLUMN more")
    with pytest.raises(OptionError, match="no column more"):
        rows(after, added, dropped)
    gone = primary.commit("DROP TABLE t")
    assert {row[0] for row in rows(after, added, gone)} == {"delete"}


def test_what_spark_cannot_hold_is_named(primary, tmp_path):
    from litevfs.integrations.spark import LitevfsDataSource

    reader = source(tmp_path)
    text = primary.commit("INSERT INTO t VALUES (2, 'two', 2)")
    with pytest.raises(ResultTypeError, match="'x': a value of type str does not fit in bigint"):
        rows(reader, 1, text)
    blob = primary.commit("UPDATE t SET x = 2, any = x'ff' WHERE id = 2")
    with pytest.raises(ResultTypeError, match="'any': a value of type bytes"):
        rows(reader, 1, blob)
    assert rows(source(tmp_path, columns="id, x"), 1, blob) == [("insert", offset(blob)["txid"], 2, 2)]
    primary.commit("CREATE TABLE log (id INTEGER PRIMARY KEY, Op TEXT)")
    with pytest.raises(OptionError, match="has a column Op"):
        source(tmp_path, table="log")
    whole = LitevfsDataSource({"url": (tmp_path / "replica").as_uri(), "table": "t"})
    with pytest.raises(OptionError, match="a stream of row changes has the column op"):
        whole.streamReader(whole.schema())
    with pytest.raises(OptionError, match="txid is no option of a stream"):
        source(tmp_path, txid="1")
    with pytest.raises(OptionError, match=r"from is an option of spark\.readStream"):
        LitevfsDataSource({"from": "1"}).reader(None)
    for bad in ("many", "1.5", "-1", "0"):
        options = {"url": (tmp_path / "replica").as_uri(), "table": "t", "columns": "id", "numPartitions": bad}
        counted = LitevfsDataSource(options)
        with pytest.raises(OptionError, match=rf"^not a number of pieces: '?{bad}"):
            counted.reader(counted.schema())
