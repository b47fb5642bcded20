"""`litevfs follow` as it is installed."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from litevfs.cli import main

REPLICA = str(Path(__file__).parents[1] / "fixtures" / "orders" / "replica")


def orders(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT count(*) FROM orders").fetchone()[0]


def test_once_makes_the_file_and_says_where_it_is(tmp_path, capsys):
    path = tmp_path / "copy.db"
    for _ in range(2):
        assert main(["follow", REPLICA, "-o", str(path), "--once"]) == 0
        assert capsys.readouterr().out == f"{path}: TXID 000000000000000c\n"
        assert orders(path) == 2667


def test_wait_ends_when_the_transaction_is_there(tmp_path):
    path = tmp_path / "copy.db"
    assert main(["follow", REPLICA, "-o", str(path), "--wait", "b", "--interval", "50ms"]) == 0
    assert orders(path) == 2667


def test_another_database_is_refused_until_forced(tmp_path, capsys):
    path = tmp_path / "mine.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE precious (x)")
    assert main(["follow", REPLICA, "-o", str(path), "--once"]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["follow", REPLICA, "-o", str(path), "--once", "--force"]) == 0
    assert orders(path) == 2667


@pytest.mark.parametrize("wrong", [["--wait", "xyz"], ["--interval", "soon"], ["--txid", "3"]])
def test_wrong_usage_ends_with_2(tmp_path, wrong):
    with pytest.raises(SystemExit) as ended:
        main(["follow", REPLICA, "-o", str(tmp_path / "copy.db"), *wrong])
    assert ended.value.code == 2


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_it_goes_on_until_a_signal(tmp_path, number, code):
    path = tmp_path / "copy.db"
    command = [sys.executable, "-m", "litevfs", "follow", REPLICA, "-o", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "TXID 000000000000000c" in process.stdout.readline()
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in said
