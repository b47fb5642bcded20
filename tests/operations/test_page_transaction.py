"""Pages of a database file replaced in one transaction: what readers see of it, and what a crash leaves."""

from __future__ import annotations

import itertools
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from litevfs.operations.page_transaction import DatabaseFile, ReadersInTheWayError
from tests.support import wait_until

ROOT = Path(__file__).parents[2]


def make_database(path: Path, rows: int, page_size: int = 1024) -> bytes:
    """A database whose rows all say `rows`; its bytes."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"PRAGMA page_size={page_size}; CREATE TABLE t (n, filler)")
        connection.executemany("INSERT INTO t VALUES (?, zeroblob(300))", [(rows,)] * rows)
        connection.commit()
    return path.read_bytes()


def as_pages(image: bytes, page_size: int, counter: int) -> list[tuple[int, bytes]]:
    changed = bytearray(image)
    changed[24:28] = changed[92:96] = counter.to_bytes(4, "big")
    return [
        (offset // page_size + 1, bytes(changed[offset : offset + page_size]))
        for offset in range(0, len(image), page_size)
    ]


def replace(file: DatabaseFile, pages: list[tuple[int, bytes]], page_size: int, timeout_s: float = 5.0) -> None:
    with file.reserved(timeout_s):
        file.replace_pages(lambda: pages, page_size, len(pages), timeout_s=timeout_s)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def file(path: Path) -> Iterator[DatabaseFile]:
    make_database(path, 20)
    file = DatabaseFile(path)
    yield file
    file.close()


@pytest.mark.parametrize(("rows", "page_size"), [(5, 1024), (200, 1024), (30, 4096), (30, 512)])
def test_an_open_reader_sees_the_new_state_whatever_its_size(file, path, tmp_path, rows, page_size):
    image = make_database(tmp_path / "other.db", rows, page_size)
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("SELECT count(*), max(n) FROM t").fetchone() == (20, 20)
        replace(file, as_pages(image, page_size, 1000), page_size)
        assert reader.execute("SELECT count(*), max(n) FROM t").fetchone() == (rows, rows)
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert not (tmp_path / "app.db-journal").exists()


def test_a_reader_of_another_sqlite_library_in_this_process_is_waited_for(file, path, tmp_path):
    image = make_database(tmp_path / "other.db", 7)
    before = path.read_bytes()
    with closing(sqlite3.connect(path)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (20,)
        with pytest.raises(ReadersInTheWayError):
            replace(file, as_pages(image, 1024, 1000), 1024, timeout_s=0.05)
        assert path.read_bytes() == before
        assert not (tmp_path / "app.db-journal").exists()
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (20,)
        reader.execute("COMMIT")
        with closing(sqlite3.connect(path, timeout=0)) as late:  # nothing is locked any more
            assert late.execute("SELECT count(*) FROM t").fetchone() == (20,)
        replace(file, as_pages(image, 1024, 1000), 1024)
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (7,)


def test_a_writer_of_another_library_is_refused_while_pages_are_replaced(file, path):
    with file.reserved(1.0), closing(sqlite3.connect(path, timeout=0)) as writer:
        assert writer.execute("SELECT count(*) FROM t").fetchone() == (20,)  # readers are not
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            writer.execute("INSERT INTO t VALUES (1, 2)")
    with closing(sqlite3.connect(path, timeout=0)) as writer:
        writer.execute("INSERT INTO t VALUES (1, 2)")


def test_a_disk_that_fails_half_way_leaves_a_journal_that_brings_the_old_state_back(file, path, tmp_path, monkeypatch):
    image = make_database(tmp_path / "other.db", 60)
    pages = as_pages(image, 1024, 1000)

    def failing_after_five() -> Iterator[tuple[int, bytes]]:
        calls.append(None)
        for number, page in enumerate(pages):
            if len(calls) == 2 and number == 5:
                raise OSError(28, "No space left on device")
            yield page

    calls: list[None] = []
    with pytest.raises(OSError, match="No space"), file.reserved(1.0):
        file.replace_pages(failing_after_five, 1024, len(pages), timeout_s=1.0)
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("SELECT count(*), max(n) FROM t").fetchone() == (20, 20)
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    replace(file, pages, 1024)
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (60,)


# Each child replaces the pages once and is killed at the n-th call that changes something on the disk.
_KILLED_EVERYWHERE = """
import os, signal, sqlite3, sys
from pathlib import Path
from litevfs.operations import page_transaction
from tests.operations.test_page_transaction import as_pages, make_database, replace

