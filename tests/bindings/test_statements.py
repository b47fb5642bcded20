"""Which statements are rehearsed: queries, whatever stands before them, with values that any connection knows."""

from __future__ import annotations

import pytest

from litevfs.bindings.statements import Noted, Statement, as_statement, blank_until


@pytest.mark.parametrize("before", ["", " \n\t", "-- a\n-- b\n", "/* a */ /* b\n */", "-- WITH\n/* SELECT */ ;"])
@pytest.mark.parametrize("query", ["SELECT 1", "with t AS (SELECT 1) SELECT * FROM t", "VALUES (1)"])
def test_a_query_is_known_behind_comments(before, query):
    assert as_statement(before + query, None) == Statement(before + query, ())
    assert blank_until(before + query) == len(before)


@pytest.mark.parametrize(
    "sql", ["PRAGMA user_version", "INSERT INTO t VALUES (1)", "SELECTED", "", "-- SELECT 1", "/* "]
)
def test_nothing_else_is_one(sql):
    assert as_statement(sql, ()) is None
    assert as_statement("/* a */ -- b\n" * 2000 + sql, ()) is None  # at once


def test_values_that_only_their_own_connection_knows_make_it_none():
    assert as_statement("SELECT ?, ?", [1, b"x"]) == Statement("SELECT ?, ?", (1, b"x"))
    assert as_statement("SELECT :a", {"a": None}) == Statement("SELECT :a", {"a": None})
    for values in ([object()], {"a": object()}, "text", 7):
        assert as_statement("SELECT ?", values) is None


def test_what_was_noted_holds_for_the_transaction_in_which_it_waits():
    noted = Noted()
    assert noted.find(1) is None
    assert noted.note(None, "SELECT 1", None)
    running = noted.find(2)
    assert running is noted.find(2)
    assert running.find() == Statement("SELECT 1", ())
    assert noted.find(3) is None
    noted.note(None, "SELECT 1", None)
    again = noted.find(3)
    assert again.find() == Statement("SELECT 1", ())
    assert again.run != running.run
    noted.note(None, "PRAGMA user_version", None)
    assert noted.find(4).find() is None


def test_blobs_of_a_statement_without_parameters_are_bound():
    quoted = """'it''s X''00''', "x'00'", `x'00`, [x'00], 1 /* x'00' */ -- x'00'\n"""
    sql, bound = f"SELECT x'C328', {quoted}, X''", f"SELECT ?, {quoted}, ?"
    assert as_statement(sql, None) == as_statement(sql, ()) == Statement(bound, (b"\xc3\x28", b""))
    assert as_statement(sql, [1]) == Statement(sql, (1,))
