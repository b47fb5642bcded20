"""Programs that the tests run as processes of their own: an application, and a replicator that reports.

    python -m tests.replicate.programs write DATABASE SEED
    python -m tests.replicate.programs replicate DATABASE URL...
    python -m tests.replicate.programs read_with_litestream

Each ends when its standard input does.
"""

from __future__ import annotations

import random
import select
import sqlite3
import sys
import time


def is_asked_to_end(timeout_s: float = 0.0) -> bool:
    return bool(select.select([sys.stdin], [], [], timeout_s)[0])


def write(path: str, seed: str) -> None:
    """An ordinary application, with the standard library's module, that does all sorts of things without a pause.

    At every commit, the balances add up to 1000 and `ledger` says how many transactions there were. Prints that number,
    and the longest that any statement took, in seconds.
    """
    rng = random.Random(int(seed))
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    db.execute("PRAGMA wal_autocheckpoint=200")
    count = db.execute("SELECT max(n) FROM ledger").fetchone()[0]
    longest = 0.0
    while not is_asked_to_end():
        start = time.monotonic()
        db.execute("BEGIN IMMEDIATE")
        change(db, rng)
        count += 1
        db.execute("UPDATE ledger SET n = ?", (count,))
        db.execute("COMMIT")
        if rng.random() < 0.02:
            db.execute(rng.choice(["VACUUM", "PRAGMA incremental_vacuum(20)", "PRAGMA wal_checkpoint(TRUNCATE)"]))
        longest = max(longest, time.monotonic() - start)
    print(count, longest, flush=True)
    db.close()


def change(db: sqlite3.Connection, rng: random.Random) -> None:
    amount, a, b = rng.randrange(10), rng.randrange(10), rng.randrange(10)
    db.execute("UPDATE accounts SET balance = balance - ? WHERE id = ?", (amount, a))
    db.execute("UPDATE accounts SET balance = balance + ? WHERE id = ?", (amount, b))
    for _ in range(rng.randrange(4)):
        db.execute("INSERT INTO data (text, blob) VALUES (?, randomblob(?))", ("x" * rng.randrange(300), amount * 500))
    if rng.random() < 0.2:
        db.execute("DELETE FROM data WHERE id % 5 = ?", (amount % 5,))
    if rng.random() < 0.02:
        name = f"t{rng.randrange(5)}"
        db.execute(f"DROP TABLE IF EXISTS {name}")
        db.execute(f"CREATE TABLE {name} AS SELECT * FROM data LIMIT 20")
        db.execute(f"CREATE INDEX {name}_i ON {name} (text)")


def create(path: str, *, page_size: int = 1024) -> None:
    """The database that `write` writes to."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute(f"PRAGMA page_size={page_size}")
    db.execute("PRAGMA auto_vacuum=INCREMENTAL")
    db.execute("PRAGMA journal_mode=WAL")
    db.executescript("""
        CREATE TABLE ledger (n INTEGER);
        INSERT INTO ledger VALUES (0);
        CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER);
        INSERT INTO accounts SELECT value, 100 FROM (WITH RECURSIVE i(value) AS (
            VALUES (0) UNION ALL SELECT value + 1 FROM i WHERE value < 9) SELECT value FROM i);
        CREATE TABLE data (id INTEGER PRIMARY KEY, text TEXT, blob BLOB);
    """)
    db.close()


def replicate(path: str, *urls: str) -> None:
    """Sync every 10 ms to all places; print the TXID after each sync that returned, that is, what was acknowledged."""
    from litevfs.replicate import Replicator

    with Replicator(path, urls[0], places=urls[1:], checkpoint_pages=100, truncate_pages=1000) as replicator:
        print("started", flush=True)
        while not is_asked_to_end(0.01):
            print(replicator.sync(), flush=True)
        print(replicator.sync(), flush=True)
        print(replicator.status.snapshots, replicator.status.last_snapshot_reason, flush=True)


def read_with_litestream() -> None:
    """Print what Litestream's own VFS reads from the replica in LITESTREAM_REPLICA_URL: rows of t, and a check."""
    import apsw
    import litestream_vfs

    loader = apsw.Connection(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(litestream_vfs.loadable_path(), "sqlite3_litestreamvfs_init")
    db = apsw.Connection("file:any.db?vfs=litestream", flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    print(repr(db.execute("SELECT id, hex(data) FROM t ORDER BY id").fetchall()))
    print(db.execute("PRAGMA integrity_check").get)


if __name__ == "__main__":
    {"write": write, "replicate": replicate, "read_with_litestream": read_with_litestream}[sys.argv[1]](*sys.argv[2:])
