"""`litevfs replicate --status`: a socket beside the database that tells a replicator's status. Owns both its ends.

The socket `.<name>-litevfs-status` is for the user who runs the replicator alone (mode 0600). A connection gets one
JSON object, and is closed; nothing is read from it. One thread answers for all databases of a process. The replicator
holds the lock of its state folder, so a socket that it finds is one that a killed replicator left.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from litevfs.concurrency.workers import start_thread
from litevfs.errors import ReplicatorError
from litevfs.replicate.source_file import database_path

logger = logging.getLogger("litevfs.commands.replicate")

Describe = Callable[[], dict[str, object]]
"""Makes the answer: plain values, as JSON has them."""

_LONGEST_ADDRESS = 100
"""Bytes of a path that every system takes as the address of a socket."""
_SEND_TIMEOUT_S = 1.0
_WAITING = 16
"""Connections that wait to be answered."""


def socket_path(database: Path) -> Path:
    """Where the socket of a database lies."""
    return database.with_name(f".{database.name}-litevfs-status")


class StatusServer:
    """Answers for the databases that were added, in one thread, until `close`. Safe to use from several threads."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._listeners: dict[Path, socket.socket] = {}
        self._pid = os.getpid()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = start_thread(self._run, "litevfs-status")

    def __enter__(self) -> StatusServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, database: Path, describe: Describe) -> None:
        """Answer for a database whose state folder this process holds.

        Where no socket can be made (not every file system has them), logs a warning, and replication goes on.
        """
        try:
            listener = _listen(socket_path(database))
        except OSError as error:
            logger.warning("%s: no status can be asked for: %s", database, error.strerror or error)
            return
        with self._lock:
            self._listeners[database] = listener
            self._selector.register(listener, selectors.EVENT_READ, describe)

    def remove(self, database: Path) -> None:
        """Answer no more, and remove the socket. Idempotent; call it while the state folder is still held."""
        with self._lock:
            listener = self._listeners.pop(database, None)
            if listener is not None:
                self._selector.unregister(listener)
                listener.close()
        if listener is not None and os.getpid() == self._pid:
            with suppress(OSError):
                socket_path(database).unlink()

    def close(self) -> None:
        """Remove all sockets and end the thread. Idempotent."""
        for database in list(self._listeners):
            self.remove(database)
        with suppress(OSError):
            self._wake.close()
        self._thread.join()
        self._woken.close()
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    return
                if isinstance(key.fileobj, socket.socket):
                    _answer(key.fileobj, key.data)


def _answer(listener: socket.socket, describe: Describe) -> None:
    try:
        connection, _ = listener.accept()
    except OSError:  # gone by now, or the listener was removed
        return
    with connection:
        try:
            connection.settimeout(_SEND_TIMEOUT_S)
            connection.sendall(json.dumps(describe()).encode())
        except OSError as error:
            logger.debug("the status was not read: %s", error)
        except Exception:  # a mistake in one answer must not end the thread, which answers for all databases
            logger.exception("the status cannot be told")


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        path.unlink(missing_ok=True)
        with _address(path) as address:
            listener.bind(address)
        path.chmod(0o600)  # before `listen`: until then no connection is taken
        listener.listen(_WAITING)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """The path as the address of a socket, or where it is too long, another name of it. Raises OSError."""
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        short = f"/proc/self/fd/{folder}/{path.name}"
        if not Path("/proc/self/fd").is_dir() or len(os.fsencode(short)) > _LONGEST_ADDRESS:
            raise OSError(f"the path is too long for a socket: {path}")
        yield short
    finally:
        os.close(folder)


def ask(database: str | os.PathLike[str], timeout_s: float = 5.0) -> dict[str, object]:
    """The status that the replicator of this database tells. Raises ReplicatorError when none runs or answers."""
    path = database_path(database)
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as connection, _address(socket_path(path)) as address:
            connection.settimeout(timeout_s)
            connection.connect(address)
            while data := connection.recv(1 << 16):
                answer += data
        status = json.loads(answer)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        raise ReplicatorError(
            "no replicator of this database runs on this machine",
            key=str(path),
            hint="start one: litevfs replicate DATABASE URL" if path.exists() else "there is no such database either",
        ) from error
    except PermissionError as error:
        raise ReplicatorError(
            "the status of this database may not be asked for",
            key=str(path),
            hint="ask as the user that the replicator runs as",
        ) from error
    except (OSError, ValueError) as error:
        raise ReplicatorError(
            f"the replicator does not tell its status: {error}", key=str(path), hint="is it stopped, or just ending?"
        ) from error
    if not isinstance(status, dict):
        raise ReplicatorError("the answer is not a status", key=str(path))
    return status
