"""What waits for its upload to one place, and how far the place has come. Owns one folder; knows no replica.

    <TXID>-<TXID>.ltx   as captured; where several places wait for it, one file with several names
    place.json          the record of the place (`PlaceRecord`), where the replicator's `state.json` does not say it all

A place has *joined* when every file that is captured goes into its queue. One that joins late, or whose queue was given
up, begins with a file of the whole database: the record says which, and where the replica ended before.
"""

from __future__ import annotations

import io
import json
import os
import threading
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO

from litevfs import local_files
from litevfs.ltx.format import TRAILER_SIZE
from litevfs.ltx.names import parse_file_name
from litevfs.replicate.access import Access, translated

RECORD_NAME = "place.json"
_SPOOL_IN_MEMORY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class PendingFile:
    """One LTX file that waits for its upload. All have one TXID."""

    txid: int
    path: Path
    content: bytes | None = field(default=None, compare=False, repr=False)
    """Of a small file that is in the record of the state, and not at `path`."""

    def open(self) -> BinaryIO:
        """Open it for reading. Raises FileNotFoundError once it is uploaded, or given up."""
        return self.path.open("rb") if self.content is None else io.BytesIO(self.content)

    @property
    def size(self) -> int:
        """Its size in bytes. Raises FileNotFoundError as `open`."""
        return self.path.stat().st_size if self.content is None else len(self.content)

    @property
    def fingerprint(self) -> tuple[int, str]:
        """See the function. Raises FileNotFoundError as `open`."""
        with self.open() as file:
            return fingerprint(file)


def fingerprint(content: BinaryIO) -> tuple[int, str]:
    """(size in bytes, trailer in hex) of an LTX file: enough to know it again."""
    size = content.seek(0, os.SEEK_END)
    content.seek(max(0, size - TRAILER_SIZE))
    return size, content.read().hex()


@dataclass(frozen=True, slots=True)
class PlaceRecord:
    """How far a place has come."""

    replica_url: str
    after: int  # newest TXID known to be on the replica when the place last joined, or left
    first: int  # TXID of the whole database that follows; 0: just the next TXID does
    has_joined: bool

    def pack(self) -> bytes:
        """The file's content."""
        fields = asdict(self)
        return json.dumps({"checksum": checksum(fields), **fields}, indent=1).encode()


def read_record(folder: Path) -> PlaceRecord | None:
    """The record in a folder; None when there is none, or it is damaged."""
    try:
        fields = json.loads((folder / RECORD_NAME).read_bytes())
        is_sound = fields.pop("checksum") == checksum(fields)
        return PlaceRecord(**fields) if is_sound else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


