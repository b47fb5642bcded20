"""A local SQLite file that is kept current: every program that reads SQLite can open it meanwhile.

Owns which pages go into the file and when; `followed_file` owns the file. Each step reads the pages that differ between
the file's state and the replica's newest one, and puts them into the file in one transaction: the cost grows with
the changes only.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from litevfs.concurrency.condition import Condition
from litevfs.concurrency.retry import Backoff
from litevfs.concurrency.workers import start_thread
from litevfs.errors import FollowError, FollowTargetError, LitevfsError, OptionError, StaleReplicaError
from litevfs.live.registry import registry
from litevfs.live.replica import Replica
from litevfs.ltx.names import format_txid, parse_txid
from litevfs.operations.followed_file import FollowedFile, PageSpool
from litevfs.options import Options
from litevfs.pages.bulk import read_pages
from litevfs.states.changes import all_pgnos, changed_pgnos, pgnos_changed_since
from litevfs.states.snapshot import Snapshot
from litevfs.texts import parse_text
from litevfs.units import parse_duration_s

logger = logging.getLogger("litevfs.operations.follow")

RETRY_CAP_S = 5.0


class Follow:
    """A local database file that is kept at the newest state of a replica, until closed. Made by `litevfs.follow`."""

    close_timeout_s = 0.8

    def __init__(self, options: Options, path: Path, *, overwrite: bool = False) -> None:
        if options.is_fixed:
            raise OptionError("a fixed state has nothing to follow", hint="litevfs restore makes a file of it")
        self.path = path.resolve()
        self.last_error: Exception | None = None  # the error that keeps the file from the newest state, if any
        self._options = options
        self._snapshot: Snapshot | None = None  # the file's state, once this process knows it
        self._changed = Condition()
        self._closed = False
        self._has_news = False
        self._thread: threading.Thread | None = None
        self._file: FollowedFile | None = None
        self._lease = registry.acquire(options)
        try:
            self._replica: Replica = self._lease.replica
            self._replica.open(options.open_timeout_s)
            self._file = FollowedFile(self.path, self._replica.url, overwrite=overwrite)
            self.update()
        except BaseException:
            self.close()
            raise

    @property
    def txid(self) -> int:
        """The transaction whose state the file holds."""
        assert self._file is not None
        return self._file.state.txid

    def start(self) -> None:
        """Update the file from a separate thread, as often as the replica is polled."""
        self._replica.add_listener(self._note_news)
        self._replica.poll_every(self._options.poll_interval_s)
        self._note_news(0)
        self._thread = start_thread(self._run, f"litevfs-follow {self.path.name}")

    def wait_for(self, txid: int | str, timeout: float | str = 10.0) -> int:
        """Wait until the file holds transaction `txid` (a number or hex digits) or a later one; returns which.

        Raises StaleReplicaError after `timeout` (seconds, or text such as "250ms"), or the error that ended the thread;
        FollowError once it is closed.
        """
        wanted, timeout_s = parse_txid(txid), parse_duration_s(timeout)
        with self._changed:
            self._changed.wait_for(lambda: self.txid >= wanted or self._closed, timeout_s)
            if self.txid >= wanted:
                return self.txid
            if isinstance(self.last_error, FollowTargetError):
                raise self.last_error
            if self._closed:
                raise FollowError("this follower is closed", key=str(self.path))
        raise StaleReplicaError(
            f"{self.path.name} is at TXID {format_txid(self.txid)}, not yet at {format_txid(wanted)}",
            key=self._replica.url,
            hint=None if self.last_error is None else str(self.last_error),
        )

    def close(self) -> None:
        """End following; the file stays, and a later `follow` continues with it. Within a second; idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._replica.remove_listener(self._note_news)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(self.close_timeout_s)
        registry.release(self._lease)
        if self._thread is None or not self._thread.is_alive():
            self._close_file()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _note_news(self, txid: int) -> None:
        with self._changed:
            self._has_news = True
            self._changed.notify_all()

    def _run(self) -> None:
        backoff = Backoff(cap_s=RETRY_CAP_S)
        pause_s: float | None = None
        try:
            while self._wait_for_news(pause_s):
                pause_s = self._try_update(backoff)
        finally:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
            self._close_file()

    def _wait_for_news(self, at_most_s: float | None) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_news, at_most_s)
            self._has_news = False
            return not self._closed

    def _try_update(self, backoff: Backoff) -> float | None:
        """Make one step; returns how long to wait for the next if there is no new state: None after a success."""
        try:
            self.update()
        except FollowTargetError as error:
            self.last_error = error
            logger.error("%s is not followed any more: %s", self.path, error)
            with self._changed:
                self._closed = True
            return 0.0
        except Exception as error:
            # A defect, or want of memory, must not end the updates silently: readers would see an old state for ever.
            if not isinstance(error, LitevfsError | OSError):
                logger.exception("%s stays at TXID %s", self.path, format_txid(self.txid))
            elif self.last_error is None:
                logger.warning("%s stays at TXID %s: %s", self.path, format_txid(self.txid), error)
            self.last_error = error
            return backoff.after(error)
        self.last_error = None
        backoff.reset()
        return None

    # --- one step -----------------------------------------------------------------------------------------------------

    def update(self) -> int:
        """Bring the file to the newest state that the replica has published; returns its TXID.

        Raises FollowTargetError if another program wrote to the file, FollowError if readers or the disk prevent the
        write, and the errors of reading the replica's pages; the file then still holds its state.
        """
        file, snapshot, done = self._file, self._replica.snapshot, self._snapshot
        assert file is not None
        assert snapshot is not None
        if done is not None and (done.epoch, done.txid) == (snapshot.epoch, snapshot.txid):
            return self.txid
        file.recover()
        if not self._is_in(file, snapshot):
            candidates = self._candidates(file, snapshot)
            if candidates is None or not self._is_same_database(file, snapshot):
                file.begin_other_database()
            if candidates is None:
                candidates = all_pgnos(snapshot)
            with PageSpool(snapshot.page_size, self.path.parent) as spool:
                self._collect(file, snapshot, candidates, spool)
                file.replace(spool, snapshot)
        self._snapshot = snapshot
        with self._changed:
            self._changed.notify_all()
        return self.txid

    def _is_in(self, file: FollowedFile, snapshot: Snapshot) -> bool:
        """Whether the file of an earlier follower holds this state already."""
        state = file.state
        return self._snapshot is None and (state.txid, state.timestamp_ms) == (snapshot.txid, snapshot.timestamp_ms)

    def _candidates(self, file: FollowedFile, snapshot: Snapshot) -> NDArray[np.int64] | None:
        """Pages that may have to be written; None if the file's state is of no known history."""
        known = self._snapshot
        if known is not None:
            return changed_pgnos(known, snapshot) if known.epoch == snapshot.epoch else None
        state = file.state
        if not 1 <= state.txid < snapshot.txid:
            return None
        try:
            known = self._replica.view(txid=state.txid, timeout_s=self._options.open_timeout_s)
        except LitevfsError as error:
            logger.info("the state of %s is not on the replica any more, all pages are compared: %s", self.path, error)
            return None
        if known.timestamp_ms != state.timestamp_ms:  # a transaction of another history with that TXID
            return None
        return pgnos_changed_since(snapshot, state.txid)

    def _is_same_database(self, file: FollowedFile, snapshot: Snapshot) -> bool:
        """Whether the file's state, of the same history, is sure to be of the same database as `snapshot`."""
        known = self._snapshot
        return (file.state.whole_txid == snapshot.whole_txid) if known is None else known.database == snapshot.database

    def _collect(self, file: FollowedFile, snapshot: Snapshot, candidates: NDArray[np.int64], spool: PageSpool) -> None:
        """Read the candidates and keep those that differ from what the file holds, and page 1."""
        page_size = snapshot.page_size
        database = file.database
        old_commit = database.size // page_size if file.page_size == page_size else 0
        pages = self._replica.pages
        wanted = candidates[candidates != 1].tolist()
        for pgno, page in read_pages(pages, snapshot, wanted, once=True):
            if self._closed:
                raise FollowError("this follower is closed", key=str(self.path))
            if pgno > old_commit or database.read((pgno - 1) * page_size, page_size) != page:
                spool.add(pgno, page)
        if snapshot.commit:
            spool.add(1, file.first_page(pages.read(snapshot, 1), snapshot.commit))

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()


def follow(
    replica_url: str | os.PathLike[str], path: str | os.PathLike[str], *, overwrite: bool = False, **options: object
) -> Follow:
    """Keep the SQLite file `path` at the newest state of a replica; every program may read it meanwhile.

    Returns when the file holds a state, and goes on in a thread until `close()` (or the end of a `with` block). It
    continues with a file that an earlier `follow` of the same replica left, and reads only the pages changed since.
    Every read transaction of any reader sees exactly one TXID; after a crash at any moment the next reader finds the
    state before or after. Readers wait while pages are written: let them set a busy timeout. `options` are those of
    `connect`.

    Raises FollowTargetError when `path` is another database (`overwrite=True` takes it over) or was written since,
    FollowError when it cannot be written or another process follows to it, and what `connect` raises.
    """
    followed = Follow(Options.of(replica_url, options), Path(parse_text(path)), overwrite=overwrite)
    try:
        followed.start()
    except BaseException:
        followed.close()
        raise
    return followed
