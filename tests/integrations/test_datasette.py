"""The plugin in Datasette itself, by the HTTP answers that it gives."""

from __future__ import annotations

import asyncio
import gc
import re
import sqlite3
import sys
import warnings
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import rich.traceback

import litevfs.dbapi
from tests.integrations.conftest import Shop

HOW = "needs the extra `integrations` (pip install 'litevfs[integrations]')"
app = pytest.importorskip("datasette.app", reason=HOW)
check_connection = pytest.importorskip("datasette.utils").check_connection
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning", "ignore::ResourceWarning"
)


@pytest.fixture(autouse=True)
def _connections_of_datasette():
    """Collect those that Datasette 0.65 leaves open, of which Python warns from 3.13 on."""
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


def with_datasette(
    databases: dict[str, Any],
    work: Callable[[Any], Coroutine[Any, Any, None]],
    files: Sequence[str] = (),
    *,
    crossdb: bool = False,
) -> None:
    """Run `work(client)` with Datasette configured as a user's file would, and end its threads."""
    config = {"plugins": {"litevfs": {"databases": databases}}}
    name = "config" if "config" in app.Datasette.__init__.__code__.co_varnames else "metadata"
    datasette = app.Datasette(
        list(files), memory=True, settings={"num_sql_threads": 2}, crossdb=crossdb, **{name: config}
    )

    async def main() -> None:
        try:
            await datasette.invoke_startup()
            await work(datasette.client)
        finally:
            if hasattr(datasette, "close"):
                datasette.close()
            else:  # before 1.0
                for database in datasette.databases.values():
                    database.close()
                datasette.executor.shutdown()

    asyncio.run(main())


def test_a_replica_is_browsed_as_a_database(shop: Shop):
    async def browse(client: Any) -> None:
        assert "shop" in (await client.get("/")).text
        page = await client.get("/shop")
        assert page.status_code == 200
        assert "customer" in page.text
        rows = (await client.get("/shop/customer.json?_shape=array")).json()
        assert [(row["id"], row["name"]) for row in rows] == [(1, "Ada"), (2, "Björn"), (3, 'Zoë "Z"')]
        page = await client.get("/shop/sale?_facet=customer_id&_sort_desc=price")
        assert page.status_code == 200
        assert "500 rows" in page.text
        row = await client.get("/shop/sale/7.json?_shape=objects")
        assert row.json()["rows"][0]["price"] == 8.75
        row = (await client.get("/shop/customer/1.json")).json()  # lists before 1.0, then objects
        assert row["rows"] in ([[1, "Ada", "Bern"]], [{"id": 1, "name": "Ada", "city": "Bern"}])

    with_datasette({"shop": {"url": shop.url, "poll_interval": "250ms"}}, browse)


def test_every_page_of_a_replica_says_which_state_it_shows(shop: Shop):
    async def is_shown(client: Any, path: str) -> bool:
        for _ in range(50):  # on a busy machine the last poll may be a second old
            if "<span class=litevfs>TXID 0000000000000001, up to date</span>" in (await client.get(path)).text:
                return True
        return False

    async def browse(client: Any) -> None:
        for path in ("/shop", "/shop/customer", "/shop/customer/1"):
            assert await is_shown(client, path)
        for path in ("/", "/_memory"):
            page = (await client.get(path)).text
            assert "Powered by" in page
            assert "TXID" not in page

    with_datasette({"shop": shop.url}, browse)


def test_a_page_shows_the_newest_state_or_the_one_that_is_asked_for(live_shop: Shop):
    async def names(client: Any, more: str = "") -> list[str]:
        return [row["name"] for row in (await client.get(f"/shop/customer.json?_shape=array{more}")).json()]

    async def browse(client: Any) -> None:
        assert len(await names(client)) == 3
        txid = live_shop.primary.commit("DELETE FROM customer WHERE id > 1")
        with closing(litevfs.dbapi.connect(live_shop.url)) as connection:
            connection.wait_for(txid)
        assert await names(client) == ["Ada"]
        assert len(await names(client, "&_txid=1")) == 3
        assert "TXID 1, a fixed state" in (await client.get("/shop/customer?_txid=1")).text
        assert await names(client) == ["Ada"]
        refused = await client.get("/shop/customer?_txid=soon")
        assert (refused.status_code, "soon" in refused.text) == (400, True)
        refused = await client.get("/shop/customer?_txid=99")
        assert (refused.status_code, "the newest TXID is 0000000000000002" in refused.text) == (404, True)

    with_datasette({"shop": live_shop.url}, browse)


