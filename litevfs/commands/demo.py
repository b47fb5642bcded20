"""`litevfs demo`: a database, its replica and a live reader, in one folder and a few seconds."""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import apsw

import litevfs
from litevfs.commands.ls import format_listing
from litevfs.commands.results import value_text
from litevfs.commands.text import format_table
from litevfs.errors import LitevfsError, StaleReplicaError
from litevfs.replica_clients.base import LEVELS
from litevfs.replicate.replicator import Replicator
from litevfs.units import format_bytes

DESCRIPTION = (
    "Make a SQLite database, replicate it into a folder, and query the replica live while the database changes. Needs "
    "nothing but this package, takes a few seconds and leaves nothing behind."
)
SYNC_INTERVAL_S = 0.1
POLL_INTERVAL = "50ms"
TRANSACTIONS = 6
TIME_LIMIT_S = 5.0
"""Time limit for one transaction to get from the database to the reader; it takes a fraction of a second."""

_SCHEMA = """
    CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customer, item TEXT NOT NULL,
                         cents INTEGER NOT NULL);
    INSERT INTO customer (name) VALUES ('Ada'), ('Grace'), ('Edsger'), ('Barbara'), ('Donald');
"""
_ITEMS = ("tea", "coffee", "cocoa", "mate", "chai", "espresso", "rooibos")
_TOTALS = """
    SELECT name, count(*) AS orders, printf('%.2f', sum(cents) / 100.0) AS total
    FROM orders JOIN customer ON customer.id = customer_id GROUP BY name ORDER BY sum(cents) DESC, name
"""
_FINGERPRINT = "SELECT count(*), sum(id * cents) FROM orders"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See `Command`."""
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="work in this new or empty folder, and leave the files there"
    )


def run(args: argparse.Namespace) -> int:
    """See `Command`."""
    with _folder(args.keep) as folder:
        is_equal = _run(folder)
        if args.keep:
            print(f"\nThe files are in {folder}. Try: litevfs shell {folder / 'replica'}")
    return 0 if is_equal else 1


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="litevfs-demo-") as name:
            yield Path(name)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise LitevfsError("the folder is not empty", key=str(keep), hint="name a new one")
    yield keep.resolve()


def _run(folder: Path) -> bool:
    path, replica = folder / "shop.db", folder / "replica"
    with closing(apsw.Connection(str(path))) as primary:
        primary.pragma("journal_mode", "wal")
        primary.execute(_SCHEMA)
        with Replicator(path, str(replica), sync_interval_s=SYNC_INTERVAL_S) as replicator:
            _say(1, f"A SQLite database, {path}, is replicated into {replica}/ every {SYNC_INTERVAL_S * 1000:.0f} ms.")
            replicator.sync()
            replicator.start()
            with closing(litevfs.connect(str(replica), poll_interval=POLL_INTERVAL)) as reader:
                return _Demo(primary, reader, str(replica)).show()


def _say(step: int, text: str) -> None:
    print(f"{'' if step == 1 else chr(10)}{step}. {text}", flush=True)


class _Demo:
    """The part of the demo after the start of primary and reader."""

    def __init__(self, primary: apsw.Connection, reader: apsw.Connection, url: str) -> None:
        self.primary, self.reader, self.url = primary, reader, url
        self._orders = 0
        self._lags_ms: list[float] = []

    def show(self) -> bool:
        """Show all of it; returns whether the replica equals the database in the end."""
        first = self._follow()
        self._hold_a_transaction()
        self._go_back(first)
        self._show_differences(first)
        self._copy_beside()
        self._list_files()
        return self._compare()

    def _follow(self) -> str:
        _say(2, f"A reader queries the replica in place, polling every {POLL_INTERVAL}, while the database changes.\n")
        print("   TXID              commit to reader  orders  newest order", flush=True)
        first = ""
        for number in range(TRANSACTIONS):
            lag_ms = self._commit_and_wait(rows=1 + number)
            txid = self.reader.pragma("litestream_txid")
            first = first or str(txid)
            item, name = _row(
                self.reader, "SELECT item, name FROM orders JOIN customer ON customer.id = customer_id "
                "ORDER BY orders.id DESC LIMIT 1"
            )  # fmt: skip
            print(f"   {txid}  {lag_ms:13.0f} ms  {self._orders:6}  {item} for {name}", flush=True)
        return first

    def _commit_and_wait(self, rows: int) -> float:
        """Commit `rows` orders on the primary; returns the milliseconds until the reader sees them."""
        with self.primary:
            for _ in range(rows):
                self._orders += 1
                n = self._orders
                values = (1 + n * 7 % 5, _ITEMS[n % len(_ITEMS)], 250 + n * 37 % 400)
                self.primary.execute("INSERT INTO orders (customer_id, item, cents) VALUES (?, ?, ?)", values)
        committed = time.monotonic()
        count = _row(self.primary, "SELECT count(*) FROM orders")
        _wait_until(lambda: _row(self.reader, "SELECT count(*) FROM orders") == count)
        self._lags_ms.append((time.monotonic() - committed) * 1000)
        return self._lags_ms[-1]

    def _hold_a_transaction(self) -> None:
        _say(3, "A read transaction keeps its state, whatever arrives meanwhile.\n")
        with closing(litevfs.connect(self.url, poll_interval=POLL_INTERVAL)) as other:
            other.execute("BEGIN")
            before = _row(other, "SELECT count(*) FROM orders")[0]
            self._commit_and_wait(rows=10)
            during = _row(other, "SELECT count(*) FROM orders")[0]
            other.execute("COMMIT")
            after = _row(other, "SELECT count(*) FROM orders")[0]
        print(f"   orders at BEGIN {before}, after 10 more were committed {during}, after COMMIT {after}")

    def _go_back(self, txid: str) -> None:
        _say(4, f"Earlier states can be opened too: the totals now, and at TXID {txid}.\n")
        with closing(litevfs.connect(self.url, txid=txid)) as past:
            then = {row[0]: row[1:] for row in past.execute(_TOTALS)}
        rows = [(*row, *then.get(row[0], (0, "0.00"))) for row in self.reader.execute(_TOTALS)]
        print(_indented(format_table(["customer", "orders", "total", "orders then", "total then"], rows)))

    def _show_differences(self, txid: str) -> None:
        _say(5, "What happened in between, row by row (litevfs diff); as SQL it is a patch.\n")
        with self.primary:
            self.primary.execute("UPDATE orders SET cents = 999 WHERE id = 1")
        now = _row(self.primary, "SELECT count(*), sum(cents) FROM orders")
        _wait_until(lambda: _row(self.reader, "SELECT count(*), sum(cents) FROM orders") == now)
        with litevfs.diff(self.url, txid, str(self.reader.pragma("litestream_txid"))) as diff:
            changes = list(diff)
        for change in [change for change in changes if change.op != "insert"] + changes[-1:]:
            print(
                f"   {change.op} {change.table} {value_text(change.key[0])}: {change.old or '-'} -> {change.new or '-'}"
            )
        print(f"   ({len(changes)} rows in all)")

    def _copy_beside(self) -> None:
        _say(6, "A local file that follows (litevfs follow), read here by Python's own sqlite3.\n")
        path = Path(self.url).with_name("copy.db")
        with (
            litevfs.follow(self.url, path, poll_interval=POLL_INTERVAL) as followed,
            closing(sqlite3.connect(path)) as plain,
        ):
            before = plain.execute("SELECT count(*) FROM orders").fetchone()[0]
            self._commit_and_wait(rows=3)
            followed.wait_for(str(self.reader.pragma("litestream_txid")), timeout=TIME_LIMIT_S)
            after = plain.execute("SELECT count(*) FROM orders").fetchone()[0]
        print(f"   {path.name}: {before} orders, and {after} after 3 more were committed")

    def _list_files(self) -> None:
        _say(7, "This is all there is in the replica (litevfs ls, litevfs verify and litevfs dump look closer).\n")
        client = litevfs.open_replica_client(self.url)
        try:
            files = [file for level in LEVELS for file in client.list_files(level)]
        finally:
            client.close()
        print(_indented(format_listing(files)))

    def _compare(self) -> bool:
        is_equal = _row(self.primary, _FINGERPRINT) == _row(self.reader, _FINGERPRINT)
        integrity = _row(self.reader, "PRAGMA integrity_check")[0]
        size = int(self.reader.pragma("page_count")) * int(self.reader.pragma("page_size"))
        lag = f"{statistics.median(self._lags_ms):.0f} ms in the median, {max(self._lags_ms):.0f} ms at most"
        same = "equal those of the database" if is_equal else "DIFFER from those of the database"
        _say(8, f"{len(self._lags_ms)} transactions, commit to reader {lag}.")
        count = _row(self.reader, "SELECT count(*) FROM orders")[0]
        print(f"   The replica's {count} orders {same}; integrity check of its {format_bytes(size)}: {integrity}.")
        return is_equal and integrity == "ok"


def _row(connection: apsw.Connection, sql: str) -> tuple[Any, ...]:
    return tuple(connection.execute(sql).fetchall()[0])


def _wait_until(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIME_LIMIT_S
    pause = threading.Event()
    while not is_done():
        if time.monotonic() > deadline:
            raise StaleReplicaError(f"a transaction did not reach the reader within {TIME_LIMIT_S:g} s")
        pause.wait(0.002)


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.splitlines())
