"""The lease of one replica: which primary may write to it. Owns `lock.json` beside the levels; knows no LTX files.

The form is that of Litestream's own leaser (`s3/leaser.go`): an object `lock.json` with `generation`, `expires_at`
(RFC 3339) and `owner`, made with `If-None-Match: *`, renewed and taken over with `If-Match`. Two fields are added that
Litestream skips: `folder`, the ID of the state folder beside the database, and `run`, that of one replicator. A primary
that ends gives the lease back by letting it expire, so that the generation only grows and the last owner stays known.

The lock of the state folder belongs to one process at a time. So a lease with the ID of our own folder belongs to a
replicator that has ended in some way, and is taken over at once; a lease of another folder when it has expired. That of
the restore before it has the prefix `restore-`: it does not vouch for what the folder's replicator wrote.

Where the storage ignores conditions, or has none (`is_strict` is False), a claim counts when it is still there after a
pause: a primary that overwrote it within that time has the lease. A primary that took more than half the pause between
reading and writing claims again. An owner reads the lease before and after each upload, so it stops when another
primary has claimed it.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from litevfs.errors import (
    ConditionsUnsupportedError,
    OptionError,
    ReplicaConflictError,
    StorageError,
    StoragePreconditionError,
    TransientStorageError,
)
from litevfs.replica_clients.base import SideObject, SideObjects
from litevfs.units import format_timestamp, parse_timestamp_ms

logger = logging.getLogger("litevfs.replicate")

LEASE_NAME = "lock.json"
RESTORING = "restore-"
"""In `folder` before the ID: a primary that restores into this folder's database, and has written nothing."""
PROBE_NAME = "lock-probe.json"
_STALE_ETAG = '"d41d8cd98f00b204e9800998ecf8427e"'
"""Where etags are MD5 sums, that of an empty object, which the test object never is; elsewhere no object has it."""
DEFAULT_TTL_S = 30.0
"""Litestream's DefaultLeaseTTL."""

_ATTEMPTS = 5
_READINGS = 2
"""Of a lease before another primary is believed to have it: bytes can be damaged on their way."""
_SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The content of `lock.json`."""

    generation: int  # one more at each change of owner
    expires_at_ms: int  # Unix time, milliseconds
    owner: str  # host:process
    folder: str = ""  # ID of the owner's state folder; empty for Litestream's
    run: str = ""  # ID of the replicator

    def pack(self) -> bytes:
        """The object's content."""
        fields = {"generation": self.generation, "expires_at": format_timestamp(self.expires_at_ms)}
        return json.dumps(fields | {"owner": self.owner, "folder": self.folder, "run": self.run}).encode()

    @classmethod
    def unpack(cls, data: bytes) -> LeaseRecord:
        """The lease in an object's content. Raises ValueError if it is none."""
        fields = json.loads(data)
        if not isinstance(fields, dict) or not isinstance(fields.get("expires_at"), str):
            raise ValueError("not a lease")
        text = {name: str(fields.get(name, "")) for name in ("owner", "folder", "run")}
        try:
            return cls(int(fields.get("generation", 0)), parse_timestamp_ms(fields["expires_at"]), **text)
        except (OptionError, TypeError) as exc:
            raise ValueError("not a lease") from exc


