"""One request for bytes of a file: with a time limit, counted, and measured. Knows no retries and no cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from litevfs.files.fetched import too_short
from litevfs.files.hedges import Hedges
from litevfs.files.line import Line
from litevfs.files.requests import Requests
from litevfs.replica_clients.base import LTXFileInfo, ReadsPieces, ReplicaClient, Take

T = TypeVar("T")

REQUEST_SHARE = 0.5
"""Part of the read timeout for one request of a page read: a request that hangs must leave time for another."""


class Gets:
    """The requests of one replica for bytes. Safe to use from many threads.

    A `deadline` is `time.monotonic()`, seconds. All methods raise TransientStorageError when fewer bytes come than
    asked for, or too late, else what the client raises.
    """

    def __init__(
        self, client: ReplicaClient, requests: Requests, line: Line, hedges: Hedges, read_timeout_s: float
    ) -> None:
        self._client = client
        self._pieces_client = client if isinstance(client, ReadsPieces) else None
        self._requests = requests
        self._line = line
        self._hedges = hedges
        self.timeout_s = read_timeout_s * REQUEST_SHARE  # of one request that may be retried

    def read(self, file: LTXFileInfo, offset: int, size: int, deadline: float | None) -> bytes:
        """Exactly `size` bytes of a file."""
        return self._get(file, offset, size, partial(self._read, file, offset, size, deadline), len, len)

    def read_timed(self, file: LTXFileInfo, offset: int, size: int, deadline: float | None = None) -> bytes:
        """`read`, and note what it takes."""
        return self._hedges.timed(size, partial(self.read, file, offset, size, deadline))

    def read_pieces(self, file: LTXFileInfo, offset: int, size: int, take: Take, deadline: float | None = None) -> None:
        """`read_timed`, but `take` gets the bytes in order, in pieces of any size, as they come, or all at once.

        What it has got is right, whatever is raised later. What is noted is the time until the first bytes come. Where
        requests are observed, all come at once: who has seen bytes has seen their request.
        """
        client = self._pieces_client
        if client is None or size <= client.block_size or self._requests.observer:
            take(self.read_timed(file, offset, size, deadline))
            return
        began, came = time.monotonic(), 0

        def taken(piece: bytes) -> None:
            nonlocal came
            if not came:
                self._hedges.note(self.first_bytes(size), time.monotonic() - began)
            came += len(piece)
            self._line.came(len(piece))
            take(piece)

        def request() -> int:
            client.read_pieces(file, offset, size, taken, timeout_s=self._left_s(deadline))
            return came

        self._get(file, offset, size, request, int, lambda _: 0)

    def first_bytes(self, size: int) -> int:
        """How many bytes of those that `read_pieces` reads come first."""
        return size if self._pieces_client is None else min(size, self._client.block_size)

    def _read(self, file: LTXFileInfo, offset: int, size: int, deadline: float | None) -> bytes:
        return self._client.read(file, offset, size, timeout_s=self._left_s(deadline))

    def _left_s(self, deadline: float | None) -> float | None:
        return None if deadline is None else min(self.timeout_s, deadline - time.monotonic())

    def _get(
        self,
        file: LTXFileInfo,
        offset: int,
        size: int,
        request: Callable[[], T],
        size_of: Callable[[T], int],
        at_end: Callable[[T], int],
    ) -> T:
        """An answer of `size_of` it bytes, of which the line has not been told of those `at_end`."""
        carry = partial(self._line.carry, size, request, at_end)
        answer = self._requests.get(carry, size_of, f"{file.level}/{file.name}", offset)
        if (came := size_of(answer)) != size:
            self._requests.fail()
            raise too_short(file, self._client.key(file), offset, size, came)
        return answer
