"""Polls that ask for the next file by its name: what they cost, and what shows that listings have to do it instead."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from litevfs.errors import LTXFormatError, StoragePermissionError, TransientStorageError
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.replica_clients.base import LTXFileInfo
from tests.primary import Primary
from tests.scripted import ALL_LEVELS, Script
from tests.states.support import published
from tests.support import wait_until

INSERT = "INSERT INTO t VALUES(randomblob(300))"


@pytest.fixture
def world(clock):
    """A primary with six transactions on a storage where requests cost, and a replica that has them."""
    with Script(lists_levels=True, reads_named=True, block_size=4096) as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        for _ in range(5):
            primary.commit(INSERT)
        replica = Replica(Options(replica_url=script.url, read_timeout_s=5.0), clock=clock)
        replica.refresh()
        script.clear()
        yield primary, script, replica
        replica.close()


def poll(replica: Replica, clock, times: int = 1) -> None:
    for _ in range(times):
        clock.now_s += 1
        replica.refresh(thorough=False)


def test_a_minute_without_news_costs_a_read_a_poll_and_four_listings(world, clock):
    _, script, replica = world
    poll(replica, clock, 60)
    assert script.names == [7] * 60
    assert dict(script.lists) == {ALL_LEVELS: 4}
    assert script.reads == []
    assert (replica.fetcher.counters.list, replica.status().state) == (5, "current")


def test_a_storage_that_is_down_gets_two_requests_a_poll_and_none_goes_on(world, clock):
    """The proof beside the next file is not tried again by itself: each poll would leave a thread at that."""
    primary, script, replica = world
    primary.commit(INSERT)
    poll(replica, clock)

    def refuse(*_: object) -> bool:
        raise TransientStorageError("down")

    script.clear()
    script.on_name = script.on_read = refuse
    for _ in range(5):
        with pytest.raises(TransientStorageError):
            poll(replica, clock)
    wait_until(lambda: len(script.reads) == 5, "the proofs")
    assert replica.fetcher.counters.retries == 0
    script.on_name = None  # what follows is there, the proof fails once
    errors = [TransientStorageError("once")]

    def fail_once(file: LTXFileInfo, offset: int, data: bytes) -> bytes:
        if file.max_txid == replica.snapshot.txid and errors:
            raise errors.pop()
        return data

    script.on_read = fail_once
    primary.commit(INSERT)
    poll(replica, clock)
    assert replica.snapshot.txid == primary.txid


def test_a_minute_with_news_costs_no_further_listing(world, clock):
    primary, script, replica = world
    for _ in range(60):
        primary.commit(INSERT)
        poll(replica, clock)
        assert replica.snapshot.txid == primary.txid
    assert dict(script.lists) == {ALL_LEVELS: 4}
    assert len(script.names) == 2 * 60  # of each commit the file, and that there is no further one
    assert {(size, offset) for _, offset, size in script.reads} == {(100, 0)}  # the proof: a header
    assert published(replica) == primary.images[66]
    assert replica.snapshot.epoch == 0


def test_many_new_files_are_all_there_after_one_poll(world, clock):
    primary, script, replica = world
    for _ in range(25):
        primary.commit(INSERT)
    poll(replica, clock)
    assert replica.snapshot.txid == 31
    assert not script.lists
    assert published(replica) == primary.images[31]


def test_files_found_by_name_are_the_same_when_they_are_listed(world, clock):
    """Though the time of their write is known to a second only, then."""
    primary, script, replica = world
    primary.commit(INSERT)
    poll(replica, clock)
    script.clear()
    poll(replica, clock, 40)
    assert dict(script.lists) == {ALL_LEVELS: 2}  # none of them followed by a look at what is unknown
    wait_until(lambda: len(script.reads) >= 10, "the proofs, which no poll without news waits for")
    assert {(key, size) for key, _, size in script.reads} == {(f"0/{7:016x}-{7:016x}.ltx", 100)}
    assert len(script.reads) == 10  # for so long, the primary may be busy


def test_a_file_that_is_too_large_for_one_request_is_read_by_its_ends(world, clock):
    primary, _, replica = world
    primary.commit("CREATE TABLE large AS SELECT randomblob(3000000)")
    primary.commit(INSERT)
    poll(replica, clock)
    assert replica.snapshot.txid == 8
    assert published(replica) == primary.images[8]


def test_a_damaged_file_is_told_until_it_is_whole(world, clock):
    primary, script, replica = world
    primary.run(INSERT)
    script.store.put(f"0/{7:016x}-{7:016x}.ltx", primary.file_bytes(7, 7)[:-40], 0)
    for _ in range(3):
        with pytest.raises(LTXFormatError) as caught:
            poll(replica, clock)
        assert (caught.value.level, caught.value.min_txid) == (0, 7)
        assert (replica.snapshot.txid, replica.status().state) == (6, "behind")
    primary.upload()
    poll(replica, clock)
    assert replica.snapshot.txid == 7
    assert published(replica) == primary.images[7]


def test_the_next_file_of_another_replica_is_not_taken_where_there_are_no_etags(clock):
    """The newest file has its name and size there, too: the time in its header tells them apart."""
    with Script(lists_levels=True, reads_named=True, block_size=4096) as script, Primary(script.writer) as primary:
        script.on_list = lambda _, files: [replace(file, etag="") for file in files]
        primary.commit("CREATE TABLE t(x)")
        primary.commit("INSERT INTO t VALUES('mine')")
        replica = Replica(Options(replica_url=script.url, read_timeout_s=5.0), clock=clock)
        replica.refresh()
        with Primary(script.writer) as other:
            other.start_ms = primary.timestamp_ms(100)
            other.run("CREATE TABLE t(x)")
            other.run("INSERT INTO t VALUES('your')")
            sizes = [len(one.file_bytes(2, 2)) for one in (primary, other)]
            other.run("CREATE TABLE other(x)")
            primary.delete_all()
            for txid in (1, 2, 3):
                other.upload(txid)
            assert sizes[0] == sizes[1]
            poll(replica, clock)
            assert (replica.snapshot.txid, replica.snapshot.epoch) == (3, 1)
            assert published(replica) == other.images[3]
        replica.close()


# --- when names are of no use -----------------------------------------------------------------------------------------


def test_a_storage_that_refuses_to_tell_is_asked_once(world, clock):
    primary, script, replica = world

    def refuse(txid, is_there):
        raise StoragePermissionError("403")

    script.on_name = refuse
    poll(replica, clock, 5)
    assert len(script.names) == 1
    assert script.lists[0] == 5
    primary.commit(INSERT)
    poll(replica, clock)
    assert replica.snapshot.txid == 7


def test_a_file_of_several_transactions_is_found_in_time_and_ends_it(world, clock):
    primary, script, replica = world
    for _ in range(3):
        primary.run(INSERT)
    primary.compact(0, 7, 9)
    poll(replica, clock, 15)
    assert replica.snapshot.txid == 9
    script.clear()
    primary.run(INSERT)
    primary.run(INSERT)
    primary.compact(0, 10, 11)
    poll(replica, clock)
    assert (replica.snapshot.txid, script.names) == (11, [])
    assert published(replica) == primary.images[11]


def test_a_cache_that_remembers_misses_is_noticed(world, clock):
    primary, script, replica = world
    missed: set[int] = set()

    def say(txid, is_there):
        if not is_there:
            missed.add(txid)
        return is_there and txid not in missed

    script.on_name = say
    seconds = []
    for _ in range(4):
        poll(replica, clock, 3)
        primary.commit(INSERT)
        polls = 0
        while replica.snapshot.txid < primary.txid:
            poll(replica, clock)
            polls += 1
            assert polls <= 15
        seconds.append(polls)
    assert seconds[2:] == [1, 1]
    assert published(replica) == primary.images[10]


@pytest.mark.parametrize("is_busy", [False, True])
def test_the_next_file_of_another_database_in_the_same_place_is_not_taken(world, clock, is_busy):
    """Where the primary was busy, the proof is asked for at the same time."""
    primary, script, replica = world
    if is_busy:
        primary.commit(INSERT)
        poll(replica, clock)
    primary.delete_all()
    with Primary(script.writer) as other:
        other.start_ms = primary.timestamp_ms(100)
        other.commit("CREATE TABLE t(x)")
        for _ in range(8):
            other.commit("INSERT INTO t VALUES(zeroblob(3000))")
        poll(replica, clock)
        assert (replica.snapshot.txid, replica.snapshot.epoch) == (9, 1)
        assert published(replica) == other.images[9]


def test_the_status_says_what_the_pace_of_requests_costs_a_month(world):
    _, _, replica = world
    counters = replica.fetcher.counters
    counters.list, counters.get, counters.began = 4 * 60, 60 * 60, time.monotonic() - 3600
    assert replica.status().requests_usd_month == pytest.approx(1.9, abs=0.01)  # by listings alone: 12.96
    counters.list, counters.get = 60 * 60, 0
    assert replica.status().requests_usd_month == pytest.approx(12.96, abs=0.01)
