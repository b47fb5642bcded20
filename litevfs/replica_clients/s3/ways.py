"""How an S3 server differs, as its answers show to each client once; the status reports it. Does no I/O."""

from __future__ import annotations

import enum
import logging
import threading

logger = logging.getLogger("litevfs.replica_clients.s3")


class Way(enum.StrEnum):
    """One way in which a server differs from Amazon's, and what the client does about it."""

    NO_CONDITIONS = "no conditional writes: a listing is looked at before each exclusive write"
    NO_BATCH_DELETE = "no DeleteObjects: one DELETE for each file"
    LISTS_BY_MARKER = "no ListObjectsV2: listed by marker"
    MOVED = "redirects to another address: requests go there"
    CLOCK = "this machine's clock is off: requests are signed with the server's time"
    OTHER_LAYOUT = "the files lie in another layout than is usual in this storage"


class ServerWays:
    """The ways that one client knows of its server. Safe to use from many threads."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._lock = threading.Lock()
        self._known: set[Way] = set()

    def __contains__(self, way: Way) -> bool:
        return way in self._known

    def note(self, way: Way) -> None:
        """Remember `way`; logs it the first time."""
        with self._lock:
            is_new = way not in self._known
            self._known = {*self._known, way}
        if is_new:
            logger.info("%s: %s", self._where, way)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of all known ways, in the order of `Way`."""
        known = self._known
        return tuple(str(way) for way in Way if way in known)
