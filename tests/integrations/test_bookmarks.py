"""Read your writes over HTTP, by both middlewares, with the frameworks that people put them under."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest

import litevfs
from litevfs.integrations import asgi, bookmarks, wsgi
from tests.integrations.conftest import Shop

HOW = "needs the extra `integrations` (pip install 'litevfs[integrations]')"


@dataclass(slots=True)
class Answer:
    """What a middleware said."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: str = ""

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)


def count(url: str, options: dict[str, Any]) -> str:
    with closing(litevfs.connect(url, **options)) as connection:
        return str(connection.execute("SELECT count(*) FROM customer").get)


class Wsgi:
    """One way to ask: WSGI."""

    ReadYourWrites, WriteBookmarks = wsgi.ReadYourWrites, wsgi.WriteBookmarks

    @staticmethod
    def app(work: Callable[[], str], status: str = "200 OK") -> Any:
        def answer(environ: Any, start_response: Any) -> list[bytes]:
            body = work().encode()
            start_response(status, [("X-App", "yes")])
            return [body]

        return answer

    @staticmethod
    def ask(app: Any, method: str = "GET", **headers: str) -> Answer:
        answer = Answer()

        def start(status: str, sent: list[tuple[str, str]], *_: Any) -> None:
            answer.status, answer.headers = int(status.split()[0]), sent

        environ = {"REQUEST_METHOD": method} | {f"HTTP_{k.upper()}": v for k, v in headers.items()}
        answer.body = b"".join(app(environ, start)).decode()
        return answer


class Asgi:
    """The other one: ASGI."""

    ReadYourWrites, WriteBookmarks = asgi.ReadYourWrites, asgi.WriteBookmarks

    @staticmethod
    def app(work: Callable[[], str], status: str = "200 OK") -> Any:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            body = (await asyncio.to_thread(work)).encode()
            headers = [(b"x-app", b"yes")]
            await send({"type": "http.response.start", "status": int(status.split()[0]), "headers": headers})
            await send({"type": "http.response.body", "body": body})

        return answer

    @staticmethod
    def ask(app: Any, method: str = "GET", **headers: str) -> Answer:
        answer = Answer()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = [(k.decode(), v.decode()) for k, v in message["headers"]]
            else:
                answer.body += message["body"].decode()

        async def receive() -> Any:
            raise AssertionError

        sent = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        asyncio.run(app({"type": "http", "method": method, "headers": sent}, receive, send))
        return answer


