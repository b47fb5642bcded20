"""States of a replica other than the newest: fixed views, and states made again after their files had moved.

Remembers a few of each. One caller at a time; the replica sees to that.
"""

from __future__ import annotations

from collections import OrderedDict

from litevfs.follower import Follower, Publish
from litevfs.snapshot import Snapshot

MAX_REMEMBERED = 8
"""Of either kind."""


class OtherStates:
    """What `follower` can make beside the live state."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._views: OrderedDict[int, Snapshot] = OrderedDict()  # by TXID
        self._rebuilt: OrderedDict[tuple[int, int], Snapshot] = OrderedDict()  # by (epoch, TXID)

    def view(self, txid: int | None, timestamp_ms: int | None) -> Snapshot:
        """The state after transaction `txid`, or as of a time. Raises TXIDNotFoundError when the replica has it not."""
        files, txid = self._follower.find_state(txid, timestamp_ms)
        view = self._views.get(txid)
        if view is None or not set(view.files.values()).issubset(files):
            view = self._views[txid] = self._follower.build_view(files, txid)
        while len(self._views) > MAX_REMEMBERED:
            self._views.popitem(last=False)
        return view

    def find_known(self, wanted: Snapshot, pgno: int, published: Snapshot | None) -> Snapshot | None:
        """A state at hand that has page `pgno` as `wanted` has it, in another file."""
        for known in (published, self._rebuilt.get((wanted.epoch, wanted.txid))):
            if known is not None and _holds_same(known, wanted, pgno):
                return known
        return None

    def find_again(self, wanted: Snapshot, published: Snapshot | None, publish: Publish) -> Snapshot | None:
        """The state `wanted`, made anew from what the replica holds now; None if that is not possible any more."""
        again = self._follower.find_again(wanted, published, publish)
        if again is not None:
            self._rebuilt[(again.epoch, again.txid)] = again
            while len(self._rebuilt) > MAX_REMEMBERED:
                self._rebuilt.popitem(last=False)
        return again


def _holds_same(known: Snapshot, wanted: Snapshot, pgno: int) -> bool:
    if known.epoch != wanted.epoch or not known.file_number(pgno):
        return False
    same = known.version(pgno) == wanted.version(pgno) or known.txid == wanted.txid
    return same and known.files[known.file_number(pgno)] != wanted.files[wanted.file_number(pgno)]
