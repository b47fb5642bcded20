"""How the restored file gets its name: what is on the disk before, and what others do at that moment."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from litevfs.errors import RestoreTargetExistsError
from litevfs.operations.target import RestoreTarget

PAGES = [(pgno, bytes([pgno]) * 512) for pgno in range(1, 9)]
CONTENT = b"".join(page for _, page in PAGES)


def write(target: RestoreTarget) -> None:
    target.write_pages(PAGES, 512)
    target.end(len(PAGES), 512)


def test_all_is_on_the_disk_before_the_name_is_and_the_name_before_the_restore_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, events = tmp_path / "o.db", []
    fsync, link = os.fsync, os.link

    def noted_fsync(fd: int) -> None:
        is_folder = os.path.samestat(os.fstat(fd), tmp_path.stat())
        events.append("folder" if is_folder else os.pread(fd, 1 << 20, 0))
        fsync(fd)

    def noted_link(source: Any, target: Any) -> None:
        events.append("name")
        link(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "link", noted_link)
    with RestoreTarget(path) as target:
        write(target)
        target.publish()
        assert events == [CONTENT, "name", "folder"]
        assert [file.name for file in tmp_path.iterdir()] == ["o.db"]


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(source: Any, target: Any) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with RestoreTarget(tmp_path / "o.db") as target:
        write(target)
        target.publish()
    assert (tmp_path / "o.db").read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == ["o.db"]


@pytest.mark.parametrize("suffix", ["-wal", "-journal", "-shm"])
def test_a_log_that_appears_meanwhile_is_not_given_to_another_database(tmp_path: Path, suffix: str):
    log = tmp_path / f"o.db{suffix}"
    with RestoreTarget(tmp_path / "o.db") as target:
        write(target)
        log.write_bytes(b"of another database")
        with pytest.raises(RestoreTargetExistsError, match=suffix):
            target.publish()
    assert list(tmp_path.iterdir()) == [log]


def test_a_file_taken_for_a_leftover_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lock, is_first = fcntl.flock, True

    def remove_then_lock(fd: int, operation: int) -> None:
        nonlocal is_first
        if is_first:
            (tmp_path / "o.db.tmp").unlink()
            is_first = False
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", remove_then_lock)
    with RestoreTarget(tmp_path / "o.db") as target:
        write(target)
        target.publish()
    assert (tmp_path / "o.db").read_bytes() == CONTENT


def test_nothing_of_an_attempt_is_in_the_next_one(tmp_path: Path):
    with RestoreTarget(tmp_path / "o.db") as target:
        target.write_pages([(pgno, b"x" * 512) for pgno in range(1, 5000)], 512)  # some are written, some still wait
        target.write_pages([(3, b"y" * 512)], 512)
        target.clear()
        target.write_pages(PAGES[:2], 512)
        target.end(4, 512)
        assert target.temp_path.read_bytes() == CONTENT[:1024] + bytes(1024)


def test_a_system_that_takes_less_than_it_was_given_gets_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:100], offset))
    with RestoreTarget(tmp_path / "o.db") as target:
        write(target)
        assert target.temp_path.read_bytes() == CONTENT


@pytest.mark.parametrize("replace", [False, True])
def test_what_is_no_file_stays_what_it_is(tmp_path: Path, replace: bool):
    """A rename onto a device, /dev/null say, would leave a file there for all programs."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(RestoreTargetExistsError, match="neither a file nor free"), RestoreTarget(path, replace=replace):
        pass
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]
