"""What is read off SQLite's program of a statement: how many rows a LIMIT lets through."""

from __future__ import annotations

import apsw
import pytest

from litevfs.bindings.programs import FEW_PAGES, MANY_PAGES, Plan, plan_of

_SCHEMA = """
    CREATE TABLE orders (id INTEGER PRIMARY KEY, batch INTEGER, amount INTEGER, note TEXT);
    CREATE INDEX orders_by_batch ON orders (batch);
    CREATE TABLE likes (user_id, post_id, PRIMARY KEY (user_id, post_id)) WITHOUT ROWID
"""
BY_BATCH = "SELECT * FROM orders WHERE batch = 7"


def _plan(sql: str, values: object = None) -> Plan:
    connection = apsw.Connection(":memory:")
    connection.execute(_SCHEMA)
    cursor = connection.execute(f"EXPLAIN {sql}", values)
    names = cursor.bindings_names
    return plan_of(cursor.fetchall(), names=names)


@pytest.mark.parametrize(
    ("sql", "values", "rows"),
    [
        (f"{BY_BATCH} LIMIT 20", (), 20),
        (f"{BY_BATCH} LIMIT 20 OFFSET 40", (), 20),
        (f"{BY_BATCH} ORDER BY id DESC LIMIT 20", (), 20),
        (f"{BY_BATCH} LIMIT ?", (30,), 30),
        ("SELECT * FROM orders WHERE batch = ? LIMIT ? OFFSET ?", (7, 30, 5), 30),
        ("SELECT * FROM orders WHERE batch = :batch LIMIT :most", {"batch": 7, "most": 40}, 40),
        ("SELECT * FROM orders WHERE batch = ?2 LIMIT ?1", (40, 7), 40),
        (f"SELECT count(*), max(note) FROM ({BY_BATCH} LIMIT 20)", (), 20),
        (f"SELECT * FROM ({BY_BATCH} LIMIT 5) UNION ALL SELECT * FROM ({BY_BATCH} LIMIT 9)", (), 9),
        (f"{BY_BATCH} LIMIT 0", (), 0),
        (f"{BY_BATCH} LIMIT -1", (), None),
        (f"{BY_BATCH} LIMIT ?", (None,), None),
        (f"{BY_BATCH} LIMIT ?", ("20",), None),
        (f"{BY_BATCH} LIMIT 10 + 10", (), None),
        (f"{BY_BATCH} ORDER BY note LIMIT 20", (), None),  # all rows are sorted first
        (BY_BATCH, (), None),
    ],
)
def test_the_rows_that_a_limit_lets_through_are_known(sql, values, rows):
    assert _plan(sql, values).rows(values) == rows


@pytest.mark.parametrize(
    ("sql", "values", "has_numbers"),
    [
        (f"{BY_BATCH} LIMIT ?", (30,), True),  # SQLite writes the value into its program
        ("SELECT * FROM orders WHERE batch = ? LIMIT 3", (7,), True),
        ("SELECT * FROM orders WHERE batch = ?", (7,), False),
        ("SELECT a.id FROM orders a JOIN orders b ON b.id = a.amount WHERE a.id > 30", (), True),
    ],
)
def test_a_plan_that_may_hold_the_values_of_one_run_says_so(sql, values, has_numbers):
    assert _plan(sql, values).has_numbers is has_numbers


@pytest.mark.parametrize(
    ("sql", "is_listed"),
    [
        ("SELECT * FROM orders WHERE batch IN (3, 7, 9)", True),
        ("SELECT * FROM orders WHERE id IN (SELECT post_id FROM likes)", True),
        ("SELECT * FROM orders WHERE id IN (SELECT value FROM json_each('[1, 2]'))", True),
        (BY_BATCH, False),
        ("SELECT * FROM likes JOIN orders ON id = post_id WHERE user_id IN (1, 2, 3)", True),
        ("SELECT * FROM orders WHERE amount IN (1, 2, 3)", False),  # it looks up nothing
    ],
)
def test_a_loop_through_values_that_are_in_no_tree_is_known(sql, is_listed):
    assert _plan(sql).is_listed is is_listed


