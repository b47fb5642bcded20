"""Calls waited for in bounded time: shared, timed out, failed, made again, and where there is no thread for them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace

import pytest

from litevfs.concurrency.calls import SharedCall, Troubles, call_alone
from litevfs.concurrency.clock import now_s
from litevfs.concurrency.workers import SpareThreads, start_thread
from litevfs.errors import StorageTimeoutError, TransientStorageError
from tests.interrupts import interrupted_everywhere
from tests.support import wait_until


@pytest.fixture(autouse=True)
def no_idle_thread(monkeypatch):
    """No thread that an earlier test has started makes a call of this one."""
    monkeypatch.setattr("litevfs.concurrency.calls.spare_threads", SpareThreads())


def test_what_the_call_returns_or_raises_reaches_each_caller():
    assert SharedCall(lambda: True, "test-call").result(10) is True

    def fail() -> bool:
        raise StorageTimeoutError("the call's own")

    with pytest.raises(StorageTimeoutError, match="the call's own"):
        SharedCall(fail, "test-call").result(10)
    with pytest.raises(SystemExit):
        SharedCall(sys.exit, "test-call").result(10)


def test_all_who_ask_while_it_runs_share_one_call_and_those_after_it_get_another():
    go_on = threading.Event()
    calls = []

    def call() -> bool:
        calls.append(1)
        return go_on.wait(10)

    shared = SharedCall(call, "test-call")
    for _ in range(3):
        with pytest.raises(StorageTimeoutError, match="has not answered"):
            shared.result(0.01)
    assert len(calls) == 1
    go_on.set()
    assert shared.result(10) is True
    wait_until(lambda: shared.result(10) and len(calls) > 1, "another call")


def test_after_a_moment_without_threads_to_be_had_it_works_again(monkeypatch: pytest.MonkeyPatch):
    shared = SharedCall(lambda: True, "test-call")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(TransientStorageError, match="can't start new thread"):
                shared.result(10)
    assert shared.result(10) is True


@pytest.mark.parametrize("fails", [False, True])
def test_a_call_that_began_too_early_is_waited_for_and_does_not_count(fails):
    started, go_on, calls = threading.Event(), threading.Event(), []

    def call() -> bool:
        calls.append(now_s())
        started.set()
        assert go_on.wait(10)
        if fails and len(calls) == 1:
            raise TransientStorageError("the first call")
        return len(calls) == 2

    shared = SharedCall(call, "test")
    with pytest.raises(StorageTimeoutError):
        shared.result(0)
    assert started.wait(10)
    asked = now_s()
    threading.Timer(0.05, go_on.set).start()
    assert shared.result(10, not_before=asked) is True
    assert calls[0] <= asked <= calls[1]


def test_two_who_ask_at_once_share_one_call(monkeypatch):
    go_on, is_another_begun = threading.Event(), threading.Event()
    shared = SharedCall(lambda: go_on.wait(20), "test")
    other = threading.Thread(target=shared.result, args=(20,))

    def start_while_another_asks(run: Callable[[], object], name: str) -> None:
        if other.ident is None:
            other.start()
            is_another_begun.wait(0.1)
        else:
            is_another_begun.set()
        start_thread(run, name)

    monkeypatch.setattr("litevfs.concurrency.calls.spare_threads", SimpleNamespace(run=start_while_another_asks))
    with pytest.raises(StorageTimeoutError):
        shared.result(0)
    assert not is_another_begun.is_set()
    go_on.set()
    other.join(20)


def test_who_gives_up_on_a_call_that_does_not_count_is_told_while_it_runs():
    go_on, calls = threading.Event(), []
    shared = SharedCall(lambda: calls.append(1) or go_on.wait(20), "test")
    with pytest.raises(StorageTimeoutError):
        shared.result(0)
    with pytest.raises(StorageTimeoutError):
        shared.result(0.01, not_before=now_s())
    go_on.set()
    assert calls == [1]


def test_waiting_for_a_call_that_does_not_count_is_part_of_the_time(monkeypatch):
    monotonic, hours, go_on, calls = time.monotonic, 0, threading.Event(), []
    monkeypatch.setattr("litevfs.concurrency.calls.time", SimpleNamespace(monotonic=lambda: monotonic() + hours * 3600))

    def call() -> None:
        nonlocal hours
        calls.append(1)
        assert go_on.wait(20)
        hours += 1
        go_on.clear()

    shared = SharedCall(call, "test")
    with pytest.raises(StorageTimeoutError):
        shared.result(0)
    wait_until(lambda: calls)
    asked = now_s()
    threading.Timer(0.05, go_on.set).start()
    with pytest.raises(StorageTimeoutError):
        shared.result(1800, not_before=asked)
    go_on.set()


def test_who_gives_up_is_told_all_about_the_last_failure():
    troubles = Troubles("s3://bucket")
    began = now_s()
    troubles.note(TransientStorageError("before"))
    troubles.note(TransientStorageError("busy", level=3, min_txid=1, max_txid=2, key="s3://bucket/a", hint="wait"))
    error = troubles.too_late(began, 1.5)
    assert error.message == "no success within 1.5 s; the last try failed: busy"
    assert (error.level, error.min_txid, error.max_txid, error.key, error.hint) == (3, 1, 2, "s3://bucket/a", "wait")
    troubles.note(TransientStorageError("refused"))
    assert troubles.too_late(began, 1.5).key == "s3://bucket"
    late = troubles.too_late(now_s(), 1.5)
    assert (late.message, late.key) == ("the storage has not answered within 1.5 s", "s3://bucket")


def test_a_call_that_does_not_get_the_lock_in_its_time_is_never_made():
    lock, made = threading.Lock(), []
    with lock:
        for timeout_s in (0.01, 0.0):
            with pytest.raises(StorageTimeoutError):
                call_alone(lambda: made.append(1), lock, timeout_s, "litevfs-given-up")
        wait_until(lambda: not any(thread.name == "litevfs-given-up" for thread in threading.enumerate()))
    assert made == []
    assert not lock.locked()


def test_a_call_whose_thread_begins_too_late_is_too_late(monkeypatch):
    monkeypatch.setattr("litevfs.concurrency.calls.spare_threads", SimpleNamespace(run=lambda run, name: run()))
    monkeypatch.setattr("litevfs.concurrency.calls.time", SimpleNamespace(monotonic=count().__next__))
    lock = threading.Lock()
    with lock, pytest.raises(StorageTimeoutError):
        call_alone(lambda: True, lock, 0.5, "test")
    assert call_alone(lambda: True, lock, 0.5, "test") is True


def test_a_call_that_is_given_up_keeps_the_lock_to_its_end():
    lock, go_on = threading.Lock(), threading.Event()
    with pytest.raises(StorageTimeoutError):
        call_alone(lambda: go_on.wait(10), lock, 0.01, "test")
    with pytest.raises(StorageTimeoutError):  # and no caller waits for longer than asked to get it
        call_alone(lambda: True, lock, 0.01, "test")
    go_on.set()
    assert call_alone(lambda: True, lock, 10, "test") is True
    assert not lock.locked()


def test_an_error_reaches_the_callers_that_wait_and_the_lock_is_free():
    lock = threading.Lock()
    with pytest.raises(ZeroDivisionError):
        call_alone(lambda: 1 // 0, lock, 10, "test")
    assert not lock.locked()


def test_ctrl_c_at_any_moment_leaves_the_lock_free():
    for lock in interrupted_everywhere(threading.Lock, lambda lock: call_alone(lambda: True, lock, 10, "test")):
        wait_until(lambda: not lock.locked(), "the lock")  # noqa: B023 (run at once)
        assert call_alone(lambda: True, lock, 10, "test") is True


def test_ctrl_c_while_its_thread_begins_does_not_take_the_lock_from_a_call(monkeypatch):
    lock, began, go_on = threading.Lock(), threading.Event(), threading.Event()
    start = threading.Thread.start

    def start_and_be_interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    def call() -> bool:
        began.set()
        return go_on.wait(10)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            call_alone(call, lock, 10, "test")
    assert began.wait(10)
    assert lock.locked()
    go_on.set()
    assert call_alone(lambda: True, lock, 10, "test") is True


def test_without_a_thread_to_be_had_the_lock_is_free(monkeypatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    lock = threading.Lock()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TransientStorageError, match="can't start new thread"):
            call_alone(lambda: True, lock, 10, "test")
    assert not lock.locked()
