"""The scheduler of repeated calls: bounded threads, and calls that hang delay no others."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from litevfs.concurrency import scheduler as module
from litevfs.concurrency.scheduler import Repeated, Scheduler
from litevfs.errors import TransientStorageError
from tests.interrupts import interrupted_everywhere
from tests.support import wait_until


class Calls:
    """Repeated calls of a scheduler of its own, counted; those that hang do so until `go_on` is set."""

    def __init__(self) -> None:
        self.scheduler = Scheduler("litevfs-test")
        self.counts: Counter[str] = Counter()
        self.begun: list[str] = []
        self.go_on = threading.Event()
        self.repeated: list[Repeated] = []
        self.lock = threading.Lock()
        self.running = self.most_running = 0

    def add(self, name: str, interval_s: float, place: str, *, takes_s: float = 0.0, hangs: bool = False) -> Repeated:
        def call() -> float:
            self.begun.append(name)
            with self.lock:
                self.running += 1
                self.most_running = max(self.most_running, self.running)
            try:
                return make()
            finally:
                with self.lock:
                    self.running -= 1

        def make() -> float:
            if hangs:
                assert self.go_on.wait(60)
            elif takes_s:
                time.sleep(takes_s)
            self.counts[name] += 1
            return interval_s

        repeated = self.scheduler.add(call, interval_s, place)
        self.repeated.append(repeated)
        return repeated

    def close(self) -> None:
        self.go_on.set()
        for repeated in self.repeated:
            self.scheduler.remove(repeated, 20)
        wait_until(lambda: not threads(), "the end of the threads")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "litevfs-test"]


@pytest.fixture
def calls() -> Iterator[Calls]:
    calls = Calls()
    yield calls
    calls.close()


def test_one_call_has_one_thread_and_the_last_ends_it(calls):
    repeated = calls.add("a", 0.005, "here")
    wait_until(lambda: calls.counts["a"] >= 5)
    assert len(threads()) == 1
    calls.scheduler.remove(repeated, 20)
    wait_until(lambda: not threads(), "the end of the thread")


def test_thousands_of_quick_calls_have_few_threads(calls):
    for i in range(2_000):
        calls.add(f"{i}", 0.3, "here")
    wait_until(lambda: len(calls.counts) == 2_000 and min(calls.counts.values()) >= 2, timeout_s=30)
    assert len(threads()) <= 32  # two, unless a busy machine makes calls late


def test_no_thread_is_started_while_the_one_started_before_it_has_not_come(calls, monkeypatch):
    started, go_on, start_thread = 0, threading.Event(), module.start_thread

    def start_late(work: Callable[[], object], name: str) -> threading.Thread:
        nonlocal started
        started += 1
        return start_thread(work if started == 1 else lambda: go_on.wait(60) and work(), name)

    monkeypatch.setattr(module, "start_thread", start_late)
    for i in range(20):
        calls.add(f"{i}", 0.001, "here")
    wait_until(lambda: all(calls.counts[f"{i}"] >= 5 for i in range(20)), timeout_s=30)
    assert started == 2
    go_on.set()


def test_slow_calls_run_side_by_side_but_not_more_than_a_storage_may_have(calls):
    for i in range(60):
        calls.add(f"{i}", 0.02, "here", takes_s=0.05)
    wait_until(lambda: len(calls.counts) == 60, timeout_s=30)
    assert 4 <= calls.most_running <= module.PLACE_THREADS
    assert len(threads()) <= 32


@pytest.mark.slow
def test_calls_that_hang_delay_no_others_and_take_a_bounded_number_of_threads(calls, monkeypatch):
    monkeypatch.setattr(module, "GIVEN_UP_S", 0.1)
    for i in range(100):
        calls.add(f"hangs {i}", 0.001, f"hanging {i % 2}", hangs=True)
    wait_until(lambda: len(calls.begun) >= 2 * module.MAX_HANGING, timeout_s=30)
    for i in range(50):
        calls.add(f"{i}", 0.01, "answering")
    wait_until(lambda: all(calls.counts[f"{i}"] >= 5 for i in range(50)), timeout_s=30)
    assert not any(calls.counts[f"hangs {i}"] for i in range(100))
    assert len([name for name in calls.begun if name.startswith("hangs")]) <= 2 * module.PLACE_THREADS
    assert len(threads()) <= 2 * module.PLACE_THREADS + 32
    calls.go_on.set()  # the storages answer again: every call is made
    wait_until(lambda: all(calls.counts[f"hangs {i}"] for i in range(100)), timeout_s=30)


@pytest.mark.slow
def test_a_storage_that_hangs_from_the_start_leaves_threads_to_the_others(calls):
    for i in range(200):
        calls.add(f"hangs {i}", 0.0, "hanging", hangs=True)
    wait_until(lambda: len(calls.begun) >= module.PLACE_THREADS, timeout_s=30)
    calls.add("a", 0.001, "answering")
    wait_until(lambda: calls.counts["a"] >= 20, timeout_s=30)
    assert not any(name.startswith("hangs") and count for name, count in calls.counts.items())


def test_calls_that_were_removed_while_they_waited_for_room_keep_it_from_no_other(calls, monkeypatch):
    monkeypatch.setattr(module, "PLACE_THREADS", 1)
    scheduler, go_on, begun = calls.scheduler, threading.Event(), []
    calls.repeated.append(scheduler.add(lambda: begun.append("first") or (go_on.wait(60) and None), 0.0, "here"))
    wait_until(lambda: begun)
    waiting = [scheduler.add(lambda: 60.0, 0.0, "here") for _ in range(10)]
    calls.repeated.append(scheduler.add(lambda: begun.append("last") or 60.0, 0.0, "here"))
    wait_until(lambda: len(scheduler._places["here"].parked) == 11)
    for repeated in waiting:
        scheduler.remove(repeated, 20)
    go_on.set()
    wait_until(lambda: "last" in begun)


def test_removing_waits_for_the_call_under_way_but_not_for_long(calls):
    repeated = calls.add("a", 0.001, "here", hangs=True)
    wait_until(lambda: calls.begun)
    calls.scheduler.remove(repeated, 0.01)
    assert repeated.began is not None
    calls.go_on.set()
    calls.scheduler.remove(repeated, 20)
    assert repeated.began is None
    assert calls.begun == ["a"]


def test_a_thousand_changes_of_pace_leave_a_short_queue(calls):
    repeated = calls.add("a", 3600.0, "here")
    for i in range(1_000):
        calls.scheduler.pace(repeated, 3600.0 + i)
    assert len(calls.scheduler._heap) < 100
    calls.scheduler.pace(repeated, 0.0)
    wait_until(lambda: calls.counts["a"] == 1)


def test_without_a_thread_the_first_call_is_refused_and_later_ones_are_made(calls, monkeypatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TransientStorageError, match="no thread for litevfs-test now"):
            calls.add("a", 0.001, "here")
    first = calls.add("b", 0.005, "here")
    wait_until(lambda: calls.counts["b"] >= 1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        calls.add("c", 0.005, "here")
        wait_until(lambda: calls.counts["c"] >= 3)
    assert not first.is_over
    assert not calls.counts["a"]


def test_a_defect_ends_that_call_alone(calls, caplog):
    def fail() -> float:
        raise ZeroDivisionError("a defect")

    calls.repeated.append(calls.scheduler.add(fail, 0.0, "here"))
    calls.add("a", 0.005, "here")
    wait_until(lambda: calls.counts["a"] >= 3 and calls.repeated[0].is_over)
    assert "a defect" in caplog.text


def test_ctrl_c_at_any_moment_of_adding_a_call_keeps_no_other_from_being_made(calls):
    def add_and_remove(repeated: list[Repeated]) -> None:
        repeated.append(calls.scheduler.add(lambda: 0.001, 0.0, "here"))
        calls.scheduler.remove(repeated[0], 20)

    for left in interrupted_everywhere(list, add_and_remove):
        for repeated in left:
            calls.scheduler.remove(repeated, 20)
        name = f"{len(calls.repeated)}"
        other = calls.add(name, 0.001, "there")
        wait_until(lambda name=name: calls.counts[name] >= 2)
        calls.scheduler.remove(other, 20)
