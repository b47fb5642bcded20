"""What a listing proves of the state that is served: which files have to be read for it, and what an old one may do."""

from __future__ import annotations

import pytest

from litevfs.errors import ReplicaError, StorageNotFoundError
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.states.lineage import MAX_EVIDENCE
from tests.made import MadePrimary
from tests.primary import Primary
from tests.scripted import Script
from tests.states.test_follower_position import INSERT, hide_from, published, snapshot

TIMESTAMP_AT = 34
"""A byte of the timestamp in a header."""


@pytest.fixture
def world(clock):
    """A primary with six transactions, its storage, and a replica of it that was refreshed once."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        for _ in range(5):
            primary.commit(INSERT)
        replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2, cache_size_bytes=0), clock=clock)
        replica.refresh()
        yield primary, script, replica
        replica.close()


def other_database(primary: Primary, script: Script) -> Primary:
    """A younger one with as many transactions, nothing of it uploaded yet."""
    other = Primary(script.writer)
    other.start_ms = primary.timestamp_ms(100)
    other.run("CREATE TABLE t(x)")
    while other.txid < primary.txid:
        other.run(INSERT)
    return other


def position(replica: Replica) -> tuple[int, int]:
    return replica.snapshot.txid, replica.snapshot.epoch


@pytest.mark.plan("L13", "E01")
def test_a_refresh_at_all_levels_without_news_reads_nothing(world):
    primary, script, replica = world
    primary.compact(1, 1, 6)
    primary.delete(0)
    replica.refresh()
    script.clear()
    replica.refresh()
    assert script.lists[1] == 1
    assert not script.reads


@pytest.mark.plan("E03", "L29")
def test_pages_do_not_move_into_a_database_that_only_an_old_listing_vouches_for(world):
    """The level of the newest file is listed as it was; the rest of the state has made way for another's snapshot."""
    primary, script, replica = world
    primary.compact(1, 1, 3)
    primary.compact(1, 4, 6)
    primary.delete(0)
    replica.refresh()
    primary.delete(1, [3])
    listed = script.writer.list_files(1)
    primary.delete_all()
    with other_database(primary, script) as other:
        other.compact(9, 1, 3)
        other.compact(1, 4, 6)
        script.on_list = lambda level, files: listed if level == 1 else files
        with pytest.raises(ReplicaError):
            replica.refresh()
        assert {file.level for file in replica.snapshot.files.values()} == {1}
        script.on_list = None
        replica.refresh()
        assert position(replica) == (6, 1)
        assert published(replica) == other.images[6]


@pytest.mark.plan("E03", "L29")
def test_pages_do_not_move_past_what_an_old_listing_proves(world):
    """Another database begins to take the place while level 0 is listed as it was."""
    primary, script, replica = world
    with other_database(primary, script) as other:
        other.compact(9, 1, 6)
        script.on_list = lambda level, files: [file for file in files if level or file.max_txid < 4]
        replica.refresh()
        assert position(replica) == (6, 0)
        assert published(replica) == primary.images[6]


@pytest.mark.plan("L08", "L29")
def test_pages_move_as_far_as_an_old_listing_proves(world):
    primary, script, replica = world
    old = replica.snapshot
    primary.compact(1, 1, 4)
    primary.delete(0, [1, 2, 3, 4])
    script.on_list = lambda level, files: [file for file in files if file.max_txid < 6]
    assert b"".join(replica.pages.read(old, pgno) for pgno in range(1, old.commit + 1)) == primary.images[6]


@pytest.mark.plan("L28", "L29")
def test_a_damaged_file_makes_no_trouble_where_an_old_listing_ends_with_it(world):
    _, script, replica = world
    hide_from(5, script)
    script.on_read = lambda file, offset, data: bytes(len(data)) if file.max_txid == 4 else data
    replica.refresh()
    assert position(replica) == (6, 0)


