"""The pool of threads behind a replica: who runs what, what happens to errors, and that it keeps nothing alive."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial

import pytest

from litevfs.concurrency.workers import SpareThreads, WorkerPool, start_thread
from litevfs.errors import TransientStorageError
from tests.support import in_threads, wait_until


@pytest.fixture
def pool():
    pool = WorkerPool(4, "litevfs-test")
    yield pool
    pool.shutdown()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("litevfs-test")]


def test_results_and_errors_come_back(pool):
    futures = [pool.submit(lambda i=i: 10 // i) for i in range(5)]
    assert [future.result(10) for future in futures[1:]] == [10, 5, 3, 2]
    with pytest.raises(ZeroDivisionError):
        futures[0].result(10)
    with pytest.raises(SystemExit):
        pool.submit(sys.exit).result(10)


def test_no_more_threads_than_allowed_and_as_many_as_that_at_once(pool):
    together = threading.Barrier(4)
    ran: list[str] = []

    def call() -> None:
        ran.append(threading.current_thread().name)
        together.wait(20)

    futures = [pool.submit(call) for _ in range(12)]
    for future in futures:
        future.result(20)
    assert len(ran) == 12
    assert len(set(ran)) == len(threads()) == 4


def test_an_idle_thread_is_used_again(pool):
    for _ in range(50):
        pool.submit(int).result(10)
        wait_until(lambda: len(pool._idle) == 1, "the thread to be idle")
    assert len(threads()) == 1


def test_calls_are_made_in_the_order_in_which_they_came():
    pool, go_on, made = WorkerPool(1, "litevfs-test"), threading.Event(), []
    pool.submit(lambda: go_on.wait(20))
    futures = [pool.submit(lambda n=n: made.append(n)) for n in range(5)]
    go_on.set()
    for future in futures:
        future.result(20)
    pool.shutdown()
    assert made == [0, 1, 2, 3, 4]


def test_a_call_that_was_cancelled_is_not_made_and_one_that_has_begun_cannot_be():
    pool, begun, go_on, made = WorkerPool(1, "litevfs-test"), threading.Event(), threading.Event(), []
    first = pool.submit(lambda: begun.set() or go_on.wait(20))
    second, third = (pool.submit(lambda n=n: made.append(n)) for n in (2, 3))
    assert begun.wait(20)
    assert not first.cancel()
    assert second.cancel()
    go_on.set()
    third.result(20)
    pool.shutdown()
    assert made == [3]


def test_an_idle_thread_that_has_a_call_already_is_not_counted_on_for_another(pool):
    pool.submit(int).result(10)
    wait_until(lambda: len(pool._idle) == 1, "the thread to be idle")
    together = threading.Barrier(2)
    with pool._lock:  # before the idle one can take its call
        futures = [pool.submit(lambda: together.wait(20)) for _ in range(2)]
    assert {future.result(20) for future in futures} == {0, 1}


def test_shutting_down_cancels_what_waits_and_ends_every_thread(pool):
    go_on = threading.Event()
    running = [pool.submit(lambda: go_on.wait(20)) for _ in range(4)]
    wait_until(lambda: not pool._waiting, "the calls to begin")
    waiting = pool.submit(int)
    told = []
    waiting.add_done_callback(lambda future: told.append(future.cancelled()))
    pool.shutdown()
    assert told == [True]
    with pytest.raises(CancelledError):
        waiting.result(10)
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(int)
    go_on.set()
    assert all(future.result(10) for future in running)
    wait_until(lambda: not threads(), "the end of the threads")


def test_an_idle_thread_keeps_no_result_and_an_error_no_circle(pool):
    class Thing:
        pass

    def fail() -> None:
        raise ValueError

    result = pool.submit(Thing)
    gone = weakref.ref(result.result(10))
    error = pool.submit(fail)
    future = weakref.ref(error)
    assert isinstance(error.exception(10), ValueError)
    gc.disable()
    try:
        del result, error
        wait_until(lambda: gone() is None and future() is None, "both to be let go")
    finally:
        gc.enable()


class Noted:
    """A task that notes which of its two ends it came to."""

    def __init__(self, noted: list[str], run: Callable[[], object] = int) -> None:
        self._noted, self._run = noted, run

    def run(self) -> None:
        self._run()
        self._noted.append("run")

    def drop(self) -> None:
        self._noted.append("dropped")


def test_tasks_that_come_together_run_together_on_new_threads_and_on_idle_ones(pool):
    noted: list[str] = []
    for _ in range(3):
        together = threading.Barrier(5)
        pool.start([Noted(noted, partial(together.wait, 20)) for _ in range(4)])
        together.wait(20)
        wait_until(lambda: len(pool._idle) == 4, "all threads to be idle")
    assert noted == ["run"] * 12
    assert len(threads()) == 4


def test_of_tasks_that_come_together_no_more_run_than_there_may_be_threads_and_the_rest_is_dropped(pool):
    noted: list[str] = []
    begun, go_on = threading.Semaphore(0), threading.Event()

    def hold() -> None:
        begun.release()
        go_on.wait(20)

    pool.start([Noted(noted, hold) for _ in range(10)])
    for _ in range(4):
        assert begun.acquire(timeout=20)
    assert not pool.has_room
    pool.shutdown()
    assert noted == ["dropped"] * 6
    go_on.set()
    wait_until(lambda: not threads(), "the end of the threads")
    assert sorted(noted) == ["dropped"] * 6 + ["run"] * 4
    with pytest.raises(RuntimeError, match="shut down"):
        pool.start([Noted(noted)])


def test_tasks_run_on_the_threads_there_are_where_no_further_one_can_start(pool, monkeypatch):
    noted: list[str] = []
    pool.submit(int).result(10)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        pool.start([Noted(noted) for _ in range(10)])
        wait_until(lambda: len(noted) == 10, "the tasks")
    assert len(threads()) == 1


def test_many_threads_submit_at_once(pool):
    def work(i: int) -> int:
        return sum(pool.submit(lambda j=j: i * j).result(20) for j in range(200))

    assert in_threads(8, work) == [i * sum(range(200)) for i in range(8)]


@pytest.mark.parametrize("reason", [RuntimeError("can't start new thread"), MemoryError()])
def test_without_threads_to_be_had_a_call_is_refused_or_left_to_the_others(pool, monkeypatch, reason):
    def refuse(*_: object, **__: object) -> None:
        raise reason

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(5):  # more often than there may be threads: none of these counts as one
            with pytest.raises(RuntimeError, match="can't start"):
                pool.submit(int)
        with pytest.raises(TransientStorageError, match="no thread for litevfs-test now: can't start"):
            start_thread(int, "litevfs-test of s3://bucket")
    go_on = threading.Event()
    first = pool.submit(lambda: go_on.wait(20))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        second = pool.submit(lambda: 2)
    go_on.set()
    assert first.result(10)
    assert second.result(10) == 2


def test_a_call_that_hangs_does_not_keep_the_process_from_ending():
    program = """
        import threading
        from litevfs.concurrency.workers import WorkerPool, start_thread
        begun = threading.Event()
        assert start_thread(lambda: threading.Event().wait(), "litevfs-test").name == "litevfs-test"
        pool = WorkerPool(2, "litevfs-test")
        pool.submit(lambda: (begun.set(), threading.Event().wait()))
        assert begun.wait(20)
        print("the end")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")


