"""The signal that ends a long-running command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ended_by_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets instead of ending the process; Ctrl-C raises KeyboardInterrupt as usual."""
    ended = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        ended.set()

    previous = signal.signal(signal.SIGTERM, note)
    try:
        yield ended
    finally:
        signal.signal(signal.SIGTERM, previous)
