"""One replica per URL and process: who shares, whose options count, and that the last one turns off the light."""

from __future__ import annotations

import fcntl
import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import litevfs
from litevfs.errors import OptionError, TransientStorageError
from litevfs.live import registry
from litevfs.live.poller import Poller
from litevfs.live.registry import Lease, ReplicaRegistry
from litevfs.live.replica import Replica
from litevfs.live.session import Session
from litevfs.options import Options
from litevfs.replica_clients.base import ReplicaClient
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.replica_clients.urls import open_replica_client, register_scheme
from tests.interrupts import interrupted_everywhere
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, in_threads, rows, wait_until


@pytest.fixture
def world():
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        yield script, ReplicaRegistry()


def options(script: Script, **values: object) -> Options:
    return Options(replica_url=script.url, **values)


@pytest.mark.plan("L26")
def test_connections_to_one_url_share_one_replica(world):
    script, registry = world
    a, b = registry.acquire(options(script)), registry.acquire(options(script, poll_interval_s=5.0))
    assert a.replica is b.replica
    registry.release(a)
    registry.release(a)  # again: nothing
    assert a.replica.status().state == "opening"
    registry.release(b)
    assert a.replica.status().state == "closed"
    assert registry.shared == {}


def test_spellings_of_one_place_are_one_replica(tmp_path, monkeypatch):
    with Primary(FileReplicaClient(tmp_path / "r")) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.client.close()
    monkeypatch.chdir(tmp_path)
    registry = ReplicaRegistry()
    spellings = ["r", "./r", str(tmp_path / "r"), f"file://{tmp_path}/r", f"file://{tmp_path}/x/../r/"]
    every = [registry.acquire(Options(replica_url=url)) for url in spellings]
    assert len({id(lease.replica) for lease in every}) == 1
    for lease in every:
        registry.release(lease)
    assert registry.shared == {}


def test_connections_that_do_not_poll_are_not_moved_on_by_those_that_do(world):
    script, registry = world
    polling, still = registry.acquire(options(script)), registry.acquire(options(script, poll_interval_s=0.0))
    assert polling.replica is not still.replica
    registry.release(polling)
    registry.release(still)


