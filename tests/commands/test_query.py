"""`litevfs query`: answers, options, errors; how results are written is in test_results.py."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from litevfs.errors import HINT_READ_ONLY
from litevfs.options import SPECS
from litevfs.replicate.replicator import Replicator

ROOT = Path(__file__).parents[2]


def test_answers_are_those_of_litestream_at_every_txid(run: Callable[..., Any], orders: str, expected: Any):
    names = [name for name in expected["queries"] if name != "tables"]
    sql = ";".join(expected["queries"][name] for name in names)
    for txid, answers in expected["expected_by_txid"].items():
        result = run("query", orders, sql, "--txid", txid)
        assert result.code == 0
        assert result.out.split() == [str(answers[name]) for name in names]


def test_sql_comes_from_stdin_too(run: Callable[..., Any], orders: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT count(*) FROM orders;\nSELECT 1"))
    assert run("query", orders, "-").out == "2667\n1\n"


READ_ONLY = f"attempt to write a readonly database; hint: {HINT_READ_ONLY}"


@pytest.mark.plan("K05")
@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DELETE FROM orders", READ_ONLY),
        ("CREATE TABLE t(a)", READ_ONLY),
        ("PRAGMA user_version = 7", READ_ONLY),
        ("SELECT * FROM nope", "no such table: nope"),
        ("SELECT nope FROM orders", "no such column: nope"),
        ("SELEC 1", 'near "SELEC": syntax error'),
        ("SELECT 'open", 'unrecognized token: "\'open"'),
    ],
)
def test_sqlite_says_what_is_wrong_in_its_own_words_and_where_to_write(
    run: Callable[..., Any], orders: str, sql: str, message: str
):
    result = run("query", orders, sql)
    assert (result.code, result.out, result.err) == (1, "", f"litevfs: error: {message}\n")


@pytest.mark.plan("K05")
def test_rows_before_an_error_are_printed(run: Callable[..., Any], orders: str):
    result = run("query", orders, "SELECT 1; SELECT * FROM nope")
    assert (result.code, result.out) == (1, "1\n")


def test_every_option_is_a_flag(run: Callable[..., Any], orders: str):
    result = run("query", "--help")
    assert result.code == 0
    for spec in SPECS:
        if spec.name not in {"replica_url", "keep_open"}:  # one connection a command
            assert f"--{spec.name.replace('_', '-')}" in result.out


def test_a_relative_time_is_understood(run: Callable[..., Any], orders: str):
    result = run("query", orders, "SELECT 1", "--timestamp", "100000 days ago")
    assert result.code == 1
    assert "no state is as old as" in result.err


def test_a_time_picks_the_state_of_that_time(run: Callable[..., Any], orders: str):
    moment = run("query", orders, "PRAGMA litestream_time", "--txid", "5").out.strip()
    assert run("query", orders, "PRAGMA litestream_txid", "--timestamp", moment).out == "0000000000000005\n"


def test_the_format_can_be_chosen(run: Callable[..., Any], orders: str):
    result = run("query", orders, "SELECT 1 AS a", "--format", "json")
    assert json.loads(result.out) == [{"a": 1}]


@pytest.mark.slow
def test_watch_prints_the_result_again_when_a_transaction_arrives(tmp_path: Path):
    database = tmp_path / "app.db"
    with closing(apsw.Connection(str(database))) as primary:
        primary.pragma("journal_mode", "wal")
        primary.execute("CREATE TABLE t(a); INSERT INTO t VALUES (1)")
        with Replicator(database, str(tmp_path / "replica")) as replicator:
            replicator.sync()
            command = [sys.executable, "-m", "litevfs", "query", str(tmp_path / "replica"), "SELECT max(a) FROM t"]
            pipe = subprocess.PIPE
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            with subprocess.Popen(
                [*command, "--watch", "--poll-interval", "10ms"], stdout=pipe, stderr=pipe, text=True, env=environment
            ) as process:
                killer = threading.Timer(30, process.kill)
                killer.start()
                assert process.stdout
                try:
                    for number in (1, 2, 3):
                        assert process.stdout.readline() == f"{number}\n"
                        primary.execute("INSERT INTO t VALUES (?)", (number + 1,))
                        replicator.sync()
                    process.send_signal(signal.SIGINT)
                    _, err = process.communicate()
                finally:
                    killer.cancel()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "litevfs: TXID 0000000000000002, " in err
