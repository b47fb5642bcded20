"""What a look may conclude from where level 0 ends: when nothing was missed, and when all levels have to be seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from litevfs.errors import PageUnavailableError, ReplicaError, TXIDGapError
from litevfs.live.replica import Replica
from litevfs.ltx import decode_file
from litevfs.ltx.encoder import encode_file
from litevfs.options import Options
from litevfs.states.lineage import SET_BACK_AFTER_S
from litevfs.states.survey import INTERVAL_S
from tests.made import MadePrimary
from tests.primary import Primary
from tests.scripted import Script
from tests.states.support import published

INSERT = "INSERT INTO t VALUES(randomblob(3000))"


@pytest.fixture
def world(clock):
    """A primary with six transactions, its storage, and a replica of it that is refreshed by hand."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        for _ in range(5):
            primary.commit(INSERT)
        replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2), clock=clock)
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


def snapshot(primary: Primary, txid: int, seconds_later: int) -> None:
    """A full snapshot that says when it was made, as those of Litestream do."""
    file = decode_file(primary.file_bytes(1, txid))
    header = replace(file.header, timestamp_ms=primary.timestamp_ms(txid + seconds_later))
    primary.client.write(9, 1, txid, encode_file(header, file.pages()), header.timestamp_ms)


LEFT = pytest.mark.parametrize("left", [[], [1, 2, 3, 4], [1, 2, 3, 5]], ids=["no other file", "older ones", "a hole"])


@pytest.mark.plan("L08", "D05")
@LEFT
def test_a_full_snapshot_in_place_of_the_newest_file_is_served_at_once(world, left):
    """By a primary that spares only the snapshot, or by an operator who cleaned up by hand."""
    primary, _, replica = world
    replica.refresh()
    old = replica.snapshot
    snapshot(primary, 6, 60)
    primary.delete(0, set(range(1, 7)).difference(left))
    replica.refresh()
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 1)
    assert published(replica) == primary.images[6]
    lost = next(pgno for pgno in range(1, old.commit + 1) if old.files[old.file_number(pgno)].max_txid == 6)
    with pytest.raises(PageUnavailableError, match="begin a new transaction"):  # whose pages these are is not proved
        replica.pages.read(old, lost)
    primary.commit(INSERT)
    replica.refresh()
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (7, 1)
    assert published(replica) == primary.images[7]


@pytest.mark.plan("E03")
@LEFT
def test_a_full_snapshot_of_another_history_in_place_of_the_newest_file_is_not_mixed(world, left):
    """The database was set back, went on to the same TXID, and only a snapshot tells of it."""
    primary, script, replica = world
    replica.refresh()
    assert published(replica) == primary.images[6]  # and in the cache
    primary.delete(0, set(range(1, 7)).difference(left))
    with Primary(script.writer) as other:
        other.run("CREATE TABLE t(x)")
        while other.txid < 6:
            other.run(INSERT)
        snapshot(other, 6, 60)
        replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 1)
        assert published(replica) == other.images[6]


@pytest.mark.plan("L29", "E01")
@LEFT
def test_an_old_listing_beside_a_fresh_snapshot_leaves_the_state_alone(world, left):
    primary, script, replica = world
    replica.refresh()
    snapshot(primary, 6, 60)
    script.on_list = lambda level, files: [file for file in files if level or file.max_txid in left]
    replica.refresh()
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 0)
    assert published(replica) == primary.images[6]


@pytest.mark.plan("L29", "E03")
@pytest.mark.parametrize("seconds_later", [-3600, 60], ids=["an older one", "a damaged one"])
def test_a_snapshot_that_may_be_an_old_listings_is_no_proof(world, seconds_later):
    primary, _, replica = world
    replica.refresh()
    snapshot(primary, 6, seconds_later)
    if seconds_later > 0:
        primary.client.write(9, 1, 6, b"", primary.timestamp_ms(66))
    primary.delete(0, [6])
    with pytest.raises(ReplicaError, match="newest transactions are gone"):
        replica.refresh()
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 0)


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
    """Nothing on level 0: polls take turns with looks at all levels, four a minute."""
    primary, script, replica = world
    primary.compact(1, 1, 4)
    primary.compact(1, 5, 6)
    primary.delete(0)
    replica.refresh()
    assert replica.snapshot.txid == 6
    return primary, script, replica


