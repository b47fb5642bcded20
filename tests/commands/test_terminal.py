"""Tables on a terminal: their width, wide characters, NULL, blobs; a pipe gets plain text whatever TERM says."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from litevfs.commands.results import SAMPLE_ROWS, make_writer, write_results
from litevfs.commands.terminal import draw_table
from litevfs.commands.text import width

ORDERS = Path(__file__).resolve().parents[1] / "fixtures" / "orders" / "replica"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain(text: str) -> list[str]:
    """The lines without colors."""
    return re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()


def drawn(sql: str, monkeypatch: pytest.MonkeyPatch, *, columns: int = 80, header: bool | None = None) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    connection = apsw.Connection(":memory:")
    write_results(connection, sql, make_writer("table", out, header))
    connection.close()
    return out.getvalue()


def test_cells_stand_in_their_columns_on_the_screen(monkeypatch):
    text = drawn("SELECT 'Ada' AS name, 5 AS n UNION ALL SELECT '日本', 1234 UNION ALL SELECT '[b]', NULL", monkeypatch)
    assert plain(text) == [
        "╭──────┬──────╮",
        "│ name │ n    │",
        "├──────┼──────┤",
        "│ Ada  │    5 │",
        "│ 日本 │ 1234 │",
        "│ [b]  │ NULL │",
        "╰──────┴──────╯",
    ]
    assert len({width(line) for line in plain(text)}) == 1


def test_a_result_with_more_columns_than_the_terminal_shows_has_a_line_for_each_value(monkeypatch):
    values = ", ".join(f"'a longer text' AS c{i}" for i in range(20))
    lines = drawn(f"SELECT {values} UNION ALL SELECT {values}; SELECT 1 AS next", monkeypatch).splitlines()
    assert lines[:2] == [" c0 = a longer text", " c1 = a longer text"]
    assert lines[19:22] == ["c19 = a longer text", "", " c0 = a longer text"]
    assert plain("\n".join(lines))[42] == "│ next │"
    assert drawn("SELECT " + ", ".join("1" * 15), monkeypatch).startswith("╭")  # short ones fit


def test_null_does_not_look_like_a_text_and_a_blob_is_written_as_sql_writes_it(monkeypatch):
    text = drawn("SELECT NULL, 'NULL', x'00FF', '', 1.5", monkeypatch)
    (row,) = [line for line in text.splitlines() if "X'00FF'" in line]
    assert len(re.findall(r"\x1b\[[\d;]+mNULL\x1b\[0m", row)) == 1
    assert plain(row)[0].count("NULL") == 2


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_lost(monkeypatch, columns):
    words = "".join(chr(97 + i % 26) for i in range(90))
    text = drawn(f"SELECT '{words}' AS a, '日本語日本語日本語' AS b", monkeypatch, columns=columns, header=False)
    assert max(width(line) for line in plain(text)) <= columns
    letters = re.sub(r"[^a-z]", "", "".join(plain(text)))
    assert letters == words


def test_what_could_move_the_cursor_is_escaped(monkeypatch):
    text = drawn("SELECT 'a' || char(10) || char(27) || '[2J' AS x, 1 AS \"\x1b[2J\"", monkeypatch)
    assert r"a\n\x1b[2J" in text
    assert "\x1b[2J" not in text


def test_a_result_without_rows_has_a_head_and_long_results_are_drawn_while_they_run(monkeypatch):
    assert plain(drawn("SELECT 1 AS a WHERE 0", monkeypatch))[1] == "│ a │"
    monkeypatch.setenv("COLUMNS", "80")
    out = Terminal()
    writer = make_writer("table", out, None)
    writer.begin(["v"])
    for number in range(SAMPLE_ROWS + 1):
        writer.row([number])
    assert f"{SAMPLE_ROWS - 1}" in out.getvalue()
    writer.end()
    rows = [int(line.strip("│ ")) for line in plain(out.getvalue()) if line.strip("│ ").isdecimal()]
    assert rows == list(range(SAMPLE_ROWS + 1))


def test_colors_are_left_out_where_the_environment_says_so(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b[3" not in draw_table(["a"], [["b"]], width=20)


def on_terminal(*arguments: str) -> str:
    """What the command shows on a real terminal."""
    ours, its = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-m", "litevfs", *arguments]
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment) as process:
        os.close(its)
        shown = bytearray()
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if not piece:
                break
            shown += piece
        os.close(ours)
        assert process.wait(30) == 0, shown
    return shown.decode()


@pytest.mark.slow
def test_on_a_real_terminal_a_query_a_listing_and_a_restore_are_drawn_and_into_a_pipe_they_are_not(tmp_path):
    url = str(ORDERS)
    assert "╭" in on_terminal("query", url, "SELECT 1 AS one")
    assert "╭" in on_terminal("history", url)
    shown = on_terminal("restore", url, "-o", str(tmp_path / "restored.db"))
    assert "restored.db: TXID 000000000000000c" in shown
    for arguments in (["query", url, "SELECT 1 AS one"], ["history", url]):
        command = [sys.executable, "-m", "litevfs", *arguments]
        done = subprocess.run(command, env=os.environ | {"TERM": "xterm"}, capture_output=True, text=True, check=True)
        assert "╭" not in done.stdout
        assert "\x1b" not in done.stdout
