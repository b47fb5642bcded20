"""Ctrl-C at any moment of a call: KeyboardInterrupt at each line of the package that a thread runs, one after another.

A signal strikes at random; this strikes everywhere, in the same places in every run. A line that runs often, as in a
loop, is struck the first few times that it runs.
"""

from __future__ import annotations

import linecache
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import litevfs

_PACKAGE = str(Path(litevfs.__file__).parent)
_TIMES = 2
"""So often is a line struck: before anything of the kind was done, and after it."""


def interrupted_everywhere(make: Callable[[], Any], call: Callable[[Any], Any]) -> Iterator[Any]:
    """For the first line of `call(make())`, then the second and so on: yields what was made, after the interrupt.

    Fails the test if the call hides an interrupt. Ends with the first call that ends before its turn comes.
    """
    moment = 0
    while True:
        moment += 1
        subject = make()
        countdown = _Countdown(moment)
        interrupted = False
        try:
            countdown.run(lambda: call(subject))  # noqa: B023 (run at once)
        except KeyboardInterrupt:
            interrupted = True
        assert interrupted == (countdown.left == 0), f"the interrupt at {countdown.where} was hidden"
        yield subject
        if not interrupted:
            assert moment > 1
            return


class _Countdown:
    """Raises KeyboardInterrupt at the last of so many lines."""

    def __init__(self, lines: int) -> None:
        self.left = lines
        self._times: Counter[tuple[str, int]] = Counter()  # by file and line: how often it ran
        self.where = "no line"

    def run(self, call: Callable[[], Any]) -> None:
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            call()
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._step if frame.f_code.co_filename.startswith(_PACKAGE) else None

    def _step(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and self.left and not _leaves_a_block(frame):
            place = frame.f_code.co_filename, frame.f_lineno
            self._times[place] += 1
            self.left -= self._times[place] <= _TIMES
            if not self.left:
                self.where = f"{place[0]}:{place[1]}"
                raise KeyboardInterrupt
        return self._step


def _leaves_a_block(frame: FrameType) -> bool:
    """Whether the line is a `with`, which is a line at its end too: the interpreter lets no signal in there."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")
