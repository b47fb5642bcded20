"""What a closed replica does not do any more, and what was under way in it when it was closed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from litevfs.errors import StorageClosedError
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.replica_clients.base import LTXFileInfo
from tests.primary import Primary
from tests.scripted import Script


@pytest.fixture
def world() -> Iterator[tuple[Primary, Script, Replica]]:
    """A primary, its storage, and a replica of it that is open and does not poll."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        replica = Replica(Options(replica_url=script.url))
        replica.open(10)
        primary.commit("INSERT INTO t VALUES(1)")
        yield primary, script, replica
        replica.close()


@contextmanager
def closed_during(call: Callable[[], Any], replica: Replica, script: Script) -> Iterator[Future[Any]]:
    """The call's future, once the replica was closed while its first read hung in storage and then came to its end."""
    hanging, go_on = threading.Event(), threading.Event()

    def hang(file: LTXFileInfo, offset: int, data: bytes) -> bytes:
        hanging.set()
        assert go_on.wait(60)
        return data

    script.on_read = hang
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        try:
            assert hanging.wait(20)
            replica.close()
        finally:
            go_on.set()
        yield future


def test_a_refresh_that_comes_to_its_end_after_the_close_publishes_nothing(world):
    _, script, replica = world
    heard: list[int] = []
    replica.add_listener(heard.append)
    before = replica.snapshot
    with closed_during(replica.refresh, replica, script) as look, pytest.raises(StorageClosedError):
        look.result(20)
    assert replica.snapshot is before
    assert heard == []


def test_a_caller_that_waits_for_a_refresh_is_told_of_the_close(world):
    _, script, replica = world
    with closed_during(lambda: replica.wait_for(2, 60), replica, script) as wait, pytest.raises(StorageClosedError):
        wait.result(20)


def test_nothing_is_asked_of_the_storage_after_the_close(world):
    _, script, replica = world
    replica.close()
    script.clear()
    for call in (replica.refresh, lambda: replica.view(txid=1), lambda: replica.wait_for(9, 5), replica.refresh_now):
        with pytest.raises(StorageClosedError):
            call()
    assert not script.lists
    assert script.reads == []


def test_a_caller_that_pauses_between_two_refreshes_is_woken_by_the_close(world):
    _, _, replica = world
    replica.refresh()
    pausing = threading.Event()
    wait = replica.wait_for_news

    def pause(known: Any, timeout_s: float) -> None:
        pausing.set()
        wait(known, 3600)

    replica.wait_for_news = pause
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(replica.wait_for, 9, 60)
        assert pausing.wait(20)
        replica.close()
        with pytest.raises(StorageClosedError):
            future.result(30)
