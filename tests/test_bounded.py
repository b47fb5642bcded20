"""One call at a time, waited for in bounded time: shared, timed out, failed, and where there is no thread for it."""

from __future__ import annotations

import threading

import pytest

from litevfs.bounded import SharedCall
from litevfs.errors import StorageTimeoutError, TransientStorageError
from tests.support import wait_until


def test_what_the_call_returns_or_raises_reaches_whoever_asks():
    assert SharedCall(lambda: True, "test-call").result(10) is True

    def fail() -> bool:
        raise StorageTimeoutError("the call's own")

    with pytest.raises(StorageTimeoutError, match="the call's own"):
        SharedCall(fail, "test-call").result(10)


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
