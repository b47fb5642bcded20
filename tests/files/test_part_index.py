"""A page index that is read in part, against the whole one: the same places or an error, and how much is read of it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import closing
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from litevfs.errors import LTXFormatError
from litevfs.files.fetch import Fetcher
from litevfs.files.part_index import PART_BYTES, WINDOW_BYTES, PartIndex, open_part
from litevfs.files.ranges import Range
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.ltx.format import Header, lock_pgno
from litevfs.ltx.page_index import PageIndex, encode_entries, page_index_from_frames
from tests.primary import Primary
from tests.scripted import Script, ScriptedClient

pytestmark = pytest.mark.slow

PAGE_SIZE = 65536
LOCK = lock_pgno(PAGE_SIZE)


class World:
    """A snapshot's index, and what is read of it."""

    def __init__(self, sizes: Sequence[int], damage: dict[int, int] | None = None) -> None:
        pgnos = [pgno for pgno in range(1, len(sizes) + 2) if pgno != LOCK][: len(sizes)]
        self.index: PageIndex = page_index_from_frames(array("I", pgnos), array("I", sizes))
        self.data = bytearray(encode_entries(self.index))
        self.size = len(self.data)
        for position, bits in (damage or {}).items():
            self.data[position % self.size] ^= bits
        self.reads: list[Range] = []
        header = Header(page_size=PAGE_SIZE, commit=pgnos[-1], min_txid=1, max_txid=7, timestamp_ms=0, flags=2)
        end = int(self.index.offsets[-1]) + int(self.index.sizes[-1])
        self.part = PartIndex(header, 1000, 1000 + self.size, end, self._read)

    def _read(self, ranges: Sequence[Range]) -> list[bytes]:
        self.reads += ranges
        return [bytes(self.data[offset - 1000 : offset - 1000 + size]) for offset, size in ranges]

    def check(self, entries: Sequence[int]) -> None:
        """Look these entries up together, and compare."""
        offsets, sizes = self.part.find(self.index.pgnos[list(entries)].tolist())
        assert np.array_equal(offsets, self.index.offsets[list(entries)])
        assert np.array_equal(sizes, self.index.sizes[list(entries)])

    @property
    def read_bytes(self) -> int:
        return sum(size for _, size in self.reads)


def sizes_of(seed: int, count: int, kind: str) -> list[int]:
    random = Random(seed)
    if kind == "equal":
        return [4106] * count
    if kind == "like a database's":
        return [random.choice([40, 900, 2000, 2100, 4106]) for _ in range(count)]
    # the first half nothing, the second incompressible: as far from even as it can be
    return [40] * (count // 2) + [65_000] * (count - count // 2)


_kinds = st.sampled_from(["equal", "like a database's", "uneven"])


@settings(max_examples=40)
@given(st.integers(0, 9), st.integers(1, 30_000), _kinds, st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_places_are_those_of_the_whole_index(seed, count, kind, wanted):
    world = World(sizes_of(seed, count, kind))
    for single in wanted[:3]:
        world.check([single % count])
    world.check([entry % count for entry in wanted])
    before = world.read_bytes
    world.check([entry % count for entry in wanted])
    assert world.read_bytes == before


@settings(max_examples=60)
@given(
    st.integers(0, 9),
    st.integers(50, 5_000),
    _kinds,
    st.lists(st.integers(0, 10**6), min_size=1, max_size=30),
    st.dictionaries(st.integers(0, 10**5), st.integers(1, 255), max_size=3),
)
def test_damage_is_an_error_or_lies_elsewhere(seed, count, kind, wanted, damage):
    world = World(sizes_of(seed, count, kind), damage)
    for entries in ([wanted[0]], wanted):
        try:
            world.check([entry % count for entry in entries])
        except LTXFormatError as error:
            assert error.min_txid == 1


def test_damage_on_the_way_is_read_again():
    world = World(sizes_of(1, 20_000, "like a database's"))
    sound = encode_entries(world.index)
    world.data[:] = bytes(world.size)

    def mend(ranges: Sequence[Range]) -> list[bytes]:
        answer = World._read(world, ranges)
        world.data[:] = sound
        return answer

    world.part._read = mend
    world.check([10_000])
    assert len(world.reads) == 2


@pytest.mark.parametrize(("kind", "windows"), [("equal", 1), ("like a database's", 2)])
def test_scattered_entries_cost_a_window_each(kind, windows):
    count = 250_000  # a database of 1 GB
    world = World(sizes_of(3, count, kind))
    world.check(range(5, count, count // 100))
    assert world.read_bytes <= 101 * windows * WINDOW_BYTES
    assert world.read_bytes < world.size / 20


def test_entries_that_are_wanted_one_by_one_bring_more_and_more():
    count = 250_000
    world = World(sizes_of(3, count, "like a database's"))
    for entry in range(count):
        world.check([entry]) if entry % 50 == 0 else None
    assert len(world.reads) < 60 + world.size // PART_BYTES
    assert world.read_bytes < 1.5 * world.size


def test_many_entries_bring_the_whole_index_once():
    count = 100_000
    world = World(sizes_of(3, count, "like a database's"))
    world.check(range(0, count, 20))
    assert world.read_bytes == world.size


def test_a_database_larger_than_its_lock_page():
    world = World([50] * (LOCK + 500))
    for entry in (LOCK - 3, LOCK - 2, LOCK - 1, LOCK, LOCK + 1, LOCK + 499):
        world.check([entry])
    world.check(range(LOCK - 40, LOCK + 40))


@pytest.mark.parametrize("read", [0, 1])
def test_a_size_of_the_database_that_is_read_wrong_once_is_not_believed(read: int):
    with Script(block_size=1 << 14) as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t (x); INSERT INTO t VALUES (randomblob(300000))")
        primary.commit("UPDATE t SET x = randomblob(300000)")
        file = primary.compact(9, 1, 2)
        with closing(Fetcher(ScriptedClient(script), read_timeout_s=5.0)) as fetcher:
            header, _, index = open_part(lambda: fetcher, file)
            assert header.commit * primary.page_size == len(primary.images[2])
            assert index.find([1])[0].tolist() == [100]
            reads: list[int] = []

            def damage(_: LTXFileInfo, offset: int, data: bytes) -> bytes:
                if offset == 0:
                    reads.append(len(data))
                return data[:15] + bytes([data[15] ^ 1]) + data[16:] if offset == 0 and len(reads) - 1 == read else data

            script.on_read = damage
            with pytest.raises(LTXFormatError, match="another header"):
                open_part(lambda: fetcher, file)
