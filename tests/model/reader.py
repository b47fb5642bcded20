"""One connection to the replica, and what each of its transactions must show: the image of the TXID it reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import apsw

import litevfs
from litevfs.errors import LitevfsError, PageUnavailableError
from tests.model.stdlib import StdlibConnection

if TYPE_CHECKING:
    from tests.model.world import Site, World

QUERIES: tuple[tuple[str, Callable[[int], tuple[Any, ...]]], ...] = (
    ("SELECT * FROM t WHERE id = ?", lambda n: (n % 120,)),
    ("SELECT k, id, v FROM t WHERE k BETWEEN ? AND ? ORDER BY k, id", lambda n: (n % 100, n % 100 + n % 13)),
    ("SELECT count(*), sum(k), total(length(v)), min(v), max(v) FROM t", lambda n: ()),
    ("SELECT id FROM t WHERE v LIKE ? ORDER BY id", lambda n: ("%" + "abcdef"[n % 6] + "%",)),
    ("SELECT k, count(*), max(id) FROM t GROUP BY k ORDER BY 2 DESC, 1 LIMIT ?", lambda n: (n % 20,)),
    ("SELECT id, v FROM t ORDER BY v, id", lambda n: ()),
    ("SELECT length(data), substr(data, ?, 50) FROM blobs WHERE id = ?", lambda n: (n * 37 % 60_000, n % 20)),
    ("SELECT id, length(data) FROM blobs ORDER BY id", lambda n: ()),
    ("SELECT a.id, b.id FROM t a JOIN blobs b ON a.k = b.id ORDER BY 1, 2 LIMIT ?", lambda n: (n % 50,)),
    ("SELECT name, sql, rootpage FROM sqlite_schema ORDER BY name", lambda n: ()),
    ("SELECT * FROM x1 ORDER BY rowid", lambda n: ()),
    ("PRAGMA page_count", lambda n: ()),
    ("PRAGMA freelist_count", lambda n: ()),
    ("PRAGMA auto_vacuum", lambda n: ()),
)


class Reader:
    """A connection at one site. `view` is the TXID it has travelled to or was opened at, None for the newest state."""

    def __init__(self, world: World, site: Site, *, txid: int | None = None, door: str = "apsw") -> None:
        self.world, self.site, self.door = world, site, door
        self.is_fixed = txid is not None
        self.view = txid
        self.pinned: int | None = None  # TXID of the transaction that is open
        self._last = 0  # TXID of the last transaction that saw the newest state
        options = site.options if txid is None else site.options | {"txid": txid, "hydration_enabled": False}
        open_timeout_s = 30 if site.is_calm else 0  # as long as a busy machine may need
        connect = StdlibConnection if door == "sqlite3" else litevfs.connect
        self.connection: Any = connect(site.url, poll_interval=0, open_timeout=open_timeout_s, **options)

    def close(self) -> None:
        """End the transaction, and close."""
        self.connection.close(True)

    # --- transactions -------------------------------------------------------------------------------------------------

    def begin(self, *, again: bool = False) -> bool:
        """Begin a transaction and see which state it has. False when there was a good reason for it to fail."""
        before = self._txid()
        try:
            self._run("BEGIN")
            self._run("SELECT count(*) FROM sqlite_schema")
        except apsw.Error as error:
            self._roll_back()
            self.world.excuse(error, self.site, before)
            # What the transaction would have seen is gone; the next one sees a newer state.
            if self.site.is_calm and self.view is None:
                assert not again, "two transactions in a row found their state gone"
                return self.begin(again=True)
            return False
        txid = self._txid()
        assert txid in self.world.oracle.images, f"TXID {txid} was never made"
        if self.view is not None:
            assert txid == self.view, f"travelled to TXID {self.view}, but sees {txid}"
        else:
            assert txid >= self._last, f"went back from TXID {self._last} to {txid}"
            assert txid >= self.site.seen, f"TXID {self.site.seen} was published, a later transaction sees {txid}"
            self._last = txid
            self.site.seen = txid
        self.pinned = txid
        return True

    def commit(self) -> None:
        """End the transaction."""
        if self.pinned is not None:
            assert self._txid() == self.pinned, "the TXID has changed within a transaction"
            self._run("COMMIT")
            self.pinned = None

    def _roll_back(self) -> None:
        self.pinned = None
        if self.connection.in_transaction:
            self._run("ROLLBACK")

    # --- reads --------------------------------------------------------------------------------------------------------

    def query(self, n: int) -> None:
        """One query; it gives what the image gives."""
        sql, bindings = QUERIES[n % len(QUERIES)]

        def read(txid: int) -> None:
            expected = self.world.oracle.rows(txid, sql, bindings(n))
            assert self._rows(sql, bindings(n)) == expected, f"{sql} at TXID {txid}"

        self._read(read)

    def compare(self) -> None:
        """Every byte of the database is that of the image."""

        def read(txid: int) -> None:
            image = self.connection.serialize("main")
            assert not (difference := self.world.oracle.difference(txid, image)), difference

        self._read(read)

    def check_integrity(self) -> None:
        """SQLite finds nothing wrong."""

        def read(txid: int) -> None:
            assert self._run("PRAGMA integrity_check") == [("ok",)]

        self._read(read)

    def _read(self, read: Callable[[int], None]) -> None:
        """Read within the transaction that is open, else within a new one."""
        if was_open := self.pinned is not None:
            pass
        elif not self.begin():
            return
        txid = self.pinned
        assert txid is not None
        try:
            read(txid)
        except apsw.Error as error:
            self._roll_back()
            self.world.excuse(error, self.site, txid)
            if self.site.is_calm and self.view is None:
                self._read_after_loss(read)
            return
        self.world.counts["reads"] += 1
        self.world.counts[f"reads by {self.door}"] += 1
        if not was_open:
            self.commit()

    def _read_after_loss(self, read: Callable[[int], None]) -> None:
        """A transaction has lost its state to retention: the next one reads a newer one, to the end."""
        if not self.begin():
            return
        assert self.pinned is not None
        try:
            read(self.pinned)
        except apsw.Error as error:
            raise AssertionError("the transaction after a lost one failed too") from error
        self.commit()

    def _rows(self, sql: str, bindings: tuple[Any, ...]) -> list[tuple[Any, ...]] | str:
        try:
            return self.connection.execute(sql, bindings).fetchall()
        except LitevfsError:
            raise
        except apsw.SQLError as error:  # no such table
            return str(error)

    # --- position -----------------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Look for news: without faults, the next transaction sees the newest state."""
        newest = self.world.newest
        try:
            self._run("PRAGMA litestream_poll")
        except apsw.Error as error:
            assert isinstance(error, LitevfsError), repr(error)
            assert not self.site.is_calm, f"a look failed without any fault: {error}"
            self.world.counts[f"poll: {type(error).__name__}"] += 1
            return
        if self.pinned is not None:
            assert self._txid() == self.pinned, "a look has moved an open transaction"
        if self.site.is_calm and not self.is_fixed:
            self.site.seen = max(self.site.seen, newest)
            if self.view is None and self.pinned is None:
                assert self._txid() == newest, f"is at TXID {self._txid()} after a look, the newest is {newest}"

    def travel(self, time_ms: int) -> None:
        """See the state as of a time, from the next transaction on."""
        world = self.world
        expected = world.oracle.txid_at(time_ms, world.reachable())
        try:
            self._run(f"PRAGMA litestream_time = '{world.rfc3339(time_ms)}'")
        except litevfs.OptionError:
            assert self.is_fixed
            return
        except apsw.Error as error:
            assert isinstance(error, LitevfsError), repr(error)
            if self.site.is_calm:
                assert isinstance(error, litevfs.TXIDNotFoundError), repr(error)
                assert expected is None, f"cannot travel to TXID {expected}: {error}"
            world.counts[f"travel: {type(error).__name__}"] += 1
            return
        assert not self.is_fixed
        if self.site.is_calm:
            assert expected is not None, f"travelled to {world.rfc3339(time_ms)}, where there is no state"
            self.view = expected
            world.counts["travelled"] += 1
        else:  # what a listing showed is as good as any
            self._find_view()
            if self.site.lists_truly:
                assert self.view == expected, f"travelled to TXID {self.view}, {world.rfc3339(time_ms)} is {expected}"
                world.counts["travelled (faults)"] += 1

    def _find_view(self) -> None:
        if self.pinned is not None:
            self.commit()
        self.view = self._txid()

    def travel_back(self) -> None:
        """See the newest state again, from the next transaction on."""
        if not self.is_fixed:
            self._run("PRAGMA litestream_time = 'latest'")
            self.view = None
            self._last = min(self._last, self.site.seen)

    def _txid(self) -> int:
        return int(self._run("PRAGMA litestream_txid")[0][0], 16)

    def _run(self, sql: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql).fetchall()


def is_excused(error: Exception, *, is_calm: bool, is_held: bool) -> bool:
    """Whether a read may fail so: by any typed error while there are faults, else only because its state is gone."""
    if not isinstance(error, LitevfsError):
        return False
    return not is_calm or (isinstance(error, PageUnavailableError) and not is_held)
