"""`litevfs.dbapi` against the standard library's `sqlite3` on the same database, and where it means to differ."""

from __future__ import annotations

import gc
import pickle
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import date, datetime
from typing import Any

import apsw
import pytest

import litevfs
import litevfs.dbapi as dbapi
from tests.integrations.conftest import Shop


@pytest.fixture
def con(shop: Shop) -> Iterator[dbapi.Connection]:
    with closing(dbapi.connect(shop.url)) as connection:
        yield connection


QUERIES = [
    ("SELECT * FROM customer", ()),
    ("SELECT * FROM sale WHERE id = ?", (7,)),
    ("SELECT * FROM sale WHERE id IN (?, ?)", [7, 9]),
    ("SELECT name FROM customer WHERE city = :city", {"city": "Bern", "spare": 1}),
    ("SELECT name AS n, id AS n FROM customer WHERE 0", ()),
    ("SELECT * FROM spent ORDER BY total", ()),
    ("/* a */ -- b\n SELECT 1; -- c\n", ()),
    ("SELECT ?, ?, ?, ?, ?", (None, 1.5, b"\x00x", "ü", True)),
    ("SELECT ?", (date(2026, 1, 2),)),
    ("PRAGMA table_info(customer)", ()),
    ("CREATE TEMP TABLE x(a)", ()),
    ("WITH a(x) AS (VALUES(1), (2)) SELECT sum(x) FROM a", ()),
    ("", ()),
    ("  -- nothing\n", ()),
]


@pytest.mark.filterwarnings("ignore:The default date")
@pytest.mark.parametrize(("sql", "parameters"), QUERIES)
def test_a_statement_answers_what_sqlite3_answers(con, local, sql: str, parameters: Any):
    ours, theirs = con.cursor(), local.cursor()
    assert ours.execute(sql, parameters) is ours
    theirs.execute(sql, parameters)
    assert ours.description == theirs.description
    assert ours.rowcount == theirs.rowcount
    assert ours.fetchall() == theirs.fetchall()
    assert ours.fetchone() is None
    assert ours.fetchmany() == ours.fetchall() == []
    assert ours.description == theirs.description


def raised(connection: Any, sql: str, parameters: Any = ()) -> BaseException:
    with pytest.raises(Exception) as caught:
        connection.execute(sql, parameters).fetchall()
    return caught.value


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("SELEC 1", ()),
        ("SELECT * FROM missing", ()),
        ("SELECT 1; SELECT 2", ()),
        ("SELECT ?", ()),
        ("SELECT ?", (1, 2)),
        ("SELECT :a", {}),
        ("SELECT ?", (object(),)),
        ("SELECT ?", (2**70,)),
        ("SELECT CAST(x'ff' AS TEXT)", ()),
        ("SELECT abs(-9223372036854775808)", ()),
        ("SELECT 1 WHERE (SELECT json('{'))", ()),
    ],
)
def test_what_fails_raises_what_sqlite3_raises(con, local, sql: str, parameters: Any):
    assert type(raised(con, sql, parameters)) is type(raised(local, sql, parameters))


def test_errors_carry_codes_as_those_of_sqlite3_do(con, local):
    ours, theirs = raised(con, "SELEC 1"), raised(local, "SELEC 1")
    assert str(ours) == str(theirs)
    assert isinstance(ours.__cause__, apsw.SQLError)
    assert (ours.sqlite_errorcode, ours.sqlite_errorname) == (theirs.sqlite_errorcode, theirs.sqlite_errorname)


@pytest.mark.parametrize("size", [None, 1, 3, 499, 500, 501])
def test_fetchmany_hands_out_every_row_once(con, local, size: int | None):
    sql = "SELECT id FROM sale"
    ours, theirs = con.execute(sql), local.execute(sql)
    assert ours.arraysize == theirs.arraysize == 1
    ours.arraysize = theirs.arraysize = 200
    for _ in range(4):
        batch = ours.fetchmany() if size is None else ours.fetchmany(size)
        assert batch == (theirs.fetchmany() if size is None else theirs.fetchmany(size))
    assert ours.fetchone() == theirs.fetchone()
    assert list(ours) == list(theirs)


@pytest.mark.parametrize(
    "sql", ['SELECT id, name AS Name, 1 AS [1], 2 AS "a ""b"" [c]", id FROM customer', "SELECT * FROM sale"]
)
def test_rows_of_sqlite3_are_its_own(con, local, sql):
    con.row_factory = local.row_factory = sqlite3.Row
    rows = con.execute(sql).fetchall()
    assert rows == local.execute(sql).fetchall()  # compares the columns, too
    assert {type(row) for row in rows} == {sqlite3.Row}
    assert [tuple(row) for row in con.execute("SELECT 1 AS other")] == [(1,)]


def test_rows_come_by_factories(con, local):
    con.row_factory = dbapi.Row
    local.row_factory = sqlite3.Row
    sql = "SELECT id, name AS Name FROM customer"
    for ours, theirs in zip(con.execute(sql), local.execute(sql), strict=True):
        assert isinstance(ours, dbapi.Row)
        assert tuple(ours) == tuple(theirs)
        assert (ours["NAME"], ours[-1], ours[0:1], len(ours)) == (theirs["NAME"], theirs[-1], theirs[0:1], len(theirs))
        assert ours.keys() == theirs.keys()
        assert dict(ours) == dict(theirs)
        with pytest.raises(IndexError, match="no column 'city': the row has id, Name"):
            ours["city"]
    assert con.execute(sql).fetchone() == con.execute(sql).fetchone()
    con.row_factory = lambda cursor, row: {c[0]: v for c, v in zip(cursor.description, row, strict=True)}
    assert con.execute("SELECT 1 AS a").fetchone() == {"a": 1}
    con.row_factory = None
    con.text_factory = bytes
    assert con.execute("SELECT 'ü', 1, x'00'").fetchall() == [(b"\xc3\xbc", 1, b"\x00")]


def test_functions_aggregates_and_collations_are_ones_own(con):
    class Longest:
        def __init__(self) -> None:
            self.value = ""

        def step(self, text: str) -> None:
            self.value = max(self.value, text, key=len)

        def finalize(self) -> str:
            return self.value

    class Total:
        def __init__(self) -> None:
            self.sum = 0

        def step(self, value: int) -> None:
            self.sum += value

        def inverse(self, value: int) -> None:
            self.sum -= value

        def value(self) -> int:
            return self.sum

        finalize = value

    con.create_function("shout", 1, str.upper, deterministic=True)
    con.create_aggregate("longest", 1, Longest)
    con.create_window_function("total", 1, Total)
    con.create_collation("backwards", lambda a, b: (a < b) - (a > b))
    sql = "SELECT shout(name) FROM customer ORDER BY name COLLATE backwards"
    assert con.execute(sql).fetchall() == [('ZOË "Z"',), ("BJÖRN",), ("ADA",)]
    assert con.execute("SELECT longest(name) FROM customer").fetchone() == ('Zoë "Z"',)
    window = "SELECT total(id) OVER (ORDER BY id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM customer"
    assert con.execute(window).fetchall() == [(1,), (3,), (5,)]
    for no_rows in ("longest(name)", "total(id)"):  # as in sqlite3
        assert con.execute(f"SELECT {no_rows} FROM customer WHERE 0").fetchone() == (None,)
    con.create_function("shout", 1, None)
    assert isinstance(raised(con, "SELECT shout('a')"), dbapi.OperationalError)
    con.create_function("fails", 0, lambda: {}["key"])
    with pytest.raises(KeyError):
        con.execute("SELECT fails()")


def test_adapters_say_what_a_parameter_is(con):
    class Money:
        cents = 250

    assert con.execute("SELECT ?", (datetime(2026, 1, 2, 3, 4),)).fetchone() == ("2026-01-02 03:04:00",)
    error = raised(con, "SELECT ?", (Money(),))
    assert "register_adapter" in str(error)
    dbapi.register_adapter(Money, lambda money: money.cents)
    assert con.execute("SELECT ?", (Money(),)).fetchone() == (250,)


def test_hooks_see_and_end_statements(con):
    seen: list[str] = []
    con.set_trace_callback(seen.append)
    con.execute("SELECT 1").fetchall()
    con.set_trace_callback(None)
    con.execute("SELECT 2").fetchall()
    assert seen == ["SELECT 1"]
    con.set_progress_handler(lambda: 1, 10)
    assert isinstance(raised(con, "SELECT count(*) FROM sale a, sale b"), dbapi.OperationalError)
    con.set_progress_handler(None, 10)
    con.set_authorizer(lambda action, *_: apsw.SQLITE_DENY if action == apsw.SQLITE_READ else apsw.SQLITE_OK)
    assert type(raised(con, "SELECT * FROM sale")) is dbapi.DatabaseError
    con.set_authorizer(None)
    assert con.execute("SELECT 1").fetchone() == (1,)


# --- transactions -----------------------------------------------------------------------------------------------------


def count(con: dbapi.Connection) -> int:
    return con.execute("SELECT count(*) FROM customer").fetchone()[0]


