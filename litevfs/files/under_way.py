"""A request for parts of a file, from when it is planned until its bytes have come. Knows no storage and no cache."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from litevfs.concurrency.futures import closed_error, settle
from litevfs.errors import TransientStorageError
from litevfs.ltx.file_info import LTXFileInfo

BLOCK_NUMBER_BITS = 32
OFFSET_BITS = 47
"""Bits of an offset in the largest file (`MAX_FRAME_OFFSET`)."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes that are kept under one key."""

    key: int
    offset: int
    size: int


class Request(Future[dict[int, bytes]]):
    """A request for parts of a file, ascending; the result is their bytes by key."""

    def __init__(self, file: LTXFileInfo, parts: Sequence[Part], *, ahead: bool, owner: object | None = None) -> None:
        super().__init__()
        self.file = file
        self.parts = parts  # never empty
        self.ahead = ahead
        self.owner = owner  # who alone wants it, and may take it back; None: a reader waits for it, or several want it
        self.offset = parts[0].offset
        self.size = parts[-1].offset + parts[-1].size - self.offset
        self._task: Future[None] | None = None
        self._is_taken_back = False

    def began_in(self, task: Future[None]) -> None:
        """A pool makes the request by this task, and cancels that when it is closed."""
        self._task = task
        task.add_done_callback(self._end_if_cancelled)

    def take_back(self) -> bool:
        """End the request if it has not begun; False if it has."""
        self._is_taken_back = True
        return self._task is not None and self._task.cancel()

    def _end_if_cancelled(self, task: Future[None]) -> None:
        if task.cancelled():
            taken_back = TransientStorageError("what was read ahead is no longer wanted")
            settle(self, taken_back if self._is_taken_back else closed_error())


def block_key(number: int, block: int) -> int:
    """The key of a block of the file that is known as `number`; not below 0."""
    return number << BLOCK_NUMBER_BITS | block


def range_key(number: int, offset: int) -> int:
    """The key of a range that was read ahead without its block; below 0."""
    return ~(number << OFFSET_BITS | offset)
