"""Litestream's own VFS in the same situations: nothing is asserted of it but that it ran, and all of it is recorded."""

from __future__ import annotations

import pytest

from tests.peer.adapters import ReaderDied, ReaderError, ReaderHangs
from tests.peer.conftest import MakeWorld
from tests.peer.record import PAGE, Record, shown, table
from tests.peer.situations import SITUATIONS, Situation
from tests.peer.world import failed


def _parameter(situation: Situation) -> object:
    marks = [pytest.mark.s3] if situation.storage == "s3" else []
    return pytest.param(situation, id=f"{situation.key}: {situation.title}", marks=marks)


@pytest.mark.soak  # it asserts nothing of litevfs: `-m peer` asks for it
@pytest.mark.peer
@pytest.mark.parametrize("situation", [_parameter(s) for s in SITUATIONS])
def test_what_litestreams_vfs_does_is_recorded(
    situation: Situation, make_world: MakeWorld, record: Record, peer_version: str
) -> None:
    try:
        outcome = situation.run(make_world(situation, "peer"))
    except (ReaderError, ReaderHangs, ReaderDied) as error:
        outcome = failed(error)
    record.peer_version = peer_version
    record.add(situation.key, "peer", outcome)
    print(f"{situation.key}: {outcome.verdict}: {outcome.answer}")
    assert outcome.answer


def test_readme_shows_the_recorded_comparison() -> None:
    """`python -m tests.peer.record` puts it there."""
    assert shown(PAGE.read_text()) == table(Record.read())


def test_the_record_is_of_these_situations_and_of_a_litevfs_that_was_right() -> None:
    record = Record.read()
    assert record.is_complete
    assert set(record.outcomes) == {situation.key for situation in SITUATIONS}
    assert all(both["litevfs"].verdict == "right" for both in record.outcomes.values())
