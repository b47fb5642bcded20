"""Which trees a statement reads whole before it has a row, read off its program."""

from __future__ import annotations

from contextlib import closing

import apsw
import pytest

from litevfs.bindings.programs import plan_of

_SCHEMA = """
    CREATE TABLE orders (id INTEGER PRIMARY KEY, batch, customer, amount, note);
    CREATE INDEX orders_by_batch ON orders (batch);
    CREATE TABLE users (id INTEGER PRIMARY KEY, name);
    CREATE TABLE pairs (a, b, PRIMARY KEY (a, b)) WITHOUT ROWID
"""
WHOLE = {
    "SELECT count(note), sum(amount), (SELECT sum(batch) FROM orders INDEXED BY orders_by_batch) FROM orders": [
        "orders",
        "orders_by_batch",
    ],
    "SELECT (SELECT sum(name) FROM users), (SELECT sum(amount) FROM orders)": ["users", "orders"],
    "SELECT count(*) FROM orders": ["orders_by_batch"],
    "SELECT max(amount) FROM orders WHERE note LIKE '%x%' AND customer IN (1, 2) OR amount BETWEEN 3 AND 4": ["orders"],
    "SELECT sum(CASE WHEN amount > 5 THEN 1 ELSE 0 END) FROM orders": ["orders"],
    "SELECT * FROM orders ORDER BY note": ["orders"],
    "SELECT note FROM orders ORDER BY amount LIMIT 3": ["orders"],
    "SELECT customer, count(*) FROM orders GROUP BY customer": ["orders"],
    "SELECT count(DISTINCT customer) FROM orders": ["orders"],
    "SELECT count(*), sum(a) FROM pairs": ["pairs"],
    "SELECT sum(amount) FROM orders UNION ALL SELECT sum(name) FROM users": ["orders"],
}
NOT_WHOLE = [
    "SELECT * FROM orders",
    "SELECT name FROM users UNION ALL SELECT sum(amount) FROM orders",
    "SELECT max(batch) FROM orders",
    "SELECT sum(amount) FROM orders WHERE id < 1000",
    "SELECT sum(amount) FROM orders WHERE id > 5",
    "SELECT sum(amount) FROM orders WHERE batch = 5",
    "SELECT EXISTS (SELECT 1 FROM orders WHERE note = 'x')",
    "SELECT sum(amount) FROM (SELECT amount FROM orders LIMIT 10)",
    "SELECT batch, count(*) FROM orders GROUP BY batch",
    "SELECT count(*) FROM orders o JOIN users u ON u.id = o.customer",
    "SELECT count(*) FROM users WHERE name IN (SELECT customer FROM orders)",
    "SELECT sum(amount) FROM orders, users",
    "SELECT CASE abs(-1) WHEN 0 THEN (SELECT sum(name) FROM users) ELSE (SELECT sum(amount) FROM orders) END",
    "SELECT (SELECT sum(amount) FROM orders WHERE customer = users.name) FROM users",
    "SELECT 1",
]


def scans(sql: str) -> list[str]:
    """The names of the trees that are read whole, one after the other."""
    with closing(apsw.Connection(":memory:")) as connection:
        connection.execute(_SCHEMA)
        names = dict(connection.execute("SELECT rootpage, name FROM sqlite_schema").fetchall())
        return [names[root] for root in plan_of(connection.execute(f"EXPLAIN {sql}").fetchall()).scans]


@pytest.mark.parametrize("sql", WHOLE)
def test_trees_that_a_statement_reads_whole_are_known_in_their_order(sql):
    assert scans(sql) == WHOLE[sql]


@pytest.mark.parametrize("sql", NOT_WHOLE)
def test_a_tree_that_a_row_a_limit_or_a_condition_may_end_is_none_of_them(sql):
    assert scans(sql) == []


def test_a_statement_that_only_scans_is_not_rehearsed_and_a_join_is():
    with closing(apsw.Connection(":memory:")) as connection:
        connection.execute(_SCHEMA)

        def is_worth_it(sql: str) -> bool:
            return plan_of(connection.execute(f"EXPLAIN {sql}").fetchall()).is_worth_it

        assert not is_worth_it("SELECT sum(amount), (SELECT sum(name) FROM users) FROM orders")
        assert is_worth_it("SELECT sum(amount), (SELECT name FROM users WHERE id = 7) FROM orders")
        assert is_worth_it("SELECT count(*) FROM orders o JOIN users u ON u.id = o.customer")
