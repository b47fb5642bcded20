"""Waiting for descriptors, with `select.poll` and without it."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from litevfs.concurrency.descriptors import wait_for


@pytest.fixture(params=["poll", "select"], autouse=True)
def _way(request, monkeypatch):
    if request.param == "select":
        monkeypatch.delattr(select, "poll")  # as eventlet does


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:  # the test has closed it
            pass


def test_what_was_written_can_be_read(pipe):
    reading, writing = pipe
    assert wait_for([reading], [writing]) == {writing}
    os.write(writing, b".")
    assert wait_for([reading], [writing]) == {reading, writing}
    assert wait_for([reading]) == {reading}


def test_the_end_of_the_other_side_is_something_to_read(pipe):
    reading, writing = pipe
    os.close(writing)
    assert wait_for([reading]) == {reading}


def test_the_wait_ends_with_its_time(pipe):
    assert wait_for([pipe[0]], timeout_s=0.001) == set()
    assert wait_for([pipe[0]], timeout_s=0) == set()
