"""Many databases in one process: which there are, one replicator each, a few threads for all. Writes to no replica.

Databases of a folder come and go: a new file that matches is opened, one that is gone is closed, after what was
captured of it has been uploaded. What one database meets (no WAL mode, a lock, a storage that is silent) is logged,
tried again, and delays no other.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from litevfs.concurrency.retry import Backoff
from litevfs.concurrency.shared_turns import SharedThreads
from litevfs.concurrency.turns import Task, Turn
from litevfs.concurrency.workers import start_thread
from litevfs.errors import (
    LitevfsError,
    ReplicaConflictError,
    ReplicatorError,
    ReplicatorRefusedError,
    TransientStorageError,
)
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replicate.config.model import DatabaseEntry, Place
from litevfs.replicate.lease import DEFAULT_TTL_S
from litevfs.replicate.pace import Pace
from litevfs.replicate.replicator import Replicator

logger = logging.getLogger("litevfs.replicate")

WATCH_INTERVAL_S = 1.0
_PACE_INTERVAL_S = 1.0
_HEADER = b"SQLite format 3\x00"
_LAST_UPLOAD_S = 10.0
_LEASE_PAUSE_S = 1.0
"""Between two tries to get the lease before a restore."""


_LOOK_AFTER_S = 5.0
"""Between two looks whether a replicator was refused."""


class _RestoreWaitsError(ReplicatorError):
    """Another primary has the lease of a replica that is to be restored."""


_THREADS = {
    "litevfs-replicate": 4,
    "litevfs-upload": 24,
    "litevfs-lease": 4,
    "litevfs-maintain": 4,
    "litevfs-open": 4,
}
"""Of each kind of task at most, by what it may have to wait for: a disk, a storage, a lease, maintenance."""


class Member:
    """One database of a fleet: opens its replicator as soon as that can be done, and closes it."""

    def __init__(self, path: Path, places: tuple[Place, ...], entry: DatabaseEntry, fleet: Fleet) -> None:
        self.path, self.places, self.entry, self._fleet = path, places, entry, fleet
        self._backoff = Backoff()
        self._lock = threading.Lock()  # of opening and closing
        self._is_leaving = False
        self._clients: list[ReplicaClient] = []
        self._checking: Task | None = None
        self.replicator: Replicator | None = None
        self.error: str | None = None
        """Why there is no replicator."""
        self.waits_for: str | None = None
        """The primary whose lease has to end before the database is restored."""
        self.task = fleet.threads.start(self._open, "litevfs-open", str(path))

    def leave(self, *, timeout_s: float = _LAST_UPLOAD_S, is_gone: bool) -> None:
        """Close it, after a last sync, or, for a file that is gone, the last upload. Raises ReplicatorError."""
        self._is_leaving = True
        self.task.stop()
        self.task.join(timeout_s)
        if not self._lock.acquire(timeout=max(0.0, timeout_s)):
            raise ReplicatorError("it is still being opened", key=str(self.path))
        try:
            replicator, self.replicator = self.replicator, None
        finally:
            self._lock.release()
        if replicator is None:
            why = self.error or self.waits_for
            if not is_gone and why is not None:
                raise ReplicatorError(f"not replicated: {why}", key=str(self.path))
            return
        try:
            if is_gone:
                replicator.upload(timeout_s)
            else:
                replicator.sync(timeout_s)
        except LitevfsError as exc:
            raise ReplicatorError(f"the last sync failed: {exc}", key=str(self.path)) from exc
        finally:
            self._close(replicator)

    def _open(self) -> float | None:
        """A turn: open the replicator, or look whether it was refused."""
        with self._lock:
            if self._is_leaving:
                return None
            try:
                if self.replicator is None:
                    self.replicator = self._opened()
                    self.replicator.share_pace(self._fleet.pace)
                    self.replicator.start(self._fleet.threads)
                    self._fleet.opened(self.replicator)
                    if self._fleet.check is not None:
                        turn = self._fleet.check(self.replicator)
                        self._checking = self._fleet.threads.start(turn, "litevfs-maintain", str(self.path))
                self.replicator.wait(0.0)
            except ReplicatorRefusedError as exc:  # an operator has to decide
                self.error = str(exc)
                logger.error("%s: not replicated: %s", self.path, exc)
                self._close(self.replicator)
                self.replicator = None
                return None
            except _RestoreWaitsError as exc:
                if self.waits_for is None:
                    logger.warning("%s: waiting to restore: %s", self.path, exc)
                self.error, self.waits_for = None, str(exc)
                return _LEASE_PAUSE_S
            except (LitevfsError, OSError) as exc:
                if str(exc) != self.error:
                    logger.warning("%s: not replicated yet: %s", self.path, exc)
                self.error, self.waits_for = str(exc), None
                return self._backoff.after(exc)
            self.error = self.waits_for = None
            self._backoff.reset()
            return _LOOK_AFTER_S

    def _opened(self) -> Replicator:
        self._clients = [place.open() for place in self.places]
        try:
            self._restore()
            if not _begins_as_database(self.path):
                raise ReplicatorError("not a database, or not yet", key=str(self.path))
            first, *others = self._clients
            own_process = self._fleet.own_process
            return Replicator(self.path, first, places=others, own_process=own_process, **self.entry.options)
        except BaseException:
            self._close(None)
            raise

    def _restore(self) -> None:
        if not self.entry.restore_if_missing or self._fleet.restore is None:
            return
        try:
            self._fleet.restore(self.path, self._clients, self.entry.options.get("lease_ttl_s", DEFAULT_TTL_S))
        except ReplicaConflictError as exc:
            raise _RestoreWaitsError(exc.message, key=exc.key, hint=exc.hint) from exc

    def _close(self, replicator: Replicator | None) -> None:
        checking, self._checking = self._checking, None
        if checking is not None:
            checking.stop()
        if replicator is not None:
            self._fleet.closing(replicator)
            replicator.close()
        for client in self._clients:
            client.close()
        self._clients = []


class Fleet:
    """Replicates what `entries` name, until `close`. `restore(path, clients, lease_ttl_s)` restores a database that is
    missing, where asked to, or raises ReplicaConflictError while another primary has the lease; `check` makes the turns
    that check its replica; `opened` and `closing` hear of each replicator."""

    def __init__(
        self,
        entries: Sequence[DatabaseEntry],
        *,
        restore: Callable[[Path, Sequence[ReplicaClient], float | None], object] | None = None,
        check: Callable[[Replicator], Turn] | None = None,
        opened: Callable[[Replicator], None] = lambda replicator: None,
        closing: Callable[[Replicator], None] = lambda replicator: None,
        own_process: bool = False,
        watch_interval_s: float = WATCH_INTERVAL_S,
    ) -> None:
        self.restore, self.check, self.own_process = restore, check, own_process
        self.opened, self.closing = opened, closing
        self._entries, self._watch_interval_s = tuple(entries), watch_interval_s
        self.threads = SharedThreads(_THREADS, "litevfs-fleet")
        self.members: dict[Path, Member] = {}
        self.pace = Pace()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._watching: Task | None = None
        self._is_first = True

    def start(self) -> None:
        """Open what there is now, and go on opening and closing what comes and goes."""
        self.refresh()
        if any(entry.watch or entry.pattern is None for entry in self._entries):
            self._watching = self.threads.start(self._watch, "litevfs-open", "watch")
        self.threads.start(self._keep_pace, "litevfs-open", "pace")

    def refresh(self) -> None:
        """Look which databases there are. Raises OSError for a folder that cannot be read."""
        with self._lock:
            if self._closed.is_set():
                return
            found: dict[Path, tuple[DatabaseEntry, tuple[Place, ...]]] = {}
            for entry in self._entries:
                if self._is_first or entry.watch or entry.pattern is None:
                    found.update((path, (entry, places)) for path, places in _databases(entry))
                else:
                    found.update((path, (entry, m.places)) for path, m in self.members.items() if m.entry is entry)
            gone = [path for path in self.members if path not in found]
            for path in gone:
                self._let_go(self.members.pop(path))
            self.pace.databases = len(found)  # first: a member goes by it as soon as it is opened
            for path, (entry, places) in found.items():
                if path not in self.members:
                    self.members[path] = Member(path, places, entry, self)
            self._is_first = False

    def wait_until_open(self, timeout_s: float) -> None:
        """Return when each database has a replicator, or an error, or after `timeout_s`, or later while one waits for
        another primary's lease."""
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()  # never set
        opening = list(self.members.values())
        while opening and (time.monotonic() < deadline or any(one.waits_for is not None for one in opening)):
            pause.wait(0.02)
            opening = [one for one in opening if one.replicator is None and one.error is None]

    def close(self, timeout_s: float) -> list[str]:
        """End, after a last sync of every database within `timeout_s`; returns what failed."""
        self._closed.set()
        if self._watching is not None:
            self._watching.stop()
            self._watching.join(timeout_s)
        with self._lock:
            errors = self._each(timeout_s, lambda member, left_s: member.leave(timeout_s=left_s, is_gone=False))
            self.members.clear()
        self.threads.close(1.0)
        return errors

    def _watch(self) -> float:
        try:
            self.refresh()
        except (OSError, LitevfsError) as exc:
            logger.warning("databases are not looked for: %s", exc)
        return self._watch_interval_s

    def _keep_pace(self) -> float:
        self.pace.adapt()
        return _PACE_INTERVAL_S

    def _let_go(self, member: Member) -> None:
        logger.info("%s: the database is gone", member.path)

        def leave() -> None:
            try:
                member.leave(is_gone=True)
            except LitevfsError as exc:
                logger.warning("%s", exc)
            task.stop()

        task = self.threads.start(leave, "litevfs-open", str(member.path))

    def _each(self, timeout_s: float, act: Any) -> list[str]:
        """Do this for every member, some at a time, within `timeout_s`; returns the errors."""
        deadline = time.monotonic() + timeout_s
        waiting, errors = list(self.members.values()), []
        lock, threads = threading.Lock(), []

        def work() -> None:
            while True:
                with lock:
                    if not waiting:
                        return
                    member = waiting.pop()
                try:
                    act(member, max(0.5, deadline - time.monotonic()))
                except (LitevfsError, OSError) as exc:
                    errors.append(str(exc))
                except Exception as exc:  # a mistake of ours: the other databases have a last sync all the same
                    logger.exception("%s: unexpected error", member.path)
                    errors.append(f"{member.path}: {exc!r}")

        for _ in range(min(16, len(waiting))):
            try:
                threads.append(start_thread(work, "litevfs-last-sync"))
            except TransientStorageError as exc:
                logger.warning("%s", exc)
                break
        if not threads:
            work()
        for thread in threads:
            thread.join(max(0.0, deadline + 1.0 - time.monotonic()))
        errors += [f"no time was left for {member.path}" for member in waiting]
        waiting.clear()
        return errors


