"""The polling thread: its pace, what ends it, what does not."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref

import pytest

from litevfs.concurrency.retry import Backoff
from litevfs.concurrency.scheduler import Scheduler
from litevfs.errors import StorageClosedError, TransientStorageError
from litevfs.live.poller import Poller
from litevfs.live.replica import Replica
from litevfs.options import Options
from tests.primary import Primary
from tests.scripted import Script
from tests.support import wait_until


class Refresh:
    """Counts calls and does what it is told."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.answer: object = True

    def __call__(self) -> bool:
        self.times.append(time.monotonic())
        if isinstance(self.answer, Exception):
            raise self.answer
        return bool(self.answer)


def test_the_first_refresh_comes_after_one_interval():
    refresh = Refresh()
    started = time.monotonic()
    poller = Poller(refresh, 0.05)
    assert [t.name for t in threading.enumerate() if t.name.startswith("litevfs")] == ["litevfs-poll"]
    wait_until(lambda: refresh.times)
    poller.close()
    assert refresh.times[0] - started >= 0.049


def test_closing_ends_the_thread_at_once_and_may_be_repeated():
    poller = Poller(Refresh(), 3600.0)
    started = time.monotonic()
    poller.close()
    poller.close()
    assert time.monotonic() - started < 60
    assert poller.is_over


def test_a_shorter_interval_counts_from_now_on():
    refresh = Refresh()
    poller = Poller(refresh, 3600.0)
    poller.set_interval(0.01)
    wait_until(lambda: len(refresh.times) >= 3)
    poller.close()


@pytest.mark.parametrize("answer", [False, StorageClosedError("closed")])
def test_an_owner_that_is_gone_or_closed_ends_the_thread(answer):
    refresh = Refresh()
    refresh.answer = answer
    poller = Poller(refresh, 0.005)
    wait_until(lambda: poller.is_over)
    assert poller.is_over
    assert len(refresh.times) == 1


def test_closing_does_not_wait_for_a_refresh_that_hangs(monkeypatch):
    monkeypatch.setattr(Poller, "close_timeout_s", 0.01)
    looks, go_on = threading.Event(), threading.Event()
    poller = Poller(lambda: looks.set() or go_on.wait(30), 0.001)
    assert looks.wait(20)
    poller.close()
    assert not poller.is_over
    go_on.set()
    wait_until(lambda: poller.is_over, timeout_s=20)
    assert poller.is_over


def test_the_interval_is_from_refresh_to_refresh_however_long_one_takes():
    monotonic, hours, looks = time.monotonic, 0, 0
    scheduler = Scheduler("litevfs-poll", clock=lambda: monotonic() + hours * 3600)

    def take_an_hour() -> bool:
        nonlocal hours, looks
        hours, looks = hours + 1, looks + 1
        return looks < 5

    def let_an_hour_pass() -> None:
        nonlocal hours
        hours += 1
        poller.set_interval(3600.0 - hours / 1000)  # another time each, of which the scheduler is told

    poller = Poller(take_an_hour, 3600.0, scheduler=scheduler)
    wait_until(lambda: let_an_hour_pass() or looks)
    wait_until(lambda: poller.is_over, timeout_s=20)
    assert looks == 5


def test_a_poller_may_be_closed_by_its_own_refresh(caplog):
    pollers: list[Poller] = []

    def close() -> bool:
        wait_until(lambda: pollers)
        pollers[0].close()
        return True

    pollers.append(Poller(close, 0.001))
    wait_until(lambda: pollers[0].is_over)
    assert "unexpectedly" not in caplog.text


@pytest.mark.plan("E02")
def test_a_changed_interval_is_waited_for_without_looking_at_the_clock_all_the_time():
    looks = itertools.count()
    scheduler = Scheduler("litevfs-poll", clock=lambda: next(looks) * 0.0)
    poller = Poller(Refresh(), 3600.0, scheduler=scheduler)
    poller.set_interval(1800.0)
    time.sleep(0.05)
    poller.close()
    assert next(looks) < 10


@pytest.mark.slow
@pytest.mark.plan("E02", "L10")
def test_failures_slow_the_pace_down_and_a_success_restores_it():
    refresh = Refresh()
    refresh.answer = TransientStorageError("away")
    poller = Poller(refresh, 0.001)
    wait_until(lambda: len(refresh.times) >= 6, timeout_s=20)
    assert refresh.times[5] - refresh.times[0] > 0.02  # at 1 ms each, five looks would take 5 ms
    refresh.answer = True
    failed = len(refresh.times)
    wait_until(lambda: len(refresh.times) >= failed + 20, timeout_s=20)
    poller.close()


@pytest.mark.plan("E02", "L10")
@pytest.mark.parametrize("failure", [TransientStorageError("away"), ValueError("a defect")], ids=["storage", "defect"])
def test_whatever_fails_is_tried_again_after_a_pause(monkeypatch, caplog, failure):
    monkeypatch.setattr(Backoff, "next_s", lambda self, retry_after_s=None: 0.1)
    refresh = Refresh()
    refresh.answer = failure
    poller = Poller(refresh, 0.001)
    wait_until(lambda: len(refresh.times) >= 5)
    poller.close()
    assert refresh.times[4] - refresh.times[0] > 0.2  # 0.4, but for what passes before a call notes its time
    assert ("ValueError: a defect" in caplog.text) == isinstance(failure, ValueError)


@pytest.mark.plan("E02", "L13")
@pytest.mark.parametrize("failure", [TransientStorageError("away"), ValueError("a defect")], ids=["storage", "defect"])
def test_failures_never_quicken_the_pace(monkeypatch, failure):
    monkeypatch.setattr(Backoff, "base_s", 0.0)  # as if chance had given no pause at all
    refresh = Refresh()
    refresh.answer = failure
    poller = Poller(refresh, 0.05)
    wait_until(lambda: len(refresh.times) >= 5)
    poller.close()
    assert refresh.times[4] - refresh.times[0] > 0.1  # 0.2, but for what passes before a call notes its time


@pytest.mark.plan("E04")
def test_a_success_ends_what_failures_before_it_had_led_to(monkeypatch):
    """Else the pauses of forty failures, each alone between two successes, would add up to minutes."""
    monkeypatch.setattr(Backoff, "base_s", 0.001)
    refresh = Refresh()

    def take_turns() -> bool:
        refresh.answer = True if len(refresh.times) % 2 else TransientStorageError("away for a moment")
        return refresh()

    poller = Poller(take_turns, 0.001)
    try:
        wait_until(lambda: len(refresh.times) >= 80, timeout_s=20)
    finally:
        poller.close()


@pytest.mark.plan("E04")
def test_a_pause_the_storage_asked_for_is_kept():
    refresh = Refresh()
    error = TransientStorageError("slow down")
    error.retry_after_s = 0.2
    refresh.answer = error
    poller = Poller(refresh, 0.001)
    wait_until(lambda: len(refresh.times) >= 3)
    poller.close()
    assert refresh.times[1] - refresh.times[0] >= 0.19
    assert refresh.times[2] - refresh.times[1] >= 0.19


def test_a_replica_that_no_connection_holds_is_not_kept_alive_by_its_poller():
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        replica = Replica(Options(replica_url=script.url))
        replica.refresh()
        replica.poll_every(0.005)
        poller = replica._poller
        reference = weakref.ref(replica)
        del replica
        wait_until(lambda: gc.collect() * 0 + (reference() is None), "the replica to go")
        wait_until(lambda: poller.is_over, "the end of the polls")
