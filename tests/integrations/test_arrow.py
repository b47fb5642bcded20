"""`litevfs.arrow`: types that hold for all rows, whatever SQLite lets a column hold, and tools that take the stream."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import apsw
import pytest

import litevfs
import litevfs.dbapi
from litevfs.integrations import arrow as arrow_module
from tests.integrations.conftest import Shop

HOW = "needs pyarrow (pip install 'litevfs[arrow]')"
pa = pytest.importorskip("pyarrow", reason=HOW)


@pytest.fixture
def con(shop: Shop) -> Iterator[apsw.Connection]:
    with closing(litevfs.connect(shop.url)) as connection:
        yield connection


def types(table: Any) -> dict[str, str]:
    return {field.name: str(field.type) for field in table.schema}


def test_columns_have_the_types_that_all_rows_have(shop: Shop):
    table = pa.table(litevfs.arrow(shop.url, "SELECT * FROM sale"))
    assert types(table) == {
        "id": "int64",
        "customer_id": "int64",
        "price": "double",
        "paid": "int64",
        "placed": "large_string",
        "picture": "large_binary",
        "note": "large_string",
    }
    assert [tuple(row.values()) for row in table.to_pylist()] == shop.primary.rows("SELECT * FROM sale")


VALUES = {
    "NULL": "null",
    "1": "int64",
    "1.5": "double",
    "'a'": "large_string",
    "x'00'": "large_binary",
    "1 UNION ALL SELECT 2.5": "double",
    "NULL UNION ALL SELECT 7": "int64",
    "'' UNION ALL SELECT NULL": "large_string",
    "9223372036854775807": "int64",
}


@pytest.mark.parametrize(("values", "type_"), VALUES.items())
def test_an_expression_has_the_type_of_its_values(con, values: str, type_: str):
    table = pa.table(litevfs.arrow(con, f"SELECT {values} -- as it is"))
    assert [str(t) for t in table.schema.types] == [type_]
    assert [tuple(row.values()) for row in table.to_pylist()] == con.execute(f"SELECT {values}").fetchall()


DECLARED = {
    "INTEGER": "int64",
    "BIGINT UNSIGNED": "int64",
    "FLOATING POINT": "int64",
    "VARCHAR(10)": "large_string",
    "BLOB": "large_binary",
    "DOUBLE PRECISION": "double",
    "NUMERIC(10, 2)": "null",
    "DATE": "null",
    "": "null",
}


@pytest.mark.parametrize(("declared", "type_"), DECLARED.items())
def test_a_declared_type_holds_without_a_row(con, declared: str, type_: str):
    con.execute(f"CREATE TEMP TABLE declared(a {declared})")
    assert [str(t) for t in litevfs.arrow(con, "SELECT a FROM declared").schema.types] == [type_]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7])
def test_each_of_many_expressions_has_the_type_of_its_values(con, width: int):
    cases = {
        "i": "int64",
        "CASE WHEN i % 2 THEN i ELSE i + 0.5 END": "double",
        "NULL": "null",
        "CASE WHEN i > 4 THEN 'a' END": "large_string",
        "CASE WHEN i % 3 THEN i END": "int64",
        "CASE WHEN i = 9 THEN x'00' END": "large_binary",
        "i * 0.5": "double",
    }
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9)"
    sql = f"{numbers} SELECT {', '.join(list(cases)[:width])} FROM n"
    table = pa.table(litevfs.arrow(con, sql))
    assert [str(type_) for type_ in table.schema.types] == list(cases.values())[:width]
    assert list(zip(*(column.to_pylist() for column in table.columns), strict=True)) == con.execute(sql).fetchall()
    empty = pa.table(litevfs.arrow(con, f"{sql} WHERE 0"))
    assert {str(type_) for type_ in empty.schema.types} == {"null"}


MISFITS = [
    ("INTEGER", ["1", "'x'"], "row 2, column 'a', declared INTEGER: text does not fit in int64"),
    ("INTEGER", ["1", "2", "1.5"], "row 3, column 'a', declared INTEGER: real does not fit in int64"),
    ("REAL", ["'x'"], "row 1, column 'a', declared REAL: text does not fit in double"),
    ("TEXT", ["x'61'"], "row 1, column 'a', declared TEXT: blob does not fit in large_string"),
    ("BLOB", ["x'61'", "'a'"], "row 2, column 'a', declared BLOB: text does not fit in large_binary"),
    ("", ["1", "'x'"], "row 1, column 'a': integer does not fit in large_string"),
    ("NUMERIC", ["1.5", "9007199254740993"], "row 2, column 'a', declared NUMERIC: integer does not fit in double"),
]


@pytest.mark.parametrize("columns", ["a", "a, 1 + 1 AS b"])
@pytest.mark.parametrize(("declared", "values", "message"), MISFITS)
def test_a_value_that_does_not_fit_is_named(con, declared: str, values: list[str], message: str, columns: str):
    con.execute(f"CREATE TEMP TABLE odd(a {declared}); INSERT INTO odd VALUES ({'), ('.join(values)})")
    with pytest.raises(litevfs.ResultTypeError, match=f"^{message}; hint: CAST .*strict=False"):
        litevfs.arrow(con, f"SELECT {columns} FROM odd").reader().read_all()


@pytest.mark.parametrize(("declared", "values", "message"), MISFITS)
def test_a_column_of_several_types_is_text_where_that_is_asked_for(con, declared: str, values: list[str], message: str):
    con.execute(f"CREATE TEMP TABLE odd(a {declared}, b INT); INSERT INTO odd(a) VALUES ({'), ('.join(values)})")
    table = pa.table(litevfs.arrow(con, "SELECT * FROM odd", strict=False))
    assert [str(t) for t in table.schema.types] == ["large_string", "int64"]
    expected = con.execute("SELECT CAST(a AS TEXT) FROM odd").fetchall()
    assert table["a"].to_pylist() == [value for (value,) in expected]


def test_a_blob_that_is_no_text_does_not_become_one(con):
    with pytest.raises(litevfs.ResultTypeError, match=r"row 2, .* blob does not fit in large_string; hint: CAST"):
        litevfs.arrow(con, "SELECT 'a' UNION ALL SELECT x'ff'", strict=False).reader().read_all()


@pytest.mark.parametrize("width", [1, 3, 5])
@pytest.mark.parametrize("kept", [0, 1 << 30])
@pytest.mark.parametrize(
    ("big", "type_"), [(2**53, "double"), (-(2**53), "double"), (2**53 + 1, "large_string"), (-(2**63), "large_string")]
)
def test_an_integer_that_no_double_holds_makes_text_of_a_column_of_reals_only(
    con, big: int, type_: str, kept: int, width: int, monkeypatch: pytest.MonkeyPatch
):
    """With its rows kept, and with types found by SQLite for few columns and for many."""
    monkeypatch.setattr(arrow_module, "KEPT_BYTES", kept)
    con.execute("CREATE TEMP TABLE r(a REAL)")
    columns = ["a", "a", "a", "CASE WHEN a < 0 THEN NULL ELSE 1 END", "a"][:width]
    reals = f"SELECT {', '.join(columns)} FROM r UNION ALL SELECT {', '.join(['i + 0.5'] * width)} FROM n"
    integers = f"SELECT {', '.join([':big'] * width)} UNION ALL SELECT {', '.join(['NULL'] * width)}"
    numbered = NUMBERED.format(rows=1200)
    for sql, expected in [(f"{numbered} {reals} UNION ALL {integers}", type_), (integers, "int64")]:
        rows = con.execute(sql, {"big": big}).fetchall()
        table = pa.table(litevfs.arrow(con, sql, {"big": big}, strict=False))
        assert {str(t) for t in table.schema.types} == {expected}
        for n, column in enumerate(table.columns):
            values = [row[n] for row in rows]
            text = expected == "large_string"
            assert column.to_pylist() == ([v if v is None else str(v) for v in values] if text else values)


# --- text that is not UTF-8 -------------------------------------------------------------------------------------------

BAD = "CAST(x'41ff' AS TEXT)"
NOT_UTF8 = "text is not UTF-8 (byte 0xff at 1); hint: CAST(column AS BLOB) in the statement reads its bytes"


@pytest.mark.parametrize("kept", [0, 1 << 30])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("at", [1, 11, 2345])
@pytest.mark.parametrize(
    ("sql", "column"),
    [
        (f"SELECT CASE i WHEN :at THEN {BAD} END AS a FROM n", "a"),
        ("SELECT i, x'41ff' AS b, iif(i = :at, x'41ff' || '', 'x') AS a, i * 0.5 FROM n", "a"),
        (f"SELECT i, 'ä' AS b, iif(1 + :rows - i = :at, {BAD}, 'x' || i) AS a FROM n ORDER BY i DESC;", "a"),
        ("SELECT t AS b, iif(:at = count(*) OVER (ORDER BY i), t || x'ff', t) AS a FROM n, (SELECT 'A' AS t)", "a"),
    ],
)
def test_text_that_is_not_utf8_is_named(con, sql: str, column: str, at: int, strict: bool, kept: int, monkeypatch):
    monkeypatch.setattr(arrow_module, "KEPT_BYTES", kept)
    rows = 3000
    sql = f"{NUMBERED.format(rows=rows)} {sql}"
    result = litevfs.arrow(con, sql, {"at": at, "rows": rows}, strict=strict)
    with pytest.raises(litevfs.ResultTypeError) as caught:
        result.reader().read_all()
    assert str(caught.value) == f"row {at}, column {column!r}: {NOT_UTF8}"
    assert con.txn_state() == apsw.SQLITE_TXN_NONE  # though the error is held


@pytest.mark.parametrize("strict", [True, False])
def test_text_that_is_not_utf8_is_named_in_a_column_of_a_table(con, strict: bool):
    con.execute("CREATE TEMP TABLE odd(id INTEGER, a VARCHAR(9), b TEXT)")
    con.execute(f"INSERT INTO odd VALUES (7, 'x', 'y'), (8, 'x', {BAD}), (9, {BAD}, 'y')")
    result = litevfs.arrow(con, "SELECT * FROM odd", strict=strict)
    with pytest.raises(litevfs.ResultTypeError) as caught:
        result.reader().read_all()
    assert str(caught.value) == f"row 2, column 'b', declared TEXT: {NOT_UTF8}"
    assert con.txn_state() == apsw.SQLITE_TXN_NONE
    with pytest.raises(Exception, match="row 2, column 'b', declared TEXT: text is not UTF-8"):
        pa.table(result)
    table = pa.table(litevfs.arrow(con, "SELECT CAST(b AS BLOB) AS b FROM odd", strict=strict))
    assert table["b"].to_pylist() == [b"y", b"A\xff", b"y"]


def test_only_the_row_is_named_if_its_text_is_another_when_read_again(con):
    texts = iter([b"A\xff1", b"A\xff2", b"A\xff3"])
    con.create_scalar_function("another", lambda: next(texts), 0)
    with pytest.raises(litevfs.ResultTypeError) as caught:
        litevfs.arrow(con, "SELECT 'a' AS a, CAST(another() AS TEXT) AS b").reader()
    assert str(caught.value) == f"row 1: {NOT_UTF8}"


def test_an_error_of_a_function_stays_what_it_is(con):
    con.create_scalar_function("decoded", lambda value: value.decode(), 1)
    with pytest.raises(UnicodeDecodeError):
        litevfs.arrow(con, "SELECT 1 UNION ALL SELECT decoded(x'ff')").reader()
    assert con.txn_state() == apsw.SQLITE_TXN_NONE


def test_batches_end_by_rows_and_by_bytes(con, shop: Shop, monkeypatch: pytest.MonkeyPatch):
    many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 150000) SELECT i FROM n"
    sizes = [batch.num_rows for batch in litevfs.arrow(con, many).reader()]
    assert sizes == [66_111, 66_000, 17_889]
    monkeypatch.setattr(arrow_module, "BATCH_BYTES", 10_000)
    sizes = [batch.num_rows for batch in litevfs.arrow(con, f"SELECT i, i FROM ({many}) LIMIT 2500").reader()]
    assert sizes == [1111, 1000, 389]
    assert list(litevfs.arrow(con, "SELECT * FROM sale WHERE 0").reader()) == []


def test_of_rows_with_large_blobs_one_is_held_at_a_time(con, monkeypatch: pytest.MonkeyPatch):
    con.execute("CREATE TEMP TABLE large(b BLOB)")
    con.execute(f"INSERT INTO large {NUMBERED.format(rows=10)} SELECT randomblob(5000000) FROM n")
    monkeypatch.setattr(arrow_module, "BATCH_BYTES", 1)
    reader = litevfs.arrow(con, "SELECT b FROM large").reader()
    tracemalloc.start()
    try:
        assert [batch.num_rows for batch in reader] == [1] * 10
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * 5_000_000


def test_parameters_names_and_pragmas_are_those_of_the_statement(con):
    assert pa.table(litevfs.arrow(con, "SELECT ? + 1 AS a", (1,))).to_pylist() == [{"a": 2}]
    assert pa.table(litevfs.arrow(con, "SELECT :x AS a;", {"x": "y"})).to_pylist() == [{"a": "y"}]
    table = pa.table(litevfs.arrow(con, 'SELECT 1 AS "a ""b", 2 AS c, 3 AS c'))
    assert table.column_names == ['a "b', "c", "c"]
    assert pa.table(litevfs.arrow(con, "PRAGMA table_info(customer)"))["name"].to_pylist() == ["id", "name", "city"]
    assert pa.table(litevfs.arrow(con, "WITH a(x) AS (VALUES (1), (2)) SELECT sum(x) AS s FROM a")).to_pylist() == [
        {"s": 3}
    ]


# --- one run ----------------------------------------------------------------------------------------------------------

NUMBERED = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})"


@pytest.fixture
def seen(con) -> list[int]:
    """Arguments of the SQL function `seen`, which returns its argument."""
    calls: list[int] = []

    def call(value: int) -> int:
        calls.append(value)
        return value

    con.create_scalar_function("seen", call, 1)
    return calls


def test_types_and_rows_come_of_one_run_as_long_as_the_rows_can_be_kept(con, seen, monkeypatch: pytest.MonkeyPatch):
    sql = f"{NUMBERED.format(rows=3000)} SELECT seen(i) AS a, i * 0.5 AS b FROM n"
    result = litevfs.arrow(con, sql)
    expected = pa.table({"a": list(range(1, 3001)), "b": [i * 0.5 for i in range(1, 3001)]})
    assert pa.table(result).equals(expected)
    assert seen == list(range(1, 3001))
    seen.clear()
    monkeypatch.setattr(arrow_module, "KEPT_BYTES", 10_000)
    reader = result.reader()
    assert len(seen) == 1111 + 3000  # what was kept, and the types of all rows
    assert reader.read_all().equals(expected)
    assert len(seen) == 3000 + 3000


def test_a_result_of_declared_columns_is_read_when_its_rows_are_asked_for(con, seen):
    con.execute("CREATE TEMP TABLE declared(a INTEGER, b TEXT)")
    con.execute(f"INSERT INTO declared {NUMBERED.format(rows=3000)} SELECT i, 'b' FROM n")
    reader = litevfs.arrow(con, "SELECT a, b FROM declared WHERE seen(a)").reader()
    assert seen == []
    assert next(iter(reader)).num_rows == 3000


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("at", ["i < 2000", "i > 1000"])
def test_integers_and_nulls_alone_are_reals_where_other_rows_have_some(con, at: str, strict: bool):
    sql = f"{NUMBERED.format(rows=3000)} SELECT CASE WHEN {at} THEN iif(i % 2, i, NULL) ELSE 1.5 END AS x FROM n"
    rows = [value for (value,) in con.execute(sql)]
    table = pa.table(litevfs.arrow(con, sql, strict=strict))
    assert types(table) == {"x": "double"}
    assert table["x"].to_pylist() == rows


@pytest.mark.parametrize("kept", [0, 20_000, 1 << 30])
@pytest.mark.parametrize("odd", [None, 7, 2.0, "x", b"x", 2**53 + 1])
@pytest.mark.parametrize("at", [1, 1500, 3000])
def test_one_odd_value_counts_the_same_wherever_it_lies(con, kept: int, odd: Any, at: int, monkeypatch):
    """With as many rows kept as may be, the types are those of all rows, and values are what they were."""
    monkeypatch.setattr(arrow_module, "KEPT_BYTES", kept)
    others = {"i": int, "i + 0.5": float, "'t' || i": str, "CAST('t' || i AS BLOB)": bytes, "NULL": type(None)}
    columns = [f"CASE i WHEN {at} THEN :odd ELSE {other} END AS c{n}" for n, other in enumerate(others)]
    for n, (column, type_) in enumerate(zip(columns, others.values(), strict=True)):
        sql = f"{NUMBERED.format(rows=3000)} SELECT {column} FROM n"
        rows = [value for (value,) in con.execute(sql, {"odd": odd})]
        types = {type(value) for value in rows} - {type(None)}
        lossless = types <= {int, float} and not (types == {int, float} and isinstance(odd, int) and odd > 2**53)
        if len(types) < 2 or lossless:
            table = pa.table(litevfs.arrow(con, sql, {"odd": odd}))
            assert table[f"c{n}"].to_pylist() == rows
            assert {type(value) for value in table[f"c{n}"].to_pylist()} - {type(None)} == (
                {float} if types == {int, float} else types
            )
            continue
        with pytest.raises(litevfs.ResultTypeError) as caught:
            litevfs.arrow(con, sql, {"odd": odd}).reader().read_all()
        row = next(r for r, v in enumerate(rows, 1) if not isinstance(v, str)) if types != {int, float} else at
        assert str(caught.value).startswith(f"row {row}, column 'c{n}': ")
        assert con.txn_state() == apsw.SQLITE_TXN_NONE  # though the error is held
        if type_ in {int, float, str} and odd != b"x" and types != {int, float}:
            table = pa.table(litevfs.arrow(con, sql, {"odd": odd}, strict=False))
            assert table[f"c{n}"].to_pylist() == [v if v is None else str(v) for v in rows]


def test_memory_is_bounded_by_what_may_be_kept_and_a_batch(con, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arrow_module, "KEPT_BYTES", 2 << 20)
    monkeypatch.setattr(arrow_module, "BATCH_BYTES", 1 << 20)
    monkeypatch.setattr(arrow_module, "PIECE_BYTES", 1 << 19)
    sql = f"{NUMBERED.format(rows=300)} SELECT zeroblob(100000) AS a, printf('%100000c', 'x') AS b FROM n"
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    tracemalloc.start()
    try:
        read = most = 0
        for batch in litevfs.arrow(con, sql).reader():
            read += batch.nbytes
            most = max(most, pool.bytes_allocated() - before)
        assert read > 60_000_000
        assert most + tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_rows_are_those_of_sqlite_whatever_the_connection_makes_of_them(con):
    con.row_trace = lambda cursor, row: {"a": "another"}
    assert pa.table(litevfs.arrow(con, "SELECT 1 AS a, 'b' AS b")).to_pylist() == [{"a": 1, "b": "b"}]
    con.row_trace = None


@pytest.mark.parametrize("texts", [["é", "日本", "", "a\x00b"], ["a", None, ""], ["", ""], ["𝄞" * 500]])
def test_texts_are_the_same_in_every_alphabet(con, texts: list[str | None]):
    con.execute("CREATE TEMP TABLE texts(a TEXT)")
    con.executemany("INSERT INTO texts VALUES (?)", [(text,) for text in [*texts, *["plain"] * 1200, *texts]])
    table = pa.table(litevfs.arrow(con, "SELECT a, a || '' AS b FROM texts"))
    assert table["a"].to_pylist() == table["b"].to_pylist() == [*texts, *["plain"] * 1200, *texts]
    table.validate(full=True)


# --- states -----------------------------------------------------------------------------------------------------------


def test_a_stream_sees_one_txid_and_the_next_the_newest(live_shop: Shop):
    with closing(litevfs.connect(live_shop.url)) as con:
        result = litevfs.arrow(con, "SELECT id, typeof(id) AS t FROM sale ORDER BY id")
        reader = result.reader()  # the types are found
        live_shop.primary.commit("UPDATE sale SET note = zeroblob(100); DELETE FROM sale WHERE id > 10")
        with closing(litevfs.connect(live_shop.url)) as other:
            litevfs.wait_for(other, live_shop.primary.txid)
        assert reader.read_all().num_rows == 500
        assert con.txn_state() == apsw.SQLITE_TXN_NONE
        assert pa.table(result).num_rows == 10
        reader = result.reader()
        assert con.txn_state() == apsw.SQLITE_TXN_READ
        del reader
        assert con.txn_state() == apsw.SQLITE_TXN_NONE


def test_a_result_of_a_url_closes_what_it_opened(shop: Shop):
    with litevfs.arrow(shop.url, "SELECT 1") as result:
        assert pa.table(result).num_rows == 1
    with pytest.raises(apsw.ConnectionClosedError):
        result.reader()


def test_a_stream_may_be_read_in_another_thread(shop: Shop):
    result = litevfs.arrow(shop.url, "SELECT * FROM sale")
    tables: list[Any] = []
    thread = threading.Thread(target=lambda: tables.append(pa.table(result)))
    thread.start()
    thread.join(30)
    assert tables[0].num_rows == 500


# --- tools ------------------------------------------------------------------------------------------------------------


def test_every_tool_takes_the_stream(shop: Shop):
    sql = "SELECT id, price, note FROM sale WHERE id < ?"
    result = litevfs.arrow(shop.url, sql, (200,))
    expected = [(i, price, note) for i, price, note in shop.primary.rows(sql.replace("?", "200"))]
    polars = pytest.importorskip("polars", reason=HOW)
    assert polars.DataFrame(result).rows() == expected
    assert polars.from_arrow(pa.table(result)).rows() == expected
    duckdb = pytest.importorskip("duckdb", reason=HOW)
    with duckdb.connect() as db:
        assert db.sql("SELECT * FROM result").fetchall() == expected
        assert db.sql("SELECT count(*), sum(price) FROM result").fetchall() == [(199, sum(r[1] for r in expected))]
    pandas = pytest.importorskip("pandas", reason=HOW)
    if hasattr(pandas.DataFrame, "from_arrow"):
        frame = pandas.DataFrame.from_arrow(result)
        assert frame["price"].tolist() == [r[1] for r in expected]


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("", "a statement that returns no rows; hint: pass one SELECT"),
        ("CREATE TEMP TABLE x(a)", "a statement that returns no rows"),
        ("SELECT 1; SELECT 2", "more than one statement"),
    ],
)
def test_a_statement_that_is_no_query_is_refused_and_not_run(con, sql: str, message: str):
    with pytest.raises(litevfs.OptionError, match=message):
        litevfs.arrow(con, sql)
    assert con.execute("SELECT count(*) FROM temp.sqlite_schema").get == 0


def test_bad_input_says_what_to_do(con, shop: Shop, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(litevfs.OptionError, match="did you mean poll_interval"):
        litevfs.arrow(shop.url, "SELECT 1", pol_interval=1)
    with pytest.raises(litevfs.OptionError, match="options with an open connection: poll_interval"):
        litevfs.arrow(con, "SELECT 1", poll_interval=1)
    with pytest.raises(litevfs.OptionError, match="no replica URL and no connection: int; hint: pass a URL"):
        litevfs.arrow(5, "SELECT 1")
    with pytest.raises(apsw.SQLError, match="no such table: missing"):
        litevfs.arrow(con, "SELECT * FROM missing")
    with pytest.raises(apsw.ReadOnlyError, match="a replica is read-only: write to the primary database"):
        litevfs.arrow(con, "DELETE FROM sale RETURNING id").reader().read_all()
    with pytest.raises(apsw.BindingsError):
        litevfs.arrow(con, "SELECT ?")
    with closing(litevfs.dbapi.connect(shop.url)) as connection:
        assert pa.table(litevfs.arrow(connection, "SELECT 1 AS a")).to_pylist() == [{"a": 1}]
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(litevfs.OptionError, match=r"pip install 'litevfs\[arrow\]'"):
        litevfs.arrow(con, "SELECT 1")
