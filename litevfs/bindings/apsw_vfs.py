"""The SQLite VFS: offset to page number, lock to snapshot. The only module that speaks APSW's names.

Taking the SHARED lock is taking the newest snapshot; SQLite holds that lock for exactly one read transaction. SQLite is
told that the file is an unchanging-until-unlocked rollback-journal database: page 1 says so (see `PageSource`), no
journal or WAL beside it exists, and nobody ever holds a write lock. Everything that is not a replica's main database,
temporary files and sorters above all, goes to the default VFS.

Errors reach the caller as they are: APSW hands on the exception object, and SQLite gets the code it carries.
"""

from __future__ import annotations

import logging
from functools import partial
from urllib.parse import quote
from zlib import crc32

import apsw

from litevfs.errors import OptionError
from litevfs.live.pragmas import answer_pragma
from litevfs.live.registry import registry
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.pages.watcher import Watcher
from litevfs.states.snapshot import Snapshot

logger = logging.getLogger("litevfs.bindings.apsw_vfs")

NONE, SHARED = apsw.SQLITE_LOCK_NONE, apsw.SQLITE_LOCK_SHARED
DEFAULT_PAGE_SIZE = 4096
_SIDE_FILES = ("-journal", "-wal")


class ReplicaVFS(apsw.VFS):
    """Opens replicas as read-only databases."""

    def __init__(self, name: str, keywords: dict[str, object]) -> None:
        self.name = name
        self.keywords = keywords
        super().__init__(name, base="")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        """A replica for a main database, else a file of the default VFS."""
        if not flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            return apsw.VFSFile("", name, flags)
        options = Options.collect(_uri_parameters(name), self.keywords)
        if not options.replica_url:
            raise OptionError("no replica URL", hint=_no_url_hint(name))
        file = ReplicaFile(options)
        if isinstance(name, apsw.URIFilename) and (
            name.uri_boolean("nolock", False) or name.uri_boolean("immutable", False)
        ):
            try:
                file.xLock(SHARED)  # SQLite will not, and would read pages of one state after the other
            except BaseException:
                file.xClose()  # which SQLite will not either: it has no file yet
                raise
        flags[1] = flags[0] & ~(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) | apsw.SQLITE_OPEN_READONLY
        return file  # type: ignore[return-value]  # any object with the methods of a VFSFile will do

    def xAccess(self, pathname: str, flags: int) -> bool:
        """A replica has no journal and no WAL, whatever lies in the current folder."""
        return not pathname.endswith(_SIDE_FILES) and super().xAccess(pathname, flags)

    def xFullPathname(self, name: str) -> str:
        """The name as it is: it is a label, not a path."""
        return name


def _uri_parameters(name: str | apsw.URIFilename | None) -> dict[str, str]:
    if not isinstance(name, apsw.URIFilename):
        return {}
    return {key: name.uri_parameter(key) or "" for key in name.parameters}


def _no_url_hint(name: str | apsw.URIFilename | None) -> str:
    path = name.filename() if isinstance(name, apsw.URIFilename) else name
    return (
        "add ?replica_url=... to the URI (and open with SQLITE_OPEN_URI), or set LITESTREAM_REPLICA_URL; for an "
        f"ordinary file, as in VACUUM INTO and ATTACH, write 'file:{quote(path or 'x.db')}?vfs={apsw.vfs_names()[0]}'"
    )


class ReplicaFile:
    """One connection's view of a replica: the pinned snapshot, and page 1 as SQLite has to see it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._lease = registry.acquire(options)
        self.replica: Replica = self._lease.replica
        self._max_staleness_s = options.max_staleness_s
        self._level = NONE
        self._pinned: Snapshot | None = None  # from SHARED to NONE
        self._view: Snapshot | None = None  # a fixed state instead of the newest
        self._watcher: Watcher | None = None
        self._first_page = b""
        self._first_page_of: Snapshot | None = None
        try:
            self._open()
            self._epoch = self.snapshot.epoch
        except BaseException:
            self.xClose()
            raise

    def _open(self) -> None:
        if self.options.is_fixed:
            self._view = self.replica.view(
                txid=self.options.txid,
                timestamp_ms=self.options.timestamp_ms,
                timeout_s=self.options.open_timeout_s,
            )
        else:
            self.replica.open(self.options.open_timeout_s)
            self.replica.poll_every(self.options.poll_interval_s)
        self._watch()

    def _watch(self) -> None:
        """Follow this connection's reads from here on; anew after a fork, which leaves all threads behind."""
        self._pages = self.replica.pages
        self._watcher = self._pages.watcher(self.snapshot.page_size or DEFAULT_PAGE_SIZE)

    @property
    def snapshot(self) -> Snapshot:
        """What a read sees now: the transaction's snapshot, else what the next transaction would pin."""
        snapshot = self._pinned or self._view or self.replica.snapshot
        assert snapshot is not None
        return snapshot

    @property
    def fixed(self) -> Snapshot | None:
        """What the next transaction will see if that is a fixed state; None: the newest."""
        return self._view

    def travel(self, view: Snapshot | None) -> None:
        """From the next transaction on, see a fixed state; None: the newest again."""
        if self.options.is_fixed:
            raise OptionError(
                "this connection was opened at a fixed state", hint="open another one to see another state"
            )
        self._view = view

    # --- reading ------------------------------------------------------------------------------------------------------

    def xRead(self, amount: int, offset: int) -> bytes:
        """Bytes of the database as of the snapshot; fewer past its end."""
        snapshot = self._pinned or self.snapshot
        page_size = snapshot.page_size
        if amount == page_size and 0 < offset < snapshot.commit * page_size and offset % page_size == 0:
            if self._watcher is not None:
                return self._read_watched(snapshot, offset // page_size + 1, self._watcher)
            return self.replica.pages.read(snapshot, offset // page_size + 1)
        if snapshot is not self._first_page_of:
            self._first_page = self.replica.pages.first_page(snapshot, schema_salt=self._schema_salt(snapshot))
            self._first_page_of = snapshot
            if self._watcher is not None and self._first_page:
                self._watcher.after_read(1, self._first_page)
        if offset + amount <= page_size:
            return self._first_page[offset : offset + amount]
        return self._read_across(snapshot, amount, offset)

    def _schema_salt(self, snapshot: Snapshot) -> int:
        """Not 0 in another history than the connection began in, where equal schema versions may be other schemas."""
        return crc32(snapshot.epoch.to_bytes(8)) if snapshot.epoch != self._epoch else 0

    def _read_watched(self, snapshot: Snapshot, pgno: int, watcher: Watcher) -> bytes:
        """Read a page, and start reading what will probably come next."""
        pages = self.replica.pages
        try:
            if ahead := watcher.before_read(pgno):
                pages.read_ahead(snapshot, ahead, watcher)
        except Exception:  # noqa: BLE001 (logged)
            self._stop_watching()
        page = pages.read(snapshot, pgno)
        if watcher.wants(page):
            try:
                if ahead := watcher.after_read(pgno, page):
                    pages.read_ahead(snapshot, ahead, watcher)
            except Exception:  # noqa: BLE001 (logged)
                self._stop_watching()
        return page

    def _stop_watching(self) -> None:
        """Hints must never cost anybody a row: without them reads are slower, and that is all."""
        logger.exception("reading ahead failed; this connection goes on without")
        self._watcher = None

    def _read_across(self, snapshot: Snapshot, amount: int, offset: int) -> bytes:
        """Any range: SQLite reads overflow pages in part, and tools may read what they like."""
        end = min(offset + amount, snapshot.size_bytes)
        pieces = []
        while offset < end:
            page, start = divmod(offset, snapshot.page_size)
            stop = min(snapshot.page_size, start + end - offset)
            content = self._first_page if page == 0 else self.replica.pages.read(snapshot, page + 1)
            pieces.append(content[start:stop])
            offset += stop - start
        return b"".join(pieces)

    def xFileSize(self) -> int:
        """Bytes of the database as of the snapshot."""
        return (self._pinned or self.snapshot).size_bytes

    # --- locks --------------------------------------------------------------------------------------------------------

    def xLock(self, level: int) -> None:
        """SHARED begins a read transaction: the newest snapshot is its state to the end. More is refused."""
        if level > SHARED:
            raise apsw.ReadOnlyError("a replica is read-only: write to the primary database")
        if level > self._level:
            self.replica.wake()
            if self._pages is not self.replica.pages:
                self._watch()
            if self._max_staleness_s is not None and self._view is None:
                self.replica.check_freshness(self._max_staleness_s)
            self._pinned = self.snapshot
            self._level = level

    def xUnlock(self, level: int) -> None:
        """NONE ends the read transaction. There is nothing between it and SHARED to fall back to."""
        if level > SHARED:
            raise apsw.IOError(f"cannot unlock to level {level}: only NONE and SHARED are below a held lock")
        if level < self._level:
            self._pinned = None
            self._level = level

    def xCheckReservedLock(self) -> bool:
        """Nobody ever writes."""
        return False

    # --- the rest -----------------------------------------------------------------------------------------------------

    def xFileControl(self, op: int, ptr: int) -> bool:
        """Answer `PRAGMA litestream_...`; SQLite deals with the rest."""
        if op != apsw.SQLITE_FCNTL_PRAGMA:
            return False
        pragma = apsw.VFSFcntlPragma(ptr)
        answer = answer_pragma(self, pragma.name, pragma.value)
        if answer is None:
            return False
        pragma.result = answer
        return True

    def xClose(self) -> None:
        """Let go of the replica. Idempotent."""
        registry.release(self._lease)

    def __del__(self) -> None:
        """Let go also where SQLite never got the file: Ctrl-C may strike between any two lines of opening it."""
        if hasattr(self, "_lease"):
            self.xClose()

    # What these two raise is lost, as SQLite takes nothing but a number from them. So no Python code runs in them: a
    # Ctrl-C that struck there would be lost, too, and the query go on.
    xSectorSize = staticmethod(partial(int, 4096))  # noqa: N815 - bytes; SQLite's default
    xDeviceCharacteristics = staticmethod(partial(int, 0))  # noqa: N815 - no promise about writes

    def xWrite(self, data: bytes, offset: int) -> None:
        """Refused."""
        raise apsw.ReadOnlyError("a replica is read-only: write to the primary database")

    def xTruncate(self, newsize: int) -> None:
        """Refused."""
        raise apsw.ReadOnlyError("a replica is read-only: write to the primary database")

    def xSync(self, flags: int) -> None:
        """Nothing to do."""
