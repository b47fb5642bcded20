"""`litevfs replicate DATABASE URL URL`: killed before each of its steps; how it is asked; a place that is down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from litevfs.operations.restore import restore
from litevfs.replica_clients.file import FileReplicaClient
from tests.commands.test_kills import KILLED, ROOT, killed_commands, rows, write
from tests.support import wait_until


@dataclass(frozen=True, slots=True)
class World:
    """A database with two places, `a` and `b`."""

    folder: Path
    command: subprocess.Popen[str]

    @property
    def database(self) -> Path:
        return self.folder / "disk" / "app.db"

    def start(self, *arguments: str, kill_at: int = 0) -> int:
        """The exit code of one `litevfs replicate --once`; `a` and `b` are the places."""
        urls = [str(self.folder / name) for name in arguments if not name.startswith("-")]
        flags = [flag for flag in arguments if flag.startswith("-")]
        words = ["replicate", str(self.database), *urls, "--no-compact", "--once", *flags]
        order = {"arguments": words, "kill_at": kill_at, "folder": str(self.folder), "sends": False}
        assert self.command.stdin is not None
        assert self.command.stdout is not None
        self.command.stdin.write(json.dumps(order | {"log": str(self.folder.parent / "log")}) + "\n")
        self.command.stdin.flush()
        return int(self.command.stdout.readline())

    def replicated(self, name: str) -> list[str]:
        """The rows of the newest state at a place, whose file is sound."""
        target = self.folder.parent / "check.db"
        target.unlink(missing_ok=True)
        restore(str(self.folder / name), target, integrity_check=True)
        return rows(target)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with killed_commands() as command:
        world = World(tmp_path / "world", command)
        world.folder.mkdir()
        write(world.database, "one", "x" * 20_000)
        yield world


def nothing(world: World) -> None:
    pass


def replicated(world: World) -> None:
    assert world.start("a", "b") == 0
    write(world.database, "two")


def one_is_new(world: World) -> None:
    assert world.start("a") == 0
    write(world.database, "two")


def one_comes_back(world: World) -> None:
    replicated(world)
    assert world.start("a") == 0
    write(world.database, "three")


def the_first_comes_back(world: World) -> None:
    replicated(world)
    assert world.start("b") == 0
    write(world.database, "three")


def one_is_ahead(world: World) -> None:
    other = World(world.folder, world.command)
    kept = world.folder.parent / "disk"
    assert world.start("a") == 0
    (world.folder / "disk").rename(kept)
    for number in range(4):
        write(other.database, str(number))
        assert other.start("b") == 0
    shutil.rmtree(world.folder / "disk")
    kept.rename(world.folder / "disk")
    write(world.database, "two")


COURSES: dict[str, tuple[tuple[str, ...], Callable[[World], None], list[str]]] = {
    "first": (("a", "b"), nothing, ["one"]),
    "next": (("a", "b"), replicated, ["one", "two"]),
    "other order": (("b", "a"), replicated, ["one", "two"]),
    "new": (("a", "b"), one_is_new, ["one", "two"]),
    "back": (("a", "b"), one_comes_back, ["one", "two", "three"]),
    "first back": (("a", "b"), the_first_comes_back, ["one", "two", "three"]),
    "first left out": (("b",), replicated, ["one", "two"]),
    "ahead": (("a", "b", "--new-history"), one_is_ahead, ["one", "two"]),
}


def go_back(folder: Path, kept: Path) -> None:
    """Take back what happened since `kept` was copied. The database and the lock stay the files that they are."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.name not in ("app.db", "lock"):
            path.unlink()
    shutil.copytree(kept, folder, dirs_exist_ok=True)


def run(world: World, name: str, every: int) -> int:
    """Kill one start of a course before every so many steps; returns how many steps it has."""
    arguments, prepare, expected = COURSES[name]
    prepare(world)
    kept = world.folder.parent / "kept"
    shutil.copytree(world.folder, kept)
    places = [argument for argument in arguments if not argument.startswith("-")]
    step = 1
    while True:
        go_back(world.folder, kept)
        if world.start(*arguments, kill_at=step) != KILLED:
            return step - 1
        write(world.database, "later")
        again = world.start(*arguments)
        assert again == 0, f"after a kill before step {step}: {(world.folder.parent / 'log').read_text()[-3000:]}"
        for place in places:
            assert world.replicated(place) == [*expected, "later"], f"{place}, after a kill before step {step}"
        assert not list(world.database.parent.rglob("*.ltx")), f"after a kill before step {step}"
        step += every


