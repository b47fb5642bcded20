"""How one state leads to the next: gaps, damage, stale listings, vanished and replaced files, and what it costs."""

from __future__ import annotations

import pytest

from litevfs.errors import LTXFormatError, ReplicaEmptyError, TransientStorageError, TXIDGapError, TXIDNotFoundError
from tests.primary import Primary
from tests.states.support import insert, pages_are_right, put

# --- cost -------------------------------------------------------------------------------------------------------------


def test_a_poll_without_news_is_one_listing_however_long_the_history(world):
    primary, script, replica = world
    insert(primary, 30)
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
    insert(primary, 4)
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
    insert(primary, 4)
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
    insert(primary, 7)
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
    insert(primary, 4)
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


def test_a_file_of_another_page_size_that_holds_a_part_is_refused(world):
    primary, script, replica = world
    replica.refresh()
    with Primary(script.writer, page_size=8192) as other:
        other.run("CREATE TABLE t(x); CREATE TABLE u(x)")
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
    insert(primary, 5)
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
    insert(primary, 5)
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
    insert(primary, 4)
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


# --- fixed states -----------------------------------------------------------------------------------------------------


def test_every_state_that_files_make_can_be_viewed_and_no_other(world):
    primary, _, replica = world
    insert(primary, 6)
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
