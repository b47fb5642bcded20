"""The folder of blocks under random operations, and shared by threads and processes, some of which are killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from litevfs.files.keyed_files import TEMP_LIFE_S
from tests.files.test_disk_cache import FILE, ON_DISK, age, bytes_on_disk, content, files_in, make
from tests.support import in_threads, wait_until

pytestmark = pytest.mark.slow


class Blocks(RuleBasedStateMachine):
    """Anything may happen to the folder: a block is the right bytes or not there."""

    BLOCKS = st.integers(0, 40)

    @initialize(limit=st.sampled_from([8, 30, 10_000]))
    def start(self, limit):
        self.root = Path(self.tmp_path_factory.mktemp("blocks"))
        self.limit = limit * ON_DISK
        self.reopen()

    @rule()
    def reopen(self):
        self.cache = make(self.root, limit=self.limit)

    @rule(block=BLOCKS)
    def put(self, block):
        self.cache.put(FILE, block, content(block))
        assert self.cache.get(FILE, block) == content(block)

    @rule(block=BLOCKS)
    def get(self, block):
        was_there = self.cache.has(FILE, block)
        data = self.cache.get(FILE, block)
        assert data in (None, content(block))
        assert self.cache.has(FILE, block) is (data is not None)
        assert was_there or data is None

    @rule(block=BLOCKS)
    def drop(self, block):
        self.cache.drop(FILE, block)
        assert self.cache.get(FILE, block) is None

    @rule(choice=st.integers(0, 1000), bit=st.integers(0, 8 * ON_DISK - 1))
    def flip(self, choice, bit):
        if files := files_in(self.root):
            path = files[choice % len(files)]
            data = bytearray(path.read_bytes())
            if data:
                data[bit // 8 % len(data)] ^= 1 << bit % 8
                path.write_bytes(data)

    @rule(choice=st.integers(0, 1000), size=st.integers(0, ON_DISK + 1))
    def tear(self, choice, size):
        if files := files_in(self.root):
            os.truncate(files[choice % len(files)], size)

    @rule(choice=st.integers(0, 1000), other=st.integers(0, 1000))
    def mix_up(self, choice, other):
        if files := files_in(self.root):
            files[choice % len(files)].write_bytes(files[other % len(files)].read_bytes())

    @invariant()
    def limit_holds(self):
        # A torn file may have become longer than any block is.
        assert bytes_on_disk(self.root) <= self.limit + ON_DISK * len(files_in(self.root))
        assert len(files_in(self.root)) <= self.limit // ON_DISK


@pytest.mark.plan("D13", "D09")
def test_a_block_is_right_or_not_there_whatever_happens_to_the_folder(tmp_path_factory):
    Blocks.tmp_path_factory = tmp_path_factory
    case = Blocks.TestCase
    case.settings = settings(max_examples=25, stateful_step_count=40)
    case().runTest()


def test_threads_share_a_folder(tmp_path):
    cache = make(tmp_path, limit=60 * ON_DISK)

    def work(seed: int) -> int:
        rng, found = random.Random(seed), 0
        for _ in range(400):
            block = rng.randrange(100)
            data = cache.get(FILE, block)
            assert data in (None, content(block))
            found += data is not None
            if data is None:
                cache.put(FILE, block, content(block))
        return found

    assert min(in_threads(8, work)) > 20
    assert bytes_on_disk(tmp_path) <= 60 * ON_DISK
    assert cache.counters.damaged == 0


def test_a_block_that_is_just_being_written_counts(tmp_path, monkeypatch: pytest.MonkeyPatch):
    cache = make(tmp_path, limit=8 * ON_DISK)
    write_file = cache._folder._write_file

    def write_after_others(path: str, data: bytes) -> None:
        monkeypatch.undo()
        for block in range(1, 20):
            cache.put(FILE, block, content(block))
        write_file(path, data)

    monkeypatch.setattr(cache._folder, "_write_file", write_after_others)
    cache.put(FILE, 0, content(0))
    assert cache.get(FILE, 0) == content(0)
    assert bytes_on_disk(tmp_path) == 8 * ON_DISK


_HAMMER = """
    import random, sys
    from tests.files.test_disk_cache import FILE, ON_DISK, content, make
    cache = make(sys.argv[1], limit=int(sys.argv[3]))
    rng, found = random.Random(int(sys.argv[2])), 0
    print("begun", flush=True)
    for _ in range(int(sys.argv[4])):
        block = rng.randrange(400)
        data = cache.get(FILE, block)
        assert data in (None, content(block)), block
        found += data is not None
        if data is None or rng.random() < 0.2:
            cache.put(FILE, block, content(block))
        if rng.random() < 0.02:
            cache.drop(FILE, block)
    print(found, cache.counters.damaged, cache.is_writing, flush=True)
"""


def hammer(folder: Path, seed: int, limit: int, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(_HAMMER), str(folder), str(seed), str(limit), str(rounds)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE)


@pytest.mark.plan("K03", "D09")
@pytest.mark.parametrize("rounds", [1600, pytest.param(20_000, marks=pytest.mark.soak)])
def test_processes_share_a_folder_and_its_limit(tmp_path, rounds):
    limit, count = 200 * ON_DISK, 3
    processes = [hammer(tmp_path, seed, limit, rounds) for seed in range(count)]
    largest = 0

    def all_ended() -> bool:
        nonlocal largest
        largest = max(largest, bytes_on_disk(tmp_path))
        return all(process.poll() is not None for process in processes)

    wait_until(all_ended, "the end of every process", timeout_s=60)
    for process in processes:
        begun, result = process.communicate()[0].splitlines()
        found, damaged, is_writing = result.split()
        assert (begun, damaged, is_writing) == ("begun", "0", "True")
        assert int(found) > rounds // 8
    assert limit // 2 <= largest <= limit * (1 + (count - 1) / 8)


@pytest.mark.plan("D01", "D15")
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.soak)])
def test_a_writer_killed_at_any_moment_leaves_right_blocks_and_a_folder_that_works(tmp_path, kills):
    rng = random.Random(15)
    limit = 150 * ON_DISK
    for seed in range(kills):
        process = hammer(tmp_path, seed, limit, 10**9)
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        wait_until(lambda: len(files_in(tmp_path)) > 20, "blocks")
        deadline = time.monotonic() + rng.random() * 0.2
        wait_until(lambda deadline=deadline: time.monotonic() > deadline)
        process.kill()
        process.communicate()
        cache = make(tmp_path, limit=limit)
        found = [block for block in range(400) if cache.get(FILE, block) is not None]
        assert len(found) > 10
        assert all(cache.get(FILE, block) == content(block) for block in found)
        assert cache.counters.damaged == 0  # a rename happens or not
    for path in tmp_path.rglob("*.tmp"):
        age(path, TEMP_LIFE_S + 1)
    make(tmp_path, limit=limit).put(FILE, 9999, content(9999))
    assert list(tmp_path.rglob("*.tmp")) == []
    assert bytes_on_disk(tmp_path) <= limit
