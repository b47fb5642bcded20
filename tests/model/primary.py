"""The application on the primary's side: what it does to its database, by kind. Knows nothing of replication."""

from __future__ import annotations

from pathlib import Path
from random import Random

import apsw

CHANGES = (
    "insert",
    "update",
    "delete",
    "blobs",
    "large_blob",
    "vacuum",
    "incremental_vacuum",
    "switch_auto_vacuum",
    "schema",
    "rollback",
    "spill",
    "replace",
)
AFFAIRS = ("begin", "finish", "reader_begins", "reader_ends", "checkpoint", "reopen")
CHECKPOINTS = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")

MAX_BYTES = 300_000
"""A database that is larger does not grow any more."""
_BLOBS = "CREATE TABLE IF NOT EXISTS blobs (id INTEGER PRIMARY KEY, data BLOB)"
_LETTERS = "abcdefghijklmnopqrstuvwxyz äöüß€"


class Application:
    """A program that uses its database in WAL mode, through APSW: it shares the process with a replicator."""

    def __init__(self, path: Path, *, page_size: int, auto_vacuum: int) -> None:
        self.path = path
        self.page_size = page_size
        self._open()
        for sql in (f"PRAGMA page_size={page_size}", f"PRAGMA auto_vacuum={auto_vacuum}", "PRAGMA journal_mode=WAL"):
            self._run(sql)

    def _open(self) -> None:
        self._writer, self._reader, self._observer = (apsw.Connection(str(self.path)) for _ in range(3))
        self._run("PRAGMA wal_autocheckpoint=0")
        self._run("PRAGMA cache_size=10")  # a transaction of a few pages spills into the WAL before it commits

    def _run(self, sql: str, *bindings: object) -> list[tuple]:
        return self._writer.execute(sql, bindings).fetchall()

    def image(self) -> bytes:
        """The whole database as everybody sees it now."""
        with self._observer:  # serialize() alone takes a new connection's page size for the database's
            self._observer.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            return self._observer.serialize("main")

    def close(self) -> None:
        """Drop what is open, and close."""
        for connection in (self._writer, self._reader, self._observer):
            connection.close(True)

    # --- changes ------------------------------------------------------------------------------------------------------

    def change(self, kind: str, n: int) -> None:
        """One transaction of a kind of CHANGES, or a part of the one that is open; what it does follows from `n`."""
        random = Random(n)
        if kind in {"insert", "blobs", "large_blob"} and self._size_bytes() > MAX_BYTES:
            kind = "delete"
        getattr(self, f"_{kind}")(random)

    def _size_bytes(self) -> int:
        return self._run("PRAGMA page_count")[0][0] * self.page_size

    def _insert(self, random: Random) -> None:
        self._make_tables()
        rows = [(random.randrange(100), _text(random)) for _ in range(random.choice((1, 1, 3, 40)))]
        self._writer.executemany("INSERT INTO t (k, v) VALUES (?, ?)", rows)

    def _update(self, random: Random) -> None:
        self._make_tables()
        first = random.randrange(60)
        self._run("UPDATE t SET k = k + 1, v = ? WHERE k BETWEEN ? AND ?", _text(random), first, first + 20)

    def _delete(self, random: Random) -> None:
        self._make_tables()
        first = random.randrange(100)
        self._run("DELETE FROM t WHERE k BETWEEN ? AND ?", first, first + random.choice((0, 10, 100)))
        self._run("DELETE FROM blobs WHERE id % 3 = ?", random.randrange(3))

    def _blobs(self, random: Random) -> None:
        """Some rows that fill pages of their own."""
        self._make_tables()
        for _ in range(random.randrange(1, 5)):
            blob = random.randbytes(min(random.randrange(1, 4) * self.page_size, MAX_BYTES // 8))
            self._run("INSERT OR REPLACE INTO blobs VALUES (?, ?)", random.randrange(20), blob)

    def _large_blob(self, random: Random) -> None:
        self._make_tables()
        blob = random.randbytes(random.randrange(10_000, 60_000))
        self._run("INSERT OR REPLACE INTO blobs VALUES (?, ?)", random.randrange(20), blob)

    def _vacuum(self, random: Random) -> None:
        self._finish(random)
        self._run("VACUUM")

    def _incremental_vacuum(self, random: Random) -> None:
        """Without effect unless auto_vacuum is incremental."""
        self._run(f"PRAGMA incremental_vacuum({random.choice((1, 5, 0))})")

    def _switch_auto_vacuum(self, random: Random) -> None:
        self._finish(random)
        self._run(f"PRAGMA auto_vacuum={random.randrange(3)}")
        self._run("VACUUM")

    def _schema(self, random: Random) -> None:
        """A table or an index comes or goes."""
        self._make_tables()
        table = f"x{random.randrange(3)}"
        sql = random.choice(
            (
                f"CREATE TABLE IF NOT EXISTS {table} AS SELECT * FROM t LIMIT 30",
                f"DROP TABLE IF EXISTS {table}",
                "CREATE INDEX IF NOT EXISTS t_v ON t (v)",
                "DROP INDEX IF EXISTS t_v",
            )
        )
        self._run(sql)

    def _rollback(self, random: Random) -> None:
        """Changes that no reader ever sees."""
        self._run("SAVEPOINT s")
        for kind in random.choices(("insert", "delete", "blobs", "schema"), k=2):
            getattr(self, f"_{kind}")(random)
        self._run("ROLLBACK TO s")
        self._run("RELEASE s")

    def _spill(self, random: Random) -> None:
        """A transaction larger than SQLite's cache: pages of it are in the WAL several times."""
        self._run("SAVEPOINT s")
        for kind in random.choices(("insert", "update", "delete", "blobs"), k=4):
            self.change(kind, random.randrange(1000))
        self._run("RELEASE s")

    def _replace(self, random: Random) -> None:
        """Another file takes the place of the database: with the same schema version, and the same tables elsewhere."""
        self._finish(random)
        ((version,),) = self._run("PRAGMA schema_version")
        ((auto_vacuum,),) = self._run("PRAGMA auto_vacuum")
        self.close()
        path, other = self.path, self.path.with_name("other.db")
        self.path = other
        self._open()
        self._run(f"PRAGMA page_size={self.page_size}")
        self._run(f"PRAGMA auto_vacuum={auto_vacuum}")
        self._run("PRAGMA journal_mode=WAL")
        for sql in random.sample((_BLOBS, "CREATE TABLE x1 (a)", "CREATE TABLE x2 (a)"), random.randrange(3)):
            self._run(sql)
        for kind in random.choices(("insert", "blobs"), k=3):
            getattr(self, f"_{kind}")(random)
        self._run(f"PRAGMA schema_version={version}")
        self.close()
        self.path = path
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        other.replace(path)
        self._open()

    def _make_tables(self) -> None:
        self._run("CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, k INTEGER, v)")
        self._run("CREATE INDEX IF NOT EXISTS t_k ON t (k)")
        self._run(_BLOBS)

    # --- other affairs ------------------------------------------------------------------------------------------------

    def affair(self, kind: str, n: int) -> None:
        """Something of AFFAIRS, which changes nothing that others see, or ends a transaction."""
        getattr(self, f"_{kind}")(Random(n))

    def _begin(self, random: Random) -> None:
        """From here on, changes are one transaction."""
        if self._writer.in_transaction:
            return
        self._run("BEGIN IMMEDIATE")

    def _finish(self, random: Random) -> None:
        if self._writer.in_transaction:
            self._run(random.choice(("COMMIT", "COMMIT", "ROLLBACK")))

    def _reader_begins(self, random: Random) -> None:
        """A reader keeps one state for long: no checkpoint gets past it."""
        self._reader_ends(random)
        self._reader.execute("BEGIN").fetchall()
        self._reader.execute("SELECT count(*) FROM sqlite_schema").fetchall()

    def _reader_ends(self, random: Random) -> None:
        if self._reader.in_transaction:
            self._reader.execute("ROLLBACK").fetchall()

    def _checkpoint(self, random: Random) -> None:
        if not self._writer.in_transaction:
            self._run(f"PRAGMA wal_checkpoint({random.choice(CHECKPOINTS)})")

    def _reopen(self, random: Random) -> None:
        """The program ends and starts again; the last one to close checkpoints and deletes the WAL."""
        self.close()
        self._open()


def _text(random: Random) -> str:
    return "".join(random.choices(_LETTERS, k=random.choice((0, 10, 80, 400))))
