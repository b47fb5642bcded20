"""A patch as other programs run it: any SQLite, and the sqlite3 shell, which reads it line by line."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import litevfs
from litevfs.operations.patch import literal, patch_statements
from tests.operations.diff_oracle import check, image_of
from tests.primary import Primary

ODD_FLOATS = [-5144583724.042521, -3.3967692e-09, 1.17303766680362e-10, 0.038770168813818600, 2.200437503962169e-295]
"""SQLite 3.40 reads their shortest decimals as the numbers beside them."""
ODD_TEXTS = ["a\r\nb", "\r", "\r\n\r\n", "x\n.tables\n/\ngo\n;\n", "'\r'\0'", "# no comment\n-- nor this", "é\u2028😀"]


def patch_of(primary: Primary, old: int) -> str:
    with litevfs.diff(primary.client.url, old) as diff:
        return "".join(f"{statement};\n" for statement in patch_statements(diff))


def as_read(value: float) -> float:
    with closing(sqlite3.connect(":memory:")) as connection:
        return float(connection.execute(f"SELECT {literal(value)}").fetchone()[0])


@given(st.floats(allow_nan=False))
def test_every_sqlite_reads_a_number_as_it_was(value):
    assert repr(as_read(value)) == repr(value)


@pytest.mark.parametrize("value", [*ODD_FLOATS, 0.0, -0.0, 5e-324, -sys.float_info.max, sys.float_info.min, 0.1, 1e22])
def test_odd_numbers_are_read_as_they_were(value):
    assert repr(as_read(value)) == repr(value)
    assert literal(0.1) == "0.1"


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="needs the sqlite3 shell (apt-get install sqlite3)")
def test_the_sqlite3_shell_makes_the_newer_state(primary, tmp_path):
    path = tmp_path / "app.db"
    old = primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    path.write_bytes(image_of(primary, old))
    values = [*ODD_TEXTS, *ODD_FLOATS, float("inf"), 2**63 - 1, -(2**63), b"\r\n\0"]
    primary.commit("INSERT INTO t (x) VALUES " + ", ".join("(?)" for _ in values), values)
    patch = patch_of(primary, old).encode()
    done = subprocess.run(["sqlite3", "-bail", path], input=patch, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert read(path) == values


def read(path: Path) -> list[object]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT x FROM t ORDER BY id")]


def test_the_first_autoincrement_table_brings_its_counters(primary):
    old = primary.commit("CREATE TABLE a (x)")
    primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, x)")
    primary.commit("INSERT INTO t (x) VALUES (1), (2), (3)")
    primary.commit("DELETE FROM t WHERE id = 3")
    check(primary, primary.client.url, old, primary.txid)
    assert 'INSERT INTO "sqlite_sequence"' in patch_of(primary, old)


def test_the_numbers_of_an_application_are_patched(primary):
    old = primary.commit("CREATE TABLE t (x); PRAGMA user_version = 3")
    primary.commit("PRAGMA user_version = -7; PRAGMA application_id = 99")
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.deserialize(image_of(primary, old))
        connection.executescript(patch_of(primary, old))
        names = "user_version", "application_id"
        assert [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names] == [-7, 99]


@pytest.mark.parametrize("between", ["SELECT 1", "VACUUM"])
def test_a_zero_of_the_other_sign_is_another_value(primary, between):
    old = primary.commit("CREATE TABLE t (id INTEGER PRIMARY KEY, x); INSERT INTO t VALUES (1, 0.0), (2, 0.0), (3, 0)")
    primary.commit(between, may_change_nothing=True)
    primary.commit("UPDATE t SET x = ? WHERE id = 2", (-0.0,))
    with litevfs.diff(primary.client.url, old) as diff:
        assert [(change.op, change.key, repr(change.new)) for change in diff] == [
            ("update", (2,), "{'id': 2, 'x': -0.0}")
        ]
    assert '"x" = -0.0' in patch_of(primary, old)
