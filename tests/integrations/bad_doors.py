"""The doors that tests of bad input open: each opens a replica, runs SQL, and closes. What fails raises."""

from __future__ import annotations

import asyncio
import gc
import io
import sqlite3
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from typing import Any, ClassVar
from unittest import mock
from urllib.parse import quote, urlencode

import apsw
import pytest

import litevfs
import litevfs.dbapi
from litevfs.cli import main
from litevfs.integrations import asgi, wsgi

HOW = "needs the extra `integrations` (pip install 'litevfs[integrations]')"


class Door:
    """One way to read a replica, that of a connection with the methods that `sqlite3` has."""

    connect: ClassVar[Callable[..., Any]]
    has_transaction = False  # whether a statement that writes begins one

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.connection = type(self).connect(url, **options)

    def run(self, sql: str) -> list[Any]:
        return list(self.connection.execute(sql).fetchall())

    def close(self) -> None:
        self.connection.close()

    def end(self) -> None:
        """Release what is left after `close`."""


def uri(url: str, options: dict[str, Any]) -> str:
    return "file:replica?" + urlencode({"replica_url": url, "vfs": "litestream", **options}, quote_via=quote)


class Connect(Door):
    connect = litevfs.connect


class PlainAPSW(Door):
    @staticmethod
    def connect(url: str, **options: Any) -> apsw.Connection:
        litevfs.register()
        return apsw.Connection(uri(url, options), flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)


class ConnectStdlib(Door):
    connect = litevfs.connect_stdlib
    has_transaction = True


class PlainSQLite3(Door):
    has_transaction = True

    @staticmethod
    def connect(url: str, **options: Any) -> sqlite3.Connection:
        litevfs.register_stdlib()
        return sqlite3.connect(uri(url, options), uri=True)


class OwnFactory(Door):
    has_transaction = True

    @staticmethod
    def connect(url: str, **options: Any) -> sqlite3.Connection:
        litevfs.register_stdlib()
        return sqlite3.connect(uri(url, options), uri=True, factory=litevfs.StdlibConnection)


class Dbapi(Door):
    connect = litevfs.dbapi.connect
    has_transaction = True


class SQLAlchemy(Door):
    has_transaction = True

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        sqlalchemy = pytest.importorskip("sqlalchemy", reason=HOW)
        self.engine = sqlalchemy.create_engine(f"litevfs:///{url}" + (f"?{urlencode(options)}" if options else ""))
        self.connection = self.engine.connect()

    def run(self, sql: str) -> list[Any]:
        return list(self.connection.exec_driver_sql(sql).all())

    def close(self) -> None:
        self.connection.close()
        self.engine.dispose()


class Arrow(Door):
    """Each query opens the replica."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'litevfs[arrow]'")
        self.url, self.options = url, options
        self.run("SELECT 1 AS one")

    def run(self, sql: str) -> list[Any]:
        with litevfs.arrow(self.url, sql, **self.options) as result:
            return list(result.reader().read_all().to_pylist())

    def close(self) -> None:
        pass


class Async(Door):
    def __init__(self, url: str, options: dict[str, Any]) -> None:
        if not hasattr(apsw.Connection, "as_async"):
            pytest.skip("needs APSW with its async mode (pip install --upgrade apsw)")
        self.runner = asyncio.Runner()

        async def opened() -> Any:
            return await litevfs.connect_async(url, **options)

        try:
            self.connection = self.runner.run(opened())
        except BaseException:
            self.runner.close()
            raise

    def run(self, sql: str) -> list[Any]:
        async def rows() -> list[Any]:
            return [row async for row in await self.connection.execute(sql)]

        return list(self.runner.run(rows()))

    def close(self) -> None:
        async def closed() -> None:
            await self.connection.aclose()

        self.runner.run(closed())

    def end(self) -> None:
        self.runner.close()


class Datasette(Door):
    """The database that the plugin gives to Datasette."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        app = pytest.importorskip("datasette.app", reason=HOW)
        config = {"plugins": {"litevfs": {"databases": {"replica": {"url": url, **options}}}}}
        name = "config" if "config" in app.Datasette.__init__.__code__.co_varnames else "metadata"
        self.app = app.Datasette([], memory=True, settings={"num_sql_threads": 1}, **{name: config})
        self.runner = asyncio.Runner()
        try:
            self.runner.run(self.app.invoke_startup())
            self.run("SELECT 1 AS one")
        except BaseException:
            self.close()
            raise

    def run(self, sql: str) -> list[Any]:
        database = self.app.get_database("replica")
        if sql.startswith("SELECT"):
            return list(self.runner.run(database.execute(sql)))
        return list(self.runner.run(database.execute_write(sql)))

    def close(self) -> None:
        if hasattr(self.app, "close"):
            self.app.close()
        else:  # before 1.0
            for database in self.app.databases.values():
                database.close()
            self.app.executor.shutdown()
        self.runner.close()
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # Datasette leaves some of its own
            del self.app
            gc.collect()


