"""Requests for bytes of files, and those of them that wait for a thread. Knows offsets, not pages; does no I/O.

Plans come in small pieces, as each page that is read leads to others, so neighbours are seldom in one plan. But more
requests than a storage is asked at once wait for their turn, and meanwhile neighbours meet: they become one request
where reading over the gap between them costs less than a second one, and bytes for that are granted.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from litevfs.concurrency.futures import settle
from litevfs.errors import TransientStorageError
from litevfs.files.ranges import Limits
from litevfs.ltx.file_info import LTXFileInfo


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes that are kept under one key."""

    key: int
    offset: int
    size: int


class RangeRequest(Future[dict[int, bytes]]):
    """A request for parts of a file, ascending; the result is their bytes by key."""

    def __init__(self, number: int, file: LTXFileInfo, parts: Sequence[Part], *, ahead: bool) -> None:
        super().__init__()
        self.number = number  # of the file
        self.file = file
        self.parts = parts  # never empty
        self.ahead = ahead
        self.is_claimed = False  # a reader makes it, though it was to be made ahead
        self.offset = parts[0].offset
        self.size = parts[-1].offset + parts[-1].size - self.offset
        self._joined: list[RangeRequest] = []  # that this one brings the bytes of, too

    @property
    def place(self) -> tuple[int, int, int]:
        """Where its bytes lie, for an order; no two requests have the same."""
        return self.number, self.offset, id(self)

    @property
    def end(self) -> int:
        """Where its bytes end."""
        return self.offset + self.size

    def join(self, following: RangeRequest) -> None:
        """Bring the bytes of another one, too, which lie after those of this one in the same file."""
        self.parts = [*self.parts, *following.parts]
        self.size = following.end - self.offset
        self._joined.append(following)

    def settle(self, outcome: dict[int, bytes] | Exception) -> None:
        """Give the bytes, or an error, to the threads that wait for this request and for those it has joined."""
        settle(self, outcome)
        for request in self._joined:
            request.settle(outcome)


class Waiting:
    """Requests in the order in which they were made. For one thread at a time."""

    def __init__(self, grant: Callable[[int], bool]) -> None:
        """`grant(size)`: whether so many bytes that nothing needs may be read."""
        self._grant = grant
        self._requests: dict[RangeRequest, None] = {}
        self._by_place: list[tuple[tuple[int, int, int], RangeRequest]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: RangeRequest) -> bool:
        return request in self._requests

    def add(self, request: RangeRequest) -> None:
        """It waits from now on."""
        insort(self._by_place, (request.place, request))  # in this order, Ctrl-C leaves a place that counts for nothing
        self._requests[request] = None

    def remove(self, request: RangeRequest) -> bool:
        """It waits no more; False if it did not."""
        if request not in self._requests:
            return False
        del self._requests[request]
        del self._by_place[self._position(request)]
        return True

    def take(self, limits: Limits, others: int) -> RangeRequest | None:
        """The one that waits longest, joined with its neighbours; None if none waits.

        Of these, `others` are going to be taken at once anyway: so many stay as they are.
        """
        first = next(iter(self._requests), None)
        if first is None:
            return None
        position = self._position(first)
        del self._requests[first], self._by_place[position]
        while len(self) > others and (request := self._joined_before(first, position, limits)) is not None:
            first, position = request, position - 1
        while len(self) > others and self._join_after(first, position, limits):
            pass
        return first

    def clear(self) -> list[RangeRequest]:
        """None waits any more; returns those that did."""
        requests = list(self._requests)
        self._requests.clear()
        self._by_place.clear()
        return requests

    def _position(self, request: RangeRequest) -> int:
        return bisect_left(self._by_place, (request.place,))

    def _joined_before(self, request: RangeRequest, position: int, limits: Limits) -> RangeRequest | None:
        """The request that waits before `position`, joined with this one; None if that does not pay."""
        if not position:
            return None
        before = self._by_place[position - 1][1]
        if not self._may_join(before, request, limits):
            return None
        self.remove(before)
        before.join(request)
        return before

    def _join_after(self, request: RangeRequest, position: int, limits: Limits) -> bool:
        """Join the request that waits at `position`; False if that does not pay."""
        if position >= len(self._by_place):
            return False
        after = self._by_place[position][1]
        if not self._may_join(request, after, limits):
            return False
        self.remove(after)
        request.join(after)
        return True

    def _may_join(self, before: RangeRequest, after: RangeRequest, limits: Limits) -> bool:
        gap = after.offset - before.end
        return (
            before.number == after.number
            and (before in self._requests or after in self._requests)
            and 0 <= gap <= limits.gap
            and after.end - before.offset <= limits.request
            and (not gap or self._grant(gap))
        )


def interrupted() -> TransientStorageError:
    """The error of a request that ends without its bytes because its reader was interrupted, as by Ctrl-C."""
    return TransientStorageError("the read that this one waited for was interrupted")
