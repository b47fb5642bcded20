"""Cold scans request each byte about once, whatever the caches hold and however large frames are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

import litevfs
from tests.primary import Primary
from tests.scripted import Script

BLOCK_SIZE = 1 << 16


@pytest.fixture(scope="module")
def large_frames() -> Iterator[Script]:
    """A table of 2,000 leaves, 8 MB, whose frames are about as large as its pages."""
    with Script(block_size=BLOCK_SIZE) as script, Primary(script.writer) as primary:
        primary.commit(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB);"
            "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 4000) "
            "INSERT INTO t SELECT i, randomblob(1800) FROM c"
        )
        yield script


@pytest.mark.parametrize("cache_size", ["1MB", "2MB", "10MB"])
def test_what_a_cold_scan_reads_ahead_is_not_driven_out_before_its_use(large_frames, cache_size):
    (file,) = large_frames.writer.list_files(0)
    with closing(litevfs.connect(large_frames.url, poll_interval=0, cache_size=cache_size)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        large_frames.clear()
        assert connection.execute("SELECT count(*), sum(length(b)) FROM t").fetchall() == [(4000, 7_200_000)]
    assert sum(size for _, _, size in large_frames.reads) <= 1.05 * file.size
    assert len(large_frames.reads) <= 60
