"""The program that a replicator is started with (`--exec`): forwards signals to it, and waits for its end."""

from __future__ import annotations

import shlex
import signal
import subprocess
import threading
import time
from types import FrameType

from litevfs.errors import OptionError, ReplicatorError

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_PAUSE_S = 0.05
SHORTEST_SYNC_S = 0.5
_SYNC_SHARE = 0.4
"""Part of the time for the end that is kept for the last sync when the program takes long to end."""


class Child:
    """One program, from construction to its end. Signals that arrive meanwhile are forwarded to it.

    After a signal to end it gets its part of `shutdown_timeout_s`, then it is killed. Raises OptionError for an empty
    command line, ReplicatorError when it cannot be started. For the main thread.
    """

    def __init__(self, command: str, shutdown_timeout_s: float) -> None:
        try:
            arguments = shlex.split(command)
        except ValueError as error:
            raise OptionError(f"not a command line: {command!r}: {error}") from error
        if not arguments:
            raise OptionError("--exec names no program")
        self._shutdown_timeout_s = shutdown_timeout_s
        self.ends_at: float | None = None  # monotonic; None before a signal to end
        self._pause = threading.Event()  # never set
        self._previous = {number: signal.signal(number, self._hand_on) for number in _SIGNALS}
        try:
            self._process = subprocess.Popen(arguments)
        except OSError as error:
            self.restore_signals()
            raise ReplicatorError(f"cannot run {arguments[0]!r}: {error.strerror or error}") from error

    @property
    def has_ended(self) -> bool:
        """Whether the program has ended, by itself or killed after its time."""
        if self.ends_at is not None and time.monotonic() > self.ends_at:
            self._process.kill()
        return self._process.poll() is not None

    @property
    def exit_code(self) -> int:
        """As a shell reports it: 128 and the number of the signal that ended it."""
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    @property
    def last_sync_s(self) -> float:
        """How long the last sync may take now: what is left of the time for the end."""
        if self.ends_at is None:
            return self._shutdown_timeout_s
        left_s = self.ends_at - time.monotonic() + self._shutdown_timeout_s * _SYNC_SHARE
        return max(SHORTEST_SYNC_S, left_s)

    def end(self) -> None:
        """Ask the program to end, and wait."""
        self._hand_on(signal.SIGTERM, None)
        self.wait()

    def wait(self) -> None:
        """Return when the program has ended."""
        while not self.has_ended:
            self._pause.wait(_PAUSE_S)

    def restore_signals(self) -> None:
        """Handle signals in this process again."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        if number in _ENDING and self.ends_at is None:
            self.ends_at = time.monotonic() + self._shutdown_timeout_s * (1 - _SYNC_SHARE)
        if self._process.poll() is None:
            self._process.send_signal(number)
