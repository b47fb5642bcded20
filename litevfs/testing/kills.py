"""Kills the process it runs in just before its n-th step that lasts: what a power cut or the system's OOM killer does.

    python -c "from litevfs.testing.kills import kill_at; kill_at(7, '/data'); ..."

Steps are the changes to files in a folder that Python code makes: opening for writing, writing (half of the bytes get
there), truncating, syncing, renaming, linking, removing, making folders. If wanted, sending to a server without TLS is
a step, too (half of it gets there). What SQLite writes is not counted: to survive a kill there is its own business.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_EVENTS = frozenset({"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink"})
"""Audit events of changes by name (docs.python.org/3/library/audit_events.html); those by number have none."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def kill_at(step: int, folder: str | os.PathLike[str], *, sends: bool = False) -> None:
    """From now on, count the steps of this process in `folder`, and end it by SIGKILL before number `step` (from 1).

    `sends`: count what is sent over the network, too.
    There is no way back: Python cannot remove the hook.
    """
    root = os.fsencode(Path(folder).resolve()) + b"/"
    numbers = itertools.count(1)

    def is_due() -> bool:
        return next(numbers) == step

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _EVENTS and _is_change(event, args) and _is_in(root, args) and is_due():
            _die()

    _count_writes(root, is_due)
    if sends:
        _count_sends(is_due)
    sys.addaudithook(hook)


def _is_change(event: str, args: tuple[Any, ...]) -> bool:
    return event != "open" or bool(isinstance(args[2], int) and args[2] & _WRITING)


def _is_in(root: bytes, args: tuple[Any, ...]) -> bool:
    return any(os.fsencode(arg).startswith(root) for arg in args if isinstance(arg, str | bytes | os.PathLike))


def _count_writes(root: bytes, is_due: Callable[[], bool]) -> None:
    """Count what is done to a file by its number; of a write that is due, half is done."""

    def counted(call: Callable[..., Any], *, halves: bool = False) -> Callable[..., Any]:
        def count(fd: int, *args: Any) -> Any:
            if _is_file_in(root, fd) and is_due():
                if halves:
                    data = memoryview(args[0]).cast("B")
                    call(fd, data[: len(data) // 2], *args[1:])
                _die()
            return call(fd, *args)

        return count

    for name in ("fsync", "fdatasync", "ftruncate", "write", "pwrite"):
        if hasattr(os, name):  # macOS has no fdatasync
            setattr(os, name, counted(getattr(os, name), halves="write" in name))


def _count_sends(is_due: Callable[[], bool]) -> None:
    sendall = socket.socket.sendall

    def count(sock: socket.socket, data: Any, *flags: int) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and is_due():
            view = memoryview(data).cast("B")
            sendall(sock, view[: len(view) // 2], *flags)
            _die()
        sendall(sock, data, *flags)

    setattr(socket.socket, "sendall", count)  # noqa: B010 (mypy takes an assignment for a mistake)


def _is_file_in(root: bytes, fd: int) -> bool:
    if not stat.S_ISREG(os.fstat(fd).st_mode) and not stat.S_ISDIR(os.fstat(fd).st_mode):
        return False
    try:
        return os.fsencode(os.readlink(f"/proc/self/fd/{fd}")).startswith(root)  # noqa: PTH115 (as bytes)
    except OSError:  # a system without /proc: any file may be meant
        return True


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