def test_a_thread_that_has_made_its_call_makes_the_next_one_under_its_name_and_ends_without_one():
    spare, seen = SpareThreads(), []

    def call() -> None:
        seen.append((threading.get_ident(), threading.current_thread().name))

    for name in ("litevfs-test-a", "litevfs-test-b"):
        spare.run(call, name)
        wait_until(lambda name=name: seen and seen[-1][1] == name, "the call")
    assert [name for _, name in seen] == ["litevfs-test-a", "litevfs-test-b"]
    wait_until(lambda: not threads(), "the end of the threads")
    assert spare._idle == 0


def test_calls_that_run_at_once_have_a_thread_each_and_an_idle_one_is_not_promised_twice():
    spare, together = SpareThreads(), threading.Barrier(9)
    for _ in range(5):
        for _ in range(8):
            spare.run(lambda: together.wait(20), "litevfs-test")
        together.wait(20)  # else fewer than eight run at once


def test_calls_in_a_row_need_no_thread_each():
    spare, done, idents = SpareThreads(), threading.Semaphore(0), set()

    def call() -> None:
        idents.add(threading.current_thread())
        done.release()

    for _ in range(500):
        spare.run(call, "litevfs-test")
        assert done.acquire(timeout=20)
    assert len(idents) < 250


def test_a_spare_thread_keeps_nothing_of_its_calls_alive():
    class Kept:
        def call(self) -> None:
            pass

    spare = SpareThreads()
    kept = [Kept(), Kept()]
    gone = [weakref.ref(each) for each in kept]
    for each in kept:
        spare.run(each.call, "litevfs-test")
    del each
    kept.clear()
    while any(ref() is not None for ref in gone):  # while the thread goes on
        ran = threading.Event()
        spare.run(ran.set, "litevfs-test")
        assert ran.wait(20)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, which this system has not")
def test_a_forked_child_waits_for_none_of_its_parents_spare_threads():
    program = """
        import os, threading
        from litevfs.concurrency.workers import spare_threads

        def ran():
            done = threading.Event()
            spare_threads.run(done.set, "litevfs-test")
            return done.wait(20)

        assert ran()
        with spare_threads._changed:  # by the thread that forks: the child's lock is another one
            child = os.fork()
        if child == 0:
            os._exit(0 if ran() else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ran()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60, check=False)
    assert done.returncode == 0


def test_a_spare_thread_that_cannot_start_is_an_error_and_the_call_is_not_made(monkeypatch):
    spare, made = SpareThreads(), []

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TransientStorageError, match="no thread for litevfs-test now"):
            spare.run(lambda: made.append(1), "litevfs-test")
    ran = threading.Event()
    spare.run(ran.set, "litevfs-test")
    assert ran.wait(20)
    assert made == []
