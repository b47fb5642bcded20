"""The polls of one replica: their pace, their end and their log; not what a refresh does, nor the threads.

The threads are those of `concurrency.scheduler`, which all replicas of a process share.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from litevfs.concurrency.retry import Backoff
from litevfs.concurrency.scheduler import Scheduler, scheduler
from litevfs.errors import LitevfsError, StorageClosedError, StorageError

logger = logging.getLogger("litevfs.live.poller")


LONGEST_PAUSE_S = 10.0
"""Longest pause between refreshes while the storage answers but has no complete newer state: one may come any time."""


class Poller:
    """Calls `refresh` every `interval_s` seconds until closed; after failures less often, never more often.

    The callback returns False when its owner is gone, which ends the polls. Polls of one storage have a share of
    the threads only; `url` tells which it is. Raises TransientStorageError when no thread can start.
    """

    close_timeout_s = 0.8

    def __init__(
        self,
        refresh: Callable[[], bool],
        interval_s: float,
        url: str = "",
        *,
        scheduler: Scheduler = scheduler,
    ) -> None:
        self.interval_s = interval_s
        self._refresh = refresh
        self._backoff: Backoff | None = None  # after a failure
        self._thread_id = 0  # of the thread in which a refresh runs
        self._scheduler = scheduler
        self._polls = scheduler.add(self._poll, interval_s, _place_of(url))

    @property
    def is_over(self) -> bool:
        """Whether it is closed, or its owner gone, and no refresh of it runs."""
        return self._polls.is_over and self._polls.began is None

    def set_interval(self, interval_s: float) -> None:
        """Change the pace, from now on."""
        self.interval_s = interval_s
        self._scheduler.pace(self._polls, interval_s)

    def close(self) -> None:
        """End the polls; waits a bounded time for a refresh under way. Idempotent."""
        is_own = self._thread_id == threading.get_ident()
        self._scheduler.remove(self._polls, self.close_timeout_s, waits=not is_own)

    def _poll(self) -> float | None:
        """One refresh. Returns the seconds from its begin to the next one; None: no more."""
        self._thread_id = threading.get_ident()
        try:
            if not self._refresh():
                return None
            self._backoff = None
            return self.interval_s
        except StorageClosedError:
            return None
        except LitevfsError as error:
            logger.debug("refresh failed: %s", error)
            pause = self._pauses().after(error)
            if not isinstance(error, StorageError):  # the storage answers, and may have the missing files later
                pause = min(pause, LONGEST_PAUSE_S)
            return max(self.interval_s, pause)
        except Exception:
            # A defect must not end the polls silently: readers would see an old state for ever.
            logger.exception("refresh failed unexpectedly")
            return max(self.interval_s, self._pauses().next_s())
        finally:
            self._thread_id = 0

    def _pauses(self) -> Backoff:
        self._backoff = self._backoff or Backoff()
        return self._backoff


def _place_of(url: str) -> Hashable:
    """The storage, as far as all of it may hang at once: a host or bucket, or a file system."""
    parts = urlsplit(url)
    try:
        return Path(unquote(parts.path)).stat().st_dev if parts.scheme == "file" else (parts.scheme, parts.netloc)
    except OSError:
        return parts.scheme