@pytest.mark.parametrize(
    "subquery",
    [
        "SELECT 1 FROM likes WHERE post_id = o.amount LIMIT 1",
        "SELECT post_id FROM likes WHERE user_id = o.amount ORDER BY post_id DESC LIMIT 3",
    ],
)
def test_a_limit_within_what_runs_for_each_row_ends_no_other_part(subquery):
    plan = _plan(f"SELECT id, ({subquery}) FROM orders o WHERE batch = 7")
    assert plan.rows(()) is None
    assert plan.pages(()) == MANY_PAGES
    limited = _plan(f"SELECT id, ({subquery}) FROM orders o WHERE batch = 7 LIMIT 30")
    assert limited.rows(()) == 30


def test_a_limit_bounds_what_the_first_rehearsal_may_miss():
    assert _plan(BY_BATCH).pages(()) == MANY_PAGES
    assert _plan(f"{BY_BATCH} ORDER BY note LIMIT 20").pages(()) == MANY_PAGES
    assert _plan(f"{BY_BATCH} LIMIT -1").pages(()) == MANY_PAGES
    assert _plan(f"{BY_BATCH} LIMIT 10 + 10").pages(()) == FEW_PAGES
    assert _plan(f"{BY_BATCH} LIMIT 2").pages(()) == FEW_PAGES
    assert _plan(f"{BY_BATCH} LIMIT 20").pages(()) == 20
    assert _plan(f"{BY_BATCH} LIMIT 100000").pages(()) == MANY_PAGES


@pytest.mark.parametrize(
    ("sql", "shows"),
    [
        (BY_BATCH, True),
        ("SELECT note FROM orders WHERE batch BETWEEN 3 AND 7 AND amount > 5", True),
        ("SELECT id FROM orders WHERE batch = 7", False),  # the index has it all
        ("SELECT sum(amount) FROM orders WHERE batch = 7", False),
        ("SELECT DISTINCT amount FROM orders WHERE batch = 7", False),
        (f"{BY_BATCH} ORDER BY note", False),
        ("SELECT * FROM orders JOIN likes ON user_id = amount WHERE batch = 7", False),
        ("SELECT * FROM orders", False),
    ],
)
def test_whether_a_query_has_a_row_for_each_that_it_looks_up_is_known(sql, shows):
    assert _plan(sql).shows_rows is shows


@pytest.mark.parametrize(
    ("sql", "is_lookup", "of_all"),
    [
        (BY_BATCH, True, True),
        ("SELECT count(*), max(note) FROM orders WHERE batch = 7", True, True),
        (f"{BY_BATCH} ORDER BY note", True, True),
        (f"{BY_BATCH} LIMIT 20", True, False),
        (f"SELECT EXISTS ({BY_BATCH} AND note = 'a')", True, False),
        ("SELECT batch FROM orders WHERE batch = 7", False, False),  # the index says it all
        ("SELECT * FROM orders WHERE id = 7", False, False),
        ("SELECT * FROM orders WHERE batch IN (3, 7, 9)", False, False),  # many ranges
        ("SELECT * FROM orders JOIN likes ON user_id = amount WHERE batch = 7", False, False),
    ],
)
def test_whether_a_query_looks_up_all_that_one_index_leads_to_is_known(sql, is_lookup, of_all):
    plan = _plan(sql)
    assert (plan.is_lookup, plan.looks_up_all(())) == (is_lookup, of_all)


