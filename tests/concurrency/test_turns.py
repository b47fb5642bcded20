"""Recurring work in threads: when turns begin, how many threads they take, and whom a turn that hangs delays."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from litevfs.concurrency import shared_turns, turns
from litevfs.concurrency.shared_turns import SharedThreads
from litevfs.concurrency.turns import OwnThreads, Threads
from tests.support import wait_until


@pytest.fixture(params=["own", "shared"])
def threads(request) -> Iterator[Threads]:
    if request.param == "own":
        yield OwnThreads()
        return
    shared = SharedThreads(3, "test")
    yield shared
    shared.close(20)


@pytest.fixture
def shared() -> Iterator[SharedThreads]:
    threads = SharedThreads(2, "test")
    yield threads
    threads.close(20)


def test_turns_come_after_the_pause_that_the_last_one_asked_for(threads):
    began: list[float] = []

    def turn() -> float | None:
        began.append(time.monotonic())
        return 0.05 if len(began) < 4 else None

    task = threads.start(turn, "test-turn")
    wait_until(lambda: len(began) == 4)
    assert all(after - before >= 0.05 for before, after in itertools.pairwise(began))
    task.stop()
    assert task.join(20)


def test_a_task_that_waits_is_woken_and_a_pause_is_not_shortened(threads):
    taken: list[str] = []
    wait = threads.start(lambda: taken.append("wait"), "test-wait")
    pause = threads.start(lambda: taken.append("pause") or 3600.0, "test-pause")
    wait_until(lambda: sorted(taken) == ["pause", "wait"])
    for count in range(2, 5):
        pause.wake()
        wait.wake()
        wait_until(lambda count=count: taken.count("wait") == count)
    assert taken.count("pause") == 1
    for task in (wait, pause):
        task.stop()
        assert task.join(20)


def test_to_be_woken_during_a_turn_gives_another_turn(threads):
    taken, may_end = [], threading.Event()

    def turn() -> None:
        taken.append(1)
        may_end.wait(20)

    task = threads.start(turn, "test-turn")
    wait_until(lambda: taken)
    task.wake()
    may_end.set()
    wait_until(lambda: len(taken) == 2)
    task.stop()
    assert task.join(20)


def test_stopped_a_task_takes_no_turn_and_join_waits_for_the_last(threads):
    taken, may_end = [], threading.Event()

    def turn() -> float:
        taken.append(1)
        may_end.wait(20)
        return 0.0

    task = threads.start(turn, "test-turn")
    wait_until(lambda: taken)
    task.stop()
    assert not task.join(0.01)
    may_end.set()
    assert task.join(20)
    task.wake()
    assert len(taken) == 1


def test_a_task_may_stop_and_join_itself(threads):
    done: list[bool] = []

    def turn() -> None:
        task.stop()
        done.append(task.join(20))

    ready = threading.Event()
    task = threads.start(lambda: turn() if ready.is_set() else None, "test-turn")
    ready.set()
    task.wake()
    wait_until(lambda: done)
    assert done == [True]
    assert task.join(20)


def test_a_turn_with_a_mistake_is_logged_and_others_go_on(threads, caplog, monkeypatch):
    monkeypatch.setattr(turns, "_FAILED_PAUSE_S", 0.01)
    taken: list[int] = []

    def turn() -> None:
        taken.append(1)
        if len(taken) == 1:
            raise ZeroDivisionError("a mistake")

    task = threads.start(turn, "test-turn")
    wait_until(lambda: len(taken) == 2)
    assert "ZeroDivisionError: a mistake" in caplog.text
    task.stop()
    assert task.join(20)


def test_thousands_of_tasks_share_a_few_threads_and_none_takes_two_turns_at_once(shared):
    taken: Counter[int] = Counter()
    under_way: set[int] = set()
    twice: list[int] = []

    def turn_of(number: int) -> Callable[[], float]:
        def turn() -> float:
            if number in under_way:
                twice.append(number)
            under_way.add(number)
            taken[number] += 1
            under_way.discard(number)
            return 0.01

        return turn

    for number in range(3000):
        shared.start(turn_of(number), "test-turn")
    wait_until(lambda: len(taken) == 3000 and min(taken.values()) >= 3)
    assert not twice
    assert shared.peak_threads <= 2 * 2  # twice as many while turns hang: on a machine that stands still, all do


def test_turns_that_hang_take_half_of_the_threads_and_delay_no_other(shared, monkeypatch):
    monkeypatch.setattr(shared_turns, "SLOW_S", 0.05)
    monkeypatch.setattr(shared_turns, "_TICK_S", 0.01)
    may_end, hanging, healthy = threading.Event(), [], Counter()

    def hang() -> float:
        hanging.append(1)
        may_end.wait(60)
        return 0.0

    for _ in range(20):
        shared.start(hang, "test-hang", "a storage that is silent")
    for number in range(20):
        shared.start(lambda number=number: healthy.update([number]) or 0.001, "test-healthy", f"{number}")
    wait_until(lambda: len(healthy) == 20 and min(healthy.values()) > 20)
    assert len(hanging) < 4  # one thread is left for others, whatever hangs
    assert shared.peak_threads <= 4
    may_end.set()
    wait_until(lambda: len(hanging) > 20)


def test_short_turns_are_not_handed_from_thread_to_thread(shared):
    takers: list[int] = []

    def turn() -> float:
        takers.append(threading.get_ident())
        return 0.002

    for _ in range(5):
        shared.start(turn, "test-turn")
    wait_until(lambda: len(takers) >= 1000)
    handed_over = sum(before != after for before, after in itertools.pairwise(takers[:1000]))
    assert handed_over < 200


def test_turns_that_wait_get_a_thread_each():
    shared = SharedThreads({"": 6, "test-other": 1}, "test")
    together, passed = threading.Barrier(6), []
    try:
        for _ in range(6):
            shared.start(lambda: passed.append(together.wait(20)), "test-turn")
        shared.start(lambda: passed.append("other"), "test-other")
        wait_until(lambda: len(passed) == 7)
    finally:
        shared.close(20)


def test_a_kind_of_tasks_that_hangs_leaves_the_threads_of_the_others(monkeypatch):
    monkeypatch.setattr(shared_turns, "SLOW_S", 0.05)
    monkeypatch.setattr(shared_turns, "_TICK_S", 0.01)
    shared = SharedThreads({"test-hang": 2, "test-healthy": 1}, "test")
    may_end, hanging, healthy = threading.Event(), [], Counter()
    try:
        for number in range(20):
            shared.start(lambda: hanging.append(1) or (may_end.wait(60) and None), "test-hang", f"{number}")
        for number in range(20):
            shared.start(lambda number=number: healthy.update([number]) or 0.001, "test-healthy", f"{number}")
        wait_until(lambda: len(healthy) == 20 and min(healthy.values()) > 20)
        assert len(hanging) <= 4
        assert shared.peak_threads <= 6
    finally:
        may_end.set()
        shared.close(20)


def test_after_close_nothing_starts_and_no_thread_is_left(shared):
    taken: list[int] = []
    shared.start(lambda: taken.append(1), "test-turn").wake()
    task = shared.start(lambda: taken.append(1) or 0.0, "test-turn")
    wait_until(lambda: len(taken) > 3)
    shared.close(20)
    before = len(taken)
    task.wake()
    with pytest.raises(RuntimeError):
        shared.start(lambda: None, "test-turn")
    assert len(taken) == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test")]