@pytest.mark.plan("L28", "L29")
@pytest.mark.parametrize("is_known", [True, False], ids=["of a known time", "of a forgotten time"])
@pytest.mark.parametrize("damaged", [1, 2, 1000])
def test_a_time_that_was_damaged_on_its_way_is_no_reason_to_go_back(damaged, is_known, monkeypatch):
    """One bit of the timestamp in headers, while an old listing ends with files whose pages are all replaced since."""
    if not is_known:
        monkeypatch.setattr("litevfs.states.lineage.MAX_TIMES", 2)
    left = damaged

    def damage(file, offset, data):
        nonlocal left
        if file.max_txid >= 5 or offset or left <= 0:
            return data
        left -= 1
        return data[:TIMESTAMP_AT] + bytes([data[TIMESTAMP_AT] ^ 0x20]) + data[TIMESTAMP_AT + 1 :]

    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.commit("INSERT INTO t VALUES(0)")
        replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2, cache_size_bytes=0))
        try:
            for _ in range(4):
                replica.refresh()
                primary.commit("UPDATE t SET x = x + 1")
            replica.refresh()
            hide_from(5, script)
            script.on_read = damage
            for _ in range(3):
                replica.refresh()
                assert position(replica) == (6, 0)
            assert left < damaged
        finally:
            replica.close()


@pytest.mark.plan("L29")
def test_a_known_file_proves_its_history_though_its_time_was_forgotten(monkeypatch):
    monkeypatch.setattr("litevfs.states.lineage.MAX_TIMES", 2)
    with Script() as script, MadePrimary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        replica = Replica(Options(replica_url=script.url))
        try:
            for _ in range(5):
                replica.refresh()
                primary.commit(INSERT)
            replica.refresh()
            assert len(replica._follower._judge._times) == 2
            hide_from(5, script)
            replica.refresh()
            assert position(replica) == (6, 0)
        finally:
            replica.close()


@pytest.mark.plan("E03")
def test_a_younger_database_that_is_no_more_than_a_snapshot_is_served_at_once(world):
    primary, script, replica = world
    primary.delete_all()
    with other_database(primary, script) as other:
        snapshot(other, 4, 1)
        replica.refresh()
        assert position(replica) == (4, 1)
        assert published(replica) == other.images[4]


@pytest.mark.plan("L29", "E03")
def test_the_newest_file_on_level_0_ends_the_suspicion_that_it_is_gone(world, clock):
    _, script, replica = world

    def lose(file, offset, data):
        if file.max_txid == 6:
            raise StorageNotFoundError("not yet here", level=0, min_txid=6, max_txid=6)
        return data

    for _ in range(3):
        hide_from(6, script)
        script.on_read = lose
        with pytest.raises(ReplicaError, match="newest transactions are gone"):
            replica.refresh()
        clock.now_s += 20
        script.on_list = script.on_read = None
        replica.refresh()
        assert position(replica) == (6, 0)


@pytest.mark.plan("E03", "L29")
def test_after_a_set_back_the_next_one_has_to_last_as_long(world, clock):
    primary, _, replica = world
    for gone, left, epoch in ((6, 5, 1), (5, 4, 2)):
        primary.delete(0, [gone])
        with pytest.raises(ReplicaError, match="newest transactions are gone"):
            replica.refresh()
        assert position(replica) == (gone, epoch - 1)
        clock.now_s += 31
        replica.refresh()
        assert position(replica) == (left, epoch)


@pytest.mark.plan("L29", "E01")
def test_a_listing_is_old_though_the_newest_file_was_copied_again(world):
    primary, script, replica = world
    primary.upload(6)
    hide_from(4, script)
    replica.refresh()
    assert position(replica) == (6, 0)


@pytest.mark.plan("E01", "E02")
def test_a_refresh_reads_a_handful_of_headers_however_many_listed_files_are_gone(world):
    primary, script, replica = world
    for _ in range(20):
        primary.commit(INSERT)
    replica.refresh()
    listed = script.writer.list_files(0)[:-2]
    primary.delete(0)
    primary.compact(9, 1, 3)
    script.on_list = lambda level, files: files if level else listed
    script.clear()
    with pytest.raises(ReplicaError, match="newest transactions are gone"):
        replica.refresh()
    assert len(script.reads) <= MAX_EVIDENCE + 2  # and whether the newest file is there after all


@pytest.mark.plan("E01")
def test_of_many_files_the_newest_are_the_ones_that_are_read_for_proof(world):
    primary, _, replica = world
    for _ in range(2 * MAX_EVIDENCE):
        primary.commit(INSERT)
    replica.refresh()
    primary.compact(1, 1, primary.txid)
    primary.delete(0, [primary.txid])
    primary.commit(INSERT)
    replica.refresh()
    assert position(replica) == (primary.txid, 0)


