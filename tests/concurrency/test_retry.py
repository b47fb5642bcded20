"""Pauses between tries."""

from __future__ import annotations

import random

import pytest

from litevfs.concurrency.retry import Backoff
from litevfs.errors import StoragePermissionError, TransientStorageError


@pytest.mark.plan("E04")
def test_pauses_double_up_to_the_bound_and_start_anew_after_a_success(monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    backoff = Backoff()
    pauses = [backoff.after(TransientStorageError("busy")) for _ in range(14)]
    assert pauses[:4] == [0.05, 0.1, 0.2, 0.4]
    assert pauses[-1] == max(pauses) == 32.0
    backoff.reset()
    assert backoff.next_s() == 0.05
    assert max(backoff.next_s() for _ in range(3000)) == 32.0  # an outage of a day


@pytest.mark.plan("E04")
def test_pauses_of_tries_that_have_a_time_are_a_tenth_of_it_unless_the_storage_asks_for_more(monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    backoff = Backoff.within(5.0)
    assert [backoff.next_s() for _ in range(6)] == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]
    assert [backoff.next_s(asked_s) for asked_s in (0.1, 3.0, 100.0)] == [0.5, 3.0, 32.0]
    backoff = Backoff.within(3600.0)
    assert max(backoff.next_s() for _ in range(14)) == 32.0


@pytest.mark.plan("E04")
def test_pauses_are_no_longer_than_they_may_be_whatever_the_storage_asks_for(monkeypatch):
    backoff = Backoff(cap_s=0.5)
    assert backoff.next_s(100.0) == 0.5
    monkeypatch.setattr(random, "uniform", lambda low, high: low)
    assert backoff.next_s() == 0.0


@pytest.mark.plan("E04")
def test_pauses_are_spread_and_never_shorter_than_the_storage_asks_for():
    assert len({Backoff().after(StoragePermissionError("denied")) for _ in range(5)}) == 5
    slow_down = TransientStorageError("slow down")
    slow_down.retry_after_s = 7.0
    assert {Backoff().after(slow_down) for _ in range(5)} == {7.0}
