"""How result sets are written. The oracle for CSV and JSON is the standard library's reader."""

from __future__ import annotations

import csv
import io
import json
import math
import tracemalloc

import apsw
import pytest

from litevfs.commands.results import (
    FORMATS,
    MAX_CELL_COLUMNS,
    SAMPLE_ROWS,
    TableWriter,
    TerminalTableWriter,
    make_writer,
    write_results,
)

VALUES = "SELECT NULL AS a, '' AS b, x'00FF' AS c, 1.5 AS d, 'a,b \"c\"' AS e, -7 AS f"


def written(sql: str, form: str, header: bool | None = None) -> str:
    out = io.StringIO()
    connection = apsw.Connection(":memory:")
    write_results(connection, sql, make_writer(form, out, header))
    connection.close()
    return out.getvalue()


def test_list_is_what_the_sqlite_shell_prints_into_a_pipe():
    assert written("SELECT 1, 'x', NULL, 2.5; SELECT 'next'", "list") == "1|x||2.5\nnext\n"
    assert written("SELECT 1 AS a, 2 AS b", "list", header=True) == "a|b\n1|2\n"


def test_csv_reads_back_and_tells_null_from_empty_text():
    text = written(VALUES, "csv")
    assert list(csv.reader(io.StringIO(text))) == [
        ["a", "b", "c", "d", "e", "f"],
        ["", "", "X'00FF'", "1.5", 'a,b "c"', "-7"],
    ]
    assert text.splitlines()[1].startswith(',"",')


@pytest.mark.parametrize("value", ["line\nbreak", "\r", '"', " padded ", "a,b", "日本", "''"])
def test_csv_text_reads_back(value: str):
    quoted = value.replace("'", "''")
    assert list(csv.reader(io.StringIO(written(f"SELECT '{quoted}'", "csv", header=False), newline=""))) == [[value]]


def test_csv_without_header():
    assert written("SELECT 1 AS a", "csv", header=False) == "1\n"


def test_json_reads_back():
    expected = {"a": None, "b": "", "c": "X'00FF'", "d": 1.5, "e": 'a,b "c"', "f": -7}
    assert json.loads(written(VALUES, "json")) == [expected]
    assert json.loads(written(VALUES, "jsonl")) == expected


def test_json_of_several_rows_and_of_none():
    assert json.loads(written("SELECT value AS v FROM json_each('[1,2,3]')", "json")) == [{"v": 1}, {"v": 2}, {"v": 3}]
    assert json.loads(written("SELECT 1 AS a WHERE 0", "json")) == []
    assert written("SELECT 1 AS a WHERE 0", "jsonl") == ""


def test_infinity_is_valid_json_and_valid_sql():
    row = json.loads(written("SELECT 9e999 AS p, -9e999 AS n", "jsonl"), parse_constant=pytest.fail)
    assert row == {"p": math.inf, "n": -math.inf}


def test_floats_and_integers_read_back_exactly():
    row = json.loads(written("SELECT 0.1 + 0.2 AS f, 9223372036854775807 AS i", "jsonl"))
    assert row == {"f": 0.1 + 0.2, "i": 2**63 - 1}


def test_lines_are_one_a_column_and_a_blank_line_between_rows():
    text = written("SELECT 1 AS a, 'x' AS long UNION ALL SELECT 2, NULL", "lines")
    assert text == "   a = 1\nlong = x\n\n   a = 2\nlong = \n"


def test_table_aligns_numbers_right_and_text_left_by_columns_on_the_screen():
    text = written(
        "SELECT 'Ada' AS name, 5 AS n UNION ALL SELECT '日本', 1234 UNION ALL SELECT 'e\u0301', NULL", "table"
    )
    assert text.splitlines() == [
        "name     n",
        "----  ----",
        "Ada      5",
        "日本  1234",
        "e\u0301     NULL",
    ]


def test_table_escapes_what_could_move_the_cursor():
    text = written("SELECT 'a' || char(10) || char(27) || '[2J' || char(8232) AS x", "table")
    assert text.splitlines()[2] == r"a\n\x1b[2J\u2028"


def test_table_cuts_long_values():
    (line,) = written("SELECT printf('%.*c', 5000, 'x'), zeroblob(100000)", "table", header=False).splitlines()
    text, blob = line.split("  ")
    assert text == "x" * (MAX_CELL_COLUMNS - 1) + "…"
    assert blob == "X'" + "0" * (MAX_CELL_COLUMNS - 3) + "…"


@pytest.mark.parametrize("writer", [TableWriter, TerminalTableWriter])
def test_a_table_keeps_no_more_of_long_values_than_it_shows(writer):
    drawing = writer(io.StringIO())
    drawing.begin(["a", "b"])
    tracemalloc.start()
    try:
        for _ in range(100):
            drawing.row(("x" * 500_000, bytes(500_000)))
        assert tracemalloc.get_traced_memory()[0] < 2_000_000
    finally:
        tracemalloc.stop()


def test_table_has_a_head_without_rows_and_blank_lines_between_results():
    assert written("SELECT 1 AS a WHERE 0; SELECT 2 AS b", "table") == "a\n-\n\nb\n-\n2\n"


def test_table_of_any_length_is_written_while_it_runs():
    out = io.StringIO()
    writer = make_writer("table", out, None)
    writer.begin(["v"])
    for number in range(SAMPLE_ROWS):
        assert not out.getvalue(), "the first rows say how wide columns are"
        writer.row([number])
    for number in range(SAMPLE_ROWS, SAMPLE_ROWS * 3):
        writer.row([number])
        assert out.getvalue().endswith(f"{number}\n")
    writer.end()
    assert [int(line) for line in out.getvalue().splitlines()[2:]] == list(range(SAMPLE_ROWS * 3))


@pytest.mark.parametrize("form", FORMATS)
def test_statements_without_columns_print_nothing(form: str):
    assert written("BEGIN; CREATE TABLE t(a); COMMIT", form) == ""
