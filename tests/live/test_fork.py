"""After `os.fork()`: what a child has of its parent's connections, subscriptions and files, and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import litevfs
from litevfs.errors import TransientStorageError
from litevfs.live import registry
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.urls import register_scheme
from tests.primary import Primary
from tests.support import connected, one, rows, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of forking a process with threads, which is the point
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]
POLL = {"poll_interval": "5ms"}


@contextmanager
def replica_in(folder: Path):
    with Primary(FileReplicaClient(folder)) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        yield primary
        primary.client.close()


@contextmanager
def forked(work: Callable[[], None], *, times: int = 1):
    """A child that does `work` while the block runs; fails the test if that raises or does not end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _do(work, writing, times)
    os.close(writing)
    try:
        yield
        with os.fdopen(reading) as pipe:  # read to its end: then the child, and its children, have ended
            assert pipe.read() == "done"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _refuse(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def _do(work: Callable[[], None], writing: int, times: int) -> None:
    signal.alarm(30)
    try:
        if times > 1 and os.fork():
            signal.pause()
        work()
        os.write(writing, b"done")
    except BaseException:  # noqa: BLE001 (told to the parent)
        os.write(writing, traceback.format_exc().encode())
    finally:
        os.close(writing)
        if times > 1:
            os.kill(os.getppid(), signal.SIGKILL)
        os._exit(0)


@pytest.mark.parametrize("times", [1, 2])
def test_a_child_and_a_childs_child_follow_the_primary(tmp_path, times):
    with replica_in(tmp_path / "r") as primary, connected(tmp_path / "r", **POLL) as con:
        assert rows(con, "SELECT * FROM t") == [(1,)]

        def follow() -> None:
            wait_until(lambda: rows(con, "SELECT count(*) FROM t") == [(3,)], "news in the child", timeout_s=20)

        with forked(follow, times=times):
            primary.commit("INSERT INTO t VALUES(2)")
            primary.commit("INSERT INTO t VALUES(3)")


def test_a_child_without_a_thread_for_its_poller_says_so_and_follows_once_there_is_one(tmp_path):
    with replica_in(tmp_path / "r") as primary, connected(tmp_path / "r", **POLL) as con:

        def follow() -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(threading.Thread, "start", _refuse)
                for _ in range(2):
                    with pytest.raises(TransientStorageError, match="no thread for litevfs-poll"):
                        rows(con, "SELECT * FROM t")
            wait_until(lambda: rows(con, "SELECT count(*) FROM t") == [(2,)], "news in the child", timeout_s=20)

        with forked(follow):
            primary.commit("INSERT INTO t VALUES(2)")


@pytest.mark.parametrize("explicit", [False, True], ids=["temporary file", "hydration_path"])
def test_a_child_of_a_process_with_a_hydrated_replica_reads_and_follows_every_replica(tmp_path, caplog, explicit):
    options = {**POLL, "hydration_enabled": True, "cache_size": 0}
    if explicit:
        options["hydration_path"] = str(tmp_path / "hydrated.db")
    with (
        replica_in(tmp_path / "r") as primary,
        replica_in(tmp_path / "q") as other,
        connected(tmp_path / "r", **options) as con,
        connected(tmp_path / "q", **POLL) as beside,
    ):
        parents_file = Path(one(con, "PRAGMA litestream_hydration_file"))
        wait_until(lambda: one(con, "PRAGMA litestream_hydration_progress") == "100.0", "hydration")

        def follow() -> None:
            assert one(con, "PRAGMA litestream_hydration_file") == ""  # no connection has read anything yet
            assert "cannot be read after the fork" not in caplog.text
            assert rows(con, "SELECT count(*) FROM t") in ([(1,)], [(2,)])  # the parent commits meanwhile
            for connection in (con, beside):
                count = partial(one, connection, "SELECT count(*) FROM t")
                wait_until(lambda count=count: count() == 2, "news in the child", timeout_s=20)
            if explicit:
                assert one(con, "PRAGMA litestream_hydration_file") == ""
            else:
                own = Path(one(con, "PRAGMA litestream_hydration_file"))
                assert own != parents_file
                wait_until(lambda: one(con, "PRAGMA litestream_hydration_progress") == "100.0", "hydration", 20)
                con.close()
                assert not own.exists()
            assert parents_file.exists()

        with forked(follow):
            primary.commit("INSERT INTO t VALUES(2)")
            other.commit("INSERT INTO t VALUES(2)")
        assert parents_file.exists()
        primary.commit("INSERT INTO t VALUES(3)")
        wait_until(lambda: rows(con, "SELECT count(*) FROM t") == [(3,)], "the parent's own news")


def test_a_child_that_takes_over_from_a_parent_that_closed_hydrates_to_the_same_path(tmp_path):
    """The daemon that opens, forks, and ends in the parent."""
    path = str(tmp_path / "hydrated.db")
    go_on, told = os.pipe()
    with replica_in(tmp_path / "r") as primary:
        con = litevfs.connect(tmp_path / "r", **POLL, hydration_enabled=True, hydration_path=path, cache_size=0)

        def take_over() -> None:
            assert os.read(go_on, 1) == b"x"
            assert rows(con, "SELECT * FROM t") == [(1,)]
            con.cache_flush()
            wait_until(lambda: one(con, "PRAGMA litestream_hydration_file") == path, "the file", 20)
            wait_until(lambda: one(con, "PRAGMA litestream_hydration_progress") == "100.0", "hydration", 20)
            assert Path(path).stat().st_size == len(primary.images[1])

        with forked(take_over):
            con.close()
            os.write(told, b"x")
    os.close(go_on)
    os.close(told)


@pytest.mark.slow
def test_a_child_that_ends_in_good_order_leaves_the_parents_file(tmp_path):
    program = """
        import os, sys
        from pathlib import Path
        import litevfs

        connection = litevfs.connect(sys.argv[1], hydration_enabled=True)
        if not (child := os.fork()):
            sys.exit(3)
        _, status = os.waitpid(child, 0)
        file = Path(connection.pragma("litestream_hydration_file"))
        print(os.waitstatus_to_exitcode(status), file.exists())
    """
    with replica_in(tmp_path / "r"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), str(tmp_path / "r")],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=Path(__file__).parents[2],
            check=False,
        )
    assert (done.stdout, done.stderr) == ("3 True\n", "")


