"""What a look may conclude from where level 0 ends: when nothing was missed, and when all levels have to be seen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from litevfs.errors import ReplicaError, TXIDGapError
from litevfs.options import Options
from litevfs.replica import Replica
from tests.made import MadePrimary
from tests.primary import Primary
from tests.scripted import Script

INSERT = "INSERT INTO t VALUES(randomblob(3000))"


@pytest.fixture
def world():
    """A primary with six transactions, its storage, and a replica of it that is refreshed by hand."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        for _ in range(5):
            primary.commit(INSERT)
        replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2))
        yield primary, script, replica
        replica.close()


def hide_from(txid: int, script: Script) -> None:
    script.on_list = lambda level, files: [file for file in files if file.max_txid < txid]


@pytest.mark.plan("L29", "E01", "E03")
def test_a_set_back_after_a_stale_listing_is_noticed(world):
    """The stale look must not make the older file the one from which nothing can be missed."""
    primary, script, replica = world
    replica.refresh()
    hide_from(5, script)
    replica.refresh()
    script.on_list = None
    primary.delete(0, [5, 6])
    for _ in range(3):
        with pytest.raises(ReplicaError, match="newest transactions are gone"):
            replica.refresh()
    assert replica.status().state == "behind"


@pytest.mark.plan("L03")
def test_level_1_is_followed_where_level_0_ends_below_the_state(world):
    primary, _, replica = world
    primary.compact(1, 1, 4)
    primary.delete(0, [4, 5, 6])
    replica.refresh()
    assert replica.snapshot.txid == 4
    primary.compact(1, 5, 6)
    replica.refresh()
    assert replica.snapshot.txid == 6


@pytest.fixture
def level_1_world(world):
    """Nothing on level 0: polls take turns with looks at all levels, one a minute."""
    primary, script, replica = world
    primary.compact(1, 1, 4)
    primary.compact(1, 5, 6)
    primary.delete(0)
    replica.refresh()
    assert replica.snapshot.txid == 6
    return primary, script, replica


@pytest.mark.plan("L10", "E03")
def test_a_set_back_is_not_forgotten_by_the_next_poll(level_1_world, monkeypatch):
    primary, _, replica = level_1_world
    primary.delete(1, [6])
    monkeypatch.setattr("litevfs.follower.RESYNC_INTERVAL_S", 0.0)  # a minute has passed
    with pytest.raises(ReplicaError, match="newest transactions are gone"):
        replica.refresh(thorough=False)
    monkeypatch.setattr("litevfs.follower.RESYNC_INTERVAL_S", 60.0)
    with pytest.raises(ReplicaError, match="newest transactions are gone"):
        replica.refresh(thorough=False)
    monkeypatch.setattr("litevfs.lineage.SET_BACK_AFTER_S", 0.0)  # half a minute has passed
    replica.refresh(thorough=False)
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (4, 1)


@pytest.mark.plan("L29", "E03")
def test_what_was_missing_once_has_to_be_missing_for_long_again(level_1_world, monkeypatch):
    primary, _, replica = level_1_world
    now_s = 1000.0
    for module in ("follower", "lineage"):
        monkeypatch.setattr(f"litevfs.{module}.time", SimpleNamespace(monotonic=lambda: now_s))
    for _ in range(2):
        primary.delete(1, [6])
        for _ in range(2):
            with pytest.raises(ReplicaError, match="newest transactions are gone"):
                replica.refresh()
            now_s += 20
        primary.compact(1, 5, 6)
        replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 0)


@pytest.mark.plan("L03", "L10")
def test_a_gap_is_not_forgotten_by_the_next_poll(level_1_world, monkeypatch):
    primary, _, replica = level_1_world
    primary.run(INSERT)
    primary.run(INSERT)
    primary.compact(1, 8, 8)
    monkeypatch.setattr("litevfs.follower.RESYNC_INTERVAL_S", 0.0)
    for interval_s in (0.0, 60.0, 60.0):
        monkeypatch.setattr("litevfs.follower.RESYNC_INTERVAL_S", interval_s)
        with pytest.raises(TXIDGapError):
            replica.refresh(thorough=False)
    primary.compact(1, 7, 7)
    replica.refresh(thorough=False)
    assert replica.snapshot.txid == 8


def test_time_travel_does_not_put_off_the_look_at_all_levels(level_1_world, monkeypatch):
    primary, _, replica = level_1_world
    now_s = 1000.0
    monkeypatch.setattr("litevfs.follower.time", SimpleNamespace(monotonic=lambda: now_s))
    replica.refresh()
    primary.run(INSERT)
    primary.compact(1, 7, 7)
    for _ in range(4):
        now_s += 25
        replica.view(txid=4, timeout_s=5)
        replica.refresh(thorough=False)
    assert replica.snapshot.txid == 7


@pytest.mark.plan("L29", "E01")
def test_a_clock_that_stepped_back_makes_no_stale_listing_a_replacement():
    with Script() as script, MadePrimary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.commit(INSERT)
        primary.start_ms -= 5000
        primary.commit(INSERT)
        replica = Replica(Options(replica_url=script.url))
        try:
            replica.refresh()
            hide_from(3, script)
            replica.refresh()
            assert (replica.snapshot.txid, replica.snapshot.epoch) == (3, 0)
        finally:
            replica.close()
