"""One database for every door: as a replica in a folder, and as a local file that the same tool reads by itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from litevfs.replica_clients.file import FileReplicaClient
from tests.primary import Primary

collect_ignore = ["sqlalchemy_suite"]
"""A run of its own (see `test_sqlalchemy_suite.py`): SQLAlchemy's plugin takes over pytest."""

SCHEMA = """
CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT NOT NULL, city VARCHAR(40) DEFAULT 'Bern');
CREATE TABLE sale(
    id INTEGER PRIMARY KEY,
    customer_id INTEGER NOT NULL REFERENCES customer(id),
    price REAL,
    paid BOOLEAN,
    placed DATETIME,
    picture BLOB,
    note TEXT
);
CREATE INDEX sale_customer ON sale(customer_id);
CREATE UNIQUE INDEX customer_name ON customer(name);
CREATE VIEW spent AS SELECT name, sum(price) AS total FROM sale JOIN customer ON customer.id = customer_id GROUP BY 1;
INSERT INTO customer VALUES (1, 'Ada', 'Bern'), (2, 'Björn', NULL), (3, 'Zoë "Z"', 'Köln');
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
INSERT INTO sale SELECT i, i % 3 + 1, i * 1.25, i % 2, '2026-01-01 10:00:' || printf('%02d', i % 60),
    CASE WHEN i % 5 THEN zeroblob(i % 7) END, CASE WHEN i % 4 THEN 'note ' || i END FROM n;
"""


@dataclass(frozen=True, slots=True)
class Shop:
    """The database and where it lies."""

    primary: Primary
    folder: Path  # of the replica
    local: Path  # the same as an ordinary database file

    @property
    def url(self) -> str:
        return self.folder.as_uri()

    def copy(self) -> None:
        """Make the local file the newest state."""
        image = self.primary.images[self.primary.txid]
        self.local.write_bytes(image[:18] + b"\x01\x01" + image[20:])  # no WAL lies beside it


def open_shop(folder: Path) -> Iterator[Shop]:
    with Primary(FileReplicaClient(folder / "replica")) as primary:
        primary.commit(SCHEMA)
        shop = Shop(primary, folder / "replica", folder / "local.db")
        shop.copy()
        yield shop
        primary.client.close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """For tests that only read."""
    yield from open_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def live_shop(tmp_path: Path) -> Iterator[Shop]:
    """For tests that commit."""
    yield from open_shop(tmp_path)


@pytest.fixture
def local(shop: Shop) -> Iterator[sqlite3.Connection]:
    """The oracle: the standard library on the local file."""
    with closing(sqlite3.connect(shop.local)) as connection:
        yield connection
