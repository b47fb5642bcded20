"""The replicator's files beside the database, in the folder `.<database>-litevfs`; they survive any end of the process.

    lock         held by the replicator that runs; its text is that process's number
    state.json   the position: which TXID came last, and where in the WAL the next one begins (`slots.py`); and the file
                 of that TXID, if it is small, and the database has one place
    owner.json   the folder's ID (`marks.py`)
    pages.sums   sums of the pages of the database at that TXID, and pages.log (`known_pages.py`)
    pending/     LTX files that are not yet known to be on the replica; of several places, the queue of one
    places/      the queues of the others, a folder each (`upload_queue.py`)

A file is in each queue first, then `state.json` counts it, then it is uploaded, then it is removed from that queue. So
a pending file beyond `state.json` was never uploaded and is made again, and one that is uploaded twice has the same
content. A small file is on disk with the record that counts it, by one sync; it becomes a file of the queue only when
the next record is made before it is uploaded, or when another process goes on. `access.py` says who may read the files.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

from litevfs import local_files
from litevfs.errors import ReplicatorError, ReplicatorLockedError
from litevfs.ltx.names import format_file_name
from litevfs.replicate.access import Access, translated
from litevfs.replicate.known_pages import FileKey, KnownPages
from litevfs.replicate.marks import folder_id, state_folder
from litevfs.replicate.slots import SlotFile
from litevfs.replicate.upload_queue import PendingFile, UploadQueue, read_record
from litevfs.replicate.wal import WALPosition

logger = logging.getLogger("litevfs.replicate")

_SLOT_SIZE = 16384
SMALL_FILE_BYTES = 11_000
"""A file up to this size goes into the record of the state: with 4/3 of its size and the other fields, it fits."""


@dataclass(frozen=True, slots=True)
class State:
    """Where the replicator stands after TXID `txid`."""

    replica_url: str  # of the place whose queue is `pending/`
    inode: int  # of the database file: another file is another database
    page_size: int  # bytes
    txid: int
    timestamp_ms: int  # of that TXID's file
    file_size: int  # bytes of that TXID's file
    file_trailer: str  # and its last 16 bytes, in hex: enough to know it again
    position: WALPosition  # in the WAL, after that TXID
    schema_version: int | None = None  # after that TXID; None: not known
    schema_read_at: int | None = None  # the version that the schema had when `schema_sum` was computed; None: never
    schema_sum: str | None = None  # None: the schema cannot be read
    written_ns: int | None = None  # when the database file was last written, as it says; None: not known

    @property
    def key(self) -> FileKey:
        """Which file the state ends with."""
        return FileKey(self.txid, self.file_size, self.file_trailer)


class PendingLimitError(ReplicatorError):
    """The files that wait for their upload have reached the limit."""


class StateFolder:
    """The folder of one database, held exclusively from construction to `close`. Raises ReplicatorLockedError."""

    def __init__(self, database: Path) -> None:
        self.path = state_folder(database)
        self._database = database
        self._pending, self._places = self.path / "pending", self.path / "places"
        self._state = self.path / "state.json"
        self._slots = SlotFile(self._state, _SLOT_SIZE)
        self._holds_small = False  # whether the record on disk has a file that is uploaded, or waits
        self._lock = self.path / "lock"
        self._lock_fd: int | None = None
        self._lock_pid = 0
        self.id = ""
        """ID that tells this folder from all others, also from copies of it."""
        self._access = Access(database)
        self.queues = [UploadQueue(self._pending, "", self._access, is_plain=True)]
        """One for each place."""
        self.known_pages = KnownPages(self.path, self._access, self.is_held)
        """What the TXID of the state holds, page by page."""
        self.take()

    def take(self) -> None:
        """Make the folder, unless it is there, and hold it. Raises ReplicatorLockedError."""
        self.close()
        self._access.refresh()
        with translated(self.path):
            for folder in (self.path, self._pending):
                self._access.make_folder(folder)
            for queue in self.queues:
                self._make_folder_of(queue)
            self._lock_fd, self._lock_pid = self._access.open(self._lock, os.O_RDWR | os.O_CREAT), os.getpid()
            try:
                _lock(self._lock_fd, self._database)
                self._remove_leftovers()
                self._put_down_small()
                self.id = folder_id(self.path, os.fstat(self._lock_fd), self._access.open)
            except BaseException:
                self.close()
                raise

    def is_held(self) -> bool:
        """Whether the folder at the path is the held one; another program may have removed it and made a new one."""
        if self._lock_fd is None:
            return False
        with translated(self._lock):
            try:
                # Each capture asks this several times, so with the text of the path that is at hand.
                return os.path.samestat(os.stat(str(self._lock)), os.fstat(self._lock_fd))  # noqa: PTH116
            except (FileNotFoundError, NotADirectoryError):
                return False

    def close(self) -> None:
        """Release the lock, so that another replicator may take the folder. Idempotent."""
        with suppress(OSError, ReplicatorError):  # then the next replicator finds that it was uploaded
            self._forget_small()
        if self._lock_fd is not None and os.getpid() == self._lock_pid:
            self.known_pages.sync()
        fd, self._lock_fd = self._lock_fd, None
        if fd is not None:
            if os.getpid() == self._lock_pid:  # a process forked from this one has the descriptor, too, and keeps it
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def open_queues(self, urls: Sequence[str]) -> list[UploadQueue]:
        """The queues of the places at these URLs, in their order. What waits for other places is removed.

        How far those had come stays known, for the day that they come back. Raises ReplicatorError.
        """
        state = self._read()
        before = None if state is None else state.replica_url
        found = [(folder, read_record(folder)) for folder in self._places.glob("*")] if self._places.exists() else []
        if state is None:
            for folder, _ in found:
                UploadQueue(folder, "", self._access, is_plain=False).load(None, 0)
            found = []
        known = {record.replica_url: record for _, record in found if record is not None}
        plain = before if before in urls else next((url for url in urls if url not in known), None)
        self.queues = [self._queue(url, is_plain=url == plain) for url in urls]
        if state is not None:
            for url in known.keys() - set(urls):
                queue = self._queue(url, is_plain=False)
                queue.load(before, state.txid)
                queue.leave(queue.confirmed(state.txid), "", keep=1)
            if before not in urls and any(known[url].has_joined for url in urls if url in known):
                self._leave_plain(state, plain or "")
            if not before and plain is None:  # what was captured while no place had joined
                leftover = UploadQueue(self._pending, "", self._access, is_plain=True)
                leftover.discard(leftover.pending())
        return self.queues

    def load(self) -> State | None:
        """The state last saved; None when there is none, or it is damaged.

        Pending files that it does not count are removed.
        """
        state = self._read()
        for queue in self.queues:
            queue.load(*((None, 0) if state is None else (state.replica_url, state.txid)))
        self.known_pages.open(None if state is None else state.key)
        return state

    def save(self, state: State, small: bytes | None = None) -> None:
        """Replace the state; it is on disk when this returns, and so is the file of its TXID, if that is `small`."""
        with translated(self._state):
            self._check_held()
            for queue in self.queues:
                queue.put_down_small()
            fields = _fields(state) | {"position": _fields(state.position)}
            if small is not None:
                fields["file"] = base64.b64encode(small).decode()
            self._slots.write(fields, self._replace_state)
            self._holds_small = small is not None
            if small is not None:
                self.queues[0].add_small(PendingFile(state.txid, self._pending_path(state.txid), small))

    @property
    def takes_small(self) -> bool:
        """Whether a small file may go into the record of the state: it waits for one place only, which has joined."""
        return len(self.queues) == 1 and self.queues[0].is_plain and self.queues[0].is_joined

    def _replace_state(self, data: bytes) -> None:
        temp = self._state.with_suffix(".tmp")
        self._access.write_synced(temp, [data])
        self._check_held()
        local_files.replace_synced(temp, self._state)

    def reset(self) -> None:
        """Forget everything: the state, the pending files and what is known of pages."""
        self.known_pages.forget()
        with translated(self._state):
            self._state.unlink(missing_ok=True)
            local_files.fsync_folder(self.path)
        for queue in [*self.queues, UploadQueue(self._pending, "", self._access, is_plain=True)]:
            queue.discard(queue.pending())

    def add_pending(self, txid: int, parts: Iterable[bytes]) -> PendingFile:
        """Write one LTX file for all places that have joined; when this returns, it is whole and on disk for each.

        After an error, `load` removes what is there of it.
        """
        name = self._pending_path(txid).name
        temp = (self._pending / name).with_suffix(".tmp")
        for queue in self.queues:
            if not (queue.is_plain or queue.path.exists()):  # removed by another program
                self._access.make_folder(self._places)
                queue.write(queue.record)
        *others, last = [queue.path for queue in self.queues if queue.is_joined] or [self._pending]
        with translated(last / name), local_files.removing_on_error(temp):
            self._access.write_synced(temp, parts)
            self._check_held()
            for folder in others:
                self._access.link_synced(temp, folder / name)
            local_files.replace_synced(temp, last / name)
        return PendingFile(txid, last / name)

    def spool(self) -> SpooledTemporaryFile[bytes]:
        """A temporary file that has no name, and is in memory as long as it is small."""
        return self.queues[0].spool()

    def make_room(self, limit: int | None, txid: int, *, is_whole: bool) -> None:
        """Where more than `limit` bytes wait for some places, capture nothing more for these until they join again.

        `is_whole`: the whole database comes next; places for which too much waits begin with it instead. Raises
        PendingLimitError when so much waits for each; None: no limit. `txid` is the newest one made.
        """
        if limit is None:
            return
        joined = [queue for queue in self.queues if queue.is_joined] or self.queues[:1]
        waiting = {queue.url: queue.pending_bytes() for queue in joined}
        full = [queue for queue in joined if waiting[queue.url] > limit]
        if full and len(full) == len(joined):
            raise PendingLimitError(
                f"{waiting[full[0].url]:,} bytes wait for their upload, more than the {limit:,} allowed, and nothing "
                "more is captured",
                key=str(self.path),
                hint="see what keeps uploads from succeeding; what has changed by then is captured after that",
            )
        skipping = [queue for queue in full if is_whole and not queue.begins_now]
        for queue in (queue for queue in full if queue not in skipping):
            why = f"{waiting[queue.url]:,} bytes wait for their upload, more than the {limit:,} allowed"
            logger.warning("%s: nothing more is captured for %s: %s", self._database, queue.url, why)
            queue.pause(txid, why)
        for queue in joined if is_whole and len(joined) > 1 else ():
            if queue in skipping:
                queue.skip_to(txid + 1)
            elif queue.is_joined and queue.record.first <= txid:
                queue.jump(txid, txid + 1)

    def _queue(self, url: str, *, is_plain: bool) -> UploadQueue:
        folder = self._pending if is_plain else self._places / hashlib.sha256(url.encode()).hexdigest()[:16]
        queue = UploadQueue(folder, url, self._access, is_plain=is_plain)
        with translated(folder):
            self._make_folder_of(queue)
        return queue

    def _make_folder_of(self, queue: UploadQueue) -> None:
        if not queue.is_plain:
            self._access.make_folder(self._places)
            self._access.make_folder(queue.path)

    def remember_plain(self, state: State) -> None:
        """Note how far the place has come whose queue is `pending/`, if it is none of the places any more."""
        url = state.replica_url
        if url and all(queue.url != url for queue in self.queues):
            before = UploadQueue(self._pending, url, self._access, is_plain=True)
            before.load(url, state.txid)
            left = self._queue(url, is_plain=False)
            left.leave(before.confirmed(state.txid), "")
            for file in before.pending()[:1]:
                with translated(left.path):
                    self._access.link_synced(file.path, left.path / file.path.name)

    def _leave_plain(self, state: State, url: str) -> None:
        """Other places go on without the one whose queue is `pending/`, which may be that of the one at `url` now."""
        self.remember_plain(state)
        now = UploadQueue(self._pending, url, self._access, is_plain=True)
        now.leave(0, "")
        self.save(replace(state, replica_url=url))

    def _read(self) -> State | None:
        try:
            fields = self._slots.read()
            if fields is None:
                return None
            fields.pop("file", None)
            return State(**(fields | {"position": WALPosition(**fields["position"])}))
        except (OSError, TypeError, KeyError):
            return None

    def _pending_path(self, txid: int) -> Path:
        return self._pending / format_file_name(txid, txid)

    def _put_down_small(self) -> None:
        """Make a file of the one in the record of the state: from here on, `pending/` says what waits."""
        fields = self._slots.read()
        if fields is not None and "file" in fields:
            path = self._pending_path(fields["txid"])
            with translated(path):
                self._access.replace_synced(path, base64.b64decode(fields["file"]))
            self._write_without_file(fields)

    def _forget_small(self) -> None:
        """Drop the file in the record, if it is uploaded; a process forked from this one leaves it alone."""
        is_waiting = any(queue.has_small for queue in self.queues)
        if self._holds_small and not is_waiting and os.getpid() == self._lock_pid and self.is_held():
            self._holds_small = False
            fields = self._slots.read()
            if fields is not None:
                self._write_without_file(fields)

    def _write_without_file(self, fields: dict[str, Any]) -> None:
        fields.pop("file", None)
        self._slots.write(fields, self._replace_state)

    def _check_held(self) -> None:
        if not self.is_held():
            raise ReplicatorError("the replicator's local state was removed", key=str(self.path))

    def _remove_leftovers(self) -> None:
        for temp in [*self._pending.glob("*.tmp"), *self.path.glob("*.tmp"), *self.path.glob("places/*/*.tmp")]:
            temp.unlink(missing_ok=True)


def _fields(record: State | WALPosition) -> dict[str, Any]:
    """As `dataclasses.asdict`, without its copies."""
    return {name: getattr(record, name) for name in record.__slots__}


def _lock(fd: int, database: Path) -> None:
    try:
        local_files.lock(fd)
    except BlockingIOError as exc:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip()
        raise ReplicatorLockedError(
            f"process {owner or 'unknown'} replicates this database already", key=str(database)
        ) from exc
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
