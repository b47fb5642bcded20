"""What the looks of a replica make of it, by a clock that a test sets."""

from __future__ import annotations

import logging

import pytest

from litevfs.errors import TransientStorageError
from litevfs.live.health import LATE_AFTER_S, STALLED_AFTER_S, Health, State

AWAY = TransientStorageError("away")


def seen(*, is_proof: bool = True) -> Health:
    """A health that has seen one look end well, just now."""
    health = Health("url")
    health.begin()
    health.succeed(is_proof=is_proof)
    return health


@pytest.mark.plan("E06")
@pytest.mark.parametrize(
    ("poll_interval_s", "after_s", "state"),
    [
        (1, 1 + LATE_AFTER_S, State.CURRENT),
        (1, 1.25 + LATE_AFTER_S, State.BEHIND),
        (1, 1 + STALLED_AFTER_S, State.BEHIND),
        (1, 1.25 + STALLED_AFTER_S, State.STALLED),
        (10, 10 + 100, State.BEHIND),
        (10, 10.25 + 100, State.STALLED),
        (0, 10**6, State.CURRENT),
    ],
)
def test_a_refresh_that_is_due_for_long_is_trouble_where_a_poller_runs(clock, poll_interval_s, after_s, state):
    health = seen()
    clock.now_s += after_s
    assert health.state(poll_interval_s) is state


@pytest.mark.plan("E06")
@pytest.mark.parametrize("health", [lambda: Health("url"), seen], ids=["the first", "a later one"])
def test_a_refresh_that_takes_long_is_trouble_until_it_ends(clock, health):
    health = health()
    health.begin()
    for after_s, state in ((LATE_AFTER_S, State.CURRENT), (1, State.BEHIND), (STALLED_AFTER_S, State.STALLED)):
        clock.now_s += after_s
        assert health.state(0) is state
    assert health.refresh_s() == LATE_AFTER_S + 1 + STALLED_AFTER_S
    health.fail(AWAY, State.STALLED)
    assert (health.refresh_s(), health.state(0)) == (0, State.BEHIND)
    health.begin()
    clock.now_s += 100
    health.forget_refresh()
    assert health.refresh_s() == 0
    health.begin()
    health.succeed(is_proof=True)
    assert (health.refresh_s(), health.state(0)) == (0, State.CURRENT)


@pytest.mark.plan("E06")
def test_failures_are_trouble_from_the_first_one_on(clock):
    health = seen()
    health.fail(AWAY, State.CURRENT)
    assert health.state(0) is State.BEHIND
    clock.now_s += STALLED_AFTER_S
    health.fail(AWAY, State.BEHIND)
    assert health.state(0) is State.BEHIND
    clock.now_s += 1
    assert health.state(0) is State.STALLED
    assert (health.errors, health.last_error) == (2, str(AWAY))


def test_ages_are_told_from_when_a_refresh_began_and_only_a_refresh_that_missed_nothing_is_a_proof(clock):
    health = Health("url")
    assert (health.lag_s(), health.proof_age_s()) == (None, None)
    for is_proof, proof_age_s in ((True, 3), (False, 3 + 10 + 3)):
        health.begin()
        clock.now_s += 3
        health.succeed(is_proof=is_proof)
        assert (health.lag_s(), health.proof_age_s()) == (3, proof_age_s)
        clock.now_s += 10


@pytest.mark.plan("K06")
def test_what_is_said_of_trouble_is_said_each_time_that_it_begins_and_lasts(clock, caplog):
    caplog.set_level(logging.DEBUG, "litevfs")
    health = Health("url")
    health.fail(AWAY, State.OPENING)
    health.succeed(is_proof=True)
    assert not caplog.records  # the caller is told by the error
    for _ in range(2):
        health.begin()
        health.succeed(is_proof=True)
        for state in (State.CURRENT, State.BEHIND, State.STALLED, State.STALLED):
            health.fail(AWAY, state)
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "INFO", "WARNING", "ERROR"]


def test_a_refresh_that_closing_ended_is_no_trouble(clock, caplog):
    caplog.set_level(logging.DEBUG, "litevfs")
    health = seen()
    health.fail(AWAY, State.CLOSED)
    assert health.state(0) is State.CURRENT
    assert not caplog.records
