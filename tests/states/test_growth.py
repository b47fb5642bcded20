"""A file that claims more pages than it can have: reader, verify, restore and compaction refuse it by the same rule.

Nothing is allocated for pages that only a header speaks of.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tracemalloc
from array import array
from pathlib import Path
from random import Random

import pytest

import litevfs
from litevfs.errors import LTXFormatError, LTXMissingPagesError
from litevfs.live.replica import Replica
from litevfs.ltx import compact, decode_file
from litevfs.ltx.decoder import tail_size_needed
from litevfs.ltx.encoder import encode_file
from litevfs.ltx.format import TRAILER_SIZE, Header, lock_pgno
from litevfs.ltx.page_index import page_index_from_frames
from litevfs.ltx.page_rules import PageOrder, check_growth, whole_from
from litevfs.maintenance.compaction import compact_level, snapshot
from litevfs.operations.restore import restore
from litevfs.options import Options
from litevfs.replica_clients.file import FileReplicaClient
from litevfs.states.snapshot import NumberedFile, empty_snapshot
from tests.histories import image_after
from tests.ltx.reference import page_of
from tests.scripted import Script
from tests.support import connected, one

ODD = Path(__file__).parents[1] / "fixtures" / "odd"
KINDS = ["huge-commit", "grown-without-pages"]
MEMORY_BYTES = 50 << 20


@pytest.fixture(params=KINDS)
def folder(request, tmp_path) -> Path:
    return Path(shutil.copytree(ODD / request.param, tmp_path / "replica"))


@pytest.fixture
def bounded_memory():
    """Fails a test in which Python holds more than MEMORY_BYTES at any time."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY_BYTES


@pytest.mark.usefixtures("bounded_memory")
def test_opening_refuses_it_and_the_state_before_stays_readable(folder):
    with pytest.raises(LTXMissingPagesError, match=r"page (1000|2147483648) is in no file") as caught:
        litevfs.connect(folder, open_timeout="5s")
    assert (caught.value.level, caught.value.min_txid, caught.value.max_txid) == (0, 2, 2)
    assert caught.value.key
    assert "txid=0000000000000001" in str(caught.value)
    with connected(folder, txid=1) as connection:
        assert one(connection, "PRAGMA integrity_check") == "ok"


@pytest.mark.usefixtures("bounded_memory")
def test_an_open_reader_stays_where_it_is_and_says_why(folder):
    second = next(folder.glob("ltx/0/*2.ltx"))
    data = second.read_bytes()
    second.unlink()
    with connected(folder, poll_interval=0) as connection:
        second.write_bytes(data)
        with pytest.raises(LTXMissingPagesError):
            one(connection, "PRAGMA litestream_poll")
        assert one(connection, "PRAGMA litestream_txid") == "0000000000000001"
        status = one(connection, "PRAGMA litestream_status")
        assert '"behind"' in status
        assert "is in no file" in status
        assert one(connection, "PRAGMA integrity_check") == "ok"


@pytest.mark.usefixtures("bounded_memory")
def test_restore_and_compaction_refuse_it_with_the_same_error(folder, tmp_path):
    client = FileReplicaClient(folder)
    calls = [
        lambda: restore(folder, tmp_path / "o.db"),
        lambda: compact_level(client, 1),
        lambda: snapshot(client),
    ]
    for call in calls:
        with pytest.raises(LTXMissingPagesError, match=r"page (1000|2147483648) is in no file"):
            call()
    client.close()
    assert not list(folder.glob("ltx/[1-9]/*"))
    assert restore(folder, tmp_path / "o.db", txid=1).txid == 1


