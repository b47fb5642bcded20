"""A table that shows in one row whether a read mixed two states."""

from __future__ import annotations

from tests.primary import Primary

LEDGER = "SELECT count(*), sum(amount), min(version), max(version) FROM ledger"
"""One row tells whether a read mixed two states: all versions are the same, and the sum is 0."""


def start_ledger(primary: Primary) -> None:
    primary.commit(
        "CREATE TABLE ledger(id INTEGER PRIMARY KEY, amount INT, version INT, note TEXT);"
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) "
        "INSERT INTO ledger SELECT i, CASE i % 2 WHEN 0 THEN i ELSE -i - 1 END, 0, hex(randomblob(50)) FROM n"
    )


def next_version(primary: Primary) -> int:
    """A transaction that touches every leaf."""
    return primary.commit("UPDATE ledger SET version = version + 1")
