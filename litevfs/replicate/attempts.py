"""How a replicator's threads share its locks, and what they do with errors. Knows nothing of databases and replicas."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from litevfs.errors import LitevfsError, ReplicatorError

logger = logging.getLogger("litevfs.replicate")

LOCK_TIMEOUT_S = 60.0
"""How long a thread waits for the work of another thread."""


SAME_AGAIN_S = 60.0
"""An error that stays the same is logged so often."""


class Said:
    """The error that was logged last, and when."""

    def __init__(self) -> None:
        self._text, self._at = "", 0.0

    def is_news(self, text: str) -> bool:
        """Whether to log it: it is another one, or was logged a while ago."""
        now = time.monotonic()
        if text == self._text and now < self._at + SAME_AGAIN_S:
            return False
        self._text, self._at = text, now
        return True

    def forget(self) -> None:
        """The action has succeeded."""
        self._text = ""


def attempt(
    action: Callable[[float], object], path: Path, closed: threading.Event, said: Said | None = None
) -> Exception | None:
    """Run `action`, with a deadline; log its error, if that is news to `said`, and return it.

    The threads outlive every error.
    """
    try:
        action(time.monotonic() + LOCK_TIMEOUT_S)
    except LitevfsError as exc:
        if not closed.is_set() and (said is None or said.is_news(str(exc))):
            logger.warning("%s: %s", path, exc)
        return exc
    except Exception as exc:  # a mistake of ours or of a client; replication goes on once it no longer occurs
        logger.exception("%s: unexpected error", path)
        return exc
    return None


@contextmanager
def holding(lock: threading.Lock, deadline: float, path: Path, closed: threading.Event | None) -> Generator[None]:
    """Hold the lock. Raises ReplicatorError when another thread has it until `deadline`, and once `closed`.

    Then the database, and the folder, may be another replicator's.
    """
    if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
        raise ReplicatorError("another thread is still busy with this replicator", key=str(path))
    try:
        if closed is not None and closed.is_set():
            raise ReplicatorError("the replicator is closed", key=str(path))
        yield
    finally:
        lock.release()
