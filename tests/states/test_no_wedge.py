"""A complete state that lies on any level is served within 15 seconds of polls, and the status is honest until then."""

from __future__ import annotations

import pytest

from litevfs.errors import LitevfsError, TXIDGapError
from litevfs.live.replica import Replica
from litevfs.options import Options
from tests.primary import Primary
from tests.scripted import Script
from tests.states.support import published

LIMIT_S = 15
INSERT = "INSERT INTO t VALUES(randomblob(300))"


@pytest.fixture(params=["all levels at once", "level by level", "more names than one answer has"])
def world(request, clock):
    """A primary with six transactions on level 0, the first four also on level 1, and a replica that has them."""
    lists_levels, max_names = request.param != "level by level", 7 if "more" in request.param else 1000
    with Script(lists_levels=lists_levels, max_names=max_names) as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        for _ in range(5):
            primary.commit(INSERT)
        for txid in (1, 2, 3, 4):
            primary.compact(1, txid, txid)
        replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2), clock=clock)
        replica.refresh()
        yield primary, script, replica
        replica.close()


def poll_until(replica: Replica, clock, txid: int, limit_s: int = LIMIT_S) -> int:
    """Poll once a second; the seconds until the state is at `txid`."""
    for second in range(1, limit_s + 1):
        clock.now_s += 1
        replica.refresh(thorough=False)
        if replica.snapshot.txid >= txid:
            return second
    pytest.fail(f"still at {replica.snapshot.txid} after {limit_s} s")


@pytest.mark.parametrize(
    "deleted", [(), (6,), (1, 2, 3, 4, 5, 6)], ids=["newest listed", "newest gone", "level 0 empty"]
)
@pytest.mark.parametrize(
    "ahead",
    [[(9, 1, 8)], [(2, 7, 8)], [(2, 5, 8)], [(3, 1, 7), (1, 8, 8)], [(1, 7, 7), (9, 1, 8)]],
    ids=lambda files: str(files),
)
def test_what_only_higher_levels_hold_is_served_in_time(world, clock, ahead, deleted):
    primary, _, replica = world
    if deleted:
        primary.compact(1, 5, 6)
    primary.delete(0, deleted)
    for _ in range(20):  # whatever the poll that came before
        clock.now_s += 1
        replica.refresh(thorough=False)
    primary.run(INSERT)
    primary.run(INSERT)
    for file in ahead:
        primary.compact(*file)
    poll_until(replica, clock, 8)
    assert replica.snapshot.epoch == 0
    assert published(replica) == primary.images[8]
    primary.commit(INSERT)
    assert poll_until(replica, clock, 9) == 1
    assert published(replica) == primary.images[9]


def test_a_file_ahead_that_does_not_connect_is_told_until_it_does(world, clock):
    primary, _, replica = world
    primary.run(INSERT)
    primary.run(INSERT)
    primary.compact(2, 8, 8)
    raised = []
    for second in range(1, 61):
        clock.now_s += 1
        try:
            replica.refresh(thorough=False)
            assert not raised, "a gap that was told, and still is there, is not to be forgotten"
        except TXIDGapError as error:
            raised.append(second)
            assert (error.min_txid, error.max_txid) == (7, 7)
            assert replica.status().state in {"behind", "stalled"}
            assert replica.lag_s() >= second - raised[0] + 1
    assert raised[0] <= LIMIT_S
    primary.compact(1, 7, 7)
    assert poll_until(replica, clock, 8) == 1
    assert (replica.status().state, replica.lag_s()) == ("current", 0)
    assert published(replica) == primary.images[8]


def test_a_damaged_file_ahead_is_told_until_another_one_makes_up_for_it(world, clock):
    primary, script, replica = world
    primary.run(INSERT)
    file = primary.compact(2, 5, 7)
    script.store.put(f"2/{file.name}", b"LTX1 is how it starts", 0)
    errors = []
    for _ in range(LIMIT_S):
        clock.now_s += 1
        try:
            replica.refresh(thorough=False)
        except LitevfsError as error:
            errors.append(error.level)
    assert set(errors) == {2}
    assert replica.status().state == "behind"
    primary.compact(9, 1, 7)
    assert poll_until(replica, clock, 7) == 1


@pytest.mark.parametrize(
    ("max_names", "expected"), [(1000, {-1: 4, 0: 56}), (7, {-1: 4, 0: 60})], ids=["usual", "many files"]
)
def test_four_listings_a_minute_refresh_at_all_levels(clock, max_names, expected):
    with Script(lists_levels=True, max_names=max_names) as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        for _ in range(9):
            primary.commit(INSERT)
        for txid in range(1, 10):
            primary.compact(1, txid, txid)
        primary.compact(2, 1, 5)
        primary.compact(9, 1, 5)
        replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2), clock=clock)
        replica.refresh()
        script.clear()
        for _ in range(60):
            clock.now_s += 1
            replica.refresh(thorough=False)
        assert dict(script.lists) == expected
        replica.close()
