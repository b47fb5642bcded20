"""A local file that fills with the newest state's pages in the background and then serves them. Owns file and thread.

The file is laid out like the database. Beside it, in memory, stands the version of each page in it (see `Snapshot`): a
reader takes a page from the file only if it is the version its own snapshot has, and checks again after reading. So the
file may move on under a reader at any time; the reader then goes to the LTX files for its older version.

A file with a path of its own outlives the process: a record beside it (`hydrated`) lets the next one go on from it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import tempfile
import threading
import time
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from litevfs import local_files
from litevfs.concurrency.condition import Condition
from litevfs.concurrency.workers import start_thread
from litevfs.errors import LitevfsError, OptionError, StorageClosedError
from litevfs.ltx.checksum import page_checksum
from litevfs.pages import hydrated
from litevfs.pages.hydrated import Hydrated
from litevfs.states.record import Known
from litevfs.states.snapshot import Snapshot

logger = logging.getLogger("litevfs.pages.hydration")

TEMP_PREFIX = "litevfs-hydration-"
LET_GO_S = 2.0
"""How long a replica that is being closed may still have the file at `hydration_path`."""
SAVE_PAUSE_S = 30.0
"""Between two records; pages that came later are fetched again if this process is killed."""
_STAT_BLOCK = 512
"""Bytes of what stat counts as a block, on every system."""
ReadPage = Callable[[Snapshot, int], bytes]
_known: weakref.WeakSet[Hydration] = weakref.WeakSet()
"""Those with a path of their own."""


class Hydration:
    """Copies states into the file at `path`, or into a temporary one that goes when this object is closed.

    With `lazily`, file and thread come with the first page that is read, and if no file can be made, reads go on
    without one. A forked child uses this: it may never read, and `path` may still be the parent's. Raises OSError else
    if no file can be made now, and OptionError if `path` can be none.
    """

    close_timeout_s = 0.8

    def __init__(self, path: str | None, read_page: ReadPage, *, url: str = "", lazily: bool = False) -> None:
        """`url` is the replica's, canonical: a record of another one is not trusted."""
        self._read_page = read_page
        self._url = url
        self._left: Hydrated | None = None  # by an earlier process, until it is used
        self._known: Known | None = None  # the last state that a refresh has ended with
        self._sums = np.zeros(0, np.uint64)  # of the pages in the file, if it is to last
        self._saved = time.monotonic()
        self._wanted_path = path
        self._awaits_read = self._wanted_lazily = lazily
        self.path = ""  # of the file, once there is one
        self._fd = -1
        # Of the pages in the file: which history they are of, and their versions (0: not there).
        self._held: tuple[int, NDArray[np.uint32]] = (0, np.zeros(0, np.uint32))
        self._target: Snapshot | None = None
        self._copied = 0
        self._complete: Snapshot | None = None  # the last state that the file was, whole
        self._changed = Condition()
        self._closed = False
        self._stopped = ""  # why the last copy did not come to its end
        self._thread: threading.Thread | None = None  # once it has taken over the file
        self._delete: Callable[[], object] = _nothing
        if not lazily:
            self._start(LET_GO_S)

    @property
    def progress(self) -> float:
        """Percent of the newest state's pages that are in the file, with one decimal; 100.0: the file is that state."""
        target = self._target
        if target is None:
            return 0.0
        if target.commit == 0 or self._complete is target:
            return 100.0
        return min(99.9, 1000 * self._copied // target.commit / 10)

    def get(self, snapshot: Snapshot, version: int, pgno: int) -> bytes | None:
        """Page `pgno` if the file has it in this version of the snapshot's history."""
        if self._awaits_read:
            self._start_late()
        if not self._has(snapshot, version, pgno):
            return None
        try:
            page = os.pread(self._fd, snapshot.page_size, (pgno - 1) * snapshot.page_size)
        except OSError:  # closed meanwhile, or the disk failed: the LTX files still have the page
            return None
        is_whole = len(page) == snapshot.page_size and not self._closed
        return page if is_whole and self._has(snapshot, version, pgno) else None

    def lacks(self, snapshot: Snapshot, pgnos: list[int]) -> list[int]:
        """Those of the pages that the file does not have as the snapshot has them."""
        return [pgno for pgno in pgnos if not self._has(snapshot, snapshot.version(pgno), pgno)]

    def _has(self, snapshot: Snapshot, version: int, pgno: int) -> bool:
        epoch, versions = self._held
        return epoch == snapshot.epoch and pgno <= len(versions) and bool(versions[pgno - 1] == version)

    @property
    def known(self) -> Known | None:
        """What the process knew that left the file: only a state that goes on from it can use the file's pages."""
        left = self._left
        return None if left is None else left.known

    def note(self, known: Known) -> None:
        """A refresh has ended with this."""
        self._known = known

    def follow(self, snapshot: Snapshot) -> None:
        """Bring the file to this state, in the background."""
        with self._changed:
            self._target = snapshot
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread, which closes the file; a temporary one is deleted. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
            if thread is None:
                self._close_file()
        if thread is not None:
            thread.join(self.close_timeout_s)
        self._delete()

    def leave_to_parent(self) -> Snapshot | None:
        """In a forked child: stop using the file; it stays the parent's, locked only as long as the parent lives.

        Returns the state that it followed.
        """
        self._closed = True
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        return self._target

    # --- file and thread ----------------------------------------------------------------------------------------------

    def _start(self, patience_s: float) -> None:
        path = self._wanted_path
        try:
            if path and self._opens_wanted(path, patience_s):
                self._left = None if self._wanted_lazily else _load(path, self._url)
                if self._left is None:
                    hydrated.begin(path)
                    os.ftruncate(self._fd, 0)
            else:
                self._fd, self.path = _open_temporary()
                # Also if the owner does not close this before the process ends.
                self._delete = weakref.finalize(self, _delete_own, self.path, os.getpid())
            start_thread(self._run, "litevfs-hydrate")
        except BaseException:  # also Ctrl-C, which may come when the thread already runs
            self.close()
            raise

    def _opens_wanted(self, path: str, patience_s: float) -> bool:
        """Open the file that was wanted; False if a temporary one is to take its place."""
        try:
            self._fd, self.path = _open_at(path, patience_s)
        except BlockingIOError as error:
            if self._wanted_lazily or any(other._has_open(path) for other in tuple(_known)):
                what = f"hydration_path {path} is in use by another replica"
                raise OptionError(what, hint="give each its own file") from error
            # Workers of one application, or its next process while the last one ends: no reason not to start.
            logger.warning("hydration_path %s is in use by another process: a temporary file takes its place", path)
            self._wanted_path = None
            return False
        if hydrated.is_of_others(self._fd, path):
            logger.warning("hydration_path %s is a database of others: a temporary file takes its place", path)
            self._close_file()
            self._wanted_path = None
            return False
        _known.add(self)
        return True

    def _has_open(self, path: str) -> bool:
        with contextlib.suppress(OSError):
            return self._fd >= 0 and os.path.samestat(os.fstat(self._fd), Path(path).stat())
        return False

    def _start_late(self) -> None:
        with self._changed:
            if not self._awaits_read or self._closed:
                return
            self._awaits_read = False
            try:
                self._start(0)  # a reader waits, and the parent may go on with the file for ever
            except (OptionError, OSError) as error:
                logger.warning("this process goes on without hydration after the fork: %s", error)

    def _run(self) -> None:
        with self._changed:
            self._thread = threading.current_thread()
        try:
            self._follow_target()
        finally:
            # Here and not in `close`, which waits for a bounded time: this thread must not write to another file that
            # got the descriptor's number meanwhile.
            self._closed = True
            self._save()
            self._close_file()

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was forked meanwhile may have it open for long
            os.close(fd)

    def _follow_target(self) -> None:
        done: Snapshot | None = None
        while True:
            with self._changed:
                while self._target is done and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                done = self._target
            assert done is not None
            try:
                if self._left is not None:
                    self._take_over(done, self._left)
                    self._left = None
                self._copy(done)
                self._save_now_and_then()
            except StorageClosedError:
                return  # the replica is being closed, its storage before this
            except (LitevfsError, OSError) as error:
                # Reads go on from the LTX files; the next state is a new chance.
                level = logging.INFO if str(error) == self._stopped else logging.WARNING
                self._stopped = str(error)
                logger.log(level, "hydration stopped at TXID %016x, reads go to the storage: %s", done.txid, error)
            else:
                self._stopped = ""

    def _copy(self, target: Snapshot) -> None:
        """Write every page of `target` that the file does not have, in the order in which they lie in storage."""
        wanted, frames = _page_map(target)
        have = np.zeros(len(wanted), np.uint32)
        epoch, versions = self._held
        if epoch == target.epoch:
            kept = min(len(have), len(versions))
            have[:kept] = versions[:kept]
        self._sums = _resized(self._sums, len(wanted))
        have[have != wanted] = 0  # readers must not read a page that is about to be overwritten
        self._held = (target.epoch, have)
        stale = np.flatnonzero((have == 0) & (wanted != 0))
        self._copied = len(wanted) - len(stale)
        self._check_room(target)
        for slot in stale[np.lexsort((frames[0][stale], frames[1][stale]))].tolist():
            if self._closed or self._target is not target:
                return
            page = self._read_page(target, slot + 1)
            if os.pwrite(self._fd, page, slot * target.page_size) != len(page):  # the disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            if self._wanted_path:
                self._sums[slot] = page_checksum(slot + 1, page)
                self._save_now_and_then()
            have[slot] = wanted[slot]
            self._copied += 1
        os.ftruncate(self._fd, target.size_bytes)
        self._complete = target

    def _check_room(self, target: Snapshot) -> None:
        """Raise OSError before the disk is filled up for nothing: others need it, too."""
        missing = target.size_bytes - os.fstat(self._fd).st_blocks * _STAT_BLOCK
        disk = os.fstatvfs(self._fd)
        if missing > disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    # --- what lasts ---------------------------------------------------------------------------------------------------

    def _take_over(self, target: Snapshot, left: Hydrated) -> None:
        """Find the pages of the file that are what `target` has, if its history is that of the record."""
        known = left.known.snapshot
        if target.versions is not known.versions or target.epoch != known.epoch:
            return
        wanted, _ = _page_map(target)
        have = np.zeros(len(wanted), np.uint32)
        both = min(len(wanted), len(left.versions))
        same = np.flatnonzero((left.versions[:both] == wanted[:both]) & (wanted[:both] != 0))
        sums = _resized(left.sums, len(wanted))
        for slot in same.tolist():
            if self._closed:
                return
            page = os.pread(self._fd, target.page_size, slot * target.page_size)
            if len(page) == target.page_size and page_checksum(slot + 1, page) == int(sums[slot]):
                have[slot] = wanted[slot]
        self._sums = sums
        self._held = (target.epoch, have)
        logger.info("%s has %d of %d pages", self.path, np.count_nonzero(have), len(wanted))

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved >= SAVE_PAUSE_S:
            self._save()

    def _save(self) -> None:
        self._saved = time.monotonic()
        known, (epoch, versions) = self._known, self._held
        if not self._wanted_path or known is None or known.snapshot.epoch != epoch or self._fd < 0:
            return
        try:
            hydrated.save(self.path, self._url, Hydrated(known, versions, self._sums))
        except OSError as error:
            logger.info("%s will not outlive this process: %s", self.path, error)


def _resized(values: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """A copy of so many values, those at the end 0 or cut off."""
    result = np.zeros(count, np.uint64)
    kept = min(count, len(values))
    result[:kept] = values[:kept]
    return result


def _load(path: str, url: str) -> Hydrated | None:
    try:
        return hydrated.load(path, url)
    except (OSError, ValueError, KeyError, TypeError, zlib.error) as error:
        logger.info("the record beside %s is of no use: %s", path, error)
        return None


def _page_map(snapshot: Snapshot) -> tuple[NDArray[np.uint32], tuple[NDArray[np.uint64], NDArray[np.uint32]]]:
    """(version, (frame, file)) of pages 1 to commit."""
    if not snapshot.chunks:
        return np.zeros(0, np.uint32), (np.zeros(0, np.uint64), np.zeros(0, np.uint32))
    versions = np.concatenate([chunk.version_array for chunk in snapshot.chunks])[: snapshot.commit]
    frames = np.concatenate([chunk.frame_array for chunk in snapshot.chunks])[: snapshot.commit]
    files = np.concatenate([chunk.file_array for chunk in snapshot.chunks])[: snapshot.commit]
    return versions, (frames, files)


def _open_at(path: str, patience_s: float) -> tuple[int, str]:
    """A file at `path` that no other replica hydrates; waits `patience_s` for a replica that is just closing.

    Raises BlockingIOError, OptionError if there can be no file, and another OSError if there is none now.
    """
    fd = -1
    try:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            local_files.lock(fd, patience_s)
            return fd, path
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
    except BlockingIOError:
        raise
    except OSError as error:
        if not local_files.is_misnamed(error):
            raise
        hint = "name a file in a writable folder"
        raise OptionError(f"hydration_path {path}: {error.strerror}", hint=hint) from error


def _open_temporary() -> tuple[int, str]:
    """A new file, locked: the lock tells it from a left-over, and ends with this process. Raises OSError."""
    _sweep_temporary()
    return local_files.create_temporary(f"{tempfile.gettempdir()}/{TEMP_PREFIX}", ".db", 0o600)


def _sweep_temporary() -> None:
    """Delete the files of processes that were killed: a living one holds the lock on its own."""
    for path in Path(tempfile.gettempdir()).glob(f"{TEMP_PREFIX}*.db"):
        with contextlib.suppress(OSError):
            local_files.remove_leftover(path)


def _delete_own(path: str, pid: int) -> None:
    if os.getpid() == pid:  # a forked child runs this at its end, too
        with contextlib.suppress(OSError):
            Path(path).unlink()


def _nothing() -> None:
    pass
