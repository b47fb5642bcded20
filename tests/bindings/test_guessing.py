"""Queries whose next pages are guessed, on a line that carries much in a round trip: fewer trips, bounded bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from litevfs.files.line import Line
from tests.bindings import test_rehearsal
from tests.bindings.test_rehearsal import COUNT, LIKED, MUTUAL, POST, VALUES, reads_of, trips

pytestmark = test_rehearsal.pytestmark
network = test_rehearsal.network
TRIP_BYTES = 1_000_000
GUESS_BYTES = TRIP_BYTES // 2


@pytest.fixture(autouse=True)
def fast_line(monkeypatch) -> Iterator[None]:
    """As measured in a data centre; what opening reads stays small."""
    monkeypatch.setattr(Line, "trip_bytes", TRIP_BYTES)
    monkeypatch.setattr("litevfs.files.fetch.likely_head_bytes", lambda file, block_size, free_bytes: block_size)
    return None


@pytest.mark.parametrize(("sql", "most"), [(POST, 2), (COUNT, 2), (MUTUAL, 3), (LIKED, 4)])
def test_they_take_few_trips(network, sql, most):
    script, path = network
    assert trips(script, path, sql) <= most


@pytest.mark.parametrize("sql", ["SELECT * FROM posts WHERE id = 1234", COUNT])
def test_a_guess_costs_no_request_more_and_few_bytes(network, sql):
    script, _ = network
    values = VALUES if ":" in sql else ()
    requests, size = reads_of(script, sql, values)
    needed, needed_size = reads_of(script, sql, values, prefetch=False)
    assert requests <= needed
    assert size <= needed_size + GUESS_BYTES


@pytest.mark.parametrize("sql", ["SELECT * FROM posts WHERE id = 1234", COUNT, POST])
def test_nothing_is_guessed_on_a_line_that_carries_little_in_a_trip(network, monkeypatch, sql):
    script, _ = network
    monkeypatch.setattr(Line, "trip_bytes", 8000)
    values = VALUES if ":" in sql else ()
    assert reads_of(script, sql, values)[1] <= reads_of(script, sql, values, prefetch=False)[1] + 8000
