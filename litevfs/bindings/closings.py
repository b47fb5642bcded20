"""Tells when SQLite has closed a file, without a callback.

SQLite may close a file while a Python exception propagates (it may drop the last reference to a cursor), and ctypes
cannot call back then: the exception would be lost, and the interpreter would crash. So C code closes the file.
Each file is opened on a FIFO; when SQLite closes its end, a thread notices that at the other end.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Generic, TypeVar

from litevfs.concurrency.descriptors import wait_for

logger = logging.getLogger("litevfs.bindings.closings")


Key = TypeVar("Key")


class Closings(Generic[Key]):
    """Watches files, and calls `closed(key)` in a thread of its own soon after SQLite has closed one."""

    def __init__(self, closed: Callable[[Key], object]) -> None:
        self._closed = closed
        self._lock = threading.Lock()
        self._keys: dict[int, Key] = {}  # by the descriptor of our end of each FIFO
        self._thread: threading.Thread | None = None
        self._wake = -1, -1
        self.needs_thread = False  # a fork has ended the thread
        self._numbers = count(1)
        os.register_at_fork(before=self._before_fork, after_in_parent=self._lock_release, after_in_child=self._in_child)

    def make_fifo(self) -> tuple[str, int]:
        """A new FIFO, to be opened and removed by SQLite, and the descriptor of our end. Raises OSError."""
        folder = Path(tempfile.gettempdir()).resolve()  # SQLite opens no symbolic link
        name = f"litevfs-{os.getpid()}-{next(self._numbers)}-{os.urandom(6).hex()}"
        path = folder / name
        os.mkfifo(path, 0o600)
        try:
            return str(path), os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except BaseException:
            path.unlink()
            raise

    def watch(self, descriptor: int, key: Key) -> None:
        """Watch a FIFO that SQLite has opened. From now on the descriptor belongs to this object.

        Raises OSError, and RuntimeError when no thread can start; then the descriptor is closed.
        """
        with self._lock:
            self._keys[descriptor] = key
            try:
                if self._thread is None:
                    self._start()
                else:
                    os.write(self._wake[1], b".")
            except BaseException:
                del self._keys[descriptor]
                os.close(descriptor)
                raise

    def _start(self) -> None:
        self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, args=(self._wake[0],), name="litevfs-closings", daemon=True)
        try:
            self._thread.start()
        except (RuntimeError, MemoryError):  # no thread can start; after Ctrl-C it may run
            self._thread = None
            for descriptor in self._wake:
                os.close(descriptor)
            raise

    def _run(self, wake: int) -> None:
        """Wait for the ends of FIFOs; end with the last of them."""
        while True:
            with self._lock:
                watched = [wake, *self._keys]
            gone = wait_for(readable=watched) - {wake}  # SQLite writes nothing to a FIFO: it has closed it
            with self._lock:
                keys = [self._keys.pop(descriptor) for descriptor in gone if descriptor in self._keys]
                for descriptor in gone:
                    os.close(descriptor)
            for key in keys:
                try:
                    self._closed(key)
                except Exception:  # must not keep other files from being closed
                    logger.exception("letting go of a replica failed")
            with self._lock:
                if not self._keys:
                    for descriptor in self._wake:
                        os.close(descriptor)
                    self._thread = None
                    return
                if gone:
                    continue
            os.read(wake, 4096)

    # --- fork ---------------------------------------------------------------------------------------------------------

    def _before_fork(self) -> None:
        self._lock.acquire()

    def _lock_release(self) -> None:
        self._lock.release()

    def _in_child(self) -> None:
        """Give SQLite's descriptors in the child FIFOs of their own: the parent waits for the ends of its own ones."""
        self._lock = threading.Lock()
        keys, self._keys = self._keys, {}
        if self._thread is not None:
            self._thread = None
            for descriptor in self._wake:
                os.close(descriptor)
        ours = {_identity(descriptor): descriptor for descriptor in keys}
        for name in os.listdir("/dev/fd"):  # noqa: PTH208 - numbers, not paths
            identity = _identity(int(name))
            if identity in ours and int(name) != ours[identity]:
                reading, writing = os.pipe()
                os.dup2(writing, int(name), inheritable=False)
                os.close(writing)
                self._keys[reading] = keys[ours[identity]]
        for descriptor in keys:
            os.close(descriptor)
        self.needs_thread = bool(self._keys)

    def watch_after_fork(self) -> None:
        """Start the thread that a fork has ended, if `needs_thread` says so."""
        with self._lock:
            if self._thread is None and self._keys:
                self._start()
            self.needs_thread = False


def _identity(descriptor: int) -> tuple[int, int] | None:
    """What tells one FIFO from another; None if the descriptor is closed."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino
