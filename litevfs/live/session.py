"""One connection's view of a replica: the answers to SQLite's calls on a database file. Knows no SQLite library.

Taking the SHARED lock is taking the newest snapshot; SQLite holds that lock for exactly one read transaction. To SQLite
the file is a rollback-journal database that does not change until it is unlocked: page 1 says so (see `PageSource`),
and no connection ever holds a write lock.

A binding (`litevfs.bindings`) passes SQLite's calls on, and turns errors into those of its library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol
from zlib import crc32

from litevfs.errors import LitevfsError, OptionError, ReplicaError, ReplicaReadOnlyError
from litevfs.live.registry import Lease, registry
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.pages.reads import Waits, WatchedReads
from litevfs.pages.shared_scans import Begin
from litevfs.states.snapshot import Snapshot

UNLOCKED, SHARED = 0, 1
"""SQLite's lock levels (https://www.sqlite.org/lockingv3.html) that a reader takes; higher ones are a writer's."""

CHECK_OFFSET, CHECK_BYTES = 24, 16
"""What SQLite reads of page 1 when a transaction begins: is its page cache still good?"""


class Warming(Protocol):
    """Queries that run beside a session, on its replica (option `warm`)."""

    def stop(self) -> None:
        """End them. Waits for nothing; idempotent."""
        ...

    def wait(self) -> tuple[int, int]:
        """Wait for a bounded time until they have ended; returns how many succeeded, of how many."""
        ...


class Session:
    """One database file that SQLite has open. Used by one thread at a time; `close()` it.

    `on_error(error)` is called with each LitevfsError before it is raised by `read`, `size`, `lock` or `unlock`.
    """

    on_warm_read: Callable[[Snapshot, int], object] | None = None
    """Called with each page, by its number, that a session of a query of `warm` reads beside this one."""

    def __init__(
        self,
        options: Options,
        on_error: Callable[[LitevfsError], object] | None = None,
        *,
        beside: Session | None = None,
    ) -> None:
        """With `beside`, read the replica and the state of that session, until that one is closed."""
        self.options = options
        self.warming: Warming | None = None
        self._waits: Waits | None = None
        self._on_error = on_error
        self._is_guest = beside is not None
        self._lease: Lease = registry.acquire(options) if beside is None else beside._lease
        self.replica: Replica = self._lease.replica
        self._max_staleness_s = options.max_staleness_s
        self._level = UNLOCKED
        self._pinned: Snapshot | None = None  # from SHARED to UNLOCKED
        self._has_ended = False  # the transaction that has pinned it, see `end`
        self.keeps_state = False  # SQLite was told to take no locks, so there is one transaction only
        self._view: Snapshot | None = beside._view if beside else None  # a fixed state instead of the newest
        # While a snapshot is pinned, by offset: what SQLite checks of page 1, and pages that a scan needs next.
        self._along: dict[int, bytes] = {}
        self._first_page = b""
        self._first_page_of: Snapshot | None = None
        self._check = b""  # of that page
        try:
            self._open()
            self._database = self.snapshot.database
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        if self._is_guest:
            pass  # the session beside this one has opened the replica
        elif self.options.is_fixed:
            self._view = self.replica.view(
                txid=self.options.txid,
                timestamp_ms=self.options.timestamp_ms,
                timeout_s=self.options.open_timeout_s,
            )
        else:
            self.replica.open(self.options.open_timeout_s)
            self.replica.poll_every(self.options.poll_interval_s)
        self._use_pages()

    def _use_pages(self) -> None:
        """Read from the replica's page source from here on. A forked child has a new one."""
        self._pages = self.replica.pages
        self._reads = self._pages.reads(self._waits)
        self._read_page = self._reads.read
        self._watched = self._reads if isinstance(self._reads, WatchedReads) else None

    def listen(self, waits: Waits) -> None:
        """Tell `waits` from here on when a read waits for the storage, and when the session is closed."""
        self._waits = waits
        self._use_pages()

    def expect_rows(self, begins: int, rows: int) -> None:
        """See `WatchedReads.expect_rows`; `begins` is the number of the read transaction."""
        if (watched := self._watched) is not None:
            watched.expect_rows(begins, rows)

    def hold(self, roots: Sequence[int], shared: Mapping[int, Begin], begins: int) -> None:
        """Keep in mind where read transaction number `begins` is in these trees, see `Watcher.hold`.

        May come from another thread.
        """
        if (watched := self._watched) is not None:
            watched.hold(roots, shared, begins)

    def way_to(self, root: int) -> list[tuple[int, int]]:
        """Where in the tree below `root` the reads are; see `Watcher.way_to`. May come from another thread."""
        return [] if self._watched is None else self._watched.way_to(root)

    def take_passed(self) -> dict[int, None]:
        """Pages that the query has read since the last call, see `Watcher.take_passed`. From any thread."""
        return {} if self._watched is None else self._watched.take_passed()

    @property
    def planner(self) -> object | None:
        """Whom what is read ahead for a query of this session belongs to."""
        return None if self._watched is None else self._watched.planner

    @property
    def looks_up(self) -> bool:
        """Whether its query looks up rows by an index, and is read ahead for accordingly."""
        return self._watched is not None and self._watched.looks_up

    def is_reading(self, snapshot: Snapshot) -> bool:
        """Whether a read transaction that sees this snapshot goes on."""
        return self._pinned is snapshot and not self._has_ended

    def expect_scans(self, snapshot: Snapshot, roots: Sequence[int], begins: int) -> None:
        """Read transaction number `begins` is going to read these trees whole, one after the other.

        Called in another thread.
        """
        if (watched := self._watched) is not None:
            watched.expect_scans(snapshot, roots, begins)

    def page_one(self, snapshot: Snapshot) -> bytes:
        """Page 1 as SQLite has last seen it; empty if that was another snapshot's."""
        return self._first_page if self._first_page_of is snapshot else b""

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that the transaction sees; after it, the one that the next transaction would pin."""
        snapshot = (None if self._has_ended else self._pinned) or self._view or self.replica.snapshot
        assert snapshot is not None
        return snapshot

    @property
    def fixed(self) -> Snapshot | None:
        """The fixed state that the next transaction will see; None: the newest state."""
        return self._view

    def travel(self, view: Snapshot | None) -> None:
        """From the next transaction on, see a fixed state; None: the newest again."""
        if self.options.is_fixed:
            raise OptionError(
                "this connection was opened at a fixed state", hint="open another one to see another state"
            )
        if self.keeps_state:
            raise OptionError(
                "this connection sees one state to its end (nolock, immutable)", hint="open another one without that"
            )
        self._view = view

    def close(self) -> None:
        """Release the replica. Idempotent."""
        if self.warming is not None:
            self.warming.stop()
        if self._waits is not None:
            self._waits.stop()
        if not self._is_guest:
            registry.release(self._lease)

    def __del__(self) -> None:
        """Release the replica also if SQLite never got the file: Ctrl-C may interrupt the opening at any line."""
        if hasattr(self, "_lease"):
            self.close()

    def _note(self, error: LitevfsError) -> None:
        """Let the binding see an error. Nothing keeps it: it has the frames of the caller, and so the connection."""
        if self._on_error is not None:
            self._on_error(error)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, amount: int, offset: int) -> bytes:
        """`amount` bytes of the database from `offset` on, as of the snapshot; fewer past its end.

        The arguments are in the order of APSW's `xRead`, so that APSW can call this method directly: a page costs one
        Python call.
        """
        along = self._along
        page = along.get(offset)
        if page is not None and len(page) == amount:
            return page  # the check that begins each transaction, and most reads of a scan, end here
        snapshot = self._pinned or self.snapshot
        page_size = snapshot.page_size
        try:
            if self._pages is not self.replica.pages:
                self._use_pages()
            before = offset // page_size  # pages
            if amount == page_size and 0 < before < snapshot.commit and before * page_size == offset:
                return self._read_page(snapshot, before + 1, along if self._pinned else None)
            if snapshot is not self._first_page_of:
                self._first_page = self._reads.first_page(snapshot, schema_salt=self._schema_salt(snapshot))
                self._first_page_of = snapshot
                self._check = self._first_page[CHECK_OFFSET : CHECK_OFFSET + CHECK_BYTES]
            if offset + amount <= page_size:
                return self._first_page[offset : offset + amount]
            return self._read_across(snapshot, amount, offset)
        except LitevfsError as error:
            self._note(error)
            raise

    def _schema_salt(self, snapshot: Snapshot) -> int:
        """Not 0 in another database than the connection began in: there, equal schema versions may be other schemas."""
        if snapshot.database == self._database:
            return 0
        return crc32(b"".join(number.to_bytes(8) for number in snapshot.database))

    def _read_across(self, snapshot: Snapshot, amount: int, offset: int) -> bytes:
        """Any range: SQLite reads overflow pages in part, and tools may read what they like."""
        end = min(offset + amount, snapshot.size_bytes)
        pieces = []
        while offset < end:
            page, start = divmod(offset, snapshot.page_size)
            stop = min(snapshot.page_size, start + end - offset)
            content = self._first_page if page == 0 else self._read_page(snapshot, page + 1)
            pieces.append(content[start:stop])
            offset += stop - start
        return b"".join(pieces)

    def size(self) -> int:
        """Bytes of the database as of the snapshot."""
        snapshot = self._pinned or self.snapshot
        return snapshot.commit * snapshot.page_size

    # --- locks --------------------------------------------------------------------------------------------------------

    def lock(self, level: int, after_unlock: bool = False) -> None:
        """SHARED begins a read transaction: the newest snapshot is its state to the end. Higher levels are refused.

        `after_unlock` is for a binding that is not told of unlocking: a transaction before is over.
        """
        try:
            if level > SHARED:
                raise self.read_only()
            if after_unlock:
                self._pinned = None
                self._level = UNLOCKED
                self._along.clear()
            if level > self._level:
                if self.replica.interval_after_fork_s:
                    self.replica.wake()
                if self._max_staleness_s is not None and self._view is None:
                    self.replica.check_freshness(self._max_staleness_s)
                if self._watched is not None:
                    self._watched.begin()
                self._pinned = snapshot = self._view or self.replica.snapshot
                self._level, self._has_ended = level, False
                if snapshot is self._first_page_of:
                    self._along[CHECK_OFFSET] = self._check
        except LitevfsError as error:
            self._note(error)
            raise

    def begin_again(self) -> bytes:
        """End a read transaction and begin another one: what SQLite then checks of page 1."""
        replica, along = self.replica, self._along
        snapshot = self._view or replica.snapshot
        is_usual = self._max_staleness_s is None and not replica.interval_after_fork_s
        if is_usual and snapshot is self._first_page_of and snapshot is not None:
            along.clear()  # from here on what `lock` does, in fewer steps: most queries begin here
            if self._watched is not None:
                self._watched.begin()
            self._pinned, self._level, self._has_ended = snapshot, SHARED, False
            along[CHECK_OFFSET] = check = self._check
            return check
        self.lock(SHARED, True)
        return self._along.get(CHECK_OFFSET) or self.read(CHECK_BYTES, CHECK_OFFSET)

    def unlock(self, level: int) -> None:
        """UNLOCKED ends the read transaction. There is no level between it and SHARED."""
        if level > SHARED:
            error = ReplicaError(f"cannot unlock to level {level}: a replica is never locked for writing")
            self._note(error)
            raise error
        if level < self._level:
            self._pinned = None
            self._level, self._has_ended = level, False
            if self._watched is not None:
                self._watched.end()
            self._along.clear()

    def end(self) -> None:
        """The transaction is over, as far as a binding can tell that is not told of unlocking.

        Pages are still of its state, until the next one begins: in exclusive locking mode SQLite never unlocks, and
        asks for pages of the state that it knows.
        """
        self._has_ended = self._pinned is not None

    @staticmethod
    def read_only() -> ReplicaReadOnlyError:
        """The error for any write."""
        return ReplicaReadOnlyError("a replica is read-only", hint="write to the primary database")
