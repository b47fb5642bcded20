"""The world of most tests of a follower."""

from __future__ import annotations

import pytest

from litevfs.live.replica import Replica
from litevfs.options import Options
from tests.primary import Primary
from tests.scripted import Script


@pytest.fixture
def world(clock):
    """A primary, its storage, and a replica of it that is refreshed by hand."""
    with Script() as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x); CREATE TABLE u AS SELECT randomblob(20000) AS b")
        replica = Replica(Options(replica_url=script.url, read_timeout_s=0.2), clock=clock)
        yield primary, script, replica
        replica.close()