@pytest.mark.plan("L10", "E03")
def test_a_set_back_is_not_forgotten_by_the_next_poll(level_1_world, clock):
    primary, _, replica = level_1_world
    primary.delete(1, [6])
    clock.now_s += INTERVAL_S
    with pytest.raises(ReplicaError, match="newest transactions are gone"):
        replica.refresh(thorough=False)
    with pytest.raises(ReplicaError, match="newest transactions are gone"):
        replica.refresh(thorough=False)
    clock.now_s += SET_BACK_AFTER_S
    replica.refresh(thorough=False)
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (4, 1)


@pytest.mark.plan("L29", "E03")
def test_what_was_missing_once_has_to_be_missing_for_long_again(level_1_world, clock):
    primary, _, replica = level_1_world
    for _ in range(2):
        primary.delete(1, [6])
        for _ in range(2):
            with pytest.raises(ReplicaError, match="newest transactions are gone"):
                replica.refresh()
            clock.now_s += 20
        primary.compact(1, 5, 6)
        replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 0)


@pytest.mark.plan("L03", "L10")
def test_a_gap_is_not_forgotten_by_the_next_poll(level_1_world, clock):
    primary, _, replica = level_1_world
    primary.run(INSERT)
    primary.run(INSERT)
    primary.compact(1, 8, 8)
    clock.now_s += INTERVAL_S
    for _ in range(3):
        with pytest.raises(TXIDGapError):
            replica.refresh(thorough=False)
    primary.compact(1, 7, 7)
    replica.refresh(thorough=False)
    assert replica.snapshot.txid == 8


def test_time_travel_does_not_put_off_the_refresh_at_all_levels(level_1_world, clock):
    primary, _, replica = level_1_world
    replica.refresh()
    primary.run(INSERT)
    primary.compact(1, 7, 7)
    for _ in range(4):
        clock.now_s += INTERVAL_S / 2.5
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


# --- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.plan("L10")
def test_after_a_refresh_at_all_levels_polls_ask_for_level_0_alone(level_1_world):
    _, script, replica = level_1_world
    script.clear()
    replica.refresh()
    assert script.lists[1] == 1
    script.clear()
    replica.refresh(thorough=False)
    assert dict(script.lists) == {0: 1}


@pytest.mark.plan("L04")
def test_many_new_files_are_read_one_by_one_only_up_to_a_limit(world, monkeypatch):
    monkeypatch.setattr("litevfs.states.follower.MAX_STEPS", 3)
    primary, script, replica = world
    replica.refresh()
    for _ in range(3):
        primary.commit(INSERT)
    script.clear()
    replica.refresh()
    assert (replica.snapshot.txid, dict(script.lists)) == (9, {0: 1})
    for _ in range(4):
        primary.commit(INSERT)
    primary.compact(1, 10, 13)
    script.clear()
    replica.refresh()
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (13, 0)
    new = {script.writer.key(file) for file in script.writer.list_files(0, 10)}
    assert not new & {key for key, _, _ in script.reads}
    assert published(replica) == primary.images[13]


@pytest.mark.plan("L04")
def test_a_state_of_many_files_refreshes_for_compacted_ones_as_they_double(monkeypatch):
    monkeypatch.setattr("litevfs.states.follower.MIN_FILES", 4)
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        replica = Replica(Options(replica_url=script.url))
        try:
            replica.refresh()
            looked = []
            for _ in range(15):
                files = len(replica.snapshot.files)
                if files == 13:
                    primary.compact(1, 1, primary.txid)
                primary.commit("INSERT INTO t VALUES(zeroblob(10000))")  # some pages are of this transaction for ever
                script.clear()
                replica.refresh()
                looked += [files] * script.lists[1]
            assert looked == [5, 13]  # the first look found nothing, at the sixth file
            assert len(replica.snapshot.files) < 6
            assert published(replica) == primary.images[primary.txid]
        finally:
            replica.close()
