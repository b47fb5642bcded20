"""Read your writes over HTTP: the shared part of the ASGI and WSGI middlewares; knows neither protocol.

A bookmark is a TXID, which the primary's application puts into its answer to a write, in a header or a cookie. The
application that reads a replica waits until the replica has that transaction before it answers.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import closing
from http.cookies import CookieError, SimpleCookie
from typing import Any

import apsw

from litevfs.api import connect, subscribe, wait_for
from litevfs.errors import LitevfsError, OptionError, StaleReplicaError
from litevfs.live.subscription import Subscription
from litevfs.ltx.names import format_txid, parse_txid
from litevfs.options import Options
from litevfs.replica_clients.urls import canonical_url

logger = logging.getLogger("litevfs.integrations.bookmarks")

HEADER = "litevfs-txid"
COOKIE = "litevfs_txid"
STALE_HEADER = "litevfs-stale"
DEFAULT_TIMEOUT_S = 5.0
MAX_WAITING = 16
"""Requests that may wait at a time, so that forged bookmarks cannot use up all threads; others have to come back."""
WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
"""Methods whose answers get a bookmark."""


def find_bookmark(header: str | None, cookies: str | None, cookie: str | None) -> int | None:
    """The TXID that a request wants to see. A bad header raises OptionError; a bad cookie is ignored."""
    if header:
        return parse_txid(header.strip())
    if not cookies or cookie is None:
        return None
    try:
        morsel = SimpleCookie(cookies).get(cookie)
        return parse_txid(morsel.value) if morsel else None
    except (CookieError, LitevfsError):
        return None


def cookie_text(cookie: str, txid: int, max_age_s: int) -> str:
    """The value of a Set-Cookie header."""
    return f"{cookie}={format_txid(txid)}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Lax"


def current_bookmark(txid: Callable[[], int | None]) -> int | None:
    """The result of `txid`, or None if the storage fails: the write itself is done, and stays."""
    try:
        return txid()
    except LitevfsError:
        logger.warning("a write gets no bookmark", exc_info=True)
        return None


class ReplicaReader:
    """Knows which TXID the connections of this process see, and waits for a later one."""

    def __init__(self, replica_url: str, timeout_s: float, options: dict[str, Any]) -> None:
        self._url = replica_url
        self._timeout_s = timeout_s
        self._options = options
        self._lock = threading.Lock()
        self._subscription: Subscription | None = None
        self._process = 0  # the process that opened the replica: a forked child opens its own
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)

    @property
    def txid(self) -> int:
        """The TXID that a transaction that begins now sees. Raises what `litevfs.connect` raises."""
        with self._lock:
            if self._subscription is None or self._process != os.getpid():
                self._subscription = subscribe(self._url, lambda _: None, **self._options)
                self._process = os.getpid()
            return self._subscription.txid

    def wait_for(self, wanted: int | None) -> tuple[int, bool]:
        """Wait until a transaction sees the bookmark `wanted`. Blocks, but for one that is there already.

        Returns (TXID that a transaction sees at least, whether the bookmark was not reached: in time, or as too many
        wait). Raises what `litevfs.connect` raises.
        """
        is_stale = wanted is not None and self.txid < wanted and not self._wait(wanted)
        return max(self.txid, 0 if is_stale else wanted or 0), is_stale

    def _wait(self, txid: int) -> bool:
        if not self._waiting.acquire(blocking=False):
            return False
        try:
            with closing(connect(self._url, **self._options)) as connection:
                wait_for(connection, txid, self._timeout_s)
        except StaleReplicaError:
            return False
        except (LitevfsError, apsw.Error):
            logger.warning("waiting for TXID %s failed", format_txid(txid), exc_info=True)
            return False
        finally:
            self._waiting.release()
        return True

    def why_not(self, txid: int) -> str:
        """The message for a request whose bookmark was not reached."""
        return (
            f"the replica has not received transaction {format_txid(txid)} within {self._timeout_s:g} s; "
            "try again, or ask without the bookmark for the newest state there is\n"
        )

    def close(self) -> None:
        """Release the replica. Idempotent; a later request opens it again."""
        with self._lock:
            subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()


def checked_reader(replica_url: str, timeout: float, options: dict[str, Any]) -> ReplicaReader:
    """A reader that waits `timeout` seconds at most; nothing is read yet.

    Raises OptionError for bad options and for those with which connections would see a fixed state, ReplicaURLError.
    """
    if {"txid", "timestamp"} & options.keys():
        raise OptionError("a fixed state never has a later transaction", hint="leave out txid and timestamp")
    canonical_url(Options.of(replica_url, options).replica_url)
    return ReplicaReader(replica_url, timeout, options)
