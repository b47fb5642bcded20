"""Requests for what a web server holds, up to the answer after its redirects. Knows no file of a replica.

Owns the credentials, which go to the server itself alone. Nothing is followed from https to http.
"""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

from litevfs.errors import StorageError
from litevfs.replica_clients.http.answers import error_of
from litevfs.replica_clients.http.basic import BasicAuth
from litevfs.replica_clients.http.exchange import LIST_LIMIT_BYTES, Exchange
from litevfs.replica_clients.http.plain import Answer

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_NONE_THERE = (403, 404, 410)


class Redirects:
    """Sends to `origin`, with the header of `auth`, and to the servers that it names."""

    def __init__(self, exchange: Exchange, origin: str, auth: BasicAuth) -> None:
        self._exchange, self._origin, self._auth = exchange, origin, auth

    def get(
        self, kind: str, url: str, headers: dict[str, str], expected: tuple[int, ...], deadline: float | None = None
    ) -> tuple[Answer, str]:
        """The answer, with a status that is `expected`, and the URL that gave it."""
        method, asked = ("HEAD" if kind == "HEAD" else "GET"), url
        for _ in range(_MAX_REDIRECTS):
            own = self._auth.headers if url.startswith(f"{self._origin}/") else {}
            response = self._exchange.send(
                kind, method, url, {**own, **headers}, expected=(*expected, *_REDIRECTS), deadline=deadline, key=asked
            )
            if response.status not in _REDIRECTS:
                return response, url
            body = self._exchange.read(response, url)
            target = urljoin(url, response.headers.get("Location", ""))
            parts = urlsplit(target)
            if parts.scheme not in ("http", "https") or (url.startswith("https:") and parts.scheme == "http"):
                raise error_of(response, body, url, key=asked)
            url = target
        raise StorageError(f"more than {_MAX_REDIRECTS} redirects", key=asked, hint="does the path exist?")

    def get_list(
        self, url: str, headers: dict[str, str], deadline: float | None = None, *, expected: tuple[int, ...] = ()
    ) -> tuple[Answer, bytes]:
        """The answer, from no cache, and its body: a listing (200), that there is none (_NONE_THERE), or `expected`."""
        headers = {"Cache-Control": "no-cache", **headers}
        response, url = self.get("LIST", url, headers, (200, *_NONE_THERE, *expected), deadline)
        return response, self._exchange.read(response, url, LIST_LIMIT_BYTES)
