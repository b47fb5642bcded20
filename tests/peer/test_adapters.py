"""What the comparison stands on: readers that hang, die or err are told apart, and old rows are recognized as such."""

from __future__ import annotations

import pytest

from tests.peer.adapters import Adapter, ReaderDied, ReaderError, ReaderHangs
from tests.peer.conftest import MakeWorld
from tests.peer.situations import SITUATIONS
from tests.peer.world import Outcome, World


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    world = make_world(SITUATIONS[0], "litevfs")
    world.create()
    world.update()
    return world


def test_an_answer_that_does_not_come_is_a_hang(world: World) -> None:
    reader = world.start(new=True)
    reader.call("open", options=world.options())
    with pytest.raises(ReaderHangs, match=r"no answer within 0\.2 s"):
        reader.call("wait", 0.2, txid=99, timeout_s=1.0)


def test_a_process_that_ends_is_told(world: World) -> None:
    reader = world.start(new=True)
    with pytest.raises(ReaderDied):
        reader.call("die")


def test_an_error_of_the_reader_is_told_by_type_and_text(world: World) -> None:
    world.open()
    with pytest.raises(ReaderError, match="SQLError: no such table: nowhere"):
        world.rows("SELECT * FROM nowhere")
    assert world.judge("SELECT * FROM nowhere") == Outcome("error", "SQLError: no such table: nowhere")


def test_a_reader_that_cannot_be_had_is_an_error() -> None:
    """Without the peer's package it says so; with it, this URL is refused, at which the peer may also crash."""
    with pytest.raises((ReaderError, ReaderDied)), Adapter("peer", "nowhere://"):
        pass


def test_rows_of_an_older_state_and_of_none_are_told_apart(world: World) -> None:
    world.open()
    assert world.judge()
    assert world.judge(txid=1) == Outcome("wrong", "rows of TXID 2 under TXID 2")
    world.primary.run("UPDATE t SET v = v + 1")  # not uploaded: the reader cannot know
    assert world.judge() == Outcome("wrong", "rows of TXID 2 under TXID 2")
    del world.primary.images[2]
    world.primary.images[2] = world.primary.images[1]
    assert world.judge() == Outcome("wrong", "rows that no state ever had, under TXID 2")
