"""Requests that are slow are made a second time: the first answer counts, and there are few second ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from itertools import count
from random import Random

import pytest

from litevfs.errors import StorageNotFoundError, TransientStorageError
from litevfs.files.blocks import BlockReader
from litevfs.files.fetch import Fetcher
from litevfs.files.hedges import LEAST, LEAST_LATE_POLL_S, LEAST_LATE_S, LIST, NAMED, SHARE, Answers, first_of
from litevfs.files.named import fetch_named
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.replica_clients.urls import open_replica_client
from tests.primary import Primary
from tests.scripted import Script, ScriptedClient
from tests.support import wait_until

pytestmark = pytest.mark.hedged

BLOCK = 1 << 12
BLOCKS = 400
CONTENT = Random(1).randbytes(BLOCKS * BLOCK)


def test_a_request_is_late_after_what_19_of_20_took_of_its_size():
    answers = Answers()
    for i in range(LEAST):
        assert answers.late_after_s(100) is None
        answers.note(100, 0.1 if i % 20 else 7.0)
    assert answers.late_after_s(1 << 16) == 7.0  # one of twenty
    for _ in range(200):
        answers.note(100, 0.1)
    assert answers.late_after_s(1 << 16) == 0.1
    assert answers.late_after_s(1 << 17) is None
    for _ in range(200):
        answers.note(1 << 20, 0.0)
    assert answers.late_after_s(1 << 20) == LEAST_LATE_S
    for kind in (LIST, NAMED):
        assert answers.late_after_s(kind) is None
        for _ in range(LEAST):
            answers.note(kind, 0.0)
        assert answers.late_after_s(kind) == LEAST_LATE_POLL_S


def test_at_most_one_request_of_twenty_is_made_a_second_time():
    answers = Answers()
    assert not answers.take()
    for _ in range(100):
        answers.note(100, 0.1)
    assert [answers.take() for _ in range(7)] == [True] * 5 + [False] * 2
    assert answers.second <= SHARE * answers.made


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
            assert not blocks.under_way.requests


KINDS: dict[str, Callable[[Fetcher, LTXFileInfo], object]] = {
    "listing of a level": lambda fetcher, _: fetcher.list_files(0),
    "listing of all levels": lambda fetcher, _: fetcher.list_from(0),
    "poll that finds nothing": lambda fetcher, _: fetch_named(fetcher, [3]),
    "poll that finds a file": lambda fetcher, _: [found.info for found in fetch_named(fetcher, [2])],
    "file at opening": lambda fetcher, file: [found.data for found in fetcher.fetch_files([file])],
    "read of a part": lambda fetcher, file: fetcher.read(file, 10, 200),
}


class Hanging:
    """The hooks of a `Script`: once `is_on`, each second answer hangs, from the first one on."""

    def __init__(self) -> None:
        self.is_on, self.release = threading.Event(), threading.Event()
        self._asked = count()

    def pass_(self) -> None:
        """An answer is on its way."""
        if self.is_on.is_set() and next(self._asked) % 2 == 0:
            self.release.wait(30)

    def on_list(self, level: int, files: list[LTXFileInfo]) -> list[LTXFileInfo]:
        """A listing of all levels asks for each."""
        if level == 0:
            self.pass_()
        return files

    def on_name(self, _: int, is_there: bool) -> bool:
        """The file itself passes `on_read`, too, where it is there."""
        if not is_there:
            self.pass_()
        return is_there

    def on_read(self, _: LTXFileInfo, __: int, data: bytes) -> bytes:
        """The bytes of a file."""
        self.pass_()
        return data


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_of_any_kind_that_hangs_is_made_again_also_as_the_first_of_its_replica(kind: str):
    def requests() -> int:
        return len(script.reads) + len(script.names) + sum(script.lists.values())

    call, hanging = KINDS[kind], Hanging()
    with Script(block_size=BLOCK, lists_levels=True, reads_named=True) as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        primary.commit("INSERT INTO t VALUES(1)")
        script.on_list, script.on_name, script.on_read = hanging.on_list, hanging.on_name, hanging.on_read
        first, opened = (Fetcher(open_replica_client(script.url), read_timeout_s=60.0) for _ in range(2))
        with closing(first), closing(opened):
            file = first.list_files(0)[0]
            expected = call(first, file)
            for _ in range(200):
                assert call(first, file) == expected
            wait_until(lambda: requests() == 202 + first.hedges.second, "second requests that a busy machine made")
            before = requests()
            hanging.is_on.set()
            try:
                assert [call(opened, file) for _ in range(2)] == [expected] * 2
                assert (opened.hedges.second, requests()) == (2, before + 4)
            finally:
                hanging.release.set()
            wait_until(lambda: opened.counters.get + opened.counters.list == 4, "the answers that lost")


def test_what_is_observed_is_asked_once():
    with Script(block_size=BLOCK) as script, Primary(script.writer) as primary:
        primary.commit("CREATE TABLE t(x)")
        with closing(Fetcher(ScriptedClient(script), read_timeout_s=60.0)) as fetcher:
            threads = set()
            script.on_list = lambda level, files: threads.add(threading.current_thread()) or files
            for _ in range(2 * LEAST):
                fetcher.list_files(0)
            assert len(threads) > 1
            threads.clear()
            fetcher.requests.observer = lambda request: None
            for _ in range(10):
                fetcher.list_files(0)
            assert threads == {threading.current_thread()}


def test_an_error_of_the_one_leaves_the_answer_of_the_other():
    failed, right = Future[str](), Future[str]()
    failed.set_exception(TransientStorageError("no"))
    timer = threading.Timer(0.01, right.set_result, ["yes"])
    timer.start()
    assert first_of([failed, right]) == "yes"
    timer.join()
    gone = Future[str]()
    gone.set_exception(StorageNotFoundError("gone"))
    with pytest.raises(StorageNotFoundError):
        first_of([gone, Future()])
    with pytest.raises(TransientStorageError, match="no"):
        first_of([failed, failed])
