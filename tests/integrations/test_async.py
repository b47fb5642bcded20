"""`connect_async`: a replica in asyncio, and behind FastAPI."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import Any

import apsw
import pytest

import litevfs
from tests.integrations.conftest import Shop

pytestmark = pytest.mark.skipif(
    not hasattr(apsw.Connection, "as_async"), reason="needs APSW with its async mode (pip install --upgrade apsw)"
)
HOW = "needs the extra `integrations` (pip install 'litevfs[integrations]')"


@asynccontextmanager
async def connected(url: str, **options: Any):
    connection = await litevfs.connect_async(url, **options)
    try:
        yield connection
    finally:
        await connection.aclose()


async def one(connection: Any, sql: str) -> Any:
    ((value,),) = await (await connection.execute(sql)).fetchall()
    return value


def test_rows_pragmas_and_functions_come_by_await(shop: Shop):
    async def main() -> None:
        async with connected(shop.url) as con:
            cursor = await con.execute("SELECT id FROM sale WHERE id > ?", (497,))
            assert [row async for row in cursor] == [(498,), (499,), (500,)]
            assert await one(con, "SELECT litestream_txid()") == "0000000000000001"
            assert await con.pragma("litestream_txid") == "0000000000000001"

    asyncio.run(main())


def test_a_transaction_sees_one_txid_and_waiting_does_not_block_the_loop(live_shop: Shop):
    count = "SELECT count(*) FROM customer"

    async def main() -> None:
        async with connected(live_shop.url) as con, connected(live_shop.url) as other:
            await con.execute("BEGIN")
            assert await one(con, count) == 3
            waiting = asyncio.create_task(other.async_run(litevfs.wait_for, other, 2, 30))
            await asyncio.to_thread(live_shop.primary.commit, "INSERT INTO customer(name) VALUES ('new')")
            assert await waiting == 2
            assert (await one(con, count), await one(other, count)) == (3, 4)
            await con.execute("COMMIT")
            assert await one(con, count) == 4

    asyncio.run(main())


def test_what_goes_wrong_is_what_goes_wrong_elsewhere(shop: Shop, tmp_path):
    async def main() -> None:
        with pytest.raises(litevfs.OptionError, match="did you mean poll_interval"):
            await litevfs.connect_async(shop.url, pol_interval=1)
        with pytest.raises(litevfs.StorageNotFoundError, match="no such replica folder"):
            await litevfs.connect_async(f"{tmp_path}/missing", open_timeout="20ms")
        async with connected(shop.url) as con:
            with pytest.raises(apsw.ReadOnlyError):
                await con.execute("DELETE FROM sale")
            with pytest.raises(litevfs.StaleReplicaError):
                await con.async_run(litevfs.wait_for, con, 99, 0.01)
        with pytest.raises(apsw.ConnectionClosedError):
            await con.execute("SELECT 1")

    asyncio.run(main())


def test_a_query_that_is_given_up_ends_and_the_connection_goes_on(shop: Shop):
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"

    async def main() -> None:
        async with connected(shop.url) as con:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(con.execute(endless), 0.1)
            assert await one(con, "SELECT count(*) FROM sale") == 500

    asyncio.run(main())


def test_opening_that_is_given_up_leaves_no_thread(tmp_path):
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(litevfs.connect_async(f"{tmp_path}/missing", open_timeout="800ms"), 0.05)
        while any("apsw" in thread.name for thread in threading.enumerate()):
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_opening_that_is_given_up_before_it_begins_leaves_no_thread(shop: Shop):
    async def main() -> None:
        for turns in range(4):
            opening = asyncio.create_task(litevfs.connect_async(shop.url))
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
        while any("apsw" in thread.name for thread in threading.enumerate()):
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 30))


def test_without_an_async_mode_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    class Old:
        pass

    monkeypatch.setattr("litevfs.api.apsw.Connection", Old)
    with pytest.raises(litevfs.OptionError, match="has no async mode; hint: pip install --upgrade apsw"):
        asyncio.run(litevfs.connect_async("file:///srv/app"))


def test_fastapi_answers_from_a_replica(shop: Shop):
    fastapi = pytest.importorskip("fastapi", reason=HOW)
    pytest.importorskip("httpx", reason=HOW)
    from fastapi.testclient import TestClient

    @asynccontextmanager
    async def lifespan(app: Any):
        async with connected(shop.url) as app.state.replica:
            yield

    app = fastapi.FastAPI(lifespan=lifespan)

    @app.get("/customers/{number}")
    async def customer(number: int) -> dict[str, Any]:
        cursor = await app.state.replica.execute("SELECT name FROM customer WHERE id = ?", (number,))
        return {"name": (await cursor.fetchall())[0][0]}

    with TestClient(app) as client:
        assert client.get("/customers/2").json() == {"name": "Björn"}
