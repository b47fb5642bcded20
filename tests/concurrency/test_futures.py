"""Waiting for the results of calls that other threads make."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import Future

import pytest

from litevfs.concurrency.futures import result_of


def test_ctrl_c_that_wakes_no_waiting_thread_ends_its_wait_all_the_same():
    """As one does that comes just before the thread falls asleep: here another thread gets the signal."""
    future: Future[str] = Future()

    def strike() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    timers = [threading.Timer(0.1, strike), threading.Timer(20, future.set_result, ["too late"])]
    for timer in timers:
        timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            result_of(future)
        assert not future.done()
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()


def test_an_error_of_the_call_that_says_that_time_is_up_is_its_own():
    future: Future[str] = Future()
    timer = threading.Timer(0.1, future.set_exception, [TimeoutError("the call's")])
    timer.start()
    with pytest.raises(TimeoutError, match="the call's"):
        result_of(future)
    timer.join()
