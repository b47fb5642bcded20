"""How a command that goes on until it is told to end is told so."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ended_by_sigterm() -> Iterator[threading.Event]:
    """Set at SIGTERM, which does not end the process meanwhile; Ctrl-C raises KeyboardInterrupt as everywhere."""
    ended = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        ended.set()

    previous = signal.signal(signal.SIGTERM, note)
    try:
        yield ended
    finally:
        signal.signal(signal.SIGTERM, previous)
