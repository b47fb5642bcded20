"""What a follower makes of files that vanish, and of replicas that are replaced or set back."""

from __future__ import annotations

import pytest

from litevfs.errors import LTXFormatError, PageUnavailableError, ReplicaError, StorageError
from litevfs.states.follower import FETCHED_AT_ONCE, MIN_FILES
from litevfs.states.lineage import SET_BACK_AFTER_S
from tests.made import MadePrimary
from tests.primary import Primary
from tests.states.support import INSERT, in_its_place, insert, pages_are_right, put

pytestmark = pytest.mark.slow

# --- files that vanish, states that are replaced ----------------------------------------------------------------------


@pytest.mark.plan("D05", "L08")
def test_pages_are_found_elsewhere_when_compaction_and_retention_took_their_files(world):
    primary, _, replica = world
    insert(primary, 5)
    replica.refresh()
    old = replica.snapshot
    primary.compact(1, 1, 3)
    primary.compact(1, 4, 6)
    primary.delete(0)
    for pgno in range(1, old.commit + 1):
        assert replica.pages.read(old, pgno) == primary.page(pgno, 6)
    assert replica.pages.counters.relocated > 0
    assert replica.snapshot.txid == 6
    assert pages_are_right(primary, replica)


@pytest.mark.plan("D05", "L08")
def test_a_state_that_is_gone_for_good_is_an_error_and_the_next_state_is_right(world):
    primary, _, replica = world
    insert(primary)
    replica.refresh()
    old = replica.snapshot
    primary.commit("UPDATE u SET b = zeroblob(20000)")
    primary.compact(9, 1, 3)
    primary.delete(0)
    lost = []
    for pgno in range(1, old.commit + 1):
        try:
            assert replica.pages.read(old, pgno) == primary.page(pgno, 2)
        except PageUnavailableError as error:
            lost.append(error)
    assert lost
    assert all("is gone" in error.message and error.hint and error.key for error in lost)
    replica.refresh()
    assert replica.snapshot.txid == 3
    assert pages_are_right(primary, replica)


@pytest.mark.plan("E03")
@pytest.mark.parametrize("transactions", [1, 3, 9])
def test_a_replaced_replica_is_noticed_and_never_mixed(world, transactions):
    primary, script, replica = world
    insert(primary, 4)
    replica.refresh()
    primary.delete_all()
    with Primary(script.writer) as other:
        other.start_ms = primary.timestamp_ms(100)
        other.commit("CREATE TABLE other AS SELECT randomblob(9000)")
        for _ in range(transactions - 1):
            other.commit("INSERT INTO other VALUES(randomblob(3000))")
        replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (transactions, 1)
        assert pages_are_right(other, replica)


@pytest.mark.plan("E03")
def test_a_replaced_replica_that_is_already_compacted_is_never_mixed(world):
    """Nothing under a known name is left, and the new files connect to the old TXID."""
    primary, script, replica = world
    insert(primary, 4)
    replica.refresh()
    assert pages_are_right(primary, replica)  # and in the cache
    with in_its_place(primary, script, 9, blob_bytes=9000) as other:
        other.compact(1, 1, 3)
        other.compact(1, 4, 7)
        other.compact(0, 8, 8)
        other.compact(0, 9, 9)
        replica.refresh()
        assert replica.snapshot.txid == 9
        assert pages_are_right(other, replica)


@pytest.mark.plan("E03")
def test_a_replica_that_was_set_back_and_goes_on_differently_is_never_mixed(world):
    """The primary was restored to an earlier state: the newest files go, other ones take their TXIDs."""
    primary, script, replica = world
    insert(primary, 4)
    replica.refresh()
    assert pages_are_right(primary, replica)
    primary.delete(0, [4, 5])
    with pytest.raises(ReplicaError, match="newest transactions are gone"):
        replica.refresh()
    assert pages_are_right(primary, replica)
    with MadePrimary(script.writer, {txid: primary.images[txid] for txid in (1, 2, 3)}) as other:
        other.start_ms = primary.timestamp_ms(100)
        for _ in range(3):
            other.commit(INSERT)
            replica.refresh()
            if replica.snapshot.epoch == 0 and replica.snapshot.txid <= 5:
                assert pages_are_right(primary, replica)
            else:
                assert pages_are_right(other, replica)
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 1)


@pytest.mark.plan("E03")
def test_a_set_back_history_whose_clock_is_behind_is_noticed_at_once(world):
    """A known TXID at another time is proof, even if an earlier one."""
    primary, script, replica = world
    insert(primary, 5)
    replica.refresh()
    assert pages_are_right(primary, replica)
    primary.delete(0, [5, 6])
    with MadePrimary(script.writer, {txid: primary.images[txid] for txid in (1, 2, 3, 4)}) as other:
        other.start_ms = primary.start_ms - 3_600_000
        for _ in range(2):
            other.commit(INSERT)
        replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 1)
        assert pages_are_right(other, replica)


