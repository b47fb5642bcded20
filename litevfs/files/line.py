"""What the line to a storage is like, from the requests made so far: latency, throughput, and what follows from them.

Owns the measurement; all replicas on one host share one `Line`. Knows neither files nor pages.

Latency is a low quantile of the time that requests took beyond the transfer of their bytes, of those that had the line
nearly to themselves: the others wait for each other's bytes, and a slow line would be taken for a long one. Throughput
is the second best of the last spells in which large requests were under way, counted together. Both need few requests,
forget old ones, and ignore outliers: a request that hangs, or a spell in which the reader was the slow part, changes
neither.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar
from urllib.parse import parse_qs, urlsplit
from weakref import WeakValueDictionary

T = TypeVar("T")

FIRST_LATENCY_S = 0.02
FIRST_BYTES_PER_S = 25e6
"""Assumed before anything was measured: neither a data centre's line nor a home's."""
REQUEST_COST_S = 0.001
"""Time that a request takes on this side and on the storage's, whatever its size."""
REQUEST_CPU_S = 0.0003
"""Time of a processor that a small request takes on this side."""
MIN_AT_ONCE, MAX_AT_ONCE = 32, 64
"""Requests under way at once, that share the latency."""
MIN_GAP_BYTES, MAX_GAP_BYTES = 1 << 12, 1 << 17
MAX_REQUEST_BYTES = 1 << 20
"""One stream seldom fills a line that carries more than this in the time of a request."""
MAX_SCAN_REQUEST_BYTES = 1 << 21
"""The same for a reader that goes through a file: each request costs a storage some 3 ms of a processor (MinIO)."""
MIN_REQUEST_BYTES, USUAL_REQUEST_BYTES, USUAL_WAIT_S = 1 << 16, 1 << 18, 0.1
"""However short the latency is, a request costs something: the second size is the least where it comes in that time."""
TRIPS_AHEAD, MIN_AHEAD_S = 8, 0.25
"""Read-ahead should keep the line busy for so long; a reader that needs other bytes waits no longer than that."""
LARGE_BYTES = 1 << 15
"""Requests for less show the latency; those for more, the throughput."""
SPELL_BYTES = 1 << 17
"""Fewer bytes show nothing of the throughput."""
SPELL_S = 0.25
ENOUGH_BYTES = 1 << 22
"""So many show it sooner."""
LEAST_SHARE = 0.05
"""Part of a spell that its bytes took, at least: where nearly all of it was latency, the rest is no measure."""
REMEMBERED = 32, 8
"""Requests whose latency counts, and spells whose throughput does."""
LATENCY_QUANTILE = 0.25
FEW = 4
"""A request beside which as many others are under way or begin, or a large one is, does not show the latency."""