class Django(Door):
    """Django's own backend for SQLite, with the settings of docs/doors/django.md."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        django = pytest.importorskip("django", reason=HOW)
        from django.conf import settings
        from django.db.utils import ConnectionHandler

        if not settings.configured:
            settings.configure()
            django.setup()
        litevfs.register_stdlib()
        engine = "django.db.backends.sqlite3"
        own = {"uri": True, "factory": litevfs.StdlibConnection}
        replica = {"ENGINE": engine, "NAME": uri(url, options), "OPTIONS": own}
        self.connection = ConnectionHandler({"default": {}, "replica": replica})["replica"]
        self.run("SELECT 1 AS one")

    def run(self, sql: str) -> list[Any]:
        with self.connection.cursor() as cursor:
            return list(cursor.execute(sql).fetchall())


class Asgi(Door):
    """The middleware before an application that answers 200; it runs no SQL."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.middleware = asgi.ReadYourWrites(self.answer, url, **options)
        try:
            self.run("")
        except BaseException:
            self.close()
            raise

    @staticmethod
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one"})

    def run(self, sql: str) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.middleware({"type": "http", "method": "GET", "headers": []}, None, send))
        if sent[0]["status"] != 200:
            raise RuntimeError(sent[1]["body"].decode())
        return [sent[1]["body"]]

    def close(self) -> None:
        self.middleware.close()


class Wsgi(Asgi):
    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.middleware = wsgi.ReadYourWrites(self.answer_now, url, **options)
        self.run("")

    @staticmethod
    def answer_now(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"one"]

    def run(self, sql: str) -> list[Any]:
        status: list[str] = []
        body = self.middleware({"REQUEST_METHOD": "GET"}, lambda line, _: status.append(line))
        if status != ["200 OK"]:
            raise RuntimeError(b"".join(body).decode())
        return list(body)


class Query(Door):
    """`litevfs query`. The error is what the command says on stderr."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()] + [url]
        self.run("SELECT 1 AS one")

    def run(self, sql: str) -> list[Any]:
        return self.command("query", *self.arguments, sql)

    def command(self, *arguments: str, given: str = "") -> list[Any]:
        out, err = io.StringIO(), io.StringIO()
        with ExitStack() as stack:
            stack.enter_context(redirect_stdout(out))
            stack.enter_context(redirect_stderr(err))
            stack.enter_context(mock.patch.object(sys, "stdin", io.StringIO(given)))
            try:
                code = main(arguments)
            except SystemExit as error:  # of argparse
                code = int(error.code or 0)
        if code:
            raise RuntimeError(err.getvalue())
        return out.getvalue().splitlines()

    def close(self) -> None:
        pass


class Shell(Query):
    """`litevfs shell`, with statements that come through a pipe."""

    def run(self, sql: str) -> list[Any]:
        return self.command("shell", *self.arguments, given=f"{sql};\n")


DOORS: dict[str, type[Door]] = {
    "litevfs.connect": Connect,
    "apsw.Connection": PlainAPSW,
    "litevfs.connect_stdlib": ConnectStdlib,
    "sqlite3.connect": PlainSQLite3,
    "sqlite3.connect, factory": OwnFactory,
    "litevfs.dbapi": Dbapi,
    "SQLAlchemy": SQLAlchemy,
    "litevfs.arrow": Arrow,
    "litevfs.connect_async": Async,
    "Datasette": Datasette,
    "Django": Django,
    "ASGI": Asgi,
    "WSGI": Wsgi,
    "litevfs query": Query,
    "litevfs shell": Shell,
}
