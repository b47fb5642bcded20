"""The application of the durability campaign: commits without an end, and writes down what each state has to answer.

    python tests/peer/durability_writer.py DATABASE ANSWERS SEED

Uses the module `sqlite3` and nothing of ours. Ends when its standard input does. ANSWERS gets a line `N ANSWER` before
the commit of transaction N; in between it vacuums, wholly and in steps, and truncates the WAL.
"""

from __future__ import annotations

import random
import select
import sqlite3
import sys
import zlib
from pathlib import Path

LARGE_BYTES = 400_000
MOST_BYTES = 6_000_000
ANSWER = """
    SELECT (SELECT n FROM ledger), (SELECT sum(balance) FROM account),
        count(*), total(id), total(length(blob)), total(crc)
    FROM data
"""


def answer_of(db: sqlite3.Connection) -> str:
    """What a state answers: small, and another one after each commit."""
    return repr(db.execute(ANSWER).fetchone())


def damaged_rows(db: sqlite3.Connection) -> int:
    """Rows whose blob is not the one that was written."""
    db.create_function("crc32", 1, zlib.crc32, deterministic=True)
    count: int = db.execute("SELECT count(*) FROM data WHERE crc32(blob) IS NOT crc").fetchone()[0]
    return count


def create(path: Path) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript("""
        PRAGMA page_size=4096; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL;
        CREATE TABLE ledger (n INTEGER); INSERT INTO ledger VALUES (0);
        CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER); INSERT INTO account VALUES (1, 500), (2, 500);
        CREATE TABLE data (id INTEGER PRIMARY KEY, blob BLOB, crc INTEGER); CREATE INDEX data_crc ON data (crc);
    """)
    db.close()


def main(path: str, answers: str, seed: str) -> None:
    rng = random.Random(int(seed))
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    db.execute("PRAGMA wal_autocheckpoint=200")
    n = db.execute("SELECT n FROM ledger").fetchone()[0]
    with Path(answers).open("a") as log:
        while not select.select([sys.stdin], [], [], rng.random() * 0.08)[0]:
            n += 1
            db.execute("BEGIN IMMEDIATE")
            change(db, rng, n)
            log.write(f"{n} {answer_of(db)}\n")
            log.flush()
            db.execute("COMMIT")
            if rng.random() < 0.06:
                db.execute(rng.choice(["VACUUM", "PRAGMA incremental_vacuum(50)", "PRAGMA wal_checkpoint(TRUNCATE)"]))
    db.close()
    print(n, flush=True)


def change(db: sqlite3.Connection, rng: random.Random, n: int) -> None:
    amount = rng.randrange(-20, 20)
    db.execute("UPDATE account SET balance = balance + ? * (CASE id WHEN 1 THEN 1 ELSE -1 END)", (amount,))
    for size in [LARGE_BYTES] if rng.random() < 0.05 else [rng.randrange(4000) for _ in range(rng.randrange(4))]:
        blob = rng.randbytes(size)
        db.execute("INSERT INTO data (blob, crc) VALUES (?, ?)", (blob, zlib.crc32(blob)))
    if rng.random() < 0.1 or db.execute("SELECT total(length(blob)) FROM data").fetchone()[0] > MOST_BYTES:
        db.execute("DELETE FROM data WHERE id % 3 = ?", (n % 3,))
    db.execute("UPDATE ledger SET n = ?", (n,))


if __name__ == "__main__":
    main(*sys.argv[1:])
