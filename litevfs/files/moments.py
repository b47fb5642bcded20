"""Which state was the newest at a time. Owns the search; reads nothing itself.

A file's timestamp is that of its last transaction, so timestamps grow with `max_txid`: the search reads the headers of
a few files however long the history is. Full snapshots are the exception: they carry the time at which they were made,
and are asked only about states that no other file ends at.

No checksum covers a header that is read alone. So the search confirms the two headers that decide: of the last state at
or before the time, and of the first state after it. What the other headers said then does not matter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from litevfs.errors import LTXFormatError, TXIDNotFoundError
from litevfs.files.plan import extend, gap_error, no_files_error, reachable_ends
from litevfs.ltx.file_info import SNAPSHOT_LEVEL, LTXFileInfo
from litevfs.ltx.names import format_txid
from litevfs.units import format_timestamp


class ReadsTimes(Protocol):
    """Reads timestamps in headers, milliseconds since the Unix epoch. Raises LTXFormatError for a damaged file."""

    def read_time(self, file: LTXFileInfo) -> int:
        """The time in a header that is read alone."""
        ...

    def confirm_times(self, read: Sequence[tuple[LTXFileInfo, int | None]]) -> list[int]:
        """The times of several files, each with the one that was read alone, or None; more than one reading bears out
        what is returned.
        """
        ...


def state_at(files: Sequence[LTXFileInfo], timestamp_ms: int, times: ReadsTimes) -> int:
    """The TXID of the newest state at a time; reads about log2(number of states) headers, and confirms two of them.

    Raises ReplicaEmptyError; TXIDNotFoundError for a time before the first state or in the future; TXIDGapError if
    files that no state contains are not younger than the time; LTXFormatError if what decides is damaged.
    """
    if not files:
        raise no_files_error()
    if timestamp_ms > time.time() * 1000:
        raise TXIDNotFoundError(f"{format_timestamp(timestamp_ms)} lies in the future")
    search = _Search(files, timestamp_ms, times)
    if not search.states:
        raise TXIDNotFoundError("the replica holds no complete state", min_txid=extend(0, files).txid + 1)
    count = search.run()
    if not count:
        raise TXIDNotFoundError(
            f"no state is as old as {format_timestamp(timestamp_ms)}",
            hint=f"the earliest state still held is of {format_timestamp(search.found_ms[0])}",
        )
    found = search.states[count - 1][0]
    if count == len(search.states):
        _check_end(found, files, timestamp_ms, times)
    return found


def _check_end(newest: int, files: Sequence[LTXFileInfo], timestamp_ms: int, times: ReadsTimes) -> None:
    """Raise TXIDGapError if later transactions that are not younger than the time lie past a gap."""
    gap = extend(newest, files).gap
    if gap is None:
        return
    after = min((file for file in files if file.min_txid > gap[1]), key=lambda file: file.max_txid)
    if times.confirm_times([(after, None)])[0] <= timestamp_ms:
        raise gap_error(gap)


class _Search:
    """A binary search among the states that the files make."""

    def __init__(self, files: Sequence[LTXFileInfo], timestamp_ms: int, times: ReadsTimes) -> None:
        self.states = list(reachable_ends(files).items())
        self.found_ms: dict[int, int] = {}  # of states, by their place
        self._confirmed: set[int] = set()  # places
        self._timestamp_ms = timestamp_ms
        self._times = times

    def run(self) -> int:
        """How many states are not younger than the time."""
        while True:  # each round confirms a time that was not confirmed before, or is the last one
            count = self._search()
            edges = [i for i in (count - 1, count) if 0 <= i < len(self.states) and i not in self._confirmed]
            if not edges:
                return count
            for i, found_ms in zip(edges, self._confirm(edges), strict=True):
                self.found_ms[i] = found_ms
                self._confirmed.add(i)

    def _search(self) -> int:
        low, high = 0, len(self.states)  # states[:low] are not younger than the time, states[high:] are
        while low < high:
            middle = (low + high) // 2
            if middle not in self.found_ms:
                self._read(middle)
            if self.found_ms[middle] <= self._timestamp_ms:
                low = middle + 1
            else:
                high = middle
        return low

    def _read(self, place: int) -> None:
        file = self.states[place][1][0]
        try:
            self.found_ms[place] = self._times.read_time(file)
        except LTXFormatError:
            self.found_ms[place] = self._confirm_one(place)
            self._confirmed.add(place)

    def _confirm(self, places: Sequence[int]) -> list[int]:
        try:
            return self._times.confirm_times([(self.states[i][1][0], self.found_ms[i]) for i in places])
        except LTXFormatError:
            return [self._confirm_one(i) for i in places]

    def _confirm_one(self, place: int) -> int:
        """The time of a state by the first of the files that end there which is sound."""
        txid, files = self.states[place]
        failure: LTXFormatError | None = None
        for file in files:
            try:
                (found_ms,) = self._times.confirm_times([(file, None)])
            except LTXFormatError as error:
                failure = failure or error
                continue
            if failure is None or file.level != SNAPSHOT_LEVEL or found_ms <= self._timestamp_ms:
                return found_ms  # a snapshot is no older than its last transaction
        assert failure is not None, "of each state there is a file"
        raise _named_earlier(failure, [earlier for earlier, _ in self.states[:place]], txid)


def _named_earlier(error: LTXFormatError, earlier: list[int], txid: int) -> LTXFormatError:
    """The error with a hint at the states by their TXIDs, which no time is needed for."""
    advice = f"it decides which state is of that time: txid={format_txid(txid)}"
    if earlier:
        advice += f", or txid={format_txid(earlier[-1])} before it"
    error.hint = f"{error.hint}; {advice}" if error.hint else advice
    return error