SEARCHED = """
CREATE VIRTUAL TABLE customer_search USING fts5(name, city, content=customer, content_rowid=id);
INSERT INTO customer_search(customer_search) VALUES ('rebuild');
CREATE TABLE pair(a INT, b INT, tags TEXT, PRIMARY KEY(a, b));
INSERT INTO pair SELECT id % 3, id, '["x","' || id % 2 || '"]' FROM sale ORDER BY id LIMIT 20;
CREATE TABLE "odd name"("a b" TEXT PRIMARY KEY) WITHOUT ROWID;
INSERT INTO "odd name" VALUES ('/'), ('ü y');
"""
PATHS = (
    "/customer.json",
    "/customer.json?_search=ada&_shape=array",
    "/sale.json?_facet=customer_id&_facet_date=placed&_size=2&_labels=on",
    "/sale.json?price__gt=600&_sort_desc=price&_shape=array",
    "/sale.csv?_stream=on",
    "/sale/7.json",
    "/sale/1.blob?_blob_column=picture",
    "/spent.json?_shape=array",
    "/pair.json?_facet_array=tags&_next=1,4",
    "/pair/1,7.json",
    "/odd~20name.json?_shape=array",
    "/odd~20name/~2F.json",
    "/missing.json",
    "/sale/999999.json",
)


def test_a_state_is_looked_for_in_the_replica_of_the_page_alone(live_shop: Shop, shop: Shop):
    """Datasette reads the schemas of all databases for any page, and others have no such TXID."""

    async def browse(client: Any) -> None:
        newest = re.search(r"TXID ([0-9a-f]{16})", (await client.get("/a~20b")).text)
        assert newest is not None
        for _ in range(2):
            page = await client.get(f"/a~20b/customer?_txid={newest[1]}")
            assert page.status_code == 200
            assert f"TXID {newest[1]}, a fixed state" in page.text

    live_shop.primary.commit("UPDATE customer SET city = 'Rome'")
    with_datasette({"other": shop.url, "a b": live_shop.url}, browse)


def test_a_query_joins_replicas_of_the_option_crossdb(shop: Shop, live_shop: Shop, tmp_path: Path):
    file = str(tmp_path / "file.db")
    with closing(sqlite3.connect(file)) as local:
        local.execute("CREATE TABLE t(x)")
    odd = f"{live_shop.url}"

    async def browse(client: Any) -> None:
        customers = "(SELECT count(*) FROM [a b%].customer) + (SELECT count(*) FROM shop.customer)"
        sql = f"SELECT {customers} n, count(*) m FROM file.t"
        for address in ("/_memory.json", "/_memory/-/query.json"):
            answer = await client.get(f"{address}?_shape=array&sql={quote(sql)}", follow_redirects=True)
            if answer.status_code == 200:
                break
        assert answer.json() == [{"n": 6, "m": 0}]
        databases = (await client.get("/-/databases.json")).text
        assert shop.url not in databases
        assert odd not in databases

    with_datasette({"shop": {"url": shop.url, "poll_interval": 0}, "a b%": odd}, browse, [file], crossdb=True)


def test_a_replica_answers_as_the_file_does(live_shop: Shop):
    live_shop.primary.commit(SEARCHED)
    live_shop.copy()
    file = live_shop.local.rename(live_shop.local.with_name("shop.db"))
    answers: list[list[tuple[int, str]]] = []

    async def ask(client: Any) -> None:
        sql = "SELECT name, bm25(customer_search) FROM customer_search('ada')"
        query = "/shop.json" if app.__version__.startswith("0.") else "/shop/-/query.json"
        found = [await client.get(f"/shop{path}") for path in PATHS]
        found.append(await client.get(query, params={"sql": sql}))
        answers.append([(each.status_code, CHANGING.sub("", each.text)) for each in found])

    with_datasette({"shop": live_shop.url}, ask)
    with_datasette({}, ask, [str(file)])
    ours, theirs = answers
    assert [status for status, _ in ours] == [200] * 12 + [404] * 2 + [200]
    for path, one, other in zip((*PATHS, "sql"), ours, theirs, strict=True):
        assert one == other, path


