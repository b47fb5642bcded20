"""What stands on the standard library's `sqlite3` reads a replica through `register_stdlib` as a local file."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest

import litevfs
from tests.integrations.conftest import Shop

HOW = "needs the extra `integrations` (pip install 'litevfs[integrations]')"


@pytest.fixture
def uri(shop: Shop) -> str:
    litevfs.register_stdlib()
    return f"file:shop.db?vfs=litestream&replica_url={quote(shop.url)}"


@pytest.mark.parametrize("sql", ["SELECT * FROM sale", "SELECT * FROM sale WHERE 0"])
def test_pandas_reads_the_frame_that_it_reads_from_the_file(uri, local, sql):
    pandas = pytest.importorskip("pandas", reason=HOW)
    with closing(sqlite3.connect(uri, uri=True)) as con:
        pandas.testing.assert_frame_equal(pandas.read_sql(sql, con), pandas.read_sql(sql, local))
        ours, theirs = (list(pandas.read_sql(sql, source, chunksize=100)) for source in (con, local))
        assert [len(frame) for frame in ours] == [len(frame) for frame in theirs]


def test_sqlalchemys_own_sqlite_dialect_reads_by_uri_and_by_creator(shop, uri, local):
    sqlalchemy = pytest.importorskip("sqlalchemy", reason=HOW)
    (expected,) = local.execute("SELECT count(*) FROM sale").fetchone()
    by_creator = sqlalchemy.create_engine("sqlite://", creator=lambda: litevfs.connect_stdlib(shop.url))
    for engine in (by_creator, sqlalchemy.create_engine(f"sqlite:///{uri}&uri=true")):
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("SELECT count(*) FROM sale")).scalar() == expected
            assert "sale" in sqlalchemy.inspect(engine).get_table_names()
            with pytest.raises(sqlalchemy.exc.OperationalError, match="readonly"):
                connection.execute(sqlalchemy.text("DELETE FROM sale"))
        engine.dispose()


def test_sqlite_utils_reads_tables(uri, local):
    sqlite_utils = pytest.importorskip("sqlite_utils", reason=HOW)
    with closing(sqlite3.connect(uri, uri=True)) as con:
        database = sqlite_utils.Database(con)
        assert database["sale"].count == local.execute("SELECT count(*) FROM sale").fetchone()[0]
        assert "sale" in database.table_names()


def run(program: str) -> object:
    """What a program of its own prints as JSON: some tools leave connections of their own to the process."""
    done = subprocess.run(
        [sys.executable, "-c", "import json, litevfs\nlitevfs.register_stdlib()\n" + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_datasette_serves_a_database_that_is_a_uri(uri, local):
    pytest.importorskip("datasette", reason=HOW)
    ((count, txid),) = run(f"""
        import asyncio, sqlite3
        from datasette.app import Datasette
        from datasette.database import Database

        class Replica(Database):
            def connect(self, write=False):
                return sqlite3.connect({uri!r}, uri=True, check_same_thread=False)

        async def ask():
            datasette = Datasette([])
            datasette.add_database(Replica(datasette, path="shop.db", is_mutable=True), name="shop")
            sql = "SELECT+count(*),+litestream_txid()+FROM+sale"
            answer = await datasette.client.get("/shop.json?_shape=arrays&sql=" + sql)
            return answer.json()["rows"]

        print(json.dumps(asyncio.run(ask())))
    """)
    (expected,) = local.execute("SELECT count(*) FROM sale").fetchone()
    assert (count, len(txid)) == (expected, 16)


def test_django_reads_with_its_own_backend(uri, local):
    pytest.importorskip("django", reason=HOW)
    answer = run(f"""
        import django
        from django.conf import settings
        database = {{"ENGINE": "django.db.backends.sqlite3", "NAME": {uri!r}}}
        database["OPTIONS"] = {{"uri": True, "factory": litevfs.StdlibConnection}}
        settings.configure(DATABASES={{"default": database}})
        django.setup()
        from django.db import OperationalError, connection, models

        class Sale(models.Model):
            class Meta:
                app_label, managed, db_table = "shop", False, "sale"

        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM sale")
            counted = cursor.fetchone()[0]
            assert litevfs.wait_for(connection, "1") == litevfs.wait_for(cursor, 1) > 0
            try:
                cursor.execute("DELETE FROM sale")
            except OperationalError as error:
                print(json.dumps([counted, Sale.objects.count(), str(error)]))
        connection.close()
    """)
    (expected,) = local.execute("SELECT count(*) FROM sale").fetchone()
    message = "attempt to write a readonly database; a replica is read-only: write to the primary database"
    assert answer == [expected, expected, message]


def test_django_closes_its_connection_after_each_request_and_the_replica_stays_open(shop, local):
    pytest.importorskip("django", reason=HOW)
    uri = f"file:shop.db?vfs=litestream&keep_open=1m&poll_interval=1h&replica_url={quote(shop.url)}"
    answer = run(f"""
        import django
        from django.conf import settings
        replica = {{"ENGINE": "django.db.backends.sqlite3", "NAME": {uri!r}}}
        replica["OPTIONS"] = {{"uri": True, "factory": litevfs.StdlibConnection}}
        settings.configure(DATABASES={{"default": replica}}, ROOT_URLCONF="__main__", ALLOWED_HOSTS=["*"])
        django.setup()
        from django.core.handlers.wsgi import WSGIHandler
        from django.db import connection, models
        from django.http import HttpResponse
        from django.test import RequestFactory
        from django.urls import path

        class Sale(models.Model):
            class Meta:
                app_label, managed, db_table = "shop", False, "sale"

        urlpatterns = [path("sales", lambda request: HttpResponse(Sale.objects.count()))]
        handler = WSGIHandler()

        def get(address):
            answer = handler(RequestFactory().get(address).environ, lambda status, headers: None)
            content = b"".join(answer)
            answer.close()  # as a server does at the end of a request
            assert connection.connection is None
            return int(content)

        def asked():
            lines = litevfs.metrics().splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith("litevfs_requests_total"))

        counts, first = {{get("/sales")}}, asked()
        counts |= {{get("/sales") for _ in range(5)}}
        print(json.dumps([*counts, first > 0, asked() - first]))
    """)
    (expected,) = local.execute("SELECT count(*) FROM sale").fetchone()
    assert answer == [expected, True, 0]
