"""The newest `index.json` that was seen of a replica (`index.py` has its format). Knows no listing of folders.

A cache in front of the server may answer with an older one than was seen before: the newer one is kept.
"""

from __future__ import annotations

import logging
import threading
import time

from litevfs.errors import StorageNotFoundError, StorageTimeoutError
from litevfs.replica_clients.http.answers import date_ms
from litevfs.replica_clients.http.index import Index, parse_index
from litevfs.replica_clients.http.plain import Answer
from litevfs.replica_clients.http.redirects import Redirects

logger = logging.getLogger(__name__)

LIST_HINT = (
    "write an index by `litevfs copy --index` or `litevfs replicate --index`, or let the server list its folders"
)
_SETTLED_MS = 2000


class KeptIndex:
    """That at `url`."""

    def __init__(self, requests: Redirects, url: str, *, read_timeout_s: float) -> None:
        self._requests, self._url, self._read_timeout_s = requests, url, read_timeout_s
        self._lock = threading.Lock()  # guards a fetch
        self._etag = ""
        self._fetched = 0.0  # `time.monotonic()` when the last fetch began
        self.newest: Index | None = None
        """None until it is found."""
        self.oldest_s = 0.0
        """How much older than the newest one a cache's answer was, at most."""

    def find(self, deadline: float | None) -> bool:
        """Whether there is one, which is kept then."""
        fetching = time.monotonic()
        found = self._fetch(deadline)
        if found is not None:
            with self._lock:
                self.newest, self._fetched = found, max(self._fetched, fetching)
        return found is not None

    def since(self, began: float) -> Index:
        """The newest one, after a fetch that began after `began` (`time.monotonic()`); concurrent calls share one."""
        if not self._lock.acquire(timeout=2 * self._read_timeout_s):
            raise StorageTimeoutError("no listing within the time limit", key=self._url)
        try:
            if self.newest is None or self._fetched < began:
                fetching = time.monotonic()
                found = self._fetch()
                if found is None:
                    raise StorageNotFoundError("the index is gone", key=self._url, hint=LIST_HINT)
                if self.newest is not None and found.written_ms < self.newest.written_ms:
                    age_s = (self.newest.written_ms - found.written_ms) / 1000
                    self.oldest_s = max(self.oldest_s, age_s)
                    logger.info("a cache holds %s as it was %.1f s before the newest seen", self._url, age_s)
                    self._etag = ""
                else:
                    self.newest = found
                self._fetched = fetching
            return self.newest
        finally:
            self._lock.release()

    def _fetch(self, deadline: float | None = None) -> Index | None:
        """The server's; None if it has none."""
        headers = {"If-None-Match": self._etag} if self.newest is not None and self._etag else {}
        response, body = self._requests.get_list(self._url, headers, deadline, expected=(304,))
        if response.status == 304 and self.newest is not None:
            return self.newest
        if response.status != 200:
            return None
        index = parse_index(body, self._url)
        self._etag = response.headers.get("ETag", "") if _is_settled(response) else ""
        return index


def _is_settled(response: Answer) -> bool:
    """Whether an ETag will differ at the next change: nginx makes it of the size and the second of the last one."""
    modified_ms = date_ms(response.headers.get("Last-Modified"))
    return modified_ms == 0 or date_ms(response.headers.get("Date")) - modified_ms >= _SETTLED_MS
