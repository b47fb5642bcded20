"""How a subscription ends: what is not called any more, and what it leaves behind."""

from __future__ import annotations

import threading

import pytest

import litevfs
from litevfs.live.replica import Replica
from litevfs.live.subscription import Subscription
from litevfs.options import Options
from tests.primary import Primary
from tests.scripted import Script
from tests.support import connected, wait_until

INSERT = "INSERT INTO t VALUES(1)"


@pytest.fixture
def world():
    """A primary with one transaction, and its storage."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        yield primary, script


@pytest.mark.plan("K07")
def test_transactions_that_wait_behind_a_slow_call_are_not_reported_after_the_end(world):
    primary, script = world
    heard: list[int] = []
    may_go_on = threading.Event()

    def call_slowly(txid: int) -> None:
        heard.append(txid)
        assert may_go_on.wait(10)

    subscription = litevfs.subscribe(script.url, call_slowly, poll_interval="2ms")
    for _ in range(3):
        primary.commit(INSERT)
    wait_until(lambda: heard and subscription._replica.snapshot.txid == 4)
    subscription.close()
    may_go_on.set()
    subscription._thread.join(10)
    assert not subscription._thread.is_alive()
    assert heard == [2]


@pytest.mark.plan("K07")
def test_closing_waits_for_a_call_under_way(world):
    primary, script = world
    began, ended = threading.Event(), threading.Event()

    def call_slowly(_: int) -> None:
        began.set()
        wait_until(lambda: subscription._closed, "the close")
        threading.Event().wait(0.05)
        ended.set()

    subscription = litevfs.subscribe(script.url, call_slowly, poll_interval="2ms")
    subscription.close_timeout_s = 60
    primary.commit(INSERT)
    assert began.wait(20)
    subscription.close()
    assert ended.is_set()


@pytest.mark.plan("K07")
def test_a_subscriber_may_end_its_own_subscription(world, caplog):
    primary, script = world
    heard: list[int] = []

    def hear_once(txid: int) -> None:
        heard.append(txid)
        subscription.close()

    subscription = litevfs.subscribe(script.url, hear_once, poll_interval="2ms")
    for _ in range(3):
        primary.commit(INSERT)
    subscription._thread.join(10)
    assert not subscription._thread.is_alive()
    assert heard == [2]
    assert "failed" not in caplog.text


@pytest.mark.plan("K07")
def test_a_replica_that_goes_on_keeps_nothing_for_a_subscription_that_ended(world):
    primary, script = world
    told: list[int] = []
    with connected(script.url, poll_interval=0) as con:
        subscription = litevfs.subscribe(script.url, lambda txid: None, poll_interval=0)
        replica: Replica = subscription._replica
        subscription.close()
        replica.add_listener(told.append)
        primary.commit(INSERT)
        litevfs.wait_for(con, 2, 10)
        assert told == [2]
        assert subscription._txids.qsize() == 0


def test_a_filter_that_fails_ends_no_subscription(world, caplog):
    primary, script = world
    heard: list[int] = []

    def fail(*_: object) -> bool:
        raise MemoryError

    with Subscription(Options.of(script.url, {"poll_interval": "2ms"}), heard.append, fail):
        for txid in (2, 3):
            primary.commit(INSERT)
            wait_until(lambda txid=txid: heard[-1:] == [txid], "the report of a transaction")
    assert {record.exc_info[0] for record in caplog.records if record.exc_info} == {MemoryError}
