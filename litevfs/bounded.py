"""One call at a time in a thread of its own, so that whoever waits for it can give up. Does not know what it does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from litevfs.errors import StorageTimeoutError, TransientStorageError


class SharedCall:
    """Makes `call()` for all that ask while it runs. A call that nobody waits for any more goes on to its own end."""

    def __init__(self, call: Callable[[], bool], name: str) -> None:
        self._call = call
        self._name = name
        self._running: Future[bool] | None = None
        self._lock = threading.Lock()

    def result(self, timeout_s: float) -> bool:
        """What the call returns or raises; StorageTimeoutError when it has not ended within `timeout_s`.

        Raises TransientStorageError when the system has no thread to give.
        """
        with self._lock:
            running = self._running
            if running is None or running.done():
                running = Future()
                self._start(running)
                self._running = running  # not before there is a thread that will end it
        try:
            return running.result(timeout_s)
        except FutureTimeoutError:
            if running.done():
                raise
            raise StorageTimeoutError(f"the storage has not answered within {timeout_s:.3g} s") from None

    def _start(self, running: Future[bool]) -> None:
        thread = threading.Thread(target=self._run, args=(running,), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise TransientStorageError(f"the storage cannot be asked now: {error}") from error

    def _run(self, running: Future[bool]) -> None:
        try:
            running.set_result(self._call())
        except BaseException as error:  # noqa: BLE001 (handed to whoever waits)
            running.set_exception(error)
