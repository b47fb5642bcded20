"""`QuickReads`: the same pages, counts and errors as by way of `PageSource.read`, whatever is unusual about a page."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from litevfs.errors import LTXFormatError, PageUnavailableError, StorageError
from litevfs.live.replica import Replica
from litevfs.options import Options
from litevfs.pages.quick_reads import QuickReads
from litevfs.replica_clients.file import FileReplicaClient
from tests.primary import Primary

FILL = (
    "CREATE TABLE t(id INTEGER PRIMARY KEY, s TEXT);"
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
    "INSERT INTO t SELECT i, hex(randomblob(40)) FROM n"
)
LARGE = FILL.replace("2000", "20000")
"""A file that is not read whole to open it: its frames have no checks."""


@pytest.fixture
def primary(tmp_path):
    with Primary(FileReplicaClient(tmp_path / "replica")) as primary:
        yield primary


def opened(primary: Primary, **options: object) -> Replica:
    values = {"cache_size_bytes": 200_000} | options
    replica = Replica(Options(replica_url=str(primary.client.root), **values))
    replica.refresh()
    return replica


def quick_reads(replica: Replica) -> QuickReads:
    reads = replica.pages.reads()
    assert isinstance(reads, QuickReads)
    return reads


def flip(primary: Primary, replica: Replica, pgno: int, at: int) -> None:
    """Change a byte of the frame of a page, in the folder."""
    number, offset, _ = replica.snapshot.place(pgno)
    with Path(primary.client.key(replica.snapshot.files[number])).open("r+b") as file:
        file.seek(offset + at)
        byte = file.read(1)[0]
        file.seek(offset + at)
        file.write(bytes([byte ^ 0x55]))


@pytest.mark.parametrize("fill", [FILL, LARGE], ids=["checked", "unchecked"])
def test_pages_in_any_order_are_those_of_the_primary(primary, fill):
    primary.commit(fill)
    primary.commit("UPDATE t SET s = 'x' WHERE id % 100 = 1")
    replica = opened(primary)
    reads, snapshot = quick_reads(replica), replica.snapshot
    rng = random.Random(1)
    pgnos = [rng.randrange(1, snapshot.commit + 1) for _ in range(3000)] + list(range(1, snapshot.commit + 1))
    for pgno in pgnos:
        assert reads.read(snapshot, pgno) == primary.page(pgno)
    assert replica.fetcher.counters.get <= replica.pages.counters.misses + 4  # what opening has read
    assert 0 < replica.pages.memory_bytes <= 200_000
    replica.close()


@pytest.mark.parametrize("at", [3, 5, 9, 40], ids=["page number", "flags", "size", "block"])
@pytest.mark.parametrize("fill", [FILL, LARGE], ids=["checked", "unchecked"])
def test_a_damaged_frame_is_read_again_and_then_an_error_that_names_its_file(primary, fill, at):
    primary.commit(fill)
    replica = opened(primary)
    reads, snapshot = quick_reads(replica), replica.snapshot
    assert reads.read(snapshot, 9) == primary.page(9)  # the file is open now
    flip(primary, replica, 5, at)
    reread = replica.pages.counters.reread
    if fill is LARGE and at == 40:  # the format has no check of a page: what LZ4 makes of it, if anything
        try:
            assert len(reads.read(snapshot, 5)) == snapshot.page_size
        except LTXFormatError:
            pass
    else:
        with pytest.raises(LTXFormatError) as caught:
            reads.read(snapshot, 5)
        assert caught.value.key
        assert replica.pages.counters.reread == reread + 1
    assert reads.read(snapshot, 12) == primary.page(12)
    replica.close()


def test_a_file_cut_short_while_it_is_open_is_an_error(primary):
    primary.commit(LARGE)
    replica = opened(primary, read_timeout_s=0.3)
    reads, snapshot = quick_reads(replica), replica.snapshot
    assert reads.read(snapshot, 9) == primary.page(9)
    number, offset, _ = snapshot.place(snapshot.commit)
    with Path(primary.client.key(snapshot.files[number])).open("r+b") as file:
        file.truncate(offset + 20)
    with pytest.raises((StorageError, LTXFormatError)):
        reads.read(snapshot, snapshot.commit)
    assert reads.read(snapshot, 12) == primary.page(12)
    replica.close()


def test_a_file_that_is_deleted_serves_its_pages_while_it_is_open(primary):
    primary.commit(LARGE)
    replica = opened(primary)
    reads, snapshot = quick_reads(replica), replica.snapshot
    reads.read(snapshot, 9)
    primary.delete_all()
    assert reads.read(snapshot, 30) == primary.page(30)
    replica.close()


@pytest.mark.parametrize("pgno", [0, -1, 10**9])
def test_a_page_outside_of_the_database_is_refused(primary, pgno):
    primary.commit(FILL)
    replica = opened(primary)
    with pytest.raises(PageUnavailableError):
        quick_reads(replica).read(replica.snapshot, pgno)
    replica.close()


def test_a_closed_replica_reads_nothing(primary):
    primary.commit(LARGE)
    replica = opened(primary)
    reads, snapshot = quick_reads(replica), replica.snapshot
    reads.read(snapshot, 9)
    replica.close()
    with pytest.raises(StorageError, match="closed"):
        reads.read(snapshot, 30)


def test_a_hydrated_replica_is_read_by_way_of_its_file(primary, tmp_path):
    primary.commit(FILL)
    replica = opened(primary, hydration_enabled=True, hydration_path=str(tmp_path / "hydrated"))
    assert not isinstance(replica.pages.reads(), QuickReads)
    replica.close()