def add(shop: Shop) -> int:
    return shop.primary.commit("INSERT INTO customer(name) VALUES ('n' || hex(randomblob(8)))")


def test_a_statement_sees_the_newest_state_and_a_transaction_one_txid(live_shop: Shop):
    with closing(dbapi.connect(live_shop.url)) as con:
        con.wait_for(add(live_shop))
        assert count(con) == 4
        con.execute("BEGIN")
        assert (count(con), con.in_transaction) == (4, True)
        add(live_shop)
        with closing(dbapi.connect(live_shop.url)) as other:
            other.wait_for(live_shop.primary.txid)  # they share the replica, which has the new state now
            assert count(other) == 5
        assert count(con) == 4
        con.commit()
        assert (count(con), con.in_transaction) == (5, False)


def test_without_autocommit_every_statement_is_part_of_a_transaction(live_shop: Shop):
    with closing(dbapi.connect(live_shop.url, autocommit=False)) as con:
        assert (count(con), con.in_transaction) == (3, True)
        for n, end in enumerate((con.commit, con.rollback), 4):
            add(live_shop)
            with closing(dbapi.connect(live_shop.url)) as other:
                other.wait_for(live_shop.primary.txid)
            assert count(con) == n - 1
            end()
            assert (count(con), con.in_transaction) == (n, True)
        con.autocommit = True
        assert not con.in_transaction


def test_a_cursor_that_is_dropped_lets_its_state_go(live_shop: Shop):
    with closing(dbapi.connect(live_shop.url)) as con:
        gc.disable()  # counting references has to be enough
        try:
            cursor = con.execute("SELECT * FROM sale a, sale b")
            cursor.fetchone()
            con.execute("SELECT 1").fetchall()
            assert con.apsw_connection.txn_state() == apsw.SQLITE_TXN_READ
            del cursor
            assert con.apsw_connection.txn_state() == apsw.SQLITE_TXN_NONE
        finally:
            gc.enable()


def fail_after_change(connection: Any) -> None:
    with connection:
        connection.execute("UPDATE kept SET a = 4")
        raise ZeroDivisionError


def test_changes_beside_the_replica_are_made_in_transactions(con, local):
    for connection in (con, local):
        connection.execute("CREATE TEMP TABLE kept(a)")
        assert not connection.in_transaction
        cursor = connection.executemany("INSERT INTO kept VALUES (?)", iter([(1,), (2,)]))
        assert (cursor.rowcount, connection.in_transaction) == (2, True)
        connection.rollback()
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        with connection:
            cursor = connection.execute("INSERT INTO kept VALUES (?)", (3,))
            assert (cursor.rowcount, cursor.lastrowid) == (1, 1)
        assert not connection.in_transaction
        with pytest.raises(ZeroDivisionError):
            fail_after_change(connection)
        assert connection.execute("SELECT a FROM kept").fetchall() == [(3,)]
        connection.isolation_level = None
        connection.execute("INSERT INTO kept VALUES (5)")
        assert not connection.in_transaction
        connection.executescript("SELECT 1; INSERT INTO kept VALUES (6); DROP TABLE kept")
        with pytest.raises(sqlite3.ProgrammingError):
            connection.executemany("SELECT ?", [(1,)])
    assert con.total_changes == local.total_changes


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sql", ["INSERT INTO customer VALUES (9, 'x', '')", "DROP TABLE sale", "CREATE TABLE n(x)"])
def test_a_write_says_where_to_write(con, sql: str):
    with pytest.raises(sqlite3.OperationalError, match="read-only: write to the primary database") as caught:
        con.execute(sql)
    assert caught.value.sqlite_errorname == "SQLITE_READONLY"
    con.rollback()


def test_a_closed_connection_says_so(shop: Shop):
    con = dbapi.connect(shop.url)
    cursor = con.execute("SELECT 1")
    con.close()
    con.close()
    for use in (con.cursor, con.commit, con.interrupt, cursor.fetchall, lambda: con.in_transaction, con.__enter__):
        with pytest.raises(dbapi.ProgrammingError, match=r"closed database; hint: open another .*litevfs\.dbapi"):
            use()


def test_a_closed_cursor_says_so(con):
    cursor = con.execute("SELECT 1")
    cursor.close()
    with pytest.raises(dbapi.ProgrammingError, match=r"closed cursor; hint: .*\.cursor\(\)"):
        cursor.fetchall()


def in_a_thread(call: Any) -> Any:
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(call())
        except Exception as error:  # noqa: BLE001 - handed to the test
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    return result[0]


