"""Uploads what was captured, and tells when a new history has to begin on a replica instead. Owns no thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event
from typing import BinaryIO

from litevfs.concurrency.retry import Backoff, retry
from litevfs.errors import LitevfsError, LTXFormatError, StorageFileExistsError
from litevfs.ltx.decoder import StreamDecoder
from litevfs.ltx.format import HEADER_SIZE, Header, lock_pgno
from litevfs.maintenance.compaction import store_as_snapshot
from litevfs.replica_clients.base import LTXFileInfo, ReplicaClient
from litevfs.replicate.guard import WriterGuard
from litevfs.replicate.replica_position import (
    ReplicaPosition,
    changed,
    conflict,
    fingerprints,
    is_same_file,
    lost_uploads,
    replica_position,
    written_by_others,
)
from litevfs.replicate.state import State
from litevfs.replicate.upload_queue import PendingFile, UploadQueue, fingerprint

_FEED_BYTES = 1 << 16
"""Bytes decoded at once: a damaged file can make 255 times as many bytes of pages of them."""


@dataclass(frozen=True, slots=True)
class BeginReason:
    """Why a new history has to begin, after the replica's newest TXID."""

    text: str
    is_ours: bool  # the replica's files were made here; otherwise the database may have nothing to do with them


class Uploads:
    """Uploads the files of `queue`, one TXID after the other. For one thread at a time.

    `folder_id` is that of the state folder.
    """

    def __init__(
        self, client: ReplicaClient, queue: UploadQueue, guard: WriterGuard, folder_id: Callable[[], str]
    ) -> None:
        self._client, self._queue, self._guard, self._folder_id = client, queue, guard, folder_id
        self.txid = 0
        """The newest TXID known to be on the replica, 0 while nothing is known."""
        self.files = self.bytes = 0
        self.lost: str | None = None
        """Why the next TXID cannot be uploaded any more, and a new history has to begin; None when it can."""
        self.is_snapshot_due = False
        """Whether the next file that holds the whole database goes to level 9 too."""
        self._page_size: int | None = None  # bytes; of the newest file of the replica, None while it is empty

    def look(self, state: State | None, *, is_first: bool) -> tuple[ReplicaPosition, BeginReason | None]:
        """The replica's position, and why that cannot be continued from `state`; None if it can.

        `is_first`: the TXID on the replica is not known yet. Once it is, files of others raise ReplicaConflictError.
        """
        pending = self._queue.pending()
        confirmed = self.txid
        if is_first:
            # A pending file may hold the whole database, due for level 9 when the process that made it was killed.
            self.is_snapshot_due |= bool(pending)
            confirmed = 0 if state is None else self._queue.confirmed(state.txid)
        there = replica_position(self._client, confirmed)
        if is_first and there.header is not None:
            self._page_size = there.header.page_size
        reason = self._why_begin(there, state, pending, confirmed, is_first=is_first)
        if reason is None:
            self.txid = confirmed
        return there, reason

    def _why_begin(
        self, there: ReplicaPosition, state: State | None, pending: list[PendingFile], confirmed: int, *, is_first: bool
    ) -> BeginReason | None:
        if state is None:
            # Another program can remove local state under a replicator that runs.
            is_ours = 0 < there.txid <= self.txid
            return BeginReason(
                "there is no local state to continue from" if there.newest else "the first sync", is_ours
            )
        if not self._queue.is_joined:
            if not is_first:
                self._refuse_others(there, replace(state, txid=pending[-1].txid if pending else confirmed), pending)
                return None if pending and self.lost is None else BeginReason(self._queue.why_not_joined, is_ours=True)
            return BeginReason(self._queue.why_not_joined, self._is_known_here(there, pending))
        if self.lost is not None:
            return BeginReason(self.lost, is_ours=True)
        foreign = written_by_others(self._client, there, state, pending) or self._in_the_gap(there, pending)
        if foreign is not None:
            if not is_first:
                raise conflict(foreign, key=self._client.url)
            return BeginReason(foreign, is_ours=False)
        lost = lost_uploads(self._client, there, state, confirmed)
        return None if lost is None else BeginReason(lost, not is_first or self._guard.wrote_last(self._folder_id()))

    def _is_known_here(self, there: ReplicaPosition, pending: list[PendingFile]) -> bool:
        """Whether the replica of a place that had left is what it was then, as far as TXIDs and the lease tell.

        The oldest file that waited may have arrived since, without an answer.
        """
        expected = fingerprints(pending[:1]).get(there.txid)
        file = next((file for file in there.files if file.max_txid == there.txid), None)
        has_arrived = file is not None and is_same_file(self._client, file, expected)
        is_as_left = 0 < there.txid <= self._queue.record.after
        return (is_as_left or has_arrived) and self._guard.wrote_last(self._folder_id())

    def _refuse_others(self, there: ReplicaPosition, state: State, pending: list[PendingFile]) -> None:
        foreign = written_by_others(self._client, there, state, pending)
        if foreign is not None:
            raise conflict(foreign, key=self._client.url)

    def _in_the_gap(self, there: ReplicaPosition, pending: list[PendingFile]) -> str | None:
        record = self._queue.record
        known = max(self.txid, record.after)
        if pending and pending[0].txid == record.first and known < there.txid < record.first:
            return f"the replica holds TXID {there.txid:016x}, newer than {known:016x} when it was looked at"
        return None

    def go_on(self, txid: int) -> None:
        """Note that the replica ends at `txid`, and is gone on with."""
        self.txid, self.lost = txid, None
        self._guard.forget()

    def begin(self, txid: int) -> None:
        """Note that a new history begins after `txid`."""
        self.go_on(txid)
        self.is_snapshot_due |= txid > 0  # so that no state depends on older files, of which little is known

    def run(self, newest: int, check_open: Callable[[], None]) -> None:
        """Upload everything up to TXID `newest`, unless `lost` says that it cannot be done.

        Raises StorageError, ReplicaConflictError.
        """
        for file in self._queue.pending():
            if file.txid > newest:  # a capture is under way in another thread
                break
            if file.txid > self.txid:
                self.check()
            self.lost = self._upload(file)
            if self.lost is not None:
                return
            check_open()  # an upload can take longer than a close waits, and then the file is the next replicator's
            self._queue.uploaded(self.txid)
            self._queue.discard([file])
            self._queue.uploaded(self.txid)  # it may have been paused in between
        if self._queue.next_after(self.txid) <= newest and self._queue.is_joined:
            self.lost = self._gone(newest)

    def has_all(self, newest: int) -> bool:
        """Whether everything up to TXID `newest` is known to be on the replica."""
        return self._queue.is_joined and self.lost is None and self.txid >= newest

    def check(self) -> None:
        """If it is time, check that no other writes. Raises ReplicaConflictError, StorageError."""
        if not self._guard.is_needed:
            return
        pending = fingerprints(self._queue.pending())

        def is_ours(there: LTXFileInfo) -> bool:
            return is_same_file(self._client, there, pending.get(there.max_txid))

        self._guard.check(self.txid, is_ours)

    def _upload(self, file: PendingFile) -> str | None:
        """Upload the file, unless the replica has it; returns why that is impossible, or None when it is done."""
        if file.txid > self._queue.next_after(self.txid):
            return self._gone(file.txid)
        if file.txid <= self.txid:
            return None
        try:
            with file.open() as content:
                whole, leaves_gap = header_of_whole(file, content), file.txid > self.txid + 1
                if leaves_gap and whole is None:
                    return self._gone(file.txid)
                there = upload(self._client, file, content)
                self._guard.uploaded(there, fingerprint(content))
                self._count(there.size)
                if whole is not None:
                    if leaves_gap or self.is_snapshot_due or self._page_size not in (None, whole.page_size):
                        content.seek(0)
                        with self._queue.spool() as spool:
                            self._count(store_as_snapshot(self._client, content, spool).size)
                        self.is_snapshot_due = False
                    self._page_size = whole.page_size
        except LTXFormatError as exc:
            return f"a file that waited for its upload is damaged: {exc.message} ({file.path})"
        except FileNotFoundError as exc:
            if isinstance(exc, LitevfsError):
                raise
            return self._gone(file.txid)
        self.txid = file.txid
        return None

    def _gone(self, wanted: int) -> str | None:
        """Why TXID `wanted`, or one before it, cannot be uploaded; None where the whole database comes after it."""
        if wanted < self._queue.record.first:  # what waited for too long was dropped just now
            return None
        txid = self._queue.next_after(self.txid)
        return f"a file that waited for its upload is gone: TXID {txid:016x} (in {self._queue.path})"

    def _count(self, size: int) -> None:
        self.files += 1
        self.bytes += size


