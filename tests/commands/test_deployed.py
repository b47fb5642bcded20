"""The Dockerfile and the systemd unit of the documentation: their command lines run, with real signals.

They are built and run by a container runtime and by systemd where there are such; else the command lines that stand in
them run as plain processes, which is what either does in the end.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from litevfs.operations.restore import restore
from tests.support import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.servers]  # processes: too long for every run
PAGE = (Path(__file__).parents[2] / "docs" / "primary.md").read_text()
LIMIT_S = 40.0
APPLICATION = """
import signal, sqlite3, threading
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
db = sqlite3.connect("{path}", isolation_level=None)
db.execute("CREATE TABLE IF NOT EXISTS t (a)")
db.execute("INSERT INTO t VALUES ('started')")
ended.wait()
db.execute("INSERT INTO t VALUES ('ended')")
"""


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"the page has no {language}"
    return found[1]


def command_of(arguments: list[str], root: Path) -> list[str]:
    """The command line as it stands, with this interpreter, and places below `root`."""
    places = {
        "/data/": f"{root}/",
        "/var/lib/app/": f"{root}/",
        "/app.py": f"{root}/app.py",
        "s3://bucket": f"{root}/bucket",
    }
    line = []
    for argument in arguments:
        for place, there in places.items():
            argument = argument.replace(place, there)
        line.append(re.sub(r"^python ", f"{sys.executable} ", argument))
    assert line[0] == "litevfs"
    return [sys.executable, "-m", *line]


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd's names have capitals
    parser.read_string(block("ini"))
    return parser


def rows(root: Path) -> list[str]:
    target = root / "restored.db"
    target.unlink(missing_ok=True)
    restore(str(root / "bucket" / "app"), target)
    with closing(sqlite3.connect(target)) as db:
        return [a for (a,) in db.execute("SELECT a FROM t ORDER BY rowid")]


def make(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t (a)")
        db.execute("INSERT INTO t VALUES ('first')")
        db.commit()


def test_the_dockerfile_s_command_replicates_until_sigterm_and_goes_on_with_an_empty_disk(tmp_path: Path):
    command = re.search(r"^CMD (\[.*?\])", block("dockerfile").replace("\\\n", ""), re.DOTALL | re.MULTILINE)
    assert command
    (tmp_path / "app.py").write_text(APPLICATION.format(path=tmp_path / "app.db"))
    line = command_of(json.loads(command[1]), tmp_path)
    for start in (1, 2):
        process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        try:
            wait_until(lambda start=start: _started(tmp_path) == start, LIMIT_S)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, said
        assert rows(tmp_path) == ["started", "ended"] * start
        for file in tmp_path.glob("app.db*"):  # the container's disk is gone with it
            file.unlink()
        for file in sorted(tmp_path.glob(".app.db*/**/*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()


def test_the_unit_s_commands_restore_and_replicate_and_end_within_its_time(tmp_path: Path):
    service = unit()["Service"]
    before, start = (command_of(shlex.split(service[name]), tmp_path) for name in ("ExecStartPre", "ExecStart"))
    make(tmp_path / "app.db")
    for _ in range(2):
        assert subprocess.run(before, timeout=LIMIT_S, check=False).returncode == 0
        process = subprocess.Popen(start, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            assert "replicating" in process.stderr.readline()
            with closing(sqlite3.connect(tmp_path / "app.db", timeout=20)) as db:
                db.execute("INSERT INTO t VALUES ('more')")
                db.commit()
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=float(service["TimeoutStopSec"]) + LIMIT_S)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, said
    assert rows(tmp_path) == ["first", "more", "more"]


def _started(root: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{root}/app.db?mode=ro", uri=True, timeout=5)) as db:
            (count,) = db.execute("SELECT count(*) FROM t WHERE a = 'started'").fetchone()
            return int(count)
    except sqlite3.OperationalError:
        return 0


def docker_is_there() -> bool:
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def test_the_dockerfile_builds(tmp_path: Path):
    if not docker_is_there():
        pytest.skip("there is no container runtime that answers (docker info)")
    root = Path(__file__).parents[2]
    wheels = tmp_path / "wheels"
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, root], check=True, timeout=100
    )
    (tmp_path / "app.py").write_text("")
    text = block("dockerfile").replace("RUN pip install litevfs", "COPY wheels /wheels\nRUN pip install /wheels/*.whl")
    (tmp_path / "Dockerfile").write_text(text)
    done = subprocess.run(["docker", "build", "-q", tmp_path], capture_output=True, text=True, timeout=110, check=False)
    if "pull" in done.stderr or "resolve" in done.stderr:
        pytest.skip("the base image cannot be had here")
    assert done.returncode == 0, done.stderr


def test_systemd_takes_the_unit(tmp_path: Path):
    try:
        done = subprocess.run(["systemd-analyze", "--version"], capture_output=True, timeout=10, check=False)
    except OSError:
        pytest.skip("there is no systemd-analyze")
    assert done.returncode == 0
    path = tmp_path / "litevfs.service"
    path.write_text(
        re.sub(r"=litevfs ", f"={sys.executable} -m litevfs ", block("ini")).replace("User=app", "User=root")
    )
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=30, check=False)
    wrong = [line for line in done.stderr.splitlines() if path.name in line]
    assert not wrong
