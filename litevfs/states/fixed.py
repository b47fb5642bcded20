"""Builds fixed states of a replica: one, or two to be compared. Remembers the one made last; does no I/O itself.

Two states to be compared share what they can: the later one is made of the earlier one and the least bytes that lead
from it on, so its page map says what changed. Of a large snapshot file at their beginning, only those parts of the page
index are read that the comparison comes to need.
"""

from __future__ import annotations

import itertools
import logging
from contextlib import suppress
from dataclasses import replace

from litevfs.errors import LitevfsError
from litevfs.files.moments import state_at
from litevfs.files.plan import least_bytes, newest_state
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.states.follower import Follower
from litevfs.states.snapshot import Snapshot, empty_snapshot

logger = logging.getLogger("litevfs.states.fixed")

_FIRST_VIEW_EPOCH = 1 << 32
"""A fixed view is a history of its own: nothing proves that it is the one of the live states."""
_FIRST_VIEW_COUNTER = 1 << 31
"""Change counters of fixed views start here, so that they never equal a live state's."""


class FixedStates:
    """Makes fixed states with a follower. One caller at a time."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._epochs = itertools.count(_FIRST_VIEW_EPOCH)
        self._counters = itertools.count(_FIRST_VIEW_COUNTER)
        self._last: tuple[Snapshot, tuple[LTXFileInfo, ...]] = empty_snapshot(), ()  # and what it was made of

    def find(self, txid: int | None, timestamp_ms: int | None) -> tuple[list[LTXFileInfo], int]:
        """(listing of all levels, TXID): the TXID itself, or that of the newest state (not younger than the time).

        Raises what `state_at` raises.
        """
        files = self._follower.list_all(txid)
        if txid is None and timestamp_ms is not None:
            txid = state_at(files, timestamp_ms, self._follower.times)
        return files, newest_state(files).txid if txid is None else txid

    def build(self, files: list[LTXFileInfo], txid: int) -> Snapshot:
        """The state after transaction `txid` exactly, a later one of the history of the state made last if its files
        begin with all of that one's. Raises TXIDNotFoundError when the files do not make it.
        """
        chain = newest_state(files, txid).files
        view, before = self._last
        with suppress(LitevfsError):  # made from nothing, there may be a way around the file
            if before and chain[: len(before)] == before:
                view = self.as_view(self._follower.apply(view, chain[len(before) :])[0])
                self._last = view, chain
                return view
        view = self.as_view(self._follower.make(empty_snapshot(epoch=next(self._epochs)), files, txid)[0])
        self._last = view, chain if set(view.files.values()).issubset(chain) else ()
        return view

    def lead_on(self, old: Snapshot, files: list[LTXFileInfo], txid: int) -> Snapshot:
        """A later state than `old`, of its history if files lead from it there.

        Raises TXIDNotFoundError when the files do not make it.
        """
        try:
            between = least_bytes(old.txid, files, txid)
            if between is not None:
                return self.as_view(self._follower.apply(old, between)[0])
        except LitevfsError as error:
            logger.info("the newer state is made from nothing: %s", error)
        return self.begin(files, txid)

    def begin(self, files: list[LTXFileInfo], txid: int) -> Snapshot:
        """A state of a history of its own, of which only parts of a large page index are read.

        Raises TXIDNotFoundError when the files do not make it.
        """
        chain = newest_state(files, txid).files
        start = empty_snapshot(epoch=next(self._epochs))
        if self._follower.begins_costly(chain[0]):
            try:
                state = self._follower.begin_with(start, chain[0])
                return self.as_view(self._follower.apply(state, chain[1:])[0])
            except LitevfsError as error:  # made as usual, there may be a way around the file
                logger.info("a state is made from whole page indexes: %s", error)
            start = empty_snapshot(epoch=next(self._epochs))
        return self.as_view(self._follower.make(start, files, txid)[0])

    def as_view(self, snapshot: Snapshot) -> Snapshot:
        """The same state under a change counter that no other state has."""
        return replace(snapshot, change_counter=next(self._counters))
