"""A condition is never left locked by a signal's handler that raises, wherever in a `with` block it is run."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

import pytest

from litevfs.concurrency.condition import Condition

INTERRUPTS = 80


class Interrupted(Exception):
    pass


def interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


@pytest.fixture
def interrupts():
    """A signal that raises after some 50 us of processor time, whenever it is asked for."""
    before = signal.signal(signal.SIGVTALRM, interrupt)
    yield lambda step: signal.setitimer(signal.ITIMER_VIRTUAL, 30e-6 + step % 40 * 1e-6)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signal.setitimer")
@pytest.mark.parametrize("lock", [None, threading.Lock()], ids=["its own", "a given one"])
@pytest.mark.slow
def test_a_signal_that_raises_leaves_it_unlocked(interrupts, lock):
    condition = Condition(lock)
    for step in range(INTERRUPTS):
        try:
            interrupts(step)
            while True:
                for _ in range(10_000):
                    with condition:
                        pass
                time.sleep(0)  # a signal that another thread got is seen when this one takes the interpreter again
        except Interrupted:
            pass
        assert is_free(condition), f"locked after {step} interrupts"


def is_free(condition: Condition) -> bool:
    """Whether another thread can take it."""
    taken: list[bool] = []

    def take() -> None:
        taken.append(condition.acquire(blocking=False))
        if taken[0]:
            condition.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken[0]


def test_it_waits_and_notifies_as_usual():
    condition, told = Condition(), []
    with condition, condition:  # its own lock may be taken several times

        def tell() -> None:
            with condition:
                told.append(1)
                condition.notify_all()

        thread = threading.Thread(target=tell)
        thread.start()
        assert condition.wait_for(lambda: told, 10)
    thread.join()
