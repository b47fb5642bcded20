"""The hydrated file: what is served from it, full disks, other processes that sweep, and whose it is after the end."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import tempfile
import threading
from collections import namedtuple
from dataclasses import replace
from functools import partial
from pathlib import Path

import apsw
import pytest

import litevfs
from litevfs.errors import OptionError
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.pages import hydration
from litevfs.pages.hydration import TEMP_PREFIX, Hydration
from litevfs.replica_clients.base import LTXFileInfo
from litevfs.states.snapshot import Snapshot, empty_snapshot
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, one, rows, wait_until

PAGE_SIZE = 4096
FILL = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000) INSERT INTO t SELECT i, 'A' FROM n"
QUERY = "SELECT s, count(*), sum(id) FROM t GROUP BY 1"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A replica whose first pages lie behind the others in storage, and a temporary folder for it alone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Script() as script, Primary(script.writer, page_size=PAGE_SIZE) as primary:
        primary.commit("CREATE TABLE t(id INTEGER PRIMARY KEY, s TEXT)")
        primary.commit(FILL)
        primary.commit("UPDATE t SET s = 'B' WHERE id < 1000")
        yield primary, script


def progress(connection: apsw.Connection) -> float:
    return float(one(connection, "PRAGMA litestream_hydration_progress"))


def hydrated_pages(connection: apsw.Connection) -> int:
    return next(
        shared.replica.pages.counters.hydrated
        for shared in litevfs.live.registry.registry.shared.values()
        if shared.replica.pages.hydration is not None
    )


def test_a_hydrated_replica_is_read_from_the_file_and_follows_the_primary(world, tmp_path):
    primary, script = world
    with connected(script.url, poll_interval="5ms", hydration_enabled=True, cache_size=0) as con:
        wait_until(lambda: progress(con) == 100, "hydration")
        path = Path(one(con, "PRAGMA litestream_hydration_file"))
        assert path.parent == tmp_path
        script.clear()
        assert rows(con, QUERY) == primary.rows(QUERY)
        assert script.reads == []
        assert hydrated_pages(con) > 0
        primary.commit("UPDATE t SET s = 'C' WHERE id > 1500")
        wait_until(lambda: rows(con, QUERY) == primary.rows(QUERY), "the new state")
    assert not path.exists()


def test_a_page_of_which_a_full_disk_took_a_part_is_never_served(world, tmp_path, monkeypatch):
    """Near the end of a disk's space, a write does not fail but writes less than it was given."""
    primary, script = world
    pwrite, left = os.pwrite, [5 * PAGE_SIZE // 2]
    full = threading.Event()

    def write_while_there_is_room(fd: int, data: bytes, offset: int) -> int:
        size = min(len(data), left[0])
        left[0] -= size
        if not size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if size < len(data):
            full.set()
        return pwrite(fd, data[:size], offset)

    monkeypatch.setattr(os, "pwrite", write_while_there_is_room)
    with connected(script.url, poll_interval=0, hydration_enabled=True, cache_size=0) as con:
        assert full.wait(20)
        # Whatever is written after that, the file is as long as the database.
        os.truncate(one(con, "PRAGMA litestream_hydration_file"), len(primary.images[3]))
        for _ in range(20):
            con.cache_flush()
            assert rows(con, QUERY) == primary.rows(QUERY)
        assert one(con, "PRAGMA integrity_check") == "ok"
        assert progress(con) < 100


def test_closing_while_a_page_is_copied_logs_nothing(world, caplog):
    """The storage is closed first; the copy then fails before it is told to end."""
    _, script = world
    replica = Replica(Options(replica_url=script.url, hydration_enabled=True, cache_size_bytes=0))
    is_copying, go_on = threading.Event(), threading.Event()

    def hold(file, offset, data):
        if threading.current_thread().name == "litevfs-hydrate":
            is_copying.set()
            assert go_on.wait(20)
        return data

    script.on_read = hold
    replica.refresh()
    assert is_copying.wait(20)
    replica.fetcher.close()
    go_on.set()
    wait_until(
        lambda: caplog.records or all(thread.name != "litevfs-hydrate" for thread in threading.enumerate()),
        "the read of the next page, which fails",
    )
    replica.close()
    assert [record.message for record in caplog.records] == []


def test_a_disk_that_was_full_is_tried_again_with_the_next_state(world, monkeypatch, caplog):
    primary, script = world
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda fd, data, offset: len(data) // 2)
        con = litevfs.connect(script.url, poll_interval=0, hydration_enabled=True, cache_size=0)
        wait_until(lambda: "hydration stopped at TXID 0000000000000003" in caplog.text, "the failure")
        assert "No space left" in caplog.text
    primary.commit("UPDATE t SET s = 'D' WHERE id = 7")
    one(con, "PRAGMA litestream_poll")
    wait_until(lambda: progress(con) == 100, "hydration")
    assert rows(con, QUERY) == primary.rows(QUERY)
    con.close()


def test_a_file_that_was_cut_off_is_not_read_past_its_end(world):
    primary, script = world
    with connected(script.url, poll_interval=0, hydration_enabled=True, cache_size=0) as con:
        wait_until(lambda: progress(con) == 100, "hydration")
        os.truncate(one(con, "PRAGMA litestream_hydration_file"), PAGE_SIZE * 5 // 2)
        assert rows(con, QUERY) == primary.rows(QUERY)


@pytest.fixture
def states(world):
    """A replica, and three of its states: one, one with other rows, and a smaller one."""
    primary, script = world
    replica = Replica(Options(replica_url=script.url))
    states = [replica.open(10)]
    for sql in ("UPDATE t SET s = 'C'", "DELETE FROM t; VACUUM"):
        primary.commit(sql)
        replica.refresh()
        states.append(replica.snapshot)
    yield replica, states
    replica.close()


def test_the_file_becomes_each_state_that_is_followed_and_nothing_else(world, states, tmp_path):
    primary, _ = world
    replica, states = states
    path = tmp_path / "x.db"
    path.write_bytes(b"left by another one" * PAGE_SIZE * 100)
    hydration = Hydration(str(path), replica.pages.read_through)
    assert path.read_bytes() == b""
    assert (tmp_path / "x.db-litevfs").read_bytes() == b""  # before any page, for the next process
    for state in states:
        hydration.follow(state)
        wait_until(lambda image=primary.images[state.txid]: path.read_bytes() == image, "the state")
        version = state.version(1)
        wanted = partial(hydration.get, state, version, 1)
        assert wait_until(wanted) == replica.pages.read(state, 1)
        assert hydration.get(replace(state, epoch=state.epoch + 1), version, 1) is None  # in another history
    hydration.close()


def test_pages_of_another_history_are_copied_though_their_versions_are_the_same(states):
    _, (state, *_) = states
    hydration = Hydration(None, lambda snapshot, pgno: bytes([snapshot.epoch]) * PAGE_SIZE)
    for epoch in (1, 2):
        again = replace(state, epoch=epoch)
        hydration.follow(again)
        page = wait_until(partial(hydration.get, again, again.version(1), 1))
        assert page == bytes([epoch]) * PAGE_SIZE
    hydration.close()


def test_a_page_that_is_overwritten_while_it_is_read_is_not_taken_for_the_one_before(states, monkeypatch):
    replica, (state, newer, _) = states
    (pgno, version), *_ = (
        (slot + 1, version)
        for slot, version in enumerate(state.chunks[0].versions[: state.commit])
        if version != newer.chunks[0].versions[slot]
    )
    hydration = Hydration(None, replica.pages.read_through)
    hydration.follow(state)
    wait_until(lambda: hydration.get(state, version, pgno), "hydration")
    pread = os.pread

    def read_late(fd: int, size: int, offset: int) -> bytes:
        hydration.follow(newer)
        wait_until(lambda: pread(fd, size, offset) == replica.pages.read(newer, pgno), "the newer page")
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", read_late)
    assert hydration.get(state, version, pgno) is None
    hydration.close()


def test_a_state_that_is_not_the_newest_any_more_is_copied_no_further(states):
    replica, (state, newer, _) = states
    read = []

    def read_one(snapshot: Snapshot, pgno: int) -> bytes:
        read.append(snapshot)
        if len(read) == 1:
            hydration.follow(newer)
        return replica.pages.read_through(snapshot, pgno)

    hydration = Hydration(None, read_one)
    hydration.follow(state)
    wait_until(lambda: hydration._target is newer and hydration.progress == 100, "hydration")
    assert sum(snapshot is state for snapshot in read) == 1
    hydration.close()


def test_only_a_file_with_every_page_of_the_newest_state_is_100_percent(states):
    replica, (state, newer, _) = states
    read, go_on, said = threading.Semaphore(0), threading.Semaphore(0), []

    def read_page(snapshot: Snapshot, pgno: int) -> bytes:
        read.release()
        assert go_on.acquire(timeout=30)
        return replica.pages.read_through(snapshot, pgno)

    hydration = Hydration(None, read_page)
    hydration.follow(state)
    for _ in range(state.commit):
        assert read.acquire(timeout=30)
        said.append(hydration.progress)
        go_on.release()
    assert said == [min(99.9, 1000 * n // state.commit / 10) for n in range(state.commit)]
    wait_until(lambda: hydration.progress == 100, "hydration")
    hydration.follow(newer)
    assert hydration.progress < 100  # it has as many pages, and some are of the state before
    assert read.acquire(timeout=30)
    assert hydration.progress < 100
    for _ in range(state.commit):
        go_on.release()
    wait_until(lambda: hydration.progress == 100, "hydration")
    hydration.close()


@pytest.mark.parametrize("end", ["closed", "failed"])
def test_what_is_read_while_the_file_is_closed_may_be_of_another_one(world, monkeypatch, end):
    _, script = world
    replica = Replica(Options(replica_url=script.url))
    state = replica.open(10)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    hydration = Hydration(None, replica.pages.read_through)
    hydration.follow(state)
    wait_until(lambda: hydration.progress == 100, "hydration")
    version = state.chunks[0].versions[0]
    assert hydration.get(state, version, 1) == replica.pages.read(state, 1)

    def end_meanwhile(fd: int, size: int, offset: int) -> bytes:
        if end == "closed":
            hydration.close()
        else:
            hydration.follow(None)  # which is a defect
            hydration._thread.join(20)
        return b"\xff" * size

    monkeypatch.setattr(os, "pread", end_meanwhile)
    assert hydration.get(state, version, 1) is None
    hydration.close()
    replica.close()


def test_a_thread_that_outlives_its_close_writes_to_no_other_file(world, tmp_path):
    """It hangs in storage while it is closed; its descriptor's number is given to the next file that is opened."""
    _, script = world
    hanging, go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> bytes:
        hanging.set()
        assert go_on.wait(20)
        return b"\xff" * PAGE_SIZE

    replica = Replica(Options(replica_url=script.url))
    hydration = Hydration(None, hang)
    hydration.follow(replica.open(10))
    assert hanging.wait(20)
    hydration.close_timeout_s = 0.01
    hydration.close()
    assert list(tmp_path.iterdir()) == []
    other = tmp_path / "other"
    fds = [os.open(other, os.O_RDWR | os.O_CREAT) for _ in range(4)]
    go_on.set()
    hydration._thread.join(20)
    assert other.read_bytes() == b""
    for fd in fds:
        os.close(fd)
    replica.close()


def test_closing_waits_for_a_page_on_its_way_to_the_file(world, tmp_path):
    _, script = world
    reading, pgnos = threading.Event(), []

    def read(_: Snapshot, pgno: int) -> bytes:
        reading.set()
        pgnos.append(pgno)
        wait_until(lambda: hydration._closed, "the close")
        threading.Event().wait(0.05)
        return b"\xff" * PAGE_SIZE

    replica = Replica(Options(replica_url=script.url))
    hydration = Hydration(str(tmp_path / "x.db"), read)
    hydration.close_timeout_s = 60
    hydration.follow(replica.open(10))
    assert reading.wait(20)
    hydration.close()
    assert not hydration._thread.is_alive()
    assert len(pgnos) == 1
    replica.close()


@pytest.mark.parametrize("path", ["no/x.db", "file/x.db", "folder", "x" * 300])
def test_a_path_that_can_be_no_file_is_refused(world, tmp_path, path):
    _, script = world
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OptionError, match="hydration_path"):
        litevfs.connect(script.url, hydration_enabled=True, hydration_path=str(tmp_path / path))
    assert litevfs.live.registry.registry.shared == {}


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "EIO"])
@pytest.mark.parametrize("path", ["x.db", ""])
def test_a_file_that_cannot_be_made_now_keeps_no_one_from_reading(world, tmp_path, monkeypatch, caplog, code, path):
    """The disk is full, or the file another user's. The replica that is opened after that has one again."""
    primary, script = world
    options = {"hydration_enabled": True, "hydration_path": str(tmp_path / path) if path else ""}
    opened = os.open

    def refuse(name: object, flags: int, *rest: object, **more: object) -> int:
        if flags & os.O_CREAT and str(name).startswith(str(tmp_path)):
            raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        return opened(name, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with connected(script.url, **options) as con:
            assert rows(con, QUERY) == primary.rows(QUERY)
            assert progress(con) == 0
            assert one(con, "PRAGMA litestream_hydration_file") == ""
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert os.strerror(getattr(errno, code)) in caplog.text
    with connected(script.url, **options) as con:
        wait_until(lambda: progress(con) == 100, "hydration")
        assert rows(con, QUERY) == primary.rows(QUERY)


@pytest.mark.slow
def test_two_replicas_do_not_share_a_file(world, tmp_path, monkeypatch):
    monkeypatch.setattr("litevfs.pages.hydration.LET_GO_S", 0.05)
    _, script = world
    options = {"hydration_enabled": True, "hydration_path": str(tmp_path / "x.db")}
    with connected(script.url, **options), pytest.raises(OptionError, match="in use"):
        litevfs.connect(script.url, poll_interval=0, **options)


def test_beside_another_process_that_has_the_file_a_temporary_one_takes_its_place(world, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("litevfs.pages.hydration.LET_GO_S", 0.05)
    primary, script = world
    path = tmp_path / "x.db"
    options = {"hydration_enabled": True, "hydration_path": str(path), "cache_size": 0, "poll_interval": 0}
    with path.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as the other one does
        other.write(b"its pages")
        other.flush()
        with connected(script.url, **options) as con:
            wait_until(lambda: progress(con) == 100, "hydration")
            own = Path(one(con, "PRAGMA litestream_hydration_file"))
            assert own.name.startswith(TEMP_PREFIX)
            assert rows(con, QUERY) == primary.rows(QUERY)
        assert not own.exists()
        assert path.read_bytes() == b"its pages"
    assert "in use by another process" in caplog.text
    assert not list(tmp_path.glob("*-litevfs"))


def test_a_database_of_others_stays_as_it_is_and_a_file_of_a_killed_process_is_used(world, tmp_path, caplog):
    primary, script = world
    path = tmp_path / "x.db"
    options = {"hydration_enabled": True, "hydration_path": str(path), "poll_interval": 0}
    path.write_bytes(precious := b"SQLite format 3\0 and so on")
    for is_ours in (False, True):
        with connected(script.url, **options) as con:
            wait_until(lambda: progress(con) == 100, "hydration")
            assert (one(con, "PRAGMA litestream_hydration_file") == str(path)) is is_ours
            assert rows(con, QUERY) == primary.rows(QUERY)
        assert path.read_bytes() == (primary.images[primary.txid] if is_ours else precious)
        path.with_name("x.db-litevfs").write_bytes(b"")  # as a process leaves it that is killed soon
    assert caplog.text.count("is a database of others") == 1


def test_without_room_for_the_database_the_disk_is_not_filled_up_and_that_is_told_once(world, monkeypatch, caplog):
    primary, script = world
    have, real = [1], os.fstatvfs
    Disk = namedtuple("Disk", "f_bavail f_frsize")
    monkeypatch.setattr(os, "fstatvfs", lambda fd: Disk(have[0], PAGE_SIZE) if have else real(fd))
    with connected(script.url, poll_interval="5ms", hydration_enabled=True, cache_size=0) as con:
        path = Path(one(con, "PRAGMA litestream_hydration_file"))
        for _ in range(3):
            primary.commit("UPDATE t SET s = s || 'C' WHERE id > 1500")
            wait_until(lambda: rows(con, QUERY) == primary.rows(QUERY), "the new state")
            wait_until(lambda: "hydration stopped" in caplog.text, "a try")
        assert path.stat().st_blocks == 0
        assert [record.levelname for record in caplog.records if "stopped" in record.message].count("WARNING") == 1
        have.clear()
        primary.commit("UPDATE t SET s = s || 'D' WHERE id > 1500")
        wait_until(lambda: rows(con, QUERY) == primary.rows(QUERY), "the new state")
        wait_until(lambda: progress(con) == 100, "hydration")
        assert rows(con, QUERY) == primary.rows(QUERY)
        assert path.stat().st_blocks > 0


@pytest.fixture
def let_go(world, tmp_path, monkeypatch):
    """The options of a replica that was closed while its hydration hung in storage, and what lets that go on."""
    _, script = world
    hanging, go_on = threading.Event(), threading.Event()

    def hang(file: LTXFileInfo, offset: int, data: bytes) -> bytes:
        if threading.current_thread().name == "litevfs-hydrate":
            hanging.set()
            assert go_on.wait(60)
        return data

    monkeypatch.setattr(Hydration, "close_timeout_s", 0.01)
    monkeypatch.setattr(hydration, "LET_GO_S", 30)
    script.on_read = hang
    options = {"hydration_enabled": True, "hydration_path": str(tmp_path / "x.db"), "poll_interval": 0}
    with connected(script.url, **options):
        assert hanging.wait(20)
    yield options, go_on
    go_on.set()


def test_a_file_that_the_replica_before_is_just_letting_go_of_is_waited_for(world, let_go, monkeypatch):
    """Connections come and go in many threads: the last one of a replica goes while the first one of the next comes."""
    primary, script = world
    options, go_on = let_go
    flock = fcntl.flock

    def flock_or_let_go(fd: int, operation: int) -> None:
        try:
            flock(fd, operation)
        except BlockingIOError:
            go_on.set()
            raise

    monkeypatch.setattr(fcntl, "flock", flock_or_let_go)
    with connected(script.url, **options) as con:
        assert go_on.is_set()
        wait_until(lambda: progress(con) == 100, "hydration")
        assert rows(con, QUERY) == primary.rows(QUERY)
        assert Path(options["hydration_path"]).read_bytes() == primary.images[3]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking a process with threads, which is the point
def test_a_file_that_was_let_go_of_is_free_whatever_was_forked_meanwhile(world, let_go):
    primary, script = world
    options, go_on = let_go
    child = os.fork()
    if child == 0:
        signal.alarm(100)
        signal.pause()
    try:
        go_on.set()
        with connected(script.url, **options) as con:
            assert rows(con, QUERY) == primary.rows(QUERY)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# --- temporary files and the processes beside this one ----------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_killed_processes_left_is_swept_and_what_living_ones_have_is_not(folder):
    (folder / f"{TEMP_PREFIX}left.db").write_bytes(b"left")
    (folder / "other.db").write_bytes(b"not ours")
    first, first_path = hydration._open_temporary()
    second, second_path = hydration._open_temporary()
    assert {path.name for path in folder.iterdir()} == {Path(first_path).name, Path(second_path).name, "other.db"}
    os.close(first)
    os.close(second)


@pytest.mark.parametrize("sweeper", ["has deleted it", "is about to delete it"])
def test_a_file_that_another_process_sweeps_before_it_is_locked_is_given_up_for_another(folder, monkeypatch, sweeper):
    open_file, made, held = os.open, [], []

    def open_and_sweep(path: str, flags: int, *mode: int) -> int:
        fd = open_file(path, flags, *mode)
        if not flags & os.O_EXCL:
            return fd
        if not made:
            held.append(open_file(path, os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            if sweeper == "has deleted it":
                Path(path).unlink()
                os.close(held.pop())
        made.append(path)
        return fd

    monkeypatch.setattr(os, "open", open_and_sweep)
    fd, path = hydration._open_temporary()
    assert path == made[1]
    assert os.path.samestat(os.fstat(fd), Path(path).stat())
    other = os.open(path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for descriptor in (fd, other, *held):
        os.close(descriptor)


# --- forked children --------------------------------------------------------------------------------------------------


def test_a_lazy_one_makes_its_file_at_the_first_read(folder):
    lazy = Hydration(None, lambda *_: b"", lazily=True)
    assert lazy.path == ""
    assert list(folder.iterdir()) == []
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        replica = Replica(Options(replica_url=script.url))
        snapshot = replica.open(10)
        lazy._read_page = replica.pages.read_through
        lazy.follow(snapshot)
        assert list(folder.iterdir()) == []
        lazy.get(snapshot, snapshot.version(1), 1)
        lazy._start_late()  # by a reader that came at the same time
        wait_until(lambda: lazy.get(snapshot, snapshot.version(1), 1) == replica.pages.read(snapshot, 1), "the page")
        replica.close()
    assert [str(path) for path in folder.iterdir()] == [lazy.path]
    lazy.close()
    assert list(folder.iterdir()) == []


def test_a_lazy_one_that_was_never_read_has_nothing_to_close(folder):
    lazy = Hydration(None, lambda *_: b"", lazily=True)
    lazy.close()
    lazy.close()
    assert lazy.get(empty_snapshot(), 1, 1) is None
    assert lazy.path == ""
    assert list(folder.iterdir()) == []


def test_a_lazy_one_waits_for_no_other_to_let_go_of_the_file(folder, monkeypatch, caplog):
    monkeypatch.setattr(hydration, "LET_GO_S", 100)
    owner = Hydration(str(folder / "x.db"), lambda *_: b"")
    lazy = Hydration(owner.path, lambda *_: b"", lazily=True)
    assert lazy.get(empty_snapshot(), 1, 1) is None
    assert "without hydration" in caplog.text
    lazy.close()
    owner.close()


def test_a_lazy_one_without_a_thread_to_be_had_leaves_no_file(folder, monkeypatch, caplog):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lazy = Hydration(None, lambda *_: b"", lazily=True)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert lazy.get(empty_snapshot(), 1, 1) is None
    assert "without hydration" in caplog.text
    assert list(folder.iterdir()) == []


@pytest.mark.plan("K01")
@pytest.mark.parametrize("folder", ["/nowhere", None])
def test_without_a_folder_for_the_temporary_file_reads_go_to_the_storage(world, monkeypatch, folder, caplog):
    """The one that is set is gone, or there is none anywhere, as tempfile says where all of them are full."""
    primary, script = world
    monkeypatch.setattr(tempfile, "tempdir", folder)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    with connected(script.url, hydration_enabled=True) as con:
        assert rows(con, QUERY) == primary.rows(QUERY)
    assert "nothing is hydrated until the replica is opened again" in caplog.text
