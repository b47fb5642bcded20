"""No test may leave a thread or a file descriptor behind. Knows nothing of litevfs but the prefix of its thread names.

The state is taken before a test's fixtures are set up and compared after they were torn down, so a fixture that forgets
to clean up fails its test too. What a fixture of a wider scope than one test opens belongs to that fixture: it is
noted while the fixture is set up and not held against the test. `@pytest.mark.may_leak("why")` leaves a test out, for
one whose session-wide server opens something only later.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import pytest

from litevfs.concurrency.workers import SPARE_S

_POLL_S = 0.01
_OWN_THREADS = "litevfs"
_FD_FOLDER = "/proc/self/fd"  # of Linux


@dataclass(slots=True)
class Resources:
    """Live threads that must end, and open descriptors with what each refers to."""

    threads: set[threading.Thread] = field(default_factory=set)
    descriptors: set[tuple[int, str]] = field(default_factory=set)  # (number, target); empty without /proc

    @classmethod
    def now(cls) -> Resources:
        """Those of this process at this moment."""
        return cls(set(filter(_must_end, threading.enumerate())), set(_open_descriptors()))

    def without(self, other: Resources) -> Resources:
        """Those that `other` does not have."""
        return Resources(self.threads - other.threads, self.descriptors - other.descriptors)

    def add(self, other: Resources) -> None:
        """Take those of `other` in."""
        self.threads |= other.threads
        self.descriptors |= other.descriptors

    def __bool__(self) -> bool:
        return bool(self.threads or self.descriptors)

    def __str__(self) -> str:
        threads = sorted(f"thread {thread.name!r} is alive" for thread in self.threads)
        return "; ".join(threads + [f"descriptor {fd} is open: {target}" for fd, target in sorted(self.descriptors)])


_before = pytest.StashKey[Resources]()
"""What a test may find at its end: what was there before it, and what wider fixtures set up during it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the grace time, in seconds: a thread may take that long to end, an object to be collected."""
    parser.addini("leak_grace_s", "seconds after a test until what it left behind counts as leaked", default="10")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "may_leak(why): leave the test out of the check for leaked threads and files")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Note what is there before any fixture of the test."""
    item.stash[_before] = Resources.now()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Leave out of the check what a fixture of a wider scope opens."""
    item = request._pyfuncitem
    if fixturedef.scope == "function" or _before not in item.stash:
        return (yield)
    before = Resources.now()
    try:
        return (yield)
    finally:
        item.stash[_before].add(Resources.now().without(before))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Fail the test for what it left behind."""
    result = yield
    before = item.stash.get(_before, None)
    if before is not None and item.get_closest_marker("may_leak") is None:
        leaked = leaked_since(before, grace_s=float(item.config.getini("leak_grace_s")))
        if leaked:
            pytest.fail(f"left behind: {leaked}", pytrace=False)
    return result


def leaked_since(before: Resources, grace_s: float) -> Resources:
    """What is there, was not in `before`, and does not go within `grace_s` seconds."""
    deadline = time.monotonic() + grace_s
    for thread in Resources.now().without(before).threads:
        thread.join(2 * SPARE_S)  # one that waits for its next call ends soon; to collect garbage takes longer
    while leaked := Resources.now().without(before):
        if time.monotonic() > deadline:
            break
        gc.collect()
        threading.Event().wait(_POLL_S)
    return leaked


def _must_end(thread: threading.Thread) -> bool:
    return thread.is_alive() and (not thread.daemon or thread.name.startswith(_OWN_THREADS))


def _open_descriptors() -> Generator[tuple[int, str]]:
    for name in os.listdir(_FD_FOLDER) if os.path.isdir(_FD_FOLDER) else ():
        try:
            yield int(name), os.readlink(f"{_FD_FOLDER}/{name}")
        except FileNotFoundError:  # the listing's own descriptor, or one closed meanwhile
            continue
