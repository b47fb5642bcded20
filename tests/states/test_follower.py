"""How one state leads to the next: gaps, damage, stale listings, vanished and replaced files, and what it costs."""

from __future__ import annotations

import pytest

from litevfs.errors import (
    LTXFormatError,
    PageUnavailableError,
    ReplicaEmptyError,
    ReplicaError,
    StorageError,
    TransientStorageError,
    TXIDGapError,
    TXIDNotFoundError,
)
from litevfs.live.replica import Replica
from litevfs.ltx.names import format_file_name
from litevfs.options import Options
from litevfs.states.follower import FETCHED_AT_ONCE
from litevfs.states.lineage import SET_BACK_AFTER_S
from tests.made import MadePrimary
from tests.primary import Primary
from tests.scripted import Script


@pytest.fixture
def world(clock):
    """A primary, its storage, and a replica of it that is refreshed by hand."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x); CREATE TABLE u AS SELECT randomblob(20000) AS b")
        replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2), clock=clock)
        yield primary, script, replica
        replica.close()


def pages_are_right(primary: Primary | MadePrimary, replica: Replica) -> bool:
    """Whether every page of the published state is what the primary had at that TXID."""
    snapshot = replica.snapshot
    assert snapshot is not None
    image = primary.images[snapshot.txid]
    assert snapshot.commit * snapshot.page_size == len(image)
    return all(
        replica.pages.read(snapshot, pgno) == primary.page(pgno, snapshot.txid)
        for pgno in range(1, snapshot.commit + 1)
    )


INSERT = "INSERT INTO t VALUES(randomblob(3000))"


def insert(primary: Primary, *, upload: bool = True) -> int:
    return primary.commit(INSERT) if upload else primary.run(INSERT)


# --- cost -------------------------------------------------------------------------------------------------------------


def test_a_poll_without_news_is_one_listing_however_long_the_history(world):
    primary, script, replica = world
    for _ in range(30):
        insert(primary)
    replica.refresh()
    script.clear()
    for _ in range(5):
        assert replica.refresh() is False
    assert dict(script.lists) == {0: 5}
    assert script.reads == []


def test_a_new_transaction_is_one_listing_and_one_read(world):
    primary, script, replica = world
    replica.refresh()
    script.clear()
    insert(primary)
    assert replica.refresh() is True
    assert dict(script.lists) == {0: 1}
    assert len(script.reads) == 1


def test_opening_reads_each_small_file_once(world):
    primary, script, replica = world
    for _ in range(4):
        insert(primary)
    replica.refresh()
    assert len(script.reads) == len({key for key, _, _ in script.reads}) == 5
    assert sum(script.lists.values()) == 5


# --- gaps -------------------------------------------------------------------------------------------------------------


@pytest.mark.plan("L03")
def test_a_gap_at_open_is_an_error_that_names_the_missing_txids(world):
    primary, _, replica = world
    insert(primary, upload=False)
    insert(primary, upload=False)
    insert(primary)
    with pytest.raises(TXIDGapError) as caught:
        replica.refresh()
    assert (caught.value.min_txid, caught.value.max_txid) == (2, 3)
    assert replica.snapshot is None


@pytest.mark.plan("L03")
def test_the_position_stops_before_a_hole_and_goes_on_when_it_is_filled(world):
    primary, _, replica = world
    replica.refresh()
    insert(primary)
    insert(primary, upload=False)
    insert(primary)
    with pytest.raises(TXIDGapError) as caught:
        replica.refresh()
    assert (caught.value.min_txid, caught.value.max_txid) == (3, 3)
    assert replica.snapshot.txid == 2
    assert pages_are_right(primary, replica)
    primary.upload(3)
    assert replica.refresh()
    assert replica.snapshot.txid == 4
    assert pages_are_right(primary, replica)


@pytest.mark.plan("L03")
@pytest.mark.parametrize(("level", "span"), [(1, (2, 3)), (1, (1, 4)), (3, (3, 4)), (7, (2, 4)), (9, (1, 4))])
def test_a_hole_that_another_level_covers_is_none(world, level, span):
    primary, _, replica = world
    replica.refresh()
    insert(primary)
    insert(primary, upload=False)
    insert(primary)
    insert(primary)
    primary.compact(level, *span)
    assert replica.refresh()
    assert replica.snapshot.txid == 5
    assert pages_are_right(primary, replica)


@pytest.mark.plan("L03", "L29")
def test_a_file_that_is_listed_late_is_picked_up(world):
    primary, script, replica = world
    replica.refresh()
    insert(primary)
    script.on_list = lambda level, files: [f for f in files if f.max_txid < 2]
    assert replica.refresh() is False
    script.on_list = None
    assert replica.refresh() is True
    assert replica.snapshot.txid == 2


# --- damage -----------------------------------------------------------------------------------------------------------


def put(script: Script, txid: int, data: bytes) -> None:
    script.store.put(f"0/{format_file_name(txid, txid)}", data, 0)


@pytest.mark.plan("L27")
@pytest.mark.parametrize("kept", [0, 50, 100, 0.5, -1, -16, -40])
def test_a_truncated_file_is_not_published_and_picked_up_when_whole(world, kept):
    primary, script, replica = world
    replica.refresh()
    insert(primary)
    insert(primary, upload=False)
    whole = primary.file_bytes(3, 3)
    put(script, 3, whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(LTXFormatError) as caught:
        replica.refresh()
    assert (caught.value.level, caught.value.min_txid, caught.value.max_txid) == (0, 3, 3)
    assert caught.value.key
    assert replica.snapshot.txid == 2  # what is whole before it is there
    assert pages_are_right(primary, replica)
    primary.upload()
    assert replica.refresh()
    assert replica.snapshot.txid == 3
    assert pages_are_right(primary, replica)


@pytest.mark.plan("L28", "D05")
def test_any_flipped_byte_of_a_file_is_noticed_before_it_is_published(world):
    primary, script, replica = world
    replica.refresh()
    insert(primary, upload=False)
    whole = primary.file_bytes(2, 2)
    for position in [0, 5, 10, 17, 30, 99, 104, 120, len(whole) // 2, len(whole) - 30, len(whole) - 20, len(whole) - 1]:
        put(script, 2, whole[:position] + bytes([whole[position] ^ 0x40]) + whole[position + 1 :])
        with pytest.raises(LTXFormatError) as caught:
            replica.refresh()
        assert caught.value.max_txid == 2
        assert replica.snapshot.txid == 1
    put(script, 2, whole)
    assert replica.refresh()
    assert pages_are_right(primary, replica)


@pytest.mark.plan("L28")
def test_a_damaged_index_of_a_large_file_is_an_error_until_it_is_repaired(world):
    primary, script, replica = world
    replica.refresh()
    primary.run("CREATE TABLE large AS SELECT randomblob(3000000)")
    whole = primary.file_bytes(2, 2)
    assert len(whole) > 1 << 20  # too large to be read at once: its index comes alone
    put(script, 2, whole[:-200] + bytes(b ^ 0xFF for b in whole[-200:-150]) + whole[-150:])
    with pytest.raises(LTXFormatError):
        replica.refresh()
    assert replica.snapshot.txid == 1
    put(script, 2, whole)
    assert replica.refresh()
    assert pages_are_right(primary, replica)


@pytest.mark.plan("L03", "L28")
@pytest.mark.parametrize(
    "files", [[(9, 1, 5)], [(1, 1, 4)], [(2, 3, 5)], [(1, 3, 3)], [(1, 3, 4), (9, 1, 6)]], ids=lambda files: str(files)
)
def test_a_damaged_file_is_gone_around_where_other_files_hold_its_transactions(world, files):
    """As after `litevfs replicate --snapshot`, or where the primary compacts from what it has on its own disk."""
    primary, script, replica = world
    insert(primary)
    replica.refresh()
    for _ in range(4):
        insert(primary)
    put(script, 3, primary.file_bytes(3, 3)[:-40])
    for _ in range(2):
        with pytest.raises(LTXFormatError) as caught:
            replica.refresh()
        assert (caught.value.level, caught.value.min_txid, replica.snapshot.txid) == (0, 3, 2)
    for file in files:
        primary.compact(*file)
    replica.refresh()
    assert replica.snapshot.txid == 6
    assert pages_are_right(primary, replica)
    insert(primary)
    script.clear()
    replica.refresh()
    assert dict(script.lists) == {0: 1}
    assert pages_are_right(primary, replica)


@pytest.mark.plan("L03", "L28")
def test_of_several_damaged_files_the_first_that_nothing_replaces_is_reported(world):
    primary, script, replica = world
    replica.refresh()
    for _ in range(7):
        insert(primary)
    primary.compact(1, 1, 4)
    for txid in (3, 6, 8):
        put(script, txid, b"")
    with pytest.raises(LTXFormatError) as caught:
        replica.refresh()
    assert (caught.value.min_txid, caught.value.max_txid) == (6, 6)
    assert replica.snapshot.txid == 5
    assert pages_are_right(primary, replica)


@pytest.mark.plan("L29")
def test_a_file_that_is_listed_though_it_is_gone_is_gone_around(world):
    primary, script, replica = world
    replica.refresh()
    for _ in range(4):
        insert(primary)
    remembered = script.writer.list_files(0)
    primary.compact(1, 1, 4)
    primary.delete(0, [2, 3, 4])
    script.on_list = lambda level, files: [f for f in remembered if f.max_txid > 0] if level == 0 else files
    replica.refresh()
    assert replica.snapshot.txid == 5
    assert pages_are_right(primary, replica)


def test_bytes_damaged_on_their_way_are_read_again(world):
    primary, script, replica = world
    replica.refresh()
    insert(primary)
    damaged = []

    def damage_once(file, offset, data):
        if not damaged:
            damaged.append(file)
            return data[:200] + bytes(20) + data[220:]
        return data

    script.on_read = damage_once
    assert replica.refresh()
    assert damaged
    assert pages_are_right(primary, replica)


def test_a_file_under_a_wrong_name_is_refused(world):
    primary, script, replica = world
    replica.refresh()
    insert(primary, upload=False)
    insert(primary, upload=False)
    put(script, 2, primary.file_bytes(3, 3))
    with pytest.raises(LTXFormatError, match="the name says otherwise") as caught:
        replica.refresh()
    assert "renamed" in caught.value.hint


def test_a_text_file_that_is_named_like_an_ltx_file_is_refused(world):
    _, script, replica = world
    replica.refresh()
    put(script, 2, b"These are notes, not transactions.\n" * 20)
    with pytest.raises(LTXFormatError, match="not an LTX file") as caught:
        replica.refresh()
    assert caught.value.hint
    assert replica.snapshot.txid == 1


def test_a_file_of_another_page_size_is_refused(world):
    primary, script, replica = world
    replica.refresh()
    with Primary(script.writer, page_size=8192) as other:
        other.run("CREATE TABLE t(x)")
        other.run("INSERT INTO t VALUES(1)")
        other.upload()
    with pytest.raises(LTXFormatError, match="page size changes from 4096 to 8192") as caught:
        replica.refresh()
    assert "two databases" in caught.value.hint
    assert pages_are_right(primary, replica)


@pytest.mark.plan("L10")
def test_a_failing_listing_leaves_the_state_as_it_is(world):
    primary, script, replica = world
    replica.refresh()
    insert(primary)

    def fail(level, files):
        raise TransientStorageError("no route to the moon")

    script.on_list = fail
    for _ in range(3):
        with pytest.raises(TransientStorageError):
            replica.refresh()
    assert replica.snapshot.txid == 1
    script.on_list = None
    assert replica.refresh()
    assert replica.snapshot.txid == 2


# --- stale listings ---------------------------------------------------------------------------------------------------


@pytest.mark.plan("L29", "E01")
def test_a_listing_that_hides_new_files_never_takes_the_state_back(world):
    primary, script, replica = world
    for _ in range(5):
        insert(primary)
    replica.refresh()
    for hidden in (6, 5, 3, 1):
        script.on_list = lambda level, files, hidden=hidden: [f for f in files if f.max_txid < hidden]
        if hidden > 1:
            replica.refresh()
        else:
            with pytest.raises(ReplicaEmptyError):  # which status, log and lag then show
                replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 0)
        assert pages_are_right(primary, replica)
    script.on_list = None
    insert(primary)
    assert replica.refresh()
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (7, 0)


@pytest.mark.plan("L29", "E01")
def test_a_stale_level_beside_a_fresh_one_never_takes_the_state_back(world):
    """Compaction writes its file after the newest level-0 file, and level 0 is listed as it was before."""
    primary, script, replica = world
    for _ in range(5):
        insert(primary)
    replica.refresh()
    written = primary.compact(1, 1, 4)
    script.store.put(script.writer.key(written), primary.file_bytes(1, 4), primary.timestamp_ms(60))  # S3: time of PUT
    script.on_list = lambda level, files: [f for f in files if level or f.max_txid < 5]
    replica.refresh()
    assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 0)
    assert pages_are_right(primary, replica)


@pytest.mark.plan("L29")
def test_a_listing_that_shows_deleted_files_does_no_harm(world):
    primary, script, replica = world
    for _ in range(4):
        insert(primary)
    replica.refresh()
    remembered = script.writer.list_files(0)
    primary.compact(1, 1, 5)
    primary.delete(0)
    insert(primary)
    script.on_list = lambda level, files: sorted(
        {*files, *(remembered if level == 0 else [])}, key=lambda f: f.min_txid
    )
    replica.refresh()
    assert replica.snapshot.txid == 6
    assert pages_are_right(primary, replica)


# --- files that vanish, states that are replaced ----------------------------------------------------------------------


@pytest.mark.plan("D05", "L08")
def test_pages_are_found_elsewhere_when_compaction_and_retention_took_their_files(world):
    primary, _, replica = world
    for _ in range(5):
        insert(primary)
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
    for _ in range(4):
        insert(primary)
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
    for _ in range(4):
        insert(primary)
    replica.refresh()
    assert pages_are_right(primary, replica)  # and in the cache
    primary.delete_all()
    with Primary(script.writer) as other:
        other.start_ms = primary.timestamp_ms(100)
        other.run("CREATE TABLE other AS SELECT randomblob(9000)")
        for _ in range(8):
            other.run("INSERT INTO other VALUES(randomblob(3000))")
        other.compact(1, 1, 3)
        other.compact(1, 4, 7)
        other.compact(0, 8, 8)
        other.compact(0, 9, 9)
        replica.refresh()
        assert replica.snapshot.txid == 9
        assert pages_are_right(other, replica)


@pytest.mark.plan("E03")
def test_a_replica_that_was_set_back_and_goes_on_differently_is_never_mixed(world):
    """Somebody restored the primary to an earlier state: the newest files go, other ones take their TXIDs."""
    primary, script, replica = world
    for _ in range(4):
        insert(primary)
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
    for _ in range(5):
        insert(primary)
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
    for _ in range(5):
        insert(primary)
    replica.refresh()
    kept = script.store.items()
    primary.delete_all()
    with Primary(script.writer) as other:
        other.start_ms = primary.timestamp_ms(100)
        other.run("CREATE TABLE t(x); CREATE TABLE u AS SELECT randomblob(20000) AS b")
        while other.txid < 6:
            other.run(INSERT)
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
    for _ in range(FETCHED_AT_ONCE - 5):
        insert(primary)
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
    for _ in range(4):
        insert(primary)
    replica.refresh()
    old = replica.snapshot
    listed = {level: script.writer.list_files(level) for level in stale_levels}
    primary.delete_all()
    with Primary(script.writer) as other:
        other.start_ms = primary.timestamp_ms(100)
        other.run(f"CREATE TABLE t(x); CREATE TABLE u AS SELECT randomblob({size}) AS b")
        while other.txid < files[-1][2]:
            other.run(INSERT)
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
    for _ in range(4):
        insert(primary)
    replica.refresh()
    insert(primary, upload=False)
    insert(primary)
    listed = script.writer.list_files(0)
    primary.delete_all()
    with Primary(script.writer) as other:
        other.start_ms = primary.timestamp_ms(100)
        other.run("CREATE TABLE t(x); CREATE TABLE u AS SELECT randomblob(20000) AS b")
        while other.txid < 8:
            other.run(INSERT)
        other.compact(1, 1, 3)
        other.compact(1, 4, 8)
        script.on_list = lambda level, found: listed if level == 0 else found
        replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (8, 1)
        assert pages_are_right(other, replica)


def older_database(primary: Primary, script: Script, *files: tuple[int, int, int]) -> Primary:
    """Another database, an hour older, in the place of `primary`: only these files, (level, min_txid, max_txid)."""
    primary.delete_all()
    other = Primary(script.writer)
    other.start_ms = primary.start_ms - 3_600_000
    other.run("CREATE TABLE t(x); CREATE TABLE u AS SELECT randomblob(20000) AS b")
    while other.txid < max(max_txid for _, _, max_txid in files):
        other.run(INSERT)
    for file in files:
        other.compact(*file)
    return other


@pytest.mark.plan("E03")
@pytest.mark.parametrize("files", [[(9, 1, 4)], [(9, 1, 6)], [(1, 1, 4)]], ids=["snapshot", "same name", "level 1"])
def test_pages_are_never_relocated_into_an_older_database_in_the_same_place(world, clock, files):
    """Nothing of it contradicts what is known, and nothing proves that it is the same."""
    primary, script, replica = world
    for _ in range(5):
        insert(primary)
    primary.compact(9, 1, 6)
    primary.delete(0)
    replica.refresh()
    with older_database(primary, script, *files) as other:
        for _ in range(2):
            with pytest.raises(ReplicaError, match="newest transactions are gone"):
                replica.refresh()
            with pytest.raises(PageUnavailableError, match="there is no newer state"):
                replica.pages.read(replica.snapshot, 3)
            assert replica.snapshot.files
        assert replica.status().state == "behind"
        clock.now_s += SET_BACK_AFTER_S
        replica.refresh()
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (files[0][2], 1)
        assert pages_are_right(other, replica)
        assert replica.status().state == "current"


@pytest.mark.plan("E03")
def test_a_replica_that_is_set_back_and_not_written_to_is_served_as_it_is_now(world, clock):
    primary, _, replica = world
    for _ in range(7):
        insert(primary)
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
    for _ in range(5):
        insert(primary)
    replica.refresh()
    script.on_list = lambda level, files: [f for f in files if f.max_txid < 4]
    for _ in range(3):
        replica.refresh()
        clock.now_s += SET_BACK_AFTER_S
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (6, 0)


def test_a_damaged_newest_file_does_not_keep_pages_from_being_found_elsewhere(world):
    primary, script, replica = world
    for _ in range(3):
        insert(primary)
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


def test_a_transaction_that_passes_level_0_between_two_looks_is_seen_by_whoever_asks(world, clock):
    """The poller may take 15 seconds where level 0 is empty, but not somebody who wants to know now."""
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
    for _ in range(3):
        insert(primary)
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
def test_files_that_were_copied_anew_are_the_same_replica(world, level):
    """A replica that was moved or restored keeps its names and content; times and etags are new."""
    primary, script, replica = world
    for _ in range(3):
        insert(primary)
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


# --- fixed states -----------------------------------------------------------------------------------------------------


def test_every_state_that_files_make_can_be_viewed_and_no_other(world):
    primary, _, replica = world
    for _ in range(6):
        insert(primary)
    primary.compact(1, 1, 4)
    primary.delete(0, range(1, 5))
    for txid in (4, 5, 6, 7):
        view = replica.view(txid=txid)
        assert (view.txid, view.commit * 4096) == (txid, len(primary.images[txid]))
        for pgno in range(1, view.commit + 1):
            assert replica.pages.read(view, pgno) == primary.page(pgno, txid)
    for txid in (1, 3, 8):
        with pytest.raises(TXIDNotFoundError):
            replica.view(txid=txid)


def test_change_counters_of_views_and_live_states_never_meet(world):
    """SQLite keeps its page cache while the counter is the same: two states with one counter would mix."""
    primary, _, replica = world
    insert(primary)
    primary.compact(1, 1, 2)
    primary.delete(0, [1, 2])
    replica.refresh()  # one file: live counter 1
    live = replica.snapshot
    primary.commit("UPDATE u SET b = zeroblob(20000)")
    primary.commit("UPDATE u SET b = randomblob(20000)")
    replica.refresh()
    pinned = replica.snapshot
    primary.compact(2, 1, 4)
    primary.delete(0)
    primary.delete(1)
    for pgno in range(1, pinned.commit + 1):  # makes the state again from its new file
        assert replica.pages.read(pinned, pgno) == primary.page(pgno, 4)
    view = replica.view(txid=4)
    assert view.change_counter not in {live.change_counter, live.change_counter + 1}
    assert len({live.change_counter, pinned.change_counter, view.change_counter}) == 3


@pytest.mark.plan("L20")
def test_an_empty_replica_has_no_view(world):
    primary, _, replica = world
    primary.delete_all()
    with pytest.raises(ReplicaEmptyError):
        replica.view(txid=1)