@pytest.mark.slow
@pytest.mark.parametrize(("name", "every"), [("new", 29), ("back", 37)])
def test_a_start_that_is_killed_leaves_every_place_right(world: World, name: str, every: int):
    assert run(world, name, every=every) > every


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", COURSES)
def test_a_start_that_is_killed_before_any_step_leaves_every_place_right(world: World, name: str):
    steps = run(world, name, every=1)
    print(f"{name}: killed before each of {steps} steps")
    assert steps > 10


# --- how it is run, and what it tells ---------------------------------------------------------------------------------


@contextmanager
def running(folder: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`litevfs` with these arguments; ended, if the test did not, by SIGKILL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "litevfs", *map(str, arguments)],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def newest(folder: Path) -> int:
    with closing(FileReplicaClient(folder)) as client:
        return max((file.max_txid for file in client.list_files(0)), default=0) if folder.exists() else 0


def test_a_configuration_with_a_list_of_replicas_keeps_all_of_them(tmp_path: Path):
    pytest.importorskip("yaml", reason="needs the extra `config` (pip install 'litevfs[config]')")
    write(tmp_path / "app.db", "one")
    (tmp_path / "litestream.yml").write_text(
        "dbs:\n  - path: app.db\n    replicas:\n      - path: a\n      - path: b\n  - dir: many\n"
        "    pattern: '*.db'\n    replicas:\n      - path: c\n      - path: d\n"
    )
    for name in ("x", "y"):
        write(tmp_path / "many" / f"{name}.db", name)
    with running(tmp_path, "replicate", "--config", "litestream.yml") as process:
        places = [tmp_path / name for name in ("a", "b", "c/x.db", "c/y.db", "d/x.db", "d/y.db")]
        wait_until(lambda: all(map(newest, places)))
        write(tmp_path / "app.db", "two")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, process.stderr.read()
    for place, expected in zip(places, (["one", "two"], ["one", "two"], ["x"], ["y"], ["x"], ["y"]), strict=True):
        restore(str(place), tmp_path / "restored.db")
        assert rows(tmp_path / "restored.db") == expected
        (tmp_path / "restored.db").unlink()


def test_the_status_names_each_place_and_the_end_waits_for_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    from litevfs.cli import main

    write(tmp_path / "app.db", "one")
    blocked = tmp_path / "b"
    blocked.write_bytes(b"a file in its place")
    with running(tmp_path, "replicate", "app.db", "a", "b", "--shutdown-timeout", "3s") as process:
        wait_until(lambda: newest(tmp_path / "a") == 1)
        wait_until(lambda: main(["replicate", "--status", str(tmp_path / "app.db"), "--json"]) == 0)
        capfd.readouterr()
        assert main(["replicate", "--status", str(tmp_path / "app.db"), "--json"]) == 0
        (told,) = json.loads(capfd.readouterr().out)
        assert [place["replica"] for place in told["places"]] == [(tmp_path / name).as_uri() for name in ("a", "b")]
        assert (told["places"][0]["uploaded_txid"], told["uploaded_txid"]) == (f"{1:016x}", f"{0:016x}")
        assert told["places"][0]["last_error"] is None
        assert blocked.as_uri() in told["reason"]
        assert main(["replicate", "--status", str(tmp_path / "app.db")]) == 0
        assert f"place 2    {blocked.as_uri()}: TXID {0:016x}" in capfd.readouterr().out
        write(tmp_path / "app.db", "two")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
        assert "is on all replicas: nothing was uploaded" in (text := process.stderr.read())
        assert f"to {blocked.as_uri()}: " in text
    restore(str(tmp_path / "a"), tmp_path / "restored.db")
    assert rows(tmp_path / "restored.db") == ["one", "two"]


def test_a_missing_database_is_restored_from_the_place_with_the_newest_state(tmp_path: Path, world: World):
    assert world.start("a", "b") == 0
    write(world.database, "two")
    assert world.start("b") == 0
    shutil.rmtree(world.database.parent)
    world.database.parent.mkdir()
    assert world.start("a", "b", "--restore-if-missing") == 1  # the first one is behind, which nothing explains now
    assert rows(world.database) == ["one", "two"]
    assert world.replicated("b") == ["one", "two"]
    assert world.start("a", "b", "--new-history") == 0
    assert world.replicated("a") == world.replicated("b") == ["one", "two"]
