"""The databases that are read in benchmarks, and their replicas.

Each is made once and kept in the system's folder for temporary files. Knows nothing of what is measured.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
from _competitors import digest

from litevfs.ltx import Encoder, Header, format_file_name

PAGE_SIZE = 4096  # bytes
ROWS = 400_000
"""Rows of the full-size database, whose LTX file has 41 MB."""
FULL_SIZE_BYTES = 86_802_432
SMALL_ROWS = 10_000
ROWS_PER_BATCH = 200
"""Rows that share a value of the indexed column; they lie scattered over the whole table."""
TIMESTAMP_MS = 1_767_225_600_000  # of the replica's one transaction: 2026-01-01
_CONTENT_VERSION = 1  # part of the cache folder's name: raise it when the content changes
_WORDS = 3000
_PHRASES = 6


@dataclass(frozen=True, slots=True)
class OneFile:
    """A database and a replica of it that is one LTX snapshot, made in a `cached_folder` of their own."""

    folder: Path

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "database.db"

    @property
    def ltx_file(self) -> Path:
        """The replica's only file."""
        return self.folder / "snapshot.ltx"

    @property
    def sizes(self) -> str:
        """Of both, for a title."""
        return " and ".join(
            f"{path.stat().st_size / 1e6:.3g} MB of {kind}"
            for path, kind in ((self.database, "SQLite"), (self.ltx_file, "LTX"))
        )

    def make(self, schema: str, fill: Callable[[apsw.Connection], object], page_size: int) -> None:
        """Make both, with what `fill` does in one transaction."""
        with closing(apsw.Connection(str(self.database))) as connection:
            connection.execute(f"PRAGMA page_size={page_size}; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")
            connection.execute(schema)
            with connection:
                fill(connection)
            connection.execute("VACUUM")
        write_snapshot(self.ltx_file, self.database.read_bytes(), page_size)

    def answer(self, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> str:
        """A digest of what SQLite itself says, on the local file."""
        return digest([answer_on(self.database, sql, parameters)])


def answer_on(path: Path, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> Any:
    """What SQLite itself says, on a local file."""
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        return connection.execute(sql, parameters).get


@dataclass(frozen=True, slots=True)
class Dataset:
    """A database file in rollback-journal mode, its copy in WAL mode, and a replica of it that is one LTX snapshot."""

    rows: int
    folder: Path

    @property
    def database(self) -> Path:
        """The SQLite file, in rollback-journal mode."""
        return self.folder / "rollback.db"

    @property
    def wal_database(self) -> Path:
        """The same in WAL mode."""
        return self.folder / "wal.db"

    @property
    def replica_url(self) -> str:
        """The replica as a folder."""
        return f"file://{self.folder}/replica"

    @property
    def ltx_file(self) -> Path:
        """The replica's only file."""
        return self.folder / "replica" / "ltx" / "9" / format_file_name(1, 1)

    @property
    def batches(self) -> int:
        """Different values of the indexed column `batch`, from 0 on."""
        return self.rows // ROWS_PER_BATCH

    def answer(self, sql: str, parameters: Sequence[object] = ()) -> Any:
        """What SQLite itself says, on the local file."""
        return answer_on(self.database, sql, parameters)


def dataset(rows: int) -> Dataset:
    """The benchmark database with `rows` rows, made on first use."""
    folder = cached_folder(f"orders-{rows}-v{_CONTENT_VERSION}", lambda folder: _make_dataset(Dataset(rows, folder)))
    return Dataset(rows, folder)


def cached_folder(name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills once and for all; whole or not there at all."""
    caches = Path(tempfile.gettempdir()) / f"litevfs-benchmarks-{os.getuid()}"
    caches.mkdir(mode=0o700, exist_ok=True)
    folder = caches / name
    if not folder.exists():
        print(f"making {folder} ...", file=sys.stderr)
        unfinished = Path(tempfile.mkdtemp(dir=caches))
        try:
            make(unfinished)
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():  # nor has another process just made it
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _make_dataset(target: Dataset) -> None:
    with closing(apsw.Connection(str(target.database))) as connection:
        connection.execute(f"PRAGMA page_size={PAGE_SIZE}; PRAGMA journal_mode=DELETE; PRAGMA synchronous=OFF")
        connection.execute(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, batch INTEGER, customer TEXT, amount INTEGER, note TEXT)"
        )
        with connection:
            connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", _rows(target))
            connection.execute("CREATE INDEX orders_by_batch ON orders (batch)")
    shutil.copyfile(target.database, target.wal_database)
    with closing(apsw.Connection(str(target.wal_database))) as connection:
        connection.pragma("journal_mode", "wal")
    target.ltx_file.parent.mkdir(parents=True)
    write_snapshot(target.ltx_file, target.database.read_bytes(), PAGE_SIZE)


def _rows(target: Dataset) -> Iterable[tuple[int, int, str, int, str]]:
    """Text that compresses to half its size, as that of real rows does: most of a note is one of few phrases."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(_WORDS)]
    phrases = [" ".join(rng.choices(words, k=21)) for _ in range(_PHRASES)]
    for i in range(target.rows):
        note = f"{rng.choice(phrases)} {' '.join(rng.choices(words, k=3))}"
        yield i, i % target.batches, " ".join(rng.choices(words, k=2)), rng.randrange(100_000), note


def write_snapshot(path: Path, database: bytes, page_size: int) -> None:
    """Write `database` as an LTX snapshot with TXID 1."""
    commit = len(database) // page_size
    encoder = Encoder(Header(page_size=page_size, commit=commit, min_txid=1, max_txid=1, timestamp_ms=TIMESTAMP_MS))
    with path.open("wb") as file:
        file.write(encoder.begin())
        for i in range(commit):
            file.write(encoder.page(i + 1, database[i * page_size : (i + 1) * page_size]))
        file.write(encoder.finish())
