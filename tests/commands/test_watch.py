"""`litevfs watch` and `query --watch` over real processes: every change once, in order, and resumable."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

import litevfs
from litevfs.cli import main
from litevfs.commands.query import tables_read
from litevfs.maintenance.compaction import compact_level
from litevfs.maintenance.retention import enforce_level_0_retention
from litevfs.replica_clients.urls import open_replica_client

ROOT = Path(__file__).parents[2]


@pytest.fixture
def replicator(tmp_path: Path) -> Iterator[tuple[apsw.Connection, litevfs.Replicator]]:
    application = apsw.Connection(str(tmp_path / "app.db"))
    application.pragma("journal_mode", "wal")
    application.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x); CREATE TABLE u (y)").fetchall()
    with closing(application), litevfs.Replicator(str(tmp_path / "app.db"), str(tmp_path / "replica")) as replicator:
        replicator.sync()
        yield application, replicator


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "litevfs", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def lines_up_to(process: subprocess.Popen[str], txid: int) -> list[dict[str, object]]:
    """The objects up to the end of the transaction `txid`."""
    assert process.stdout is not None
    found = []
    while True:
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
        found.append(json.loads(line))
        if "changes" in found[-1] and int(str(found[-1]["txid"]), 16) >= txid:
            return found


@pytest.mark.slow
def test_every_change_comes_once_in_order_and_a_later_call_goes_on(replicator, tmp_path):
    application, primary = replicator
    url = str(tmp_path / "replica")
    with started("watch", url, "--from", "1", "--poll-interval", "20ms") as process:
        seen: list[dict[str, object]] = []
        for number in range(4):
            application.execute("INSERT INTO t VALUES (?, ?)", (number, f"row {number}"))
            last = primary.sync()
            seen += lines_up_to(process, last)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    rows = [change for change in seen if "op" in change]
    assert [(change["op"], change["new"]) for change in rows] == [
        ("insert", {"id": number, "x": f"row {number}"}) for number in range(4)
    ]
    application.execute(
        "DELETE FROM t WHERE id = 2; UPDATE t SET x = x'00ff' WHERE id = 1; INSERT INTO u VALUES (1)"
    ).fetchall()
    primary.sync()
    command = [sys.executable, "-m", "litevfs", "watch", url, "--from", f"{last:x}", "--once", "--tables", "t"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(change["op"], change["key"]) for change in objects[:-1]] == [("update", [1]), ("delete", [2])]
    assert objects[0]["new"]["x"] == "X'00FF'"
    assert objects[-1]["changes"] == 2


def test_transactions_that_were_compacted_meanwhile_come_as_one(replicator, tmp_path, capsys):
    application, primary = replicator
    url = str(tmp_path / "replica")
    for number in range(3):
        application.execute("INSERT INTO t VALUES (?, 0)", (number,))
        primary.sync()
    assert main(["watch", url, "--from", "1", "--once"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert objects[-1] == {"txid": f"{4:016x}", "changes": 3}


def test_a_table_that_does_not_exist_is_an_error_at_once_and_one_that_is_dropped_later_is_none(
    replicator, tmp_path, capsys
):
    application, primary = replicator
    url = str(tmp_path / "replica")
    assert main(["watch", url, "--tables", "t", "uu"]) == 2
    assert "no table uu" in (error := capsys.readouterr().err)
    assert "did you mean u?" in error
    with started("watch", url, "--tables", "T", "u", "--from", "1", "--poll-interval", "20ms") as process:
        seen = []
        for sql in ("INSERT INTO u VALUES (1)", "DROP TABLE u", "INSERT INTO t VALUES (1, 1)", "CREATE TABLE u (z)"):
            application.execute(sql)
            seen += lines_up_to(process, primary.sync())
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert [(change["table"], change["op"]) for change in seen if "op" in change] == [
        ("u", "insert"),
        ("u", "delete"),
        ("t", "insert"),
    ]


def test_a_feed_cannot_go_on_from_a_state_that_is_gone_or_never_was(replicator, tmp_path, capsys):
    application, primary = replicator
    url = str(tmp_path / "replica")
    for number in range(4):
        application.execute("INSERT INTO t VALUES (?, 0)", (number,))
        primary.sync()
    assert main(["watch", url, "--from", "9", "--once"]) == 1
    assert "the newest TXID is 0000000000000005" in capsys.readouterr().err
    with closing(open_replica_client(url)) as client:
        compact_level(client, 1)
        enforce_level_0_retention(client, 2**62)
    assert main(["watch", url, "--from", "2", "--once"]) == 1
    assert "0000000000000005" in capsys.readouterr().err


@pytest.mark.slow
def test_a_feed_does_not_go_on_with_a_replica_that_took_the_place_of_its_own(replicator, tmp_path):
    """The other one has all TXIDs of the feed's, and more: what differs there is no change of what was printed."""
    application, primary = replicator
    place = tmp_path / "replica"
    with closing(apsw.Connection(str(tmp_path / "other.db"))) as other:
        other.pragma("journal_mode", "wal")
        other.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)").fetchall()
        with litevfs.Replicator(str(tmp_path / "other.db"), str(tmp_path / "other")) as another:
            for number in range(6):
                another.sync()
                other.execute("INSERT INTO t VALUES (?, 'other')", (number,))
    with started("watch", str(place), "--from", "1", "--poll-interval", "20ms") as process:
        for number in range(2):
            application.execute("INSERT INTO t VALUES (?, 'mine')", (number,))
            lines_up_to(process, primary.sync())
        place.rename(tmp_path / "gone")
        (tmp_path / "other").rename(place)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "other" not in output
    assert "the replica is another one than that whose changes were printed" in errors


def test_which_tables_a_query_reads(replicator, tmp_path):
    application, _ = replicator
    application.execute("CREATE VIEW v AS SELECT x FROM t")
    assert tables_read(application, "SELECT count(*) FROM u") == {"u"}
    assert tables_read(application, "SELECT 1; SELECT * FROM v JOIN u") >= {"t", "u"}
    assert tables_read(application, "PRAGMA litestream_txid; SELECT * FROM u") == set()
    assert tables_read(application, "SELECT 1") == set()
