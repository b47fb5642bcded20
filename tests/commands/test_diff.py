"""`litevfs diff`: its formats, and its patch run by plain SQLite."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import apsw
import pytest

import litevfs
from litevfs.cli import main

REPLICA = str(Path(__file__).parents[1] / "fixtures" / "orders" / "replica")


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["diff", REPLICA, *arguments]) == 0
    return capsys.readouterr().out


def test_every_format_shows_the_same_changes(capsys):
    objects = [
        json.loads(line) for line in output(capsys, "--from", "8", "--to", "9", "--format", "jsonl").splitlines()
    ]
    assert len(objects) > 1000
    assert {change["op"] for change in objects} == {"delete"}
    table = list(csv.reader(io.StringIO(output(capsys, "--from", "8", "--to", "9", "--format", "csv"))))
    assert table[0] == ["table", "op", "key", "column", "old", "new"]
    assert len(table) - 1 == sum(len(change["old"]) for change in objects)
    assert "orders" in output(capsys, "--from", "8", "--to", "9", "--tables", "orders")


@pytest.mark.parametrize(("older", "newer"), [("1", "c"), ("8", "9"), ("4", "8")])
def test_the_patch_makes_the_newer_state_in_plain_sqlite(capsys, tmp_path, older, newer):
    litevfs.restore(REPLICA, tmp_path / "old.db", txid=older)
    litevfs.restore(REPLICA, tmp_path / "new.db", txid=newer)
    patch = output(capsys, "--from", older, "--to", newer, "--format", "sql")
    with closing(sqlite3.connect(tmp_path / "old.db")) as old, closing(sqlite3.connect(tmp_path / "new.db")) as new:
        old.executescript(patch)
        assert list(old.iterdump()) == list(new.iterdump())


def test_mistakes_say_what_to_do(capsys):
    assert main(["diff", REPLICA, "--from", "9", "--to", "8"]) == 2
    assert "swap from and to" in capsys.readouterr().err
    assert main(["diff", REPLICA, "--from", "9", "--tables", "nope"]) == 2
    assert "no table nope" in capsys.readouterr().err
    assert main(["diff", REPLICA, "--from", "soon"]) == 2
    assert "soon" in capsys.readouterr().err


def test_other_programs_get_utf_8_in_any_locale(tmp_path):
    text = "é€😀"
    with closing(apsw.Connection(str(tmp_path / "app.db"))) as application:
        application.execute("PRAGMA journal_mode = wal; CREATE TABLE t (x)").fetchall()
        with litevfs.Replicator(tmp_path / "app.db", str(tmp_path / "replica")) as replicator:
            replicator.sync()
            application.execute("INSERT INTO t VALUES (?)", (text,))
            replicator.sync()
    changes = ["diff", str(tmp_path / "replica"), "--from", "1", "--format"]
    for arguments in ([*changes, "sql"], [*changes, "jsonl"], ["watch", changes[1], "--from", "1", "--once"]):
        done = subprocess.run(
            [sys.executable, "-m", "litevfs", *arguments],
            env=os.environ | {"PYTHONIOENCODING": "latin-1"},
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert text in done.stdout.decode()
