"""In which of a few methods each thread is, for tests of rehearsals. They name private methods here alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from litevfs.bindings.rehearsal import THREAD_NAME, Rehearsals
from litevfs.files.blocks import BlockReader
from litevfs.pages.ahead import ReadAhead

READS = ("_miss", "_range_alone", "_first_answer")
"""Methods in which a query waits for a block."""


class Places:
    """In which of a few methods each thread is now.

    The stacks of threads that run are not looked at: on Python 3.11 one may lead to a frame that is gone, which is a
    crash.
    """

    def __init__(self) -> None:
        self._names: dict[int, list[str]] = {}  # by thread; the innermost last
        self._awaited: dict[int, threading.Event | None] = {}  # by thread: what the last fetch of a rehearsal sets

    def follow(self, patch: pytest.MonkeyPatch) -> None:
        """Note from here on, until the patch is undone."""
        self._names.clear()
        for owner, names in {
            BlockReader: READS,
            Rehearsals: ("_fetch", "_fetch_slowly", "_wait_for_query", "_wait_until_used"),
            ReadAhead: ("fetch",),
        }.items():
            for name in names:
                patch.setattr(owner, name, self._noted(name, getattr(owner, name)))

    def _noted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **keywords: Any) -> Any:
            thread = threading.get_ident()
            if name == "_fetch":
                self._awaited[thread] = None
            elif name == "fetch":
                self._awaited[thread] = arguments[4].__self__
            names = self._names.setdefault(thread, [])
            names.append(name)
            try:
                return method(*arguments, **keywords)
            finally:
                names.pop()

        return noted

    def reads(self, thread: int) -> bool:
        """Whether a thread reads a block."""
        return not set(READS).isdisjoint(list(self._names.get(thread, ())))

    def rehearsals_wait(self) -> bool:
        """Whether no rehearsal goes on, or all of them wait for pages that have not come."""
        threads = [thread.ident or 0 for thread in threading.enumerate() if thread.name == THREAD_NAME]
        return all(map(self._waits_for_pages, threads))

    def _waits_for_pages(self, thread: int) -> bool:
        awaited, names = self._awaited.get(thread), list(self._names.get(thread, ()))
        if names[-1:] == ["_wait_until_used"] or names[-2:] == ["_fetch_slowly", "_wait_for_query"]:
            return True
        return names[-1:] == ["_fetch"] and awaited is not None and not awaited.is_set()


places = Places()
"""Up to date in tests that use the fixture `followed`."""
