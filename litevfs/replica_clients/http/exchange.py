"""Requests of one HTTP storage, with their signer and expected answers. Knows no LTX file.

The storages that speak HTTP share this: Google, Azure, WebDAV and plain web servers. `obstore`, one library for three
of them, was tried instead and lacks what this package promises: a call under way cannot be ended (it has
no `close`, and waits for its own time limit), and after a fork the child's first call never returns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from litevfs.errors import OptionError
from litevfs.replica_clients.http.answers import error_of
from litevfs.replica_clients.http.connections import MAX_WAIT_S
from litevfs.replica_clients.http.plain import Answer
from litevfs.replica_clients.http.transport import Transport

LIST_LIMIT_BYTES = 64 << 20
"""Bytes of the largest listing that is read."""
_ERROR_LIMIT_BYTES = 1 << 16

Authorize = Callable[[str, str, dict[str, str], float | None], dict[str, str]]
"""(method, URL, headers, deadline) to the headers to send, signed."""
Renew = Callable[[str, float | None], bool]
"""Looks for another token than the given one, which the server refused, by a deadline; returns whether there is one."""
HintOf = Callable[[str, int], str | None]
"""(kind of request, status) to what mends that; None where nothing is known."""


CONNECT_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 80


class Exchange:
    """Sends requests over a `Transport` of its own. A `deadline` is `time.monotonic()`, seconds."""

    def __init__(
        self,
        *,
        read_timeout_s: float,
        authorize: Authorize = lambda method, url, headers, deadline: headers,
        renew: Renew = lambda refused, deadline: False,
        is_refused: Callable[[Answer], bool] = lambda answer: answer.status == 401,
        address: Callable[[str], str] = lambda url: url,
        permission_hint: str | None = None,
        hint_of: HintOf = lambda kind, status: None,
    ) -> None:
        """`renew` is asked after an answer for which `is_refused`; `address` puts secrets into the URL that is sent."""
        if read_timeout_s <= 0:
            message = f"read_timeout {read_timeout_s:g} s leaves the storage no time to answer"
            raise OptionError(message, hint="for example 30s")
        read_timeout_s = min(read_timeout_s, MAX_WAIT_S)
        self.transport = Transport(
            connect_timeout_s=min(CONNECT_TIMEOUT_S, read_timeout_s),
            read_timeout_s=read_timeout_s,
            max_connections=MAX_CONNECTIONS,
        )
        self.read_timeout_s = read_timeout_s
        self._authorize = authorize
        self._renew, self._is_refused = renew, is_refused
        self._address = address
        self._permission_hint = permission_hint
        self._hint_of = hint_of

    def send(
        self,
        kind: str,
        method: str,
        url: str,
        headers: dict[str, str],
        *,
        expected: Collection[int] = (200,),
        body: object = None,
        deadline: float | None = None,
        key: str | None = None,
    ) -> Answer:
        """The answer, with a status that is `expected`; its body is for `read` or `Transport.read_body`.

        Where credentials are refused it sends the request once more if there are others. Raises the error for an
        unexpected answer, about `key`.
        """
        headers = {"Accept-Encoding": "identity", "User-Agent": "litevfs", **headers}
        for is_first in (True, False):
            signed = self._authorize(method, url, headers, deadline)
            response = self.transport.request(kind, method, self._address(url), signed, body, deadline=deadline)
            if response.status in expected:
                return response
            error = error_of(
                response,
                self.read(response, url),
                url,
                key=key,
                permission_hint=self._permission_hint,
                hint=self._hint_of(kind, response.status),
            )
            can_resend = body is None or isinstance(body, bytes)
            refused = signed.get("Authorization", "").removeprefix("Bearer ")
            may_renew = is_first and self._is_refused(response)
            if not (may_renew and self._renew(refused, deadline) and can_resend):
                raise error
        raise AssertionError("the second answer is returned or raised")

    def read(self, response: Answer, url: str, limit: int = _ERROR_LIMIT_BYTES) -> bytes:
        """The answer's body, up to `limit` bytes; its connection is free again if the body ends there."""
        return self.transport.read_body(response, url, limit)

    def call(
        self,
        kind: str,
        method: str,
        url: str,
        headers: dict[str, str],
        *,
        expected: Collection[int] = (200,),
        body: object = None,
        key: str | None = None,
    ) -> tuple[Answer, bytes]:
        """The answer and its whole body, of at most `LIST_LIMIT_BYTES`."""
        response = self.send(kind, method, url, headers, expected=expected, body=body, key=key)
        return response, self.read(response, url, LIST_LIMIT_BYTES)
