"""ASGI middlewares for reading your writes over HTTP, for FastAPI, Starlette, Quart, Django and others.

The primary's application: `app.add_middleware(WriteBookmarks, txid=replicator.sync)`. The application that reads a
replica: `app.add_middleware(ReadYourWrites, replica_url="s3://bucket/app")`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from litevfs.errors import LitevfsError
from litevfs.integrations import bookmarks
from litevfs.ltx.names import format_txid

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class WriteBookmarks:
    """Gives the answer to each write the TXID that holds it: header `litevfs-txid`, and a cookie.

    The middleware calls `txid()` in a thread when the application answers a POST, PUT, PATCH or DELETE, before it sends
    the answer; `Replicator.sync` uploads the commits and returns their TXID. If that fails, the answer has no bookmark.
    """

    def __init__(
        self,
        app: App,
        txid: Callable[[], int | None],
        *,
        header: str = bookmarks.HEADER,
        cookie: str | None = bookmarks.COOKIE,
        cookie_max_age_s: int = 60,
    ) -> None:
        self._app = app
        self._txid = txid
        self._header = header.lower().encode("latin-1")
        self._cookie = cookie
        self._cookie_max_age_s = cookie_max_age_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] not in bookmarks.WRITES:
            await self._app(scope, receive, send)
            return

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 500:
                txid = await asyncio.to_thread(bookmarks.current_bookmark, self._txid)
                if txid:
                    message = {**message, "headers": [*message.get("headers", []), *self._headers(txid)]}
            await send(message)

        await self._app(scope, receive, send_marked)

    def _headers(self, txid: int) -> list[tuple[bytes, bytes]]:
        headers = [(self._header, format_txid(txid).encode())]
        if self._cookie is not None:
            text = bookmarks.cookie_text(self._cookie, txid, self._cookie_max_age_s)
            headers.append((b"set-cookie", text.encode("latin-1")))
        return headers


class ReadYourWrites:
    """Lets a request whose bookmark the replica does not have yet wait, `timeout` seconds at most.

    If the wait fails, the answer is a 503 that says so; with `serve_stale=True` the request goes on, and its answer
    has the header `litevfs-stale`. Each answer names in `litevfs-txid` a transaction that it has seen at least.
    `options` have to be those of the application's own connections: only then do they share the replica.
    """

    def __init__(
        self,
        app: App,
        replica_url: str,
        *,
        timeout: float = bookmarks.DEFAULT_TIMEOUT_S,
        header: str = bookmarks.HEADER,
        cookie: str | None = bookmarks.COOKIE,
        serve_stale: bool = False,
        **options: object,
    ) -> None:
        self._app = app
        self._reader = bookmarks.checked_reader(replica_url, timeout, options)
        self._header = header.lower()
        self._cookie = cookie
        self._serve_stale = serve_stale
        self._threads: ThreadPoolExecutor | None = None  # until a request needs it, and after each end of a lifespan

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._closing_at_the_end(send))
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        values = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            wanted = bookmarks.find_bookmark(
                values.get(self._header.encode("latin-1")), values.get(b"cookie"), self._cookie
            )
        except LitevfsError as error:
            await send_text(send, 400, str(error))
            return
        try:
            txid, is_stale = await self._in_thread(self._reader.wait_for, wanted)
        except LitevfsError:
            bookmarks.logger.warning("the replica cannot be read", exc_info=True)
            await send_text(send, 503, "the replica cannot be read; try again\n")
            return
        if is_stale and not self._serve_stale:
            await send_text(send, 503, self._reader.why_not(wanted or 0))
            return
        await self._app(scope, receive, self._marking(send, txid, is_stale=is_stale))

    async def _in_thread(self, call: Callable[..., Any], *arguments: object) -> Any:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(bookmarks.MAX_WAITING, thread_name_prefix="litevfs-bookmarks")
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)

    def _marking(self, send: Send, txid: int, *, is_stale: bool) -> Send:
        more = [(self._header.encode("latin-1"), format_txid(txid).encode())]
        if is_stale:
            more.append((bookmarks.STALE_HEADER.encode(), b"1"))

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        return send_marked

    def _closing_at_the_end(self, send: Send) -> Send:
        async def send_and_close(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await asyncio.to_thread(self.close)
            await send(message)

        return send_and_close

    def close(self) -> None:
        """Release the replica; the end of the application's lifespan calls this. A later request opens it again."""
        self._reader.close()
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)


async def send_text(send: Send, status: int, text: str) -> None:
    """Answer a request with a line of text; a 503 asks the client to come back in a second."""
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
