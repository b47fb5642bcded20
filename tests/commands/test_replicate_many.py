"""`litevfs replicate --config` and `--dir` as processes, and the same configuration given to Litestream."""

from __future__ import annotations

import argparse
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from litevfs.commands import replicate
from litevfs.commands.replicating import shutdown_timeout_s
from litevfs.commands.status_socket import ask, socket_path
from litevfs.operations.restore import restore
from tests.peer import litestream_binary as litestream
from tests.replicate.test_fleet import insert, make, rows_of
from tests.support import wait_until

processes = pytest.mark.servers  # too long for every run
pytestmark = pytest.mark.slow
LIMIT_S = 30.0


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_S)


def ours(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "litevfs", "replicate", *map(str, arguments)]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said, after SIGTERM."""
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=LIMIT_S)
    return process.returncode, said


def has_files(folder: Path) -> bool:
    return any(folder.glob("ltx/0/*.ltx"))


def count(path: Path) -> int:
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    (rows,) = db.execute("SELECT count(*) FROM t").fetchone()
    db.close()
    return int(rows)


def config(root: Path) -> Path:
    """A configuration for the databases below `root`, as either program takes it."""
    path = root / "litestream.yml"
    path.write_text(
        f"""\
levels:
  - interval: 1s
l0-retention: 10m
snapshot:
  interval: 1h
dbs:
  - path: {root}/app.db
    replica:
      url: file://{root}/replicas/app
      sync-interval: 100ms
  - dir: {root}/tenants
    pattern: "*.db"
    recursive: true
    watch: true
    replica:
      type: file
      path: {root}/replicas/tenants
      sync-interval: 100ms