class UploadQueue:
    """The queue of the place at `url`, in `path`. One thread at a time joins, leaves and adds files.

    `is_plain`: without a record, what `state.json` says counts, as for the only place of a database.
    """

    def __init__(self, path: Path, url: str, access: Access, *, is_plain: bool) -> None:
        self.path, self.url, self.is_plain, self._access = path, url, is_plain, access
        self.record = PlaceRecord(url, 0, 0, has_joined=False)
        self.why_not_joined = "the place is a new one"
        self._small: PendingFile | None = None  # one that is in the record of the state
        self._small_lock = threading.Lock()  # of its change: an upload and the next capture may want it at once

    @property
    def is_joined(self) -> bool:
        """Whether what is captured goes into the queue."""
        return self.record.has_joined

    def load(self, url: str | None, txid: int) -> None:
        """Read the record beside a state of `txid`, whose plain queue is that of the place at `url`; None: no state.

        Files that do not count are removed.
        """
        with translated(self.path):
            if url is None:
                self._forget_record()
                self.record = PlaceRecord(self.url, 0, 0, has_joined=False)
                self.discard(self.pending())
                return
            record = read_record(self.path)
            if self.is_plain and record is None and url == self.url:
                record = PlaceRecord(self.url, 0, 0, has_joined=True)
            if record is None or record.replica_url != self.url:
                if self.is_plain:
                    self.why_not_joined = f"the database was replicated to {url} before"
                self.record = PlaceRecord(self.url, 0, 0, has_joined=False)
            elif not record.has_joined:
                self.record = record
                if record.after:
                    self.why_not_joined = "nothing was captured for the place for a while"
            elif record.first > txid:  # the whole database was not captured any more
                self.write(PlaceRecord(self.url, record.after, 0, has_joined=False))
            else:
                self.record = record
            self.discard(file for file in self.pending() if file.txid > txid)

    def join(self, after: int, first: int) -> None:
        """Drop what waits, and go on with the whole database as TXID `first`; the replica ends at TXID `after`."""
        self.leave(after, "the place was about to join")
        self.write(PlaceRecord(self.url, after, first, has_joined=True))

    def go_on_after(self, txid: int) -> None:
        """Join with the TXID after `txid`, which the replica ends at."""
        self.write(PlaceRecord(self.url, txid, 0, has_joined=True))

    def join_alone(self) -> None:
        """Drop what waits, and go on as the only place of the database."""
        with translated(self.path):
            self.discard(self.pending())
            self._forget_record()
        self.record = PlaceRecord(self.url, 0, 0, has_joined=True)

    def jump(self, txid: int, first: int) -> None:
        """After TXID `txid`, whose file is here or was uploaded, goes on with the whole database as TXID `first`."""
        after = self.record.after if self.record.first > txid else txid
        self.write(PlaceRecord(self.url, after, first, has_joined=True))

    def skip_to(self, first: int) -> None:
        """Drop all that waits but the oldest file, which may be on its way, and go on with TXID `first` after it."""
        pending = self.pending()
        after = pending[0].txid if pending else first - 1  # all was uploaded meanwhile
        self.write(PlaceRecord(self.url, after, first, has_joined=True))
        self.discard(pending[1:])

    def leave(self, after: int, why: str, *, keep: int = 0) -> None:
        """Take no files any more, and drop all that wait but the first `keep`; the replica ends at TXID `after`.

        The oldest file may have arrived without an answer: with it, that is seen when the place comes back.
        """
        self.write(PlaceRecord(self.url, after, 0, has_joined=False))
        self.why_not_joined = why
        self.discard(self.pending()[keep:])

    def uploaded(self, txid: int) -> None:
        """Note, for a place that was paused, that the replica ends at TXID `txid`."""
        if not self.is_joined and self.record.after != txid:
            self.write(PlaceRecord(self.url, txid, 0, has_joined=False))

    def pause(self, txid: int, why: str) -> None:
        """Take no files any more after `txid`; those that wait are still to be uploaded. Then the place has to join."""
        after = self.confirmed(txid)
        first = self.record.first if after == self.record.after else 0
        self.write(PlaceRecord(self.url, after, first, has_joined=False))
        self.why_not_joined = why

    def write(self, record: PlaceRecord) -> None:
        """Replace the record; it is on disk when this returns."""
        path = self.path / RECORD_NAME
        with translated(path):
            self._access.make_folder(self.path)
            self._access.replace_synced(path, record.pack())
        self.record = record

    def before(self, txid: int) -> int:
        """The TXID that the replica ends at when the file of `txid` is the next one."""
        return self.record.after if txid == self.record.first else txid - 1

    def next_after(self, txid: int) -> int:
        """The TXID of the file that follows on the replica when it ends at `txid`."""
        record = self.record
        return record.first if record.after <= txid < record.first else txid + 1

    def confirmed(self, txid: int) -> int:
        """The newest TXID that is on the replica for sure, when `txid` is the newest one made."""
        if not self.is_joined or self.record.first > txid:
            return self.record.after
        pending = self.pending()
        return self.before(pending[0].txid) if pending else txid

    def pending(self) -> list[PendingFile]:
        """The files that wait for their upload, by TXID."""
        small = self._small  # first: it may become a file while the folder is listed
        with translated(self.path):
            try:
                files = [(parse_file_name(path.name), path) for path in self.path.iterdir()]
            except FileNotFoundError:
                files = []
        found = sorted(PendingFile(txids[0], path) for txids, path in files if txids)
        return found if small is None or small in found else sorted([*found, small])

    @property
    def has_small(self) -> bool:
        """Whether a file waits that is in the record of the state."""
        return self._small is not None

    def add_small(self, file: PendingFile) -> None:
        """Note a file with its content that waits, and is in the record of the state."""
        with self._small_lock:
            self._small = file

    def put_down_small(self) -> None:
        """Make a file of the one that is in the record of the state, which is about to be written over."""
        with self._small_lock:
            if self._small is not None and self._small.content is not None:
                with translated(self._small.path):
                    self._access.replace_synced(self._small.path, self._small.content)
            self._small = None

    @property
    def begins_now(self) -> bool:
        """Whether the whole database that the place began with is still to be uploaded."""
        pending = self.pending()
        return bool(pending) and pending[0].txid == self.record.first

    def pending_bytes(self) -> int:
        """Bytes of the files that wait for their upload after the whole database, if the place began with one."""
        sizes = []
        for file in self.pending():
            with suppress(FileNotFoundError):  # just uploaded
                sizes.append(file.size if file.txid > self.record.first else 0)
        return sum(sizes)

    def discard(self, files: Iterable[PendingFile]) -> None:
        """Remove pending files."""
        for file in files:
            with self._small_lock:
                if self._small == file:
                    self._small = None
                    continue
            with translated(file.path):
                file.path.unlink(missing_ok=True)

    def spool(self) -> SpooledTemporaryFile[bytes]:
        """A temporary file that has no name, and is in memory as long as it is small."""
        return SpooledTemporaryFile(_SPOOL_IN_MEMORY_BYTES, "w+b", dir=str(self.path))

    def _forget_record(self) -> None:
        path = self.path / RECORD_NAME
        if path.exists():
            path.unlink()
            local_files.fsync_folder(self.path)


def checksum(fields: dict[str, object]) -> int:
    """Checksum of a file's fields: a wrong digit would make a position, or a time, that seems right."""
    return zlib.crc32(json.dumps(fields).encode())