@pytest.mark.plan("L02", "L26")
@pytest.mark.parametrize(
    "other",
    [
        {"verify": True},
        {"prefetch": False},
        {"read_timeout_s": 1.0},
        {"hydration_enabled": True},
        {"cache_dir": "blocks"},
    ],
)
def test_connections_share_with_their_like_only(world, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, registry = world
    plain, like, unlike = (registry.acquire(options(script, **values)) for values in ({}, other, other))
    assert plain.replica is not like.replica
    assert like.replica is unlike.replica
    for lease in (plain, like, unlike):
        registry.release(lease)
    assert registry.shared == {}


def test_what_every_connection_has_of_its_own_keeps_none_from_sharing(world):
    script, registry = world
    own = [{"open_timeout_s": 1.0}, {"max_staleness_s": 2.0}, {"txid": 1}, {"timestamp_ms": 5}, {"hydration_path": "x"}]
    leases = [registry.acquire(options(script, **values)) for values in ({}, *own)]
    assert len({id(lease.replica) for lease in leases}) == 1
    for lease in leases:
        registry.release(lease)


def test_the_shortest_interval_and_the_largest_cache_count(world):
    script, registry = world
    leases = []
    for interval_s, size in ((5.0, 1_000_000), (2.0, 3_000_000), (9.0, 500)):
        leases.append(registry.acquire(options(script, poll_interval_s=interval_s, cache_size_bytes=size)))
        leases[-1].replica.open(5)
        leases[-1].replica.poll_every(interval_s)
    replica = leases[0].replica
    assert replica.status().poll_interval_s == 2.0
    assert replica.pages._cache.limit_bytes == 3_000_000
    for lease in leases:
        registry.release(lease)
    assert replica.status().state == "closed"


def test_a_replica_polls_no_more_often_than_those_who_are_left_want(world):
    script, registry = world
    leases = {}
    for interval_s in (5.0, 2.0, 9.0, 2.0):
        lease = registry.acquire(options(script, poll_interval_s=interval_s))
        lease.replica.open(5)
        lease.replica.poll_every(interval_s)
        leases.setdefault(interval_s, []).append(lease)
    replica = lease.replica
    for leaves, left in ((2.0, 2.0), (2.0, 5.0), (9.0, 5.0)):
        registry.release(leases[leaves].pop())
        wait_until(lambda left=left: replica.status().poll_interval_s == left, f"an interval of {left} s")
    registry.release(leases[5.0].pop())


def test_a_replica_polls_as_often_as_a_connection_wants_that_comes_while_it_slows_down(world, monkeypatch):
    script, registry = world
    slow, fast = (registry.acquire(options(script, poll_interval_s=interval_s)) for interval_s in (9.0, 1.0))
    replica = slow.replica
    replica.open(5)
    replica.poll_every(1.0)
    slow_down, came = replica.slow_down, []

    def come_first(wanted_s: Callable[[], float]) -> None:
        came.append(registry.acquire(options(script, poll_interval_s=2.0)))
        replica.poll_every(2.0)
        slow_down(wanted_s)

    monkeypatch.setattr(replica, "slow_down", come_first)
    registry.release(fast)
    wait_until(lambda: came and replica.status().poll_interval_s == 2.0, "the interval of the one that came")
    for lease in (slow, *came):
        registry.release(lease)


def test_nothing_polls_for_fixed_views_alone(world):
    script, registry = world
    live, fixed = registry.acquire(options(script)), registry.acquire(options(script, txid=1))
    replica = live.replica
    assert fixed.replica is replica
    replica.open(5)
    replica.poll_every(1.0)
    registry.release(live)
    assert replica.status().poll_interval_s == 0
    assert replica.status().state == "current"
    registry.release(fixed)
    assert replica.status().state == "closed"


def test_polling_goes_on_for_a_connection_that_comes_while_it_is_being_ended(world, monkeypatch):
    script, registry = world
    live, fixed = registry.acquire(options(script)), registry.acquire(options(script, txid=1))
    replica = live.replica
    replica.open(5)
    replica.poll_every(1.0)
    detach, came = replica.detach_poller, []

    def come_first() -> Poller | None:
        came.append(registry.acquire(options(script, poll_interval_s=2.0)))
        replica.poll_every(2.0)
        return detach()

    with monkeypatch.context() as patch:
        patch.setattr(replica, "detach_poller", come_first)
        registry.release(live)
    assert replica.status().poll_interval_s == 2.0
    registry.release(*came)
    assert replica.status().poll_interval_s == 0
    registry.release(fixed)


def test_nothing_polls_for_a_connection_that_came_and_went_while_polling_was_being_ended(world, monkeypatch):
    script, registry = world
    live, fixed = registry.acquire(options(script)), registry.acquire(options(script, txid=1))
    replica = live.replica
    replica.open(5)
    replica.poll_every(1.0)
    detach, poll_every, came = replica.detach_poller, replica.poll_every, []

    def come_first() -> Poller | None:
        if not came:
            came.append(registry.acquire(options(script, poll_interval_s=2.0)))
        return detach()

    def go_first(interval_s: float) -> None:
        registry.release(*came)
        poll_every(interval_s)

    monkeypatch.setattr(replica, "detach_poller", come_first)
    monkeypatch.setattr(replica, "poll_every", go_first)
    registry.release(live)
    wait_until(lambda: came and replica.status().poll_interval_s == 0, "an end of polling")
    registry.release(fixed)


def test_a_replica_that_was_let_go_is_made_again(world):
    script, registry = world
    first = registry.acquire(options(script))
    registry.release(first)
    second = registry.acquire(options(script))
    assert second.replica is not first.replica
    assert second.replica.open(5).txid == 1
    registry.release(second)


def test_a_replica_that_cannot_be_made_leaves_nothing_and_can_be_made_later(world, tmp_path):
    script, registry = world
    wanted = options(script, hydration_enabled=True, hydration_path=str(tmp_path / "folder" / "x.db"))
    with pytest.raises(OptionError):
        registry.acquire(wanted)
    assert registry.shared == {}
    (tmp_path / "folder").mkdir()
    lease = registry.acquire(wanted)
    assert lease.replica.open(5).txid == 1
    registry.release(lease)


def test_threads_that_come_and_go_leave_nothing(world):
    script, registry = world

    def work(i: int) -> None:
        interval_s = 0.01 if i % 2 else 0.0
        for _ in range(20):
            lease = registry.acquire(options(script, poll_interval_s=interval_s))
            assert lease.replica.open(5).txid == 1
            lease.replica.poll_every(interval_s)
            registry.release(lease)

    in_threads(8, work)
    assert registry.shared == {}


@pytest.mark.parametrize("missing", ["litevfs-refresh", "litevfs-poll", "litevfs-hydrate", "litevfs-subscribe"])
def test_without_a_thread_to_be_had_opening_is_refused_leaves_nothing_and_works_later(world, monkeypatch, missing):
    script, _ = world
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(missing):
            raise RuntimeError("can't start new thread")
        start(thread)

    def open_and_close() -> None:
        litevfs.subscribe(script.url, print, hydration_enabled=True, open_timeout="0s").close()

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TransientStorageError, match=f"no thread for {missing} now: can't start new thread"):
            open_and_close()
    wait_until(lambda: not any(thread.name.startswith("litevfs") for thread in threading.enumerate()), "an end")
    assert registry.registry.shared == {}
    open_and_close()


