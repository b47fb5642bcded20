"""Access tokens of a cloud, which expire: fetched once for all callers, renewed before their end.

Knows no cloud: `fetch` is its library's call, which may hang; no caller waits for it longer than its deadline, and
closing ends every wait.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from litevfs.concurrency.condition import Condition
from litevfs.concurrency.workers import start_thread
from litevfs.errors import LitevfsError, StorageClosedError, StorageError, StorageTimeoutError, TransientStorageError

_RENEW_S = 5 * 60
"""A token is replaced so long before its end, while it is still valid."""
_LIMIT_S = 30.0
"""Longest wait of a call that has no deadline."""


@dataclass(frozen=True, slots=True)
class Token:
    """The token of a request, and until when it is valid: `time.time()`, seconds."""

    text: str
    expires_s: float


class Tokens:
    """The newest token of `fetch`, which raises a StorageError when it has none to give."""

    def __init__(self, fetch: Callable[[], Token]) -> None:
        self._fetch = fetch
        self._token: Token | None = None
        self._error: LitevfsError | None = None  # of the last fetch, if it failed
        self._fetches = 0  # fetches that have ended
        self._is_closed = False
        self._begin()

    def _begin(self) -> None:
        """Begin without a fetch: at first, and in the child of a fork, which has no thread of its parent."""
        self._pid = os.getpid()
        self._change = Condition()
        self._is_fetching = False

    def get(self, deadline: float | None = None) -> str:
        """A token that is valid now. Raises what the fetch raised, StorageTimeoutError, StorageClosedError."""
        if self._pid != os.getpid():
            self._begin()
        with self._change:
            token = self._token
            if token is not None and time.time() < token.expires_s:
                if token.expires_s - time.time() < _RENEW_S:
                    self._start()
                return token.text
            return self._wait_for_next(deadline).text

    def renew(self, refused: str, deadline: float | None = None) -> bool:
        """Fetch once more, as the server refused this token; returns whether there is another now.

        Of several calls that are refused at once, each takes what the first of them has fetched.
        """
        with self._change:
            if self._token is not None and self._token.text != refused:
                return True
            try:
                return self._wait_for_next(deadline).text != refused
            except LitevfsError:
                return False

    def close(self) -> None:
        """End all waits with StorageClosedError; a fetch under way goes on to its own end. Idempotent."""
        with self._change:
            self._is_closed = True
            self._change.notify_all()

    def _wait_for_next(self, deadline: float | None) -> Token:
        until = time.monotonic() + _LIMIT_S if deadline is None else deadline
        wanted = self._fetches + 1
        self._start()
        if not self._change.wait_for(lambda: self._is_closed or self._fetches >= wanted, until - time.monotonic()):
            raise StorageTimeoutError("no credentials within the time limit: what gives them out does not answer")
        if self._is_closed:
            raise StorageClosedError("the replica client is closed")
        if self._error is not None:
            raise self._error
        assert self._token is not None
        return self._token

    def _start(self) -> None:
        if not self._is_fetching and not self._is_closed:
            start_thread(self._run, "litevfs-credentials")
            self._is_fetching = True

    def _run(self) -> None:
        token, error = None, None
        try:
            token = self._fetch()
        except StorageError as exc:
            error = exc
        except Exception as exc:  # noqa: BLE001 - the library may raise anything, and the waiting callers get it
            error = TransientStorageError(f"credentials cannot be had: {type(exc).__name__}")
            error.__cause__ = exc
        with self._change:
            self._is_fetching = False
            self._fetches += 1
            self._error = error
            if token is not None:
                self._token = token
            self._change.notify_all()