def _databases(entry: DatabaseEntry) -> Iterator[tuple[Path, tuple[Place, ...]]]:
    """The databases of an entry, with their places: that of a folder, and the path in it."""
    if entry.pattern is None:
        yield entry.path, entry.places
        return
    for path in _files(entry.path, entry.pattern, recursive=entry.recursive):
        relative = PurePosixPath(path.relative_to(entry.path).as_posix())
        yield path, tuple(place.below(relative) for place in entry.places)


def _files(folder: Path, pattern: str, *, recursive: bool) -> Iterator[Path]:
    with os.scandir(folder) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if recursive and not entry.name.endswith("-litevfs"):
                with suppress(FileNotFoundError, PermissionError):
                    yield from _files(Path(entry.path), pattern, recursive=True)
        elif fnmatchcase(entry.name, pattern) and _is_database(entry):
            yield Path(entry.path)


def _is_database(entry: os.DirEntry[str]) -> bool:
    """Whether the file may be a database. Its content is left alone: to close it would drop SQLite's locks on it."""
    try:
        return entry.is_file() and entry.stat().st_size >= len(_HEADER)
    except OSError:
        return False


def _begins_as_database(path: Path) -> bool:
    """Whether the file begins like a database; for one that this process has not open. Lets SQLite tell of errors."""
    try:
        with path.open("rb") as file:
            return file.read(len(_HEADER)) in (_HEADER, b"")
    except OSError:
        return True
