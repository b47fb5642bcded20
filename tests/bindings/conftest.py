"""A small replica for every binding."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bindings.places import places
from tests.primary import Primary
from tests.scripted import Script


@pytest.fixture
def small() -> Iterator[tuple[Primary, Script]]:
    """A primary with one small table, and its storage."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        yield primary, script


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`places` knows where threads are."""
    places.follow(monkeypatch)
