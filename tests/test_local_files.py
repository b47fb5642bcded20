"""Temporary files, locks, names and folders on a local disk."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from litevfs import local_files


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_temporary_file_is_locked_as_long_as_its_writer_has_it_open(tmp_path: Path):
    fd, path = local_files.create_temporary(f"{tmp_path}/new.", ".tmp", 0o600)
    assert Path(path).stat().st_mode & 0o777 == 0o600
    with pytest.raises(BlockingIOError):
        local_files.remove_leftover(path)
    assert names(tmp_path) == {Path(path).name}
    os.close(fd)
    local_files.remove_leftover(path)
    assert names(tmp_path) == set()


def test_a_leftover_that_is_not_there_is_no_error(tmp_path: Path):
    local_files.remove_leftover(tmp_path / "none.tmp")
    local_files.remove(tmp_path / "none.tmp")


def test_a_name_that_is_taken_is_no_new_file(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"there")
    with pytest.raises(FileExistsError):
        local_files.create_locked(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"there"


def test_a_new_file_under_the_name_of_a_leftover_is_not_removed_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two processes find one leftover: the first removes it and writes its own file while the second opens the old."""
    path = tmp_path / "a.tmp"
    path.write_bytes(b"left")
    flock, is_first = fcntl.flock, True

    def replace_then_lock(fd: int, operation: int) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            path.unlink()
            path.write_bytes(b"new")
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replace_then_lock)
    local_files.remove_leftover(path)
    assert path.read_bytes() == b"new"


def test_a_file_system_without_locks_has_temporary_files_but_no_leftovers_that_can_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    fd, path = local_files.create_temporary(f"{tmp_path}/new.", ".tmp")
    os.close(fd)
    with pytest.raises(OSError, match="not supported"):
        local_files.remove_leftover(path)
    assert names(tmp_path) == {Path(path).name}


def test_a_lock_is_waited_for_with_patience_and_only_so_long(tmp_path: Path):
    fd, path = local_files.create_temporary(f"{tmp_path}/new.", ".tmp")
    other = os.open(path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        local_files.lock(other, 0.02)
    timer = threading.Timer(0.02, os.close, [fd])
    timer.start()
    local_files.lock(other, 30)
    timer.join()
    os.close(other)


def test_a_whole_file_takes_the_place_of_another(tmp_path: Path):
    for content in (b"one", b"two" * 100_000):
        local_files.write_whole(tmp_path / "a", content, tmp_path / "a.tmp", 0o640, is_synced=True)
        assert (tmp_path / "a").read_bytes() == content
    assert (tmp_path / "a").stat().st_mode & 0o137 == 0
    assert names(tmp_path) == {"a"}


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    (tmp_path / "a").write_bytes(b"before")

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        local_files.write_whole(tmp_path / "a", b"after", tmp_path / "a.tmp", is_synced=True)
    assert names(tmp_path) == {"a"}
    assert (tmp_path / "a").read_bytes() == b"before"


def test_parts_that_the_system_takes_are_followed_by_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    local_files.write_whole(tmp_path / "a", b"0123456789", tmp_path / "a.tmp", is_synced=False)
    assert (tmp_path / "a").read_bytes() == b"0123456789"


@pytest.mark.parametrize("refusal", [None, errno.EPERM, errno.EOPNOTSUPP])
def test_a_name_is_given_only_where_it_is_free_with_hard_links_or_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int | None
):
    def refuse(*_: object) -> None:
        assert refusal is not None
        raise OSError(refusal, os.strerror(refusal))

    if refusal is not None:
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a.tmp").write_bytes(b"new")
    local_files.rename_to_new(tmp_path / "a.tmp", tmp_path / "a")
    (tmp_path / "b.tmp").write_bytes(b"newer")
    with pytest.raises(FileExistsError):
        local_files.rename_to_new(tmp_path / "b.tmp", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == {"a", "b.tmp"}


def test_folders_are_made_with_their_parents_and_made_again_without_an_error(tmp_path: Path):
    for _ in range(2):
        local_files.make_folders(f"{tmp_path}/a/b/c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
