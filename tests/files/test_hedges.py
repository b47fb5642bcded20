"""Requests that are slow are made a second time: the first answer counts, and there are few second ones."""

from __future__ import annotations

import threading
from contextlib import closing
from random import Random

from litevfs.files.blocks import BlockReader
from litevfs.files.fetch import Fetcher
from litevfs.files.hedges import LEAST, LEAST_LATE_S, SHARE, Hedges
from tests.scripted import Script, ScriptedClient
from tests.support import wait_until

BLOCK = 1 << 12
BLOCKS = 400
CONTENT = Random(1).randbytes(BLOCKS * BLOCK)


def test_a_request_is_late_after_what_19_of_20_took_of_its_size():
    hedges = Hedges()
    for i in range(LEAST):
        assert hedges.late_after_s(100) is None
        hedges.note(100, 0.1 if i % 20 else 7.0)
    assert hedges.late_after_s(1 << 16) == 7.0  # two of forty
    for _ in range(200):
        hedges.note(100, 0.1)
    assert hedges.late_after_s(1 << 16) == 0.1
    assert hedges.late_after_s(1 << 17) is None
    for _ in range(200):
        hedges.note(1 << 20, 0.0)
    assert hedges.late_after_s(1 << 20) == LEAST_LATE_S


def test_at_most_one_request_of_twenty_is_made_a_second_time():
    hedges = Hedges()
    assert not hedges.take()
    for _ in range(100):
        hedges.note(100, 0.1)
    assert [hedges.take() for _ in range(7)] == [True] * 5 + [False] * 2
    assert hedges.second <= SHARE * hedges.made


def test_answers_that_hang_keep_no_reader_waiting_and_are_counted_when_they_come():
    release = threading.Event()
    lock = threading.Lock()
    count, held = 0, 0

    def hold(_, __, data):
        """From the hundredth on, each 25th answer hangs until the end."""
        nonlocal count, held
        with lock:
            count += 1
            hangs = count > 100 and count % 25 == 0
            held += hangs
        if hangs:
            release.wait(30)
        return data

    with Script(block_size=BLOCK) as script:
        file = script.writer.write(0, 1, 1, CONTENT, 0)
        script.on_read = hold
        with closing(Fetcher(ScriptedClient(script), read_timeout_s=60.0)) as fetcher:
            blocks = BlockReader(fetcher, limit_bytes=4 << 20)
            for i in range(BLOCKS):
                data = blocks.read(1, file, i * BLOCK, BLOCK, fetcher.deadline())
                assert data == CONTENT[i * BLOCK : (i + 1) * BLOCK]
            assert held >= 12
            assert held <= fetcher.hedges.second <= SHARE * count
            assert fetcher.counters.get == count - held  # the answers that lost have not come yet
            release.set()
            wait_until(lambda: fetcher.counters.get == count, "the answers that lost")
            assert fetcher.counters.bytes_read == count * BLOCK
            assert not blocks._under_way
