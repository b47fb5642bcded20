"""A progress bar for a terminal: share, rate, time left. Knows nothing of the work.

with ProgressBar("restoring") as bar:
    litevfs.operations.restore.restore(url, path, progress=bar.update)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from litevfs.units import format_bytes

_INTERVAL_S = 0.1
_WIDTH = 30
_CLEAR_LINE = "\r\x1b[K"


class ProgressBar:
    """Draws on `stream` (standard error), at most every 0.1 s; does nothing where that is not a terminal."""

    def __init__(
        self, label: str, stream: TextIO | None = None, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._is_shown = self._stream.isatty()
        self._monotonic = monotonic
        self._started_at = monotonic()
        self._drawn_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._drawn_at is not None:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are done."""
        now = self._monotonic()
        if not self._is_shown or (self._drawn_at is not None and now - self._drawn_at < _INTERVAL_S and done < total):
            return
        self._drawn_at = now
        self._stream.write(f"{_CLEAR_LINE}{self._label} {render(done, total, now - self._started_at)}")
        self._stream.flush()


def render(done: int, total: int, elapsed_s: float) -> str:
    """One line: bar, percent, bytes, rate, time left (estimated from the rate so far)."""
    share = done / total if total else 1.0
    filled = round(_WIDTH * share)
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    left = f"ETA {_format_duration((total - done) / rate)}" if rate else "ETA --:--"
    bar = "#" * filled + "." * (_WIDTH - filled)
    return (
        f"[{bar}] {100 * share:5.1f} %  {format_bytes(done)} of {format_bytes(total)}  {format_bytes(rate)}/s  {left}"
    )


def _format_duration(seconds: float) -> str:
    minutes, whole_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole_s:02d}" if hours else f"{minutes:02d}:{whole_s:02d}"
