"""Keeps what a process knows of a replica in a file of `cache_dir`, so that the next one opens it in one round trip.

Owns the file and when it is written. A file that is missing, damaged or of no use costs the listing of all levels.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
import zlib
from pathlib import Path

from litevfs import local_files
from litevfs.concurrency.workers import start_thread
from litevfs.errors import LitevfsError, StorageClosedError, TransientStorageError
from litevfs.states.follower import Follower
from litevfs.states.record import Known, pack, unpack
from litevfs.states.snapshot import Snapshot

logger = logging.getLogger("litevfs.live.keeper")

PAUSE_S = 60.0
"""Between two writes: a later process reads what has come since from storage."""


class Keeper:
    """The file of one replica. The thread that refreshes calls `note`."""

    close_timeout_s = 0.5

    def __init__(self, folder: str, url: str, *, verify: bool) -> None:
        name = hashlib.sha256(b"litevfs\0" + url.encode(errors="surrogatepass")).hexdigest()
        self._path = Path(folder).absolute() / f"{name}.state"
        self._url = url
        self._verify = verify
        self._noted: Known | None = None
        self._kept: Known | None = None
        self._last = -PAUSE_S  # monotonic
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def load(self) -> Known | None:
        """What an earlier process knew, or None."""
        try:
            known = unpack(self._path.read_bytes(), self._url)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, zlib.error) as error:
            logger.info("%s is of no use: %s", self._path, error)
            return None
        if known is None or (self._verify and not known.is_verified):
            return None
        self._kept = known
        return known

    def note(self, known: Known) -> None:
        """A refresh has ended with this; it is written soon, but not often."""
        self._noted = known
        if self._is_news(known) and time.monotonic() - self._last >= PAUSE_S:
            self._last = time.monotonic()
            try:
                self._thread = start_thread(self._write, "litevfs-keep")
            except TransientStorageError as error:
                logger.info("not keeping what is known now: %s", error)

    def close(self) -> None:
        """Write what was noted last. Idempotent."""
        if self._noted is not None and self._is_news(self._noted):
            self._write()
        if self._thread is not None:
            self._thread.join(self.close_timeout_s)

    def _is_news(self, known: Known) -> bool:
        kept = self._kept
        return kept is None or (kept.snapshot.txid, kept.anchor) != (known.snapshot.txid, known.anchor)

    def _write(self) -> None:
        with self._lock:
            known = self._noted
            if known is None or not self._is_news(known):
                return
            try:
                temporary = self._path.with_suffix(f".{secrets.token_hex(8)}.tmp")
                local_files.write_whole(self._path, pack(known, self._url), temporary, 0o600, is_synced=False)
                self._kept = known
            except OSError as error:
                logger.info("cannot keep what is known in %s: %s", self._path, error)


def first_state(follower: Follower, known: Known | None) -> Snapshot:
    """The newest state; from what is known, where the replica bears that out. Raises what `open_newest` raises."""
    if known is not None:
        try:
            return follower.resume(known)
        except StorageClosedError:
            raise
        except LitevfsError as error:
            logger.info("what an earlier process knew is of no use: %s", error)
    return follower.open_newest()