def header_of_whole(file: PendingFile, content: BinaryIO) -> Header | None:
    """The header of `file` if its content is every page. Reads and verifies all of it; raises LTXFormatError."""
    if file.content is not None:  # not read back from a disk, and such a file never does
        return None
    decoder = StreamDecoder()
    pages = 0
    while part := content.read(_FEED_BYTES):
        pages += len(decoder.feed(part))
    decoder.finish()
    header = decoder.header
    assert header is not None, "a file without a header is not sound"
    if (header.min_txid, header.max_txid) != (file.txid, file.txid):
        raise LTXFormatError(f"the header says TXIDs {header.min_txid:016x}-{header.max_txid:016x}")
    return header if pages == header.commit - (lock_pgno(header.page_size) <= header.commit) else None


def upload(client: ReplicaClient, file: PendingFile, content: BinaryIO) -> LTXFileInfo:
    """Upload one file, with this content, as the first of its TXID; returns it as the replica has it.

    The replica may have it already, if the answer to an upload got lost. Raises ReplicaConflictError if the replica has
    another file of that TXID, which stays as it is, and StorageError.
    """
    content.seek(0)
    header = Header.unpack(content.read(HEADER_SIZE))
    content.seek(0)
    try:
        data = content if file.content is None else file.content
        return client.write(0, file.txid, file.txid, data, header.timestamp_ms, exclusive=True)
    except StorageFileExistsError as exc:
        exists = exc
    expected = fingerprint(content)
    for there in client.list_files(0, file.txid):
        if (there.min_txid, there.max_txid) == (file.txid, file.txid):
            if is_same_file(client, there, expected):
                return there
            raise conflict(f"TXID {file.txid:016x} is there, but not from here", key=client.key(there)) from exists
    raise changed(exists.key or client.url) from exists


def retry_transient(attempt: Callable[[], None], deadline: float, closed: Event) -> None:
    """Call `attempt` until it succeeds; again only after a TransientStorageError and before `deadline` (monotonic)."""

    def pause(seconds: float, error: LitevfsError) -> None:
        if closed.wait(seconds):
            raise error

    retry(attempt, Backoff.within(deadline - time.monotonic()), until=deadline, pause=pause)