@pytest.mark.plan("E03")
def test_a_database_that_takes_its_place_back_is_another_one_again(world):
    """What was known of its times before is no proof that the pages of the one between are in its files."""
    primary, script, replica = world
    insert(primary, 5)
    replica.refresh()
    kept = script.store.items()
    with in_its_place(primary, script, 6) as other:
        other.compact(9, 1, 6)
        replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 1)
        other.delete_all()
        for key, stored in kept:
            script.store.put(key, stored.data, stored.modified_ms)
        old = replica.snapshot
        for pgno in range(1, old.commit + 1):
            with pytest.raises((PageUnavailableError, StorageError)):
                replica.pages.read(old, pgno)
        replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 2)
        assert pages_are_right(primary, replica)


@pytest.mark.plan("E03")
def test_a_new_history_that_was_tried_in_vain_proves_nothing(world):
    """Reading what replaced the replica fails half way once; the times seen on the way are not ours."""
    primary, script, replica = world
    insert(primary, FETCHED_AT_ONCE - 5)
    replica.refresh()
    primary.delete_all()
    with Primary(script.writer) as other:
        other.start_ms = primary.timestamp_ms(1000)
        other.commit("CREATE TABLE other AS SELECT randomblob(9000)")
        for _ in range(89):
            other.commit("INSERT INTO other VALUES(1)")
        put(script, 80, b"")  # among the files that are fetched when others have come
        with pytest.raises(LTXFormatError):
            replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (primary.txid, 0)
        other.upload(80)
        replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (90, 1)
        assert pages_are_right(other, replica)


@pytest.mark.plan("E03", "L29")
@pytest.mark.parametrize("files", [[(3, 1, 5)], [(9, 1, 5)], [(1, 1, 3), (1, 4, 8)]], ids=lambda files: str(files))
@pytest.mark.parametrize("stale_levels", [(0,), (0, 9)], ids=["level 0", "levels 0 and 9"])
@pytest.mark.parametrize("size", [9000, 20000], ids=["smaller", "as large"])
def test_an_old_listing_of_one_level_proves_nothing_of_the_others(world, files, stale_levels, size):
    """What is listed on level 0 was ours, and is gone; what is listed beside it is another database."""
    primary, script, replica = world
    insert(primary, 4)
    replica.refresh()
    old = replica.snapshot
    listed = {level: script.writer.list_files(level) for level in stale_levels}
    with in_its_place(primary, script, files[-1][2], blob_bytes=size) as other:
        for file in files:
            other.compact(*file)
        script.on_list = lambda level, found: listed.get(level, found)
        for pgno in range(1, old.commit + 1):
            with pytest.raises((PageUnavailableError, StorageError)):
                replica.pages.read(old, pgno)
        script.on_list = None
        replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (other.txid, 1)
        assert pages_are_right(other, replica)


@pytest.mark.plan("E03", "L29", "L03")
def test_a_gap_is_not_bridged_by_a_replacement_that_an_old_listing_vouches_for(world):
    primary, script, replica = world
    insert(primary, 4)
    replica.refresh()
    insert(primary, upload=False)
    insert(primary)
    listed = script.writer.list_files(0)
    with in_its_place(primary, script, 8) as other:
        other.compact(1, 1, 3)
        other.compact(1, 4, 8)
        script.on_list = lambda level, found: listed if level == 0 else found
        replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (8, 1)
        assert pages_are_right(other, replica)


@pytest.mark.plan("E03")
@pytest.mark.parametrize("file", [(9, 1, 4), (9, 1, 6), (1, 1, 4)], ids=["snapshot", "same name", "level 1"])
def test_pages_are_never_relocated_into_an_older_database_in_the_same_place(world, clock, file):
    """Nothing of it contradicts what is known, and nothing proves that it is the same."""
    primary, script, replica = world
    insert(primary, 5)
    primary.compact(9, 1, 6)
    primary.delete(0)
    replica.refresh()
    an_hour_older_ms = primary.start_ms - 3_600_000
    with in_its_place(primary, script, file[2], start_ms=an_hour_older_ms) as other:
        other.compact(*file)
        for _ in range(2):
            with pytest.raises(ReplicaError, match="newest transactions are gone"):
                replica.refresh()
            with pytest.raises(PageUnavailableError, match="there is no newer state"):
                replica.pages.read(replica.snapshot, 3)
            assert replica.snapshot.files
        assert replica.status().state == "behind"
        clock.now_s += SET_BACK_AFTER_S
        replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (file[2], 1)
        assert pages_are_right(other, replica)
        assert replica.status().state == "current"