class Lease:
    """The lease as one replicator has it, or not. Safe to use from several threads.

    `folder` is the ID of its state folder, `clock_ms` the Unix time, `closed` ends every pause. Makes no request
    before the first `hold`.
    """

    def __init__(
        self,
        client: SideObjects,
        url: str,
        folder: str,
        closed: threading.Event,
        clock_ms: Callable[[], int],
        *,
        ttl_s: float = DEFAULT_TTL_S,
        settle_s: float = _SETTLE_S,
    ) -> None:
        self._client, self._url, self._closed, self._clock_ms = client, url, closed, clock_ms
        self._folder, self._run = folder, secrets.token_hex(8)
        self._pid = os.getpid()
        self._owner = f"{socket.gethostname()}:{self._pid}"
        self.ttl_s, self._settle_s = ttl_s, settle_s
        self._lock = threading.Lock()
        self._etag: str | None = None  # of the lease while it is held
        self._generation = 0
        self._renew_at = 0.0  # monotonic
        self.is_strict: bool | None = None
        """Whether the storage keeps conditions; None before the lease has tried."""
        self.last_folder: str | None = None
        """ID of the state folder of the previous owner; None if there was no lease at all."""

    @property
    def is_held(self) -> bool:
        """Whether the lease is ours, as far as is known here."""
        return self._etag is not None and os.getpid() == self._pid

    @property
    def renew_in_s(self) -> float:
        """Seconds until `hold` has something to do."""
        return max(0.0, self._renew_at - time.monotonic())

    def hold(self) -> bool:
        """Take the lease, or renew it when due; returns whether it was taken, so that others may have written before.

        Raises ReplicaConflictError while another has it, StorageError.
        """
        with self._lock:
            if self.is_strict is None:
                self.is_strict = _keeps_conditions(self._client)
            if self._etag is None:
                self._acquire()
                return True
            if time.monotonic() >= self._renew_at:
                self._renew()
            return False

    def check(self) -> None:
        """If conditions are ignored: read whether the lease is ours. Raises ReplicaConflictError, StorageError."""
        with self._lock:
            if self.is_strict is False and self._etag is not None:
                self._check()

    def release(self) -> None:
        """Let it expire now, if it is ours. Does nothing in a forked process. Raises StorageError."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._etag is None:
                return
            if not self.is_strict:
                self._check()
            etag, self._etag = self._etag, None
            record = LeaseRecord(self._generation, self._clock_ms() - 1, self._owner, self._folder, self._run)
            self._client.put_object(LEASE_NAME, record.pack(), if_match=etag if self.is_strict else None)

    # --- taking it ----------------------------------------------------------------------------------------------------

    def _acquire(self) -> None:
        for _ in range(_ATTEMPTS):
            if self._try_to_acquire():
                return
        raise TransientStorageError("the lease changes all the time", key=f"{self._url}: {LEASE_NAME}")

    def _try_to_acquire(self) -> bool:
        began = time.monotonic()
        there, before = self._read()
        if before is not None and not self._is_own(before.folder):
            if self._read()[1] != before:  # no checksum covers it, and a wrong digit may end it
                return False
            if before.expires_at_ms > self._clock_ms():
                raise self._held(before)
        if before is None or before.run != self._run:
            self.last_folder = None if before is None else before.folder
        self._generation = 1 + (0 if before is None else before.generation)
        try:
            if not self.is_strict:
                return self._claim(began)
            self._write(None if there is None else there.etag, is_new=there is None)
            if there is not None or self._client.keeps_conditions:
                return True
            return self._write(self._etag)  # shows that the storage takes an etag that holds
        except StoragePreconditionError:
            self._etag = None
            now = self._client.read_object(LEASE_NAME)
            if (now and now.etag) == (there and there.etag):
                self.is_strict = False  # the storage refuses a condition that holds
            return False

    def _is_own(self, folder: str) -> bool:
        """Whether a lease of this folder is that of our own, whose lock we hold."""
        return folder.removeprefix(RESTORING) == self._folder.removeprefix(RESTORING)

    def _write(self, etag: str | None, *, is_new: bool = False) -> bool:
        began = time.monotonic()
        data = self._record().pack()
        self._etag = self._client.put_object(LEASE_NAME, data, if_match=etag, if_absent=is_new)
        self._renew_at = began + self.ttl_s / 2
        return True

    def _claim(self, began: float) -> bool:
        self._write(None)
        took_s = time.monotonic() - began
        self._closed.wait(self._settle_s)
        try:
            self._check()
        except BaseException:
            self._etag = None
            raise
        if took_s > self._settle_s / 2:
            self._etag, self._settle_s = None, 4 * took_s
            return False
        return True

    # --- keeping it ---------------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        if not self.is_strict:
            self._check()
            self._write(None)
            return
        try:
            self._write(self._etag)
        except StoragePreconditionError:
            self._check(is_gone_allowed=True)

    def _check(self, *, is_gone_allowed: bool = False) -> None:
        """Read whether the lease is still ours; the answer to our last write may have been lost."""
        for _ in range(_READINGS):
            there, record = self._read()
            if record is not None and record.run == self._run and there is not None:
                self._etag = there.etag
                return
        self._etag = None
        if record is None and is_gone_allowed:  # perhaps deleted with the whole replica; the next `hold` takes it again
            raise TransientStorageError("the lease was removed", key=f"{self._url}: {LEASE_NAME}")
        raise self._held(record)

    def _record(self) -> LeaseRecord:
        expires_at_ms = self._clock_ms() + int(self.ttl_s * 1000)
        return LeaseRecord(self._generation, expires_at_ms, self._owner, self._folder, self._run)

    def _read(self) -> tuple[SideObject | None, LeaseRecord | None]:
        """The lease that is there, if any. Raises ReplicaConflictError for what is none at the second reading, too."""
        failure: ValueError | None = None
        for _ in range(_READINGS):
            there = self._client.read_object(LEASE_NAME)
            try:
                return there, None if there is None else LeaseRecord.unpack(there.data)
            except ValueError as exc:
                failure = exc
        raise ReplicaConflictError(
            f"{LEASE_NAME} beside the replica is not a lease",
            key=self._url,
            hint=f"find out who made it; remove it if that was a mistake, or say --no-lease ({failure})",
        ) from failure

    def _held(self, record: LeaseRecord | None) -> ReplicaConflictError:
        if record is None:
            return ReplicaConflictError("the lease of this replica was removed by another", key=self._url)
        until = format_timestamp(record.expires_at_ms)
        return ReplicaConflictError(
            f"another primary has the lease of this replica: {record.owner or 'unknown'} until {until}",
            key=self._url,
            hint="end that one, which gives the lease back; after a crash of it, wait until then",
        )


def _keeps_conditions(client: SideObjects) -> bool:
    """Try whether the storage refuses what conditions forbid, on an object that no program uses; it stays there.

    That it takes what they allow shows when the lease is taken.
    """
    if client.keeps_conditions:
        return True
    try:
        return _refuses(lambda: client.put_object(PROBE_NAME, b"{}", if_absent=True), attempts=2) and _refuses(
            lambda: client.put_object(PROBE_NAME, b"{}", if_match=_STALE_ETAG), attempts=1
        )
    except ConditionsUnsupportedError:
        return False


def _refuses(put: Callable[[], object], attempts: int) -> bool:
    for _ in range(attempts):
        try:
            put()
        except StoragePreconditionError:
            return True
    return False


def keep(lease: Lease, closed: threading.Event, path: Path) -> float:
    """Renew the lease if it is held and that is due; log an error. Returns the seconds until the next call."""
    if lease.is_held:
        try:
            lease.hold()
            return max(lease.renew_in_s, 0.01)
        except (StorageError, ReplicaConflictError) as error:
            if not closed.is_set():
                logger.warning("%s: the lease was not renewed: %s", path, error)
    return lease.ttl_s / 10