def test_a_replica_that_cannot_go_on_after_a_fork_keeps_no_other_from_it(tmp_path, caplog):
    with (
        replica_in(tmp_path / "r") as primary,
        connected(tmp_path / "r", txid=1) as fixed,
        connected(tmp_path / "r", **POLL, prefetch=False) as con,
    ):
        replicas = [shared.replica for shared in registry.registry.shared.values()]
        assert len(replicas) == 2
        del replicas[0]._follower  # whatever may be wrong with it

        def follow() -> None:
            assert rows(fixed, "SELECT * FROM t") == [(1,)]
            assert "cannot be read after the fork" in caplog.text
            wait_until(lambda: rows(con, "SELECT count(*) FROM t") == [(2,)], "news in the child", timeout_s=20)

        with forked(follow):
            primary.commit("INSERT INTO t VALUES(2)")


def test_a_daemon_that_changed_its_folder_reads_the_replica_that_it_opened(tmp_path, monkeypatch):
    with replica_in(tmp_path / "r") as primary:
        monkeypatch.chdir(tmp_path)
        with connected("r", **POLL, cache_size=0) as con:
            monkeypatch.chdir("/")

            def follow() -> None:
                wait_until(lambda: rows(con, "SELECT count(*) FROM t") == [(2,)], "news in the child", timeout_s=20)

            with forked(follow):
                primary.commit("INSERT INTO t VALUES(2)")


