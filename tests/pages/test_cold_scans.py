"""Cold scans request each byte about once, whatever the caches hold and however large frames are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

import litevfs
from litevfs.files.fetch import Fetcher
from litevfs.files.governor import Governor
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.pages.btree import parse_interior
from litevfs.pages.source import PageSource
from tests.primary import Primary
from tests.scripted import Script, ScriptedClient
from tests.support import leave_lines_unmeasured

BLOCK_SIZE = 1 << 16


@pytest.fixture(scope="module")
def large_frames() -> Iterator[tuple[Script, Primary]]:
    """A table of 2,000 leaves, 8 MB, whose frames are about as large as its pages."""
    with Script(block_size=BLOCK_SIZE) as script, Primary(script.writer) as primary:
        primary.commit(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB);"
            "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 4000) "
            "INSERT INTO t SELECT i, randomblob(1800) FROM c"
        )
        yield script, primary


@pytest.mark.parametrize("cache_size", ["1MB", "2MB", "10MB"])
def test_what_a_cold_scan_reads_ahead_is_not_driven_out_before_its_use(large_frames, cache_size, monkeypatch):
    leave_lines_unmeasured(monkeypatch)
    script, _ = large_frames
    (file,) = script.writer.list_files(0)
    with closing(litevfs.connect(script.url, poll_interval=0, cache_size=cache_size)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        script.clear()
        assert connection.execute("SELECT count(*), sum(length(b)) FROM t").fetchall() == [(4000, 7_200_000)]
    assert sum(size for _, _, size in script.reads) <= 1.05 * file.size
    assert len(script.reads) <= 60


class CountingGovernor(Governor):
    """Counts what it refuses."""

    refused = 0

    def grant(self, size: int) -> bool:
        """See `Governor.grant`."""
        granted = super().grant(size)
        self.refused += not granted
        return granted


def _leaves(primary: Primary, pgno: int) -> list[int]:
    interior = parse_interior(pgno, primary.page(pgno))
    return (
        [pgno]
        if interior is None
        else [pgno, *(leaf for child in interior.children for leaf in _leaves(primary, child))]
    )


def test_a_cold_scan_plans_no_more_than_the_governor_grants(large_frames):
    script, primary = large_frames
    ((root,),) = primary.rows("SELECT rootpage FROM sqlite_schema")
    replica = Replica(Options(replica_url=script.url, poll_interval_s=0))
    replica.refresh()
    governor = CountingGovernor(1_000_000)
    fetcher = Fetcher(ScriptedClient(script), read_timeout_s=5)
    pages = PageSource(
        fetcher, lambda *_: pytest.fail("looked"), cache_size_bytes=64_000_000, prefetch=True, governor=governor
    )
    try:
        pages.follow(replica.snapshot)
        reads = pages.reads()
        for pgno in _leaves(primary, root):
            assert reads.read(replica.snapshot, pgno) == primary.page(pgno)
    finally:
        pages.close()
        fetcher.close()
        replica.close()
    assert governor.refused <= 1