class Line:
    """The line to one storage. Safe to use from many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock  # seconds
        self._latencies: deque[float] = deque(maxlen=REMEMBERED[0])
        self._rates: deque[float] = deque(maxlen=REMEMBERED[1])
        self._small = 0  # requests under way that show no throughput
        self._begun = 0  # requests, in all
        self._under_way = 0  # large requests
        self._spell_began = 0.0
        self._spell_bytes = 0
        self._spell_trips = 1  # round trips in which no byte came
        self._lock = threading.Lock()
        self.latency_s = FIRST_LATENCY_S  # of one request
        self.bytes_per_s = FIRST_BYTES_PER_S  # of all requests together

    def carry(self, size: int, request: Callable[[], T], size_of: Callable[[T], int]) -> T:
        """Make a request for `size` bytes and measure it. Raises what it raises.

        `size_of` its answer are the bytes that came with its end, and that `came` was not told of.
        """
        if size < LARGE_BYTES:
            return self._small_request(size, request)
        came = 0
        try:
            self._begin(self._clock())  # here, so that Ctrl-C before it counts one too few for a moment, not too many
            answer = request()
            came = size_of(answer)
        finally:
            self._end(came)
        return answer

    def came(self, size: int) -> None:
        """Bytes of a request that goes on have come: a slow line shows before the first answer is whole."""
        with self._lock:
            if self._under_way:
                self._spell_bytes += size
                self._end_spell(self._clock())

    @property
    def at_once(self) -> int:
        """How many requests may be under way at once: as many as a processor makes in the time that one takes."""
        return min(max(int(self.latency_s / REQUEST_CPU_S), MIN_AT_ONCE), MAX_AT_ONCE)

    @property
    def gap_bytes(self) -> int:
        """Reading over a gap of this size takes less time than another request."""
        gap = self.bytes_per_s * (REQUEST_COST_S + self.latency_s / self.at_once)
        return int(min(max(gap, MIN_GAP_BYTES), MAX_GAP_BYTES))

    @property
    def request_bytes(self) -> int:
        """A request for more than this is better made as several: its reader waits for all of it."""
        return min(self.scan_request_bytes, MAX_REQUEST_BYTES)

    @property
    def scan_request_bytes(self) -> int:
        """The same where what comes is needed later, and all of it."""
        least = min(max(self.bytes_per_s * USUAL_WAIT_S, MIN_REQUEST_BYTES), USUAL_REQUEST_BYTES)
        return int(min(max(self.bytes_per_s * 2 * self.latency_s, least), MAX_SCAN_REQUEST_BYTES))

    @property
    def trip_bytes(self) -> int:
        """How many bytes come in the time that a request takes."""
        return int(self.bytes_per_s * self.latency_s)

    @property
    def ahead_bytes(self) -> int:
        """How many bytes may be under way ahead of their use."""
        return int(self.bytes_per_s * max(TRIPS_AHEAD * self.latency_s, MIN_AHEAD_S))

    def trip(self, request: Callable[[], T]) -> T:
        """Make a request whose answer is small and measure it. Raises what it raises."""
        return self._small_request(0, request)

    def _small_request(self, size: int, request: Callable[[], T]) -> T:
        began = self._clock()
        try:
            with self._lock:
                is_calm = self._small < FEW and not self._under_way
                self._small += 1
                self._begun = before = self._begun + 1
            answer = request()
        finally:
            took = self._clock() - began
            with self._lock:
                self._small = max(0, self._small - 1)
        if is_calm and self._begun - before < FEW and not self._under_way:
            self._note_latency(took - size / self.bytes_per_s)
        return answer

    def _note_latency(self, seconds: float) -> None:
        with self._lock:
            self._latencies.append(max(seconds, 0.0))
            kept = sorted(self._latencies)
            self.latency_s = kept[int(len(kept) * LATENCY_QUANTILE)]

    # --- throughput ---------------------------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        with self._lock:
            if not self._under_way:
                self._spell_began, self._spell_bytes, self._spell_trips = now, 0, 1
            self._under_way += 1
            self._begun += 1

    def _end(self, came: int) -> None:
        with self._lock:
            self._under_way = max(0, self._under_way - 1)
            self._spell_bytes += came
            self._end_spell(self._clock())

    def _end_spell(self, now: float) -> None:
        took = now - self._spell_began
        if self._spell_bytes < SPELL_BYTES or (self._under_way and took < SPELL_S and self._spell_bytes < ENOUGH_BYTES):
            return
        net = max(took - self._spell_trips * self.latency_s, LEAST_SHARE * took, 1e-4)
        self._rates.append(self._spell_bytes / net)
        self.bytes_per_s = sorted(self._rates)[-2 if len(self._rates) > 2 else -1]
        self._spell_began, self._spell_bytes, self._spell_trips = now, 0, 0


class OneForEachHost(Generic[T]):
    """One object for all replicas on a host that are open."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._found: WeakValueDictionary[tuple[str, str, str], T] = WeakValueDictionary()
        self._lock = threading.Lock()

    def __call__(self, url: str) -> T:
        """The object for the host that a replica's URL names."""
        parts = urlsplit(url)
        host = parts.scheme, parts.netloc, "".join(parse_qs(parts.query).get("endpoint", []))
        with self._lock:
            found = self._found.get(host)
            if found is None:
                found = self._found[host] = self._make()
            return found


line_to = OneForEachHost(Line)
"""The line to the host that a replica's URL names."""
