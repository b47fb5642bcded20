"""Requests whose bytes are of use as they come: each part once it is whole, none that is not, whatever comes later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litevfs.errors import StorageClosedError, TransientStorageError
from litevfs.files.blocks import BlockReader
from litevfs.files.disk_cache import DiskCache
from litevfs.files.fetch import Fetcher
from litevfs.files.hedges import LEAST, LEAST_LATE_S, answers_of
from litevfs.files.under_way import Cutter, Part
from litevfs.files.write_behind import WriteBehind
from litevfs.replica_clients.base import LTXFileInfo, Take
from tests.files.test_blocks import BLOCK, CONTENT, SIZE
from tests.scripted import Script, ScriptedClient
from tests.support import wait_until

WHOLE = [(0, SIZE)]
BLOCKS = -(-SIZE // BLOCK)


class PiecesClient(ScriptedClient):
    """The client of a `Script` that gives bytes in pieces, each of which passes `on_piece` first."""

    def __init__(self, script: Script, piece_bytes: int, on_piece: Callable[[int, bytes], bytes]) -> None:
        super().__init__(script)
        self._piece_bytes, self._on_piece = piece_bytes, on_piece

    def read_pieces(
        self, file: LTXFileInfo, offset: int, size: int, take: Take, *, timeout_s: float | None = None
    ) -> int:
        """See `ReadsPieces`."""
        data, came = self.read(file, offset, size, timeout_s=timeout_s), 0
        for start in range(0, size, self._piece_bytes):
            piece = self._on_piece(offset + start, data[start : start + self._piece_bytes])
            came += len(piece)
            take(piece)
        return came


class World:
    """A file of BLOCKS blocks, all of which one request reads ahead; from piece to piece `on_piece` decides."""

    def __init__(self, *, piece_bytes: int = BLOCK, folder: Path | None = None) -> None:
        self.script = Script(block_size=BLOCK)
        self.file = self.script.writer.write(0, 1, 1, CONTENT, 0)
        self.on_piece: Callable[[int, bytes], bytes] = lambda _, piece: piece
        client = PiecesClient(self.script, piece_bytes, lambda offset, piece: self.on_piece(offset, piece))
        disk = None
        if folder is not None:
            disk = WriteBehind(DiskCache(str(folder), 1 << 24, url=client.url, block_size=BLOCK))
        self.fetcher = Fetcher(client, read_timeout_s=60.0, disk_cache=disk)
        self.blocks = BlockReader(self.fetcher, limit_bytes=1 << 20)

    def read(self, offset: int, size: int) -> bytes:
        return self.blocks.read(7, self.file, offset, size, self.fetcher.deadline())

    def read_block(self, block: int) -> bytes:
        return self.read(block * BLOCK, min(BLOCK, SIZE - block * BLOCK))

    def read_all_ahead(self) -> None:
        """By one request: `most` is the size of the file."""
        ranges = [(block * BLOCK, min(BLOCK, SIZE - block * BLOCK)) for block in range(BLOCKS)]
        assert self.blocks.read_ahead(7, self.file, ranges, most=BLOCKS * BLOCK)

    def hold_back(self, first: int) -> threading.Event:
        """Let the pieces of this block and of later ones wait until the event is set."""
        gate = threading.Event()

        def hold(offset: int, piece: bytes) -> bytes:
            assert offset < first * BLOCK or gate.wait(30)
            return piece

        self.on_piece = hold
        return gate

    def settle(self) -> None:
        wait_until(lambda: not self.blocks.under_way.requests, "what is under way")


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    with world.script, closing(world.fetcher):
        yield world


def expected(block: int) -> bytes:
    return CONTENT[block * BLOCK : (block + 1) * BLOCK]


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 500)), min_size=1, max_size=8),
    st.lists(st.integers(1, 400), min_size=1, max_size=8),
    st.integers(0, 3000),
)
@pytest.mark.slow
def test_parts_are_cut_from_pieces_of_any_size_and_only_whole_ones(gaps_and_sizes, piece_sizes, broken_after):
    parts, end = [], 1000
    for key, (gap, size) in enumerate(gaps_and_sizes):
        parts.append(Part(key, end + (gap if key else 0), size))
        end = parts[-1].end
    answer = CONTENT[parts[0].offset : end][:broken_after]
    cutter, cut, at = Cutter(parts), {}, 0
    for turn in range(len(answer)):
        piece = answer[at : at + piece_sizes[turn % len(piece_sizes)]]
        at += len(piece)
        for part, data in cutter.feed(piece):
            assert part.key not in cut
            cut[part.key] = data
    came = parts[0].offset + len(answer)
    assert cut == {part.key: CONTENT[part.offset : part.end] for part in parts[:-1] if part.end <= came}
    assert cutter.came == len(answer)
    if came == end:
        assert cutter.last() == (parts[-1], CONTENT[parts[-1].offset : end])
    else:
        with pytest.raises(ValueError, match="not where"):
            cutter.last()


def test_parts_that_do_not_ascend_are_never_cut():
    cutter = Cutter([Part(1, 0, 10), Part(2, 20, 10), Part(3, 5, 10), Part(4, 40, 1)])
    assert [part.key for part, _ in cutter.feed(CONTENT[:20])] == [1]
    with pytest.raises(ValueError, match="not where"):
        list(cutter.feed(CONTENT[20:40]))


def test_a_block_is_there_before_the_rest_of_its_request(world):
    gate = world.hold_back(3)
    world.read_all_ahead()
    assert [world.read_block(block) for block in range(3)] == [expected(block) for block in range(3)]
    assert len(world.blocks.under_way.requests) == BLOCKS - 3
    assert world.fetcher.counters.get == 0  # its one request is under way
    gate.set()
    assert world.read(0, SIZE) == CONTENT
    world.settle()
    wait_until(lambda: world.fetcher.counters.get == 1, "the end of the request")
    assert world.fetcher.counters.bytes_read == SIZE
    assert len(world.script.reads) == 1
    assert (world.blocks.governor.ahead, world.blocks.governor.used) == (SIZE, SIZE)


@pytest.mark.parametrize("piece_bytes", [BLOCK, 1000, 3 * BLOCK, SIZE])
@pytest.mark.parametrize("breaks", ["error", "end"])
def test_what_came_before_an_answer_broke_off_stays_and_the_rest_is_read_again(tmp_path, piece_bytes, breaks):
    world = World(piece_bytes=piece_bytes, folder=tmp_path)
    broken_at, is_broken = 10 * BLOCK + 77, False

    def break_off(offset: int, piece: bytes) -> bytes:
        nonlocal is_broken
        if offset + len(piece) <= broken_at:
            return piece
        if breaks == "error":
            raise TransientStorageError("the connection broke")
        is_broken = True
        return piece[: max(0, broken_at - offset)]

    with world.script, closing(world.fetcher):
        world.on_piece = break_off
        world.read_all_ahead()
        world.settle()
        came = broken_at if breaks == "end" else broken_at // piece_bytes * piece_bytes
        assert is_broken == (breaks == "end")
        assert world.blocks.governor.ahead == came
        assert world.fetcher.counters.errors == 1
        there = [block for block in range(BLOCKS) if world.blocks.has(7, world.file, block * BLOCK, 1)]
        assert there == list(range(came // BLOCK))
        disk = world.fetcher.disk_cache
        assert [block for block in range(BLOCKS) if disk.has(world.file, block)] == there
        world.on_piece = lambda _, piece: piece
        assert [world.read_block(block) for block in range(BLOCKS)] == [expected(block) for block in range(BLOCKS)]
        asked = [offset // BLOCK for _, offset, _ in world.script.reads[1:]]
        assert asked == list(range(came // BLOCK, BLOCKS))


def test_who_waits_for_a_part_that_does_not_come_reads_it_alone(world):
    gate = threading.Event()

    def break_off(offset: int, piece: bytes) -> bytes:
        if offset >= 5 * BLOCK:
            assert gate.wait(30)
            raise TransientStorageError("the connection broke")
        return piece

    world.on_piece = break_off
    world.read_all_ahead()
    read: dict[int, bytes] = {}
    readers = [threading.Thread(target=lambda n=n: read.update({n: world.read_block(n)})) for n in (4, 20, 20)]
    for reader in readers:
        reader.start()
    readers[0].join()
    assert read == {4: expected(4)}
    gate.set()
    for reader in readers:
        reader.join()
    assert read[20] == expected(20)
    assert {offset // BLOCK for _, offset, _ in world.script.reads[1:]} == {20}


def test_who_is_told_of_a_part_is_told_when_it_comes(world):
    gates = [threading.Event() for _ in range(BLOCKS)]
    told: list[int] = []

    def hold(offset: int, piece: bytes) -> bytes:
        assert gates[offset // BLOCK].wait(30)
        return piece

    world.on_piece = hold
    world.read_all_ahead()
    for block in range(BLOCKS):
        world.blocks.when_there(7, block * BLOCK, 10, lambda block=block: told.append(block))
    for block, gate in enumerate(gates):
        assert len(told) <= block
        gate.set()
        wait_until(lambda block=block: block in told, "the block")
    assert told == list(range(BLOCKS))


def test_who_has_all_bytes_of_a_request_finds_it_counted(world):
    count: list[int] = []
    gate = world.hold_back(0)
    world.read_all_ahead()
    for block in range(BLOCKS):
        world.blocks.when_there(7, block * BLOCK, 10, lambda: count.append(world.fetcher.counters.get))
    gate.set()
    wait_until(lambda: len(count) == BLOCKS, "all blocks")
    assert count == [0] * (BLOCKS - 1) + [1]


def test_requests_that_are_observed_give_all_bytes_at_their_end(world):
    observed: list[int] = []
    there: list[bool] = []
    world.fetcher.requests.observer = lambda request: observed.append(request.size_bytes)
    world.on_piece = lambda _, piece: pytest.fail("pieces")
    world.read_all_ahead()
    world.blocks.when_there(7, 0, 10, lambda: there.append(bool(observed)))
    world.settle()
    assert (there, observed) == ([True], [SIZE])


def test_closing_in_the_middle_of_an_answer_ends_its_readers(world):
    at_third = threading.Event()

    def hold(offset: int, piece: bytes) -> bytes:
        if offset >= 3 * BLOCK:
            at_third.set()
            wait_until(world.fetcher._closed.is_set, "the end")
            raise StorageClosedError("the client is closed")
        return piece

    world.on_piece = hold
    world.read_all_ahead()
    assert at_third.wait(30)
    errors: list[Exception] = []

    def read() -> None:
        try:
            world.read_block(9)
        except StorageClosedError as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: any(request._answers for request in set(world.blocks.under_way.requests.values())), "the reader")
    world.fetcher.close()
    reader.join(10)
    assert len(errors) == 1


# --- second requests --------------------------------------------------------------------------------------------------


@pytest.fixture
def known(world: World) -> World:
    """Where the first bytes of blocks are known to come at once, and second requests are allowed."""
    for _ in range(100):
        world.fetcher.hedges.note(BLOCK, 0.001)
    return world


@pytest.mark.hedged
def test_an_answer_that_stops_in_the_middle_is_late_and_its_part_is_asked_for_again(known):
    gate = known.hold_back(3)
    known.read_all_ahead()
    assert known.read_block(2) == expected(2)
    assert known.read_block(20) == expected(20)
    assert known.fetcher.hedges.second == 1
    assert [offset // BLOCK for _, offset, _ in known.script.reads] == [0, 20]
    gate.set()
    known.settle()


@pytest.mark.hedged
def test_an_answer_whose_bytes_keep_coming_is_not_late():
    """Each piece comes long before a second, after which a request is late here; all of them after more than that."""
    world, pause = World(), threading.Event()
    for _ in range(100):
        world.fetcher.hedges.note(BLOCK, 1.0)

    def drip(_: int, piece: bytes) -> bytes:
        pause.wait(0.04)
        return piece

    with world.script, closing(world.fetcher):
        world.on_piece = drip
        world.read_all_ahead()
        assert world.read_block(BLOCKS - 1) == expected(BLOCKS - 1)
        assert world.fetcher.hedges.second == 0
        assert len(world.script.reads) == 1


def test_what_is_noted_of_an_answer_is_when_its_first_bytes_came(world):
    answers = answers_of(world.script.url)
    for _ in range(LEAST - 1):
        answers.note(BLOCK, 0.001)
    assert answers.late_after_s(BLOCK) is None
    held = world.hold_back(1)
    world.read_all_ahead()
    assert world.read_block(0) == expected(0)
    assert (answers.made, answers.late_after_s(BLOCK)) == (LEAST, LEAST_LATE_S)  # one more of the kind of a block
    held.set()
    world.settle()
    assert (answers.made, answers.late_after_s(SIZE)) == (LEAST, None)  # and none of the kind of the whole request


def test_a_client_without_pieces_gives_all_bytes_at_once():
    with Script(block_size=BLOCK) as script:
        file = script.writer.write(0, 1, 1, CONTENT, 0)
        with closing(Fetcher(ScriptedClient(script), read_timeout_s=60.0)) as fetcher:
            taken: list[bytes] = []
            fetcher.gets.read_pieces(file, 5, SIZE - 5, taken.append)
            assert taken == [CONTENT[5:]]
            assert fetcher.counters.get == 1
            assert isinstance(BlockReader(fetcher, limit_bytes=1 << 20), BlockReader)
