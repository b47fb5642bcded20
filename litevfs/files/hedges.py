"""When a request is made a second time because it is slow, and how often that may be.

A request is late once it takes longer than 95 % of the recent ones of its kind. Then a second one pays: a storage that
is slow now and then is seldom slow twice in a row. Times are kept per host, so that the first requests of a replica can
be late, too. Invariant: at most SHARE of a host's requests are second ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, as_completed, wait
from functools import partial
from typing import TypeVar

from litevfs.concurrency.calls import call_elsewhere
from litevfs.errors import TransientStorageError
from litevfs.files.line import OneForEachHost

logger = logging.getLogger("litevfs.files.hedges")

T = TypeVar("T")

SHARE = 0.05
"""Requests made a second time, as part of all."""
QUANTILE = 0.95
SIZE_CLASSES_BYTES = 1 << 16, 1 << 18
"""Reads up to these sizes, and larger ones, are measured apart."""
LIST, NAMED = "LIST", "NAMED"
"""Other kinds of requests: listings, and reads of files that may not exist."""
REMEMBERED, LEAST = 200, 20
"""Requests of a kind that are remembered; how many have to be known before one counts as late."""
LEAST_LATE_S, LEAST_LATE_POLL_S = 0.05, 0.25
"""A second request for an answer that comes so soon gains nothing that is felt; the second, of a LIST or NAMED one."""

What = int | str
"""A read of so many bytes, or another kind of request."""


class Answers:
    """What the requests to one host take, of all replicas there. Safe to use from many threads."""

    def __init__(self) -> None:
        self.made = 0  # requests that were answered
        self.second = 0  # requests made a second time
        self._took: defaultdict[What, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._lock = threading.Lock()

    def note(self, what: What, seconds: float) -> None:
        """A request was answered after so many seconds."""
        with self._lock:
            self.made += 1
            self._took[_kind(what)].append(seconds)

    def late_after_s(self, what: What) -> float | None:
        """After how many seconds a request is late; None while too little is known."""
        with self._lock:
            known = sorted(self._took[_kind(what)])
        least_s = LEAST_LATE_POLL_S if isinstance(what, str) else LEAST_LATE_S
        return None if len(known) < LEAST else max(known[int(len(known) * QUANTILE)], least_s)

    def take(self) -> bool:
        """Whether one more request may be made a second time; it is counted if so."""
        with self._lock:
            if self.second + 1 > SHARE * self.made:
                return False
            self.second += 1
            return True


def _kind(what: What) -> What:
    return what if isinstance(what, str) else sum(what > most for most in SIZE_CLASSES_BYTES)


class Hedges:
    """The second requests of one replica. Safe to use from many threads."""

    def __init__(self, answers: Answers | None = None) -> None:
        self.second = 0  # requests made a second time
        self._answers = answers or Answers()
        self.late_after_s, self.note = self._answers.late_after_s, self._answers.note

    def take(self) -> bool:
        """See `Answers.take`."""
        if not self._answers.take():
            return False
        self.second += 1
        return True

    def timed(self, what: What, request: Callable[[], T]) -> T:
        """Make a request and note what it takes. Raises what it raises."""
        began = time.monotonic()
        answer = request()
        self._answers.note(what, time.monotonic() - began)
        return answer

    def first_answer(self, what: What, request: Callable[[], T]) -> T:
        """What a request returns, or the same made once more if it is late. Raises what it raises.

        The request may be made in another thread; the one whose answer comes last goes on to its own end.
        """
        request = partial(self.timed, what, request)
        late_after_s = self.late_after_s(what)
        first = None if late_after_s is None else _in_spare_thread(request)
        if first is None:
            return request()
        if wait([first], late_after_s).done or not self.take():
            return first.result()
        logger.debug("making a request a second time, which has taken %.3f s", late_after_s)
        second = _in_spare_thread(request)
        return first.result() if second is None else first_of([first, second])


def _in_spare_thread(request: Callable[[], T]) -> Future[T] | None:
    try:
        return call_elsewhere(request, "litevfs-request")
    except TransientStorageError:  # no thread can start
        return None


def first_of(requests: Iterable[Future[T]], patience_s: float | None = None) -> T:
    """The first result of futures that are asked for the same; after transient errors that of the other.

    Raises the last one's error, and `concurrent.futures.TimeoutError` after `patience_s`.
    """
    failure: TransientStorageError | None = None
    for answer in as_completed(requests, patience_s):
        try:
            return answer.result()
        except TransientStorageError as error:
            failure = error
    assert failure is not None
    raise failure


answers_of = OneForEachHost(Answers)
"""What requests to the host that a replica's URL names take."""