def test_another_thread_is_told_to_open_its_own(con, shop: Shop):
    cursor = con.execute("SELECT 1")
    for use in (con.cursor, con.commit, con.close, cursor.fetchall, cursor.close):
        error = in_a_thread(use)
        assert isinstance(error, dbapi.ProgrammingError)
        assert "hint: open one for each thread" in str(error)
    assert in_a_thread(con.interrupt) is None
    with closing(dbapi.connect(shop.url, check_same_thread=False)) as free:
        assert in_a_thread(lambda: free.execute("SELECT 1").fetchall()) == [(1,)]


def test_an_unknown_option_and_a_wrong_url_are_programming_errors(shop: Shop):
    with pytest.raises(dbapi.ProgrammingError, match="did you mean poll_interval") as caught:
        dbapi.connect(shop.url, pol_interval=1)
    assert isinstance(caught.value, litevfs.OptionError)
    with pytest.raises(dbapi.ProgrammingError, match="hint") as caught:
        dbapi.connect("nothing://at/all")
    assert isinstance(caught.value, litevfs.ReplicaURLError)
    with pytest.raises(ValueError, match="isolation_level string must be"):
        dbapi.connect(shop.url, isolation_level="loose")


def test_a_missing_replica_is_an_error_of_both_trees(tmp_path):
    with pytest.raises(sqlite3.OperationalError) as caught:
        dbapi.connect(f"file://{tmp_path}/nothing", open_timeout="50ms")
    error = caught.value
    assert isinstance(error, litevfs.LitevfsError)
    assert isinstance(error.__cause__, litevfs.LitevfsError)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_an_error_of_the_vfs_is_one_of_both_trees(con):
    with pytest.raises(sqlite3.OperationalError) as caught:
        con.wait_for(999, timeout=0.01)
    error = caught.value
    assert isinstance(error, litevfs.StaleReplicaError)
    assert isinstance(error.__cause__, apsw.Error)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))


# --- PEP 249 ----------------------------------------------------------------------------------------------------------


def test_the_module_says_what_pep_249_asks_for():
    assert (dbapi.apilevel, dbapi.threadsafety, dbapi.paramstyle) == ("2.0", 1, "qmark")
    tree = {
        dbapi.Warning: Exception,
        dbapi.Error: Exception,
        dbapi.InterfaceError: dbapi.Error,
        dbapi.DatabaseError: dbapi.Error,
        dbapi.DataError: dbapi.DatabaseError,
        dbapi.OperationalError: dbapi.DatabaseError,
        dbapi.IntegrityError: dbapi.DatabaseError,
        dbapi.InternalError: dbapi.DatabaseError,
        dbapi.ProgrammingError: dbapi.DatabaseError,
        dbapi.NotSupportedError: dbapi.DatabaseError,
    }
    for child, parent in tree.items():
        assert issubclass(child, parent)
        assert getattr(dbapi.Connection, child.__name__) is child
        assert getattr(sqlite3, child.__name__) is child


def test_types_are_made_and_compared_as_pep_249_says(con):
    assert dbapi.Date(2026, 1, 2) == date(2026, 1, 2)
    assert dbapi.Time(3, 4, 5) == "03:04:05"
    assert dbapi.Timestamp(2026, 1, 2, 3, 4, 5) == datetime(2026, 1, 2, 3, 4, 5)
    moment = dbapi.TimestampFromTicks(1_000_000)
    assert (dbapi.DateFromTicks(1_000_000), dbapi.TimeFromTicks(1_000_000)) == (moment.date(), f"{moment:%H:%M:%S}")
    assert con.execute("SELECT ?", (dbapi.Binary(b"x"),)).fetchone() == (b"x",)
    assert [code for code in (str, int, float, bytes) if code == dbapi.NUMBER] == [int, float]
    assert repr(dbapi.STRING) == "STRING"


def test_a_cursor_has_all_of_pep_249(con):
    with con.cursor() as cursor:
        assert cursor.connection is con
        assert (cursor.description, cursor.rowcount, cursor.lastrowid) == (None, -1, None)
        cursor.setinputsizes([1])
        cursor.setoutputsize(1, 0)
        assert cursor.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(dbapi.ProgrammingError):
        cursor.execute("SELECT 1")


def test_what_only_sqlite3_has_is_said_to_be_elsewhere(con):
    for name in {name for name in dir(sqlite3.Connection) if not name.startswith("__")} - set(dir(con)):
        with pytest.raises(AttributeError, match=f"a connection of litevfs.dbapi has no {name}; hint: use "):
            getattr(con, name)
    with pytest.raises(AttributeError, match=r"has no executes$"):
        con.executes("SELECT 1")
    assert not hasattr(con, "backup")
