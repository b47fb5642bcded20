"""A progress bar on a terminal. Knows nothing of the work, nor how it is drawn.

with ProgressBar("restoring") as bar:
    litevfs.operations.restore.restore(url, path, progress=bar.update)
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Self, TextIO

from litevfs.commands.terminal import start_progress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ProgressBar:
    """Draws on `stream` (standard error) from the first `update` on; does nothing where that is not a terminal."""

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._is_shown = self._stream.isatty()
        self._lock = threading.Lock()  # any thread may report
        self._drawn: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn is not None:
            self._drawn[0].stop()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` bytes are done."""
        if not self._is_shown:
            return
        with self._lock:
            if self._drawn is None:
                progress = start_progress(self._stream)
                self._drawn = progress, progress.add_task(self._label, total=total)
        progress, task = self._drawn
        progress.update(task, completed=done, total=total)
