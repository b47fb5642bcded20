"""States that are made again after their files have moved: when that is the same state, and what it costs."""

from __future__ import annotations

import pytest

from litevfs.errors import PageUnavailableError, StorageClosedError
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.states.snapshot import Snapshot
from tests.primary import Primary
from tests.scripted import Script
from tests.states.test_follower_position import INSERT, snapshot


@pytest.fixture
def world():
    """A primary, its storage, a replica that has seen six transactions, and the state after the fourth."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x); CREATE TABLE u AS SELECT randomblob(20000) AS b")
        replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2, cache_size_bytes=0))
        for _ in range(3):
            primary.commit(INSERT)
        replica.refresh()
        fourth = replica.snapshot
        for _ in range(2):
            primary.commit("UPDATE u SET b = randomblob(20000)")
        replica.refresh()
        yield primary, script, replica, fourth
        replica.close()


def unread(replica: Replica, state: Snapshot, primary: Primary) -> set[int]:
    """The pages of a state that are gone; all others are right."""
    gone = set()
    for pgno in range(1, state.commit + 1):
        try:
            assert replica.pages.read(state, pgno) == primary.page(pgno, state.txid)
        except PageUnavailableError:
            gone.add(pgno)
    return gone


@pytest.mark.plan("L08", "D05")
def test_an_earlier_state_is_made_again_from_a_snapshot_that_later_files_prove(world):
    """The snapshot carries the time at which it was made, which alone would prove nothing."""
    primary, _, replica, fourth = world
    snapshot(primary, 4, 60)
    primary.delete(0, [1, 2, 3, 4])
    assert unread(replica, fourth, primary) == set()
    assert replica.snapshot.epoch == fourth.epoch


@pytest.mark.plan("L08", "L29")
def test_a_state_is_made_again_from_a_snapshot_where_an_old_listing_proves_no_more_than_that_state(world):
    primary, script, replica, fourth = world
    snapshot(primary, 4, 60)
    primary.delete(0, [1, 2, 3])
    script.on_list = lambda level, files: [file for file in files if file.max_txid <= 4]
    assert unread(replica, fourth, primary) == set()
    assert replica.snapshot.epoch == fourth.epoch


@pytest.mark.plan("L08")
def test_a_fixed_state_is_made_again_where_nothing_live_is(world):
    primary, script, _, _ = world
    replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2, cache_size_bytes=0))
    try:
        view = replica.view(txid=4)
        primary.compact(1, 1, 4)
        primary.delete(0)
        assert unread(replica, view, primary) == set()
        assert replica.snapshot is None
    finally:
        replica.close()


@pytest.mark.plan("D05", "E03")
def test_a_state_of_another_size_is_never_taken_for_the_same_whatever_its_time_says(world):
    """Machines without a clock of their own begin at the same time again and again."""
    primary, script, replica, fourth = world
    primary.delete_all()
    with Primary(script.writer) as other:
        other.run("CREATE TABLE t(x); CREATE TABLE u AS SELECT randomblob(90000) AS b")
        while other.txid < 4:
            other.run(INSERT)
        other.compact(1, 1, 4)
        assert unread(replica, fourth, primary) == set(range(1, fourth.commit + 1))


@pytest.mark.plan("L08", "D05")
def test_of_a_state_that_is_gone_the_pages_that_have_not_changed_since_are_read(world):
    primary, _, replica, fourth = world
    changed = {n for n in range(1, fourth.commit + 1) if primary.page(n, 4) != primary.page(n, 6)}
    primary.compact(1, 1, 6)
    primary.delete(0)
    assert unread(replica, fourth, primary) == changed
    assert 0 < len(changed) < fourth.commit


@pytest.mark.plan("L08", "E02")
def test_a_state_that_was_made_again_once_is_not_looked_for_at_every_page(world):
    primary, script, replica, fourth = world
    primary.compact(1, 1, 4)
    primary.compact(1, 5, 6)
    primary.delete(0)
    script.clear()
    assert unread(replica, fourth, primary) == set()
    assert script.lists[9] == 1


@pytest.mark.plan("L11")
def test_a_replica_that_is_closed_while_pages_are_looked_for_says_so(world):
    primary, script, replica, fourth = world
    changed = next(n for n in range(1, fourth.commit + 1) if primary.page(n, 4) != primary.page(n, 6))
    primary.compact(1, 1, 6)
    primary.delete(0)

    def close(level, files):
        if level == 9:
            replica.close()
        return files

    script.on_list = close
    with pytest.raises(StorageClosedError):
        replica.pages.read(fourth, changed)


def test_a_fixed_state_is_hydrated_only_where_nothing_live_is():
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.commit("INSERT INTO t VALUES(1)")
        replica = Replica(Options(replica_url=script.url, hydration_enabled=True))
        assert replica.pages.hydration._target is None
        view = replica.view(txid=1)
        assert replica.pages.hydration._target is view
        newest = replica.open(10)
        replica.view(txid=1)
        assert replica.pages.hydration._target is newest
        replica.close()


def test_a_later_view_goes_on_from_the_one_before_it(world):
    primary, script, _, _ = world
    replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2, cache_size_bytes=0))
    try:
        fourth = replica.view(txid=4)
        read = replica.fetcher.counters.get
        newest = replica.view()
        assert (newest.txid, newest.epoch) == (6, fourth.epoch)
        assert replica.fetcher.counters.get == read + 2
        third = replica.view(txid=3)
        assert third.epoch != newest.epoch
        for view in (third, fourth, newest):
            assert unread(replica, view, primary) == set()
    finally:
        replica.close()


def test_views_share_no_history_with_those_of_a_replaced_file():
    def course(script: Script, last: str) -> Primary:
        primary = Primary(script.writer)
        for sql in ("CREATE TABLE t(x)", "INSERT INTO t VALUES (1)", last):
            primary.commit(sql)
        return primary

    with Script() as script:
        first = course(script, "INSERT INTO t VALUES (2)")
        replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2))
        try:
            views = [replica.view(txid=txid) for txid in (2, 3)]
            assert views[0].epoch == views[1].epoch
            assert unread(replica, views[1], first) == set()
            first.close()
            first.delete(0, [3])
            second = course(script, "INSERT INTO t VALUES (hex(randomblob(500)))")
            view = replica.view(txid=3)
            assert view.epoch != views[1].epoch
            assert unread(replica, view, second) == set()
            second.close()
        finally:
            replica.close()
