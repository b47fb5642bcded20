"""Bad input at every door: the error is typed, and its message says what is wrong and what to do."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import traceback
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

import litevfs
import litevfs.dbapi
from litevfs.live.registry import registry
from tests.integrations.bad_doors import DOORS, Door
from tests.support import wait_until

ORDERS = str(Path(__file__).parents[1] / "fixtures" / "orders" / "replica")

OPENINGS = {
    "unknown option": (ORDERS, {"pol_interval": "1s"}, "did you mean poll_interval"),
    "wrong value": (ORDERS, {"poll_interval": "soon"}, "write for example 1s, 250ms"),
    "wrong URL": ("s5://bucket/app", {}, "did you mean s3://"),
    "missing replica": ("/nowhere/at/all", {"open_timeout": "10ms"}, "check the path"),
}
FLAGS = {"unknown option": "did you mean --poll-interval"}
"""What the commands say instead."""
LOGGED = {"sqlite3.connect", "ASGI", "WSGI"}
"""Doors whose own error is not ours: the reason, and what to do, is in the log."""
TOLD = {"sqlite3.connect, factory", "Django"}
"""Doors whose own error has ours as its cause, and in its message."""
TO_PRIMARY = "a replica is read-only: write to the primary database"
WRITE = {
    **dict.fromkeys(DOORS.keys(), f"attempt to write a readonly database; {TO_PRIMARY}"),
    **dict.fromkeys(
        ("litevfs.connect", "litevfs.connect_async", "litevfs query", "litevfs shell"),
        f"attempt to write a readonly database; hint: {TO_PRIMARY}",
    ),
    # SQLite's words and no more: nothing of litevfs sees that error (docs/doors/apsw.md, sqlite3.md)
    **dict.fromkeys(("apsw.Connection", "sqlite3.connect"), "attempt to write a readonly database"),
    "litevfs.arrow": "pass one SELECT",
}
NO_SQL = {"ASGI", "WSGI"}
CLOSED = {
    "litevfs.connect": "open another one with litevfs.connect",
    "apsw.Connection": "The connection has been closed",  # APSW's words and no more (docs/doors/apsw.md)
    "litevfs.connect_stdlib": "open another one with litevfs.connect_stdlib",
    "sqlite3.connect": "Cannot operate on a closed database",  # those of sqlite3
    "sqlite3.connect, factory": "open another one",
    "litevfs.dbapi": "open another connection with litevfs.dbapi.connect",
    "SQLAlchemy": "This Connection is closed",  # SQLAlchemy's own
    "litevfs.connect_async": "open another one with litevfs.connect_async",
}
SERVED = "served"
AFTER_CLOSING = {**dict.fromkeys(("Django", "ASGI", "WSGI"), SERVED), **CLOSED}
"""Django and the middlewares open the replica again; with the other doors each call opens and closes, or the end of the
process is the only closing."""
OTHER_THREAD = {
    **dict.fromkeys((door for door in DOORS if door != "litevfs.connect_async"), SERVED),
    **dict.fromkeys(("litevfs.connect_stdlib", "sqlite3.connect, factory"), "open one connection for each thread"),
    "sqlite3.connect": "SQLite objects created in a thread can only be used in that same thread",  # those of sqlite3
    "litevfs.dbapi": "open one for each thread",
    "Django": "DatabaseWrapper objects created in a thread can only be used in that same thread",  # Django's
    "Datasette": None,  # has threads of its own
    "ASGI": SERVED,
}
"""Any thread may use the other doors, one at a time; at the same time: see `test_two_threads_at_once_...`."""


@pytest.fixture(autouse=True)
def _released():
    yield
    wait_until(lambda: not registry.shared, "the end of all connections")


def opened(door: str, url: str = ORDERS, **options: Any) -> Door:
    return DOORS[door](url, options)


def said(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


@pytest.mark.parametrize("case", OPENINGS)
@pytest.mark.parametrize("door", DOORS)
def test_what_cannot_be_opened_says_what_to_do(door, case, caplog):
    url, options, says = OPENINGS[case]
    if door.startswith("litevfs "):
        says = FLAGS.get(case, says)
    with pytest.raises(Exception) as caught:
        opened(door, url, **options)
    text = said(caught.value)
    if door in LOGGED and says not in text:
        text = caplog.text
    elif door in TOLD:
        causes = [caught.value, caught.value.__cause__, getattr(caught.value.__cause__, "__cause__", None)]
        assert any(isinstance(error, litevfs.LitevfsError) for error in causes)
    elif not door.startswith("litevfs "):
        ours = getattr(caught.value, "orig", caught.value)  # SQLAlchemy wraps the error of its driver
        assert isinstance(ours, litevfs.LitevfsError)
    assert says in text


@pytest.mark.parametrize("door", sorted(DOORS.keys() - NO_SQL))
def test_a_write_is_refused_and_the_door_goes_on(door):
    reading = opened(door)
    for sql in ("UPDATE orders SET note = ''", "CREATE TABLE other (x)", "DELETE FROM orders"):
        with pytest.raises(Exception) as caught:
            reading.run(sql)
        assert WRITE[door] in said(caught.value)
    if reading.has_transaction:
        reading.connection.rollback()
    assert len(reading.run("SELECT 1 AS one")) == 1
    reading.close()
    reading.end()


@pytest.mark.parametrize("door", AFTER_CLOSING)
def test_a_closed_connection_says_that_it_is_closed(door):
    reading = opened(door)
    reading.close()
    if AFTER_CLOSING[door] == SERVED:
        assert len(reading.run("SELECT 1 AS one")) == 1
        reading.close()
        return
    with pytest.raises(Exception) as caught:
        reading.run("SELECT 1 AS one")
    assert AFTER_CLOSING[door] in said(caught.value)
    reading.end()


def test_a_closed_arrow_result_says_what_to_do():
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'litevfs[arrow]'")
    connection = litevfs.connect(ORDERS)
    results = litevfs.arrow(ORDERS, "SELECT id FROM orders"), litevfs.arrow(connection, "SELECT id FROM orders")
    begun = [result.reader() for result in results]
    results[0].close()
    connection.close(True)
    later = [result.reader for result in results]
    for use in (*later, *(reader.read_all for reader in begun), lambda: litevfs.arrow(connection, "SELECT 1")):
        with pytest.raises(apsw.ConnectionClosedError) as caught:
            use()
        assert caught.value.__notes__ == ["call litevfs.arrow again, with a URL or an open connection"]


@pytest.mark.parametrize("door", [door for door, says in OTHER_THREAD.items() if says])
def test_another_thread_is_served_or_told_what_to_do(door):
    reading = opened(door)
    found: list[Any] = []

    def read() -> None:
        try:
            found.extend(reading.run("SELECT 1 AS one"))
        except Exception as error:  # noqa: BLE001 - handed to the test
            found.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    reading.close()
    if OTHER_THREAD[door] == SERVED:
        assert len(found) == 1
        assert "thread" not in str(found[0])
    else:
        assert OTHER_THREAD[door] in found[0]


def test_every_call_of_a_stdlib_cursor_says_where_to_write():
    with closing(litevfs.connect_stdlib(ORDERS)) as connection:
        cursor = connection.cursor()
        delete = "DELETE FROM orders WHERE id = ?"
        for call in (
            lambda: cursor.execute(delete, (1,)),
            lambda: cursor.executemany(delete, [(1,)]),
            lambda: cursor.executescript("DELETE FROM orders"),
            lambda: connection.executemany(delete, [(1,)]),
            lambda: connection.executescript("DELETE FROM orders"),
        ):
            with pytest.raises(sqlite3.OperationalError, match="readonly database; a replica is read-only") as caught:
                call()
            assert caught.value.sqlite_errorcode == sqlite3.SQLITE_READONLY
            connection.rollback()
        with pytest.raises(sqlite3.OperationalError, match=r'^near "SELEC": syntax error$'):
            cursor.execute("SELEC")
        connection.row_factory = sqlite3.Row
        assert connection.execute("SELECT 1 AS one").fetchone()["one"] == 1
        assert type(connection.cursor(sqlite3.Cursor)) is sqlite3.Cursor


def test_a_tools_own_cursors_say_what_to_do_and_stay_what_they_are():
    class Own(sqlite3.Cursor):
        def execute(self, sql: str, params: Any = ()) -> Any:
            return super().execute(sql.replace("%s", "?"), params)

    with closing(litevfs.connect_stdlib(ORDERS)) as connection:
        cursor = connection.cursor(factory=Own)
        assert isinstance(cursor, Own)
        assert type(cursor) is type(connection.cursor(factory=Own))
        assert cursor.execute("SELECT %s", params=(7,)).fetchall() == [(7,)]
        for call in (
            lambda: cursor.execute("DELETE FROM orders WHERE id = %s", (1,)),
            lambda: cursor.executemany("DELETE FROM orders WHERE id = ?", [(1,)]),
            lambda: cursor.executescript("DELETE FROM orders"),
        ):
            with pytest.raises(sqlite3.OperationalError, match=f"readonly database; {TO_PRIMARY}$"):
                call()
            connection.rollback()
        assert type(connection.cursor(sqlite3.Cursor)) is sqlite3.Cursor


def test_a_reason_is_told_once_and_with_the_code_that_it_had(tmp_path, caplog):
    with closing(litevfs.connect_stdlib(ORDERS)) as connection:
        with pytest.raises(sqlite3.OperationalError, match=r"unable to open database: x\.db; no replica URL"):
            connection.execute("ATTACH 'x.db' AS x")
        own = litevfs.last_error()
        with pytest.raises(sqlite3.OperationalError) as caught:  # an error in which litevfs has no part
            connection.execute(f"ATTACH 'file:{tmp_path}/none/x.db?vfs=unix' AS x")
        assert str(caught.value) == f"unable to open database: file:{tmp_path}/none/x.db?vfs=unix"
        assert litevfs.last_error() is own


def in_its_thread(connection: Any) -> Any:
    return connection.execute("SELECT 7").get


@pytest.mark.skipif(
    not hasattr(apsw.Connection, "as_async"), reason="needs APSW with its async mode (pip install -U apsw)"
)
def test_another_event_loop_is_told_to_open_a_connection_of_its_own():
    found: list[str] = []
    told = threading.Event()  # a result that comes sooner would be taken without a word

    def elsewhere(connection: Any) -> None:
        async def execute() -> None:
            try:
                with pytest.raises(RuntimeError) as caught:
                    await connection.execute("SELECT wait()")
                found.append(str(caught.value))
            finally:
                told.set()

        asyncio.run(execute())

    async def run() -> None:
        connection = await litevfs.connect_async(ORDERS)
        try:
            await connection.create_scalar_function("wait", lambda: told.wait(60), 0)
            await asyncio.to_thread(elsewhere, connection)
            assert [row async for row in await connection.execute("SELECT 7")] == [(7,)]
        finally:
            await connection.aclose()

    asyncio.run(run())
    assert found == ["the connection belongs to another event loop; hint: open one in each with litevfs.connect_async"]


@pytest.mark.skipif(
    not hasattr(apsw.Connection, "as_async"), reason="needs APSW with its async mode (pip install -U apsw)"
)
def test_every_call_of_an_async_connection_says_where_to_write():
    async def run() -> None:
        connection = await litevfs.connect_async(ORDERS)
        try:
            delete = "DELETE FROM orders WHERE id = ?"
            for call in (
                lambda: connection.execute(delete, (1,)),
                lambda: connection.executemany(delete, [(1,)]),
            ):
                with pytest.raises(apsw.ReadOnlyError) as caught:
                    await call()
                assert str(caught.value).endswith(
                    "database; hint: a replica is read-only: write to the primary database"
                )
            assert await connection.async_run(in_its_thread, connection) == 7
            assert [row async for row in await connection.execute("SELECT 8; SELECT ?", (9,))] == [(8,), (9,)]
        finally:
            await connection.aclose()

    asyncio.run(run())


def test_two_threads_at_once_are_told_to_open_a_connection_each():
    found: list[str] = []
    connection = litevfs.connect(ORDERS)

    def in_another_thread() -> int:
        def read() -> None:
            for use in (connection.execute, lambda sql: connection.executemany(sql, [()])):
                with pytest.raises(apsw.ThreadingViolationError) as caught:
                    use("SELECT 1")
                found.append(str(caught.value))

        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        return 1

    with closing(connection):
        connection.create_scalar_function("in_another_thread", in_another_thread, 0)
        assert connection.execute("SELECT in_another_thread()").get == 1
    assert [text.partition("; hint: ")[2] for text in found] == [
        "open one connection for each thread: they share the replica's memory"
    ] * 2


def writes(connection: Any) -> list[Any]:
    """Ways to write by a connection of APSW."""
    delete = "DELETE FROM orders WHERE id = ?"
    return [
        lambda: connection.execute(delete, (1,), can_cache=False),
        lambda: connection.execute(statements=delete, bindings=(1,)),
        lambda: connection.executemany(delete, [(1,)]),
        lambda: connection.pragma("user_version", 3),
        lambda: connection.blob_open("main", "orders", "note", 1, True),
        lambda: connection.execute("BEGIN IMMEDIATE; DELETE FROM orders"),
    ]


def test_every_call_of_a_connection_of_apsw_says_where_to_write():
    with closing(litevfs.connect(ORDERS)) as connection:
        for write in writes(connection):
            with pytest.raises(apsw.ReadOnlyError, match=f"readonly database; hint: {TO_PRIMARY}$") as caught:
                write()
            assert caught.value.extendedresult == apsw.SQLITE_READONLY
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        with pytest.raises(apsw.SQLError, match=r'^near "SELEC": syntax error$'):
            connection.execute("SELEC")
        assert connection.execute("SELECT ?", (7,), can_cache=False).get == 7


def test_a_refused_write_leaves_no_connection_to_the_garbage_collector():
    connection = litevfs.connect(ORDERS)
    with pytest.raises(apsw.ReadOnlyError) as caught:
        connection.execute("DELETE FROM orders")
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb) if frame.f_code.co_name in {"execute", "executemany"}]
    assert frames
    assert not [frame for frame in frames if connection in frame.f_locals.values()]
    connection.close()


def test_an_attached_database_is_written_beside_the_replica():
    with closing(litevfs.connect(ORDERS)) as connection:
        connection.execute("ATTACH ':memory:' AS own; CREATE TABLE own.kept(x)")
        connection.executemany("INSERT INTO own.kept VALUES (?)", [(1,), (2,)])
        assert connection.execute("SELECT sum(x) FROM own.kept").get == 3
        assert type(connection.cursor()) is apsw.Cursor