def test_without_a_thread_to_be_had_closing_ends_the_replica_all_the_same(world, monkeypatch):
    script, registry = world
    lease = registry.acquire(options(script))
    lease.replica.open(5)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "litevfs-close":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    registry.release(lease)
    assert lease.replica.status().state == "closed"


# --- what a URL means -------------------------------------------------------------------------------------------------


def replica_in(folder: Path, value: int) -> Primary:
    primary = Primary(FileReplicaClient(folder / "replica"))
    primary.commit(f"CREATE TABLE t(x); INSERT INTO t VALUES({value})")
    return primary


def test_a_relative_path_means_what_it_meant_when_it_was_opened(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    with replica_in(here, 1) as first, replica_in(there, 2) as second:
        monkeypatch.chdir(here)
        one_connection = litevfs.connect("replica", poll_interval="5ms")
        monkeypatch.chdir(there)
        with connected("replica", poll_interval="5ms") as other:
            assert rows(one_connection, "SELECT x FROM t") == [(1,)]
            one_connection.close()
            second.commit("INSERT INTO t VALUES(3)")
            wait_until(lambda: rows(other, "SELECT x FROM t") == [(2,), (3,)], "news of the other one")
        assert registry.registry.shared == {}
        first.client.close()
        second.client.close()


def test_an_endpoint_of_the_environment_may_change_between_open_and_close(monkeypatch):
    registry = ReplicaRegistry()
    monkeypatch.setenv("LITESTREAM_S3_ENDPOINT", "http://127.0.0.1:1")
    lease = registry.acquire(Options(replica_url="s3://bucket/app"))
    monkeypatch.setenv("LITESTREAM_S3_ENDPOINT", "http://127.0.0.1:2")
    other = registry.acquire(Options(replica_url="s3://bucket/app"))
    assert lease.replica.url == "s3://bucket/app?endpoint=http://127.0.0.1:1"
    assert other.replica is not lease.replica
    lease.replica.restart_after_fork()  # in a child, that is
    assert lease.replica.url == "s3://bucket/app?endpoint=http://127.0.0.1:1"
    registry.release(lease)
    registry.release(other)
    assert registry.shared == {}


# --- letting go from a finalizer --------------------------------------------------------------------------------------


def forsake(url: str) -> Replica:
    """Open a replica by a connection that nothing but the garbage collector can close any more. Returns the replica."""

    class Holder:
        pass

    holder = Holder()
    holder.itself = holder
    holder.connection = litevfs.connect(url, poll_interval="60s")
    return next(shared.replica for shared in registry.registry.shared.values() if shared.replica.url == url)


def in_a_daemon(call: Callable[[], object]) -> None:
    """Make the call in a thread that the test outlives if it hangs."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "a deadlock"


@pytest.mark.slow
@pytest.mark.parametrize(
    "lock",
    [
        lambda replica: registry.registry._lock,
        lambda replica: replica.fetcher.threads._lock,
        lambda replica: replica.fetcher.threads.pool._lock,
        lambda replica: replica._published,
        lambda replica: replica._refresh_lock,
        lambda replica: threading._active_limbo_lock,
    ],
    ids=["registry", "fetcher", "pool", "published", "refresh", "threading"],
)
def test_a_connection_that_is_collected_under_a_lock_ends_its_replica_all_the_same(lock):
    with Script(block_size=1 << 16) as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        gc.disable()
        try:
            replica = forsake(script.url)
            assert replica.fetcher.threads.pool is not None

            def collect() -> None:
                with lock(replica):
                    gc.collect()

            in_a_daemon(collect)
        finally:
            gc.enable()
        wait_until(lambda: replica.status().state == "closed", "the end of the replica")
        assert registry.registry.shared == {}


def test_a_connection_may_be_collected_while_another_replica_is_being_made():
    with Script() as script, Script() as other, Primary(script.writer) as first, Primary(other.writer) as second:
        first.commit("CREATE TABLE t(x)")
        second.commit("CREATE TABLE t(x)")

        def open_and_collect(url: str, *, read_timeout_s: float) -> ReplicaClient:
            gc.collect()
            return open_replica_client(url.removeprefix("collecting+"), read_timeout_s=read_timeout_s)

        register_scheme("collecting+scripted", open_and_collect)
        gc.disable()
        try:
            replica = forsake(script.url)
            in_a_daemon(lambda: litevfs.connect(f"collecting+{other.url}").close())
        finally:
            gc.enable()
        assert replica.status().state == "closed"


@pytest.mark.slow
def test_ctrl_c_at_any_moment_of_opening_leaves_no_replica_open():
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        for opened in interrupted_everywhere(list, lambda files: files.append(Session(options(script)))):
            opened.clear()
            assert not any(shared.leases for shared in registry.registry.shared.values())
            wait_until(lambda: not any("poll" in thread.name for thread in threading.enumerate()), "an end")
        registry.registry.shared.clear()


@pytest.mark.slow
def test_ctrl_c_at_any_moment_of_opening_leaves_the_hydrated_file_to_the_next_one(tmp_path):
    path = tmp_path / "x.db"
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        wanted = options(script, poll_interval_s=0, hydration_enabled=True, hydration_path=str(path))
        for opened in interrupted_everywhere(list, lambda files: files.append(Session(wanted))):
            opened.clear()
            wait_until(lambda: not any("hydrate" in thread.name for thread in threading.enumerate()), "an end")
            with path.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        registry.registry.shared.clear()


def test_a_finalizer_that_takes_the_last_hold_just_before_ours_leaves_no_closed_replica_to_us(world):
    """The collector may run in the middle of joining those who hold a replica, in the thread that has the lock."""
    script, registry = world
    last = registry.acquire(options(script))

    class Leases(set[Lease]):
        def add(self, lease: Lease) -> None:
            registry.release(last)
            super().add(lease)

    last.shared.leases = Leases(last.shared.leases)
    ours = registry.acquire(options(script))
    assert last not in last.shared.leases
    assert ours.replica is not last.replica
    assert ours.replica.open(10).txid == 1
    registry.release(ours)
    assert registry.shared == {}


def test_finalizers_that_take_the_last_two_holds_at_once_end_the_replica(world):
    script, registry = world
    first, last = registry.acquire(options(script)), registry.acquire(options(script))

    class Leases(set[Lease]):
        def discard(self, lease: Lease) -> None:
            super().discard(lease)
            registry.release(last)

    first.shared.leases = Leases(first.shared.leases)
    registry.release(first)
    wait_until(lambda: first.replica.status().state == "closed", "an end")
    assert registry.shared == {}


def test_finalizers_between_any_two_steps_leave_nothing():
    """The collector runs as often as it can, in threads that open, close and forsake connections to two replicas."""
    with Script() as script, Script(block_size=1 << 16) as other:
        for one_script in (script, other):
            with Primary(one_script.writer) as primary:
                primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        before = gc.get_threshold()

        def work(i: int) -> None:
            for j in range(30):
                forsaken = [litevfs.connect((script, other)[j % 2].url, poll_interval="2ms")]
                forsaken.append(forsaken)
                with connected((script, other)[(i + j) % 2].url, poll_interval="2ms") as con:
                    assert rows(con, "SELECT x FROM t") == [(1,)]

        gc.set_threshold(1, 1, 1)
        try:
            in_threads(4, work)
        finally:
            gc.set_threshold(*before)

        def is_all_let_go() -> bool:
            gc.collect()  # does nothing while another thread collects, which may wait in a finalizer
            return registry.registry.shared == {}

        wait_until(is_all_let_go, "everything to be let go")


# --- the end of the process -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_ends_while_a_request_of_the_read_ahead_has_no_answer():
    program = """
        import threading
        import litevfs
        from tests.primary import Primary
        from tests.scripted import Script
        from tests.support import rows, wait_until

        script = Script(block_size=1 << 16)
        primary = Primary(script.writer)
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        connection = litevfs.connect(script.url, hydration_enabled=True)
        assert rows(connection, "SELECT * FROM t") == [(1,)]
        hanging = threading.Event()

        def hang(level, files):
            hanging.set()
            threading.Event().wait()

        script.on_list = hang
        replica = next(iter(litevfs.live.registry.registry.shared.values())).replica
        replica.fetcher.threads.submit(lambda: replica.fetcher.list_files(0))
        assert hanging.wait(20)
        print(connection.pragma("litestream_hydration_file"))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert not Path(done.stdout.strip()).exists()
