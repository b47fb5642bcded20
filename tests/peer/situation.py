"""One situation of the comparison with Litestream's VFS, and the decorator that makes one of a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.peer.world import Outcome, World

Storage = Literal["file", "s3"]
Run = Callable[[World], Outcome]


@dataclass(frozen=True, slots=True)
class Situation:
    """One row of the table."""

    key: str  # a letter, or an ID of the test plan
    title: str
    promise: str  # what litevfs does, as a test's name says it
    run: Run
    storage: Storage
    primary: dict[str, Any] = field(default_factory=dict)  # options of the primary


entered: list[Situation] = []
"""Every one that was defined so far."""


def situation(key: str, title: str, promise: str, storage: Storage = "file", **primary: Any) -> Callable[[Run], Run]:
    """Enter a function into the table."""

    def enter(run: Run) -> Run:
        entered.append(Situation(key, title, promise, run, storage, primary))
        return run

    return enter
