"""Plugins and fixtures of every test."""

from __future__ import annotations

import gc
import os
import signal
import sys
import uuid
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from litevfs.files import hedges
from litevfs.replica_clients.memory import drop_memory_store, memory_store
from litevfs.testing.fixtures import s3_client, s3_server, s3_url
from tests.fast_folder import use_fast_folder
from tests.primary import Primary
from tests.support import Clock, primary_at

__all__ = ["s3_client", "s3_server", "s3_url"]

pytest_plugins = ["tests.plan_plugin", "tests.leak_check", "pytester"]

use_fast_folder()

# Modules are compiled once, whatever the environment says: pytest rewrites every test module in each of its processes,
# and tests start hundreds of Pythons, half of whose time would go into compiling litevfs. Git ignores the files.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Threads take turns fifty times as often as usual: more can come between any two steps, and a writer that lets go of
# the interpreter at each system call need not wait for all readers to use up their turns before it gets the next one.
sys.setswitchinterval(0.0001)

# How long an example takes says more of the machine than of the code. Other examples come with each run.
settings.register_profile("litevfs", deadline=None, max_examples=50)
settings.load_profile("litevfs")

# A shell makes commands in the background ignore Ctrl-C, and they pass that on to the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the collector leave alone what is imported and collected here: it would look at it in every test again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which a replica's health is judged, to be moved by hand."""
    clock = Clock()
    monkeypatch.setattr("litevfs.live.health.now_s", lambda: clock.now_s)
    return clock


@pytest.fixture
def url() -> Iterator[str]:
    """A replica in memory, empty until something writes to it."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    memory_store(name)
    yield f"memory://{name}"
    drop_memory_store(name)


@pytest.fixture
def primary(url: str) -> Iterator[Primary]:
    """What writes to that replica."""
    with primary_at(url) as primary:
        yield primary


@pytest.fixture(autouse=True)
def second_requests(request: pytest.FixtureRequest) -> Iterator[None]:
    """None is made but in tests marked `hedged` or `chaos`: others count requests, and a busy machine answers late."""
    share = hedges.SHARE
    if not any(map(request.node.get_closest_marker, ("hedged", "chaos"))):
        hedges.SHARE = 0.0
    yield
    hedges.SHARE = share
