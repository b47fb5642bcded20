"""States of a replica other than the newest: fixed views, and states made again after their files had moved.

Remembers a few of each. One caller at a time, but for `find_known`; the replica sees to that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from litevfs.errors import PageUnavailableError
from litevfs.ltx.file_info import LTXFileInfo
from litevfs.replica_clients.base import ReplicaClient
from litevfs.states.fixed import FixedStates
from litevfs.states.follower import Follower, Publish
from litevfs.states.snapshot import Snapshot

MAX_REMEMBERED = 8
"""How many states of either kind are remembered."""

Moment = tuple[int | None, int | None]
"""(TXID, ms since the Unix epoch): one of them, or none for the newest state."""


class OtherStates:
    """States that `follower` makes beside the live state."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._fixed = FixedStates(follower)
        self._views: OrderedDict[int, Snapshot] = OrderedDict()  # by TXID
        self._rebuilt: OrderedDict[tuple[int, int], Snapshot] = OrderedDict()  # by (epoch, TXID)

    def view(self, txid: int | None, timestamp_ms: int | None) -> Snapshot:
        """The state after transaction `txid`, or as of a time, or without both the newest.

        Raises TXIDNotFoundError if the replica lacks it.
        """
        files, txid = self._fixed.find(txid, timestamp_ms)
        return self._remember(self._known(files, txid) or self._fixed.build(files, txid))

    def pair(self, old: Moment, new: Moment) -> tuple[Snapshot, Snapshot]:
        """Two states to be compared, each a (TXID, time) as for `view`; until others are made, `view` returns these.

        The TXIDs may be in the wrong order: then both states are made as by `view`. Raises what `view` raises.
        """
        old_files, old_txid = self._fixed.find(*old)
        new_files, new_txid = self._fixed.find(*new)
        files = list(dict.fromkeys([*old_files, *new_files]))
        if old_txid >= new_txid:
            return self.view(old_txid, None), self.view(new_txid, None)
        older = self._remember(self._known(files, old_txid) or self._fixed.begin(files, old_txid))
        newer = self._known(files, new_txid)
        if newer is None or newer.epoch != older.epoch:
            newer = self._fixed.lead_on(older, files, new_txid)
        return older, self._remember(newer)

    def _known(self, files: list[LTXFileInfo], txid: int) -> Snapshot | None:
        """The remembered state, if its files are all there still."""
        view = self._views.get(txid)
        return view if view is not None and set(view.files.values()).issubset(files) else None

    def _remember(self, view: Snapshot) -> Snapshot:
        self._views[view.txid] = view
        self._views.move_to_end(view.txid)
        while len(self._views) > MAX_REMEMBERED:
            self._views.popitem(last=False)
        return view

    def find_known(self, wanted: Snapshot, pgno: int, published: Snapshot | None) -> Snapshot | None:
        """A state in memory that has page `pgno` as `wanted` has it, in another file."""
        for known in (published, self._rebuilt.get((wanted.epoch, wanted.txid))):
            if known is not None and _holds_same(known, wanted, pgno):
                return known
        return None

    def find(
        self, wanted: Snapshot, pgno: int, published: Callable[[], Snapshot | None], publish: Publish
    ) -> Snapshot | None:
        """A state that has page `pgno` as `wanted` has it, in another file; None if nothing holds that any more."""
        return (
            self.find_known(wanted, pgno, published())
            or self.find_again(wanted, published(), publish)
            or self.find_known(wanted, pgno, published())  # which has moved on meanwhile
        )

    def find_again(self, wanted: Snapshot, published: Snapshot | None, publish: Publish) -> Snapshot | None:
        """The state `wanted`, made again from the files that the replica holds now; None if that is impossible."""
        again = self._follower.find_again(wanted, published, publish)
        if again is not None:
            again = self._fixed.as_view(again)
            self._rebuilt[(again.epoch, again.txid)] = again
            while len(self._rebuilt) > MAX_REMEMBERED:
                self._rebuilt.popitem(last=False)
        return again


def _holds_same(known: Snapshot, wanted: Snapshot, pgno: int) -> bool:
    if known.epoch != wanted.epoch:
        return False
    same = known.version(pgno) == wanted.version(pgno) or known.txid == wanted.txid  # then it has the page
    return same and known.files[known.file_number(pgno)] != wanted.files[wanted.file_number(pgno)]


def page_gone(wanted: Snapshot, pgno: int, published: Snapshot | None, client: ReplicaClient) -> PageUnavailableError:
    """The error for a page of `wanted` that no file holds any more; `published` is the state of a new transaction."""
    missing = wanted.files[wanted.file_number(pgno)]
    hint = "begin a new transaction, it reads a newer state; or lengthen the retention on the primary"
    if published is not None and (published.epoch, published.txid) == (wanted.epoch, wanted.txid):
        hint = "there is no newer state: was the replica set back or damaged? litevfs verify shows what it holds"
    return PageUnavailableError(
        f"page {pgno} of the state that this transaction reads is gone: its LTX file was deleted or replaced",
        level=missing.level,
        min_txid=missing.min_txid,
        max_txid=missing.max_txid,
        key=client.key(missing),
        hint=hint,
    )