@pytest.fixture(params=[Wsgi, Asgi], ids=["wsgi", "asgi"])
def way(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def reading(way: Any, live_shop: Shop) -> Iterator[Callable[..., Any]]:
    """Make a middleware before an application that counts customers; without polling only a wait finds what is new."""
    made: list[Any] = []

    def make(**options: Any) -> Any:
        ours = {k: options.pop(k) for k in ("timeout", "serve_stale", "cookie", "header") if k in options}
        options = {"poll_interval": "1h"} | options
        made.append(
            way.ReadYourWrites(way.app(lambda: count(live_shop.url, options)), live_shop.url, **ours, **options)
        )
        return made[-1]

    yield make
    for middleware in made:
        middleware.close()


def add(shop: Shop) -> str:
    return f"{shop.primary.commit('INSERT INTO customer(name) VALUES (hex(randomblob(8)))'):016x}"


def test_a_request_with_a_bookmark_sees_that_write(way, reading, live_shop: Shop):
    app = reading()
    answer = way.ask(app)
    assert (answer.status, answer.body, answer.header("litevfs-txid")) == (200, "3", "0000000000000001")
    txid = add(live_shop)
    assert way.ask(app).body == "3"
    answer = way.ask(app, litevfs_txid=txid)
    assert (answer.status, answer.body, answer.header("x-app")) == (200, "4", "yes")
    assert answer.header("litevfs-txid") == txid
    txid = add(live_shop)
    assert way.ask(app, cookie=f"other=1; litevfs_txid={txid}").body == "5"


def test_a_bookmark_that_does_not_arrive_is_told_so(way, reading):
    app = reading(timeout=0.05)
    answer = way.ask(app, litevfs_txid="99")
    assert (answer.status, answer.header("retry-after"), answer.header("x-app")) == (503, "1", None)
    assert answer.body.startswith(
        "the replica has not received transaction 0000000000000099 within 0.05 s; try again, or ask without"
    )
    assert way.ask(app).status == 200


def test_who_rather_has_an_old_answer_gets_one_that_says_so(way, reading):
    answer = way.ask(reading(timeout=0.05, serve_stale=True), litevfs_txid="99")
    assert (answer.status, answer.body, answer.header("litevfs-stale")) == (200, "3", "1")
    assert answer.header("litevfs-txid") == "0000000000000001"


def test_names_of_header_and_cookie_are_ones_own(way, reading, live_shop: Shop):
    app = reading(header="X-Seen", cookie=None)
    way.ask(app)
    txid = add(live_shop)
    assert way.ask(app, cookie=f"litevfs_txid={txid}").body == "3"
    answer = way.ask(app, x_seen=txid)
    assert (answer.body, answer.header("x-seen")) == ("4", txid)


def test_a_broken_header_is_refused_and_a_broken_cookie_passed_over(way, reading):
    app = reading()
    answer = way.ask(app, litevfs_txid="yesterday")
    assert (answer.status, "yesterday" in answer.body) == (400, True)
    assert way.ask(app, cookie="litevfs_txid=yesterday").status == 200
    assert way.ask(app, cookie='a="\x01').status == 200


def test_too_many_that_wait_are_told_to_come_back(way, reading, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bookmarks, "MAX_WAITING", 1)
    app = reading(timeout=30)
    way.ask(app)
    app._reader._waiting.acquire()
    assert way.ask(app, litevfs_txid="99").status == 503
    app._reader._waiting.release()


def test_a_missing_replica_is_a_503_without_its_place(way, tmp_path):
    app = way.ReadYourWrites(way.app(str), f"{tmp_path}/missing", open_timeout="20ms")
    answer = way.ask(app)
    assert (answer.status, answer.body) == (503, "the replica cannot be read; try again\n")
    app.close()


def test_options_that_fix_a_state_are_refused(way, live_shop: Shop):
    with pytest.raises(litevfs.OptionError, match="leave out txid and timestamp"):
        way.ReadYourWrites(way.app(str), live_shop.url, txid="1")


def test_the_answer_to_a_write_has_a_bookmark(way):
    app = way.WriteBookmarks(way.app(lambda: "done"), lambda: 18)
    answer = way.ask(app, "POST")
    assert (answer.body, answer.header("x-app"), answer.header("litevfs-txid")) == ("done", "yes", f"{18:016x}")
    assert answer.header("set-cookie") == f"litevfs_txid={18:016x}; Path=/; Max-Age=60; HttpOnly; SameSite=Lax"
    assert way.ask(app, "GET").header("litevfs-txid") is None
    assert way.ask(way.WriteBookmarks(way.app(str, "500 Oh"), lambda: 18), "POST").header("litevfs-txid") is None


def test_names_of_header_and_cookie_of_a_write_are_ones_own(way):
    app = way.app(lambda: "done")
    own = way.WriteBookmarks(app, lambda: 18, header="X-Seen", cookie="seen", cookie_max_age_s=5)
    answer = way.ask(own, "POST")
    assert answer.header("x-seen") == "0000000000000012"
    assert answer.header("set-cookie").startswith("seen=0000000000000012; Path=/; Max-Age=5;")
    assert way.ask(way.WriteBookmarks(app, lambda: 18, cookie=None), "POST").header("set-cookie") is None


def test_a_write_that_cannot_be_sent_yet_is_answered_without_a_bookmark(way):
    def sync() -> int:
        raise litevfs.StorageTimeoutError("no answer")

    answer = way.ask(way.WriteBookmarks(way.app(lambda: "done"), sync), "POST")
    assert (answer.status, answer.body, answer.header("litevfs-txid")) == (200, "done", None)


# --- frameworks -------------------------------------------------------------------------------------------------------


def test_fastapi_writes_on_the_primary_and_reads_on_the_replica(live_shop: Shop):
    fastapi = pytest.importorskip("fastapi", reason=HOW)
    pytest.importorskip("httpx2", reason=HOW)
    from fastapi.testclient import TestClient

    primary, reader = fastapi.FastAPI(), fastapi.FastAPI()
    primary.add_middleware(asgi.WriteBookmarks, txid=lambda: live_shop.primary.txid)
    reader.add_middleware(asgi.ReadYourWrites, replica_url=live_shop.url, poll_interval="1h")

    @primary.post("/customers")
    async def make() -> None:
        add(live_shop)

    @reader.get("/customers")
    def customers() -> str:
        return count(live_shop.url, {"poll_interval": "1h"})

    with TestClient(primary) as writing, TestClient(reader) as reading:
        for number in ("4", "5"):
            made = writing.post("/customers")
            assert reading.get("/customers", headers={"litevfs-txid": made.headers["litevfs-txid"]}).json() == number


def test_starlette_writes_on_the_primary_and_reads_on_the_replica(live_shop: Shop):
    pytest.importorskip("starlette", reason=HOW)
    pytest.importorskip("httpx2", reason=HOW)
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    async def make(_: Request) -> PlainTextResponse:
        return PlainTextResponse(add(live_shop))

    def customers(_: Request) -> PlainTextResponse:
        return PlainTextResponse(count(live_shop.url, {"poll_interval": "1h"}))

    primary = Starlette(
        routes=[Route("/customers", make, methods=["POST"])],
        middleware=[Middleware(asgi.WriteBookmarks, txid=lambda: live_shop.primary.txid)],
    )
    reader = Starlette(
        routes=[Route("/customers", customers)],
        middleware=[Middleware(asgi.ReadYourWrites, replica_url=live_shop.url, poll_interval="1h")],
    )
    with TestClient(primary) as writing, TestClient(reader) as reading:
        made = writing.post("/customers")
        assert reading.get("/customers", headers={"litevfs-txid": made.headers["litevfs-txid"]}).text == "4"
    with TestClient(reader) as reading:  # the next lifespan of one application, as in a test suite
        assert reading.get("/customers").text == "4"


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("/srv/replica", {"pol_interval": "1s"}, "did you mean poll_interval"),
        ("/srv/replica", {"poll_interval": "soon"}, "write for example 1s, 250ms"),
        ("s5://bucket/app", {}, "did you mean s3://"),
    ],
)
def test_what_can_never_work_is_refused_at_the_start(way, url, options, message):
    with pytest.raises(litevfs.LitevfsError, match=message):
        way.ReadYourWrites(way.app(str), url, **options)


def test_flask_writes_on_the_primary_and_reads_on_the_replica(live_shop: Shop):
    flask = pytest.importorskip("flask", reason=HOW)
    primary, reader = flask.Flask("primary"), flask.Flask("reader")
    primary.wsgi_app = wsgi.WriteBookmarks(primary.wsgi_app, txid=lambda: live_shop.primary.txid)
    middleware = wsgi.ReadYourWrites(reader.wsgi_app, live_shop.url, poll_interval="1h")
    reader.wsgi_app = middleware

    @primary.post("/customers")
    def make() -> str:
        return add(live_shop)

    @reader.get("/customers")
    def customers() -> str:
        return count(live_shop.url, {"poll_interval": "1h"})

    made = primary.test_client().post("/customers")
    client = reader.test_client()
    assert client.get("/customers", headers={"litevfs-txid": made.headers["litevfs-txid"]}).text == "4"
    middleware.close()
