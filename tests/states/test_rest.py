"""Polls of a folder at rest: what shows for less than a listing that nothing has come."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from litevfs import local_files
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.states.survey import INTERVAL_S
from tests.primary import Primary
from tests.states.support import insert, pages_are_right

LONG_AGO_NS = 1_700_000_000 * 10**9


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def folder(tmp_path):
    """A primary, its replica and the clock, and a replica in a folder that has been at rest for long."""
    clock = Clock()
    with Primary(FileReplicaClient(tmp_path / "r")) as primary:
        primary.commit("CREATE TABLE t(x)")
        replica = Replica(Options(replica_url=f"file://{tmp_path}/r"), clock=clock)
        replica.refresh()
        yield primary, replica, clock
        replica.close()
        primary.client.close()


def level_0(replica: Replica) -> Path:
    client = replica.fetcher.client
    assert isinstance(client, FileReplicaClient)
    return client.root / "ltx" / "0"


def rest(replica: Replica, ns: int = LONG_AGO_NS) -> None:
    os.utime(level_0(replica), ns=(ns, ns))


def polled(replica: Replica, times: int = 1) -> int:
    """Listings that so many polls made."""
    before = replica.fetcher.counters.list
    for _ in range(times):
        replica.refresh(thorough=False)
    return replica.fetcher.counters.list - before


def test_polls_of_a_folder_at_rest_list_it_once(folder):
    primary, replica, _ = folder
    rest(replica)
    assert polled(replica, 10) == 1
    insert(primary)
    assert polled(replica) == 1
    assert replica.snapshot.txid == 2
    assert pages_are_right(primary, replica)
    assert replica.status().state == "current"


def test_a_folder_that_changed_a_moment_ago_is_listed(folder):
    """Its next change may have the same time."""
    _, replica, _ = folder
    assert polled(replica, 5) == 5


def test_a_thorough_refresh_lists_whatever_the_folder_says(folder):
    _, replica, _ = folder
    rest(replica)
    polled(replica, 2)
    before = replica.fetcher.counters.list
    replica.refresh()
    assert replica.fetcher.counters.list > before


def test_a_file_system_without_times_of_folders_delays_one_state_and_is_remembered(folder):
    primary, replica, clock = folder
    rest(replica)
    assert polled(replica, 2) == 1
    insert(primary)
    rest(replica)  # as if the folder had not changed
    assert polled(replica, 3) == 0
    assert replica.snapshot.txid == 1
    clock.s += INTERVAL_S
    polled(replica)
    assert replica.snapshot.txid == 2
    insert(primary)
    rest(replica)
    assert polled(replica) == 1
    assert replica.snapshot.txid == 3


def test_a_folder_that_is_gone_or_has_a_time_in_the_future_has_no_stamp(tmp_path):
    assert local_files.folder_stamp(tmp_path / "missing") is None
    later = 4_000_000_000 * 10**9
    os.utime(tmp_path, ns=(later, later))
    assert local_files.folder_stamp(tmp_path) is None
    os.utime(tmp_path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert local_files.folder_stamp(tmp_path) == local_files.folder_stamp(tmp_path) is not None