CHANGING = re.compile(r'"query_ms": [0-9.e-]+')


def test_an_error_that_ends_the_start_prints_none_either(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    rich.traceback.install(show_locals=True)  # Datasette's command does so

    async def fail(client: Any) -> None:
        found = "secret" * 7
        raise ValueError(len(found))

    with pytest.raises(ValueError) as caught:
        with_datasette({}, fail)
    sys.excepthook(caught.type, caught.value, caught.tb)
    printed = capsys.readouterr().err
    assert ("ValueError: 42" in printed, "secret" * 7 in printed) == (True, False)


def test_an_error_prints_no_local_variables(shop: Shop, capsys: pytest.CaptureFixture[str]):
    async def browse(client: Any) -> None:
        assert (await client.get("/shop/customer/1/no/such/path")).status_code == 404
        assert (await client.get("/shop/no_such_table")).status_code == 404
        assert (await client.get("/shop/customer?_txid=99")).status_code == 404

    with_datasette({"shop": {"url": shop.url, "poll_interval": "77s"}}, browse)
    printed = capsys.readouterr()
    assert "locals" not in printed.out + printed.err


def test_sql_that_fails_says_why(shop: Shop):
    async def browse(client: Any) -> None:
        is_first_version = app.__version__.startswith("0.")
        path = "/shop.json" if is_first_version else "/shop/-/query.json"
        answer = await client.get(f"{path}?sql=select+*+from+missing")
        assert (answer.status_code, "no such table: missing" in answer.text) == (400, True)

    with_datasette({"shop": shop.url}, browse)


def test_a_write_is_refused_with_what_to_do(shop: Shop):
    async def write(client: Any) -> None:
        database = client.ds.get_database("shop")
        with pytest.raises(litevfs.dbapi.OperationalError, match="read-only: write to the primary database"):
            await database.execute_write("DELETE FROM customer")

    with_datasette({"shop": shop.url}, write)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"poll_interval": "1s"}, "no url for the database 'shop'; hint: write"),
        (
            {"url": "/x", "pol_interval": "1s"},
            "unknown option of the database 'shop': 'pol_interval'; hint: did you mean",
        ),
        ({"url": "s5://bucket/app"}, "did you mean s3://"),
        ({"url": "/nowhere/at/all", "poll_interval": "soon"}, "write for example 1s, 250ms"),
    ],
)
def test_what_can_never_work_ends_the_start(entry: dict[str, str], message: str):
    async def nothing(client: Any) -> None:
        raise AssertionError

    with pytest.raises(litevfs.OptionError, match=message):
        with_datasette({"shop": entry}, nothing)


def test_a_replica_that_cannot_be_read_spoils_no_page_of_others(
    live_shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    missing = tmp_path / "missing"

    async def browse(client: Any) -> None:
        await client.ds.get_database("bad").execute_fn(check_connection)  # Datasette's own check before it serves
        index = await client.get("/")
        assert (index.status_code, "good" in index.text, "bad" in index.text) == (200, True, True)
        assert (await client.get("/good/customer.json?_shape=array")).json()[0]["name"] == "Ada"
        assert (await client.get("/-/databases.json")).status_code == 200
        assert "check the path" in caplog.text
        for path in ("/bad", "/bad/customer", "/bad.json"):
            page = await client.get(path)
            assert (page.status_code, "check the path" in page.text) == (500, True)
        with pytest.raises(litevfs.LitevfsError, match="check the path"):
            await client.ds.get_database("bad").execute("SELECT 1")
        live_shop.folder.rename(missing)
        assert (await client.get("/bad/customer.json?_shape=array")).json()[0]["name"] == "Ada"

    with_datasette({"good": live_shop.url, "bad": {"url": str(missing), "open_timeout": "10ms"}}, browse)