def test_a_subscription_is_closed_in_a_child_and_goes_on_in_the_parent(tmp_path):
    heard: list[int] = []
    with (
        replica_in(tmp_path / "r") as primary,
        connected(tmp_path / "r", **POLL) as con,
        litevfs.subscribe(tmp_path / "r", heard.append, **POLL) as subscription,
    ):

        def follow() -> None:
            wait_until(lambda: rows(con, "SELECT count(*) FROM t") == [(4,)], "news in the child", timeout_s=20)
            assert heard == []
            assert subscription._txids.qsize() == 0
            subscription.close()
            con.close()
            assert registry.registry.shared == {}
            assert not [thread for thread in threading.enumerate() if thread.name.startswith("litevfs")]

        with forked(follow):
            for value in (2, 3, 4):
                primary.commit(f"INSERT INTO t VALUES({value})")
        wait_until(lambda: heard == [2, 3, 4], "what the parent hears")


def test_a_child_may_subscribe_for_itself(tmp_path):
    with replica_in(tmp_path / "r") as primary, litevfs.subscribe(tmp_path / "r", lambda _: None, **POLL):

        def subscribe() -> None:
            assert registry.registry.shared == {}
            with litevfs.subscribe(tmp_path / "r", lambda _: None, **POLL) as own:
                wait_until(lambda: own.txid == 3, "news", timeout_s=20)
            assert registry.registry.shared == {}

        with forked(subscribe):
            primary.commit("INSERT INTO t VALUES(2)")
            primary.commit("INSERT INTO t VALUES(3)")


def test_a_subscription_that_ended_before_the_fork_leaves_to_the_child_what_was_opened_since(tmp_path):
    with replica_in(tmp_path / "r"):
        ended = litevfs.subscribe(tmp_path / "r", lambda _: None, **POLL)
        ended.close()
        with connected(tmp_path / "r", **POLL) as con:

            def end() -> None:
                assert len(registry.registry.shared) == 1
                con.close()
                assert registry.registry.shared == {}

            with forked(end):
                pass


def test_a_child_reads_and_opens_whatever_locks_other_threads_held_at_the_fork(tmp_path):
    held, let_go = threading.Event(), threading.Event()
    with replica_in(tmp_path / "r") as primary, connected(tmp_path / "r", **POLL) as con:
        (shared,) = registry.registry.shared.values()

        def hold() -> None:
            replica = shared.replica
            with registry.registry._lock, shared.making, replica._refresh_lock, replica._published:
                held.set()
                assert let_go.wait(60)

        def follow() -> None:
            with connected(tmp_path / "r", **POLL) as other:
                for connection in (con, other):
                    wait_until(lambda c=connection: rows(c, "SELECT count(*) FROM t") == [(2,)], "news", timeout_s=20)

        holding = threading.Thread(target=hold)
        holding.start()
        assert held.wait(20)
        try:
            with forked(follow):
                primary.commit("INSERT INTO t VALUES(2)")
        finally:
            let_go.set()
            holding.join()


def test_a_fork_while_another_thread_makes_a_replica_leaves_no_half_of_one(tmp_path):
    calls, making, go_on = [], threading.Event(), threading.Event()

    def make(url: str, *, read_timeout_s: float) -> FileReplicaClient:
        calls.append(url)
        if len(calls) == 2:  # the first one is asked for its URL alone
            making.set()
            assert go_on.wait(20)
        return FileReplicaClient(url.removeprefix("slow://"))

    register_scheme("slow", make)
    url = f"slow://{tmp_path}/r"
    with replica_in(tmp_path / "r"):
        opened = []
        thread = threading.Thread(target=lambda: opened.append(litevfs.connect(url)))
        thread.start()
        assert making.wait(20)

        def open_it() -> None:
            with connected(url) as con:
                assert rows(con, "SELECT * FROM t") == [(1,)]
            assert registry.registry.shared == {}

        with forked(open_it):
            pass
        go_on.set()
        thread.join(20)
        assert rows(opened[0], "SELECT * FROM t") == [(1,)]
        opened[0].close()