class KillingOs:
    def __init__(self, calls):
        self.left = calls
    def step(self):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def __getattr__(self, name):
        call = getattr(os, name)
        if name not in ("pwrite", "fsync", "ftruncate", "open"):
            return call
        def counted(*args):
            self.step()
            if name == "pwrite" and self.left == 0:  # half of it arrives
                os.pwrite(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
            if name == "pwrite":
                self.step()
            return call(*args)
        return counted

folder = Path(sys.argv[1])
path = folder / "app.db"
sizes = {20: make_database(folder / "a.db", 20), 45: make_database(folder / "b.db", 45, int(sys.argv[2]))}
page_size = {20: 1024, 45: int(sys.argv[2])}
path.write_bytes(sizes[20])
now, seen, deaths, counter = 20, set(), 0, 100
for calls in range(400):
    then = 65 - now
    counter += 1
    child = os.fork()
    if child == 0:
        page_transaction.os = page_transaction.local_files.os = KillingOs(calls)
        file = page_transaction.DatabaseFile(path)
        replace(file, as_pages(sizes[then], page_size[then], counter), page_size[then])
        os._exit(0)
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    with_reader = sqlite3.connect(path)
    count, n = with_reader.execute("SELECT count(*), max(n) FROM t").fetchone()
    assert count == n and n in (now, then), (calls, count, n, now, then)
    assert with_reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)], calls
    with_reader.close()
    deaths += died
    seen.add((died, n == then))
    if not died:
        assert n == then
        break
    now = n
assert not died, "never came through"
print(deaths, sorted(seen))
"""


@pytest.mark.parametrize("left", [b"", bytes(5000)])
def test_a_journal_that_undoes_nothing_is_overwritten(file, path, tmp_path, left):
    """A writer that ends right after it made the journal leaves it empty; one in SQLite's mode PERSIST, with zeros."""
    file.journal_path.write_bytes(left)
    replace(file, as_pages(make_database(tmp_path / "other.db", 60), 1024, 1000), 1024)
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("SELECT count(*) FROM t").fetchone() == (60,)
    assert not file.journal_path.exists()


def test_a_journal_that_undoes_something_is_kept(file, tmp_path):
    file.journal_path.write_bytes(b"\xd9" + bytes(5000))
    with pytest.raises(FileExistsError):
        replace(file, as_pages(make_database(tmp_path / "other.db", 60), 1024, 1000), 1024)
    assert file.journal_path.stat().st_size == 5001


@pytest.mark.plan("D01")
@pytest.mark.parametrize("page_size", [1024, 4096])
def test_a_kill_at_any_write_leaves_the_state_before_or_after(tmp_path, page_size):
    done = subprocess.run(
        [sys.executable, "-c", _KILLED_EVERYWHERE, str(tmp_path), str(page_size)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    deaths, seen = done.stdout.split(maxsplit=1)
    assert int(deaths) > 20
    assert "(True, False)" in seen  # killed, and rolled back


def test_readers_in_other_processes_see_whole_states_only(path, tmp_path):
    """Each state's rows all say how many there are; two readers look at them while states follow one another."""
    images = {rows: make_database(tmp_path / f"{rows}.db", rows) for rows in (20, 33, 61)}
    path.write_bytes(images[20])
    program = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], timeout=30)\n"
        "seen = set()\n"
        "while not (len(seen) == 3 and 'stop' in open(sys.argv[2]).read()):\n"
        "    count, low, high = connection.execute('SELECT count(*), min(n), max(n) FROM t').fetchone()\n"
        "    assert count == low == high, (count, low, high)\n"
        "    seen.add(count)\n"
    )
    control = tmp_path / "control"
    control.write_text("go on")
    readers = [subprocess.Popen([sys.executable, "-c", program, str(path), str(control)]) for _ in range(2)]
    file = DatabaseFile(path)
    try:
        counters = itertools.count()

        def replace_once() -> None:
            counter = next(counters)
            replace(file, as_pages(images[(20, 33, 61)[counter % 3]], 1024, 1000 + counter), 1024)

        for _ in range(150):
            replace_once()
        control.write_text("stop")
        # Readers may have started late: states follow one another until each has seen all.
        wait_until(
            lambda: replace_once() or all(reader.poll() is not None for reader in readers), "the readers' end", 60
        )
        assert [reader.returncode for reader in readers] == [0, 0]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
        file.close()


def test_another_file_at_the_path_is_noticed(file, path, tmp_path):
    assert not file.was_replaced
    make_database(tmp_path / "other.db", 3)
    os.replace(tmp_path / "other.db", path)  # noqa: PTH105
    assert file.was_replaced
    path.unlink()
    assert file.was_replaced
