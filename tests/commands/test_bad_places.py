"""A primary where it cannot work: no permission, no space, a database that others have. One line says why."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.servers]  # processes: too long for every run
LIMIT_S = 40.0


@pytest.fixture
def database(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "app.db")) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t (a)")
        db.execute("INSERT INTO t VALUES (randomblob(300000))")
        db.commit()
    return folder / "app.db"


def replicate(
    database: Path, replica: Path, *, is_unprivileged: bool = False, before: Callable[[], None] | None = None
) -> tuple[int, str]:
    """Exit code and what was said, of `litevfs replicate --once`. Unprivileged: permissions count for root, too."""
    command = [sys.executable, "-m", "litevfs", "replicate", str(database), str(replica), "--once"]
    if is_unprivileged and os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("permissions do not count for root, and there is no setpriv (apt install util-linux)")
        command = [setpriv, "--bounding-set=-dac_override,-dac_read_search", "--", *command]
    done = subprocess.run(command, preexec_fn=before, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    return done.returncode, done.stderr


def is_one_line_naming(said: str, *parts: str) -> bool:
    errors = [line for line in said.splitlines() if line.startswith("litevfs: error: ")]
    return len(errors) == 1 and "Traceback" not in said and all(part in errors[0] for part in parts)


def test_a_read_only_folder_is_named(database: Path, tmp_path: Path):
    database.chmod(0o444)
    database.parent.chmod(0o555)
    try:
        code, said = replicate(database, tmp_path / "replica", is_unprivileged=True)
    finally:
        database.parent.chmod(0o755)
    assert code == 1
    assert is_one_line_naming(said, str(database.parent), "hint: "), said


def test_a_database_that_may_not_be_read_is_named(database: Path, tmp_path: Path):
    database.chmod(0)
    code, said = replicate(database, tmp_path / "replica", is_unprivileged=True)
    assert code == 1
    assert is_one_line_naming(said, str(database), "unable to open database file"), said


def test_a_place_that_may_not_be_written_is_named(database: Path, tmp_path: Path):
    place = tmp_path / "place"
    place.mkdir(mode=0o555)
    code, said = replicate(database, place / "replica", is_unprivileged=True)
    assert code == 1
    assert is_one_line_naming(said, str(place), "Permission denied"), said


def test_a_disk_without_room_for_the_copy_is_named_and_the_next_start_goes_on(database: Path, tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    code, said = replicate(database, tmp_path / "replica", before=small)
    assert code == 1
    assert is_one_line_naming(said, "File too large", "have space for the pages of one sync"), said
    assert replicate(database, tmp_path / "replica")[0] == 0


def test_a_database_that_an_application_has_for_itself_is_named(database: Path, tmp_path: Path):
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("INSERT INTO t VALUES (1)")
        code, said = replicate(database, tmp_path / "replica")
    assert code == 1
    assert is_one_line_naming(said, str(database), "locking_mode=EXCLUSIVE"), said


def test_a_database_that_another_replicator_has_is_named(database: Path, tmp_path: Path):
    from litevfs.replicate import Replicator

    with Replicator(database, str(tmp_path / "replica")) as first:
        first.sync()
        code, said = replicate(database, tmp_path / "other")
    assert code == 1
    assert is_one_line_naming(said, str(database), f"process {os.getpid()} replicates this database already"), said


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no such file"), (b"no database, but a text that is long enough for one", "not a database")],
)
def test_what_is_no_database_is_named(tmp_path: Path, content: bytes | None, told: str):
    path = tmp_path / "app.db"
    if content is not None:
        path.write_bytes(content)
    code, said = replicate(path, tmp_path / "replica")
    assert code == 1
    assert is_one_line_naming(said, str(path), told), said
