"""The signal that ends a long-running command: as an event, or as an exception."""

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


class Terminated(KeyboardInterrupt):
    """SIGTERM: the ordinary end of a service."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in the main thread."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