@pytest.mark.plan("E03")
def test_a_replica_that_is_set_back_and_not_written_to_is_served_as_it_is_now(world, clock):
    primary, _, replica = world
    insert(primary, 7)
    replica.refresh()
    primary.delete(0, [6, 7, 8])
    with pytest.raises(ReplicaError, match="newest transactions are gone") as caught:
        replica.refresh()
    assert (caught.value.min_txid, caught.value.max_txid) == (6, 8)
    assert (replica.snapshot.txid, replica.status().state) == (8, "behind")
    clock.now_s += SET_BACK_AFTER_S
    old = replica.snapshot
    lost = next(pgno for pgno in range(1, old.commit + 1) if old.files[old.file_number(pgno)].max_txid > 5)
    with pytest.raises(PageUnavailableError, match="begin a new transaction"):  # a reader is the first to notice
        replica.pages.read(old, lost)
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (5, 1)
    replica.refresh()
    assert pages_are_right(primary, replica)


@pytest.mark.plan("L29", "E01")
def test_a_listing_is_stale_as_long_as_the_newest_file_can_be_read(world, clock):
    primary, script, replica = world
    insert(primary, 5)
    replica.refresh()
    script.on_list = lambda level, files: [f for f in files if f.max_txid < 4]
    for _ in range(3):
        replica.refresh()
        clock.now_s += SET_BACK_AFTER_S
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 0)


def test_a_damaged_newest_file_does_not_keep_pages_from_being_found_elsewhere(world):
    primary, script, replica = world
    insert(primary, 3)
    replica.refresh()
    old = replica.snapshot
    primary.compact(1, 1, 4)
    primary.delete(0)
    put(script, 5, b"")
    for pgno in range(1, old.commit + 1):
        assert replica.pages.read(old, pgno) == primary.page(pgno, 4)
    assert {file.level for file in replica.snapshot.files.values()} == {1}  # the published state has moved, too
    with pytest.raises(LTXFormatError):
        replica.refresh()
    assert pages_are_right(primary, replica)


def test_a_transaction_that_passes_level_0_between_two_refreshes_is_seen_by_a_caller_that_asks(world, clock):
    """The poller may take 15 seconds where level 0 is empty, but not a caller that wants to know now."""
    primary, script, replica = world
    primary.compact(1, 1, 1)
    primary.delete(0)
    replica.refresh()
    insert(primary)
    primary.compact(1, 2, 2)
    primary.delete(0)
    script.clear()
    assert replica.refresh(thorough=False) is False
    assert dict(script.lists) == {0: 1}
    assert replica.wait_for(2, 0).txid == 2
    insert(primary)
    primary.compact(1, 3, 3)
    primary.delete(0)
    clock.now_s += 0.3
    replica.refresh(thorough=False)
    replica.check_freshness(0.2)  # the poller looked just now, but may have missed something
    assert replica.snapshot.txid == 3


def test_after_a_fork_nothing_is_read_over_the_parents_client(world):
    primary, _, replica = world
    insert(primary, 3)
    replica.refresh()
    parents = replica.fetcher
    replica.restart_after_fork()
    parents.close()
    primary.compact(1, 1, 4)
    primary.delete(0)
    insert(primary)
    replica.refresh()  # has to see whose files these are
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (5, 0)
    assert pages_are_right(primary, replica)


@pytest.mark.parametrize("level", [0, 1, 9])
def test_files_that_were_copied_again_are_the_same_replica(world, level):
    """A replica that was moved or restored keeps its names and content; times and etags are new."""
    primary, script, replica = world
    insert(primary, 3)
    if level:
        primary.compact(level, 1, 4)
        primary.delete(0)
    replica.refresh()
    for key, stored in script.store.items():
        script.store.put(key, stored.data, stored.modified_ms + 86_400_000)
    replica.refresh()
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (4, 0)
    insert(primary)
    replica.refresh()
    assert pages_are_right(primary, replica)


def test_files_that_are_gone_and_not_replaced_are_warned_of_once(world, caplog):
    primary, _, replica = world
    for _ in range(MIN_FILES + 1):
        primary.commit("CREATE TABLE " + f"t{primary.txid}(x)")  # a page of its own, so that every file is in use
    replica.refresh()
    primary.delete(0, range(1, primary.txid))
    for _ in range(4):
        replica.refresh()
    warned = [record for record in caplog.records if "nothing replaces them yet" in record.message]
    assert [record.levelname for record in warned if record.levelname != "DEBUG"] == ["WARNING"]
