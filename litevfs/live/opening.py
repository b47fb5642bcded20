"""The warning and the error for a caller that waits for a replica's first state. Owns no thread, opens nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from litevfs.errors import (
    LitevfsError,
    ReplicaEmptyError,
    ReplicaFolderNotFoundError,
    StorageTimeoutError,
    TXIDGapError,
)
from litevfs.live.freshness import may_pass
from litevfs.replica_clients.nearby import hint_of

logger = logging.getLogger("litevfs.live.replica")

SILENT_S = 1.0
"""So long a wait needs no warning: its error comes soon enough."""


def may_begin(error: LitevfsError) -> bool:
    """Whether there may be a first state next time."""
    return may_pass(error) or isinstance(error, ReplicaEmptyError | ReplicaFolderNotFoundError | TXIDGapError)


class Opening:
    """One caller's wait for a first state."""

    def __init__(self, url: str, timeout_s: float, look_around: Callable[[], list[str]], *, verifies: bool) -> None:
        """`look_around` finds where replicas are near the one that is empty; called once at most."""
        self._url, self._timeout_s, self._verifies = url, timeout_s, verifies
        self._look_around = look_around
        self._near: str | None = None  # a hint, "" if there is none; None before it was looked for
        self._is_said = False

    def note(self, error: LitevfsError) -> None:
        """Warn, once, that nothing is there: the path may be mistyped, and the wait is long and silent."""
        is_empty = isinstance(error, ReplicaEmptyError | ReplicaFolderNotFoundError)
        if self._is_said or not is_empty or self._timeout_s <= SILENT_S:
            return
        self._is_said = True
        near = self._hint_of_near()
        logger.warning(
            "%s: nothing to read yet (%s); waiting for up to %g s (open_timeout)%s",
            self._url,
            error.message,
            self._timeout_s,
            f"; {near}" if near else "",
        )

    def error(self, error: LitevfsError) -> LitevfsError:
        """The error to raise after the wait, the last try of which ended with `error`."""
        if isinstance(error, StorageTimeoutError) and self._verifies:
            hint = "verify reads every LTX file whole: open_timeout has to leave time for that"
            return StorageTimeoutError(error.message, key=self._url, hint=hint)
        if isinstance(error, ReplicaFolderNotFoundError):
            what = f"no such replica folder, also after waiting {self._timeout_s:g} s"
            return ReplicaFolderNotFoundError(what, key=error.key, hint=self._hint(f"{error.hint}"))
        if not isinstance(error, ReplicaEmptyError):
            return error
        return ReplicaEmptyError(
            f"no LTX files on any level after waiting {self._timeout_s:g} s",
            key=self._url,
            hint=self._hint("check the path, and that the primary replicates to it"),
        )

    def _hint(self, what_to_do: str) -> str:
        near = self._hint_of_near()
        return (
            f"{near}; {what_to_do}; open_timeout sets the wait" if near else f"{what_to_do}; open_timeout sets the wait"
        )

    def _hint_of_near(self) -> str:
        if self._near is None:
            self._near = ""
            with suppress(LitevfsError):
                self._near = hint_of(self._look_around())
        return self._near
