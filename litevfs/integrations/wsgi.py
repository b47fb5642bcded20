"""WSGI middlewares for reading your writes over HTTP, for Flask, Django and others; see `litevfs.integrations.asgi`.

The primary's application: `app.wsgi_app = WriteBookmarks(app.wsgi_app, txid=replicator.sync)`. The application that
reads a replica: `app.wsgi_app = ReadYourWrites(app.wsgi_app, "s3://bucket/app")`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from litevfs.errors import LitevfsError
from litevfs.integrations import bookmarks
from litevfs.ltx.names import format_txid

Environment = dict[str, Any]
Headers = list[tuple[str, str]]
StartResponse = Callable[..., Any]
App = Callable[[Environment, StartResponse], Iterable[bytes]]


class WriteBookmarks:
    """Gives the answer to each write the TXID that holds it, in a header and a cookie; see `asgi.WriteBookmarks`."""

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
        self._header = header
        self._cookie = cookie
        self._cookie_max_age_s = cookie_max_age_s

    def __call__(self, environ: Environment, start_response: StartResponse) -> Iterable[bytes]:
        """See PEP 3333."""
        if environ["REQUEST_METHOD"] not in bookmarks.WRITES:
            return self._app(environ, start_response)

        def start_marked(status: str, headers: Headers, *rest: Any) -> Any:
            txid = None if status.startswith("5") else bookmarks.current_bookmark(self._txid)
            if txid:
                headers = [*headers, (self._header, format_txid(txid))]
                if self._cookie is not None:
                    text = bookmarks.cookie_text(self._cookie, txid, self._cookie_max_age_s)
                    headers.append(("Set-Cookie", text))
            return start_response(status, headers, *rest)

        return self._app(environ, start_marked)


class ReadYourWrites:
    """Lets a request whose bookmark the replica lacks wait, `timeout` seconds at most; see `asgi.ReadYourWrites`."""

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
        self._header = header
        self._variable = f"HTTP_{header.upper().replace('-', '_')}"
        self._cookie = cookie
        self._serve_stale = serve_stale

    def __call__(self, environ: Environment, start_response: StartResponse) -> Iterable[bytes]:
        """See PEP 3333."""
        try:
            wanted = bookmarks.find_bookmark(environ.get(self._variable), environ.get("HTTP_COOKIE"), self._cookie)
        except LitevfsError as error:
            return _say(start_response, "400 Bad Request", str(error))
        try:
            txid, is_stale = self._reader.wait_for(wanted)
        except LitevfsError:
            bookmarks.logger.warning("the replica cannot be read", exc_info=True)
            return _say(start_response, "503 Service Unavailable", "the replica cannot be read; try again\n")
        if is_stale and not self._serve_stale:
            return _say(start_response, "503 Service Unavailable", self._reader.why_not(wanted or 0))

        def start_marked(status: str, headers: Headers, *rest: Any) -> Any:
            more = [(self._header, format_txid(txid))] + [(bookmarks.STALE_HEADER, "1")] * is_stale
            return start_response(status, [*headers, *more], *rest)

        return self._app(environ, start_marked)

    def close(self) -> None:
        """Release the replica. Idempotent."""
        self._reader.close()


def _say(start_response: StartResponse, status: str, text: str) -> Iterable[bytes]:
    headers = [("Content-Type", "text/plain; charset=utf-8")] + [("Retry-After", "1")] * status.startswith("503")
    start_response(status, headers)
    return [text.encode()]