_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from litevfs.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_verify_names_it_within_an_address_space_of_3_gb(kind):
    command = [sys.executable, "-c", _LIMITED, "verify", str(ODD / kind)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (1, "")
    assert "newest state: TXID 0000000000000001" in run.stdout
    assert " is in no file (level 0, TXIDs 0000000000000002-0000000000000002)" in run.stdout


# --- the rule ---------------------------------------------------------------------------------------------------------


def held_by(pgnos: set[int], commit: int, before: int, lock: int) -> bool:
    """The rule, page by page."""
    return all(pgno in pgnos or pgno == lock for pgno in range(before + 1, commit + 1))


@pytest.mark.parametrize("page_size", [512, 65536])
def test_the_rule_is_every_page_that_the_state_before_has_not(page_size):
    random, lock = Random(5), lock_pgno(page_size)
    for _ in range(600):
        commit = random.choice((random.randint(0, 12), lock + random.randint(-3, 4)))
        low = max(1, commit - 12)
        pgnos = sorted(p for p in range(low, commit + 1) if p != lock and random.random() < random.choice((0.5, 0.9)))
        header = Header(page_size, commit, 2, 2, 0)
        index = page_index_from_frames(array("I", pgnos), array("I", [20] * len(pgnos)))
        order = PageOrder(header)
        for pgno in pgnos:
            order.add(pgno)
        assert order.whole_from == whole_from(index, header)
        for before in range(max(0, low - 1), commit + 3):
            try:
                check_growth(header, whole_from(index, header), before)
                is_held = True
            except LTXMissingPagesError:
                is_held = False
            assert is_held == held_by(set(pgnos), commit, before, lock)


def file_of(commit: int, txid: int, pgnos: list[int]) -> bytes:
    """A file of one transaction whose pages say by which TXID they were written."""
    return encode_file(Header(512, commit, txid, txid, 0), [(n, page_of(n, 512, txid)) for n in pgnos])


def test_a_compaction_over_a_shrink_brings_back_no_older_page():
    """Of 10 pages 5 are cut off; the next file grows to 8 and lacks page 7, which only the first state had."""
    files = [file_of(10, 1, list(range(1, 11))), file_of(5, 2, [1]), file_of(8, 3, [1, 6, 8])]
    for first in (0, 1):
        with pytest.raises(LTXMissingPagesError, match="page 7 is in no file"):
            b"".join(compact([decode_file(data) for data in files[first:]]))
    cut = [*files[1:], file_of(6, 4, [1])]  # and so that the missing page does not count any more
    assert image_after(b"", files[0], b"".join(compact(list(map(decode_file, cut))))) == image_after(
        b"", files[0], *cut
    )


def test_a_missing_page_below_the_end_of_a_later_shrink_is_missing_still():
    cut = [file_of(5, 2, [1]), file_of(12, 3, [1, 6, *range(8, 13)]), file_of(8, 4, [1])]
    with pytest.raises(LTXMissingPagesError, match="page 7 is in no file"):
        b"".join(compact([decode_file(data) for data in cut]))


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("commit", [3, 2**20, 2**31, 2**32 - 1])
def test_a_snapshot_makes_no_room_before_it_has_checked(commit):
    data = file_of(2, 1, [1, 2])
    base = decode_file(data)
    with Script() as script:
        info = script.writer.write(0, 1, 1, data, 0)
    state = empty_snapshot().apply(NumberedFile(1, info, base.header, base.index))
    empty = page_index_from_frames(array("I"), array("I"))
    for index in (empty, page_index_from_frames(array("I", [1, commit]), array("I", [20, 20]))):
        if commit == 3 and len(index):
            continue  # which is all of it
        with pytest.raises(LTXMissingPagesError):
            state.apply(NumberedFile(2, info, Header(512, commit, 2, 2, 0), index))


def test_an_index_size_that_no_file_of_so_many_pages_has_is_refused_before_it_is_read():
    tail = (5 << 30).to_bytes(8, "big") + bytes(TRAILER_SIZE)
    with pytest.raises(LTXFormatError, match="of 1000 pages cannot have a page index of 5368709128 bytes"):
        tail_size_needed(tail, 10 << 30, Header(4096, 1000, 2, 2, 0))
    for size in (0, 2**63, 2**64 - 1):
        with pytest.raises(LTXFormatError):
            decode_file(file_of(2, 1, [1, 2])[: -TRAILER_SIZE - 8] + size.to_bytes(8, "big") + bytes(TRAILER_SIZE))


def test_a_large_file_with_a_flipped_bit_in_its_page_count_is_refused_by_its_ends_alone():
    """It is not read whole, so that no checksum speaks against it."""
    pages = [(n, Random(n).randbytes(4096)) for n in range(1, 400)]
    with Script() as script:
        script.writer.write(0, 1, 1, encode_file(Header(4096, 399, 1, 1, 0), pages), 0)
        grown = encode_file(Header(4096, 399, 2, 2, 0), pages)
        script.writer.write(0, 2, 2, grown[:12] + bytes([0x80]) + grown[13:], 0)
        replica = Replica(Options(replica_url=script.url, read_timeout_s=5.0))
        try:
            with pytest.raises(LTXMissingPagesError, match="from 399 to 2147484047 pages"):
                replica.refresh()
            assert sum(size or 0 for _, _, size in script.reads) < 3 * len(grown)
        finally:
            replica.close()
