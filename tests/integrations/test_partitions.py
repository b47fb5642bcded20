"""A table in pieces: together all rows, once each, of one state, of about equal size, and picklable."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import apsw
import pytest

import litevfs
from litevfs.errors import OptionError, ResultTypeError, TXIDNotFoundError
from litevfs.ltx import decode_file
from litevfs.ltx.encoder import encode_file
from litevfs.maintenance.compaction import compact_level
from litevfs.maintenance.retention import enforce_level_0_retention
from tests.primary import Primary
from tests.support import numbers, primary_at

pyarrow = pytest.importorskip("pyarrow", reason="pip install 'litevfs[arrow]'")


@pytest.fixture
def primary(url: str) -> Iterator[Primary]:
    with primary_at(url, page_size=512) as primary:
        yield primary


@pytest.mark.parametrize(
    ("schema", "insert"),
    [
        ("CREATE TABLE t (id INTEGER PRIMARY KEY, x)", "SELECT (value - 2000) * 3, randomblob(60) FROM {}"),
        ("CREATE TABLE t (x TEXT, y)", "SELECT hex(value), value FROM {}"),
        ("CREATE TABLE t (rowid TEXT, y)", "SELECT hex(value), value FROM {}"),
        ("CREATE TABLE t (k TEXT PRIMARY KEY, v) WITHOUT ROWID", "SELECT hex(value * 7919), value FROM {}"),
        (
            "CREATE TABLE t (k TEXT COLLATE NOCASE, n, PRIMARY KEY (k, n)) WITHOUT ROWID",
            "SELECT hex(value % 50), value FROM {}",
        ),
        ("CREATE TABLE t (k REAL PRIMARY KEY DESC, v) WITHOUT ROWID", "SELECT value / 3.0, value FROM {}"),
        (
            "CREATE TABLE t (k PRIMARY KEY, v) WITHOUT ROWID",
            "SELECT CAST(randomblob(2 + value % 200) || value AS BLOB), 1 FROM {}",
        ),
        (
            "CREATE TABLE t (k PRIMARY KEY, v) WITHOUT ROWID",
            "SELECT CASE value % 3 WHEN 0 THEN value WHEN 1 THEN value / 7.0 ELSE 'x' || value END, 1 FROM {}",
        ),
    ],
)
def test_the_pieces_are_all_rows_once_each(primary, url, schema, insert):
    primary.commit(schema)
    primary.commit(f"INSERT OR IGNORE INTO t {insert.format(numbers(3000))}")
    expected = primary.rows("SELECT * FROM t")
    for count in (1, 2, 7, 30, 1000):
        pieces = litevfs.partitions(url, "t", count)
        assert 1 <= len(pieces) <= count
        with closing(pieces[0].connect()) as connection:
            found = [connection.execute(piece.sql, piece.bindings).fetchall() for piece in pieces]
        assert sorted(repr(row) for rows in found for row in rows) == sorted(map(repr, expected))
        if count in (2, 7) and "CAST" not in insert:
            assert len(pieces) == count
            assert max(map(len, found)) < 3 * len(expected) / count


def test_a_piece_reads_its_own_state_after_a_journey(primary, url):
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT, y REAL)")
    txid = primary.commit(f"INSERT INTO t SELECT value, 'row ' || value, value / 2.0 FROM {numbers(500)}")
    where = "id % 2 = ? -- even"
    pieces = litevfs.partitions(url, "t", 4, columns=["x", "y"], where=where, parameters=(0,), cache_size="5MB")
    primary.commit("DELETE FROM t")
    tables = [pickle.loads(pickle.dumps(piece)).read() for piece in pieces]
    table = pyarrow.concat_tables(tables)
    assert {piece.txid for piece in pieces} == {txid}
    assert table.schema.names == ["x", "y"]
    assert table.num_rows == 250
    assert table["y"].to_pylist() == [value / 2 for value in range(2, 501, 2)]
    earlier = litevfs.partitions(url, "t", 2, txid=1)
    assert sum(piece.read().num_rows for piece in earlier) == 0


def test_few_pages_say_where_to_cut(primary, url):
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    primary.commit(f"INSERT INTO t SELECT value, randomblob(200) FROM {numbers(20000)}")
    lease = litevfs.api.registry.acquire(litevfs.api.Options.collect({}, {"replica_url": url, "txid": 2}))
    try:
        before = lease.replica.pages.counters.misses
        assert len(litevfs.partitions(url, "t", 8, txid=2)) == 8
        assert lease.replica.pages.counters.misses - before < 400 < len(primary.images[2]) // 512 // 10
    finally:
        litevfs.api.registry.release(lease)


def test_a_column_of_several_types_is_read_as_text(primary, url):
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x INTEGER, y ANY)")
    primary.commit(f"INSERT INTO t SELECT value, value, iif(value % 2, value, 'y') FROM {numbers(500)}")
    primary.commit("UPDATE t SET x = 'none' WHERE id = 400")
    with pytest.raises(ResultTypeError, match=r"column 'x', declared INTEGER: text does not .*; hint: .* in as_text"):
        [piece.read() for piece in litevfs.partitions(url, "t", 3, columns=["id", "x"])]
    with pytest.raises(ResultTypeError, match=r"column 'y', .*; hint: name the column in as_text to have it as text"):
        [piece.read() for piece in litevfs.partitions(url, "t", 3, columns=["y"])]
    pieces = litevfs.partitions(url, "t", 3, as_text=["x", "y"])
    table = pyarrow.concat_tables([piece.read() for piece in pieces])
    expected = [("none" if n == 400 else str(n), str(n) if n % 2 else "y") for n in range(1, 501)]
    assert list(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True)) == expected
    with pytest.raises(OptionError, match="table t has no column z"):
        litevfs.partitions(url, "t", 3, as_text=["z"])


def test_what_retention_took_is_said(primary, url):
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    primary.commit("INSERT INTO t VALUES (1, 2)")
    (piece,) = litevfs.partitions(url, "t", 1)
    primary.commit("INSERT INTO t VALUES (2, 2)")
    primary.compact(9, 1, 3)
    primary.delete(0)
    with pytest.raises(TXIDNotFoundError, match="table t was cut up in is not on the replica any more") as caught:
        piece.read()
    assert f"{2:016x}" in str(caught.value)
    assert "hold=True" in str(caught.value)
    with pytest.raises(TXIDNotFoundError, match=r"to cut table t up in is not on the replica any more.*hold=True"):
        litevfs.partitions(url, "t", 1, txid=2)
    with pytest.raises(TXIDNotFoundError, match="the newest TXID is"):
        litevfs.partitions(url, "t", 1, txid=9)


def test_what_retention_takes_while_a_piece_is_read_is_said(primary, url):
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    primary.commit(f"INSERT INTO t SELECT value, randomblob(3000) FROM {numbers(100)}")
    piece = litevfs.partitions(url, "t", 3)[1]
    connect = litevfs.integrations.partitions.connect

    def then_gone(*args, **options):
        connection = connect(*args, **options)
        primary.commit("UPDATE t SET x = 2")
        primary.compact(9, 1, 3)
        primary.delete(0)
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("litevfs.integrations.partitions.connect", then_gone)
        with pytest.raises(
            TXIDNotFoundError, match=r"table t was cut up in is not on .*, so its rows from \d+ on before \d+ cannot be"
        ):
            piece.read()


def test_a_state_that_is_held_outlives_level_0_retention(primary, url):
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    txid = primary.commit(f"INSERT INTO t SELECT value, randomblob(100) FROM {numbers(500)}")
    pieces = litevfs.partitions(url, "t", 3, hold=True)
    assert {piece.txid for piece in pieces} == {txid}
    for _ in range(2):
        primary.commit("DELETE FROM t WHERE id % 2")
        primary.commit("INSERT INTO t (x) VALUES (1)")
    compact_level(primary.client, 1)
    assert len(enforce_level_0_retention(primary.client, 2**62)) > 4
    with pytest.raises(TXIDNotFoundError):
        litevfs.partitions(url, "t", 1, txid=txid + 1)
    assert sum(piece.read().num_rows for piece in pieces) == 500
    again = litevfs.partitions(url, "t", 1, hold=True)
    assert again[0].txid == litevfs.partitions(url, "t", 1, hold=True)[0].txid == primary.txid
    with pytest.raises(OptionError, match="only the newest state can be held"):
        litevfs.partitions(url, "t", 1, txid=txid, hold=True)


def replace_replica(primary: Primary, url: str, rows: int, levels: tuple[int, ...]) -> None:
    """Another database of as many transactions, made a day later, takes the place; its last one on these levels."""
    primary.delete_all()
    with primary_at(url, page_size=512) as other:
        other.start_ms += 86_400_000
        other.run("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
        other.run(f"INSERT INTO t SELECT value, 'other' FROM {numbers(rows)}")
        other.upload(1)
        for level in levels:
            other.compact(level, 1 if level else 2, 2)


@pytest.mark.parametrize("levels", [(0,), (1,), (9,), (0, 9)])
@pytest.mark.parametrize("ends_with_snapshot", [False, True])
def test_pieces_of_a_replica_that_was_replaced_are_refused(primary, url, levels, ends_with_snapshot):
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    primary.commit(f"INSERT INTO t SELECT value, 'mine' FROM {numbers(500)}")
    if ends_with_snapshot:
        primary.compact(9, 1, 2)
        primary.delete(0)
    first, *others = litevfs.partitions(url, "t", 3)
    assert set(first.read()["x"].to_pylist()) == {"mine"}
    replace_replica(primary, url, 500, levels)
    for piece in others:
        with pytest.raises(TXIDNotFoundError, match=r"another one than that which table t was cut .*hint: begin again"):
            pickle.loads(pickle.dumps(piece)).read()
    assert {x for piece in litevfs.partitions(url, "t", 3) for x in piece.read()["x"].to_pylist()} == {"other"}


@pytest.mark.parametrize("kept", [0, 1])
def test_a_snapshot_that_is_made_later_of_the_same_state_is_none_of_another_replica(primary, url, kept):
    """Snapshots carry the time at which they were made; what compaction makes, that of the last transaction."""
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    txid = primary.commit(f"INSERT INTO t SELECT value, 'mine' FROM {numbers(500)}")
    pieces = litevfs.partitions(url, "t", 3)
    file = decode_file(primary.file_bytes(1, txid))
    later = replace(file.header, timestamp_ms=file.header.timestamp_ms + 3_600_000)
    primary.client.write(9, 1, txid, encode_file(later, file.pages()), later.timestamp_ms)
    held = litevfs.partitions(url, "t", 3)
    if kept:
        primary.compact(1, 1, 2)
        primary.delete(0)
    for piece in (*pieces, *held):
        assert set(piece.read()["x"].to_pylist()) == {"mine"}
    primary.delete(kept)  # only the snapshot is left, whose time those know who have seen it
    assert sum(piece.read().num_rows for piece in held) == 500
    with pytest.raises(TXIDNotFoundError, match=r"nothing on it proves that it is the same .*hint: begin again"):
        pieces[0].read()


def test_pieces_that_an_earlier_version_pickled_are_read(primary, url):
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    primary.commit(f"INSERT INTO t SELECT value, 'mine' FROM {numbers(500)}")
    piece = litevfs.partitions(url, "t", 3)[1]
    old = object.__new__(type(piece))
    for count in (10, 11):  # without as_text and options there were pieces, too
        old.__setstate__(piece.__getstate__()[:count])
        assert old.marks == ()
        assert old.read() == piece.read()


def test_bad_input_is_refused_with_what_to_do(primary, url):
    primary.commit(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x); CREATE VIEW v AS SELECT 1; CREATE VIRTUAL TABLE f USING fts5 (b)"
    )
    with pytest.raises(OptionError, match=r"no table nope.*tables: t"):
        litevfs.partitions(url, "nope", 2)
    with pytest.raises(OptionError, match="v is a view"):
        litevfs.partitions(url, "v", 2)
    with pytest.raises(OptionError, match="f is a virtual table"):
        litevfs.partitions(url, "f", 2)
    with pytest.raises(OptionError, match=r"no column zz.*columns: id, x"):
        litevfs.partitions(url, "t", 2, columns=["zz"])
    for where, parameters in (("zz > 3", ()), ("x > ?", ()), ("x > 3 ORDER BY 1", ())):
        with pytest.raises(apsw.Error, match=r"no such column: zz|bindings|near .ORDER"):
            litevfs.partitions(url, "t", 2, where=where, parameters=parameters)
    with pytest.raises(OptionError, match="not a number of pieces"):
        litevfs.partitions(url, "t", 0)
    for values in ({"a": 1}, "ab"):
        with pytest.raises(OptionError, match="not a list of values"):
            litevfs.partitions(url, "t", 1, where="x = :a", parameters=values)
    with pytest.raises(OptionError, match="unknown option"):
        litevfs.partitions(url, "t", 1, pol_interval=3)
