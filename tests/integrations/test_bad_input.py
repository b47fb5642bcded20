"""Bad input at every door: the error is typed, and its message says what is wrong and what to do."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import apsw
import pytest

import litevfs
import litevfs.dbapi
from litevfs.cli import main
from litevfs.live.registry import registry
from tests.support import wait_until

ORDERS = str(Path(__file__).parents[1] / "fixtures" / "orders" / "replica")


class Door:
    """One way to read a replica: opens it, runs SQL, closes."""

    def __init__(self, connect: Callable[..., Any], url: str, options: dict[str, Any]) -> None:
        self.connection = connect(url, **options)

    def run(self, sql: str) -> list[Any]:
        return list(self.connection.execute(sql).fetchall())

    def close(self) -> None:
        self.connection.close()


class SQLAlchemyDoor(Door):
    def __init__(self, connect: Callable[..., Any], url: str, options: dict[str, Any]) -> None:
        query = f"?{urlencode(options)}" if options else ""
        self.engine = connect(f"litevfs:///{url}{query}")
        self.connection = self.engine.connect()

    def run(self, sql: str) -> list[Any]:
        return list(self.connection.exec_driver_sql(sql).all())

    def close(self) -> None:
        self.connection.close()
        self.engine.dispose()


class ArrowDoor(Door):
    """Each query opens the replica."""

    def __init__(self, connect: Callable[..., Any], url: str, options: dict[str, Any]) -> None:
        self.connect, self.url, self.options = connect, url, options
        self.run("SELECT 1 AS one")

    def run(self, sql: str) -> list[Any]:
        with self.connect(self.url, sql, **self.options) as result:
            return list(result.reader().read_all().to_pylist())

    def close(self) -> None:
        pass


class AsyncDoor(Door):
    def __init__(self, connect: Callable[..., Any], url: str, options: dict[str, Any]) -> None:
        self.runner = asyncio.Runner()

        async def opened() -> Any:
            return await connect(url, **options)

        try:
            super().__init__(lambda *_: self.runner.run(opened()), url, {})
        except BaseException:
            self.runner.close()
            raise

    def run(self, sql: str) -> list[Any]:
        async def rows() -> list[Any]:
            return [row async for row in await self.connection.execute(sql)]

        return list(self.runner.run(rows()))

    def close(self) -> None:
        async def closed() -> None:
            if (waiting := self.connection.close()) is not None:
                await waiting

        self.runner.run(closed())


def sqlalchemy_engine(url: str) -> Any:
    sqlalchemy = pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy: pip install 'litevfs[integrations]'")
    return sqlalchemy.create_engine(url)


def arrow(*arguments: Any, **options: Any) -> Any:
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'litevfs[arrow]'")
    return litevfs.arrow(*arguments, **options)


def connect_async(*arguments: Any, **options: Any) -> Any:
    if not hasattr(apsw.Connection, "as_async"):
        pytest.skip("needs APSW with its async mode (pip install --upgrade apsw)")
    return litevfs.connect_async(*arguments, **options)


DOORS: dict[str, tuple[type[Door], Callable[..., Any]]] = {
    "connect": (Door, litevfs.connect),
    "connect_stdlib": (Door, litevfs.connect_stdlib),
    "dbapi": (Door, litevfs.dbapi.connect),
    "SQLAlchemy": (SQLAlchemyDoor, sqlalchemy_engine),
    "arrow": (ArrowDoor, arrow),
    "connect_async": (AsyncDoor, connect_async),
}
OPENINGS = {
    "unknown option": (ORDERS, {"pol_interval": "1s"}, "did you mean poll_interval"),
    "wrong value": (ORDERS, {"poll_interval": "soon"}, "write for example 1s, 250ms"),
    "wrong URL": ("s5://bucket/app", {}, "did you mean s3://"),
    "missing replica": ("/nowhere/at/all", {"open_timeout": "10ms"}, "check the path"),
}
WRITE = {
    "arrow": "pass one SELECT",
}
CLOSED = {
    "connect": "The connection has been closed; open another one with litevfs.connect$",
    "connect_stdlib": "open another one with litevfs.connect_stdlib",
    "dbapi": "open another connection with litevfs.dbapi.connect",
    "SQLAlchemy": "Connection is closed",
    "connect_async": "The connection has been closed; open another one with litevfs.connect_async$",
}
OTHER_THREAD = {
    "connect_stdlib": "open one connection for each thread",
    "dbapi": "open one for each thread",
}
"""At the other doors any thread may use a connection, one at a time."""


def opened(door: str, url: str = ORDERS, **options: Any) -> Door:
    kind, connect = DOORS[door]
    return kind(connect, url, options)


@pytest.fixture(autouse=True)
def _released():
    yield
    wait_until(lambda: not registry._shared, "the end of all connections")


@pytest.mark.parametrize("case", OPENINGS)
@pytest.mark.parametrize("door", DOORS)
def test_what_cannot_be_opened_says_what_to_do(door, case):
    url, options, says = OPENINGS[case]
    with pytest.raises(Exception, match=says) as caught:
        opened(door, url, **options)
    ours = getattr(caught.value, "orig", caught.value)  # SQLAlchemy wraps the error of its driver
    assert isinstance(ours, litevfs.LitevfsError)


@pytest.mark.parametrize("door", DOORS)
def test_a_write_is_refused_and_the_door_goes_on(door):
    reading = opened(door)
    says = WRITE.get(door, "a replica is read-only: write to the primary database")
    for sql in ("UPDATE orders SET note = ''", "CREATE TABLE other (x)", "DELETE FROM orders"):
        with pytest.raises(Exception) as caught:
            reading.run(sql)
        assert re.search(says, "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])]))
    if door in ("connect_stdlib", "dbapi", "SQLAlchemy"):  # these began a transaction before the statement
        reading.connection.rollback()
    assert len(reading.run("SELECT 1 AS one")) == 1
    reading.close()
    if isinstance(reading, AsyncDoor):
        reading.runner.close()


@pytest.mark.parametrize("door", CLOSED)
def test_a_closed_connection_says_that_it_is_closed(door):
    reading = opened(door)
    reading.close()
    with pytest.raises(Exception, match=CLOSED[door]):
        reading.run("SELECT 1 AS one")
    if isinstance(reading, AsyncDoor):
        reading.runner.close()


def test_a_closed_arrow_result_says_what_to_do():
    pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'litevfs[arrow]'")
    connection = litevfs.connect(ORDERS)
    results = arrow(ORDERS, "SELECT id FROM orders"), arrow(connection, "SELECT id FROM orders")
    begun = [result.reader() for result in results]
    results[0].close()
    connection.close(True)
    later = [result.reader for result in results]
    for use in (*later, *(reader.read_all for reader in begun), lambda: arrow(connection, "SELECT 1")):
        with pytest.raises(apsw.ConnectionClosedError) as caught:
            use()
        assert caught.value.__notes__ == ["call litevfs.arrow again, with a URL or an open connection"]


@pytest.mark.parametrize("door", sorted(DOORS.keys() - {"connect_async"}))
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
    if door in OTHER_THREAD:
        assert OTHER_THREAD[door] in found[0]
    else:
        assert len(found) == 1
        assert "thread" not in str(found[0])


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


def in_its_thread(connection: Any) -> Any:
    return connection.execute("SELECT 7").get


def test_every_call_of_an_async_cursor_says_where_to_write():
    async def run() -> None:
        connection = await connect_async(ORDERS)
        try:
            delete, cursor = "DELETE FROM orders WHERE id = ?", connection.cursor()
            for call in (
                lambda: cursor.execute(delete, (1,)),
                lambda: cursor.executemany(delete, [(1,)]),
                lambda: connection.executemany(delete, [(1,)]),
            ):
                with pytest.raises(apsw.ReadOnlyError) as caught:
                    await call()
                assert str(caught.value).endswith(
                    "database; hint: a replica is read-only: write to the primary database"
                )
            assert await connection.async_run(in_its_thread, connection) == 7
            assert [row async for row in await cursor.execute("SELECT 8; SELECT ?", (9,))] == [(8,), (9,)]
        finally:
            await connection.aclose()

    asyncio.run(run())


def test_two_threads_at_once_are_told_by_apsw():
    found: list[Exception] = []

    def in_another_thread() -> int:
        def read() -> None:
            with pytest.raises(apsw.ThreadingViolationError) as caught:
                connection.execute("SELECT 1")
            found.append(caught.value)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        return 1

    with closing(litevfs.connect(ORDERS)) as connection:
        connection.create_scalar_function("in_another_thread", in_another_thread, 0)
        assert connection.execute("SELECT in_another_thread()").get == 1
    assert "the Connection is busy in another thread" in str(found[0])


CLI = {
    "unknown option": (("--pol-interval", "1s", ORDERS), 2, "hint: did you mean --poll-interval"),
    "wrong value": (("--poll-interval", "soon", ORDERS), 2, "write for example 1s, 250ms"),
    "wrong URL": (("s5://bucket/app",), 2, "hint: did you mean s3://"),
    "missing replica": (("--open-timeout", "10ms", "/nowhere/at/all"), 1, "hint: check the path"),
}


@pytest.mark.parametrize("case", CLI)
def test_the_command_says_what_to_do(case, capsys):
    arguments, code, says = CLI[case]
    try:
        ended = main(["query", *arguments, "SELECT 1"])
    except SystemExit as error:  # of argparse
        ended = error.code
    printed = capsys.readouterr()
    assert (ended, printed.out) == (code, "")
    assert says in printed.err


def test_the_command_says_where_to_write(capsys):
    for sql in ("UPDATE orders SET note = ''", "CREATE TABLE other (x)", "DELETE FROM orders"):
        assert main(["query", ORDERS, sql]) == 1
        assert "hint: a replica is read-only: write to the primary database" in capsys.readouterr().err