@pytest.mark.parametrize(
    ("sql", "outer"),
    [
        ("SELECT count(*) FROM orders o JOIN users u ON u.id = o.amount", {"orders": False}),
        ("SELECT * FROM orders o JOIN users u ON u.id = o.amount ORDER BY o.id DESC", {"orders": True}),
        ("SELECT u.name FROM orders o JOIN users u ON u.id = o.amount WHERE batch > 7", {"orders_by_batch": False}),
        (
            "SELECT * FROM likes CROSS JOIN orders ON batch = post_id CROSS JOIN users u ON u.id = amount",
            {"likes": False},
        ),
        (
            "SELECT name FROM orders JOIN users u ON u.id = amount UNION ALL "
            "SELECT name FROM likes JOIN users u ON u.id = post_id",
            {"orders": False, "likes": False},
        ),
        ("SELECT * FROM orders a JOIN orders b ON b.id = a.amount", {"orders": False}),
        ("SELECT * FROM orders a JOIN orders b ON b.id = a.amount ORDER BY a.id DESC", {"orders": True}),
        ("SELECT * FROM orders a JOIN orders b ON b.id = a.amount WHERE a.id > 9", {"orders": False}),
        (
            "SELECT * FROM orders a JOIN orders b ON b.id = a.amount WHERE a.id > 9 AND a.id <= 99 ORDER BY a.id DESC",
            {"orders": True},
        ),
        ("SELECT * FROM orders a JOIN orders b ON b.id = a.amount WHERE a.batch > 9", {"orders_by_batch": False}),
        ("SELECT * FROM orders", {}),
        (BY_BATCH, {}),  # look-ups in its own table: the watcher sees those
        ("SELECT * FROM users WHERE id IN (1, 2, 3)", {}),
    ],
)
def test_the_trees_that_the_outermost_loops_go_through_are_known(sql, outer):
    connection = apsw.Connection(":memory:")
    connection.execute(f"{_SCHEMA}; CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
    names = dict(connection.execute("SELECT rootpage, name FROM sqlite_schema").fetchall())
    names[connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'likes'").get] = "likes"
    plan = plan_of(connection.execute(f"EXPLAIN {sql}").fetchall())
    assert {names[tree.root]: tree.is_descending for tree in plan.outer} == outer
    assert all(tree.is_shared is ("orders b" in sql and "a.batch" not in sql) for tree in plan.outer)


@pytest.mark.parametrize(
    ("limit", "pages", "ends_soon"),
    [
        ("", 256, False),
        ("LIMIT 40", 40, True),
        ("LIMIT 40 OFFSET 60", 100, True),
        ("LIMIT 40 OFFSET 3000", 256, False),
        ("LIMIT 40 OFFSET ?", 256, False),
    ],
)
def test_rows_that_an_offset_passes_over_are_joined_too(limit, pages, ends_soon):
    sql = f"SELECT * FROM orders CROSS JOIN likes ON user_id = amount AND post_id = batch {limit}"
    values = (3000,) if "?" in limit else ()
    plan = _plan(sql, values)
    assert (plan.pages(values), plan.ends_soon(values)) == (pages, ends_soon)


@pytest.mark.parametrize(
    ("where", "values", "rowid"),
    [
        ("", (), None),
        ("WHERE a.id > 9", (), 9),
        ("WHERE a.id BETWEEN ? AND ?", (20, 30), 20),
        ("WHERE a.id < :last ORDER BY a.id DESC", {"last": 70}, 70),
        ("WHERE a.id > 9.5", (), ()),
        ("WHERE a.id >= ?", ("12",), ()),
        ("WHERE a.id > ?", (1 << 63 - 1,), ()),
        ("WHERE a.id > (SELECT max(amount) FROM orders c)", (), ()),
    ],
)
def test_a_loop_over_a_table_that_is_looked_into_begins_with_a_rowid_that_is_known(where, values, rowid):
    plan = _plan(f"SELECT * FROM orders a JOIN orders b ON b.id = a.amount {where}", values)
    assert [begins for _, begins in plan.outer_loops(values).values()] == ([] if rowid == () else [rowid])
