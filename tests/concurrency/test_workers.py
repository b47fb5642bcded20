"""The pool of threads behind a replica: who runs what, what happens to errors, and that it keeps nothing alive."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import CancelledError

import pytest

from litevfs.concurrency.workers import WorkerPool, start_thread
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
        wait_until(lambda: pool._idle == 1, "the thread to be idle")
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
    wait_until(lambda: pool._idle == 1, "the thread to be idle")
    together = threading.Barrier(2)
    with pool._changed:  # before the idle one can take its call
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
