"""Requests for parts of files, from their plan until their bytes have come. Knows no storage and no cache."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

from litevfs.concurrency.futures import closed_error, settle
from litevfs.errors import StoragePermissionError, TransientStorageError
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

    @property
    def end(self) -> int:
        """The offset of the byte after them."""
        return self.offset + self.size


class Request:
    """A request for parts of a file, ascending, each of which is given to its readers when it has come.

    What has come stays right, however the request ends.
    """

    def __init__(self, file: LTXFileInfo, parts: Sequence[Part], *, ahead: bool, owner: object | None = None) -> None:
        self.file = file
        self.parts = parts  # never empty
        self.ahead = ahead
        self.owner = owner  # who alone wants it, and may take it back; None: a reader waits for it, or several want it
        self.offset = parts[0].offset
        self.size = parts[-1].end - self.offset
        self.came_at = 0.0  # `time.monotonic()` when the last bytes came
        self._answers: dict[int, Future[bytes]] = {}  # of the parts that readers wait for
        self._error: Exception | None = None
        self._lock = threading.RLock()  # the collector may end an abandoned query under this lock
        self._make: Callable[[], object] | None = None
        self._turn = threading.Lock()  # taken for good by what comes first: making the request, or giving it up

    def answer(self, key: int) -> Future[bytes]:
        """The bytes of a part that has not come yet, or the error that the request ends with."""
        with self._lock:
            answer = self._answers.get(key)
            if answer is None:
                answer = self._answers[key] = Future()
            error = self._error
        if error is not None:
            settle(answer, error)
        return answer

    def bring(self, key: int, data: bytes) -> None:
        """A part has come."""
        with self._lock:
            answer = self._answers.pop(key, None)
        if answer is not None:
            settle(answer, data)

    def end(self, error: Exception) -> None:
        """No further part comes; the readers that wait for one get the error. Does nothing at a second end."""
        with self._lock:
            error = self._error = self._error or error
            answers, self._answers = self._answers, {}
        for answer in answers.values():
            settle(answer, error)

    def comes_in_time(self, answer: Future[bytes], late_after_s: float, until: float) -> bool:
        """Wait for a part while the request is not late: while bytes of it keep coming within `late_after_s`.

        False once it is late; it is not if that would be after `until` (`time.monotonic()`, seconds).
        """
        began = time.monotonic()
        while not answer.done():
            now, late_at = time.monotonic(), max(began, self.came_at) + late_after_s
            if late_at >= until:
                return True
            if now >= late_at:
                return False
            wait([answer], late_at - now)
        return True

    def made_by(self, make: Callable[[], object]) -> Request:
        """Make this request by that call, which must not raise, once a pool runs it (see `workers.Job`)."""
        self._make = make
        return self

    def run(self) -> None:
        """See `workers.Job`."""
        make, self._make = self._make, None
        if make is not None and self._turn.acquire(blocking=False):
            make()

    def drop(self) -> None:
        """See `workers.Job`."""
        self._give_up(closed_error())

    def take_back(self) -> bool:
        """End the request if it has not begun; False if it has."""
        return self._give_up(TransientStorageError("what was read ahead is no longer wanted"))

    def _give_up(self, error: Exception) -> bool:
        is_mine = self._turn.acquire(blocking=False)
        if is_mine:
            self._make = None
            self.end(error)
        return is_mine


class UnderWay:
    """The requests under way: `requests`, by the key of each part that has not come.

    So that no part is asked for twice at a time, a caller holds `lock` from its look for a part until `add`.
    """

    def __init__(self) -> None:
        self.requests: dict[int, Request] = {}
        self.lock = threading.RLock()  # a request that ends at once may lead to the next one

    def add(self, request: Request) -> None:
        """Note a request that begins."""
        with self.lock:
            self.requests.update((part.key, request) for part in request.parts)

    def answer(self, key: int) -> Future[bytes] | None:
        """The bytes of a part that is under way; None if it is not."""
        with self.lock:
            request = self.requests.get(key)
            return None if request is None else request.answer(key)

    def join(self, key: int) -> tuple[Request, Future[bytes]] | None:
        """The request for a part, and its answer, for a reader that waits from here on; None if it is not under way."""
        with self.lock:
            self.share([key], None)
            request = self.requests.get(key)
            return None if request is None else (request, request.answer(key))

    def share(self, keys: Iterable[int], owner: object | None) -> None:
        """Another owner wants these parts, too: requests for them are not taken back."""
        with self.lock:
            for key in keys if self.requests else ():
                request = self.requests.get(key)
                if request is not None and request.owner is not owner:
                    request.owner = None

    def take_back(self, owner: object) -> int:
        """Take back the requests that have not begun and that this owner alone wants; returns their bytes."""
        size = 0
        with self.lock:
            for request in set(self.requests.values()):
                if request.owner is owner and request.take_back():
                    self.forget(request)
                    size += request.size
        return size

    def came(self, request: Request, part: Part) -> None:
        """A part of a request has come."""
        with self.lock:
            if self.requests.get(part.key) is request:
                del self.requests[part.key]

    def forget(self, request: Request) -> None:
        """A request ends, or takes too long: its parts may be asked for again."""
        with self.lock:
            for part in request.parts:
                self.came(request, part)


class Cutter:
    """Cuts the bytes of an answer, as they come, into the parts that were asked for: each byte is copied once."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.came = 0  # bytes of the answer so far
        self._parts = parts
        self._cut = 0  # parts that are whole
        self._at = self._end = parts[0].offset  # what the pieces cover
        self._pieces: deque[memoryview] = deque()

    def feed(self, piece: bytes) -> Iterator[tuple[Part, bytes]]:
        """The next bytes of the answer; gives the parts that are whole with them, but for the last one of all."""
        self.came += len(piece)
        self._end += len(piece)
        self._pieces.append(memoryview(piece))
        while self._cut < len(self._parts) - 1 and self._parts[self._cut].end <= self._end:
            part = self._parts[self._cut]
            self._cut += 1
            yield part, self._bytes_of(part)

    def last(self) -> tuple[Part, bytes]:
        """The last part, once the whole answer has come."""
        return self._parts[-1], self._bytes_of(self._parts[-1])

    def _bytes_of(self, part: Part) -> bytes:
        if part.offset < self._at or part.end > self._end:
            raise ValueError("a part of a request is not where it should be")
        pieces = []
        while self._at < part.end:
            piece = self._pieces.popleft()
            pieces.append(piece[max(0, part.offset - self._at) : part.end - self._at])
            self._at += len(piece)
            if self._at > part.end:
                self._pieces.appendleft(piece[part.end - self._at :])
                self._at = part.end
        return b"".join(pieces)


def block_key(number: int, block: int) -> int:
    """The key of a block of the file that is known as `number`; not below 0."""
    return number << BLOCK_NUMBER_BITS | block


def range_key(number: int, offset: int) -> int:
    """The key of a range that was read ahead without its block; below 0."""
    return ~(number << OFFSET_BITS | offset)


def failure_of(error: TransientStorageError | StoragePermissionError, *, is_mine: bool) -> TransientStorageError | None:
    """What a reader tries again after; raises the error of its own request if it is final."""
    if isinstance(error, TransientStorageError):
        return error  # read-ahead tries once; bytes that a reader waits for are worth the retries
    if is_mine:
        raise error
    return None  # credentials of read-ahead may have ended since
