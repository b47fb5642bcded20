"""The loop that makes failed calls again, and its pauses."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from litevfs.concurrency.retry import Backoff, LookAgain, retry
from litevfs.errors import (
    LitevfsError,
    LTXChecksumError,
    StorageClosedError,
    StorageNotFoundError,
    StoragePermissionError,
    TransientStorageError,
    TXIDGapError,
)


class Clock:
    """Time that only pauses take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []
        monkeypatch.setattr("litevfs.concurrency.retry.time", SimpleNamespace(monotonic=lambda: self.now_s))

    def pause(self, seconds: float, error: LitevfsError) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Failing:
    """Raises these errors, one for each call, then returns how often it was called."""

    def __init__(self, *errors: LitevfsError) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


@pytest.mark.plan("E04")
def test_pauses_double_up_to_the_bound_and_start_again_after_a_success(monkeypatch):
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


# --- the loop ---------------------------------------------------------------------------------------------------------


def busy(times: int) -> list[LitevfsError]:
    return [TransientStorageError(f"busy {n}") for n in range(times)]


@pytest.mark.plan("E04")
def test_a_call_is_made_again_after_what_may_pass_only(clock):
    call = Failing(*busy(3))
    assert retry(call, Backoff(), pause=clock.pause) == 4
    assert len(clock.pauses) == 3
    call = Failing(*busy(2), StorageNotFoundError("gone"))
    with pytest.raises(StorageNotFoundError):
        retry(call, Backoff(), pause=clock.pause)
    assert call.calls == 3
    call = Failing(StorageNotFoundError("gone"))
    assert retry(call, Backoff(), may_pass=lambda error: True, pause=clock.pause) == 2


@pytest.mark.plan("E04")
def test_no_try_begins_when_the_time_is_over_and_the_last_error_is_raised(clock, monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.25)
    call = Failing(*busy(9))
    with pytest.raises(TransientStorageError, match="busy 3"):
        retry(call, Backoff(), until=1.0, pause=clock.pause)
    assert (call.calls, clock.now_s) == (4, 0.75)
    with pytest.raises(TransientStorageError, match="busy 4"):
        retry(call, Backoff(), until=clock.now_s, pause=clock.pause)
    assert call.calls == 5


@pytest.mark.plan("E04")
def test_a_last_try_is_made_at_the_end_of_the_time_if_that_is_asked_for(clock, monkeypatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.4)
    call = Failing(*busy(9))
    with pytest.raises(TransientStorageError, match="busy 3"):
        retry(call, Backoff(), until=1.0, pause=clock.pause, tries_at_the_end=True)
    assert clock.pauses == pytest.approx([0.4, 0.4, 0.2])


@pytest.mark.plan("E04")
def test_a_pause_comes_first_after_a_try_that_was_made_elsewhere(clock):
    slow_down = TransientStorageError("slow down")
    slow_down.retry_after_s = 3.0
    assert retry(Failing(), Backoff(), after=slow_down, pause=clock.pause) == 1
    assert clock.pauses == [3.0]
    call = Failing()
    with pytest.raises(TransientStorageError, match="slow down"):
        retry(call, Backoff(), until=clock.now_s + 2, after=slow_down, pause=clock.pause)
    assert call.calls == 0


@pytest.mark.plan("E04")
def test_pauses_of_the_loop_are_those_of_its_policy(clock, monkeypatch):
    slow_down = TransientStorageError("slow down")
    slow_down.retry_after_s = 0.4
    call = Failing(*busy(8), slow_down)
    monkeypatch.setattr(random, "uniform", lambda low, high: high if call.errors else low)
    assert retry(call, Backoff(cap_s=0.5), pause=clock.pause) == 10
    assert clock.pauses == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5, 0.5, 0.4]


def test_what_a_pause_raises_ends_the_tries():
    def closed(seconds: float, error: LitevfsError) -> None:
        raise StorageClosedError("closed meanwhile")

    call = Failing(*busy(9))
    with pytest.raises(StorageClosedError):
        retry(call, Backoff(), pause=closed)
    assert call.calls == 1


# --- runs over many files ---------------------------------------------------------------------------------------------


def damage(txid: int) -> LitevfsError:
    return LTXChecksumError("damaged", level=0, min_txid=txid, max_txid=txid)


def test_a_run_looks_again_for_files_that_vanish_but_only_once_for_each_that_is_damaged():
    may_pass = LookAgain()
    gone = StorageNotFoundError("gone", level=0, min_txid=3, max_txid=3)
    assert all(may_pass(error) for error in (gone, gone, damage(1), damage(2), TXIDGapError("a gap", min_txid=5)))
    assert not may_pass(damage(1))
    assert not may_pass(TXIDGapError("a gap", min_txid=5))


def test_a_run_looks_again_only_so_often_and_not_after_other_errors_unless_told():
    may_pass = LookAgain()
    gone = StorageNotFoundError("gone", level=0, min_txid=3, max_txid=3)
    assert [may_pass(gone) for _ in range(LookAgain.attempts)] == [True] * 9 + [False]
    assert not LookAgain()(StorageNotFoundError("there is no such folder"))  # which no listing brings back
    assert not LookAgain()(TransientStorageError("busy"))
    may_pass = LookAgain(TransientStorageError)
    assert [may_pass(error) for error in busy(10)] == [True] * 9 + [False]
