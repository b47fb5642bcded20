"""litevfs in the situations in which Litestream's own VFS errs: right rows, one state, few requests."""

from __future__ import annotations

import pytest

from tests.peer.conftest import MakeWorld
from tests.peer.record import Record
from tests.peer.situations import SITUATIONS, Situation


def _parameter(situation: Situation) -> object:
    marks = [pytest.mark.s3] if situation.storage == "s3" else []
    if situation.key.startswith("E"):
        marks.append(pytest.mark.plan(situation.key))
    return pytest.param(situation, id=f"{situation.key}: {situation.promise}", marks=marks)


@pytest.mark.parametrize("situation", [_parameter(s) for s in SITUATIONS])
def test_litevfs_is_right_where_litestreams_vfs_is_known_to_err(
    situation: Situation, make_world: MakeWorld, record: Record
) -> None:
    outcome = situation.run(make_world(situation, "litevfs"))
    record.add(situation.key, "litevfs", outcome)
    assert outcome.verdict == "right", f"{situation.title}: {outcome.answer}"