@pytest.mark.plan("E03")
def test_an_older_database_that_is_ahead_and_proves_nothing_is_served_at_once(world):
    """As when a backup of another database is put in the place: its files' times are those of long ago."""
    primary, script, replica = world
    primary.delete_all()
    with Primary(script.writer) as other:
        other.start_ms = primary.start_ms - 1_000_000
        other.run("CREATE TABLE t(x)")
        for _ in range(7):
            other.run(INSERT)
        other.compact(1, 1, 8)
        replica.refresh()
        assert position(replica) == (8, 1)
        assert published(replica) == other.images[8]


@pytest.fixture
def opened_from_one_file():
    """The world above, opened where one file holds everything: of no transaction but the sixth is the time known.

    The fifth was made in the same millisecond.
    """
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        for _ in range(4):
            primary.commit(INSERT)
        primary.start_ms -= 1000
        primary.commit(INSERT)
        script.on_list = lambda level, files: [file for file in files if level]
        primary.compact(1, 1, 6)
        replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2, cache_size_bytes=0))
        replica.refresh()
        script.on_list = None
        yield primary, script, replica
        replica.close()


@pytest.mark.plan("E03")
def test_a_younger_database_with_fewer_transactions_is_served_at_once_though_none_of_its_times_is_known(
    opened_from_one_file,
):
    primary, script, replica = opened_from_one_file
    primary.delete_all()
    with other_database(primary, script) as other:
        for txid in (1, 2, 3):
            other.upload(txid)
        replica.refresh()
        assert position(replica) == (3, 1)
        assert published(replica) == other.images[3]


@pytest.mark.plan("L29", "E01")
def test_a_listing_that_ends_with_a_transaction_of_the_same_millisecond_is_an_old_one(opened_from_one_file):
    _, script, replica = opened_from_one_file
    hide_from(6, script)
    replica.refresh()
    assert position(replica) == (6, 0)


@pytest.mark.plan("E03", "L29")
def test_a_snapshot_made_later_that_ends_earlier_is_not_believed_at_once_beside_other_files(world):
    primary, _, replica = world
    snapshot(primary, 4, 60)
    primary.delete(0, [5, 6])
    with pytest.raises(ReplicaError, match="newest transactions are gone"):
        replica.refresh()
    assert position(replica) == (6, 0)


@pytest.mark.plan("E03")
def test_of_several_snapshots_that_are_all_there_is_the_newest_tells_that_the_replica_was_made_again(world):
    primary, script, replica = world
    primary.delete_all()
    with other_database(primary, script) as other:
        snapshot(other, 2, -1000)
        snapshot(other, 4, 1)
        replica.refresh()
        assert position(replica) == (4, 1)
        assert published(replica) == other.images[4]


@pytest.mark.plan("E03")
def test_a_replica_that_was_replaced_is_followed_like_any_other_and_its_states_are_told_from_the_old_ones(world):
    primary, script, replica = world
    counters = {replica.snapshot.change_counter}  # what SQLite knows a state by
    primary.delete_all()
    with other_database(primary, script) as other:
        for txid in range(1, 7):
            other.upload(txid)
        replica.refresh()
        assert position(replica) == (6, 1)
        assert replica.snapshot.change_counter not in counters
        other.commit(INSERT)
        script.clear()
        replica.refresh()
        assert position(replica) == (7, 1)
        assert dict(script.lists) == {0: 1}


@pytest.mark.plan("E01")
def test_what_is_cached_of_a_file_stays_of_use_where_nothing_links_the_states_that_it_is_part_of(world):
    primary, script, _ = world
    snapshot_file = primary.compact(9, 1, 4)
    replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2))
    try:
        replica.refresh()
        [number] = [number for number, file in replica.snapshot.files.items() if file == snapshot_file]
        primary.delete(0)
        primary.run(INSERT)
        primary.compact(1, 5, 7)
        replica.refresh()
        assert position(replica) == (7, 1)
        assert replica.snapshot.files[number] == snapshot_file
        assert published(replica) == primary.images[7]
    finally:
        replica.close()
