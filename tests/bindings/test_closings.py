"""What is left behind where SQLite, or this process, cannot open what tells of a file's end: nothing."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import litevfs
from litevfs.bindings.closings import Closings
from litevfs.errors import SQLiteLibraryError
from tests.support import wait_until


def descriptors() -> set[int]:
    """Those that are open."""
    return {number for number in (int(path.name) for path in Path("/dev/fd").iterdir()) if _is_open(number)}


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """So many more descriptors can be opened."""
    free = iter(sorted(set(range(1000)) - descriptors()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, ([next(free) for _ in range(count + 1)][-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_file_that_sqlite_cannot_open_leaves_no_descriptor(small):
    with closing(litevfs.connect_stdlib(small[1].url, poll_interval=0)):  # keeps open what all such connections share
        before = descriptors()
        with room_for(1), pytest.raises(SQLiteLibraryError, match="FIFO"):
            litevfs.connect_stdlib(small[1].url, poll_interval=0)
        assert descriptors() == before


def test_without_a_temporary_folder_the_error_says_what_to_set(small, monkeypatch):
    def find_none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/']")

    monkeypatch.setattr(tempfile, "gettempdir", find_none)
    with pytest.raises(SQLiteLibraryError, match=r"No usable temporary directory.*set TMPDIR to a folder"):
        litevfs.connect_stdlib(small[1].url, poll_interval=0)


def test_a_fifo_that_cannot_be_opened_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with room_for(0), pytest.raises(OSError, match="Too many open files"):
        Closings(lambda _: None).make_fifo()
    assert not list(tmp_path.iterdir())


def test_a_file_is_watched_though_no_thread_could_start_for_the_one_before(monkeypatch):
    closed: list[str] = []
    closings: Closings[str] = Closings(closed.append)
    before = descriptors()

    def watch(key: str) -> int:
        path, reading = closings.make_fifo()
        writing = os.open(path, os.O_WRONLY)
        Path(path).unlink()
        try:
            closings.watch(reading, key)
        except BaseException:
            os.close(writing)
            raise
        return writing

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            watch("first")
    assert descriptors() == before
    os.close(watch("second"))
    wait_until(lambda: closed == ["second"], "the end of the second file")
    wait_until(lambda: descriptors() == before, "the end of the thread")