"""
    )
    return path


@processes
@pytest.mark.skipif(not litestream.LITESTREAM, reason="there is no litestream on the PATH")
@pytest.mark.parametrize("program", ["litestream", "litevfs"])
def test_one_configuration_makes_replicas_that_the_other_program_restores(tmp_path: Path, program: str):
    pytest.importorskip("yaml", reason="needs the extra `config` (pip install 'litevfs[config]')")
    paths = {"app": make(tmp_path / "app.db"), "tenants/x/one.db": make(tmp_path / "tenants" / "x" / "one.db")}
    file = config(tmp_path)
    command = (
        ours("--config", file) if program == "litevfs" else [litestream.LITESTREAM, "replicate", "-config", str(file)]
    )
    with running(command) as process:
        wait_until(lambda: all(has_files(tmp_path / "replicas" / name) for name in paths), LIMIT_S)
        paths["tenants/two.db"] = make(tmp_path / "tenants" / "two.db")
        wait_until(lambda: has_files(tmp_path / "replicas" / "tenants/two.db"), LIMIT_S)
        for path in paths.values():
            insert(path, rows=2)
        code, said = ended(process)
    assert code == 0, said
    for number, name in enumerate(paths):
        url, target = f"file://{tmp_path}/replicas/{name}", tmp_path / f"restored{number}.db"
        if program == "litevfs":
            litestream.restore(url, target)
        else:
            restore(url, target)
        assert count(target) == 3, name


@processes
def test_a_watched_folder_is_replicated_until_sigterm_with_a_last_sync(tmp_path: Path):
    one = make(tmp_path / "tenants" / "one.db")
    command = ours("--dir", tmp_path / "tenants", "--watch", "--sync-interval", "1h", tmp_path / "replicas")
    with running(command) as process:
        wait_until(lambda: has_files(tmp_path / "replicas" / "one.db"), LIMIT_S)
        new = make(tmp_path / "tenants" / "two.db")
        wait_until(lambda: has_files(tmp_path / "replicas" / "two.db"), LIMIT_S)
        wait_until(lambda: all(socket_path(path).exists() for path in (one, new)), LIMIT_S)
        assert [ask(path)["pid"] for path in (one, new)] == [process.pid] * 2
        insert(new)
        code, said = ended(process)
    assert code == 0, said
    assert not socket_path(one).exists()
    restore(str(tmp_path / "replicas" / "two.db"), tmp_path / "restored.db")
    assert count(tmp_path / "restored.db") == 2


@processes
def test_a_program_beside_a_folder_ends_it_with_its_code(tmp_path: Path):
    path = make(tmp_path / "tenants" / "one.db")
    program = tmp_path / "program.py"
    program.write_text(
        "import sqlite3, sys\n"
        f"db = sqlite3.connect({str(path)!r}, timeout=20)\n"
        "db.execute('INSERT INTO t VALUES (1)'); db.commit(); sys.exit(7)\n"
    )
    run = f"{sys.executable} {program}"
    done = subprocess.run(
        ours("--dir", tmp_path / "tenants", tmp_path / "replicas", "--exec", run, "--shutdown-timeout", "20s"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    restore(str(tmp_path / "replicas" / "one.db"), tmp_path / "restored.db")
    assert count(tmp_path / "restored.db") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--config", "none.yml"], 2, "cannot read none.yml: No such file"),
        (["--config", "bad.yml"], 2, "bad.yml:3: dbs[0].replcia: no such key; did you mean replica?"),
        (["--config", "bad.yml", "--dir", "."], 2, "--config is given beside a database or --dir"),
        (["--dir", "none", "replicas"], 2, "there is no folder none"),
        (["--dir", "."], 2, "DATABASE"),
        (["--dir", ".", "one", "ftp://x"], 2, "ftp"),
        (["--dir", ".", "ftp://x"], 2, "ftp"),
        (["app.db", "replicas", "--watch"], 2, "--watch is given without --dir"),
        (["app.db", "replicas", "--once", "--json"], 2, "--json is given without --status"),
        (["--dir", ".", "replicas", "--index"], 2, "--index is for one database"),
        (["--config", "none.yml", "--snapshot"], 2, "--snapshot is for one database"),
        (["--config", "none.yml", "--sync-interval", "1s"], 2, "--sync-interval is given with --config"),
        (["--config", "none.yml", "--level-intervals", "1m"], 2, "--level-intervals is given with --config"),
        (["--dir", ".", "replicas", "--once"], 1, "app.db"),
    ],
)
def test_what_is_wrong_is_told_with_its_exit_code(tmp_path: Path, monkeypatch, capsys, arguments, code, told):
    pytest.importorskip("yaml", reason="needs the extra `config` (pip install 'litevfs[config]')")
    from litevfs.cli import main

    monkeypatch.chdir(tmp_path)
    Path("bad.yml").write_text("dbs:\n  - path: a.db\n    replcia: {url: /a}\n")
    sqlite3.connect("app.db").execute("CREATE TABLE t (a)").connection.close()  # not in WAL mode
    try:
        ended_with = main(["replicate", *arguments])
    except SystemExit as end:
        ended_with = end.code
    assert ended_with == code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "configured_s", "expected_s"),
    [([], None, 10.0), ([], 25.0, 25.0), (["--shutdown-timeout", "10s"], 25.0, 10.0)],
)
def test_the_time_for_the_end_is_that_of_the_flag_then_of_the_configuration(flags, configured_s, expected_s):
    parser = argparse.ArgumentParser()
    replicate.add_arguments(parser)
    assert shutdown_timeout_s(parser.parse_args(["--config", "any.yml", *flags]), configured_s) == expected_s


def restoring_config(root: Path, replicas: Path, names: list[str]) -> Path:
    """A configuration for databases of a container whose disk is `root`."""
    root.mkdir()
    path = root / "litestream.yml"
    entries = (
        f"  - path: {root}/{name}.db\n    restore-if-db-not-exists: true\n"
        f"    replica:\n      url: file://{replicas}/{name}\n      sync-interval: 100ms\n"
        for name in names
    )
    path.write_text("dbs:\n" + "".join(entries))
    return path


@pytest.mark.parametrize("end", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=processes)])
def test_a_restore_waits_for_the_lease_of_another_container_and_delays_no_other_database(tmp_path: Path, end: int):
    pytest.importorskip("yaml", reason="needs the extra `config` (pip install 'litevfs[config]')")
    replicas, ttl = tmp_path / "replicas", ("--lease-ttl", "2s")
    first = restoring_config(tmp_path / "first", replicas, ["busy"])
    second = restoring_config(tmp_path / "second", replicas, ["busy", "free"])
    written, restored = make(tmp_path / "first" / "busy.db"), tmp_path / "second" / "busy.db"
    free = make(tmp_path / "second" / "free.db")
    with running(ours("--config", first, *ttl)) as writing:
        wait_until(lambda: has_files(replicas / "busy"), LIMIT_S)
        with running(ours("--config", second, *ttl)) as waiting:
            assert waiting.stderr is not None
            said = iter(waiting.stderr.readline, "")
            assert any("busy.db: waiting to restore: another primary has the lease" in line for line in said)
            wait_until(lambda: has_files(replicas / "free"), LIMIT_S)
            insert(free)
            insert(written, rows=5)
            wait_until(lambda: rows_of(replicas / "busy") == 6, LIMIT_S)
            assert not restored.exists()
            writing.send_signal(end)
            wait_until(lambda: restored.exists(), LIMIT_S)
            assert count(restored) == 6
            insert(restored)
            wait_until(lambda: rows_of(replicas / "busy") == 7, LIMIT_S)
            code, _ = ended(waiting)
            assert code == 0


@processes
def test_once_waits_for_the_lease_and_says_so_when_it_is_ended(tmp_path: Path):
    pytest.importorskip("yaml", reason="needs the extra `config` (pip install 'litevfs[config]')")
    replicas = tmp_path / "replicas"
    first = restoring_config(tmp_path / "first", replicas, ["busy"])
    second = restoring_config(tmp_path / "second", replicas, ["busy"])
    make(tmp_path / "first" / "busy.db", rows=3)
    with running(ours("--config", first)) as writing:
        wait_until(lambda: has_files(replicas / "busy"), LIMIT_S)
        once = ours("--config", second, "--once", "--shutdown-timeout", "1s")
        with running(once) as ending:
            assert ending.stderr is not None
            assert any("waiting to restore" in line for line in iter(ending.stderr.readline, ""))
            code, said = ended(ending)
            assert code != 0
            assert "another primary has the lease" in said
        with running(once) as waiting:
            assert waiting.stderr is not None
            assert any("waiting to restore" in line for line in iter(waiting.stderr.readline, ""))
            assert ended(writing)[0] == 0
            assert waiting.wait(LIMIT_S) == 0
    assert count(tmp_path / "second" / "busy.db") == 3


def test_a_restore_of_a_folder_is_refused(tmp_path: Path):
    (tmp_path / "tenants").mkdir()
    command = ours("--dir", tmp_path / "tenants", tmp_path / "replicas", "--restore-if-missing")
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 2
    assert "a folder does not tell which databases are missing" in done.stderr
